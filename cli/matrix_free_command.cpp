#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/commands.hpp"
#include "cli/inputs.hpp"
#include "cli/memory.hpp"
#include "cli/progress.hpp"
#include "cli/reduction.hpp"
#include "cli/result_folder.hpp"
#include "cli/text.hpp"
#include "engine/error.hpp"
#include "engine/file.hpp"
#include "engine/npy.hpp"
#include "ntk/estimators.hpp"
#include "ntk/kernel_operator.hpp"
#include "ntk/matrix_operator.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kDefaultTop = 10;

struct Wanted {
  bool top = false;
  bool moments = false;
  bool density = false;
};

/// --estimate as a list of words.
Wanted wanted_from(std::string_view text) {
  Wanted wanted;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view word = text.substr(begin, end - begin);
    bool* const which = word == "top"       ? &wanted.top
                        : word == "moments" ? &wanted.moments
                        : word == "density" ? &wanted.density
                                            : nullptr;
    if (which == nullptr) {
      throw ArgumentError(
          fmt::format("--estimate: '{}' is unknown; expected some of top, moments, density", word));
    }
    *which = true;
    begin = end + 1;
  }
  return wanted;
}

ordered_json as_json(const ntk::Estimate& estimate) {
  return {{"value", estimate.value},
          {"standard_error", estimate.standard_error},
          {"low", estimate.low},
          {"high", estimate.high},
          {"probes", estimate.probes}};
}

std::string as_text(const ntk::Estimate& estimate) {
  return fmt::format("{} (95 %: {} to {})", significant(estimate.value, 5), significant(estimate.low, 5),
                     significant(estimate.high, 5));
}

struct Reading {
  std::optional<ntk::TopPairs> top;
  std::optional<ntk::Moments> moments;
  std::optional<ntk::SpectralDensity> density;
};

/// Thresholds at which the distribution is told: the largest eigenvalue seen, divided by powers of ten, as
/// long as every probe has seen something below.
std::vector<double> thresholds(const ntk::SpectralDensity& density) {
  double least = 0;
  for (const auto& nodes : density.probes) least = std::max(least, nodes.front().value);
  std::vector<double> result;
  for (int i = 1; i <= 6; ++i) {
    const double threshold = density.largest() * std::pow(10.0, -i);
    if (threshold > least) result.push_back(threshold);
  }
  return result;
}

void write_results(const std::filesystem::path& folder, const Reading& reading, ordered_json& json) {
  json["files"] = ordered_json::object();
  if (reading.top) {
    write_file(folder / "spectrum.csv", [&](std::ostream& stream) {
      stream << "rank,eigenvalue,residual\n";
      for (std::size_t i = 0; i < reading.top->values.size(); ++i) {
        fmt::print(stream, "{},{:.17g},{:.3g}\n", i + 1, reading.top->values[i], reading.top->residuals[i]);
      }
    });
    write_npy<double>(folder / "eigenvectors.npy", reading.top->vectors.view());
    json["files"] = {{"spectrum", "spectrum.csv"}, {"eigenvectors", "eigenvectors.npy"}};
  }
  if (reading.density) {
    write_file(folder / "density.csv", [&](std::ostream& stream) {
      stream << "probe,ritz_value,weight\n";
      for (std::size_t p = 0; p < reading.density->probes.size(); ++p) {
        for (const auto& node : reading.density->probes[p]) {
          fmt::print(stream, "{},{:.17g},{:.17g}\n", p, node.value, node.weight);
        }
      }
    });
    json["files"]["density"] = "density.csv";
  }
  write_json(folder / "summary.json", json);
}

void print(const Context& context, const Reading& reading, std::vector<std::vector<std::string>> rows) {
  const Options& options = context.options;
  if (reading.moments) {
    rows.push_back({"trace", as_text(reading.moments->trace)});
    rows.push_back({"||K||_F", as_text(reading.moments->frobenius)});
    const double norm = reading.moments->frobenius.value;
    if (norm > 0) {
      rows.push_back({"effective rank", significant(std::pow(reading.moments->trace.value / norm, 2)) +
                                            " (trace^2 / ||K||_F^2)"});
    }
  }
  if (reading.top) {
    rows.push_back({"lambda_max", fmt::format("{}, residual {}", significant(reading.top->values.front(), 5),
                                              significant(reading.top->residuals.front(), 2))});
  } else if (reading.density) {
    rows.push_back({"lambda_max", "at least " + significant(reading.density->largest(), 5)});
  }
  rows.push_back({"lambda_min", "not resolved by products alone"});
  context.out << table(rows, {false, false});
  if (reading.top) {
    std::vector<std::vector<std::string>> values = {{"rank", "eigenvalue", "residual"}};
    for (std::size_t i = 0; i < std::min<std::size_t>(10, reading.top->values.size()); ++i) {
      values.push_back({std::to_string(i + 1), significant(reading.top->values[i], 5),
                        significant(reading.top->residuals[i], 2)});
    }
    context.out << '\n' << table(values, {true, true, true});
  }
  if (reading.density) {
    std::vector<std::vector<std::string>> values = {{"eigenvalues up to", "share", "95 % from", "to"}};
    for (const double x : thresholds(*reading.density)) {
      const ntk::Estimate share = reading.density->cdf(x);
      values.push_back({significant(x), percent(share.value), percent(share.low), percent(share.high)});
    }
    context.out << '\n' << table(values, {true, true, true, true});
  }
  if (!options.out.empty()) fmt::print(context.out, "Wrote {}\n", options.out);
}

/// All of a kernel by its products with the unit vectors, made symmetric.
Tensor<double> multiplied_out(ntk::SymmetricOperator& kernel, const Progress& progress) {
  const std::size_t n = kernel.size();
  constexpr std::size_t kAtOnce = 64;
  Tensor<double> matrix(Shape{n, n});
  for (std::size_t row = 0; row < n; row += kAtOnce) {
    const std::size_t end = std::min(n, row + kAtOnce);
    Tensor<double> unit(Shape{end - row, n});
    for (std::size_t i = row; i < end; ++i) unit(i - row, i) = 1;
    kernel.apply(std::as_const(unit).view(), matrix.view().slice(row, end));
    if (progress) progress(end, n);
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < i; ++j) matrix(i, j) = matrix(j, i) = (matrix(i, j) + matrix(j, i)) / 2;
  }
  return matrix;
}

template <class T>
void run(const Context& context) {
  const Options& options = context.options;
  const Wanted wanted = wanted_from(options.estimate);
  const auto at_least = [](const char* option, std::size_t value, std::size_t least) {
    if (value < least) throw ArgumentError(fmt::format("{}: {} must be at least {}", option, value, least));
  };
  at_least("--products", options.products, 6);
  at_least("--probes", options.probes, 2);
  at_least("--steps", options.lanczos_steps, 1);
  std::optional<ResultFolder> folder;
  if (!options.out.empty()) {
    if (std::filesystem::path(options.out).extension() == ".csv") {
      throw ArgumentError(
          fmt::format("--out: with --matrix-free a folder is written, '{}' looks like a file", options.out));
    }
    folder.emplace(options.out, options.force);
  }
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
  const std::size_t examples = data.size();
  const Shape example = data.example_shape();
  const ordered_json told = describe(options, data);

  const std::size_t n = reduction.reduce == ntk::Reduce::Full
                            ? checked_multiply(examples, network.outputs(), "--reduce full")
                            : examples;
  if (n == 0) throw ArgumentError("--matrix-free: the data hold no examples");
  if (options.top > n) {
    throw ArgumentError(fmt::format("--top: {} must be at most the size of the kernel, {}", options.top, n));
  }
  const std::size_t top = options.top == 0 ? std::min(kDefaultTop, n) : options.top;
  // Vectors that the estimates hold at once, and as many again while they are orthogonalized.
  constexpr std::size_t kProbesAtOnce = 4;
  std::size_t vectors = 0;
  if (wanted.top) vectors = std::max(vectors, std::max<std::size_t>(2 * top + 1, 20) + 2 * top);
  if (wanted.moments)
    vectors = std::max(vectors, checked_multiply(options.products, 4, "--products") / 3 + 48);
  if (wanted.density) vectors = std::max(vectors, kProbesAtOnce * (std::min(options.lanczos_steps, n) + 2));
  // Never more products than the whole kernel takes: where at least n are wanted, it is multiplied out.
  std::size_t least_products = wanted.top ? 2 * top + 1 : 0;
  if (wanted.moments) least_products = checked_add(least_products, options.products, "--products");
  if (wanted.density) {
    least_products = checked_add(
        least_products, checked_multiply(options.probes, options.lanczos_steps, "--probes and --steps"),
        "--probes and --steps");
  }
  const bool whole = n <= least_products;
  if (whole) vectors = checked_add(vectors, n + 64, "--matrix-free");
  const std::size_t held =
      checked_multiply(checked_multiply(vectors, n, "--matrix-free"), sizeof(double), "--matrix-free");
  MemoryAccount account("--memory", memory);
  count_reading<T>(account, {&data});
  account.hold(held);
  if (wanted.density) {
    // Nodes of every probe, in vectors that grow to twice their length.
    const std::size_t nodes = checked_multiply(std::min(options.lanczos_steps, n) + 2,
                                               2 * sizeof(ntk::SpectralDensity::Node), "--steps");
    account.hold(checked_multiply(options.probes, nodes, "--probes and --steps"));
  }
  ntk::OperatorOptions what;
  what.reduce = reduction.reduce;
  what.output = reduction.output;
  what.labels = labels;
  what.memory =
      account.phase("products beside the vectors (fewer --probes, --steps, --products or --top need less)",
                    ntk::least_operator_bytes<T>(network, ntk::profile_of_first<T>(network, data.inputs),
                                                 examples, workers.count()));
  account.check();
  const Tensor<T> x = take_inputs<T>(data);
  what.stop = context.stop;
  ntk::KernelOperator<T> products_of(network, x.view(), what, workers);

  ProgressMeter meter(context.err, options.quiet);
  // A kernel that was multiplied out has products that nobody stops.
  const auto phase = [&](const char* name) -> Progress {
    return [report = meter.phase(name), &context](std::size_t done, std::size_t total) {
      if (context.stop.stop_requested()) throw Cancelled("stopped");
      report(done, total);
    };
  };
  Reading reading;
  Tensor<double> matrix;
  std::optional<ntk::MatrixOperator<double>> multiplied;
  if (whole) {
    matrix = multiplied_out(products_of, meter.phase("all products"));
    multiplied.emplace(std::as_const(matrix).view(), workers, products_of.relative_error());
  }
  ntk::SymmetricOperator& kernel = whole ? static_cast<ntk::SymmetricOperator&>(*multiplied) : products_of;
  if (wanted.moments) {
    reading.moments = ntk::estimate_moments(
        kernel, {.products = options.products, .seed = options.seed, .progress = phase("moments")});
  }
  if (wanted.top) {
    reading.top = ntk::largest_pairs(
        kernel, {.top = top, .seed = options.seed, .progress = phase("largest eigenpairs")});
  }
  if (wanted.density) {
    reading.density = ntk::spectral_density(kernel, {.probes = options.probes,
                                                     .steps = options.lanczos_steps,
                                                     .seed = options.seed,
                                                     .block = kProbesAtOnce,
                                                     .progress = phase("spectral density")});
  }
  meter.close();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const std::size_t products = whole ? n
                                     : (reading.moments ? reading.moments->products : 0) +
                                           (reading.top ? reading.top->products : 0) +
                                           (reading.density ? reading.density->products : 0);

  ordered_json json = describe_run(options, workers.count(), memory);
  json.update(describe(options, network));
  json["data"] = told;
  json["reduction"] = ntk::reduce_name(reduction.reduce, reduction.output);
  json["matrix_free"] = true;
  json["n"] = n;
  json["products"] = products;
  json["multiplied_out"] = whole;
  json["relative_product_error"] = products_of.relative_error();
  json["planned_bytes"] = products_of.planned_bytes() + held;
  if (reading.moments) {
    json["trace"] = as_json(reading.moments->trace);
    json["frobenius"] = as_json(reading.moments->frobenius);
  }
  if (reading.top) {
    json["lambda_max"] = reading.top->values.front();
    json["eigenvalues"] = reading.top->values;
    json["residuals"] = reading.top->residuals;
  }
  if (reading.density) {
    json["density"] = {
        {"probes", reading.density->probes.size()},
        {"steps", options.lanczos_steps},
        {"resolution", reading.density->largest() / static_cast<double>(options.lanczos_steps)},
        {"largest_ritz_value", reading.density->largest()}};
    ordered_json shares = ordered_json::array();
    for (const double t : thresholds(*reading.density)) {
      ordered_json share = as_json(reading.density->cdf(t));
      share["up_to"] = t;
      shares.push_back(share);
    }
    json["density"]["shares"] = shares;
  }
  json["seconds"] = seconds;
  if (!note.empty()) json["note"] = note;
  if (folder) {
    write_results(folder->path(), reading, json);
    folder->commit();
  }
  if (options.json) {
    context.out << json.dump(2) << '\n';
    return;
  }
  fmt::print(context.out, "Spectrum of the kernel of {}, without the matrix ({} x {})\n",
             network.model().to_text(), grouped(n), grouped(n));
  print(context, reading,
        {{"data", data_text(examples, example, data.source)},
         {"prepared", preparation_text(options)},
         {"parameters", grouped(network.parameters().size())},
         {"parameterization", parameterization_text(options)},
         {"reduction", json["reduction"].get<std::string>() + (note.empty() ? "" : " (" + note + ")")},
         {"precision", fmt::format("{}, a product is good to {} ||K|| ||v||", options.dtype,
                                   significant(products_of.relative_error(), 2))},
         {"machine", machine_text(workers.count(), memory)},
         {"time", fmt::format("{}, {} products K v{}", seconds_text(seconds), grouped(products),
                              whole ? ": all there are, and fewer than the estimates ask for" : "")}});
}

}  // namespace

void run_matrix_free_spectrum(const Context& context) {
  in_precision(context.options, [&]<class T>() { run<T>(context); });
}

}  // namespace gradgram::cli
