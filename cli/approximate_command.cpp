#include <fmt/format.h>
#include <fmt/ostream.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <ostream>
#include <utility>
#include <vector>

#include "cli/commands.hpp"
#include "cli/inputs.hpp"
#include "cli/memory.hpp"
#include "cli/progress.hpp"
#include "cli/reduction.hpp"
#include "cli/result_files.hpp"
#include "cli/text.hpp"
#include "engine/error.hpp"
#include "engine/npy.hpp"
#include "ntk/projection.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

template <class T>
void run(const Context& context) {
  const Options& options = context.options;
  if (options.reduce == "full") {
    throw ArgumentError(
        "--approximate: has no --reduce full; choose trace-mean, trace-sum, output:K or true-class");
  }
  const std::filesystem::path out = whole_array_output(options);
  const std::size_t memory = memory_budget(options);
  const Workers workers(options.threads);
  const auto begin = std::chrono::steady_clock::now();

  datasets::Dataset data = open_data(options);
  const models::Network<T> network =
      open_network<T>(options, data.example_shape(), outputs_for(options, data));
  ntk::KernelOptions reduction;
  std::string note;
  choose_reduction(options, network.outputs(), reduction, note);
  std::vector<std::int32_t> labels;
  if (reduction.reduce == ntk::Reduce::TrueClass)
    labels = labels_of(options, options.labels, data, "--labels");
  const std::size_t n = data.size();
  const Shape example_shape = data.example_shape();
  ordered_json json = describe_run(options, workers.count(), memory);
  const ordered_json told = describe(options, data);
  ProgressMeter meter(context.err, options.quiet);
  ntk::ProjectionOptions projection;
  projection.dimension = options.approximate;
  projection.seed = options.seed;
  projection.reduce = reduction.reduce;
  projection.output = reduction.output;
  projection.labels = labels;
  MemoryAccount account("--memory", memory);
  count_reading<T>(account, {&data});
  if (n != 0) {
    const ntk::ModuleProfile profile = ntk::profile_of_first<T>(network, data.inputs);
    projection.memory =
        account.phase("the projected gradients",
                      ntk::projection_bytes<T>(network, profile, n, projection, workers.count()));
    account.hold(input_bytes<T>(data));
    account.hold(profile.weight_bytes);
    account.hold(checked_multiply(checked_multiply(n, options.approximate, "--approximate"), sizeof(T),
                                  "--approximate"));
    account.phase("the kernel", ntk::approximate_kernel_bytes<T>(n, workers.count()));
  }
  account.check();
  const Tensor<T> x = take_inputs<T>(data);
  projection.progress = meter.phase("projecting gradients");
  projection.stop = context.stop;
  const ntk::ProjectedGradients<T> projected =
      ntk::project_gradients<T>(network, x.view(), projection, workers);
  const Tensor<T> kernel = ntk::approximate_kernel<T>(projected, workers);
  meter.close();
  StagedFile file = stage_npy<T>(out, kernel.view());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();

  json["approximate"] = {{"label", projected.label()},
                         {"method", "CountSketch of per-example gradients"},
                         {"dimension", options.approximate},
                         {"seed", options.seed},
                         {"standard_distortion", projected.standard_distortion()},
                         {"distortion_95", projected.distortion_95()},
                         {"rank_at_most", options.approximate}};
  json.update(describe(options, network));
  json["data"] = told;
  json["reduction"] = projected.reduce;
  json["n"] = n;
  json["shape"] = std::vector<std::size_t>{n, n};
  // Readers of the file take their error bars from here: the distortion, not the rounding.
  json["relative_entry_error"] = projected.standard_distortion();
  json["seconds"] = seconds;
  if (!note.empty()) json["note"] = note;
  const std::filesystem::path sidecar = beside(out, ".json");
  publish(out, std::move(file), json);

  if (options.json) {
    context.out << json.dump(2) << '\n';
    return;
  }
  fmt::print(context.out, "Approximate kernel of {}\n", network.model().to_text());
  const std::vector<std::vector<std::string>> rows = {
      {"approximate", fmt::format("gradients projected to {} dimensions (CountSketch, seed {})",
                                  grouped(options.approximate), options.seed)},
      {"entry error",
       fmt::format("{} sqrt(k_ii k_jj) at most, one standard deviation; 95 % of entries within {}",
                   significant(projected.standard_distortion()), significant(projected.distortion_95()))},
      {"rank", fmt::format("at most {}: smaller eigenvalues and inverses say nothing of the kernel's",
                           grouped(options.approximate))},
      {"data", data_text(n, example_shape, data.source)},
      {"prepared", preparation_text(options)},
      {"parameters", grouped(network.parameters().size())},
      {"parameterization", parameterization_text(options)},
      {"reduction", projected.reduce + (note.empty() ? "" : " (" + note + ")")},
      {"precision", options.dtype},
      {"machine", machine_text(workers.count(), memory)},
      {"time", seconds_text(seconds)}};
  context.out << table(rows, {false, false});
  fmt::print(context.out, "Wrote {} {} and {}\n", out.string(), kernel.shape().to_string(), sidecar.string());
}

}  // namespace

void run_approximate_kernel(const Context& context) {
  in_precision(context.options, [&]<class T>() { run<T>(context); });
}

}  // namespace gradgram::cli
