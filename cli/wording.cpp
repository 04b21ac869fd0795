#include "cli/wording.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

namespace gradgram::cli {
namespace {

/// A call of the library, and the option or file that its messages are about when kSentences knows nothing
/// better.
struct Call {
  std::string_view name;
  std::string_view subject;
};

// Where the longer of two names comes first, the shorter one does not hide it.
constexpr Call kCalls[] = {
    {"InfiniteKernel::block", ""},
    {"add", "--model"},
    {"apply_function", "{kernel}"},
    {"apply_kernel", "{cross}"},
    {"approximate_kernel", "--approximate"},
    {"arena", "--memory"},
    {"array", ""},
    {"average_pool", "--model"},
    {"average_ranks", ""},
    {"cholesky", "{kernel}"},
    {"cifar10", ""},
    {"classes", "--classes"},
    {"condition", "{kernel}"},
    {"conjugate_gradients", "{kernel}"},
    {"conv2d", "--model"},
    {"convolution", "--model"},
    {"correlation", ""},
    {"correlation_ratio", ""},
    {"covariance_kernels", "GRADGRAM_ISA"},
    {"cross_entropy", "--loss"},
    {"csv", ""},
    {"dense", "--model"},
    {"diagonal", "--diagonal"},
    {"effective_dimension", "{kernel}"},
    {"estimate_moments", "--products"},
    {"evaluate", "--model"},
    {"flatten", "--model"},
    {"global_average_pool", "--model"},
    {"group_by", ""},
    {"gzip", ""},
    {"idx", ""},
    {"infinite_kernel", "--infinite"},
    {"infinite_kernel_to_file", "--infinite"},
    {"inputs_as", "--dtype {dtype}"},
    {"join_outputs", "--reduce"},
    {"kernel", "--model"},
    {"kernel operator", "--matrix-free"},
    {"kernel_regression", "{kernel}"},
    {"kernel_target_alignment", "--labels"},
    {"kernel_to_file", "--out"},
    {"kernels", "GRADGRAM_ISA"},
    {"label_energy", "--labels"},
    {"largest_pairs", "{kernel}"},
    {"largest_stable_rate", "{kernel}"},
    {"learnability", "--data"},
    {"left_singular_vectors", "{kernel}"},
    {"linearized_cross_entropy", "--loss"},
    {"linearized_descent", "--learning-rate"},
    {"linearized_predictions", "--learning-rate"},
    {"linearized_residuals", "--learning-rate"},
    {"load_weights", "--weights"},
    {"log_softmax", "--model"},
    {"mapped array", ""},
    {"matrix operator", "{kernel}"},
    {"max_pool", "--model"},
    {"mean_of", "--probes"},
    {"mean_squared_error", "--loss"},
    {"memory account", "--memory"},
    {"model", "--model"},
    {"monte_carlo_kernel", "--monte-carlo"},
    {"network", "--model"},
    {"npy", ""},
    {"npz", ""},
    {"open", ""},
    {"parameterization", "--parameterization"},
    {"parameters", "--model"},
    {"parse_isa", "GRADGRAM_ISA"},
    {"predict", "{kernel}"},
    {"project_gradients", "--approximate"},
    {"read_file", ""},
    {"reduce_name", "--reduce"},
    {"reshape", "--model"},
    {"save_weights", "--out"},
    {"scratch file", "--scratch"},
    {"self_moments", "--infinite"},
    {"shape", ""},
    {"softmax", "--model"},
    {"spearman", ""},
    {"spearman_standard_error", ""},
    {"spearman_within", ""},
    {"spectral_density", "{kernel}"},
    {"spectrum", "{kernel}"},
    {"squared norm sink", "--model"},
    {"symmetric_eigen", "{kernel}"},
    {"synthetic", ""},
    {"tape", "--model"},
    {"tensor", ""},
    {"training", "--learning-rate"},
    {"unpack", "{kernel}"},
    {"workers", "--threads"},
    {"write_file", "--out"},
    {"write_npy", "--out"},
    {"write_npz", "--out"},
};

/// The beginning of a message behind its call (any, when it is empty), and what is told in its place. The
/// first that fits counts.
struct Sentence {
  std::string_view call;
  std::string_view beginning;
  std::string_view told;
};

constexpr Sentence kSentences[] = {
    {"", "the memory budget (", "--memory: the memory budget ("},
    {"", "labels (", "{labels} ("},
    {"", "labels[", "{labels}["},
    {"", "versus_labels (", "--versus-labels: labels ("},
    {"", "versus_labels[", "--versus-labels: labels["},
    {"", "output (", "--reduce: output ("},
    {"", "the reduction true-class", "--reduce: true-class"},
    {"", "weight_variance:", "--weight-variance:"},
    {"", "bias_variance:", "--bias-variance:"},
    {"evaluate", "output ", "--dtype {dtype}: output "},
    {"infinite_kernel", "x: ", "--data: "},
    {"infinite_kernel", "versus: ", "--versus: "},
    {"infinite_kernel", "the variances ", "--data: the variances "},
    {"infinite_kernel", "entry (", "--dtype {dtype}: entry ("},
    {"kernel", "a way is given for", "--way: a way is given for"},
    {"kernel", "the way of", "--way: the way of"},
    {"kernel", "bf16 ", "--dtype: bf16 "},
    {"kernel", "the scratch folder ", "--scratch: "},
    {"kernel", "spilled factors ", "--spill always: spilled gradients "},
    {"kernel", "entry (", "--dtype {dtype}: entry ("},
    {"kernel operator", "the product at example", "--dtype {dtype}: the product at example"},
    {"diagonal", "entry ", "--dtype {dtype}: entry "},
    {"project_gradients", "the gradient", "--dtype {dtype}: the gradient"},
    {"project_gradients", "dimension (", "--approximate ("},
    {"approximate_kernel", "entry (", "--dtype {dtype}: entry ("},
    {"monte_carlo_kernel", "true-class ", "--reduce: true-class "},
    {"monte_carlo_kernel", "samples (", "--monte-carlo ("},
    {"monte_carlo_kernel", "the mean ", "--dtype {dtype}: the mean "},
    {"estimate_moments", "products (", "--products ("},
    {"largest_pairs", "top (", "--top ("},
    {"spectral_density", "probes (", "--probes ("},
    {"spectral_density", "steps (", "--steps ("},
    {"symmetric_eigen", "n = ", "--top: n = "},
    {"spectrum", "n = ", "--memory: n = "},
    {"predict", "the outputs are not finite", "--time, --learning-rate: the outputs are not finite"},
    {"predict", "rate (", "--learning-rate ("},
    {"predict", "momentum (", "--momentum ("},
    {"predict", "ridge (", "--ridge ("},
    {"predict", "time (", "{duration} ("},
    {"kernel_regression", "y must", "{targets}: targets must"},
    {"cholesky", "shift (", "--ridge ("},
    {"cholesky", "the matrix ", "{kernel}: the kernel "},
    {"cholesky", "matrix(", "{kernel}: kernel("},
    {"conjugate_gradients", "the matrix ", "{kernel}: the kernel "},
    {"label_energy", "||y||^2", "--labels: the sum of their squares"},
    {"kernel_target_alignment", "the kernel ", "{kernel}: the kernel "},
    {"kernel_target_alignment", "kernel(", "{kernel}: kernel("},
    {"kernel_target_alignment", "y is", "--labels: what they tell is"},
    {"open", "label_noise (", "--label-noise ("},
    {"open", "unit_norm:", "--unit-norm:"},
    {"open", "standardizing", "--standardize: standardizing"},
    {"open", "class", "--classes: class"},
    {"open", "the data set has no example of the chosen",
     "--classes: the data set has no example of the chosen"},
    {"learnability", "cross-entropy needs", "--loss: cross-entropy needs"},
    {"learnability", "a network with", "--outputs: a network with"},
    {"learnability", "the learning rate ", "--learning-rate: it "},
    {"learnability", "the penalties ", "--l1, --l2: they "},
    {"learnability", "training left the numbers", "--learning-rate: training left the numbers"},
    {"learnability", "momentum ", "--momentum: it "},
    {"learnability", "needs at least 1 epoch", "--epochs: needs at least 1"},
    {"learnability", "score epoch", "--score-epochs: epoch"},
    {"learnability", "the kernel is zero", "--model: the kernel is zero"},
    {"workers", "threads (", "--threads ("},
};

/// Arguments of the library that stand within its sentences, and what they are at the door.
struct Words {
  std::string_view library, program;
};
constexpr Words kWithin[] = {
    {"the same call goes on", "the same command goes on"},
    {"begin anew (restart)", "begin anew (--restart)"},
    {"choose another scratch folder, more memory", "choose another --scratch, more --memory"},
    {"; inputs (checksum) was", "; --data (checksum) was"},
    {": inputs (checksum) was", ": --data (checksum) was"},
    {"second inputs (checksum)", "--versus (checksum)"},
    {"; labels (checksum) was", "; --labels (checksum) was"},
    {": labels (checksum) was", ": --labels (checksum) was"},
    {"second labels (checksum)", "--versus-labels (checksum)"},
    {" of x (", " of --data ("},
    {" of versus (", " of --versus ("},
    {"bring the examples to one norm", "bring the examples to one norm (--unit-norm)"},
    {", or ask for f32, which promises less", ", or ask for --dtype f32, which promises less"},
    {" of x are ", " of --data are "},
    {" of versus are ", " of --versus are "},
    {"of the loss 1/2 sum r^2", "of half the sum of squares"},
    {"a ridge of ", "--ridge "},
    {"add a jitter (ridge) above", "give a --ridge above"},
    {"a larger ridge (now", "a larger --ridge (now"},
    {", a larger rank or a larger tolerance would do", " or more --memory would do"},
    {"but matrix(", "but kernel("},
    {"and matrix(", "and kernel("},
};

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

/// The words in braces, which depend on the command.
std::string filled_in(std::string_view words, const Options& options) {
  const std::string kernel = !options.kernel_file.empty()      ? options.kernel_file
                             : !options.predict_kernel.empty() ? "--kernel " + options.predict_kernel
                                                               : "--model";
  std::string text(words);
  text = replaced(text, "{kernel}", kernel);
  text = replaced(text, "{cross}", options.cross.empty() ? kernel : "--cross " + options.cross);
  text = replaced(text, "{targets}", options.targets.empty() ? "--data" : "--targets " + options.targets);
  text = replaced(text, "{labels}", options.labels.empty() ? "--data: labels" : "--labels: labels");
  text = replaced(text, "{duration}", options.steps.empty() ? "--time" : "--steps");
  return replaced(text, "{dtype}", options.dtype);
}

/// `--threads (5000) must be ...` as the program's own messages write it: `--threads: 5000 must be ...`.
std::string value_behind_option(std::string text) {
  const std::size_t open = text.find(" (");
  if (!text.starts_with("--") || open == std::string::npos || open != text.find(' ')) return text;
  const std::size_t close = text.find(") ", open);
  if (close == std::string::npos) return text;
  return text.substr(0, open) + ": " + text.substr(open + 2, close - open - 2) + text.substr(close + 1);
}

/// Numbers beyond those of a precision ask for another, or for smaller numbers.
std::string with_way_out(std::string text, const Options& options) {
  if (!text.starts_with("--dtype " + options.dtype + ": ")) return text;
  if (options.dtype == "f64") return text + "; smaller inputs would do (--unit-norm scales them)";
  return text.find("f64") == std::string::npos ? text + "; --dtype f64 holds more" : text;
}

struct Told {
  std::string text;     ///< without the call and with the program's words
  std::string subject;  ///< what the call is about, where the text does not say; may be empty
};

Told told(std::string_view message, const Options& options) {
  const auto* const call = std::ranges::find_if(kCalls, [&](const Call& one) {
    return message.starts_with(one.name) && message.substr(one.name.size()).starts_with(": ");
  });
  Told result;
  result.text = message;
  if (call != std::end(kCalls)) {
    const std::string_view rest = message.substr(call->name.size() + 2);
    result.text = rest;
    const auto* const sentence = std::ranges::find_if(kSentences, [&](const Sentence& one) {
      return (one.call.empty() || one.call == call->name) && rest.starts_with(one.beginning);
    });
    if (sentence != std::end(kSentences)) {
      result.text = filled_in(sentence->told, options) + std::string(rest.substr(sentence->beginning.size()));
    } else {
      result.subject = filled_in(call->subject, options);
    }
  }
  for (const Words& words : kWithin) {
    result.text = replaced(std::move(result.text), words.library, words.program);
  }
  result.text = with_way_out(value_behind_option(std::move(result.text)), options);
  return result;
}

std::string behind(std::string_view subject, const std::string& text) {
  return subject.empty() || text.starts_with(subject) ? text : fmt::format("{}: {}", subject, text);
}

}  // namespace

std::string about_subject(std::string_view subject, std::string_view message, const Options& options) {
  const Told one = told(message, options);
  // Of the option that a call is about more can be said than of where its numbers came from.
  if (one.text.starts_with("--")) return one.text;
  return behind(one.subject.starts_with("--") ? one.subject : subject, one.text);
}

std::string in_options(std::string_view message, const Options& options) {
  const Told one = told(message, options);
  return one.text.starts_with("--") ? one.text : behind(one.subject, one.text);
}

std::span<const std::string_view> library_calls() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> all;
    for (const Call& call : kCalls) all.push_back(call.name);
    return all;
  }();
  return names;
}

}  // namespace gradgram::cli
