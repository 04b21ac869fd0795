// Infinite-width kernels: time per entry of the matrix, and the share of what bounds it.
//
// Every case computes a rectangular block from a prepared InfiniteKernel, so that every entry is a pair of
// different examples; what belongs to single examples is `prepare_ms`, per example.
//   ms_per_entry     wall time of the block over its entries
//   cpu_ms           processor time of all threads over its entries; what follows is told from it, so that
//   other
//                    work on the machine disturbs it less
//   slots            vector instructions that two pipelines could have issued in the time, per register of
//                    pairs of pixels and layer: the unit in which sizes, precisions and machines compare
//   of_limit         what the recursion cannot do without over what was used: vector instructions (needed
//                    below) at the rate of fused multiply-adds probed before and after, and for vectors the
//                    matrix product of the inputs. A machine that adds beside its multipliers can exceed one.
//                    Models with inner pooling run in f64 inside: in f32 their limit is one of f32 all the
//                    same
// Published by the authors of neural-tangents for CNTK-21 on 32x32x3: global average pooling 112.9 ms per
// entry on more than 56 CPU cores and 2.70 ms on a V100 in f32, 258.6 ms on those CPUs in f64; flatten 0.120
// ms.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <string>
#include <vector>

#include "engine/cpu.hpp"
#include "engine/machine.hpp"
#include "engine/random.hpp"
#include "models/model.hpp"
#include "ntk/infinite/infinite.hpp"

namespace gradgram {
namespace {

/// Additions, multiplications and multiply-adds per register of pairs and layer: two window sums (3 x 3
/// in 3.5 each, neighbours sharing a half), the polynomial, the root, which takes the pipelines as long as
/// three, and 13 more. Not counted: the differences and sums of the images, what obtuse angles of a first
/// layer take more, sums over the plane or over windows, and what a layer in f64 takes more than one in f32.
template <class T>
constexpr double needed_of_planes() {
  const double polynomial = sizeof(T) == 4 ? 7 : 17;
  return 7 + 13 + polynomial + 3;
}

/// The same of cosines of vectors: polynomial, root (in f64 too as an estimate, since the divider would take
/// longer than all the rest), and 8 more.
template <class T>
constexpr double needed_of_cosines() {
  const double polynomial = sizeof(T) == 4 ? 8 : 17;
  const double root = sizeof(T) == 4 ? 6 : 9;
  return 8 + polynomial + root;
}
/// Per register of pairs: 1 - cosine, obtuse angles in the first layer (6), and both norms.
constexpr double kNeededBesideLayers = 12;

struct Case {
  std::string name, text;
  Shape input;
  std::size_t examples;
  double visits;  ///< pairs of pixels times nonlinear layers, per pair of examples
  bool dense = false;
  bool near = false;  ///< nearly all cosines above 1 - 1/64: one direction and a tenth of noise
};

template <class T>
Tensor<T> examples(const Case& what, std::uint64_t seed) {
  std::vector<std::size_t> extents{what.examples};
  for (const std::size_t extent : what.input.extents()) extents.push_back(extent);
  Tensor<T> x{Shape(std::span<const std::size_t>(extents))};
  Random random(seed, 7);
  if (!what.near) {
    for (T& value : x.span()) value = static_cast<T>(random.normal());
    return x;
  }
  Random common(6, 7);
  Tensor<T> shared(what.input);
  for (T& value : shared.span()) value = static_cast<T>(common.normal());
  for (std::size_t i = 0; i < x.size(); ++i) {
    x.data()[i] = shared.data()[i % shared.size()] + static_cast<T>(0.1 * random.normal());
  }
  return x;
}

double lanes(std::size_t bytes) {
  const double width = active_isa() >= Isa::Avx512 ? 64 : active_isa() == Isa::Avx2 ? 32 : 16;
  return width / static_cast<double>(bytes);
}

template <class T>
void kernel(benchmark::State& state, const Case& what, std::size_t threads) {
  using Clock = std::chrono::steady_clock;
  const Tensor<T> x = examples<T>(what, 7);
  const Tensor<T> y = examples<T>(what, 8);
  const models::Model model = models::parse(what.text, what.input);
  const Workers workers(threads);
  const auto start = Clock::now();
  ntk::InfiniteKernel<T> prepared(model, {}, x.view(), y.view(), {}, workers);
  const std::chrono::duration<double> preparation = Clock::now() - start;
  const std::size_t n = what.examples;
  // The larger ones in strips of whole tiles, so that the result does not fill the memory.
  const std::size_t strip = std::min<std::size_t>(n, 1024);
  Tensor<T> out(Shape{strip, n});
  const double entries = static_cast<double>(n) * static_cast<double>(n);
  double rate = probe_fma_rate<T>();
  double wall = 0;
  double best = 0;
  for (auto _ : state) {
    const std::clock_t cpu = std::clock();
    const auto begin = Clock::now();
    for (std::size_t row = 0; row < n; row += strip) {
      prepared.block({row, std::min(n, row + strip)}, {0, n}, {nullptr, out.data(), n});
    }
    const std::chrono::duration<double> seconds = Clock::now() - begin;
    const double used = static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC;
    wall = wall == 0 ? seconds.count() : std::min(wall, seconds.count());
    best = best == 0 ? used : std::min(best, used);
    benchmark::DoNotOptimize(out.data());
  }
  rate = std::max(rate, probe_fma_rate<T>());
  const double slots_per_second = rate / (2 * lanes(sizeof(T)));
  const double slots = best * slots_per_second / (entries * what.visits / lanes(sizeof(T)));
  state.counters["ms_per_entry"] = wall * 1e3 / entries;
  state.counters["cpu_ms"] = best * 1e3 / entries;
  state.counters["prepare_ms"] = preparation.count() * 1e3 / static_cast<double>(2 * n);
  state.counters["slots"] = slots;
  const double instructions = what.dense ? what.visits * needed_of_cosines<T>() + kNeededBesideLayers
                                         : what.visits * needed_of_planes<T>();
  double limit = entries / lanes(sizeof(T)) * instructions / slots_per_second;
  if (what.dense) limit += 2 * entries * static_cast<double>(what.input.size()) / probe_gemm_rate<T>();
  state.counters["of_limit"] = limit / best;
}

std::string repeated(const std::string& unit, std::size_t times) {
  std::string result;
  for (std::size_t i = 0; i < times; ++i) result += unit + " ";
  return result;
}

std::vector<Case> cases() {
  std::vector<Case> result;
  const std::string cntk21 = repeated("conv(8,3) relu", 21);
  for (const std::size_t side : {32U, 28U, 64U}) {
    const double pixels = static_cast<double>(side * side);
    const std::string name = "_" + std::to_string(side);
    const Shape input{side, side, side == 28 ? 1U : 3U};
    result.push_back({"cntk21_gap" + name, cntk21 + "gap dense(1)", input, 2, 21 * pixels * pixels});
    result.push_back({"cntk21_flatten" + name, cntk21 + "flatten dense(1)", input, 32, 21 * pixels});
  }
  const double all = 1024.0 * 1024.0;
  const std::string conv = "conv(8,3) relu ";
  result.push_back({"myrtle5_32",
                    conv + conv + "avgpool(2) " + conv + "avgpool(2) " + conv + "avgpool(2) flatten dense(1)",
                    {32, 32, 3},
                    2,
                    (2 + 1.0 / 16 + 1.0 / 256) * all});
  result.push_back({"myrtle10_32",
                    repeated(conv, 3) + "avgpool(2) " + repeated(conv, 3) + "avgpool(2) " +
                        repeated(conv, 3) + "avgpool(2) flatten dense(1)",
                    {32, 32, 3},
                    2,
                    (3 + 3.0 / 16 + 3.0 / 256) * all});
  const std::string dense = repeated("dense(8) relu", 5) + "dense(1)";
  result.push_back({"dense_depth5_d64", dense, {64}, 1024, 5, true});
  result.push_back({"dense_depth5_d784", dense, {784}, 1024, 5, true});
  result.push_back({"dense_depth5_d64_near", dense, {64}, 1024, 5, true, true});
  result.push_back({"dense_depth5_d784_near", dense, {784}, 1024, 5, true, true});
  result.push_back({"dense_depth5_d64_n10000", dense, {64}, 10'000, 5, true});
  result.push_back({"dense_depth5_d784_n10000", dense, {784}, 10'000, 5, true});
  return result;
}

template <class T>
void register_all(const std::string& type) {
  for (const Case& what : cases()) {
    for (const std::size_t threads : {1U, 2U}) {
      benchmark::RegisterBenchmark(
          (what.name + "<" + type + ">/threads:" + std::to_string(threads)).c_str(),
          [what, threads](benchmark::State& state) { kernel<T>(state, what, threads); })
          ->Unit(benchmark::kMillisecond)
          ->UseRealTime()
          ->MinTime(0.3);
    }
  }
}

}  // namespace
}  // namespace gradgram

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  gradgram::register_all<float>("float");
  gradgram::register_all<double>("double");
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
