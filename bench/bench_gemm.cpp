// Matrix products through our door to BLIS, by shape: square, the Gram panels of a kernel, and narrow.

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>

#include "bench/limit.hpp"
#include "engine/blas.hpp"
#include "engine/tensor.hpp"

namespace gradgram {
namespace {

using blas::Transpose;

template <class T>
void gemm(benchmark::State& state) {
  const auto m = static_cast<std::size_t>(state.range(0));
  const auto n = static_cast<std::size_t>(state.range(1));
  const auto k = static_cast<std::size_t>(state.range(2));
  Tensor<T> a(Shape{m, k});
  Tensor<T> b(Shape{n, k});
  Tensor<T> c(Shape{m, n});
  for (std::size_t i = 0; i < m * k; ++i) a.data()[i] = static_cast<T>(static_cast<int>(i % 7) - 3);
  for (std::size_t i = 0; i < n * k; ++i) b.data()[i] = static_cast<T>(static_cast<int>(i % 5) - 2);
  bench::Limit<T> limit;
  for (auto _ : state) {
    blas::gemm(Transpose::No, Transpose::Yes, m, n, k, T(1), a.data(), k, b.data(), k, T(0), c.data(), n);
    benchmark::DoNotOptimize(c.data());
    benchmark::ClobberMemory();
  }
  double expected = 0;
  for (std::size_t i = 0; i < k; ++i)
    expected += static_cast<double>(a(m - 1, i)) * static_cast<double>(b(n - 1, i));
  if (static_cast<double>(c(m - 1, n - 1)) != expected) state.SkipWithError("wrong result");
  limit.report(state, 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k));
  state.SetLabel(blas::kernel_set());
}

void shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"m", "n", "k"});
  benchmark->Args({512, 512, 512})->Args({1024, 1024, 1024})->Args({2000, 2000, 384})->Args({64, 512, 4096});
  benchmark->Args({1, 512, 784})->Args({64, 10, 512})->Args({1024, 64, 576});
  // A wide layer on tape blocks of several sizes: its weights are packed for each.
  benchmark->Args({128, 4096, 4096})->Args({512, 4096, 4096})->Args({1000, 4096, 4096});
  benchmark->MinTime(0.2);
}

BENCHMARK_TEMPLATE(gemm, float)->Apply(shapes);
BENCHMARK_TEMPLATE(gemm, double)->Apply(shapes);

}  // namespace
}  // namespace gradgram

BENCHMARK_MAIN();
