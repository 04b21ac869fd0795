// The empirical kernel: one tile, whole kernels, the diagonal. What whole kernels print:
//   GFLOP/s   useful floating-point operations a second, a multiply-add being two:
//             forward      2 L d_in d_out per example and parameter use,
//             reverse      as much per output, the first layer left out (nobody wants its inputs'
//             cotangents), forming      as much per output again where gradients are materialized,
//             contraction  per pair of the lower triangle, n (n + 1) / 2 of them: 2 O P materialized,
//                          2 (d_in + O d_out) outer, 2 (L_in^2 c_in + O L_out^2 c_out) by positions.
//             Packing, padding, tiles above the diagonal, recomputed passes and activations are not counted.
//   of_fma    the share of the multiply-add peak of as many cores, probed before and after;
//   of_gemm   the share of what blas::gemm reaches on as many;
//   gram_part the contraction's part of the operations;
//   passes_s, contraction_s  processor seconds of all threads in either: the last kernel's;
//   planned_MB, peak_MB  what the plan takes and the peak of resident memory during the case (Linux).
// Each whole kernel runs once before it is timed: a virtual machine is given memory by its host at the first
// touch, and takes up to twice as long then.

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "bench/inputs.hpp"
#include "bench/limit.hpp"
#include "engine/random.hpp"
#include "ntk/contract.hpp"
#include "ntk/planned_kernel.hpp"

namespace gradgram {
namespace {

using bench::network;
using bench::normal;

/// Useful operations of a symmetric kernel of n examples.
struct Useful {
  double passes = 0, contraction = 0;
  double total() const { return passes + contraction; }
};

Useful useful_flop(const ntk::Plan& plan) {
  Useful useful;
  const auto n = static_cast<double>(plan.request.rows);
  const auto seeds = static_cast<double>(plan.request.seeds);
  const double pairs = n * (n + 1) / 2;
  for (std::size_t u = 0; u < plan.uses.size(); ++u) {
    const ntk::PlannedUse& use = plan.uses[u];
    const auto in = static_cast<double>(use.d_in);
    const auto out = static_cast<double>(use.d_out);
    const auto positions = static_cast<double>(use.positions);
    const double affine = 2 * n * positions * in * out;
    useful.passes += affine;
    if (u + 1 < plan.uses.size()) useful.passes += seeds * affine;
    switch (use.way) {
      case ntk::Way::Materialize:
        useful.passes += seeds * affine;
        useful.contraction += pairs * 2 * seeds * (in + (use.bias == kNoParameter ? 0 : 1)) * out;
        break;
      case ntk::Way::Outer:
        useful.contraction += pairs * 2 * (in + seeds * out);
        break;
      case ntk::Way::PositionGram: {
        const ConvGeometry g = use.position_geometry();
        const auto pixels = static_cast<double>(g.in_pixels());
        useful.contraction +=
            pairs * 2 * (pixels * pixels * static_cast<double>(g.c_in) + seeds * positions * positions * out);
        break;
      }
    }
  }
  return useful;
}

/// Peak of resident memory since it was last forgotten.
void forget_peak() {
  std::ofstream("/proc/self/clear_refs") << 5;
}
double peak_megabytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != "VmHWM:") continue;
    double kibibytes = 0;
    status >> kibibytes;
    return kibibytes * 1.024e-3;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

struct Case {
  const char* text;
  Shape input;
  std::size_t n;
  std::size_t outputs = 1;
  std::size_t memory = 0;
};

/// Arguments: threads, and 0 or what to put in place of the plan's tile and tape block.
void whole_kernel(benchmark::State& state, const Case& c) {
  const auto net = network(c.text, c.input, c.outputs);
  const auto x = normal(c.input.with_outer(c.n));
  const Workers workers(static_cast<std::size_t>(state.range(0)));
  ntk::KernelOptions options;
  options.memory = c.memory;
  ntk::KernelTimings timings;
  options.timings = &timings;
  ntk::Plan plan = ntk::plan_for<float>(net, x.view(), nullptr, options, workers.count());
  if (state.range(1) != 0) plan.tile = static_cast<std::size_t>(state.range(1));
  if (state.range(2) != 0) plan.tape_block = static_cast<std::size_t>(state.range(2));
  const auto run = [&] {
    const auto k = ntk::planned_kernel<float>(net, x.view(), nullptr, options, plan, workers);
    if (!(k.values(c.n - 1, c.n - 1) > 0)) state.SkipWithError("wrong result");
    benchmark::DoNotOptimize(k.values.data());
  };
  forget_peak();
  run();
  bench::Limit<float> limit;
  for (auto _ : state) run();
  const Useful useful = useful_flop(plan);
  limit.report(state, useful.total(), workers.count());
  state.counters["gram_part"] = useful.contraction / useful.total();
  state.counters["passes_s"] = timings.passes;
  state.counters["contraction_s"] = timings.contraction;
  state.counters["tile"] = static_cast<double>(plan.tile);
  state.counters["tape_block"] = static_cast<double>(plan.tape_block);
  state.counters["planned_MB"] = static_cast<double>(plan.total_bytes()) * 1e-6;
  state.counters["peak_MB"] = peak_megabytes();
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
  std::vector<float> row(plan.row_width);
  for (std::size_t i = 0; i < 2 * side; ++i) {
    for (float& value : row) value = static_cast<float>(random.uniform());
    factors.rows().pack(row.data(), row.size(), 1, 0, row.size(), i, 1);
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
  const std::string wide = "dense(4096) relu dense(4096) relu dense(4096) relu ";
  const std::string wide1 = wide + "dense(1)";
  const std::string wide10 = wide + "dense(10)";
  const struct {
    const char* name;
    Case what;
  } cases[] = {
      {"kernel/cnn3:channels=32/2000", {"cnn3:channels=32", image, 2000}},
      {"kernel/mlp 784-1024x3-1/2000", {"mlp:width=1024,depth=3", Shape{784}, 2000}},
      {"kernel/cnn3:channels=64/1000", {"cnn3:channels=64", image, 1000}},
      {"kernel/cnn3:channels=64/5000", {"cnn3:channels=64", image, 5000}},
      {"kernel/mlp 784-4096x3-1/2000", {wide1.c_str(), Shape{784}, 2000}},
      {"kernel/mlp 784-4096x3-10 trace-mean/2000", {wide10.c_str(), Shape{784}, 2000, 10}},
      {"kernel/resnet18-plain 10 trace-mean/256", {"resnet18-plain", image, 256, 10, std::size_t{12} << 30}},
      {"kernel/conv 512-512 4x4/256", {"conv(512,3) gap dense(1)", Shape{4, 4, 512}, 256}},
  };
  for (const auto& c : cases) {
    benchmark::RegisterBenchmark(c.name, whole_kernel, c.what)
        ->ArgNames({"threads", "tile", "tape_block"})
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime()
        ->Args({1, 0, 0})
        ->Args({2, 0, 0});
  }
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
