// The position Gram way of a convolution, one core: a block of examples against another, from their inputs
// and cotangents. `of_fma` counts the products that are really done, of which formed gradients need `fewer`
// times as many: k^2 c_in c_out a pair and output. `cheaper`: the time that those would take at the rate of
// the packed product of rows, measured before and after (forming and packing not counted), over this one.

#include <benchmark/benchmark.h>

#include <cstddef>
#include <ctime>
#include <vector>

#include "bench/inputs.hpp"
#include "bench/limit.hpp"
#include "engine/cpu.hpp"
#include "ntk/position_gram.hpp"

namespace gradgram {
namespace {

struct Stage {
  const char* name;
  std::size_t pixels, c_in, c_out, window, stride, seeds;
};

using bench::normal;

/// FLOP/s of products of rows that are packed already, a tile of 336 x 336; time of the processor.
double product_rate() {
  constexpr std::size_t kSide = 336;
  constexpr std::size_t kDepth = simd::kGramDepth<float>;
  constexpr int kRepeats = 40;
  const Tensor<float> rows = normal(Shape{kSide, kDepth});
  Tensor<float> packed(Shape{kSide, kDepth});
  Tensor<double> sum(Shape{kSide, kSide});
  std::vector<std::byte> scratch(kernels<float>().gram_scratch_bytes(kSide));
  kernels<float>().gram_pack(rows.data(), kDepth, kSide, kDepth, packed.data());
  const std::clock_t begin = std::clock();
  for (int i = 0; i < kRepeats; ++i) {
    kernels<float>().gram_product({.rows = packed.data(),
                                   .columns = packed.data(),
                                   .depth = kDepth,
                                   .row_count = kSide,
                                   .column_count = kSide,
                                   .sum = sum.data(),
                                   .sum_stride = kSide,
                                   .lower = false,
                                   .accumulate = i > 0,
                                   .scratch = scratch.data()});
  }
  benchmark::DoNotOptimize(sum.data());
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  return 2.0 * kRepeats * kSide * kSide * kDepth / seconds;
}

void contract(benchmark::State& state, const Stage& stage) {
  constexpr std::size_t kRows = 96;
  constexpr std::size_t kColumns = 96;
  const ConvGeometry g = conv_geometry(stage.pixels, stage.pixels, stage.c_in, stage.c_out, stage.window,
                                       stage.window, stage.stride, stage.stride, {});
  const ntk::PositionGram<float> gram(g, 1, stage.seeds);
  const Tensor<float> inputs = normal(Shape{kRows + kColumns, g.in_pixels() * g.c_in});
  const Tensor<float> cotangents = normal(Shape{kRows + kColumns, stage.seeds * g.out_pixels() * g.c_out});
  const auto side = [&](std::size_t first, std::size_t count) {
    return ntk::PositionGram<float>::Side{inputs.data() + first * inputs.shape()[1], inputs.shape()[1],
                                          cotangents.data() + first * cotangents.shape()[1],
                                          cotangents.shape()[1], count};
  };
  Tensor<double> weight(Shape{kRows, kColumns}), bias(Shape{kRows, kColumns});
  Arena arena(gram.scratch_bytes());
  bench::Limit<float> limit;
  const double rate = product_rate();
  const std::clock_t begin = std::clock();
  for (auto _ : state) {
    gram.contract(side(0, kRows), side(kRows, kColumns), false, {weight.data(), bias.data(), kColumns},
                  arena);
    benchmark::DoNotOptimize(weight.data());
  }
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  const double formed = 2 * static_cast<double>(g.weights() * stage.seeds) * 2 / (rate + product_rate());
  const auto pairs = static_cast<double>(kRows * kColumns);
  limit.report(state, 2 * gram.multiply_adds() * pairs);
  state.counters["us_per_pair"] = benchmark::Counter(
      pairs * 1e-6, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.counters["cheaper"] = formed * pairs * static_cast<double>(state.iterations()) / seconds;
  state.counters["fewer"] = static_cast<double>(g.weights() * stage.seeds) / gram.multiply_adds();
}

}  // namespace
}  // namespace gradgram

int main(int argc, char** argv) {
  using namespace gradgram;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const Stage& stage :
       {Stage{"512 at 4x4", 4, 512, 512, 3, 1, 1}, Stage{"256 at 8x8", 8, 256, 256, 3, 1, 1},
        Stage{"512 at 4x4, 10 outputs", 4, 512, 512, 3, 1, 10},
        Stage{"256 at 8x8, 10 outputs", 8, 256, 256, 3, 1, 10},
        Stage{"256-512 from 8x8, stride 2", 8, 256, 512, 3, 2, 1},
        Stage{"256-512 from 8x8, stride 2, 1x1", 8, 256, 512, 1, 2, 1},
        Stage{"512 at 7x7", 7, 512, 512, 3, 1, 1}, Stage{"64 at 8x8", 8, 64, 64, 3, 1, 1}}) {
    benchmark::RegisterBenchmark(stage.name, contract, stage)->Unit(benchmark::kMillisecond);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
