// Forming the gradients of a convolution and packing them among the factors of a kernel, 32 examples at a
// time, one output. GFLOP/s count the direct products, 2 L d_in d_out per example.

#include <benchmark/benchmark.h>

#include <cstddef>

#include "bench/inputs.hpp"
#include "bench/limit.hpp"
#include "ntk/factors.hpp"

namespace gradgram {
namespace {

/// Examples on a tape, and those whose gradients are held: beyond the caches.
constexpr std::size_t kBlock = 32;
constexpr std::size_t kHeld = 96;

void forming(benchmark::State& state) {
  const auto size = [&](int i) { return static_cast<std::size_t>(state.range(i)); };
  const ConvGeometry g =
      conv_geometry(size(0), size(0), size(1), size(2), size(3), size(3), size(4), size(4), {});
  ntk::ModuleProfile profile;
  ntk::PlannedUse use;
  use.convolution = true;
  use.geometry = g;
  use.positions = g.out_pixels();
  use.d_in = g.patch();
  use.d_out = g.c_out;
  profile.uses = {use};
  profile.parameter_names = {"w"};
  profile.parameter_sizes = {g.weights()};
  profile.outputs = 1;
  profile.element_bytes = sizeof(float);
  profile.tape_bytes = 1;
  ntk::PlanRequest request;
  request.rows = request.columns = kHeld;
  request.memory = std::size_t{1} << 33;
  request.ways = {{"w", ntk::Way::Materialize}};
  ntk::Plan plan = ntk::plan_kernel(profile, request);
  plan.tape_block = kBlock;
  const ntk::Factors<float> factors(plan, kHeld);
  const Tensor<float> x = bench::normal({kBlock, g.in_h, g.in_w, g.c_in});
  const Tensor<float> cotangents = bench::normal({kBlock, g.out_h, g.out_w, g.c_out});
  Arena arena(plan.arena_bytes() + (std::size_t{1} << 24));
  const auto run = [&](std::size_t first) {
    const ArenaScope scope(arena);
    const ntk::FactorMatrix<float> scratch = ntk::scratch_rows<float>(plan, arena);
    ntk::FactorSink<float> sink(plan, factors, first, 0, scratch);
    sink.begin(kBlock);
    sink.use(ConvUse<float>{.weight = 0,
                            .bias = kNoParameter,
                            .weight_scale = 0.5F,
                            .bias_scale = 1,
                            .geometry = g,
                            .inputs = x.view(),
                            .cotangents = cotangents.view()},
             arena);
    sink.finish(kBlock);
  };
  for (std::size_t first = 0; first < kHeld; first += kBlock) run(first);
  std::size_t first = 0;
  bench::Limit<float> limit;
  for (auto _ : state) {
    run(first);
    first = (first + kBlock) % kHeld;
  }
  limit.report(state, 2.0 * kBlock * static_cast<double>(g.out_pixels() * g.weights()));
}

BENCHMARK(forming)
    ->ArgNames({"side", "c_in", "c_out", "kernel", "stride"})
    ->Unit(benchmark::kMicrosecond)
    ->Args({32, 64, 64, 3, 1})
    ->Args({32, 64, 128, 3, 2})
    ->Args({32, 64, 128, 1, 2})
    ->Args({16, 128, 128, 3, 1})
    ->Args({16, 128, 256, 3, 2})
    ->Args({8, 256, 256, 3, 1})
    ->Args({8, 256, 512, 3, 2})
    ->Args({4, 512, 512, 3, 1});

}  // namespace
}  // namespace gradgram

BENCHMARK_MAIN();
