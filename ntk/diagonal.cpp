#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "engine/cpu.hpp"
#include "engine/sinks.hpp"
#include "ntk/contract.hpp"
#include "ntk/factors.hpp"
#include "ntk/kernel.hpp"
#include "ntk/passes.hpp"
#include "ntk/plan.hpp"
#include "ntk/planned_kernel.hpp"
#include "ntk/thread_seconds.hpp"

namespace gradgram::ntk {
namespace {

void check_finite(const double* values, std::size_t count, std::size_t example) {
  for (std::size_t i = 0; i < count; ++i) {
    if (!std::isfinite(values[i])) {
      throw NumericError("diagonal: entry " + std::to_string(example) + " is " + std::to_string(values[i]) +
                         ": the gradient of example " + std::to_string(example) + " leaves the numbers");
    }
  }
}

PlanRequest diagonal_request(std::size_t outputs, std::size_t examples, const KernelOptions& options,
                             std::size_t workers) {
  PlanRequest request;
  request.rows = request.columns = examples;
  request.seeds = seed_count(options.reduce, outputs);
  request.full = options.reduce == Reduce::Full;
  request.workers = workers;
  request.memory = options.memory == 0 ? cpu_info().memory_bytes / 2 : options.memory;
  if (options.rates != nullptr) request.rates = *options.rates;
  return request;
}

}  // namespace

template <class T>
Plan diagonal_plan(const Module<T>& module, TensorView<const T> x, const KernelOptions& options,
                   std::size_t workers) {
  return plan_diagonal(profile<T>(module, x.slice(0, 1)),
                       diagonal_request(module.outputs(), x.shape()[0], options, workers));
}

template <class T>
std::size_t least_diagonal_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t examples,
                                 const KernelOptions& options, std::size_t workers) {
  return least_diagonal_bytes(profile, diagonal_request(module.outputs(), examples, options, workers));
}

template <class T>
Tensor<double> diagonal(const Module<T>& module, TensorView<const T> x, const KernelOptions& options,
                        const Workers& workers) {
  check_inputs("diagonal", "x", x.shape(), module.input_shape());
  const std::size_t n = x.shape()[0];
  const std::size_t outputs = module.outputs();
  check_reduction("diagonal", options, outputs, n);
  if (options.per_parameter) {
    throw ArgumentError(
        "diagonal: per_parameter is not available; take the diagonals of kernel()'s matrices");
  }
  const bool full = options.reduce == Reduce::Full;
  Tensor<double> result(full ? Shape{n, outputs, outputs} : Shape{n});
  if (n == 0) return result;

  // The gradients of one tape block meet nobody else's: the plan of a kernel of that many examples, for every
  // worker.
  const Plan plan = diagonal_plan(module, x, options, workers.count());
  if (options.planned) options.planned(plan);

  std::vector<std::size_t> shared;
  for (const PlannedUse& use : plan.uses) {
    if (!use.weight_first) shared.push_back(use.weight);
    if (!use.bias_first) shared.push_back(use.bias);
  }
  std::sort(shared.begin(), shared.end());
  shared.erase(std::unique(shared.begin(), shared.end()), shared.end());

  std::vector<std::unique_ptr<Arena>> arenas;
  std::vector<std::unique_ptr<Factors<T>>> factors;
  for (std::size_t w = 0; w < workers.count(); ++w) {
    arenas.push_back(std::make_unique<Arena>(plan.arena_bytes()));
    if (full) factors.push_back(std::make_unique<Factors<T>>(plan, plan.tape_block));
  }

  const std::size_t blocks = (n + plan.tape_block - 1) / plan.tape_block;
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  const auto begin_of_all = Clock::now();
  std::vector<double> seconds(blocks, 0.0);
  const double weight = options.reduce == Reduce::TraceMean ? 1.0 / static_cast<double>(outputs) : 1.0;
  workers.run(
      blocks,
      [&](std::size_t block, std::size_t worker) {
        const double start = thread_seconds();
        const std::size_t begin = block * plan.tape_block;
        const std::size_t count = std::min(plan.tape_block, n - begin);
        const TensorView<const T> examples = x.slice(begin, begin + count);
        const auto labels = options.labels.empty() ? options.labels : options.labels.subspan(begin, count);
        Arena& arena = *arenas[worker];
        if (full) {
          const Factors<T>& own = *factors[worker];
          record_factors(module, plan, examples, options, labels, own, 0, arena);
          for (std::size_t e = 0; e < count; ++e) {
            double* out = result.data() + (begin + e) * outputs * outputs;
            contract_tile<T>(plan, own, own, {e, 1, e, 1, true}, arena, [&](std::size_t, const Tile& tile) {
              for (std::size_t k = 0; k < outputs; ++k) {
                for (std::size_t l = 0; l <= k; ++l)
                  out[k * outputs + l] = out[l * outputs + k] = tile.at(k, l);
              }
            });
            check_finite(out, outputs * outputs, begin + e);
          }
          seconds[block] = thread_seconds() - start;
          return;
        }
        double* out = result.data() + begin;
        run_passes(module, examples, options, labels, arena, [&](std::size_t, const auto& reverse) {
          SquaredNormSink<T> sink({out, count}, module.parameters(), shared);
          reverse(sink);
          sink.finish();
        });
        for (std::size_t e = 0; e < count; ++e) {
          out[e] *= weight;
          check_finite(out + e, 1, begin + e);
        }
        seconds[block] = thread_seconds() - start;
      },
      options.progress, options.stop);
  if (options.timings != nullptr) {
    *options.timings = {.passes = std::accumulate(seconds.begin(), seconds.end(), 0.0),
                        .contraction = 0,
                        .wall = seconds_since(begin_of_all)};
  }
  return result;
}

template std::size_t least_diagonal_bytes(const Module<float>&, const ModuleProfile&, std::size_t,
                                          const KernelOptions&, std::size_t);
template std::size_t least_diagonal_bytes(const Module<double>&, const ModuleProfile&, std::size_t,
                                          const KernelOptions&, std::size_t);
template Plan diagonal_plan(const Module<float>&, TensorView<const float>, const KernelOptions&, std::size_t);
template Plan diagonal_plan(const Module<double>&, TensorView<const double>, const KernelOptions&,
                            std::size_t);
template Tensor<double> diagonal(const Module<float>&, TensorView<const float>, const KernelOptions&,
                                 const Workers&);
template Tensor<double> diagonal(const Module<double>&, TensorView<const double>, const KernelOptions&,
                                 const Workers&);

}  // namespace gradgram::ntk
