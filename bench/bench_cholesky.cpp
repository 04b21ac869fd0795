// Equations with a kernel: the blocked Cholesky factorization, n^3 / 3 FLOP, on one thread and on two, and
// right-hand sides, 2 n^2 FLOP a column. Rates beside those of dgemm on as many cores.

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>

#include "bench/limit.hpp"
#include "engine/parallel.hpp"
#include "engine/random.hpp"
#include "engine/tensor.hpp"
#include "ntk/cholesky.hpp"

namespace gradgram {
namespace {

/// Symmetric with a dominant diagonal: no kernel, but as many operations, and made in n^2 of them.
Tensor<double> matrix(std::size_t n) {
  Random random(1);
  Tensor<double> result(Shape{n, n});
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < i; ++j) result(i, j) = result(j, i) = random.normal();
    result(i, i) = 4 * std::sqrt(static_cast<double>(n));
  }
  return result;
}

void factor(benchmark::State& state) {
  const auto n = static_cast<std::size_t>(state.range(0));
  const auto threads = static_cast<std::size_t>(state.range(1));
  const Tensor<double> original = matrix(n);
  const Workers workers(threads);
  Tensor<double> y(Shape{n});
  for (std::size_t i = 0; i < n; ++i) y(i) = 1 + static_cast<double>(i % 7);
  bench::Limit<double> limit;
  double residual = 0;
  for (auto _ : state) {
    state.PauseTiming();
    Tensor<double> copy = original.clone();
    state.ResumeTiming();
    const ntk::CholeskyFactor found(std::move(copy), workers);
    state.PauseTiming();
    Tensor<double> x = y.clone();
    found.solve(x, workers);
    residual = found.residual(x, y, workers);
    state.ResumeTiming();
  }
  if (!(residual <= 1e-12)) state.SkipWithError("wrong result");
  limit.report(state, std::pow(static_cast<double>(n), 3) / 3, threads);
}

void solve(benchmark::State& state) {
  const auto n = static_cast<std::size_t>(state.range(0));
  const auto columns = static_cast<std::size_t>(state.range(1));
  const auto threads = static_cast<std::size_t>(state.range(2));
  const Workers workers(threads);
  const ntk::CholeskyFactor found(matrix(n), workers);
  Tensor<double> y(Shape{n, columns});
  for (double& value : y.span()) value = 1;
  bench::Limit<double> limit;
  for (auto _ : state) {
    found.solve(y, workers);
    benchmark::ClobberMemory();
  }
  if (!std::isfinite(y.data()[0])) state.SkipWithError("wrong result");
  const auto size = static_cast<double>(n);
  limit.report(state, 2 * size * size * static_cast<double>(columns), threads);
}

BENCHMARK(factor)
    ->ArgNames({"n", "threads"})
    ->Args({1000, 1})
    ->Args({4000, 1})
    ->Args({4000, 2})
    ->Args({8000, 1})
    ->Args({8000, 2})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(solve)
    ->ArgNames({"n", "columns", "threads"})
    ->Args({4000, 1, 1})
    ->Args({4000, 10, 1})
    ->Args({4000, 1000, 1})
    ->Args({4000, 1000, 2})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace gradgram

BENCHMARK_MAIN();
