// Training and the whole main job. `GFLOP/s` counts the products of convolutions and dense layers: forward,
// weight gradient, and input cotangent of all layers but the first.

#include <benchmark/benchmark.h>

#include <cstddef>

#include "bench/limit.hpp"
#include "datasets/dataset.hpp"
#include "engine/random.hpp"
#include "engine/training.hpp"
#include "models/network.hpp"
#include "models/price.hpp"
#include "ntk/learnability.hpp"

namespace gradgram {
namespace {

double step_flop(const models::Model& model) {
  double flop = 0;
  bool first = true;
  for (const models::LayerPrice& layer : models::price(model)) {
    if (layer.d_in == 0) continue;
    const double product = 2.0 * static_cast<double>(layer.positions) * static_cast<double>(layer.d_in) *
                           static_cast<double>(layer.d_out);
    flop += (first ? 2 : 3) * product;
    first = false;
  }
  return flop;
}

/// One epoch over 2,000 images of 3x32x32 in batches of 64.
void training_epoch(benchmark::State& state) {
  constexpr std::size_t kExamples = 2000;
  const Shape input{32, 32, 3};
  models::Network<float> net(models::parse("cnn3:channels=32", input, {.outputs = 1}), {.seed = 1});
  Random random(1);
  Tensor<float> x(input.with_outer(kExamples));
  for (float& value : x.span()) value = static_cast<float>(random.normal());
  Tensor<float> y(Shape{kExamples, 1});
  for (float& value : y.span()) value = random.uniform() < 0.5 ? -1.0F : 1.0F;
  const Workers workers;
  TrainingOptions options;
  options.learning_rate = 1e-4;
  options.epochs = 1000;
  Targets<float> targets;
  targets.values = y;
  Trainer<float> trainer(net, x, targets, options, workers);
  bench::Limit<float> limit;
  for (auto _ : state) {
    const double loss = trainer.epoch();
    if (!(loss > 0)) state.SkipWithError("wrong result");
  }
  limit.report(state, static_cast<double>(kExamples) * step_flop(net.model()), workers.count());
}
BENCHMARK(training_epoch)->UseRealTime()->Unit(benchmark::kSecond);

/// What `gradgram learnability` computes on Fashion-MNIST, T-shirts against shirts: kernel, spectrum,
/// linearized dynamics, 20 epochs of training, statistics; reading the data and drawing the report apart.
void main_job(benchmark::State& state) {
  datasets::OpenOptions open;
  open.classes = {0, 6};
  open.limit = 2000;
  const datasets::Dataset data = datasets::open("fashion-mnist", open);
  const models::Model model = models::parse("cnn3:channels=32", data.example_shape(), {.outputs = 1});
  ntk::LearnabilityOptions options;
  options.training.optimizer = Optimizer::Momentum;
  options.training.learning_rate = 0.003;
  options.training.epochs = 20;
  const Workers workers;
  for (auto _ : state) {
    models::Network<float> net(model, {});
    const ntk::Learnability result = ntk::learnability(net, data, options, workers);
    if (!(result.accuracy.back() > 0.6)) state.SkipWithError("wrong result");
  }
  state.counters["examples"] = static_cast<double>(data.size());
}
BENCHMARK(main_job)->UseRealTime()->Unit(benchmark::kSecond)->Iterations(1);

}  // namespace
}  // namespace gradgram

BENCHMARK_MAIN();
