#include "cli/options.hpp"

#include <fmt/format.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <sstream>
#include <string_view>
#include <system_error>

#include "cli/modes.hpp"
#include "engine/error.hpp"
#include "engine/file.hpp"
#include "models/edit_distance.hpp"

namespace gradgram::cli {
namespace {

constexpr std::size_t kNameColumn = 30;
constexpr std::size_t kTextWidth = 100;

/// `text` broken at spaces to lines of kTextWidth columns, all but the first indented by `indent`.
std::string wrapped(const std::string& text, std::size_t indent) {
  std::string result;
  std::size_t column = indent;
  std::istringstream words(text);
  std::string word;
  bool first = true;
  while (words >> word) {
    if (!first && column + 1 + word.size() > kTextWidth) {
      result += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (!first) {
      result += ' ';
      ++column;
    }
    result += word;
    column += word.size();
    first = false;
  }
  return result;
}

class HelpFormatter final : public CLI::Formatter {
 public:
  std::string make_option(const CLI::Option* option, bool positional) const override {
    std::string name = "  " + option->get_name(positional, !positional);
    if (!positional && !option->get_type_name().empty()) name += " " + option->get_type_name();
    std::string text = option->get_description();
    if (option->get_required()) text += " (required)";
    if (!option->get_default_str().empty()) text += fmt::format(" [default: {}]", option->get_default_str());
    if (name.size() + 2 > kNameColumn) {
      name += "\n" + std::string(kNameColumn, ' ');
    } else {
      name += std::string(kNameColumn - name.size(), ' ');
    }
    return name + wrapped(text, kNameColumn) + "\n";
  }
  std::string make_subcommand(const CLI::App* verb) const override {
    const std::string name = "  " + verb->get_name();
    return name + std::string(kNameColumn - name.size(), ' ') +
           wrapped(verb->get_description().substr(0, verb->get_description().find('\n')), kNameColumn) + "\n";
  }
  std::string make_description(const CLI::App* app) const override {
    std::string text;
    std::istringstream lines(app->get_description());
    for (std::string line; std::getline(lines, line);) text += wrapped(line, 0) + "\n";
    return text;
  }
  std::string make_usage(const CLI::App* app, std::string) const override {
    if (app->get_parent() == nullptr) return "Usage: gradgram <verb> [options]\n";
    const bool positional = app->get_name() == "spectrum";
    return fmt::format("Usage: gradgram {}{} [options]\n", app->get_name(),
                       positional ? " [KERNEL.npy]" : "");
  }
};

/// Options that stand under one heading of a verb's help.
struct Group {
  CLI::App& verb;
  const char* heading;

  /// `type` is what the help calls the value, `standard` what it takes the place of.
  template <class T>
  CLI::Option* option(const char* name, T& value, const char* type, const std::string& text,
                      const std::string& standard = "") const {
    return verb.add_option(name, value, text)->type_name(type)->default_str(standard)->group(heading);
  }
  CLI::Option* flag(const char* name, bool& value, const char* text) const {
    return verb.add_flag(name, value, text)->group(heading);
  }
};

/// What is wrong with a whole number of at least `least`; CLI11 would read -3 as 2^64 - 3, and what is beyond
/// 2^64 as that.
std::string whole_number_fault(const std::string& text, std::size_t least) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.starts_with('-')) return fmt::format("'{}' must not be negative", text);
  if (error == std::errc::result_out_of_range) return fmt::format("'{}' is beyond 2^64 - 1", text);
  if (error != std::errc() || end != text.data() + text.size()) {
    return fmt::format("'{}' is not a whole number", text);
  }
  return value < least ? fmt::format("{} must be at least {}", value, least) : std::string();
}

std::string number_fault(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool number = error == std::errc() && end == text.data() + text.size() && std::isfinite(value);
  return number ? std::string() : fmt::format("'{}' is not a finite number", text);
}

struct Parser {
  CLI::App app{
      "Neural Tangent Kernels of networks on data: compute them, read them, and see what they predict."};
  Options options;
  bool version = false;
  bool document = false;

  Parser() {
    app.formatter(std::make_shared<HelpFormatter>());
    app.set_help_flag("-h,--help", "Print this help; `gradgram VERB --help` tells about a verb");
    app.add_flag("--version", version, "Print the version");
    app.add_flag("--help-markdown", document, "Print the help of every verb as one Markdown document");
    app.require_subcommand(0, 1);
    app.footer(
        "Exit codes:\n"
        "  0  done\n"
        "  1  failed while running: a file could not be opened, read or written, memory or disk do not "
        "suffice,\n"
        "     numbers are not finite or a kernel is not positive definite, the work was stopped\n"
        "  2  the command line is wrong, or its inputs do not fit it: an option, the shape or kind of what a "
        "file\n"
        "     holds, a broken file\n"
        "Errors are one line on standard error.\n\n"
        "Example:\n  gradgram learnability --data fashion-mnist --classes 0,6 --model cnn3:channels=32 "
        "--limit 2000 --out runs/shirts");
    doctor();
    init();
    kernel();
    predict();
    spectrum();
    learnability();
    for (CLI::App* sub : app.get_subcommands({})) {
      for (CLI::Option* option : sub->get_options()) {
        const std::string type = option->get_type_name();
        if (type == "X" || type == "SHARE") option->check(CLI::Validator(number_fault, ""));
        if (type != "N" && type != "S" && type != "K" && type != "M" && type != "D") continue;
        const std::size_t least = type == "S" ? 2 : type == "D" ? 16 : 0;
        option->check(
            CLI::Validator([least](const std::string& text) { return whole_number_fault(text, least); }, ""));
      }
    }
  }

  CLI::App& verb(const std::string& name, const std::string& description, const std::string& example) {
    CLI::App& sub = *app.add_subcommand(name, description);
    sub.set_help_flag("-h,--help", "Print this help");
    sub.footer("Example:\n  " + example);
    return sub;
  }

  void common(CLI::App& sub, bool computes) {
    const Group group{sub, "Running"};
    if (computes) {
      group.option("--seed", options.seed, "N", "Seed of everything drawn at random", "0");
      group.option("--dtype", options.dtype, "TYPE",
                   sub.get_name() == "kernel"
                       ? "Precision of the arithmetic and of the result, f32 or f64; f32 sums in f64 across "
                         "panels; bf16 is f32 but for products of gradients, whose factors are rounded to "
                         "8 bits, on processors with such products"
                       : "Precision of the arithmetic and of the result, f32 or f64; f32 sums in f64 "
                         "across panels",
                   "f32");
    }
    group.option("--threads", options.threads, "N", "Threads; the results have the same bits for any number",
                 "every processor this process may use");
    group.option(
        "--memory", options.memory, "SIZE",
        "Budget in bytes or with a unit (4GiB, 512MB, \"1.5 GB\") that data, weights, result and working "
        "memory keep to; the program itself and its libraries take up to 256 MiB beside it",
        "half of the machine's memory");
    group.flag("--json", options.json, "Print the result as one JSON document");
    group.flag("--quiet", options.quiet, "No progress on standard error");
  }

  void model(CLI::App& sub, bool weights, bool required = true) {
    const Group group{sub, "Model"};
    group
        .option("--model", options.model, "TEXT",
                "Layers, such as \"conv(32,3) relu gap dense(1)\", or a preset: mlp:width=512,depth=3, "
                "cnn3:channels=32")
        ->required(required);
    group.option("--outputs", options.outputs, "N", "Outputs of a preset that does not say",
                 "1 for at most two classes, else one for each class");
    group.option("--parameterization", options.parameterization, "NAME",
                 "standard (W ~ N(0, weight variance / fan-in)) or ntk (W ~ N(0, 1), scaled in the layer)",
                 "standard");
    group.option("--weight-variance", options.weight_variance, "X", "sigma_w^2 of the initial weights", "2");
    group.option("--bias-variance", options.bias_variance, "X", "sigma_b^2 of the initial biases", "0");
    if (weights) {
      group.option("--weights", options.weights, "FILE",
                   "Weights from an .npz file with PyTorch's names and layouts", "drawn with --seed");
    }
  }

  /// `parts`: the verb takes training and test examples, with options of its own for how many.
  void data(CLI::App& sub, bool required, bool labels, bool parts = false) {
    const Group group{sub, "Data"};
    group
        .option(
            "--data", options.data, "SOURCE",
            "A name (fashion-mnist, mnist, cifar10, circle:n=200, ...) or a path (.npy, .npz, .csv, a folder "
            "of "
            "IDX or CIFAR-10 files); arrays are used as they are, rank 4 is [n, channels, height, width]")
        ->required(required);
    group.option("--classes", options.classes, "A,B,...",
                 "Keep these classes, relabelled 0, 1, ... in this order", "all");
    if (!parts) {
      group.option("--limit", options.limit, "N", "Examples to keep, balanced over the classes; 0 for all",
                   "0");
    }
    group.option("--standardize", options.standardize, "HOW",
                 "Shift and scale to mean 0 and variance 1: none, channel or feature", options.standardize);
    group.flag("--unit-norm", options.unit_norm, "Scale every example to norm 1");
    if (labels) {
      group.option("--label-noise", options.label_noise, "SHARE", "Share of labels replaced by another class",
                   "0");
    }
    group.option("--target", options.target, "NAME", "Column of a CSV file to predict", "the last");
    if (!parts) group.flag("--test", options.test, "Use the test part of the data set");
  }

  void doctor() {
    CLI::App& sub =
        verb("doctor",
             "Tell what this machine can do.\nPrints the processor, instruction sets, the kernel set of "
             "BLIS, measured rates, memory and the data sets found.",
             "gradgram doctor --json");
    const Group group{sub, "Running"};
    group.flag("--measure", options.measure,
               "Measure anew how fast the parts of a kernel's work are, and keep the rates for the plans of "
               "`gradgram kernel` (in $XDG_CACHE_HOME/gradgram or ~/.cache/gradgram)");
    group.option("--threads", options.threads, "N", "Threads of the second measurement",
                 "every processor this process may use");
    group.flag("--json", options.json, "Print the result as one JSON document");
    group.flag("--quiet", options.quiet, "No progress on standard error");
  }

  void init() {
    CLI::App& sub =
        verb("init",
             "Draw the weights of a model and save them.\nWrites an .npz file with the names and layouts "
             "of torch.nn.Sequential and prints a table of the layers.",
             "gradgram init --model \"conv(32,3) relu maxpool(2) flatten dense(10)\" --input 3x32x32 "
             "--seed 7 --out w.npz");
    model(sub, false);
    data(sub, false, false);
    Group{sub, "Data"}.option("--input", options.input, "SHAPE",
                              "Shape of an example instead of --data: FEATURES or CHANNELSxHEIGHTxWIDTH");
    Group{sub, "Result"}.option("--out", options.out, "FILE", "The .npz file to write")->required();
    common(sub, true);
  }

  void kernel() {
    CLI::App& sub =
        verb("kernel",
             "Compute an empirical Neural Tangent Kernel.\nK(x, x') = J(x) J(x')^T, reduced over the "
             "outputs as --reduce says; with --infinite the kernel of infinite width. Writes the array as "
             ".npy and, beside it, a .json that tells "
             "everything that made it.",
             "gradgram kernel --model \"conv(32,3) relu gap dense(10)\" --data x.npy --weights w.npz "
             "--dtype f64 --parameterization standard --reduce full --out k.npy");
    model(sub, true);
    data(sub, true, true);
    const Group group{sub, "Kernel"};
    group.option(
        "--reduce", options.reduce, "HOW",
        "full (n, n', O, O), trace-mean, trace-sum, output:K or true-class; must be chosen when the model "
        "has several outputs");
    group.option(
        "--versus", options.versus, "SOURCE",
        "A second set x' for the rectangular block K(x, x'): a name or path as for --data, used whole");
    group.flag("--infinite", options.infinite,
               "The kernel that the model tends to as its widths grow, instead of that of a network");
    group.option(
        "--monte-carlo", options.monte_carlo, "S",
        "Estimate: the mean of the kernels of S networks with fresh weights, for models that have no "
        "kernel of infinite width; writes its standard error as OUT.error.npy");
    group.option("--get", options.get, "WHICH",
                 "With --infinite or --monte-carlo: ntk, or nngp for the covariance of the outputs", "ntk");
    group.option(
        "--approximate", options.approximate, "D",
        "Instead of the kernel an estimate of it, from gradients projected at random (by --seed) to D "
        "dimensions: unbiased, off by at most sqrt(2 / D) sqrt(k_ii k_jj) (one standard deviation), "
        "and labelled approximate; at least 16");
    group.flag("--diagonal", options.diagonal, "Only the entries K(x, x), without the matrix");
    group.option("--labels", options.labels, "FILE", "Labels [n] for true-class, as .npy",
                 "those of the data");
    group.option("--versus-labels", options.versus_labels, "FILE", "The same for --versus",
                 "those of the data");
    group.flag("--per-parameter", options.per_parameter,
               "Also write OUT.per-parameter.npz: one kernel for each weight and bias; all are then held in "
               "memory and nothing is kept when the run is stopped");
    const Group plan{sub, "Plan"};
    plan.flag("--explain", options.explain,
              "Print the plan before the run: of each layer how it is contracted, FLOP, bytes and predicted "
              "seconds, and what the other ways would cost; afterwards what was measured");
    plan.flag("--plan-only", options.plan_only, "Print the plan and stop; --out is not needed");
    plan.option("--way", options.ways, "LAYER=WAY",
                "Contract this layer this way: materialize, outer or position-gram; may be repeated. "
                "Layers are called as in the weights' names and in --explain",
                "the least predicted time")
        ->expected(1)
        ->take_all();
    plan.option("--rates", options.rates, "WHICH",
                "What predicted times rest on: measured (on this machine, once; doctor --measure renews "
                "them) or built-in (with a fixed --memory the same choices on every machine)",
                "measured when they have been, or to explain");
    plan.option("--spill", options.spill, "WHEN",
                "Keep gradients that do not fit --memory in a scratch file instead of computing them again: "
                "auto (when that is predicted to be quicker and the disk has room), always (whenever they do "
                "not fit) or never; the result has the same bits",
                "auto");
    plan.option("--scratch", options.scratch, "DIR",
                "Folder of the scratch file, which has no name and is gone with the run; of its free bytes 1 "
                "GiB or 5 % of the disk are left",
                "$TMPDIR, else /var/tmp");
    Group{sub, "Result"}.option(
        "--out", options.out, "FILE",
        "The .npy file to write. It is written tile by tile, may be larger than memory, and until "
        "it is whole it is called FILE.partial, with FILE.journal beside; a run that was stopped "
        "or killed goes on when the same command is given again");
    Group{sub, "Result"}.flag(
        "--packed", options.packed,
        "Store only what is on and below the diagonal, row by row: an array [n (n + 1) / 2], half of the "
        "bytes; spectrum and predict read it like the square one");
    Group{sub, "Result"}.flag(
        "--preview", options.preview,
        "Compute the diagonal first, print trace, range and bounds, and write it to FILE.preview, an .npy "
        "file that is called OUT.diagonal.npy once the kernel is whole; done "
        "anyway when the kernel is expected to take more than a minute or to fill more than 2 GB, "
        "unless an unfinished file is gone on with");
    Group{sub, "Result"}.flag("--no-preview", options.no_preview, "Never do that");
    Group{sub, "Result"}.flag("--restart", options.restart,
                              "Begin anew although FILE.partial could be continued: remove it");
    common(sub, true);
  }

  void predict() {
    CLI::App& sub = verb(
        "predict",
        "Predict what a network learns, from its kernel.\nOutputs on test examples after any time of "
        "training "
        "on a squared loss, with the kernel of infinite width or that of a network (linearized); at infinite "
        "time this is kernel regression. Prints accuracy, mean squared error and the largest stable learning "
        "rate; writes the predictions as .npy with a .json beside.",
        "gradgram predict --infinite --model mlp:width=512,depth=3 --data mnist --train 5000 --out "
        "predictions.npy");
    model(sub, true, false);
    data(sub, false, true, true);
    const Group data_group{sub, "Data"};
    data_group.option("--train", options.limit, "N",
                      "Training examples, balanced over the classes; 0 for all", "0");
    data_group.option("--test", options.test_examples, "M", "Test examples; 0 for all", "0");
    data_group.option("--versus", options.versus, "SOURCE", "Test on this set",
                      "the test part of --data or, where it has none, what --train leaves");
    const Group group{sub, "Kernel"};
    group.flag("--infinite", options.infinite,
               "The network of infinite width, averaged over initializations");
    group.option(
        "--get", options.get, "WHICH",
        "With --infinite: ntk (all layers trained) or nngp (a Gaussian process: the last layer alone)",
        "ntk");
    group.option("--reduce", options.reduce, "HOW",
                 "For a finite network of several outputs: full (exact) or trace-mean (one kernel for all)");
    group.option(
        "--kernel", options.predict_kernel, "K.npy",
        "Instead of a model: a kernel [n, n] of training examples as .npy (mapped: it may be larger than "
        "memory, unless it is packed)");
    group.option("--cross", options.cross, "KX.npy",
                 "With --kernel: the kernel [m, n] of test and training examples");
    group.option("--targets", options.targets, "Y.npy",
                 "With --kernel: integers [n] are classes, others targets [n] or [n, C] as they are");
    group.option("--test-targets", options.test_targets, "Y.npy",
                 "The same of the test examples, to judge by");
    const Group training{sub, "Training"};
    training.option("--ridge", options.ridge, "X", "Added to the kernel's diagonal", "0");
    training.option("--time", options.time, "T", "Time of gradient flow, or inf", "inf");
    training.option("--steps", options.steps, "N", "Steps of full-batch gradient descent, instead of --time");
    training.option("--learning-rate", options.learning_rate, "X",
                    "Of --time and --steps, for the mean squared error over examples and outputs");
    training.option("--momentum", options.predict_momentum, "X", "Of --steps: heavy ball", "0");
    training.flag("--nesterov", options.nesterov, "Nesterov's momentum");
    Group{sub, "Result"}.flag(
        "--variance", options.variance,
        "With --infinite: also write OUT.variance.npy, the variance of each prediction: over "
        "initializations, or of the posterior (nngp at infinite time)");
    Group{sub, "Result"}
        .option("--out", options.out, "FILE", "The .npy file to write the test predictions to")
        ->required();
    common(sub, true);
  }

  void spectrum() {
    CLI::App& sub = verb(
        "spectrum",
        "Read a kernel by its eigenvalues.\nPrints trace, largest and smallest eigenvalue with their "
        "error bar, condition number, effective rank and, with labels, how the labels lie in the "
        "eigenvectors. With --matrix-free it reads the kernel of a network on data by products K v alone, "
        "for sizes whose matrix no memory holds.",
        "gradgram spectrum k.npy --labels y.npy --out spectrum.csv");
    Group{sub, "Positionals"}.option(
        "kernel", options.kernel_file, "KERNEL.npy",
        "A symmetric kernel [n, n] or [n, n, 1, 1] as .npy; a .json of the same name tells its precision");
    const Group group{sub, "Spectrum"};
    group.option(
        "--labels", options.labels, "FILE",
        "Labels [n] as .npy: whole numbers are classes (-1/+1 for two, else one column for each), others "
        "are targets as they are; with --matrix-free those of --reduce true-class");
    group.option("--top", options.top, "K",
                 "Only the K largest eigenvalues (Lanczos); 0 for all of them (LAPACK)",
                 "0, with --matrix-free 10");
    const Group free{sub, "Without the matrix"};
    free.flag("--matrix-free", options.matrix_free,
              "Read the kernel of --model on --data by products; all options below are for this");
    free.option("--estimate", options.estimate, "A,B,...",
                "What to find: top (largest eigenpairs by Lanczos), moments (trace and Frobenius norm by "
                "Hutch++) and density (eigenvalue distribution by stochastic Lanczos quadrature)",
                options.estimate);
    free.option("--products", options.products, "N", "Products K v for the moments, at least 6",
                std::to_string(options.products));
    free.option("--probes", options.probes, "N", "Random vectors of the density, at least 2",
                std::to_string(options.probes));
    free.option("--steps", options.lanczos_steps, "N",
                "Lanczos steps of each, one product K v every step; the density is resolved to ||K|| / N",
                std::to_string(options.lanczos_steps));
    free.option("--reduce", options.reduce, "HOW",
                "full, trace-mean, trace-sum, output:K or true-class; must be chosen when the model "
                "has several outputs");
    model(sub, true, false);
    data(sub, false, true);
    Group{sub, "Result"}.option(
        "--out", options.out, "PATH",
        "Write spectrum.csv into this folder, or to this .csv file; with --matrix-free the folder gets "
        "summary.json, spectrum.csv, eigenvectors.npy and density.csv");
    Group{sub, "Result"}.flag("--force", options.force,
                              "With --matrix-free: write into a folder that holds other files");
    common(sub, true);
  }

  void learnability() {
    CLI::App& sub =
        verb("learnability",
             "See which examples a network learns first and whether its kernel tells beforehand.\nTakes "
             "the kernel and several scores at initialization, trains the network watching every example, "
             "and writes a folder with report.html, figures, tables, the kernel and the weights.",
             "gradgram learnability --data fashion-mnist --classes 0,6 --model cnn3:channels=32 --limit "
             "2000 --epochs 20 --out runs/shirts");
    model(sub, true);
    data(sub, true, true);
    const Group group{sub, "Training"};
    group.option("--epochs", options.epochs, "N", "Passes over the examples", std::to_string(options.epochs));
    group.option("--loss", options.loss, "NAME",
                 "mse (targets -1/+1 for two classes with one output, else one-hot) or cross-entropy",
                 options.loss);
    group.option("--optimizer", options.optimizer, "NAME", "sgd, momentum, nesterov or adam",
                 options.optimizer);
    group.option("--learning-rate", options.learning_rate, "X", "Step size",
                 "0.03 for sgd, 0.003 for momentum and nesterov, 0.001 for adam");
    group.option("--momentum", options.momentum, "X", "Of momentum and nesterov", "0.9");
    group.option("--batch", options.batch, "N", "Examples a step; 0 for all", std::to_string(options.batch));
    group.option("--schedule", options.schedule, "NAME", "Learning rate over the epochs: constant or cosine",
                 options.schedule);
    group.option("--l1", options.l1, "X", "Penalty on the sum of |weight|", "0");
    group.option("--l2", options.l2, "X", "Penalty on half the sum of weight^2", "0");
    group.option("--score-epochs", options.score_epochs, "A,B,...",
                 "Epochs after which k(x, x) is taken again, besides initialization", "none");
    Group{sub, "Result"}
        .option("--out", options.out, "DIR", "Folder for the results; an earlier result there is replaced")
        ->required();
    Group{sub, "Result"}.flag("--force", options.force,
                              "Replace the folder even when it holds something else");
    common(sub, true);
  }
};

constexpr std::array<std::pair<std::string_view, Verb>, 6> kVerbs = {{{"doctor", Verb::Doctor},
                                                                      {"init", Verb::Init},
                                                                      {"kernel", Verb::Kernel},
                                                                      {"predict", Verb::Predict},
                                                                      {"spectrum", Verb::Spectrum},
                                                                      {"learnability", Verb::Learnability}}};

/// Refuses a word that is not one of `choices`.
void require_choice(const char* option, const std::string& value,
                    std::initializer_list<const char*> choices) {
  for (const char* choice : choices) {
    if (value == choice) return;
  }
  throw ArgumentError(
      fmt::format("{}: '{}' is unknown; expected one of {}", option, value, fmt::join(choices, ", ")));
}

void check(const Options& options) {
  if (options.verb == Verb::Kernel) {
    require_choice("--dtype", options.dtype, {"f32", "f64", "bf16"});
  } else {
    require_choice("--dtype", options.dtype, {"f32", "f64"});
  }
  require_choice("--parameterization", options.parameterization, {"standard", "ntk"});
  require_choice("--standardize", options.standardize, {"none", "channel", "feature"});
  require_choice("--optimizer", options.optimizer, {"sgd", "momentum", "nesterov", "adam"});
  require_choice("--schedule", options.schedule, {"constant", "cosine"});
  require_choice("--loss", options.loss, {"mse", "cross-entropy"});
  if (!options.rates.empty()) require_choice("--rates", options.rates, {"measured", "built-in"});
  if (!options.spill.empty()) require_choice("--spill", options.spill, {"auto", "always", "never"});
  if (options.verb == Verb::Kernel && options.out.empty() && !options.plan_only) {
    throw ArgumentError("--out is required (see gradgram kernel --help)");
  }
  const auto positive = [](const char* name, double value, bool zero_is_good) {
    if (!(zero_is_good ? value >= 0 : value > 0)) {
      throw ArgumentError(
          fmt::format("{}: {} must be {} zero", name, value, zero_is_good ? "at least" : "above"));
    }
  };
  constexpr std::size_t kMostDimensions = std::size_t{1} << 24;
  if (options.approximate != 0 && (options.approximate < 16 || options.approximate > kMostDimensions)) {
    throw ArgumentError(
        fmt::format("--approximate: {} must lie between 16 and {}", options.approximate, kMostDimensions));
  }
  positive("--weight-variance", options.weight_variance, false);
  positive("--bias-variance", options.bias_variance, true);
  if (options.learning_rate) positive("--learning-rate", *options.learning_rate, false);
  positive("--ridge", options.ridge, true);
  positive("--l1", options.l1, true);
  positive("--l2", options.l2, true);
  if (!(options.label_noise >= 0 && options.label_noise <= 1)) {
    throw ArgumentError(fmt::format("--label-noise: {} must lie between 0 and 1", options.label_noise));
  }
  if (options.verb == Verb::Spectrum && !options.matrix_free && options.kernel_file.empty()) {
    throw ArgumentError("KERNEL.npy is required, or --matrix-free with --model and --data");
  }
  if (options.verb == Verb::Predict && options.predict_kernel.empty()) {
    if (options.model.empty()) {
      throw ArgumentError("--model is required, or --kernel with --cross and --targets");
    }
    if (options.data.empty()) throw ArgumentError("--data is required with --model");
  }
  if (!options.get.empty()) require_choice("--get", options.get, {"ntk", "nngp"});
  for (const double momentum : {options.momentum, options.predict_momentum}) {
    if (!(momentum >= 0 && momentum < 1)) {
      throw ArgumentError(fmt::format("--momentum: {} must be at least 0 and below 1", momentum));
    }
  }
}

/// Whether both paths are one existing file.
bool same_file(const std::filesystem::path& a, const std::filesystem::path& b) {
  std::error_code ignored;
  return std::filesystem::equivalent(a, b, ignored);
}

/// A result must not take the place of what it is made from.
void refuse_overwriting(const Options& options) {
  if (options.out.empty()) return;
  const std::filesystem::path out = behind_links(options.out);
  std::vector<std::filesystem::path> written = {out};
  for (const char* ending : {".json", ".diagonal.npy", ".error.npy", ".variance.npy", ".per-parameter.npz"}) {
    written.push_back(std::filesystem::path(out).replace_extension(ending));
  }
  const std::pair<const char*, const std::string*> inputs[] = {{"--data", &options.data},
                                                               {"--versus", &options.versus},
                                                               {"--labels", &options.labels},
                                                               {"--versus-labels", &options.versus_labels},
                                                               {"--weights", &options.weights},
                                                               {"--kernel", &options.predict_kernel},
                                                               {"--cross", &options.cross},
                                                               {"--targets", &options.targets},
                                                               {"--test-targets", &options.test_targets},
                                                               {"KERNEL.npy", &options.kernel_file}};
  for (const auto& [name, input] : inputs) {
    if (input->empty()) continue;
    for (const std::filesystem::path& file : written) {
      if (!same_file(file, *input)) continue;
      throw ArgumentError(fmt::format("--out: '{}' would overwrite {} '{}'", options.out, name, *input));
    }
  }
}

/// Words of the command line that nothing reads, in their order; none when it cannot be told.
std::vector<std::string> unread_words(std::span<const std::string> arguments) {
  Parser parser;
  for (CLI::App* sub : parser.app.get_subcommands({})) {
    sub->allow_extras();
    for (CLI::Option* option : sub->get_options()) option->required(false);
  }
  try {
    parser.app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError&) {
    return {};
  }
  return parser.app.remaining(true);
}

/// What other tools call some options; the first that a verb has is meant.
constexpr std::array<std::pair<std::string_view, std::string_view>, 10> kForeignNames{{
    {"--limit", "--train"},
    {"--dataset", "--data"},
    {"--output", "--out"},
    {"--lr", "--learning-rate"},
    {"--weight-decay", "--l2"},
    {"--batch-size", "--batch"},
    {"--precision", "--dtype"},
    {"--jobs", "--threads"},
    {"--samples", "--limit"},
    {"--samples", "--train"},
}};

struct Guess {
  std::string option;  ///< empty: none is near
  std::size_t edits = 0;
};

/// The option of a verb that a misspelt word stands for, as far as one can guess.
Guess nearest_option(const CLI::App& verb, const std::string& word) {
  constexpr std::size_t kLongestWord = 64;
  if (word.size() > kLongestWord) return {};
  for (const auto& [foreign, ours] : kForeignNames) {
    if (word == foreign && verb.get_option_no_throw(std::string(ours)) != nullptr) {
      return {std::string(ours), 0};
    }
  }
  const std::size_t letters = word.size() - std::min(word.find_first_not_of('-'), word.size());
  Guess nearest{"", letters < 4 ? 2 : std::max<std::size_t>(2, letters / 3) + 1};
  for (const CLI::Option* option : verb.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      const std::string whole = "--" + name;
      // The beginning of a name is as good as a slip.
      const std::size_t edits =
          letters > 1 && whole != word && whole.starts_with(word) ? 1 : models::edit_distance(word, whole);
      if (edits < nearest.edits) nearest = {whole, edits};
    }
  }
  return nearest;
}

/// Where else the word is or might be an option, with the verbs that have it.
std::pair<Guess, std::vector<std::string>> nearest_elsewhere(const CLI::App& app, const std::string& verb,
                                                             const std::string& word) {
  Guess nearest;
  std::vector<std::string> verbs;
  for (const auto& [name, unused] : kVerbs) {
    if (name == verb) continue;
    const Guess guess = nearest_option(*app.get_subcommand(std::string(name)), word);
    if (guess.option.empty() || (!verbs.empty() && guess.edits > nearest.edits)) continue;
    if (guess.option != nearest.option) {
      if (!verbs.empty() && guess.edits == nearest.edits) continue;
      nearest = guess;
      verbs.clear();
    }
    verbs.emplace_back(name);
  }
  return {nearest, verbs};
}

std::string no_verb_text(const std::string& word) {
  std::string nearest;
  std::size_t fewest = 3;
  std::string all;
  for (const auto& [verb, unused] : kVerbs) {
    all += (all.empty() ? "" : ", ") + std::string(verb);
    const std::size_t number = models::edit_distance(word, verb);
    if (number >= fewest) continue;
    fewest = number;
    nearest = verb;
  }
  return fmt::format("'{}' is no verb; {}", word,
                     nearest.empty() ? "expected one of " + all : "did you mean " + nearest + "?");
}

/// What is wrong with `words`, which nothing reads.
std::string unread_text(const CLI::App& app, const std::string& verb, const std::vector<std::string>& words) {
  const auto option =
      std::find_if(words.begin(), words.end(), [](const std::string& word) { return word.starts_with("-"); });
  if (option == words.end() || verb.empty()) return fmt::format("'{}' is not expected", words.front());
  const std::string given = option->substr(0, option->find('='));
  const std::string unknown = given + " is no option of this verb";
  const Guess own = nearest_option(*app.get_subcommand(verb), given);
  const auto [other, verbs] = nearest_elsewhere(app, verb, given);
  if (!own.option.empty() && (verbs.empty() || own.edits <= other.edits)) {
    return fmt::format("{}; did you mean {}?", unknown, own.option);
  }
  if (verbs.empty()) return unknown;
  const std::string others = fmt::format("`gradgram {}`", fmt::join(verbs, "`, `gradgram "));
  return other.option == given ? fmt::format("{} but of {}", unknown, others)
                               : fmt::format("{}; did you mean {} of {}?", unknown, other.option, others);
}

/// What is wrong with the words before the verb, of which there are none or `name`; empty when nothing is.
std::string before_verb_text(const CLI::App& app, const std::string& name,
                             std::span<const std::string> words) {
  if (!words.empty() && !words.front().starts_with("-")) return no_verb_text(words.front());
  const auto option = std::ranges::find_if(words, [&](const std::string& word) {
    return word.starts_with("-") && word != "--" &&
           app.get_option_no_throw(word.substr(0, word.find('='))) == nullptr;
  });
  if (option == words.end()) return "";
  const std::string given = option->substr(0, option->find('='));
  const Guess own = nearest_option(app, given);
  const auto [nearest, verbs] = name.empty() ? nearest_elsewhere(app, "", given)
                                             : std::pair(nearest_option(*app.get_subcommand(name), given),
                                                         std::vector<std::string>{name});
  if (!own.option.empty() && (nearest.option.empty() || own.edits < nearest.edits)) {
    return fmt::format("{} is no option; did you mean {}?", given, own.option);
  }
  if (nearest.option.empty()) return fmt::format("{} is no option, and the verb comes first", given);
  const std::string others = fmt::format("`gradgram {}`", fmt::join(verbs, "`, `gradgram "));
  return nearest.option == given
             ? fmt::format("{} must stand behind the verb: it is an option of {}", given, others)
             : fmt::format("{} is no option; did you mean {} of {}? It must stand behind the verb", given,
                           nearest.option, others);
}

}  // namespace

Options parse_options(std::span<const std::string> arguments, std::string& name) {
  const auto verb_at = std::ranges::find_if(arguments, [](const std::string& word) {
    return std::ranges::any_of(kVerbs, [&](const auto& verb) { return verb.first == word; });
  });
  if (verb_at != arguments.end()) name = *verb_at;
  Parser parser;
  parser.options.words.assign(arguments.begin(), arguments.end());
  // CLI11 takes the words last to first.
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    parser.app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    parser.options.verb = Verb::Help;
    parser.options.text = parser.app.help();
    return parser.options;
  } catch (const CLI::ParseError& error) {
    std::string text = error.what();
    // CLI11 asks for what is missing before it tells what it does not know.
    if (const std::vector<std::string> unread = unread_words(arguments); !unread.empty()) {
      text = unread_text(parser.app, name, unread);
    }
    if (const std::string before = before_verb_text(parser.app, name, std::span(arguments.begin(), verb_at));
        !before.empty()) {
      text = before;
    }
    std::replace(text.begin(), text.end(), '\n', ' ');
    const std::string repeated = "At Most 1 required but received ";
    if (const std::size_t at = text.find(repeated); at != std::string::npos) {
      text = text.substr(0, at) + "must be given once, not " + text.substr(at + repeated.size()) + " times";
    }
    throw ArgumentError(fmt::format("{} (see gradgram {}--help)", text, name.empty() ? "" : name + " "));
  }
  if (parser.version) {
    parser.options.verb = Verb::Version;
    return parser.options;
  }
  if (parser.document) {
    parser.options.verb = Verb::Help;
    parser.options.text = help_document();
    return parser.options;
  }
  for (const auto& [verb_name, verb] : kVerbs) {
    if (parser.app.got_subcommand(std::string(verb_name))) {
      parser.options.verb = verb;
      parser.options.name = verb_name;
    }
  }
  if (parser.options.name.empty()) {
    throw ArgumentError(
        "a verb is missing: doctor, init, kernel, predict, spectrum or learnability (see gradgram --help)");
  }
  check(parser.options);
  const CLI::App& sub = *parser.app.get_subcommand(parser.options.name);
  for (const CLI::Option* option : sub.get_options()) {
    const bool takes_value = option->get_expected_min() != 0;
    for (const std::string& value : option->results()) {
      if (takes_value && value.empty()) {
        throw ArgumentError(fmt::format("{}: its value is empty", option->get_name()));
      }
    }
  }
  check_modes(parser.options, [&sub](const std::string& option) {
    const CLI::Option* const found = sub.get_option_no_throw(option);
    return found != nullptr && found->count() != 0;
  });
  refuse_overwriting(parser.options);
  return parser.options;
}

std::string help_document() {
  const Parser parser;
  std::string text =
      "# Command line\n\n"
      "What `gradgram --help` and `gradgram VERB --help` print. This page is made by `gradgram "
      "--help-markdown`; a test\n"
      "holds that it is what the program says.\n\n```text\n" +
      parser.app.help() + "```\n";
  for (const auto& [name, verb] : kVerbs) {
    text += fmt::format("\n## gradgram {}\n\n```text\n{}```\n", name,
                        parser.app.get_subcommand(std::string(name))->help());
  }
  return text;
}

}  // namespace gradgram::cli
