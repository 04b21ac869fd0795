#include <fmt/format.h>
#include <fmt/ostream.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/commands.hpp"
#include "cli/inputs.hpp"
#include "cli/memory.hpp"
#include "cli/text.hpp"
#include "cli/wording.hpp"
#include "engine/error.hpp"
#include "engine/memory_account.hpp"
#include "engine/shape.hpp"
#include "models/price.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

template <class T>
void run(const Context& context) {
  const Options& options = context.options;
  const std::filesystem::path out = options.out;
  require_writable(out);
  if (out.extension() != ".npz") {
    throw ArgumentError(fmt::format("--out: '{}' must be a name that ends in .npz", options.out));
  }
  if (options.data.empty() && options.input.empty()) {
    throw ArgumentError("--data or --input: must be given, for the shape of an example");
  }
  Shape input;
  std::size_t outputs = std::max<std::size_t>(options.outputs, 1);
  MemoryAccount account("--memory", memory_budget(options));
  if (options.data.empty()) {
    input = about("--input", options, [&] { return parse_input_shape(options.input); });
  } else {
    const datasets::Dataset data = open_data(options);
    input = data.example_shape();
    outputs = outputs_for(options, data);
    count_reading<double>(account, {&data});
  }
  // The weights, the same in the order of the file, and the file.
  constexpr std::size_t kCopies = 3;
  account.phase("the weights and their file",
                weight_bytes(open_model(options, input, outputs), kCopies * sizeof(T)));
  account.check();
  const models::Network<T> network = open_network<T>(options, input, outputs);
  network.save_weights(out);

  const std::vector<models::LayerPrice> prices = models::price(network.model());
  double flop = 0;
  for (const models::LayerPrice& layer : prices) flop += layer.flop;
  if (options.json) {
    ordered_json json;
    json["program"] = "gradgram";
    json["version"] = version();
    json["command"] = command_line(options);
    json.update(describe(options, network));
    json["weights_file"] = out.string();
    json["crc32"] = checksum(out);
    json["forward_flop"] = flop;
    json["layers"] = ordered_json::array();
    for (const models::LayerPrice& layer : prices) {
      json["layers"].push_back({{"name", layer.name},
                                {"layer", layer.text},
                                {"output", list(layer.out)},
                                {"parameters", layer.parameters},
                                {"forward_flop", layer.flop}});
    }
    context.out << json.dump(2) << '\n';
    return;
  }
  fmt::print(context.out, "{} on {}\n", network.model().to_text(), extents(input));
  std::vector<std::vector<std::string>> rows = {{"layer", "", "output", "parameters", "forward FLOP"}};
  for (const models::LayerPrice& layer : prices) {
    rows.push_back({layer.name, layer.text, extents(layer.out), grouped(layer.parameters),
                    grouped(static_cast<std::size_t>(layer.flop))});
  }
  rows.push_back(
      {"all", "", "", grouped(network.parameters().size()), grouped(static_cast<std::size_t>(flop))});
  context.out << table(rows, {false, false, false, true, true});
  fmt::print(context.out, "Parameterization {}\nWrote {}\n", parameterization_text(options), out.string());
}

}  // namespace

void run_init(const Context& context) {
  in_precision(context.options, [&]<class T>() { run<T>(context); });
}

}  // namespace gradgram::cli
