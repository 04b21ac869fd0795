#include <fmt/format.h>
#include <fmt/ostream.h>

#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/commands.hpp"
#include "cli/inputs.hpp"
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
  context.out << "\nMeasured just now\n"
              << table({{"fused multiply-add, f32", rate(rates.fma_f32), "one thread: the ceiling"},
                        {"fused multiply-add, f64", rate(rates.fma_f64), "one thread"},
                        {"matrix product, f32", rate(rates.sgemm),
                         "one thread, " + share(rates.sgemm, rates.fma_f32) + " of the ceiling"},
                        {"matrix product, f32", rate(rates.sgemm_all),
                         fmt::format("{} threads", rates.threads)},
                        {"matrix product, f64", rate(rates.dgemm),
                         "one thread, " + share(rates.dgemm, rates.fma_f64) + " of the ceiling"},
                        {"memory", significant(rates.bandwidth * 1e-9) + " GB/s", "one thread"}},
                       {false, true, false});
  context.out << "\nData sets\n";
  std::vector<std::vector<std::string>> rows;
  for (const datasets::Found& set : found)
    rows.push_back({set.name, set.where.empty() ? "not found" : set.where});
  context.out << table(rows, {false, false});
}

}  // namespace gradgram::cli
