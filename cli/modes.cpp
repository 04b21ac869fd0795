#include "cli/modes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <string_view>
#include <vector>

#include "engine/error.hpp"

namespace gradgram::cli {
namespace {

using Condition = bool (*)(const Options&);
using Names = std::vector<const char*>;

/// As the help calls the argument that is no option.
constexpr const char* kKernelFile = "KERNEL.npy";

/// While `holds`, which the user knows as `mode`, none of `options` is read.
struct Clash {
  std::vector<Verb> verbs;
  const char* mode;
  Condition holds;
  Names options;
  const char* why;
};

/// None of `options` is read unless `holds`.
struct Need {
  std::vector<Verb> verbs;
  Names options;
  Condition holds;
  const char* needed;
};

bool infinite(const Options& o) {
  return o.infinite;
}
bool monte_carlo(const Options& o) {
  return o.monte_carlo != 0;
}
bool approximate(const Options& o) {
  return o.approximate != 0;
}
bool diagonal(const Options& o) {
  return o.diagonal;
}
bool true_class(const Options& o) {
  return o.reduce == "true-class";
}
bool matrix_free(const Options& o) {
  return o.matrix_free;
}
bool from_file(const Options& o) {
  return !o.predict_kernel.empty();
}
/// Whether --estimate, which is checked when it is read, holds the word.
bool estimates(const Options& o, std::string_view word) {
  return ("," + o.estimate + ",").find(fmt::format(",{},", word)) != std::string::npos;
}
bool reads_csv(const Options& o) {
  std::string extension = std::filesystem::path(o.data).extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension == ".csv";
}

const Names kPlan = {"--explain", "--plan-only", "--way", "--rates", "--spill", "--scratch"};
const Names kModel = {"--model",           "--outputs",       "--parameterization",
                      "--weight-variance", "--bias-variance", "--weights"};
const Names kData = {"--data",      "--classes",     "--limit",  "--train", "--standardize",
                     "--unit-norm", "--label-noise", "--target", "--test",  "--versus"};

Names joined(std::initializer_list<Names> parts) {
  Names all;
  for (const Names& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

const std::vector<Clash>& clashes() {
  using enum Verb;
  static const std::vector<Clash> table = {
      {{Kernel},
       "--approximate",
       approximate,
       joined({{"--infinite", "--monte-carlo", "--get", "--diagonal", "--per-parameter", "--versus",
                "--versus-labels", "--packed", "--preview", "--dtype bf16"},
               kPlan}),
       "which is not offered for this estimate"},
      {{Kernel},
       "--infinite",
       infinite,
       joined({{"--monte-carlo", "--weights", "--reduce", "--diagonal", "--per-parameter", "--preview",
                "--labels", "--versus-labels", "--label-noise", "--dtype bf16"},
               kPlan}),
       "which is about a finite network's kernel"},
      {{Kernel, Predict},
       "--infinite",
       infinite,
       {"--parameterization standard"},
       "since infinite width is told in the ntk parameterization"},
      {{Predict}, "--infinite", infinite, {"--weights", "--reduce"}, "which is about a finite network"},
      {{Kernel}, "--monte-carlo", monte_carlo, {"--weights"}, "since every sample draws its own"},
      {{Kernel},
       "--monte-carlo",
       monte_carlo,
       joined({{"--diagonal", "--per-parameter", "--packed", "--preview", "--labels", "--versus-labels",
                "--label-noise", "--dtype bf16"},
               kPlan}),
       "which is not offered for this estimate"},
      {{Kernel},
       "--get nngp",
       [](const Options& o) { return o.get == "nngp"; },
       {"--reduce"},
       "since the covariance has no blocks to reduce"},
      {{Kernel},
       "--diagonal",
       diagonal,
       {"--per-parameter", "--versus", "--packed", "--preview", "--way", "--spill", "--scratch",
        "--dtype bf16"},
       "which is about the matrix"},
      {{Kernel},
       "--spill never",
       [](const Options& o) { return o.spill == "never"; },
       {"--scratch"},
       "which is for what is spilled"},
      {{Kernel},
       "--per-parameter",
       [](const Options& o) { return o.per_parameter; },
       {"--packed", "--preview"},
       "since its kernels are not written tile by tile"},
      {{Kernel},
       "--versus",
       [](const Options& o) { return !o.versus.empty(); },
       {"--packed", "--preview"},
       "whose block is not symmetric"},
      {{Kernel}, "--no-preview", [](const Options& o) { return o.no_preview; }, {"--preview"}, ""},
      {{Kernel, Spectrum},
       "--labels",
       [](const Options& o) { return !o.labels.empty(); },
       {"--label-noise"},
       "which is for the labels of --data"},
      {{Kernel, Predict, Spectrum, Learnability},
       "--weights",
       [](const Options& o) { return !o.weights.empty() && o.parameterization == "standard"; },
       {"--weight-variance", "--bias-variance"},
       "which is only of weights to be drawn in the standard parameterization"},
      {{Predict},
       "--steps",
       [](const Options& o) { return !o.steps.empty(); },
       {"--time"},
       "which is of gradient flow"},
      {{Predict},
       "--kernel",
       from_file,
       joined({kModel, kData, {"--infinite", "--get", "--reduce", "--variance", "--dtype"}}),
       "since the file is the kernel"},
      {{Spectrum},
       "--matrix-free",
       [](const Options& o) { return o.matrix_free && !o.kernel_file.empty(); },
       {kKernelFile},
       "since it reads the kernel of --model on --data"},
      {{Init},
       "--input",
       [](const Options& o) { return !o.input.empty(); },
       kData,
       "since it takes the place of the data"},
  };
  return table;
}

const std::vector<Need>& needs() {
  using enum Verb;
  static const std::vector<Need> table = {
      {{Kernel},
       {"--get"},
       [](const Options& o) { return o.infinite || o.monte_carlo != 0; },
       "--infinite or --monte-carlo"},
      {{Kernel}, {"--versus-labels"}, [](const Options& o) { return !o.versus.empty(); }, "--versus"},
      {{Kernel},
       {"--labels", "--versus-labels", "--label-noise"},
       true_class,
       "--reduce true-class, since nothing else reads labels"},
      {{Predict}, {"--cross", "--targets", "--test-targets"}, from_file, "--kernel, a kernel from a file"},
      {{Predict},
       {"--kernel"},
       [](const Options& o) { return !o.cross.empty() && !o.targets.empty(); },
       "--cross and --targets"},
      {{Predict}, {"--nesterov"}, [](const Options& o) { return o.predict_momentum != 0; }, "--momentum"},
      {{Predict},
       {"--momentum"},
       [](const Options& o) { return o.predict_momentum == 0 || !o.steps.empty(); },
       "--steps"},
      {{Predict}, {"--get"}, infinite, "--infinite"},
      {{Predict}, {"--variance"}, infinite, "--infinite, since a network that was drawn has one prediction"},
      {{Spectrum},
       {"--matrix-free"},
       [](const Options& o) { return !o.kernel_file.empty() || (!o.model.empty() && !o.data.empty()); },
       "--model and --data"},
      {{Spectrum},
       joined({kModel,
               kData,
               {"--estimate", "--products", "--probes", "--steps", "--reduce", "--force", "--dtype"}}),
       matrix_free,
       "--matrix-free; KERNEL.npy is read as it is"},
      {{Spectrum},
       {"--labels", "--label-noise"},
       [](const Options& o) { return !o.matrix_free || true_class(o); },
       "--reduce true-class with --matrix-free, since nothing else reads labels"},
      {{Spectrum},
       {"--top"},
       [](const Options& o) { return !o.matrix_free || estimates(o, "top"); },
       "top in --estimate"},
      {{Spectrum},
       {"--products"},
       [](const Options& o) { return estimates(o, "moments"); },
       "moments in --estimate"},
      {{Spectrum},
       {"--probes", "--steps"},
       [](const Options& o) { return estimates(o, "density"); },
       "density in --estimate"},
      {{Spectrum}, {"--force"}, [](const Options& o) { return !o.out.empty(); }, "--out"},
      {{Learnability},
       {"--momentum"},
       [](const Options& o) { return o.optimizer == "momentum" || o.optimizer == "nesterov"; },
       "--optimizer momentum or nesterov"},
      {{Init, Kernel, Predict, Spectrum, Learnability}, {"--target"}, reads_csv, "a .csv file as --data"},
  };
  return table;
}

bool is_of(const std::vector<Verb>& verbs, Verb verb) {
  return std::ranges::find(verbs, verb) != verbs.end();
}

/// Whether `name` was given; of one with a value, such as `--dtype bf16`, also that value.
bool was_given(const std::string& name, const Options& options, const Given& given) {
  if (name == kKernelFile) return !options.kernel_file.empty();
  const std::string option = name.substr(0, name.find(' '));
  if (!given(option)) return false;
  if (option == name) return true;
  const std::string value = name.substr(option.size() + 1);
  return option == "--dtype" ? value == options.dtype : value == options.parameterization;
}

}  // namespace

void check_modes(const Options& options, const Given& given) {
  for (const Clash& clash : clashes()) {
    if (!is_of(clash.verbs, options.verb) || !clash.holds(options)) continue;
    for (const char* option : clash.options) {
      if (!was_given(option, options, given)) continue;
      throw ArgumentError(fmt::format("{}: cannot be combined with {}{}{}", clash.mode, option,
                                      *clash.why == '\0' ? "" : ", ", clash.why));
    }
  }
  for (const Need& need : needs()) {
    if (!is_of(need.verbs, options.verb) || need.holds(options)) continue;
    for (const char* option : need.options) {
      if (given(option)) throw ArgumentError(fmt::format("{}: needs {}", option, need.needed));
    }
  }
}

}  // namespace gradgram::cli
