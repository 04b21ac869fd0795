#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace gradgram::cli {

enum class Verb { Help, Version, Doctor, Init, Kernel, Predict, Spectrum, Learnability };

/// Everything the command line can say, as plain data. A verb reads only what its help lists.
struct Options {
  Verb verb = Verb::Help;
  std::string name;                ///< of the verb
  std::string text;                ///< Help: what to print
  std::vector<std::string> words;  ///< the arguments as given, for reproducing

  bool json = false;
  bool quiet = false;
  std::uint64_t seed = 0;
  std::size_t threads = 0;
  std::string memory;
  std::string dtype = "f32";

  std::string model;
  std::string parameterization = "standard";
  double weight_variance = 2.0;
  double bias_variance = 0.0;
  std::size_t outputs = 0;  ///< 0: from the classes of the data
  std::string weights;
  std::string input;

  std::string data;
  std::string classes;
  std::size_t limit = 0;
  std::string standardize = "none";
  bool unit_norm = false;
  double label_noise = 0;
  std::string target;
  bool test = false;

  std::string versus;
  std::string labels;
  std::string versus_labels;
  std::string reduce;
  bool diagonal = false;
  bool per_parameter = false;
  bool infinite = false;
  std::string get;  ///< with infinite: ntk or nngp; empty is ntk
  bool restart = false;
  bool packed = false;
  bool preview = false;
  bool no_preview = false;
  bool explain = false;
  bool plan_only = false;
  std::vector<std::string> ways;  ///< LAYER=WAY
  std::string rates;              ///< measured or built-in; empty: measured when they are there
  std::string spill;              ///< auto, always or never; empty is auto
  std::string scratch;            ///< folder; empty: the library's choice
  bool measure = false;           ///< of doctor
  std::size_t monte_carlo = 0;    ///< samples; 0: no estimate

  std::size_t test_examples = 0;  ///< predict: --limit is what --train says
  double ridge = 0;
  std::string time;   ///< a number or inf; empty is inf
  std::string steps;  ///< empty: gradient flow
  double predict_momentum = 0;
  bool nesterov = false;
  bool variance = false;
  std::string predict_kernel;
  std::string cross;
  std::string targets;
  std::string test_targets;

  std::size_t approximate = 0;  ///< dimensions of the projection; 0: the kernel itself

  std::string kernel_file;
  std::size_t top = 0;
  bool matrix_free = false;
  std::string estimate = "top,moments,density";
  std::size_t products = 60;
  std::size_t probes = 10;
  std::size_t lanczos_steps = 50;

  std::size_t epochs = 20;
  std::optional<double> learning_rate;
  double momentum = 0.9;
  std::string optimizer = "momentum";
  std::string schedule = "constant";
  std::string loss = "mse";
  std::size_t batch = 64;
  double l1 = 0;
  double l2 = 0;
  std::string score_epochs;
  bool force = false;

  std::string out;
};

/// Reads a command line. Throws ArgumentError naming the verb's option and what is wrong with it.
/// With `name` it also tells which verb was meant when it throws.
Options parse_options(std::span<const std::string> arguments, std::string& name);

/// All help texts as one Markdown document: docs/command-line.md.
std::string help_document();

}  // namespace gradgram::cli
