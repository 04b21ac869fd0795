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
#include "ntk/monte_carlo.hpp"
#include "ntk/precision.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

template <class T>
void run(const Context& context) {
  const Options& options = context.options;
  const bool nngp = options.get == "nngp";
  const std::filesystem::path out = whole_array_output(options);
  const std::size_t memory = memory_budget(options);
  const Workers workers(options.threads);
  const auto begin = std::chrono::steady_clock::now();
  datasets::Dataset data = open_data(options);
  const models::Model model = open_model(options, data.example_shape(), outputs_for(options, data));
  require_room_for_weights<T>(options, model);
  const models::NetworkOptions drawn = network_options(options);
  ntk::KernelOptions reduction;
  std::string note;
  if (!nngp) choose_reduction(options, model.outputs(), reduction, note);

  ProgressMeter meter(context.err, options.quiet);
  ntk::MonteCarloOptions what;
  what.samples = options.monte_carlo;
  what.seed = options.seed;
  what.what = nngp ? ntk::Estimated::Covariance : ntk::Estimated::Tangent;
  what.reduce = reduction.reduce;
  what.output = reduction.output;
  what.progress = meter.phase("samples");
  what.stop = context.stop;
  ordered_json json = describe_run(options, workers.count(), memory);
  const ordered_json told = describe(options, data);
  const std::size_t n = data.size();
  const Shape example_shape = data.example_shape();
  ntk::MonteCarloKernel kernel;
  datasets::Dataset versus = open_versus(options, example_shape);
  const ordered_json versus_json = describe_versus(options, versus);
  const std::size_t columns = options.versus.empty() ? n : versus.size();
  MemoryAccount account("--memory", memory);
  count_reading<T>(account, {&data, &versus});
  if (n != 0 && columns != 0) {
    what.memory = account.phase("the sums and one sample",
                                ntk::monte_carlo_bytes<T>(models::Network<T>(model, drawn), data.inputs, n,
                                                          versus.size(), what, workers));
  }
  account.check();
  const Tensor<T> x = take_inputs<T>(data);
  const Tensor<T> versus_x = take_inputs<T>(versus);
  if (options.versus.empty()) {
    kernel = ntk::monte_carlo_kernel<T>(model, drawn, x.view(), what, workers);
  } else {
    kernel = ntk::monte_carlo_kernel<T>(model, drawn, x.view(), versus_x.view(), what, workers);
  }
  meter.close();
  const std::filesystem::path error_file = beside(out, ".error.npy");
  std::vector<StagedFile> errors;
  errors.push_back(stage_npy<double>(error_file, kernel.standard_error.view()));
  StagedFile mean = stage_npy<double>(out, kernel.mean.view());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();

  json["estimate"] = "Monte Carlo: mean over networks of these widths, not the limit of infinite width";
  json["samples"] = kernel.samples;
  json["seed"] = options.seed;
  json["standard_error"] = {{"file", error_file.filename().string()},
                            {"relative", kernel.relative_error},
                            {"largest", kernel.largest_error}};
  json["get"] = nngp ? "nngp" : "ntk";
  json["model"] = model.to_text();
  json["outputs"] = model.outputs();
  json["parameterization"] = options.parameterization;
  json["weight_variance"] = options.weight_variance;
  json["bias_variance"] = options.bias_variance;
  json["data"] = told;
  if (!versus_json.is_null()) json["versus"] = versus_json;
  if (!nngp) json["reduction"] = ntk::reduce_name(what.reduce, what.output);
  json["n"] = n;
  json["n_versus"] = columns;
  // Of the samples' arithmetic, beside the standard error.
  json["relative_entry_error"] = ntk::entry_error<T>(models::Network<T>(model, drawn));
  const Shape& shape = kernel.mean.shape();
  json["shape"] = list(shape);
  json["seconds"] = seconds;
  const std::filesystem::path sidecar = beside(out, ".json");
  publish(out, std::move(mean), json, std::move(errors));
  if (options.json) {
    context.out << json.dump(2) << '\n';
    return;
  }
  fmt::print(context.out, "Monte Carlo estimate of the {} of {}\n", nngp ? "covariance (nngp)" : "kernel",
             model.to_text());
  std::vector<std::vector<std::string>> rows = {
      {"estimate", fmt::format("mean of {} networks of these widths", grouped(kernel.samples))},
      {"standard error", fmt::format("{} of the kernel (Frobenius), at most {} of its largest entry",
                                     percent(kernel.relative_error), percent(kernel.largest_error))},
      {"data", data_text(n, example_shape, data.source)},
      {"prepared", preparation_text(options)},
      {"parameterization", parameterization_text(options)},
      {"precision", options.dtype + " samples, f64 means"},
      {"machine", machine_text(workers.count(), memory)},
      {"time", seconds_text(seconds)}};
  if (!nngp) rows.insert(rows.begin() + 2, {"reduction", json["reduction"].get<std::string>()});
  context.out << table(rows, {false, false});
  fmt::print(context.out, "Wrote {} {}, its standard errors {} and {}\n", out.string(), shape.to_string(),
             error_file.string(), sidecar.string());
}

}  // namespace

void run_monte_carlo_kernel(const Context& context) {
  in_precision(context.options, [&]<class T>() { run<T>(context); });
}

}  // namespace gradgram::cli
