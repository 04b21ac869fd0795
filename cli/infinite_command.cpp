#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <ostream>
#include <type_traits>
#include <vector>

#include "cli/commands.hpp"
#include "cli/inputs.hpp"
#include "cli/memory.hpp"
#include "cli/progress.hpp"
#include "cli/result_files.hpp"
#include "cli/text.hpp"
#include "engine/error.hpp"
#include "engine/npy.hpp"
#include "ntk/infinite/infinite_file.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

/// Whether networks of finite widths can be drawn from the layers.
bool has_networks(const std::vector<models::Layer>& layers) {
  return std::ranges::all_of(layers, [](const models::Layer& layer) {
    switch (layer.kind) {
      case models::LayerKind::LayerNorm:
      case models::LayerKind::Dropout:
      case models::LayerKind::Cos:
      case models::LayerKind::Sign:
      case models::LayerKind::Monomial:
        return false;
      default:
        return has_networks(layer.body) && has_networks(layer.shortcut);
    }
  });
}

/// What the library says of a model without a limit, and what can be had instead.
template <class Compute>
auto or_estimate(const models::Model& model, const Compute& compute) {
  try {
    return compute();
  } catch (const ntk::NoInfiniteLimit& error) {
    if (!has_networks(model.layers())) throw;
    throw ArgumentError(
        fmt::format("{}; --monte-carlo S --parameterization ntk in its place estimates the kernel "
                    "from S networks of the widths in the text",
                    error.what()));
  }
}

template <class T>
void run(const Context& context) {
  const Options& options = context.options;
  const bool nngp = options.get == "nngp";
  const std::filesystem::path out = array_output(options);
  const std::size_t memory = memory_budget(options);
  const Workers workers(options.threads);
  const auto begin = std::chrono::steady_clock::now();

  datasets::Dataset data = open_data(options);
  const models::Model model = open_model(options, data.example_shape(), outputs_for(options, data));
  const models::NetworkOptions variances = infinite_variances(options);
  ProgressMeter meter(context.err, options.quiet);
  ntk::InfiniteOptions what;
  what.nngp = nngp;
  what.ntk = !nngp;
  what.memory = memory;
  what.progress = meter.phase("kernel");
  what.stop = context.stop;
  ordered_json json = describe_run(options, workers.count(), memory);
  json["model"] = model.to_text();
  json["input_shape"] = list(model.input());
  json["infinite"] = true;
  json["get"] = nngp ? "nngp" : "ntk";
  json["parameterization"] = "ntk";
  json["weight_variance"] = options.weight_variance;
  json["bias_variance"] = options.bias_variance;
  json["data"] = describe(options, data);
  const std::size_t n = data.size();
  const Shape example_shape = data.example_shape();
  json["n"] = n;
  ntk::KernelDestination destination;
  destination.path = out;
  destination.packed = options.packed;
  destination.restart = options.restart;
  destination.verify_progress = meter.phase("verifying");
  ntk::KernelFile kernel;
  datasets::Dataset versus = open_versus(options, example_shape);
  const ordered_json versus_json = describe_versus(options, versus);
  const std::size_t columns = options.versus.empty() ? n : versus.size();
  MemoryAccount account("--memory", memory);
  count_reading<T>(account, {&data, &versus});
  account.hold(input_bytes<T>(data));
  account.hold(input_bytes<T>(versus));
  what.memory = account.phase("the kernel", or_estimate(model, [&] {
                                return ntk::infinite_file_bytes<T>(model, variances, n, versus.size(), what,
                                                                   workers.count());
                              }));
  account.check();
  const Tensor<T> x = take_inputs<T>(data);
  const Tensor<T> versus_x = take_inputs<T>(versus);
  if (!options.versus.empty()) json["versus"] = versus_json;
  double seconds = 0;
  // What every architecture that is compared with others keeps to (docs/infinite.md).
  const double entry_error = ntk::infinite_entry_error<T>();
  destination.before_naming = [&](const ntk::KernelFile& file) {
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    json["n_versus"] = columns;
    json["shape"] = list(file.shape);
    json["packed"] = options.packed;
    json["tiles"] = file.tiles;
    json["tiles_of_earlier_runs"] = file.found;
    json["tiles_found_damaged"] = file.damaged;
    json["relative_entry_error"] = entry_error;
    json["seconds"] = seconds;
    describe_before_naming(out, json);
  };
  if (options.versus.empty()) {
    kernel = or_estimate(model, [&] {
      return ntk::infinite_kernel_to_file<T>(model, variances, x.view(), what, destination, workers);
    });
  } else {
    kernel = or_estimate(model, [&] {
      return ntk::infinite_kernel_to_file<T>(model, variances, x.view(), versus_x.view(), what, destination,
                                             workers);
    });
  }
  meter.close();

  if (options.json) {
    context.out << json.dump(2) << '\n';
    return;
  }
  fmt::print(context.out, "Infinite-width {} of {}\n", nngp ? "NNGP covariance" : "tangent kernel",
             model.to_text());
  std::vector<std::vector<std::string>> rows = {
      {"data", data_text(n, example_shape, data.source)},
      {"prepared", preparation_text(options)},
      {"parameterization", fmt::format("ntk, weight variance {}, bias variance {}", options.weight_variance,
                                       options.bias_variance)},
      {"precision",
       fmt::format("{}, an entry is good to {} sqrt(k_ii k_jj)", options.dtype, significant(entry_error, 2))},
      {"machine", machine_text(workers.count(), memory)},
      {"time", seconds_text(seconds)}};
  if (kernel.found + kernel.damaged != 0) rows.push_back({"went on", went_on_text(kernel)});
  context.out << table(rows, {false, false});
  fmt::print(context.out, "Wrote {} {} and {}\n", out.string(), kernel.shape.to_string(),
             beside(out, ".json").string());
}

}  // namespace

void run_infinite_kernel(const Context& context) {
  in_precision(context.options, [&]<class T>() { run<T>(context); });
}

}  // namespace gradgram::cli
