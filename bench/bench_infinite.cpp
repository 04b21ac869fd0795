// Infinite-width kernels on one core: time per entry of the matrix, and per position pair and layer.
//
// `entries/s` counts entries of the kernel matrix; `ns_per_pair_layer` divides the time by what the recursion
// visits: pairs of examples x pairs of pixels it follows x nonlinear layers. `vs_pass` is the share of the
// rate of the arc-cosine kernel alone on data in the first-level cache, probed in the same run.

#include <benchmark/benchmark.h>

#include <chrono>
#include <cmath>
#include <string>
#include <vector>

#include "engine/covariance.hpp"
#include "engine/random.hpp"
#include "models/model.hpp"
#include "ntk/infinite/infinite.hpp"

namespace gradgram {
namespace {

std::string repeated(const std::string& unit, std::size_t times) {
  std::string result;
  for (std::size_t i = 0; i < times; ++i) result += unit + " ";
  return result;
}

/// Entries per second of the arc-cosine step on 8 KiB.
template <class T>
double arc_cosine_rate() {
  constexpr std::size_t kEntries = 4096 / sizeof(T);
  std::vector<T> delta(kEntries);
  std::vector<T> theta(kEntries);
  const std::vector<T> ones(kEntries, T(1));
  simd::CovarianceBlock<T> block;
  block.rows = 1;
  block.columns = block.stride = kEntries;
  block.delta = delta.data();
  block.theta = theta.data();
  block.left_factor = block.left_inverse = block.right_factor = block.right_inverse = ones.data();
  double best = 0;
  for (int trial = 0; trial < 5; ++trial) {
    std::fill(delta.begin(), delta.end(), T(0.5));
    const auto start = std::chrono::steady_clock::now();
    constexpr int kTimes = 2000;
    for (int i = 0; i < kTimes; ++i) covariance_kernels<T>().arc_cosine(block, T(1), T(0.1));
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, kTimes * static_cast<double>(kEntries) / seconds.count());
  }
  return best;
}

struct Case {
  std::string name, text;
  Shape input;
  std::size_t examples;
  double visits;  ///< pairs of pixels times nonlinear layers, per pair of examples
};

template <class T>
void kernel(benchmark::State& state, const Case& what) {
  std::vector<std::size_t> extents{what.examples};
  for (const std::size_t extent : what.input.extents()) extents.push_back(extent);
  Tensor<T> x{Shape(std::span<const std::size_t>(extents))};
  Random random(7, 7);
  for (T& value : x.span()) value = static_cast<T>(random.normal());
  const models::Model model = models::parse(what.text, what.input);
  const Workers workers(1);
  for (auto _ : state) {
    auto result = ntk::infinite_kernel<T>(model, {}, std::as_const(x).view(), {}, workers);
    benchmark::DoNotOptimize(result.ntk.data());
  }
  using benchmark::Counter;
  const double entries = static_cast<double>(what.examples * (what.examples + 1)) / 2;
  state.counters["entries/s"] = Counter(entries, Counter::kIsIterationInvariantRate);
  state.counters["s_per_entry"] = Counter(entries, Counter::kIsIterationInvariantRate | Counter::kInvert);
  const double rate = arc_cosine_rate<T>();
  state.counters["vs_pass"] = Counter(entries * what.visits / rate, Counter::kIsIterationInvariantRate);
}

template <class T>
void register_all(const std::string& type) {
  const double all = 1024.0 * 1024.0;
  const std::vector<Case> cases = {
      {"cntk21_gap_32", repeated("conv(8,3) relu", 21) + "gap dense(1)", {32, 32, 3}, 2, 21 * all},
      {"cntk21_gap_28", repeated("conv(8,3) relu", 21) + "gap dense(1)", {28, 28, 1}, 2, 21 * 784.0 * 784.0},
      {"cntk21_flatten_32",
       repeated("conv(8,3) relu", 21) + "flatten dense(1)",
       {32, 32, 3},
       96,
       21 * 1024.0},
      {"myrtle5_32",
       "conv(8,3) relu conv(8,3) relu avgpool(2) conv(8,3) relu avgpool(2) conv(8,3) relu avgpool(8) flatten "
       "dense(1)",
       {32, 32, 3},
       2,
       (2 + 1.0 / 16 + 1.0 / 256) * all},
      {"dense_depth5_d64", repeated("dense(8) relu", 5) + "dense(1)", {64}, 2000, 5},
      {"dense_depth5_d784", repeated("dense(8) relu", 5) + "dense(1)", {784}, 2000, 5},
  };
  for (const Case& what : cases) {
    benchmark::RegisterBenchmark((what.name + "<" + type + ">").c_str(),
                                 [what](benchmark::State& state) { kernel<T>(state, what); })
        ->Unit(benchmark::kMillisecond)
        ->MinTime(0.2);
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
