#include "cli/inputs.hpp"

#include <fmt/format.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <ostream>
#include <system_error>
#include <utility>

#include "cli/result_files.hpp"
#include "cli/text.hpp"
#include "cli/wording.hpp"
#include "engine/blas.hpp"
#include "engine/cpu.hpp"
#include "engine/error.hpp"
#include "engine/file.hpp"
#include "engine/npy.hpp"
#include "engine/shape.hpp"
#include "models/price.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

datasets::OpenOptions open_options(const Options& options) {
  datasets::OpenOptions open;
  open.limit = options.limit;
  open.standardize = options.standardize == "channel"   ? datasets::Standardize::Channel
                     : options.standardize == "feature" ? datasets::Standardize::Feature
                                                        : datasets::Standardize::None;
  open.unit_norm = options.unit_norm;
  open.label_noise = options.label_noise;
  open.seed = options.seed;
  open.test = options.test;
  open.target = options.target;
  if (!options.classes.empty() && options.classes != "all") {
    const std::vector<std::string> names = datasets::class_names(options.data, open);
    if (names.empty()) throw ArgumentError(fmt::format("--classes: {} has no classes", options.data));
    open.classes = datasets::parse_classes(options.classes, names);
  }
  return open;
}

std::string hexadecimal(unsigned long crc) {
  return fmt::format("{:08x}", crc);
}

}  // namespace

datasets::Dataset open_data(const Options& options, const char* option) {
  return about(option, options, [&] { return datasets::open(options.data, open_options(options)); });
}

datasets::Dataset open_data_unscaled(const Options& options) {
  datasets::OpenOptions open = open_options(options);
  open.standardize = datasets::Standardize::None;
  open.unit_norm = false;
  return about("--data", options, [&] { return datasets::open(options.data, open); });
}

datasets::Dataset open_versus(const Options& options, const Shape& example_shape) {
  if (options.versus.empty()) return {};
  if (options.standardize != "none") {
    throw ArgumentError(
        "--versus: cannot be combined with --standardize, whose means and variances would differ from those "
        "of --data; "
        "standardize both arrays beforehand");
  }
  datasets::OpenOptions open;
  open.unit_norm = options.unit_norm;
  open.seed = options.seed;
  open.target = options.target;
  datasets::Dataset data = about("--versus", options, [&] { return datasets::open(options.versus, open); });
  if (!(data.example_shape() == example_shape)) {
    throw ShapeError(fmt::format("--versus: examples of {} and of --data {} must have the same shape",
                                 data.example_shape().to_string(), example_shape.to_string()));
  }
  return data;
}

std::size_t outputs_for(const Options& options, const datasets::Dataset& data) {
  if (options.outputs > 0) return options.outputs;
  if (data.targets.size() != 0) return data.targets.shape()[1];
  return data.classes() > 2 ? data.classes() : 1;
}

models::Model open_model(const Options& options, const Shape& input, std::size_t outputs) {
  models::ParseOptions parse_options;
  parse_options.outputs = outputs;
  models::Model model = models::parse(options.model, input, parse_options);
  if (options.outputs != 0 && model.outputs() != options.outputs) {
    throw ArgumentError(
        fmt::format("--outputs: {}, but --model {} has {}", options.outputs, options.model, model.outputs()));
  }
  return model;
}

models::NetworkOptions network_options(const Options& options) {
  models::NetworkOptions result;
  result.parameterization = models::parse_parameterization(options.parameterization);
  result.weight_variance = options.weight_variance;
  result.bias_variance = options.bias_variance;
  result.seed = options.seed;
  return result;
}

models::NetworkOptions infinite_variances(const Options& options) {
  models::NetworkOptions result;
  result.parameterization = models::Parameterization::Ntk;
  result.weight_variance = options.weight_variance;
  result.bias_variance = options.bias_variance;
  models::check_variances(result, "--weight-variance", "--bias-variance");
  return result;
}

std::size_t weight_bytes(const models::Model& model, std::size_t each) {
  std::size_t parameters = 0;
  for (const models::LayerPrice& layer : models::price(model)) {
    parameters = checked_add(parameters, layer.parameters, "--model: parameters");
  }
  return checked_multiply(parameters, each, "--model: bytes of the weights");
}

template <class T>
void require_room_for_weights(const Options& options, const models::Model& model) {
  // Those of a moment are drawn whatever the budget: only with them the command can be counted to the byte.
  constexpr std::size_t kDrawnInAMoment = std::size_t{64} << 20;
  const std::size_t bytes = weight_bytes(model, sizeof(T));
  const std::size_t memory = memory_budget(options);
  if (bytes <= std::max(memory, kDrawnInAMoment)) return;
  throw BudgetError(
      fmt::format("--memory: the memory budget ({} bytes) cannot hold the weights of --model; the least that "
                  "would do is more than {} bytes, which they take alone",
                  memory, bytes));
}
template void require_room_for_weights<float>(const Options&, const models::Model&);
template void require_room_for_weights<double>(const Options&, const models::Model&);

template <class T>
models::Network<T> open_network(const Options& options, const Shape& input, std::size_t outputs) {
  models::Model model = open_model(options, input, outputs);
  require_room_for_weights<T>(options, model);
  models::Network<T> network(std::move(model), network_options(options));
  if (!options.weights.empty()) {
    about("--weights", options, [&] { network.load_weights(options.weights); });
  }
  return network;
}
template models::Network<float> open_network(const Options&, const Shape&, std::size_t);
template models::Network<double> open_network(const Options&, const Shape&, std::size_t);

std::size_t memory_budget(const Options& options) {
  return options.memory.empty() ? cpu_info().memory_bytes / 2 : parse_bytes(options.memory);
}

std::vector<std::int32_t> read_labels(const Options& options, const std::string& path, std::size_t n,
                                      const char* option) {
  const NpyArray array = about(option, options, [&] { return read_npy(path); });
  std::vector<std::int32_t> labels =
      about(fmt::format("{}: {}", option, path), options, [&] { return array.to_labels(); });
  if (labels.size() != n) {
    throw ArgumentError(
        fmt::format("{}: {} holds {} labels for {} examples", option, path, labels.size(), n));
  }
  return labels;
}

void require_writable(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw IoError(fmt::format("--out: {}: {} {}", path.string(), folder.string(),
                              std::filesystem::exists(folder, error) ? "is not a folder" : "does not exist"));
  }
  if (access(folder.c_str(), W_OK) != 0) {
    throw IoError(fmt::format("--out: {}: cannot write into {}: {}", path.string(), folder.string(),
                              std::generic_category().message(errno)));
  }
  if (std::filesystem::is_directory(path, error)) {
    throw IoError(fmt::format("--out: {}: is a folder, not a file to write", path.string()));
  }
}

std::filesystem::path array_output(const Options& options) {
  const std::filesystem::path named = options.out;
  std::filesystem::path out = about("--out", options, [&] { return behind_links(named); });
  require_writable(out);
  for (const std::filesystem::path& path : {named, out}) {
    if (path.extension() == ".npy") continue;
    throw ArgumentError(
        fmt::format("--out: '{}' must be a name that ends in .npy{}", path.string(),
                    path == named ? "" : fmt::format(", since '{}' is a link to it", options.out)));
  }
  require_place_beside(out);
  const std::filesystem::path stale = beside(named, ".json");
  std::error_code error;
  if (out != named && std::filesystem::exists(stale, error) &&
      !std::filesystem::equivalent(stale, beside(out, ".json"), error)) {
    throw ArgumentError(
        fmt::format("--out: '{}' is a link to {}, which {} is going to describe; {} would go on describing "
                    "what was there before; move it away or name the file itself",
                    options.out, out.string(), beside(out, ".json").string(), stale.string()));
  }
  return out;
}

std::filesystem::path whole_array_output(const Options& options) {
  std::filesystem::path out = array_output(options);
  const std::filesystem::path unfinished = ntk::unfinished_beside(out);
  if (unfinished.empty()) return out;
  if (!options.restart) {
    throw ArgumentError(fmt::format(
        "--out: {} is an unfinished kernel of the same name, with which the command that began it goes on; "
        "choose another name, or {}",
        unfinished.string(), options.verb == Verb::Kernel ? "--restart to remove it" : "remove it"));
  }
  ntk::discard_unfinished(out);
  return out;
}

std::filesystem::path beside(std::filesystem::path path, const char* extension) {
  return path.replace_extension(extension);
}

void write_json(const std::filesystem::path& path, const ordered_json& document) {
  write_file(path, [&](std::ostream& stream) { stream << document.dump(2) << '\n'; });
}

std::string checksum(const std::filesystem::path& path) {
  const std::vector<std::byte> bytes = read_file(path);
  return hexadecimal(crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

std::string checksum(TensorView<const double> values) {
  return hexadecimal(
      crc32_z(0, reinterpret_cast<const Bytef*>(values.data()), values.size() * sizeof(double)));
}

const char* version() {
  return GRADGRAM_VERSION;
}

std::string command_line(const Options& options) {
  std::string text = "gradgram";
  for (const std::string& word : options.words) text += " " + shell_quote(word);
  return text;
}

template <class T>
ordered_json describe(const Options& options, const models::Network<T>& network) {
  ordered_json json;
  json["model"] = network.model().to_text();
  json["input_shape"] = list(network.input_shape());
  json["outputs"] = network.outputs();
  json["parameters"] = network.parameters().size();
  json["parameterization"] = options.parameterization;
  json["weight_variance"] = options.weight_variance;
  json["bias_variance"] = options.bias_variance;
  if (options.weights.empty()) {
    json["seed"] = options.seed;
  } else {
    json["weights"] = {{"file", options.weights}, {"crc32", checksum(options.weights)}};
  }
  return json;
}
template ordered_json describe(const Options&, const models::Network<float>&);
template ordered_json describe(const Options&, const models::Network<double>&);

ordered_json describe(const Options& options, const datasets::Dataset& data) {
  ordered_json json;
  json["name"] = options.data;
  json["source"] = data.source;
  json["examples"] = data.size();
  json["example_shape"] = list(data.example_shape());
  json["class_names"] = data.class_names;
  json["classes"] = options.classes.empty() ? "all" : options.classes;
  json["limit"] = options.limit;
  json["standardize"] = options.standardize;
  json["unit_norm"] = options.unit_norm;
  json["label_noise"] = options.label_noise;
  json["label_noise_seed"] = options.seed;
  json["test"] = options.test;
  if (!options.target.empty()) json["target"] = options.target;
  json["inputs_crc32"] = checksum(data.inputs.view());
  return json;
}

ordered_json describe_versus(const Options& options, const datasets::Dataset& versus) {
  if (options.versus.empty()) return {};
  return {{"name", options.versus},
          {"source", versus.source},
          {"examples", versus.size()},
          {"inputs_crc32", checksum(versus.inputs.view())}};
}

std::vector<std::size_t> list(const Shape& shape) {
  return {shape.extents().begin(), shape.extents().end()};
}

ordered_json describe_run(const Options& options, std::size_t threads, std::size_t memory) {
  ordered_json json;
  json["program"] = "gradgram";
  json["version"] = version();
  json["command"] = command_line(options);
  json["dtype"] = options.dtype;
  json["threads"] = threads;
  json["memory_budget_bytes"] = memory;
  json["instruction_set"] = std::string(isa_name(active_isa()));
  json["blis_kernels"] = blas::kernel_set();
  return json;
}

std::string parameterization_text(const Options& options) {
  return fmt::format(
      "{} (weight variance {:g}, bias variance {:g}), {}", options.parameterization, options.weight_variance,
      options.bias_variance,
      options.weights.empty() ? fmt::format("seed {}", options.seed) : "weights " + options.weights);
}

std::string data_text(std::size_t examples, const Shape& example, const std::string& source) {
  return fmt::format("{} examples {} of {}", grouped(examples), extents(example), source);
}

std::string machine_text(std::size_t threads) {
  return fmt::format("{}, {} thread{}, BLIS kernels {}", isa_name(active_isa()), threads,
                     threads == 1 ? "" : "s", blas::kernel_set());
}

std::string machine_text(std::size_t threads, std::size_t memory) {
  return fmt::format("{}, budget {}", machine_text(threads), budget_text(memory));
}

std::string preparation_text(const Options& options) {
  std::string text = fmt::format("standardized: {}", options.standardize);
  if (options.unit_norm) text += ", scaled to norm 1";
  if (options.label_noise > 0)
    text += fmt::format(", {} of the labels replaced", percent(options.label_noise));
  if (options.test) text += ", test part";
  return text;
}

std::string went_on_text(const ntk::KernelFile& file) {
  return fmt::format(
      "{} of {} tiles were there from an earlier run{}", grouped(file.found), grouped(file.tiles),
      file.damaged == 0 ? "" : fmt::format(", {} were damaged and computed again", grouped(file.damaged)));
}

}  // namespace gradgram::cli
