#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <ostream>
#include <set>

#include "cli/commands.hpp"
#include "cli/inputs.hpp"
#include "cli/kernel_input.hpp"
#include "cli/spectrum_table.hpp"
#include "cli/text.hpp"
#include "cli/wording.hpp"
#include "engine/error.hpp"
#include "engine/file.hpp"
#include "engine/memory_account.hpp"
#include "engine/npy.hpp"
#include "ntk/spectrum.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

/// Classes as -1/+1 or one-hot, other numbers as they are; `kind` says which.
Tensor<double> label_targets(const Options& options, std::size_t n, std::string& kind) {
  const std::string& path = options.labels;
  const NpyArray array = about("--labels", options, [&] { return read_npy(path); });
  if (array.size() != n) {
    throw ArgumentError(
        fmt::format("--labels: {} holds {} numbers for a kernel of {} examples", path, array.size(), n));
  }
  if (array.type == NpyType::F4 || array.type == NpyType::F8) {
    const Tensor<double> values = array.to_tensor<double>();
    const bool whole = std::all_of(values.span().begin(), values.span().end(),
                                   [](double v) { return v == std::floor(v) && std::abs(v) < 1e6; });
    for (const double value : values.span()) {
      if (!std::isfinite(value)) throw NumericError(fmt::format("--labels: {} holds {}", path, value));
    }
    if (!whole) {
      kind = "targets as they are";
      return Tensor<double>(Shape{n, 1}, values.span());
    }
  }
  const std::vector<std::int32_t> labels =
      about("--labels: " + path, options, [&] { return array.to_labels(); });
  const std::set<std::int32_t> distinct(labels.begin(), labels.end());
  const std::vector<std::int32_t> classes(distinct.begin(), distinct.end());
  if (classes.size() == 2) {
    kind = fmt::format("two classes, {} as -1 and {} as +1", classes[0], classes[1]);
    Tensor<double> y(Shape{n, 1});
    for (std::size_t i = 0; i < n; ++i) y.span()[i] = labels[i] == classes[0] ? -1 : 1;
    return y;
  }
  if (classes.size() > 1000) {
    throw ArgumentError(
        fmt::format("--labels: {} holds {} different whole numbers, too many to be classes; store "
                    "targets with a fraction, or shift them by 0.5",
                    path, classes.size()));
  }
  kind = fmt::format("{} classes, one column each", classes.size());
  Tensor<double> y(Shape{n, classes.size()});
  for (std::size_t i = 0; i < n; ++i) {
    const auto position = std::lower_bound(classes.begin(), classes.end(), labels[i]) - classes.begin();
    y(i, static_cast<std::size_t>(position)) = 1;
  }
  return y;
}

}  // namespace

void write_spectrum_csv(const std::filesystem::path& path, const ntk::Spectrum& spectrum,
                        const std::vector<double>& label_energy) {
  write_file(path, [&](std::ostream& stream) {
    stream << "rank,eigenvalue,error_bar,share_of_trace,cumulative_share_of_trace,label_energy,cumulative_"
              "label_energy\n";
    double trace = 0;
    double energy = 0;
    for (std::size_t i = 0; i < spectrum.values.size(); ++i) {
      trace += spectrum.values[i];
      fmt::print(stream, "{},{:.17g},{:.3g},{:.9g},{:.9g},", i + 1, spectrum.values[i], spectrum.error_bar,
                 spectrum.values[i] / spectrum.trace, trace / spectrum.trace);
      if (label_energy.empty()) {
        stream << ",\n";
      } else {
        energy += label_energy[i];
        fmt::print(stream, "{:.9g},{:.9g}\n", label_energy[i], energy);
      }
    }
  });
}

void run_spectrum(const Context& context) {
  if (context.options.matrix_free) {
    run_matrix_free_spectrum(context);
    return;
  }
  const Options& options = context.options;
  std::filesystem::path csv;
  if (!options.out.empty()) {
    csv = options.out;
    if (csv.extension() != ".csv") csv /= "spectrum.csv";
    if (csv.parent_path() == std::filesystem::path(options.out)) {
      std::error_code error;
      std::filesystem::create_directories(csv.parent_path(), error);
      if (error)
        throw IoError(fmt::format("--out: {}: cannot create the folder: {}", options.out, error.message()));
    }
    require_writable(csv);
  }
  std::string label_kind;
  Tensor<double> y;
  ntk::SpectrumOptions spectrum_options;
  spectrum_options.top = options.top;
  spectrum_options.vectors = !options.labels.empty() || options.top > 0;
  const auto take_labels = [&](std::size_t n) {
    if (options.top > n) {
      throw ArgumentError(
          fmt::format("--top: {} must be at most the size of the kernel, {}", options.top, n));
    }
    if (!options.labels.empty() && y.size() == 0) y = label_targets(options, n, label_kind);
  };
  const KernelInput input = read_kernel(options.kernel_file, [&](const KernelExtent& extent) {
    take_labels(extent.n);
    MemoryAccount account("--memory", memory_budget(options));
    account.hold(y.size() * sizeof(double));
    account.phase("the kernel while it is read", extent.reading_bytes);
    account.hold(checked_multiply(extent.n * extent.n, sizeof(double), "KERNEL.npy"));
    spectrum_options.memory =
        account.phase("the eigenvalues", ntk::spectrum_bytes(extent.n, spectrum_options));
    // The centred alignment takes a copy of the labels.
    account.phase("the alignment", 2 * y.size() * sizeof(double));
    account.check();
  });
  const KernelFacts& facts = input.facts;
  const Tensor<double>& kernel = input.values;
  const std::size_t n = kernel.shape()[0];
  take_labels(n);
  spectrum_options.entry_error = facts.entry_error;
  spectrum_options.relative_perturbation = facts.standard_error;
  const ntk::Spectrum spectrum = ntk::spectrum(kernel.view(), spectrum_options);
  const bool whole = spectrum.values.size() == n;
  std::vector<double> energy;
  double alignment = 0;
  double centred = 0;
  if (!options.labels.empty()) {
    energy = ntk::label_energy(spectrum, y.view());
    alignment = ntk::kernel_target_alignment(kernel.view(), y.view(), false);
    centred = ntk::kernel_target_alignment(kernel.view(), y.view(), true);
  }
  if (!csv.empty()) write_spectrum_csv(csv, spectrum, energy);

  if (options.json) {
    ordered_json json;
    json["program"] = "gradgram";
    json["version"] = version();
    json["command"] = command_line(options);
    json["kernel"] = options.kernel_file;
    json["n"] = n;
    if (!facts.estimate.empty()) json[facts.estimate_name()] = facts.estimate;
    json["relative_entry_error"] = facts.entry_error;
    json["relative_entry_error_from"] = facts.entry_error_origin;
    if (facts.standard_error > 0) {
      json["standard_error"] = {{"relative", facts.standard_error},
                                {"of_an_eigenvalue_at_most", facts.standard_error * spectrum.frobenius}};
    }
    json["trace"] = spectrum.trace;
    json["frobenius"] = spectrum.frobenius;
    json["lambda_max"] = spectrum.values.front();
    if (whole) json["lambda_min"] = spectrum.values.back();
    json["error_bar"] = spectrum.error_bar;
    json["likely_error"] = spectrum.likely_error;
    json["resolved"] = spectrum.resolved();
    if (whole) {
      json["lambda_min_resolved"] = spectrum.smallest_is_resolved();
      // JSON has no infinity: null means that lambda_min lies within its error bar.
      const double condition = spectrum.condition();
      json["condition"] = std::isfinite(condition) ? ordered_json(condition) : ordered_json(nullptr);
    }
    json["effective_rank"] = spectrum.effective_rank();
    json["eigenvalues"] = spectrum.values;
    if (!energy.empty()) {
      json["labels"] = {{"file", options.labels}, {"read_as", label_kind}};
      json["label_energy"] = energy;
      json["alignment"] = alignment;
      json["centred_alignment"] = centred;
    }
    if (!csv.empty()) json["csv"] = csv.string();
    context.out << json.dump(2) << '\n';
    return;
  }
  fmt::print(context.out, "Spectrum of {} ({} x {})\n", options.kernel_file, grouped(n), grouped(n));
  std::vector<std::vector<std::string>> rows;
  const auto of_trace = [&](double value) {
    if (!(spectrum.trace > 0)) return std::string();
    return fmt::format(" ({} of the trace)", percent(value / spectrum.trace));
  };
  if (!facts.estimate.empty()) rows.push_back({"kernel", facts.estimate});
  rows.insert(rows.end(),
              {{"trace", significant(spectrum.trace, 5)},
               {"lambda_max", significant(spectrum.values.front(), 5) + of_trace(spectrum.values.front())}});
  if (whole) {
    const bool indefinite = spectrum.values.back() < -spectrum.error_bar;
    rows.push_back(
        {"lambda_min",
         spectrum.smallest_is_resolved()
             ? fmt::format("{} ± {}", significant(spectrum.values.back()), significant(spectrum.error_bar, 2))
         : indefinite
             ? fmt::format("{}, negative beyond the error bar {}: no kernel, which is positive semidefinite",
                           significant(spectrum.values.back()), significant(spectrum.error_bar, 2))
             : fmt::format("not resolved: {} lies within the error bar {}",
                           significant(spectrum.values.back()), significant(spectrum.error_bar, 2))});
    const double condition = spectrum.condition();
    const double least_condition = spectrum.values.front() / spectrum.error_bar;
    rows.push_back({"condition", std::isfinite(condition) ? significant(condition)
                                 : least_condition > 0 && !indefinite
                                     ? fmt::format("at least {}", significant(least_condition, 2))
                                     : "none"});
  } else {
    rows.push_back(
        {"found", fmt::format("the {} largest of {}", grouped(spectrum.values.size()), grouped(n))});
    rows.push_back({"error bar", significant(spectrum.error_bar, 2)});
  }
  rows.push_back({"above the error bar", fmt::format("{} of {} eigenvalues", grouped(spectrum.resolved()),
                                                     grouped(spectrum.values.size()))});
  rows.push_back({"effective rank", significant(spectrum.effective_rank()) + " (trace^2 / ||K||_F^2)"});
  rows.push_back({"entry error", fmt::format("{} sqrt(k_ii k_jj), from {}", significant(facts.entry_error, 2),
                                             facts.entry_error_origin)});
  if (facts.standard_error > 0) {
    rows.push_back({"standard error",
                    fmt::format("{} of ||K||_F, by which every eigenvalue may be off: {}, in the error bar",
                                percent(facts.standard_error),
                                significant(facts.standard_error * spectrum.frobenius, 2))});
  }
  if (!energy.empty()) {
    rows.push_back({"labels", label_kind});
    rows.push_back(
        {"alignment", fmt::format("{} (centred {})", significant(alignment), significant(centred))});
  }
  context.out << table(rows, {false, false});
  std::vector<std::vector<std::string>> values = {{"rank", "eigenvalue", "share of trace"}};
  if (!energy.empty()) values.front().push_back("label energy");
  for (std::size_t i = 0; i < std::min<std::size_t>(10, spectrum.values.size()); ++i) {
    values.push_back({std::to_string(i + 1), significant(spectrum.values[i], 5),
                      spectrum.trace > 0 ? percent(spectrum.values[i] / spectrum.trace) : "-"});
    if (!energy.empty()) values.back().push_back(percent(energy[i]));
  }
  context.out << '\n' << table(values, std::vector<bool>(values.front().size(), true));
  if (!csv.empty()) fmt::print(context.out, "Wrote {}\n", csv.string());
}

}  // namespace gradgram::cli
