#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <ostream>
#include <utility>
#include <vector>

#include "cli/commands.hpp"
#include "cli/explain.hpp"
#include "cli/inputs.hpp"
#include "cli/memory.hpp"
#include "cli/progress.hpp"
#include "cli/reduction.hpp"
#include "cli/result_files.hpp"
#include "cli/text.hpp"
#include "engine/error.hpp"
#include "engine/npy.hpp"
#include "ntk/cost.hpp"
#include "ntk/kernel.hpp"
#include "ntk/kernel_file.hpp"
#include "ntk/packed.hpp"
#include "ntk/planned_kernel.hpp"
#include "ntk/precision.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

/// max |f(x)| over examples and outputs; 0 for no examples. Throws NumericError where one is not finite:
/// behind a softmax such outputs look like classes that are certain.
template <class T>
double largest_output(const Module<T>& module, TensorView<const T> x, const Workers& workers) {
  double largest = 0;
  if (!x) return largest;
  const Tensor<T> outputs = evaluate<T>(module, x, workers);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const double value = static_cast<double>(outputs.data()[i]);
    if (!std::isfinite(value)) {
      throw NumericError(
          fmt::format("--reduce true-class: an output of example {} is {}", i / module.outputs(), value));
    }
    largest = std::max(largest, std::abs(value));
  }
  return largest;
}

/// What the diagonal tells about a kernel before it is computed.
struct Preview {
  double trace = 0, mean = 0, smallest = 0, largest = 0;
  double seconds = 0;
};

/// diagonal: [n], or [n, O, O] whose blocks' diagonals count.
Preview preview_of(const Tensor<double>& diagonal) {
  const std::size_t outputs = diagonal.shape().rank() == 3 ? diagonal.shape()[1] : 1;
  const std::size_t block = outputs * outputs;
  Preview preview;
  preview.smallest = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < diagonal.size(); ++i) {
    if (i % block % (outputs + 1) != 0) continue;
    const double value = diagonal.span()[i];
    preview.trace += value;
    preview.smallest = std::min(preview.smallest, value);
    preview.largest = std::max(preview.largest, value);
  }
  const std::size_t entries = diagonal.size() / outputs;
  preview.mean = preview.trace / static_cast<double>(entries);
  return preview;
}

/// Whether the diagonal is computed first: when asked for, or when the kernel is long in coming.
bool wants_preview(const Options& options, const std::filesystem::path& out, std::size_t bytes,
                   double seconds) {
  constexpr std::size_t kManyBytes = std::size_t{2} << 30;
  constexpr double kManySeconds = 60;
  if (options.preview || options.no_preview) return options.preview;
  std::filesystem::path partial = out;
  partial += ".partial";
  std::error_code error;
  if (!options.restart && std::filesystem::exists(partial, error)) return false;
  return bytes > kManyBytes || seconds > kManySeconds;
}

/// Computes and tells it, and writes it to `file`.
template <class T>
Preview show_preview(const Context& context, const models::Network<T>& network, TensorView<const T> x,
                     const ntk::KernelOptions& kernel_options, const Workers& workers, ProgressMeter& meter,
                     double expected_seconds, const std::filesystem::path& file) {
  const auto begin = std::chrono::steady_clock::now();
  ntk::KernelOptions options = kernel_options;
  options.progress = meter.phase("diagonal");
  options.ways.clear();
  options.planned = {};
  options.timings = nullptr;
  const Tensor<double> diagonal = ntk::diagonal<T>(network, x, options, workers);
  meter.close();
  stage_narrowed<T>(file, diagonal, "diagonal").commit();
  Preview preview = preview_of(diagonal);
  preview.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (context.options.json) return preview;
  fmt::print(context.out, "The diagonal, in {} (wrote {}):\n", seconds_text(preview.seconds), file.string());
  context.out << table(
      {{"trace", significant(preview.trace, 5)},
       {"k(x, x)", fmt::format("mean {}, from {} to {}", significant(preview.mean),
                               significant(preview.smallest), significant(preview.largest))},
       {"largest eigenvalue",
        fmt::format("at least {} and at most {}", significant(preview.largest), significant(preview.trace))},
       {"the whole kernel", fmt::format("expected in {}", seconds_text(expected_seconds))}},
      {false, false});
  context.out << '\n' << std::flush;
  return preview;
}

template <class T>
std::vector<std::string> parameter_names(const ParameterSet<T>& parameters) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < parameters.count(); ++i) names.push_back(parameters.name(i));
  return names;
}

/// What the budget leaves to parts of the command.
struct Room {
  /// Whether it holds a preview, which counts only when it is asked for: one that nobody asked for is left
  /// out rather than refused.
  bool preview = true;
  std::size_t sample = 0;  ///< bytes for the sample that tells the error of bf16
};

/// The command on paper. `versus` may be null.
template <class T>
Room count_memory(const Options& options, const models::Network<T>& network, const datasets::Dataset& data,
                  const datasets::Dataset* versus, const ntk::KernelOptions& kernel_options,
                  const Workers& workers, bool preview) {
  MemoryAccount account("--memory", kernel_options.memory);
  std::vector<const datasets::Dataset*> sets = {&data};
  if (versus != nullptr) sets.push_back(versus);
  count_reading<T>(account, sets);
  const std::size_t n = data.size();
  const std::size_t columns = versus == nullptr ? 0 : versus->size();
  if (n == 0 || (versus != nullptr && columns == 0)) {
    account.check();
    return {true, kernel_options.memory};
  }
  Room room;
  const ntk::ModuleProfile profile = ntk::profile_of_first<T>(network, data.inputs);
  const std::size_t diagonal =
      ntk::least_diagonal_bytes<T>(network, profile, n, kernel_options, workers.count());
  if (options.diagonal) {
    account.phase("the diagonal", diagonal);
  } else {
    account.phase("the kernel", ntk::least_kernel_bytes<T>(network, profile, n, columns, kernel_options,
                                                           workers.count(), !options.per_parameter));
  }
  if (preview) account.phase("the preview", diagonal);
  if (kernel_options.bf16) {
    for (const datasets::Dataset* set : sets) account.hold(input_bytes<T>(*set));
    room.sample = account.phase(
        "the sample for the error of bf16",
        ntk::least_sampled_bytes<T>(network, profile, n, columns, kernel_options, workers.count()));
    for (const datasets::Dataset* set : sets) account.release(input_bytes<T>(*set));
  }
  if (kernel_options.reduce == ntk::Reduce::TrueClass) {
    for (const datasets::Dataset* set : sets) account.hold(input_bytes<T>(*set));
    account.hold(profile.weight_bytes);
    for (const datasets::Dataset* set : sets) {
      account.phase("the outputs", ntk::evaluation_bytes<T>(network, profile, set->size(), workers.count()));
    }
  }
  account.check();
  room.preview = diagonal <= kernel_options.memory;
  return room;
}

template <class T>
void run(const Context& context) {
  const Options& options = context.options;
  const bool at_once = options.diagonal || options.per_parameter;
  const std::filesystem::path out = options.plan_only ? std::filesystem::path()
                                    : at_once         ? whole_array_output(options)
                                                      : array_output(options);
  const std::size_t memory = memory_budget(options);
  const Workers workers(options.threads);
  const auto begin = std::chrono::steady_clock::now();

  datasets::Dataset data = open_data(options);
  const models::Network<T> network =
      open_network<T>(options, data.example_shape(), outputs_for(options, data));
  ntk::KernelOptions kernel_options;
  std::string note;
  choose_reduction(options, network.outputs(), kernel_options, note);
  const bool symmetric_file = !at_once && options.versus.empty();
  ProgressMeter meter(context.err, options.quiet);
  kernel_options.per_parameter = options.per_parameter;
  kernel_options.memory = memory;
  kernel_options.bf16 = options.dtype == "bf16";
  kernel_options.progress = meter.phase("kernel");
  kernel_options.stop = context.stop;
  kernel_options.ways = parse_ways(options.ways, parameter_names(network.parameters()));
  Explainer explainer(context, network.model(), workers.count());
  explainer.watch(kernel_options);
  std::vector<std::int32_t> labels;
  std::vector<std::int32_t> versus_labels;
  if (kernel_options.reduce == ntk::Reduce::TrueClass) {
    labels = labels_of(options, options.labels, data, "--labels");
    kernel_options.labels = labels;
  }
  ordered_json json = describe_run(options, workers.count(), memory);
  json.update(describe(options, network));
  json["data"] = describe(options, data);
  const std::size_t n = data.size();
  const Shape example_shape = data.example_shape();
  datasets::Dataset versus = open_versus(options, example_shape);
  if (!options.versus.empty()) json["versus"] = describe_versus(options, versus);
  const Room room =
      count_memory<T>(options, network, data, options.versus.empty() ? nullptr : &versus, kernel_options,
                      workers, symmetric_file && options.preview && !options.plan_only);
  const Tensor<T> x = take_inputs<T>(data);
  json["reduction"] = ntk::reduce_name(kernel_options.reduce, kernel_options.output);
  json["diagonal"] = options.diagonal;
  json["n"] = n;
  Shape shape;
  std::string went_on;
  const std::filesystem::path per_parameter = beside(out, ".per-parameter.npz");
  Tensor<T> versus_x;
  std::size_t columns = n;
  if (!options.versus.empty()) {
    if (kernel_options.reduce == ntk::Reduce::TrueClass) {
      versus_labels = labels_of(options, options.versus_labels, versus, "--versus-labels");
      kernel_options.versus_labels = versus_labels;
    }
    columns = versus.size();
    versus_x = take_inputs<T>(versus);
  }
  if (!options.diagonal) json["n_versus"] = columns;
  if (options.plan_only) {
    const TensorView<const T> other = versus_x.view();
    const TensorView<const T>* const beside = options.versus.empty() ? nullptr : &other;
    explainer.take(
        options.diagonal ? ntk::diagonal_plan<T>(network, x.view(), kernel_options, workers.count())
        : options.per_parameter
            ? ntk::plan_for<T>(network, x.view(), beside, kernel_options, workers.count())
            : ntk::kernel_file_plan<T>(network, x.view(), beside, kernel_options, workers.count()));
    explainer.describe(json);
    if (options.json) context.out << json.dump(2) << '\n';
    return;
  }
  const TensorView<const T> versus_view = versus_x.view();
  double entry_error = ntk::entry_error<T>(network);
  std::string measured;
  if (kernel_options.bf16) {
    entry_error += ntk::bf16_entry_error();
    ntk::KernelOptions sample_options = kernel_options;
    sample_options.memory = room.sample;
    const ntk::EntryErrors errors = ntk::sampled_bf16_errors<T>(
        network, x.view(), options.versus.empty() ? nullptr : &versus_view, sample_options, workers);
    json["measured_error"] = {{"against", "f32"},
                              {"entries", errors.entries},
                              {"worst", errors.worst},
                              {"root_mean_square", errors.root_mean_square}};
    measured = fmt::format("; {} entries differ from f32 by {} at the most, {} root mean square",
                           grouped(errors.entries), significant(errors.worst, 2),
                           significant(errors.root_mean_square, 2));
  }
  if (kernel_options.reduce == ntk::Reduce::TrueClass) {
    // The softmax in front hands the errors of f on (docs/precision.md).
    entry_error *= 1 + std::max(largest_output<T>(network, x.view(), workers),
                                largest_output<T>(network, versus_view, workers));
  }
  json["relative_entry_error"] = entry_error;
  if (!note.empty()) json["note"] = note;
  double seconds = 0;
  const auto complete = [&](const Shape& result) {
    shape = result;
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    json["shape"] = list(shape);
    json["seconds"] = seconds;
    explainer.describe(json);
  };
  if (options.diagonal) {
    const Tensor<double> diagonal = ntk::diagonal<T>(network, x.view(), kernel_options, workers);
    meter.close();
    StagedFile file = stage_narrowed<T>(out, diagonal, "diagonal");
    complete(diagonal.shape());
    publish(out, std::move(file), json);
  } else {
    if (options.per_parameter) {
      const ntk::KernelMatrix<T> kernel =
          options.versus.empty()
              ? ntk::kernel<T>(network, x.view(), kernel_options, workers)
              : ntk::kernel<T>(network, x.view(), versus_x.view(), kernel_options, workers);
      meter.close();
      json["block_examples"] = kernel.block_examples;
      json["planned_bytes"] = kernel.planned_bytes;
      std::vector<NamedTensor<T>> arrays;
      for (std::size_t i = 0; i < kernel.per_parameter.size(); ++i) {
        arrays.push_back({kernel.parameter_names[i], kernel.per_parameter[i].view()});
      }
      std::vector<StagedFile> parts;
      parts.push_back(stage_npz<T>(per_parameter, arrays));
      json["per_parameter"] = per_parameter.filename().string();
      StagedFile file = stage_npy<T>(out, kernel.values.view());
      complete(kernel.values.shape());
      publish(out, std::move(file), json, std::move(parts));
    } else {
      ntk::KernelDestination destination;
      destination.path = out;
      destination.provenance = {{"model", network.model().to_text()},
                                {"parameterization", parameterization_text(options)}};
      destination.restart = options.restart;
      destination.packed = options.packed;
      destination.work = meter.work("kernel");
      kernel_options.progress = {};
      if (symmetric_file && n != 0) {
        ntk::Plan plan = ntk::plan_for<T>(network, x.view(), nullptr, kernel_options, workers.count(), true);
        plan.request.packed_file = options.packed;
        const std::size_t group = plan.rows_per_example();
        const std::size_t pairs = options.packed ? ntk::packed_size(n) : n * n;
        const double expected = ntk::plan_cost(plan).finished;
        if (room.preview && wants_preview(options, out, pairs * group * group * sizeof(T), expected)) {
          const Preview preview = show_preview<T>(context, network, x.view(), kernel_options, workers, meter,
                                                  expected, preview_beside(out));
          json["preview"] = {{"file", beside(out, ".diagonal.npy").filename().string()},
                             {"seconds", preview.seconds},
                             {"trace", preview.trace},
                             {"mean", preview.mean},
                             {"smallest", preview.smallest},
                             {"largest", preview.largest},
                             {"lambda_max_at_least", preview.largest},
                             {"lambda_max_at_most", preview.trace},
                             {"expected_seconds", expected}};
        }
      }
      json["packed"] = options.packed;
      destination.verify_progress = meter.phase("verifying");
      destination.before_naming = [&](const ntk::KernelFile& file) {
        json["block_examples"] = file.block_examples;
        json["planned_bytes"] = file.planned_bytes;
        json["tiles"] = file.tiles;
        json["tiles_of_earlier_runs"] = file.found;
        json["tiles_found_damaged"] = file.damaged;
        complete(file.shape);
        describe_before_naming(out, json);
      };
      const ntk::KernelFile kernel = [&] {
        try {
          if (options.versus.empty()) {
            return ntk::kernel_to_file<T>(network, x.view(), kernel_options, destination, workers);
          }
          return ntk::kernel_to_file<T>(network, x.view(), versus_x.view(), kernel_options, destination,
                                        workers);
        } catch (const ntk::StoppedResumable&) {
          throw;
        } catch (const Cancelled&) {
          if (!json.contains("preview")) throw;
          throw StoppedAfter("stopped; of the result only the preview was written, " +
                             preview_beside(out).string());
        }
      }();
      meter.close();
      if (kernel.found + kernel.damaged != 0) {
        went_on = went_on_text(kernel);
      }
    }
  }
  if (options.json) {
    context.out << json.dump(2) << '\n';
    return;
  }
  fmt::print(context.out, "{} of {}\n", options.diagonal ? "Diagonal of the kernel" : "Kernel",
             network.model().to_text());
  std::vector<std::vector<std::string>> rows = {
      {"data", data_text(n, example_shape, data.source)},
      {"prepared", preparation_text(options)},
      {"parameters", grouped(network.parameters().size())},
      {"parameterization", parameterization_text(options)},
      {"reduction", json["reduction"].get<std::string>() + (note.empty() ? "" : " (" + note + ")")},
      {"precision", fmt::format("{}, an entry is good to {} sqrt(k_ii k_jj){}", options.dtype,
                                significant(entry_error, 2), measured)},
      {"machine", machine_text(workers.count(), memory)},
      {"time", seconds_text(seconds)}};
  if (!went_on.empty()) rows.push_back({"went on", went_on});
  context.out << table(rows, {false, false});
  explainer.finish();
  fmt::print(context.out, "Wrote {} {} and {}{}\n", out.string(), shape.to_string(),
             beside(out, ".json").string(), options.per_parameter ? " and " + per_parameter.string() : "");
}

}  // namespace

void run_kernel(const Context& context) {
  if (context.options.approximate != 0) {
    run_approximate_kernel(context);
    return;
  }
  if (context.options.infinite) {
    run_infinite_kernel(context);
    return;
  }
  if (context.options.monte_carlo != 0) {
    run_monte_carlo_kernel(context);
    return;
  }
  in_precision(context.options, [&]<class T>() { run<T>(context); });
}

}  // namespace gradgram::cli
