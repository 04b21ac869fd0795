// The kernel's diagonal against one forward and one reverse pass per output of the same examples in the same
// blocks, one core: `passes` is the ratio to passes that leave out the parameters' gradients, `training` to
// those that sum them, as training does. Each time is the best of its runs, which take turns.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <ctime>
#include <limits>

#include "bench/inputs.hpp"
#include "engine/sinks.hpp"
#include "ntk/passes.hpp"

namespace gradgram {
namespace {

struct Case {
  const char* name;
  const char* model;
  Shape input;
  std::size_t outputs, examples;
};

/// Of the processor, so that other programs disturb less; everything runs in one thread.
template <class Work>
double seconds(Work work) {
  const std::clock_t begin = std::clock();
  work();
  return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

void diagonal(benchmark::State& state, const Case& c) {
  const models::Network<float> net = bench::network(c.model, c.input, c.outputs);
  const Tensor<float> x = bench::normal(c.input.with_outer(c.examples));
  const auto block = static_cast<std::size_t>(state.range(0));
  const Workers workers(1);
  ntk::KernelOptions options;
  Arena arena(std::size_t{1} << 26);
  const auto passes = [&](Sink<float>& sink) {
    for (std::size_t begin = 0; begin < c.examples; begin += block) {
      const std::size_t end = std::min(c.examples, begin + block);
      ntk::run_passes(net, TensorView<const float>(x).slice(begin, end), options, {}, arena,
                      [&](std::size_t, const auto& reverse) { reverse(sink); });
    }
  };
  NullSink<float> nothing;
  ParameterSet<float> gradient = net.parameters().zeros();
  SummedGradientSink<float> sum(gradient);
  passes(nothing);
  double best = std::numeric_limits<double>::infinity();
  double best_passes = best;
  double best_training = best;
  for (auto _ : state) {
    best_passes = std::min(best_passes, seconds([&] { passes(nothing); }));
    best_training = std::min(best_training, seconds([&] { passes(sum); }));
    const double time = seconds([&] {
      const auto d = ntk::diagonal<float>(net, x, options, workers);
      if (!(d(c.examples - 1) > 0)) state.SkipWithError("wrong result");
    });
    best = std::min(best, time);
    state.SetIterationTime(time);
  }
  state.counters["us_per_example"] = 1e6 * best / static_cast<double>(c.examples);
  state.counters["passes"] = best / best_passes;
  state.counters["training"] = best / best_training;
}

}  // namespace
}  // namespace gradgram

int main(int argc, char** argv) {
  using namespace gradgram;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const Shape image{32, 32, 3};
  for (const Case& c : {Case{"cnn3:channels=64", "cnn3:channels=64", image, 1, 256},
                        Case{"cnn3:channels=64, 10,000 examples", "cnn3:channels=64", image, 1, 10'000},
                        Case{"cnn3:channels=64, 10 outputs", "cnn3:channels=64", image, 10, 64},
                        Case{"resnet18-plain:width=16", "resnet18-plain:width=16", image, 1, 64},
                        Case{"mlp 784-1024x3-1", "mlp:width=1024,depth=3", Shape{784}, 1, 2048}}) {
    benchmark::RegisterBenchmark(c.name, diagonal, c)
        ->ArgName("block")
        ->Arg(c.input.rank() == 1 ? 128 : 4)
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime();
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
