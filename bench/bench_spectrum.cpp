// Eigenpairs of a kernel: all by LAPACK on BLIS, values only, and a few by Lanczos. FLOPs are nominal: 4/3
// n^3 for the reduction to tridiagonal form, and 4/3 n^3 (the merges, most of which deflation saves) + 2 n^3
// (the transformation back) for the vectors.

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>

#include "bench/limit.hpp"
#include "engine/blas.hpp"
#include "engine/random.hpp"
#include "engine/tensor.hpp"
#include "ntk/lapack.hpp"
#include "ntk/spectrum.hpp"

namespace gradgram {
namespace {

/// The Gram matrix of n Gaussian points in n / 2 dimensions, plus the identity.
Tensor<double> kernel(std::size_t n) {
  Random random(1);
  const std::size_t features = n / 2;
  Tensor<double> x(Shape{n, features});
  for (double& value : x.span()) value = random.normal();
  Tensor<double> result(Shape{n, n});
  for (std::size_t i = 0; i < n; ++i) result(i, i) = 1;
  blas::gemm(blas::Transpose::No, blas::Transpose::Yes, n, n, features, 1.0 / static_cast<double>(features),
             x.data(), features, x.data(), features, 1.0, result.data(), n);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < i; ++j) result(j, i) = result(i, j);
  }
  return result;
}

double cube(std::size_t n) {
  return std::pow(static_cast<double>(n), 3);
}

void dsyevd(benchmark::State& state) {
  const auto n = static_cast<std::size_t>(state.range(0));
  const bool vectors = state.range(1) != 0;
  const Tensor<double> original = kernel(n);
  Tensor<double> values(Shape{n});
  bench::Limit<double> limit;
  for (auto _ : state) {
    state.PauseTiming();
    Tensor<double> matrix = original.clone();
    state.ResumeTiming();
    ntk::lapack::symmetric_eigen(matrix, values.span(), vectors);
    benchmark::ClobberMemory();
  }
  double trace = 0;
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    trace += original(i, i);
    sum += values(i);
  }
  if (!(std::abs(trace - sum) <= 1e-10 * trace)) state.SkipWithError("wrong result");
  limit.report(state, (vectors ? 14.0 / 3 : 4.0 / 3) * cube(n));
  state.SetLabel(blas::kernel_set());
}

/// The whole call: checks, copy, eigenpairs, residuals, signs.
void whole(benchmark::State& state) {
  const auto n = static_cast<std::size_t>(state.range(0));
  const auto top = static_cast<std::size_t>(state.range(1));
  const Tensor<double> matrix = kernel(n);
  double residual = 0;
  for (auto _ : state) {
    const ntk::Spectrum found = ntk::spectrum(matrix, {.top = top});
    residual = found.residual / found.values.front();
  }
  if (!(residual <= 1e-11)) state.SkipWithError("wrong result");
  state.counters["residual"] = residual;
}

BENCHMARK(dsyevd)
    ->ArgNames({"n", "vectors"})
    ->Args({500, 1})
    ->Args({1500, 1})
    ->Args({1500, 0})
    ->Unit(benchmark::kMillisecond);
BENCHMARK(whole)->ArgNames({"n", "top"})->Args({1500, 0})->Args({1500, 10})->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace gradgram

BENCHMARK_MAIN();
