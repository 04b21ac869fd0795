// Convolution through the ops: forward, input cotangent, weight gradients per example and summed. Images per
// second follow from the rate: 2 out_pixels patch c_out FLOP an image and pass.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "bench/limit.hpp"
#include "engine/ops.hpp"
#include "engine/random.hpp"
#include "engine/sinks.hpp"
#include "engine/tape.hpp"

namespace gradgram {
namespace {

/// As many as a tape holds: 32 of a small map, fewer of a large one.
std::size_t image_count(const ConvGeometry& g) {
  return g.in_h <= 8 ? 32 : 8;
}

template <class T>
Tensor<T> random_tensor(Shape shape, std::uint64_t seed) {
  Random random(seed);
  Tensor<T> result(shape);
  for (T& value : result.span()) value = static_cast<T>(random.normal());
  return result;
}

template <class T>
struct Layer {
  ConvGeometry geometry;
  std::size_t images;
  ParameterSet<T> parameters;
  Tensor<T> x;
  Tensor<T> seed;

  explicit Layer(const benchmark::State& state)
      : geometry(conv_geometry(state.range(0), state.range(0), state.range(1), state.range(2), state.range(3),
                               state.range(3), state.range(4), state.range(4), {})) {
    const ConvGeometry& g = geometry;
    images = image_count(g);
    parameters.add("weight", random_tensor<T>(Shape{g.kernel_h, g.kernel_w, g.c_in, g.c_out}, 1));
    parameters.add("bias", random_tensor<T>(Shape{g.c_out}, 2));
    x = random_tensor<T>(Shape{images, g.in_h, g.in_w, g.c_in}, 3);
    seed = random_tensor<T>(Shape{images, g.out_h, g.out_w, g.c_out}, 4);
  }
  double flop() const {
    return 2.0 * double(images) * double(geometry.out_pixels()) * double(geometry.weights());
  }
  Var record(Tape<T>& tape, bool differentiable) const {
    return ops::conv2d(tape, tape.input(x.view(), differentiable), geometry,
                       ops::Affine<T>{parameters, 0, 1, 1, 1});
  }
};

/// <seed, conv(x)> = <input cotangent, x> + bias part = <weight gradient, weights> + bias part: one number
/// that every pass must give.
void verify(benchmark::State& state, double expected, double found) {
  if (!(std::abs(found - expected) <= 1e-3 * (1 + std::abs(expected)))) state.SkipWithError("wrong result");
}

template <class T>
double dot(std::span<const T> a, std::span<const T> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += double(a[i]) * double(b[i]);
  return sum;
}

template <class T>
double without_bias(const Layer<T>& layer, std::span<const T> y) {
  double sum = dot<T>(y, layer.seed.span());
  const auto bias = layer.parameters.value(1);
  for (std::size_t i = 0; i < layer.seed.size(); ++i) {
    sum -= double(layer.seed.data()[i]) * double(bias.data()[i % bias.size()]);
  }
  return sum;
}

template <class T>
double expected_sum(const Layer<T>& layer) {
  Arena arena;
  Tape<T> tape(arena);
  return without_bias<T>(layer, tape.value(layer.record(tape, false)).span());
}

template <class T>
void forward(benchmark::State& state) {
  const Layer<T> layer(state);
  Arena arena;
  bench::Limit<T> limit;
  for (auto _ : state) {
    Tape<T> tape(arena, false);
    benchmark::DoNotOptimize(tape.value(layer.record(tape, false)).data());
  }
  limit.report(state, layer.flop());
}

template <class T>
void input_cotangent(benchmark::State& state) {
  const Layer<T> layer(state);
  Arena arena;
  Tape<T> tape(arena);
  const Var x = tape.input(layer.x.view(), true);
  const Var y = ops::conv2d(tape, x, layer.geometry, ops::Affine<T>{layer.parameters, 0, 1, 1, 1});
  NullSink<T> sink;
  bench::Limit<T> limit;
  for (auto _ : state) tape.reverse(y, layer.seed.view(), sink);
  limit.report(state, layer.flop());
  verify(state, expected_sum(layer), dot<T>(tape.cotangent(x).span(), layer.x.span()));
}

template <class T>
void weight_gradient_rows(benchmark::State& state) {
  const Layer<T> layer(state);
  Arena arena;
  Tape<T> tape(arena);
  const Var y = layer.record(tape, false);
  Tensor<T> rows(Shape{layer.images, layer.parameters.size()});
  const std::size_t offsets[] = {0, layer.parameters.offset(1)};
  JacobianSink<T> sink(rows.data(), layer.parameters.size(), offsets);
  bench::Limit<T> limit;
  for (auto _ : state) tape.reverse(y, layer.seed.view(), sink);
  limit.report(state, layer.flop());
  std::fill(rows.span().begin(), rows.span().end(), T(0));
  tape.reverse(y, layer.seed.view(), sink);
  double found = 0;
  for (std::size_t i = 0; i < layer.images; ++i) {
    found += dot<T>(layer.parameters.value(0).span(), std::as_const(rows).view().slice(i).span());
  }
  verify(state, expected_sum(layer), found);
}

template <class T>
void weight_gradient_summed(benchmark::State& state) {
  const Layer<T> layer(state);
  Arena arena;
  Tape<T> tape(arena);
  const Var y = layer.record(tape, false);
  ParameterSet<T> gradient = layer.parameters.zeros();
  SummedGradientSink<T> sink(gradient);
  bench::Limit<T> limit;
  for (auto _ : state) tape.reverse(y, layer.seed.view(), sink);
  limit.report(state, layer.flop());
  gradient.fill_zero();
  tape.reverse(y, layer.seed.view(), sink);
  verify(state, expected_sum(layer),
         dot<T>(layer.parameters.value(0).span(), std::as_const(gradient).value(0).span()));
}

/// conv3x3(c) relu, three times, global average pooling, dense(1) on side x side x 3: forward and reverse
/// into a summed gradient, all that one training step does for a block.
template <class T>
void network_step(benchmark::State& state) {
  const auto side = static_cast<std::size_t>(state.range(0));
  const auto channels = static_cast<std::size_t>(state.range(1));
  ParameterSet<T> parameters;
  std::vector<ConvGeometry> geometries;
  double flop = 0;
  for (std::size_t layer = 0; layer < 3; ++layer) {
    const std::size_t c_in = layer == 0 ? 3 : channels;
    geometries.push_back(conv_geometry(side, side, c_in, channels, 3, 3, 1, 1, {}));
    parameters.add(std::to_string(layer) + ".weight", random_tensor<T>(Shape{3, 3, c_in, channels}, layer));
    parameters.add(std::to_string(layer) + ".bias", random_tensor<T>(Shape{channels}, 9));
    // The first layer needs no input cotangent.
    flop += (layer == 0 ? 4.0 : 6.0) * double(geometries.back().out_pixels()) *
            double(geometries.back().weights());
  }
  parameters.add("last", random_tensor<T>(Shape{1, channels}, 7));
  const auto images = static_cast<std::size_t>(state.range(2));
  const Tensor<T> x = random_tensor<T>(Shape{images, side, side, 3}, 3);
  const Tensor<T> seed = random_tensor<T>(Shape{images, 1}, 4);
  ParameterSet<T> gradient = parameters.zeros();
  SummedGradientSink<T> sink(gradient);
  Arena arena;
  bench::Limit<T> limit;
  for (auto _ : state) {
    Tape<T> tape(arena);
    Var y = tape.input(x.view());
    for (std::size_t layer = 0; layer < 3; ++layer) {
      const T scale = static_cast<T>(1 / std::sqrt(double(geometries[layer].patch())));
      y = ops::conv2d(tape, y, geometries[layer],
                      ops::Affine<T>{parameters, 2 * layer, 2 * layer + 1, scale, 1});
      y = ops::activation(tape, y, simd::Activation::Relu);
    }
    y = ops::dense(tape, ops::global_average_pool(tape, y),
                   ops::Affine<T>{parameters, 6, kNoParameter, 1, 1});
    tape.reverse(y, seed.view(), sink);
  }
  limit.report(state, flop * double(images));
}

void shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"side", "c_in", "c_out", "kernel", "stride"})
      ->Args({32, 64, 64, 3, 1})
      ->Args({16, 64, 64, 3, 1})
      ->Args({8, 64, 64, 3, 1})
      ->Args({32, 3, 64, 3, 1})
      ->Args({32, 32, 32, 3, 1})
      ->Args({32, 64, 64, 3, 2})
      ->Args({32, 64, 64, 1, 1})
      ->Args({28, 24, 40, 5, 1})
      ->Args({8, 256, 256, 3, 1})
      ->Args({4, 512, 512, 3, 1});
}

#define GRADGRAM_BENCH(name)                                    \
  BENCHMARK_TEMPLATE(name, float)->Apply(shapes);               \
  BENCHMARK_TEMPLATE(name, double)                              \
      ->ArgNames({"side", "c_in", "c_out", "kernel", "stride"}) \
      ->Args({32, 64, 64, 3, 1})
GRADGRAM_BENCH(forward);
GRADGRAM_BENCH(input_cotangent);
GRADGRAM_BENCH(weight_gradient_rows);
GRADGRAM_BENCH(weight_gradient_summed);
BENCHMARK_TEMPLATE(network_step, float)
    ->ArgNames({"side", "channels", "images"})
    ->ArgsProduct({{32}, {32, 64}, {1, 2, 4, 8, 16}});

}  // namespace
}  // namespace gradgram

BENCHMARK_MAIN();
