#include "ntk/rates.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <string>

#include "engine/arena.hpp"
#include "engine/cpu.hpp"
#include "engine/matrix_product.hpp"
#include "engine/ops.hpp"
#include "engine/ops/conv2d.hpp"
#include "engine/parallel.hpp"
#include "engine/random.hpp"
#include "models/network.hpp"
#include "ntk/planned_kernel.hpp"
#include "ntk/position_gram.hpp"
#include "ntk/thread_seconds.hpp"

namespace gradgram::ntk {
namespace {

/// The shortest of several runs, in processor time: what disturbs one only ever lengthens it.
template <class F>
double best_seconds(int runs, F work) {
  double best = std::numeric_limits<double>::infinity();
  for (int run = 0; run < runs; ++run) {
    const double start = thread_seconds();
    work();
    best = std::min(best, thread_seconds() - start);
  }
  return best;
}

template <class T>
Tensor<T> normal(Shape shape) {
  Random random(1);
  Tensor<T> values(shape);
  for (T& value : values.span()) value = static_cast<T>(random.normal());
  return values;
}

template <class T>
class NoSink final : public Sink<T> {
 public:
  void use(const DenseUse<T>&, Arena&) override {}
  void use(const ConvUse<T>&, Arena&) override {}
};

/// The tiles of K(x, x) as a rectangle, without waste on a diagonal.
template <class T>
class Tiles {
 public:
  Tiles(const char* model, Shape input, std::size_t examples)
      : network_(models::parse(model, input, {.outputs = 1}), {.seed = 1}),
        x_(normal<T>(input.with_outer(examples))) {}

  /// Seconds of all workers together.
  double seconds(Way way, std::size_t tile, int runs, std::size_t threads = 1, bool packed = true) const {
    const Workers workers(threads);
    KernelTimings timings;
    KernelOptions options;
    options.memory = std::size_t{1} << 30;
    options.ways = {{network_.parameters().name(0), way}};
    const TensorView<const T> x = x_.view();
    Plan plan = plan_for<T>(network_, x, &x, options, threads);
    plan.tile = tile;
    plan.packed = packed;
    options.timings = &timings;
    double best = std::numeric_limits<double>::infinity();
    for (int run = 0; run < runs; ++run) {
      planned_kernel<T>(network_, x, &x, options, plan, workers);
      best = std::min(best, timings.contraction);
    }
    return best;
  }

 private:
  models::Network<T> network_;
  Tensor<T> x_;
};

/// Products of rows that are packed before; packing, from rows that every tile packs for itself.
template <class T>
void measure_products(PrecisionRates& rates) {
  constexpr std::size_t kExamples = 192;
  constexpr std::size_t kTile = 48;
  constexpr double kWidth = 9 * 64 * 64 + 64;
  const Tiles<T> tiles("conv(64,3) gap dense(1)", {4, 4, 64}, kExamples);
  constexpr double kProducts = 2.0 * kExamples * kExamples * kWidth;
  constexpr double kSides = 2.0 * kExamples * kExamples / kTile;
  const double whole = tiles.seconds(Way::Materialize, kExamples, 3);
  const double before = tiles.seconds(Way::Materialize, kTile, 3);
  const double within = tiles.seconds(Way::Materialize, kTile, 2, 1, false);
  // whole and before = products / gram + sides / fetch, with 2 and 8 x kExamples examples on the sides.
  const double a_side = std::clamp((before - whole) / (kSides - 2.0 * kExamples), 0.02 * before / kSides,
                                   0.5 * before / kSides);
  rates.fetch = kWidth * sizeof(T) / a_side;
  rates.gram = kProducts / (whole - 2.0 * kExamples * a_side);
  // A share of the whole, whatever disturbed the runs.
  rates.pack = kSides * kWidth * sizeof(T) / std::clamp(within - before, 0.05 * within, 0.9 * within);
}

/// Pieces of a few gradients, packed among many while they are in the cache.
template <class T>
void measure_laying(PrecisionRates& rates) {
  constexpr std::size_t kBlock = simd::kGramLine<T>;
  constexpr std::size_t kRows = 192;
  constexpr std::size_t kWidth = 9 * 64 * 64;
  const std::vector<Panel> panels = panels_of(0, kWidth, sizeof(T));
  const std::size_t stride = padded_stride(simd::kGramDepth<T>, sizeof(T));
  const std::size_t packed_rows = gram_padded(kRows, sizeof(T));
  Tensor<T> rows(Shape{kBlock, stride});
  Tensor<T> packed(Shape{packed_rows, kWidth});
  const double seconds = best_seconds(2, [&] {
    for (std::size_t first = 0; first < kRows; first += kBlock) {
      for (const Panel& panel : panels) {
        kernels<T>().gram_pack_rows({.source = rows.data(),
                                     .stride = stride,
                                     .rows = kBlock,
                                     .columns = panel.depth,
                                     .packed = packed.data() + packed_rows * panel.begin,
                                     .depth = panel.depth,
                                     .column = 0,
                                     .first = first,
                                     .step = 1});
      }
    }
    kernels<T>().fence_packing();
  });
  rates.lay = kRows * kWidth * sizeof(T) / seconds;
}

/// As a kernel takes it. Once: memory that was given back a moment ago is still in a cache.
double measure_touch() {
  constexpr std::size_t kBytes = std::size_t{128} << 20;
  Arena arena(kBytes);
  void* const memory = arena.allocate(kBytes);
  const Workers alone(1);
  const double first = best_seconds(1, [&] {
    arena.commit(alone);
    std::memset(memory, 1, kBytes);
  });
  const double again = best_seconds(1, [&] { std::memset(memory, 2, kBytes); });
  return kBytes / std::max(first - again, 0.1 * first);
}

template <class T>
void measure_entries(PrecisionRates& rates) {
  constexpr std::size_t kExamples = 384;
  const Tiles<T> tiles("dense(16) dense(1)", {16}, kExamples);
  // Two dense layers, and the tile that leaves.
  rates.entries = 3.0 * kExamples * kExamples / tiles.seconds(Way::Outer, kExamples / 2, 4);
}

/// Two convolutions that differ in how much of the work is products.
template <class T>
void measure_positions(PrecisionRates& rates) {
  constexpr std::size_t kExamples = 48;
  constexpr double kPairs = kExamples * kExamples;
  struct Sample {
    double products, additions, seconds;
  };
  const auto sample = [](const char* model, std::size_t side, std::size_t channels) {
    const ConvGeometry geometry = conv_geometry(side, side, channels, channels, 3, 3, 1, 1, {});
    const PositionGram<T> position(geometry, 1, 1);
    const Tiles<T> tiles(model, {side, side, channels}, kExamples);
    return Sample{kPairs * 2 * position.multiply_adds(), kPairs * position.additions(),
                  tiles.seconds(Way::PositionGram, kExamples, 2)};
  };
  const Sample deep = sample("conv(256,3) gap dense(1)", 4, 256);
  const Sample wide = sample("conv(16,3) gap dense(1)", 8, 16);
  // seconds = products / position + additions / taps, for both.
  const double determinant = deep.products * wide.additions - wide.products * deep.additions;
  const double per_product = (deep.seconds * wide.additions - wide.seconds * deep.additions) / determinant;
  rates.position =
      1 / std::clamp(per_product, 0.3 * deep.seconds / deep.products, deep.seconds / deep.products);
  const double rest = wide.seconds - wide.products / rates.position;
  rates.taps = wide.additions / std::clamp(rest, 0.1 * wide.seconds, wide.seconds);
}

template <class T>
void measure_convolution(ConvolutionRate& rate) {
  // Weights are laid out once for all of them.
  const std::size_t kImages = std::clamp<std::size_t>(256 / (rate.side * rate.side) * 4, 4, 8);
  const ConvGeometry g = conv_geometry(rate.side, rate.side, rate.c_in, rate.c_out, rate.kernel, rate.kernel,
                                       rate.stride, rate.stride, {});
  const auto x = normal<T>({kImages, rate.side, rate.side, rate.c_in});
  const auto seed = normal<T>({kImages, g.out_h, g.out_w, rate.c_out});
  ParameterSet<T> parameters;
  parameters.add("weight", normal<T>({rate.kernel, rate.kernel, rate.c_in, rate.c_out}));
  const double flop = 2.0 * static_cast<double>(g.out_pixels() * g.weights());
  Arena arena;
  NoSink<T> sink;
  // As in a run of many blocks: the arena's memory is there already.
  rate.forward = static_cast<double>(kImages) * flop / best_seconds(3, [&] {
                   Tape<T> tape(arena);
                   ops::conv2d<T>(tape, tape.input(x.view(), true), g, {parameters, 0});
                 });
  {
    Tape<T> tape(arena);
    const Var y = ops::conv2d<T>(tape, tape.input(x.view(), true), g, {parameters, 0});
    rate.reverse =
        static_cast<double>(kImages) * flop / best_seconds(3, [&] { tape.reverse(y, seed.view(), sink); });
  }
  constexpr std::size_t kGradients = 4;
  rate.weight_gradient =
      kGradients * flop / best_seconds(3, [&] {
        const ArenaScope scope(arena);
        const ops::ConvWeightGradient<T> form(g, T(0.5), T(1), arena);
        const auto framed = arena.tensor<T>({kGradients, form.framed_size()});
        const auto part = arena.tensor<T>({kGradients, form.part_size()});
        for (std::size_t i = 0; i < kGradients; ++i) {
          form.frame(x.view().slice(i).data(), framed.slice(i).data());
        }
        for (std::size_t p = 0; p < form.parts(); ++p) {
          for (std::size_t i = 0; i < kGradients; ++i) {
            form.form_part(p, framed.slice(i).data(), seed.view().slice(i).data(), part.slice(i).data());
          }
        }
      });
}

template <class T>
void measure_gemm(PrecisionRates& rates) {
  constexpr std::size_t kBlock = 192;
  constexpr std::size_t kWidth = 1024;
  const auto x = normal<T>({kBlock, kWidth});
  const auto w = normal<T>({kWidth, kWidth});
  Tensor<T> y(Shape{kBlock, kWidth});
  Arena arena;
  rates.gemm = 2.0 * kBlock * kWidth * kWidth / best_seconds(4, [&] {
                 multiply<T>(true, kBlock, kWidth, kWidth, T(1), x.data(), kWidth, w.data(), kWidth, false,
                             y.data(), kWidth, arena);
               });
}

/// Beyond the caches.
template <class T>
void measure_bandwidth(PrecisionRates& rates) {
  constexpr std::size_t kBytes = std::size_t{24} << 20;
  const Tensor<T> from = normal<T>({kBytes / sizeof(T) / 16});
  Tensor<T> to(Shape{kBytes / sizeof(T)});
  const std::size_t part = from.size() * sizeof(T);
  rates.bandwidth = 2.0 * kBytes / best_seconds(4, [&] {
                      for (std::size_t i = 0; i < 16; ++i) {
                        std::memcpy(to.data() + i * from.size(), from.data(), part);
                      }
                    });
}

/// What follows a convolution of an ordinary network: a rectifier, and pooling.
template <class T>
void measure_elementwise(PrecisionRates& rates) {
  const Shape image{4, 16, 16, 64};
  const auto x = normal<T>(image);
  const auto seed = normal<T>({4, 8, 8, 64});
  const ConvGeometry pool = conv_geometry(16, 16, 64, 64, 2, 2, 2, 2, {Padding::Kind::Valid});
  Arena arena;
  NoSink<T> sink;
  const double moved = static_cast<double>(x.size() + seed.size()) * sizeof(T);
  const double seconds = best_seconds(6, [&] {
    Tape<T> tape(arena);
    const Var rectified = ops::activation(tape, tape.input(x.view(), true), simd::Activation::Relu);
    tape.reverse(ops::max_pool(tape, rectified, pool), seed.view(), sink);
  });
  rates.elementwise = 2 * moved / seconds;
}

template <class T>
void measure(PrecisionRates& rates) {
  measure_products<T>(rates);
  measure_laying<T>(rates);
  measure_entries<T>(rates);
  measure_positions<T>(rates);
  for (ConvolutionRate& convolution : rates.convolutions) measure_convolution<T>(convolution);
  measure_gemm<T>(rates);
  measure_bandwidth<T>(rates);
  measure_elementwise<T>(rates);
}

/// Products on all workers at once against one.
double measure_together(std::size_t threads) {
  if (threads == 1) return 1;
  const Tiles<float> tiles("conv(64,3) gap dense(1)", {4, 4, 64}, 192);
  const double alone = tiles.seconds(Way::Materialize, 48, 3);
  return std::clamp(alone / tiles.seconds(Way::Materialize, 48, 3, threads), 0.05, 1.0);
}

}  // namespace

KernelRates::KernelRates() {
  touch = 4e9;
  f32 = {.gram = 165e9,
         .fetch = 12e9,
         .pack = 17e9,
         .lay = 12e9,
         .entries = 0.45e9,
         .position = 140e9,
         .taps = 22e9,
         .gemm = 140e9,
         .bandwidth = 25e9,
         .elementwise = 14e9,
         .convolutions = {{{3, 64, 32, 3, 1, 140e9, 17e9, 120e9},
                           {64, 64, 32, 3, 1, 160e9, 235e9, 210e9},
                           {16, 16, 16, 3, 1, 120e9, 100e9, 90e9},
                           {32, 32, 16, 3, 1, 160e9, 210e9, 165e9},
                           {64, 128, 32, 3, 2, 160e9, 145e9, 130e9},
                           {256, 256, 8, 3, 1, 155e9, 200e9, 180e9},
                           {512, 512, 4, 3, 1, 135e9, 155e9, 115e9},
                           {64, 128, 16, 1, 2, 135e9, 100e9, 78e9}}}};
  // Half as many numbers in a register and in a byte of bandwidth.
  f64 = f32;
  for (double* const rate : {&f64.gram, &f64.position, &f64.taps, &f64.gemm}) *rate /= 2;
  for (ConvolutionRate& convolution : f64.convolutions) {
    for (double* const rate : {&convolution.forward, &convolution.reverse, &convolution.weight_gradient}) {
      *rate /= 2;
    }
  }
}

KernelRates measure_kernel_rates(std::size_t threads) {
  KernelRates rates;
  // Before the others have memory to give back.
  rates.touch = measure_touch();
  measure<float>(rates.f32);
  measure<double>(rates.f64);
  rates.together = measure_together(threads);
  return rates;
}

}  // namespace gradgram::ntk
