#include <fmt/format.h>
#include <fmt/ostream.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>

#include "cli/commands.hpp"
#include "cli/inputs.hpp"
#include "cli/rates.hpp"
#include "cli/text.hpp"
#include "datasets/dataset.hpp"
#include "engine/blas.hpp"
#include "engine/cpu.hpp"
#include "engine/machine.hpp"

namespace gradgram::cli {
namespace {

std::string rate(double flop) {
  return significant(flop * 1e-9) + " GFLOP/s";
}

/// A row for each kind of work, f32 beside f64.
std::vector<std::vector<std::string>> kernel_rows(const ntk::KernelRates& rates) {
  const auto giga = [](double value, const char* unit) { return significant(value * 1e-9) + unit; };
  std::vector<std::vector<std::string>> rows = {{"", "f32", "f64"}};
  const auto row = [&](const std::string& name, double single, double twice, const char* unit) {
    rows.push_back({name, giga(single, unit), giga(twice, unit)});
  };
  row("products of gradients", rates.f32.gram, rates.f64.gram, " GFLOP/s");
  row("fetching them for a tile", rates.f32.fetch, rates.f64.fetch, " GB/s");
  row("packing them for a tile", rates.f32.pack, rates.f64.pack, " GB/s");
  row("laying them out when formed", rates.f32.lay, rates.f64.lay, " GB/s");
  row("adding up a tile", rates.f32.entries, rates.f64.entries, " G entries/s");
  row("position Gram, products", rates.f32.position, rates.f64.position, " GFLOP/s");
  row("position Gram, taps", rates.f32.taps, rates.f64.taps, " G additions/s");
  row("passes of dense layers", rates.f32.gemm, rates.f64.gemm, " GFLOP/s");
  row("new memory", rates.touch, rates.touch, " GB/s");
  row("copying", rates.f32.bandwidth, rates.f64.bandwidth, " GB/s");
  row("activations and pooling", rates.f32.elementwise, rates.f64.elementwise, " GB/s");
  for (std::size_t i = 0; i < rates.f32.convolutions.size(); ++i) {
    const ntk::ConvolutionRate& single = rates.f32.convolutions[i];
    const ntk::ConvolutionRate& twice = rates.f64.convolutions[i];
    const auto three = [](const ntk::ConvolutionRate& c) {
      return fmt::format("{} / {} / {} GFLOP/s", significant(c.forward * 1e-9), significant(c.reverse * 1e-9),
                         significant(c.weight_gradient * 1e-9));
    };
    rows.push_back({fmt::format("conv {}x{}/{}, {}->{}, {}x{}", single.kernel, single.kernel, single.stride,
                                single.c_in, single.c_out, single.side, single.side),
                    three(single), three(twice)});
  }
  return rows;
}

}  // namespace

void run_doctor(const Context& context) {
  const Options& options = context.options;
  const Workers workers(options.threads);
  const CpuInfo cpu = cpu_info();
  const MachineRates rates = measure_rates(workers);
  const std::vector<datasets::Found> found = datasets::list();
  std::vector<std::string> available;
  for (const Isa isa : available_isas()) available.emplace_back(isa_name(isa));
  const std::string active(isa_name(active_isa()));
  const std::filesystem::path kept = rates_path();
  std::optional<MeasuredRates> kernel_rates;
  std::string problem;
  if (options.measure) {
    kernel_rates = measure_rates_now(workers.count());
    problem = store_rates(kept, *kernel_rates);
  } else {
    kernel_rates = read_rates(kept);
  }

  if (options.json) {
    nlohmann::ordered_json json;
    json["program"] = "gradgram";
    json["version"] = version();
    json["cpu"] = cpu.name;
    json["cores"] = cpu.cores;
    json["memory_bytes"] = cpu.memory_bytes;
    json["default_memory_budget_bytes"] = memory_budget(options);
    json["instruction_set"] = active;
    json["instruction_sets_available"] = available;
    json["blis_kernels"] = blas::kernel_set();
    json["rates"] = {{"threads", rates.threads},
                     {"fma_f32_flop_per_second", rates.fma_f32},
                     {"fma_f64_flop_per_second", rates.fma_f64},
                     {"sgemm_one_thread_flop_per_second", rates.sgemm},
                     {"sgemm_all_threads_flop_per_second", rates.sgemm_all},
                     {"dgemm_one_thread_flop_per_second", rates.dgemm},
                     {"bandwidth_bytes_per_second", rates.bandwidth}};
    json["kernel_rates"] = nullptr;
    if (kernel_rates) {
      json["kernel_rates"] = to_json(kernel_rates->rates);
      json["kernel_rates"]["measured"] = kernel_rates->when;
      json["kernel_rates"]["scratch"] = kernel_rates->scratch.string();
    }
    json["kernel_rates_file"] = kept.string();
    if (!problem.empty()) json["kernel_rates_not_kept"] = problem;
    json["data_sets"] = nlohmann::ordered_json::array();
    for (const datasets::Found& set : found) {
      json["data_sets"].push_back({{"name", set.name}, {"found", !set.where.empty()}, {"where", set.where}});
    }
    context.out << json.dump(2) << '\n';
    return;
  }
  const auto share = [&](double value, double of) {
    return of > 0 ? percent(value / of) : std::string("n/a");
  };
  fmt::print(context.out, "gradgram {}\n", version());
  context.out << table(
      {{"processor", fmt::format("{}, {} core{}", cpu.name, cpu.cores, cpu.cores == 1 ? "" : "s")},
       {"instruction set",
        fmt::format("{} (available: {}; GRADGRAM_ISA forces one)", active, fmt::join(available, ", "))},
       {"BLIS kernels", blas::kernel_set()},
       {"memory", fmt::format("{:.1f} GiB; default budget {:.1f} GiB",
                              static_cast<double>(cpu.memory_bytes) / 1073741824.0,
                              static_cast<double>(memory_budget(options)) / 1073741824.0)}},
      {false, false});
  context.out
      << "\nMeasured just now\n"
      << table(
             {{"fused multiply-add, f32", rate(rates.fma_f32),
               std::string("one thread: the ceiling") + (active_isa() == Isa::Amx ? " of all but AMX" : "")},
              {"fused multiply-add, f64", rate(rates.fma_f64), "one thread"},
              {"matrix product, f32", rate(rates.sgemm),
               "one thread, " + share(rates.sgemm, rates.fma_f32) + " of the ceiling"},
              {"matrix product, f32", rate(rates.sgemm_all), fmt::format("{} threads", rates.threads)},
              {"matrix product, f64", rate(rates.dgemm),
               "one thread, " + share(rates.dgemm, rates.fma_f64) + " of the ceiling"},
              {"memory", significant(rates.bandwidth * 1e-9) + " GB/s", "one thread"}},
             {false, true, false});
  if (kernel_rates) {
    fmt::print(context.out, "\nWhat the plans of kernels reckon with, one thread, measured {}\n",
               kernel_rates->when);
    context.out << table(kernel_rows(kernel_rates->rates), {false, true, true});
    context.out << "  convolutions: forward / input cotangents / gradients of single examples\n";
    fmt::print(context.out, "  {} of that for each of {} threads at once\n",
               percent(kernel_rates->rates.together), workers.count());
    if (!kernel_rates->scratch.empty()) {
      fmt::print(context.out,
                 "  scratch files in {}: {} GB/s written, {} GB/s read, flushed to the disk between\n",
                 kernel_rates->scratch.string(), significant(kernel_rates->rates.scratch.write * 1e-9),
                 significant(kernel_rates->rates.scratch.read * 1e-9));
    }
    fmt::print(context.out, "  {} {}\n", problem.empty() ? "kept in" : "not kept in", kept.string());
    if (!problem.empty()) fmt::print(context.out, "  {}\n", problem);
  } else {
    context.out << "\nThe rates that the plans of kernels reckon with are not measured yet: --measure does\n";
  }
  context.out << "\nData sets\n";
  std::vector<std::vector<std::string>> rows;
  for (const datasets::Found& set : found)
    rows.push_back({set.name, set.where.empty() ? "not found" : set.where});
  context.out << table(rows, {false, false});
}

}  // namespace gradgram::cli
