// The empirical kernel: one tile, whole kernels, the diagonal. `GFLOP/s` counts useful work only: for whole
// kernels the multiply-adds of the lower triangle (n^2 P, or the factors of the outer way), passes not
// counted; `of_gemm` is the share of what the matrix product reaches on as many cores.

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <string>

#include "bench/limit.hpp"
#include "engine/random.hpp"
#include "models/network.hpp"
#include "ntk/contract.hpp"
#include "ntk/planned_kernel.hpp"

namespace gradgram {
namespace {

Tensor<float> normal(Shape shape) {
  Random random(1);
  Tensor<float> values(shape);
  for (float& value : values.span()) value = static_cast<float>(random.normal());
  return values;
}

models::Network<float> network(const char* text, Shape input) {
  return models::Network<float>(models::parse(text, input, {.outputs = 1}), {.seed = 1});
}

/// Multiply-adds of one pair of examples, twice.
double pair_flop(const ntk::Plan& plan) {
  double flop = 0;
  for (const ntk::PlannedUse& use : plan.uses) {
    const auto in = static_cast<double>(use.d_in);
    const auto out = static_cast<double>(use.d_out);
    flop += 2 * (use.way == ntk::Way::Outer ? in + out : (in + 1) * out);
  }
  return flop;
}

void whole_kernel(benchmark::State& state, const char* text, Shape input, std::size_t n) {
  const auto net = network(text, input);
  const auto x = normal(input.with_outer(n));
  const Workers workers;
  ntk::Plan plan = ntk::plan_for<float>(net, x.view(), nullptr, {}, workers.count());
  if (state.range(0) != 0) plan.tile = static_cast<std::size_t>(state.range(0));
  if (state.range(1) != 0) plan.tape_block = static_cast<std::size_t>(state.range(1));
  bench::Limit<float> limit;
  for (auto _ : state) {
    const auto k = ntk::planned_kernel<float>(net, x.view(), nullptr, {}, plan, workers);
    if (!(k.values(n - 1, n - 1) > 0)) state.SkipWithError("wrong result");
    benchmark::DoNotOptimize(k.values.data());
  }
  const auto examples = static_cast<double>(n);
  limit.report(state, examples * (examples + 1) / 2 * pair_flop(plan), workers.count());
  state.counters["tile"] = static_cast<double>(plan.tile);
  state.counters["tape_block"] = static_cast<double>(plan.tape_block);
  state.counters["planned_MB"] = static_cast<double>(plan.total_bytes()) * 1e-6;
}

void passes_only(benchmark::State& state, const char* text, Shape input, std::size_t n) {
  const auto net = network(text, input);
  const auto x = normal(input.with_outer(n));
  const Workers workers;
  for (auto _ : state) {
    const auto d = ntk::diagonal<float>(net, x, {}, workers);
    if (!(d(n - 1) > 0)) state.SkipWithError("wrong result");
  }
  state.counters["examples/s"] =
      benchmark::Counter(static_cast<double>(n), benchmark::Counter::kIsIterationInvariantRate);
}

/// One tile of materialized rows, P = 18,528 (the convolutions of cnn3:channels=32), on one core.
void tile(benchmark::State& state) {
  const auto side = static_cast<std::size_t>(state.range(0));
  const bool diagonal = state.range(1) != 0;
  ntk::ModuleProfile profile;
  ntk::PlannedUse use;
  use.convolution = true;
  use.d_in = 18527;
  use.d_out = 1;
  profile.uses = {use};
  profile.parameter_names = {"w"};
  profile.parameter_sizes = {18528};
  profile.outputs = 1;
  profile.element_bytes = sizeof(float);
  profile.tape_bytes = 1;
  ntk::PlanRequest request;
  request.rows = request.columns = 2 * side;
  request.memory = std::size_t{1} << 32;
  request.ways = {{"w", ntk::Way::Materialize}};
  ntk::Plan plan = ntk::plan_kernel(profile, request);
  plan.tile = side;
  const ntk::Factors<float> factors(plan, 2 * side);
  Random random(1);
  for (std::size_t i = 0; i < 2 * side; ++i) {
    for (std::size_t p = 0; p < plan.row_width; ++p) {
      factors.rows().row(i)[p] = static_cast<float>(random.uniform());
    }
  }
  Arena arena(plan.arena_bytes());
  const ntk::TileRange range{side, side, diagonal ? side : 0, side, diagonal};
  bench::Limit<float> limit;
  for (auto _ : state) {
    ntk::contract_tile<float>(plan, factors, factors, range, arena, [&](std::size_t, const ntk::Tile& t) {
      if (!(t.at(side - 1, 0) > 0)) state.SkipWithError("wrong result");
    });
  }
  const auto s = static_cast<double>(side);
  limit.report(state, (diagonal ? s * (s + 1) / 2 : s * s) * 2 * 18528);
}

}  // namespace
}  // namespace gradgram

int main(int argc, char** argv) {
  using namespace gradgram;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const std::int64_t side : {128, 256, 384, 512}) {
    benchmark::RegisterBenchmark("tile", tile)
        ->ArgNames({"side", "diagonal"})
        ->Args({side, 0})
        ->Args({side, 1});
  }
  const Shape image{32, 32, 3};
  const auto whole = [](const char* name, const char* text, Shape input, std::size_t n) {
    return benchmark::RegisterBenchmark(name, whole_kernel, text, input, n)
        ->ArgNames({"tile", "tape_block"})
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  };
  whole("kernel/cnn3:channels=32/2000", "cnn3:channels=32", image, 2000)->Args({0, 0});
  whole("kernel/mlp 784-1024x3-1/2000", "mlp:width=1024,depth=3", Shape{784}, 2000)->Args({0, 0});
  benchmark::RegisterBenchmark("diagonal/cnn3:channels=32/2000", passes_only, "cnn3:channels=32", image, 2000)
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
  benchmark::RegisterBenchmark("diagonal/mlp 784-1024x3-1/2000", passes_only, "mlp:width=1024,depth=3",
                               Shape{784}, 2000)
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
