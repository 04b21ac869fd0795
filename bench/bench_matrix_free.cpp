// The kernel without its matrix: products with one vector and with several, with and without kept forward
// passes, and random projection. `passes` is the time of a product in units of one forward pass over the same
// examples.

#include <benchmark/benchmark.h>

#include <chrono>
#include <cmath>
#include <cstddef>

#include "bench/inputs.hpp"
#include "bench/limit.hpp"
#include "ntk/kernel_operator.hpp"
#include "ntk/projection.hpp"

namespace gradgram {
namespace {

using bench::network;
using bench::normal;

void apply(benchmark::State& state, const char* text, Shape input, std::size_t n) {
  const auto net = network(text, input);
  const auto x = normal(input.with_outer(n));
  const auto vectors = static_cast<std::size_t>(state.range(0));
  const Workers workers;
  ntk::OperatorOptions options;
  options.keep_passes = state.range(1) != 0;
  ntk::KernelOperator<float> k(net, x, options, workers);
  Tensor<double> v(Shape{vectors, n});
  for (double& value : v.span()) value = 1;
  Tensor<double> product(v.shape());
  k.apply(v, product);  // records what is kept
  const auto start = std::chrono::steady_clock::now();
  evaluate<float>(net, x, workers);
  const std::chrono::duration<double> forward = std::chrono::steady_clock::now() - start;
  for (auto _ : state) {
    k.apply(v, product);
    if (!std::isfinite(product(0, n - 1))) state.SkipWithError("wrong result");
  }
  state.counters["products/s"] =
      benchmark::Counter(static_cast<double>(vectors), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["passes"] =
      benchmark::Counter(static_cast<double>(vectors) * forward.count(),
                         benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.counters["planned_MB"] = static_cast<double>(k.planned_bytes()) * 1e-6;
}

void project(benchmark::State& state, const char* text, Shape input, std::size_t n) {
  const auto net = network(text, input);
  const auto x = normal(input.with_outer(n));
  const Workers workers;
  for (auto _ : state) {
    const auto projected = ntk::project_gradients<float>(net, x, {}, workers);
    if (!std::isfinite(projected.features(n - 1, 0))) state.SkipWithError("wrong result");
  }
  state.counters["examples/s"] =
      benchmark::Counter(static_cast<double>(n), benchmark::Counter::kIsIterationInvariantRate);
}

constexpr const char* kCnn =
    "conv(32,3) relu maxpool(2) conv(32,3) relu maxpool(2) conv(32,3) relu gap dense(1)";
constexpr const char* kMlp = "dense(1024) relu dense(1024) relu dense(1)";

void cnn(benchmark::State& state) {
  apply(state, kCnn, {32, 32, 3}, 1000);
}
void mlp(benchmark::State& state) {
  apply(state, kMlp, {784}, 2000);
}
void project_cnn(benchmark::State& state) {
  project(state, kCnn, {32, 32, 3}, 1000);
}
void project_mlp(benchmark::State& state) {
  project(state, kMlp, {784}, 2000);
}

BENCHMARK(cnn)
    ->ArgNames({"vectors", "keep"})
    ->ArgsProduct({{1, 8}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(mlp)
    ->ArgNames({"vectors", "keep"})
    ->ArgsProduct({{1, 8}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(project_cnn)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(project_mlp)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace gradgram

BENCHMARK_MAIN();
