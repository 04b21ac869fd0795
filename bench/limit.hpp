#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>

#include "engine/machine.hpp"

namespace gradgram::bench {

/// The limit that a benchmark is held against: fused multiply-adds and the matrix product, probed on this
/// core right before and right after the timed loop, because the clock drifts by some ten percent within
/// minutes.
///
///     bench::Limit<float> limit;
///     for (auto _ : state) work();
///     limit.report(state, flop_of_one_iteration);
///
/// prints `GFLOP/s`, `of_fma` (the share of the multiply-add peak of the cores in use) and `of_gemm` (the
/// share of the rate of blas::gemm on as many).
template <class T>
class Limit {
 public:
  /// `isa`: whose multiply-adds are the limit.
  explicit Limit(Isa isa = active_isa())
      : isa_(isa), fma_(probe_fma_rate<T>(isa)), gemm_(probe_gemm_rate<T>()) {}

  /// `cores`: how many threads worked at once. Multi-threaded work needs UseRealTime() on the benchmark.
  void report(benchmark::State& state, double flop, std::size_t cores = 1) {
    using benchmark::Counter;
    const double fma = (fma_ + probe_fma_rate<T>(isa_)) / 2 * static_cast<double>(cores);
    const double gemm = (gemm_ + probe_gemm_rate<T>()) / 2 * static_cast<double>(cores);
    state.counters["GFLOP/s"] = Counter(flop * 1e-9, Counter::kIsIterationInvariantRate);
    state.counters["of_fma"] = Counter(flop / fma, Counter::kIsIterationInvariantRate);
    if (isa_ == active_isa())
      state.counters["of_gemm"] = Counter(flop / gemm, Counter::kIsIterationInvariantRate);
  }

 private:
  Isa isa_;
  double fma_;
  double gemm_;
};

}  // namespace gradgram::bench
