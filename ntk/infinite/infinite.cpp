#include "ntk/infinite/infinite.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/blas.hpp"
#include "engine/cpu.hpp"
#include "engine/error.hpp"
#include "engine/memory_account.hpp"
#include "ntk/infinite/cosines.hpp"
#include "ntk/infinite/planes.hpp"
#include "ntk/infinite/program.hpp"
#include "ntk/infinite/propagator.hpp"
#include "ntk/infinite/sides.hpp"

namespace gradgram::ntk {
namespace infinite {
namespace {

/// Sides of a tile. Vectors: a matrix product of that size, whose rows then pass through all layers a few at
/// a time, in the first-level cache. Diagonals: all pixels of 8 x 32 pairs, 1 MiB an array for 32 x 32
/// pixels in f32. Full: pairs of one left example.
constexpr std::size_t kVectorTile = 256;
constexpr std::size_t kVectorRows = 8;
constexpr std::size_t kDiagonalRows = 8;
constexpr std::size_t kDiagonalColumns = 32;
constexpr std::size_t kFullColumns = 4;

/// Below this share of the mean variance, delta is computed from differences instead of a matrix product.
constexpr double kNear = 1.0 / 64;

/// What series leave out, as a share of what the result promises.
constexpr double kOmitted = 1e-4;

/// One less a cosine below which planes in f32, off by a few 1e-7 there, are not good enough to be pooled:
/// the angle would be off by more than 1e-5.
constexpr double kNearlyParallel = 1.0 / 1024;

/// Vectors: 1 - |cosine| is known to about eps (s + s^2), s^2 = (sqrt q - sqrt q')^2 / sqrt(q q'), where it
/// is small, and the angle to that divided by itself. Pairs are followed apart, in f64, where (s + s^2)^2 >
/// this times 1 - cosine, which leaves the others angles to 16 eps; likewise opposite ones, whose 1 + cosine
/// is known to eps (1 + s^2 / 2).
constexpr double kAngleDigits = 256;
/// Smooth nonlinearities in f64 see no angles but Q (1 - |cosine|) beside 1, Q = sqrt(q q') of the
/// pre-activations. Pairs are followed apart where s + s^2 > this times 1 / Q + 1 - cosine, which leaves the
/// others that sum to 1e-11 of itself.
constexpr double kSmoothDigits = 50000;
/// Columns of a row that are followed apart together.
constexpr std::size_t kApartColumns = 32;

/// The step that angles between the inputs reach through affine maps alone, so that they can be followed to
/// it exactly, and what it reads of them.
struct FirstNonlinearity {
  std::size_t step = 0;
  bool angles = false;  ///< the angle itself, which a kink or a normalization passes on
  double weight = 1;    ///< product of the weight variances before
};

std::optional<FirstNonlinearity> first_nonlinearity(const Program& program) {
  FirstNonlinearity first;
  for (; first.step < program.steps.size(); ++first.step) {
    const Step& step = program.steps[first.step];
    if (step.kind == StepKind::Affine) {
      first.weight *= step.weight_variance;
      continue;
    }
    if (step.kind == StepKind::Nonlinear && step.phi.kind == Nonlinearity::Kind::Monomial)
      return std::nullopt;
    if (step.kind != StepKind::Nonlinear && step.kind != StepKind::Normalize) return std::nullopt;
    first.angles = step.kind == StepKind::Normalize || step.phi.kind == Nonlinearity::Kind::ArcCosine ||
                   step.phi.kind == Nonlinearity::Kind::Sign;
    return first;
  }
  return std::nullopt;
}

/// Mean square of the features of each pixel. Throws NumericError for inputs that are not finite.
template <class T>
std::vector<double> input_variances(const Program& program, TensorView<const T> x, const char* name) {
  const std::size_t channels = program.channels;
  std::vector<double> result(x.size() / channels);
  for (std::size_t p = 0; p < result.size(); ++p) {
    double sum = 0;
    for (std::size_t c = 0; c < channels; ++c) {
      const double value = static_cast<double>(x.data()[p * channels + c]);
      sum += value * value;
    }
    if (!std::isfinite(sum)) {
      throw NumericError("infinite_kernel: " + std::string(name) + ": example " +
                         std::to_string(p / program.pixels[0]) +
                         " holds numbers that are not finite or too large");
    }
    result[p] = sum / static_cast<double>(channels);
  }
  return result;
}

/// The examples of one side as the first step reads them, divided by the root of their scale.
template <class T>
class Inputs {
 public:
  Inputs(const Program& program, TensorView<const T> x, int exponent, bool transposed) : rows_(x.shape()) {
    const std::size_t examples = x.shape()[0];
    const std::size_t pixels = program.pixels[0];
    const std::size_t channels = program.channels;
    const T factor = static_cast<T>(std::ldexp(1.0, -exponent / 2));
    for (std::size_t i = 0; i < x.size(); ++i) rows_.data()[i] = factor * x.data()[i];
    if (!transposed) return;
    const bool full = program.reach == Reach::Full;
    stride_ = padded<T>(full ? pixels : examples);
    columns_ = Tensor<T>(Shape{full ? examples : pixels, channels, stride_});
    for (std::size_t i = 0; i < examples; ++i) {
      for (std::size_t p = 0; p < pixels; ++p) {
        for (std::size_t c = 0; c < channels; ++c) {
          const T value = rows_.data()[(i * pixels + p) * channels + c];
          const std::size_t to = full ? (i * channels + c) * stride_ + p : (p * channels + c) * stride_ + i;
          columns_.data()[to] = value;
        }
      }
    }
  }

  /// [example, pixel, channel].
  const T* rows() const noexcept { return rows_.data(); }
  /// Full: [example, channel, pixel]; Diagonal: [pixel, channel, example]; both padded to stride().
  const T* columns() const noexcept { return columns_.data(); }
  std::size_t stride() const noexcept { return stride_; }

 private:
  Tensor<T> rows_, columns_;
  std::size_t stride_ = 0;
};

/// Whether planes end in an inner pooling.
bool pools_planes(const Program& program) {
  if (!has_planes(program) || program.reach != Reach::Full) return false;
  const std::vector<int> zeros(program.pixels.size());
  return plan_planes(program, Scales{zeros, zeros}).window_h > 0;
}

/// From sums over windows, in the units of planes, to the state after the pooling at plan.head.
template <class T>
void finish_windows(const PlanePlan& plan, Propagator<T>& propagator, const BlockPlace<T>& place,
                    bool tangent) {
  PairState<T>& state = propagator.state();
  const auto pairs = static_cast<double>(plan.window_h * plan.window_w * plan.window_h * plan.window_w);
  const T delta_unit = static_cast<T>(plan.delta_out / pairs);
  const T theta_unit = static_cast<T>(plan.theta_out / pairs);
  for (std::size_t i = 0; i < state.size(); ++i) {
    state.delta()[i] *= delta_unit;
    if (tangent) state.theta()[i] *= theta_unit;
  }
  propagator.set_windows(plan.head, place);
}

/// The pair of an image, [pixel][channel], with itself, up to the pooling at plan.head.
template <class T>
void pool_own_planes(const PlanePlan& plan, PlaneWorker<double>& planes, const T* image, double scale,
                     const Sides<double>& own, Propagator<double>& pairs, const BlockPlace<double>& place) {
  const std::size_t pixels = plan.height * plan.width;
  const std::size_t stride = padded<double>(pixels);
  std::vector<double> channels(plan.channels * stride);
  for (std::size_t p = 0; p < pixels; ++p) {
    for (std::size_t c = 0; c < plan.channels; ++c) {
      channels[c * stride + p] = scale * static_cast<double>(image[p * plan.channels + c]);
    }
  }
  const std::size_t windows = plan.height / plan.window_h * (plan.width / plan.window_w);
  PairState<double>& state = pairs.start(1, windows, windows);
  std::fill_n(state.delta(), state.size(), 0.0);
  const PlaneWorker<double>::Image both{channels.data(), stride, &own, 0};
  planes.run_windows(both, both, state.delta(), nullptr, state.stride());
  finish_windows(plan, pairs, place, false);
}

/// Variances of every example of one side.
template <class T, class In>
Sides<T> prepare(const Program& program, const Scales& scales, const SeriesList& series,
                 TensorView<const In> x, const std::vector<double>& variances, const Workers& workers,
                 std::stop_token stop) {
  const std::size_t pixels = program.pixels[0];
  const std::size_t channels = program.channels;
  const std::size_t examples = x.shape()[0];
  Sides<T> sides(program, examples);
  const double unit = std::ldexp(1.0, -scales.variance[0]);
  std::size_t last_pool = 0;  ///< one past
  for (std::size_t s = 0; s < program.steps.size(); ++s) {
    if (program.pooled_variances && program.steps[s].kind == StepKind::AveragePool) last_pool = s + 1;
  }
  std::optional<PlanePlan> plan;
  if (last_pool != 0 && pools_planes(program)) plan = plan_planes(program, scales);
  std::vector<std::unique_ptr<PlaneWorker<double>>> planes(workers.count());
  const std::size_t chunk = last_pool == 0 ? 16 : 1;
  workers.run((examples + chunk - 1) / chunk,
              [&](std::size_t piece, std::size_t worker) {
                ExampleVariances example;
                example.variance.resize(program.pixels.size());
                example.factor.resize(program.steps.size());
                example.inverse.resize(program.steps.size());
                std::unique_ptr<Propagator<double>> pairs;
                std::unique_ptr<Sides<double>> own;
                for (std::size_t i = piece * chunk; i < std::min(examples, (piece + 1) * chunk); ++i) {
                  example.variance[0].resize(pixels);
                  for (std::size_t p = 0; p < pixels; ++p)
                    example.variance[0][p] = unit * variances[i * pixels + p];
                  BlockPlace<double> place;
                  std::size_t followed = 0;  // steps that the pair of the example with itself has taken
                  if (last_pool != 0) {
                    if (pairs == nullptr) {
                      pairs = std::make_unique<Propagator<double>>(program, scales, series, false);
                      own = std::make_unique<Sides<double>>(program, 1);
                    }
                    place = {own.get(), own.get(), 0, 0, true};
                  }
                  if (last_pool != 0 && !plan) {
                    PairState<double>& state = pairs->start(1, pixels, pixels);
                    const In* const image = x.data() + i * pixels * channels;
                    for (std::size_t p = 0; p < pixels; ++p) {
                      for (std::size_t q = 0; q < pixels; ++q) {
                        double sum = 0;
                        for (std::size_t c = 0; c < channels; ++c) {
                          const double difference = static_cast<double>(image[p * channels + c]) -
                                                    static_cast<double>(image[q * channels + c]);
                          sum += difference * difference;
                        }
                        state.delta()[p * state.stride() + q] =
                            unit * sum / (2 * static_cast<double>(channels));
                      }
                    }
                  }
                  for (std::size_t s = 0; s < program.steps.size(); ++s) {
                    advance(program, scales, series, s, example);
                    if (s >= last_pool || program.steps[s].kind != StepKind::AveragePool) continue;
                    // With the variances after it still zero, pooling leaves minus the covariance.
                    for (std::size_t slot = program.steps[s].out; slot < program.pixels.size(); ++slot) {
                      example.variance[slot].clear();
                    }
                    example.variance[program.steps[s].out].assign(program.pixels[program.steps[s].out], 0.0);
                    own->set(0, example);
                    BlockPlace<double> apart = place;
                    apart.same_set = false;
                    if (plan && s == plan->head) {
                      if (planes[worker] == nullptr)
                        planes[worker] = std::make_unique<PlaneWorker<double>>(*plan);
                      pool_own_planes(*plan, *planes[worker], x.data() + i * pixels * channels,
                                      std::ldexp(1.0, -scales.variance[0] / 2), *own, *pairs, apart);
                    } else {
                      pairs->run(place, followed, s);
                      pairs->run(apart, s, s + 1);
                    }
                    followed = s + 1;
                    PairState<double>& state = pairs->state();
                    std::vector<double>& pooled = example.variance[program.steps[s].out];
                    for (std::size_t p = 0; p < pooled.size(); ++p) {
                      pooled[p] = std::max(0.0, -state.delta()[p * state.stride() + p]);
                    }
                    for (std::size_t p = 0; p < pooled.size(); ++p) {
                      double* const row = state.delta() + p * state.stride();
                      for (std::size_t q = 0; q < pooled.size(); ++q) row[q] += (pooled[p] + pooled[q]) / 2;
                      row[p] = 0;
                    }
                  }
                  sides.set(i, example);
                }
              },
              {}, stop);
  return sides;
}

/// Whether it is finite as an Out; without a call, for loops that are to be vectorized.
template <class Out, class T>
bool is_finite(T value) {
  return std::abs(value) <= static_cast<T>(std::numeric_limits<Out>::max());
}

constexpr const char* kBytes = "infinite_kernel: bytes";

struct Tile {
  std::size_t row = 0, rows = 0, column = 0, columns = 0;
};

Tile largest_tile(Reach reach) {
  switch (reach) {
    case Reach::Vector:
      return {0, kVectorTile, 0, kVectorTile};
    case Reach::Diagonal:
      return {0, kDiagonalRows, 0, kDiagonalColumns};
    case Reach::Full:
      return {0, 1, 0, kFullColumns};
  }
  return {};
}

/// Whether pairs of nearly parallel vectors are followed in f64 (kAngleDigits).
template <class T>
bool widens_vectors(const Program& program) {
  return std::is_same_v<T, float> && program.reach == Reach::Vector;
}

/// What a Builder takes for so many examples of both sides together.
template <class T>
std::size_t builder_bytes(const Program& program, std::size_t examples, std::size_t workers) {
  std::size_t bytes = Sides<T>::bytes(program, examples);
  const std::size_t inputs = checked_multiply(examples, program.input.size() * sizeof(T), kBytes);
  bytes =
      checked_add(bytes, checked_multiply(program.reach == Reach::Vector ? 1 : 2, inputs, kBytes), kBytes);
  bytes = checked_add(bytes, checked_multiply(examples, program.pixels[0] * sizeof(double), kBytes), kBytes);
  // States, frame and spare of one worker, two arrays each; in f64 while variances are prepared.
  std::size_t block = kVectorRows * kVectorTile;
  const std::size_t pixels = *std::ranges::max_element(program.pixels);
  if (program.reach == Reach::Diagonal)
    block = (has_planes(program) ? 1 : pixels) * kDiagonalRows * kDiagonalColumns;
  const bool planes = has_planes(program) && (!program.pooled_variances || pools_planes(program));
  if (program.reach == Reach::Full && !planes)
    block = 2 * checked_multiply(pixels, padded<T>(pixels), kBytes);
  const std::vector<int> zeros(program.pixels.size());
  const Scales unscaled{zeros, zeros};
  const Tile unit = largest_tile(program.reach);
  const std::size_t tile = unit.rows * unit.columns;
  std::size_t plane_scratch = 0;
  if (has_planes(program)) {
    const PlanePlan plan = plan_planes(program, unscaled);
    if (plan.window_h > 0) {
      const std::size_t windows = program.steps[plan.head].geometry.out_pixels();
      block = std::max(block, checked_multiply(windows, padded<T>(windows), kBytes));
    }
    plane_scratch = PlaneWorker<T>::bytes(plan);
    if (program.pooled_variances && plan.window_h > 0) plane_scratch = PlaneWorker<double>::bytes(plan);
    if (plan.diagonal) bytes = checked_add(bytes, PlaneImages<T>::bytes(plan, examples), kBytes);
  }
  if (widens_vectors<T>(program)) {
    bytes = checked_add(bytes, Sides<double>::bytes(program, examples), kBytes);
    block += kApartColumns;
  }
  if (follows_cosines(program)) {
    const std::size_t held = checked_multiply(examples, CosineVectors<T>::bytes_per_example(program), kBytes);
    bytes = checked_add(bytes, held, kBytes);
    plane_scratch += CosineVectors<T>::bytes_per_worker(kVectorTile);
  }
  const std::size_t scratch = checked_add(
      checked_multiply(2 * (program.depth + 2), checked_multiply(block, sizeof(double), kBytes), kBytes),
      3 * tile * sizeof(T) + plane_scratch, kBytes);
  return checked_add(bytes, checked_multiply(scratch, workers, kBytes), kBytes);
}

/// In f32 a fragile program (Program::fragile) would be off by 1e-4 and more for some pairs: it runs in f64
/// inside.
template <class T>
bool runs_wide(const Program& program) {
  return std::is_same_v<T, float> && program.fragile;
}

bool has_smooth_forms(const Program& program) {
  return std::ranges::any_of(program.steps, [](const Step& step) {
    return step.kind == StepKind::Nonlinear && step.phi.kind == Nonlinearity::Kind::Series;
  });
}

/// Whether variances are so large that a mixture takes a series' place. f32 would then leave too little of
/// 1 - cosine: such a program runs in f64 inside as well.
template <class T>
bool mixes_logistics(const Program& program, TensorView<const T> x, const TensorView<const T>* versus) {
  if (!has_smooth_forms(program)) return false;
  double largest = 0;
  for (const double q : input_variances<T>(program, x, "x")) largest = std::max(largest, q);
  if (versus != nullptr) {
    for (const double q : input_variances<T>(program, *versus, "versus")) largest = std::max(largest, q);
  }
  SeriesList forms;
  choose_scales(program, largest, 0, kOmitted * infinite_entry_error<T>(), forms);
  return std::ranges::any_of(forms, [](const auto& form) { return form != nullptr && !form->series; });
}

/// Whether x is [n, ...input], n > 0; what is not is refused, or has nothing to be counted.
template <class T>
bool holds_examples(const Program& program, TensorView<const T> x) {
  return x.shape().rank() != 0 && x.shape()[0] != 0 && x.shape().inner() == program.input;
}

/// What planes in f32 add to a Builder in f64.
std::size_t narrow_bytes(const Program& program, std::size_t examples, std::size_t workers) {
  if (!pools_planes(program)) return 0;
  const std::vector<int> zeros(program.pixels.size());
  const PlanePlan plan = plan_planes(program, Scales{zeros, zeros});
  const std::size_t windows = program.steps[plan.head].geometry.out_pixels();
  const std::size_t matrices = checked_multiply(2 * sizeof(float) * windows, windows, kBytes);
  const std::size_t inputs = checked_multiply(examples, program.input.size() * sizeof(float), kBytes);
  const std::size_t held = checked_add(Sides<float>::bytes(program, examples), inputs, kBytes);
  const std::size_t scratch = checked_add(PlaneWorker<float>::bytes(plan), matrices, kBytes);
  return checked_add(held, checked_multiply(scratch, workers, kBytes), kBytes);
}

/// See infinite_kernel_bytes.
template <class T>
std::size_t required_bytes(const Program& program, std::size_t rows, std::size_t columns,
                           const InfiniteOptions& what, std::size_t workers, bool matrices) {
  const std::size_t examples = columns == 0 ? rows : checked_add(rows, columns, kBytes);
  std::size_t bytes = 0;
  if (matrices) {
    const std::size_t entries = checked_multiply(rows, columns == 0 ? rows : columns, kBytes);
    bytes = checked_multiply(entries, sizeof(T) * (what.nngp && what.ntk ? 2 : 1), kBytes);
  }
  // With smooth forms the inputs decide: the more is counted.
  const bool may_run_wide = runs_wide<T>(program) || (std::is_same_v<T, float> && has_smooth_forms(program));
  if (!may_run_wide) return checked_add(bytes, builder_bytes<T>(program, examples, workers), kBytes);
  const std::size_t copies = checked_multiply(examples, program.input.size() * sizeof(double), kBytes);
  bytes = checked_add(checked_add(bytes, copies, kBytes), narrow_bytes(program, examples, workers), kBytes);
  return checked_add(bytes, builder_bytes<double>(program, examples, workers), kBytes);
}

/// Everything that belongs to examples, prepared once, and the blocks between them.
template <class T>
class Builder {
 public:
  Builder(const models::Model& model, const models::NetworkOptions& options, TensorView<const T> x,
          const TensorView<const T>* versus, const InfiniteOptions& what, const Workers& workers,
          double promised)
      : program_(compile(model, options, what.ntk)),
        rows_(x.shape().rank() == 0 ? 0 : x.shape()[0]),
        same_(versus == nullptr),
        what_(what),
        workers_(workers) {
    check_shape("x", x);
    if (!same_) check_shape("versus", *versus);
    columns_ = same_ ? rows_ : versus->shape()[0];
    if (!what.nngp && !what.ntk) throw ArgumentError("infinite_kernel: neither nngp nor ntk is asked for");
    if (rows_ == 0 || columns_ == 0) return;

    const std::vector<double> left = input_variances<T>(program_, x, "x");
    const std::vector<double> right = same_ ? left : input_variances<T>(program_, *versus, "versus");
    double largest = 0;
    double smallest = 0;
    for (const std::vector<double>* side : {&left, &right}) {
      for (const double q : *side) {
        largest = std::max(largest, q);
        if (q > 0 && (smallest == 0 || q < smallest)) smallest = q;
      }
    }
    scratch_.resize(workers_.count());
    for (Scratch& scratch : scratch_) {
      const Tile tile = largest_tile();
      if (what_.nngp) scratch.nngp = Tensor<T>(Shape{tile.rows, tile.columns});
      if (what_.ntk) scratch.ntk = Tensor<T>(Shape{tile.rows, tile.columns});
    }
    cosines_ = CosineVectors<T>::make(program_, x, left, versus, right, kVectorTile, workers_.count());
    if (cosines_ != nullptr) return;
    scales_ = choose_scales(program_, largest, smallest, kOmitted * promised, series_);
    const bool transposed = program_.reach != Reach::Vector;
    if (program_.reach == Reach::Vector) first_ = first_nonlinearity(program_);
    if (widens_vectors<T>(program_)) wide_ = std::make_unique<WideVectors>();
    left_sides_ = prepared_sides(x, left, wide_ ? &wide_->left : nullptr);
    left_inputs_ = std::make_unique<Inputs<T>>(program_, x, scales_.variance[0],
                                               transposed && (same_ || has_planes(program_)));
    if (!same_) {
      right_sides_ = prepared_sides(*versus, right, wide_ ? &wide_->right : nullptr);
      right_inputs_ = std::make_unique<Inputs<T>>(program_, *versus, scales_.variance[0], transposed);
    }
    if (program_.powers) check_powers(promised);
    if (has_planes(program_)) plan_ = plan_planes(program_, scales_);
    if (plan_ && plan_->diagonal) {
      left_images_ =
          std::make_unique<PlaneImages<T>>(*plan_, *left_sides_, left_inputs_->rows(), true, same_, workers_);
      if (!same_) {
        right_images_ = std::make_unique<PlaneImages<T>>(*plan_, *right_sides_, right_inputs_->rows(), false,
                                                         true, workers_);
      }
    }
    for (std::size_t w = 0; w < workers_.count(); ++w) {
      propagators_.push_back(std::make_unique<Propagator<T>>(program_, scales_, series_, what_.ntk));
      if (wide_) {
        wide_->propagators.push_back(
            std::make_unique<Propagator<double>>(program_, scales_, series_, what_.ntk));
      }
    }
    for (Scratch& scratch : scratch_) {
      if (plan_) scratch.planes = std::make_unique<PlaneWorker<T>>(*plan_);
      if (program_.reach == Reach::Vector) scratch.products = Tensor<T>(Shape{kVectorTile, kVectorTile});
    }
  }

  /// For results in f32: planes before a pooling are followed in f32 where what is pooled stands far enough
  /// from its rounding.
  void narrow_planes() requires std::is_same_v<T, double> {
    if (!plan_ || plan_->window_h == 0) return;
    const std::size_t windows = program_.steps[plan_->head].geometry.out_pixels();
    narrow_ = std::make_unique<NarrowPlanes>();
    const auto narrowed = [&](const Inputs<T>& inputs, std::size_t examples) {
      Tensor<float> channels(Shape{examples * program_.channels * inputs.stride()});
      std::transform(inputs.columns(), inputs.columns() + channels.size(), channels.data(),
                     [](T value) { return static_cast<float>(value); });
      return channels;
    };
    narrow_->left = std::make_unique<Sides<float>>(program_, *left_sides_);
    narrow_->left_channels = narrowed(*left_inputs_, rows_);
    if (!same_) {
      narrow_->right = std::make_unique<Sides<float>>(program_, *right_sides_);
      narrow_->right_channels = narrowed(*right_inputs_, columns_);
    }
    for (std::size_t w = 0; w < workers_.count(); ++w) {
      narrow_->workers.push_back(std::make_unique<PlaneWorker<float>>(*plan_));
      narrow_->deltas.emplace_back(Shape{windows, windows});
      narrow_->thetas.emplace_back(Shape{windows, windows});
    }
  }

  std::size_t rows() const noexcept { return rows_; }
  std::size_t columns() const noexcept { return columns_; }
  bool symmetric() const noexcept { return same_; }

  /// One task owns one tile of a grid that belongs to the whole matrix, so that an entry's bits do not depend
  /// on the block it is asked in. Of a symmetric matrix only the lower triangle is computed; a task writes
  /// its entries' mirror images as well.
  template <class Out>
  void block(IndexRange rows, IndexRange columns, const InfiniteBlock<Out>& out, const Progress& progress) {
    check_range("rows", rows, rows_);
    check_range("columns", columns, columns_);
    if (rows.begin == rows.end || columns.begin == columns.end) return;
    const Tile unit = largest_tile();
    std::vector<Tile> list;
    const auto reach = [&](IndexRange r, IndexRange c) {
      for (std::size_t row = r.begin / unit.rows * unit.rows; row < r.end; row += unit.rows) {
        for (std::size_t column = c.begin / unit.columns * unit.columns; column < c.end;
             column += unit.columns) {
          const Tile tile{row, std::min(unit.rows, rows_ - row), column,
                          std::min(unit.columns, columns_ - column)};
          if (same_ && tile.column > tile.row + tile.rows - 1) break;
          list.push_back(tile);
        }
      }
    };
    reach(rows, columns);
    if (same_ && !(rows.begin == columns.begin && rows.end == columns.end)) {
      reach(columns, rows);
      const auto key = [](const Tile& tile) { return std::pair(tile.row, tile.column); };
      std::ranges::sort(list, {}, key);
      const auto rest = std::ranges::unique(list, {}, key);
      list.erase(rest.begin(), rest.end());
    }
    workers_.run(
        list.size(),
        [&](std::size_t index, std::size_t worker) {
          const Tile& tile = list[index];
          const auto wanted = [&](std::size_t i, std::size_t j) { return rows.holds(i) && columns.holds(j); };
          switch (program_.reach) {
            case Reach::Vector:
              if (cosines_ == nullptr) {
                vectors(tile, worker);
              } else if (cosine_vectors(tile, worker, rows, columns, out)) {
                return;
              }
              break;
            case Reach::Diagonal:
              diagonals(tile, worker);
              break;
            case Reach::Full:
              pairs(tile, worker,
                    [&](std::size_t i, std::size_t j) { return wanted(i, j) || (same_ && wanted(j, i)); });
              break;
          }
          if (what_.nngp) deliver(scratch_[worker].nngp, tile, rows, columns, out.nngp, out.stride);
          if (what_.ntk) deliver(scratch_[worker].ntk, tile, rows, columns, out.ntk, out.stride);
        },
        progress, what_.stop);
  }

 private:
  struct NarrowPlanes {
    std::unique_ptr<Sides<float>> left, right;  ///< right: null when both sides are the same
    Tensor<float> left_channels, right_channels;
    std::vector<std::unique_ptr<PlaneWorker<float>>> workers;
    std::vector<Tensor<float>> deltas, thetas;  ///< per worker, [windows, windows]
  };
  struct WideVectors {
    std::unique_ptr<Sides<double>> left, right;  ///< right: null when both sides are the same
    std::vector<std::unique_ptr<Propagator<double>>> propagators;  ///< per worker
  };
  /// Of one worker.
  struct Scratch {
    Tensor<T> products, nngp, ntk;
    std::unique_ptr<PlaneWorker<T>> planes;
  };

  Tile largest_tile() const { return infinite::largest_tile(program_.reach); }

  void check_shape(const char* name, TensorView<const T> inputs) const {
    const Shape& shape = inputs.shape();
    if (shape.rank() == 0 || !(shape.inner() == program_.input)) {
      throw ShapeError("infinite_kernel: " + std::string(name) + ": found " + shape.to_string() +
                       ", expected [examples] followed by " + program_.input.to_string());
    }
  }

  static void check_range(const char* name, IndexRange range, std::size_t count) {
    if (range.begin > range.end || range.end > count) {
      throw ArgumentError("InfiniteKernel::block: " + std::string(name) + ": found [" +
                          std::to_string(range.begin) + ", " + std::to_string(range.end) + ") of " +
                          std::to_string(count));
    }
  }

  /// `wide`: where the same go before they are rounded, or null.
  std::unique_ptr<Sides<T>> prepared_sides(TensorView<const T> x, const std::vector<double>& variances,
                                           std::unique_ptr<Sides<double>>* wide) const {
    if constexpr (std::is_same_v<T, float>) {
      if (wide != nullptr) {
        *wide = std::make_unique<Sides<double>>(
            prepare<double>(program_, scales_, series_, x, variances, workers_, what_.stop));
        return std::make_unique<Sides<T>>(program_, **wide);
      }
    }
    return std::make_unique<Sides<T>>(
        prepare<T>(program_, scales_, series_, x, variances, workers_, what_.stop));
  }

  /// Covariances are held as the mean of both variances less delta: one between variances q and q' is off by
  /// half a unit in the last place of the mean, (q + q') / 2, and every power multiplies what is relative to
  /// sqrt(q q') by its degree. Throws NumericError when that passes `promised` somewhere.
  void check_powers(double promised) const {
    struct Range {
      double least = std::numeric_limits<double>::infinity(), most = 0;
      std::size_t least_at = 0, most_at = 0;
    };
    const auto range_of = [&](const Sides<T>& side, std::size_t slot) {
      Range range;
      const std::size_t pixels = program_.pixels[slot];
      for (std::size_t i = 0; i < side.examples(); ++i) {
        double sum = 0;
        for (std::size_t p = 0; p < pixels; ++p) {
          sum += static_cast<double>(program_.reach == Reach::Full ? side.variance(slot, 0, i)[p]
                                                                   : *side.variance(slot, p, i));
        }
        if (side.null(i) || !(sum > 0)) continue;  // exact zeros, or not held
        if (sum < range.least) range.least = sum, range.least_at = i;
        if (sum > range.most) range.most = sum, range.most_at = i;
      }
      return range;
    };
    const auto check = [&](std::size_t slot, double growth, const std::string& where) {
      const Range left = range_of(*left_sides_, slot);
      const Range right = same_ ? left : range_of(*right_sides_, slot);
      if (left.most == 0 || right.most == 0) return;
      const bool left_largest = left.most / right.least >= right.most / left.least;
      const double root = std::sqrt(left_largest ? left.most / right.least : right.most / left.least);
      const double error = growth * std::numeric_limits<T>::epsilon() / 4 * (root + 1 / root);
      if (error <= promised) return;
      throw NumericError(fmt::format(
          "infinite_kernel: the variances {} of example {} of x and {} of {} are a factor {:.2g} apart: "
          "their "
          "entry would be off by {:.1e} sqrt(k_ii k_jj), where {:g} is promised; bring the examples to one "
          "norm{}",
          where, left_largest ? left.most_at : left.least_at, left_largest ? right.least_at : right.most_at,
          same_ ? "x" : "versus", root * root, error, promised,
          promised < infinite_entry_error<float>() ? ", or ask for f32, which promises less" : ""));
    };
    double growth = 1;
    check(program_.steps.back().out, growth, "at the end");
    for (std::size_t s = program_.steps.size(); s-- > 0;) {
      const Step& step = program_.steps[s];
      if (step.kind == StepKind::AveragePool) check(step.in, growth, "before " + step.name);
      if (step.kind != StepKind::Nonlinear || step.phi.kind != Nonlinearity::Kind::Monomial) continue;
      growth *= static_cast<double>(std::max<std::size_t>(1, step.phi.degree));
      check(step.in, growth, "before " + step.name);
    }
  }

  const Sides<T>& right_sides() const { return same_ ? *left_sides_ : *right_sides_; }
  const Inputs<T>& right_inputs() const { return same_ ? *left_inputs_ : *right_inputs_; }

  BlockPlace<T> place(std::size_t row, std::size_t column) const {
    return {left_sides_.get(), &right_sides(), row, column, same_};
  }

  /// True when the results stand where they were asked for; false when they are in the scratch of the tile.
  template <class Out>
  bool cosine_vectors(const Tile& tile, std::size_t worker, IndexRange rows, IndexRange columns,
                      const InfiniteBlock<Out>& out) {
    const typename CosineVectors<T>::Tile whole{tile.row, tile.rows, tile.column, tile.columns};
    if constexpr (std::is_same_v<T, Out>) {
      if (!same_) {
        const IndexRange r = overlap(rows, tile.row, tile.rows);
        const IndexRange c = overlap(columns, tile.column, tile.columns);
        const std::size_t to = (r.begin - rows.begin) * out.stride + c.begin - columns.begin;
        cosines_->run(whole, {r.begin, r.end - r.begin, c.begin, c.end - c.begin}, worker,
                      {what_.nngp ? out.nngp + to : nullptr, what_.ntk ? out.ntk + to : nullptr, out.stride});
        return true;
      }
    }
    Scratch& scratch = scratch_[worker];
    cosines_->run(whole, whole, worker,
                  {what_.nngp ? scratch.nngp.data() : nullptr, what_.ntk ? scratch.ntk.data() : nullptr,
                   largest_tile().columns});
    return false;
  }

  void vectors(const Tile& tile, std::size_t worker) {
    const std::size_t d = program_.channels;
    const T* const left = left_inputs_->rows() + tile.row * d;
    const T* const right = right_inputs().rows() + tile.column * d;
    Tensor<T>& products = scratch_[worker].products;
    blas::gemm(blas::Transpose::No, blas::Transpose::Yes, tile.rows, tile.columns, d,
               T(1) / static_cast<T>(d), left, d, right, d, T(0), products.data(), kVectorTile);
    std::optional<NearlyParallel> parallel;
    if constexpr (std::is_same_v<T, double>) {
      if (first_) parallel.emplace(*left_sides_, right_sides(), tile, first_->angles ? 0 : first_->weight);
    } else if (wide_) {
      parallel.emplace(*wide_->left, same_ ? *wide_->left : *wide_->right, tile, 0);
    }
    for (std::size_t row = 0; row < tile.rows; row += kVectorRows) {
      const std::size_t rows = std::min(kVectorRows, tile.rows - row);
      std::size_t columns = tile.columns;
      if (same_) columns = std::min(columns, tile.row + row + rows - tile.column);
      PairState<T>& state = propagators_[worker]->start(1, rows, columns);
      const T* const left_variance = left_sides_->variance(0, 0, tile.row + row);
      const T* const right_variance = right_sides().variance(0, 0, tile.column);
      for (std::size_t r = 0; r < rows; ++r) {
        T* const delta = state.delta() + r * state.stride();
        const T* const product = products.data() + (row + r) * kVectorTile;
        const T half = left_variance[r] / 2;
        unsigned near = 0;  // not a minimum: the loop is to be vectorized
        for (std::size_t c = 0; c < columns; ++c) {
          const T mean = half + right_variance[c] / 2;
          delta[c] = mean - product[c];
          near |= delta[c] < static_cast<T>(kNear) * mean ? 1U : 0U;
        }
        for (std::size_t c = 0; near != 0 && c < columns; ++c) {
          if (delta[c] < static_cast<T>(kNear) * (half + right_variance[c] / 2)) {
            delta[c] = static_cast<T>(half_squared_distance(left + (row + r) * d, right + c * d, d));
          }
        }
        if (parallel) parallel->mark(r, tile.row + row + r, product, delta, columns);
      }
      run_and_store({tile.row + row, rows, tile.column, columns}, tile, worker);
      for (std::size_t r = 0; parallel && r < rows; ++r) {
        if (!parallel->any(r)) continue;
        const std::size_t i = tile.row + row + r;
        const std::size_t end = same_ ? std::min(columns, i + 1 - tile.column) : columns;
        for (std::size_t c = 0; c < end; c += kApartColumns) {
          follow_apart(i, tile, c, std::min(kApartColumns, end - c), parallel->marks(r) + c, worker);
        }
      }
    }
  }

  /// Finds the pairs of a tile of vectors whose angles delta in T does not hold (kAngleDigits), or, given the
  /// weight variance before a smooth nonlinearity, whose angles it would miss (kSmoothDigits). In f32 also
  /// those of an input that is zero with one that is not: their covariance comes from the biases alone, and
  /// delta is the rounded half of the other's variance.
  class NearlyParallel {
   public:
    NearlyParallel(const Sides<double>& left, const Sides<double>& right, const Tile& tile, double weight)
        : left_(left), weight_(weight) {
      const double* const variance = right.variance(0, 0, tile.column);
      for (std::size_t c = 0; c < tile.columns; ++c) {
        root_[c] = std::sqrt(variance[c]);
        fourth_root_[c] = std::sqrt(root_[c]);
        narrow_root_[c] = static_cast<T>(root_[c]);
        if (root_[c] == 0) {
          zeros_ |= std::is_same_v<T, float> && !right.null(tile.column + c);
          continue;
        }
        least_ = std::min(least_, root_[c]);
        most_ = std::max(most_, root_[c]);
      }
    }

    /// Row r of those followed together is example i; products and deltas with the tile's columns.
    void mark(std::size_t r, std::size_t i, const T* product, const T* delta, std::size_t columns) {
      any_[r] = false;
      const double root = std::sqrt(*left_.variance(0, 0, i));
      const bool zero = root == 0;
      const bool lone = zero ? std::is_same_v<T, float> && !left_.null(i) && most_ > 0 : zeros_;
      if (!lone && (zero || most_ == 0 || !any_candidate(root, product, columns))) return;
      const double fourth_root = std::sqrt(root);
      unsigned marked = 0;
      for (std::size_t c = 0; c < columns; ++c) {
        const double gap = std::abs(root - root_[c]);
        const double mean = fourth_root * fourth_root_[c];  // sqrt(s.d. s.d.'): s = gap / mean
        const double both = mean * mean;
        const double below = static_cast<double>(delta[c]) - gap * gap / 2;  // (1 - cosine) both
        const double above = 2 * both - below;
        const bool parallel = weight_ > 0 ? gap * (mean + gap) > kSmoothDigits * (1 / weight_ + below)
                                          : square(gap * (mean + gap)) > kAngleDigits * both * below;
        const bool opposite = weight_ > 0 ? both + gap * gap / 2 > kSmoothDigits * (1 / weight_ + above)
                                          : square(both + gap * gap / 2) > kAngleDigits * both * above;
        const bool beside_zero = lone & (zero != (root_[c] == 0));
        const unsigned is = ((parallel | opposite) & (both > 0)) | beside_zero ? 1U : 0U;
        marks_[r][c] = static_cast<unsigned char>(is);
        marked |= is;
      }
      any_[r] = marked != 0;
    }
    bool any(std::size_t r) const { return any_[r]; }
    const unsigned char* marks(std::size_t r) const { return marks_[r]; }  ///< of each column

   private:
    static double square(double value) { return value * value; }

    /// One comparison for most pairs of an example, from the column whose norm differs most.
    bool any_candidate(double root, const T* product, std::size_t columns) const {
      const double ratio = std::max(root / least_, most_ / root);
      const double apart = std::sqrt(ratio) - 1 / std::sqrt(ratio);
      const double parallel_loss = apart + apart * apart;
      const double opposite_loss = 1 + apart * apart / 2;
      const double most_loss = std::max(parallel_loss, opposite_loss);
      if (weight_ > 0 && most_loss * weight_ * root * most_ <= kSmoothDigits) return false;
      const double unknown = weight_ > 0 ? most_loss / kSmoothDigits : square(most_loss) / kAngleDigits;
      const T limit = static_cast<T>(std::max(0.0, 1 - unknown) * root);
      unsigned candidates = 0;
      for (std::size_t c = 0; c < columns; ++c) {
        candidates |= std::abs(product[c]) > limit * narrow_root_[c] ? 1U : 0U;
      }
      return candidates != 0;
    }

    const Sides<double>& left_;
    double weight_;
    double root_[kVectorTile], fourth_root_[kVectorTile];
    T narrow_root_[kVectorTile];
    double least_ = std::numeric_limits<double>::infinity(), most_ = 0;
    bool zeros_ = false;  ///< whether a column is one of a zero input whose biases count, in f32
    bool any_[kVectorRows];
    unsigned char marks_[kVectorRows][kVectorTile];
  };

  /// Follows the marked ones of the pairs of example i with columns [column, column + columns) of the tile in
  /// f64, from angles of their own where the program allows it, and puts them into the scratch of the tile.
  void follow_apart(std::size_t i, const Tile& tile, std::size_t column, std::size_t columns,
                    const unsigned char* marks, std::size_t worker) {
    if (std::none_of(marks, marks + columns, [](unsigned char mark) { return mark != 0; })) return;
    const std::size_t d = program_.channels;
    const std::size_t first = tile.column + column;
    const T* const left = left_inputs_->rows() + i * d;
    const T* const right = right_inputs().rows() + first * d;
    const auto [left_side, right_side, propagator] = apart(worker);
    double* const delta = propagator->start(1, 1, columns).delta();
    std::fill_n(delta, propagator->state().size(), 0.0);
    double* const sines = first_ ? propagator->sine_squares(first_->step) : nullptr;
    for (std::size_t c = 0; c < columns; ++c) {
      if (marks[c] == 0) continue;
      delta[c] = half_squared_distance(left, right + c * d, d);
      if (sines == nullptr) continue;
      sines[c] =
          sine_square(squared_sine(left, right + c * d, d), delta[c], {left_side, right_side, i, first + c});
    }
    propagator->run({left_side, right_side, i, first, same_}, 0, program_.steps.size());
    const std::size_t last = program_.steps.back().out;
    const double half = *left_side->variance(last, 0, i) / 2;
    const double* const variance = right_side->variance(last, 0, first);
    const double covariance_unit = std::ldexp(1.0, scales_.variance[last]);
    const double theta_unit = std::ldexp(1.0, scales_.theta[last]);
    Scratch& scratch = scratch_[worker];
    PairState<double>& state = propagator->state();
    const std::size_t to = (i - tile.row) * kVectorTile + column;
    for (std::size_t c = 0; c < columns; ++c) {
      if (marks[c] == 0) continue;
      if (what_.nngp) {
        const double covariance = half + variance[c] / 2 - state.delta()[c];
        scratch.nngp.data()[to + c] = static_cast<T>(covariance_unit * covariance);
      }
      if (what_.ntk) scratch.ntk.data()[to + c] = static_cast<T>(theta_unit * state.theta()[c]);
    }
  }

  struct Apart {
    const Sides<double>*left, *right;
    Propagator<double>* propagator;
  };
  Apart apart(std::size_t worker) const {
    if constexpr (std::is_same_v<T, double>) {
      return {left_sides_.get(), &right_sides(), propagators_[worker].get()};
    } else {
      return {wide_->left.get(), same_ ? wide_->left.get() : wide_->right.get(),
              wide_->propagators[worker].get()};
    }
  }

  /// sin^2 of the angle between two inputs, from what one is beside its projection on the other; 1 when one
  /// is zero.
  static double squared_sine(const T* a, const T* b, std::size_t n) {
    double product = 0;
    double a_square = 0;
    double b_square = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const auto x = static_cast<double>(a[i]);
      const auto y = static_cast<double>(b[i]);
      product += x * y;
      a_square += x * x;
      b_square += y * y;
    }
    if (a_square == 0 || b_square == 0) return 1;
    const double share = product / b_square;
    double rest = 0;
    for (std::size_t i = 0; i < n; ++i) {
      // Rounded once: of vectors that are parallel but for their own rounding nothing else is left.
      const double beside = std::fma(-share, static_cast<double>(b[i]), static_cast<double>(a[i]));
      rest += beside * beside;
    }
    return std::min(1.0, rest / a_square);
  }

  /// The same before the first nonlinearity. An affine map takes the determinant D = q q' - c^2 = q q' sin^2
  /// to w^2 D + 2 w b delta, of which only the share of q q' is held: products of variances may be no
  /// numbers.
  double sine_square(double sine, double delta, const BlockPlace<double>& pair) const {
    for (std::size_t s = 0; s < first_->step; ++s) {
      const Step& step = program_.steps[s];
      const double weight =
          std::ldexp(step.weight_variance, scales_.variance[step.in] - scales_.variance[step.out]);
      const double bias = std::ldexp(step.bias_variance, -scales_.variance[step.out]);
      const double left = *pair.left->variance(step.out, 0, pair.row);
      const double right = *pair.right->variance(step.out, 0, pair.column);
      if (left == 0 || right == 0) return 0;
      sine *= weight * *pair.left->variance(step.in, 0, pair.row) / left;
      sine *= weight * *pair.right->variance(step.in, 0, pair.column) / right;
      delta *= weight;
      sine += 2 * (bias / left) * (delta / right);
    }
    return std::min(1.0, sine);
  }

  static double half_squared_distance(const T* a, const T* b, std::size_t n) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
      sum += difference * difference;
    }
    return sum / (2 * static_cast<double>(n));
  }

  void diagonals(const Tile& tile, std::size_t worker) {
    const std::size_t pixels = program_.pixels[0];
    const std::size_t channels = program_.channels;
    if (plan_) {
      diagonal_planes(tile, worker);
      return;
    }
    const Inputs<T>& right = right_inputs();
    PairState<T>& state = propagators_[worker]->start(pixels, tile.rows, tile.columns);
    for (std::size_t p = 0; p < pixels; ++p) {
      for (std::size_t r = 0; r < tile.rows; ++r) {
        covariance_kernels<T>().squared_differences(
            left_inputs_->rows() + ((tile.row + r) * pixels + p) * channels,
            right.columns() + p * channels * right.stride() + tile.column, right.stride(), channels,
            T(0.5) / static_cast<T>(channels), state.delta(p) + r * state.stride(), tile.columns);
      }
    }
    run_and_store(tile, tile, worker);
  }

  void diagonal_planes(const Tile& tile, std::size_t worker) {
    const PlaneImages<T>& rights = same_ ? *left_images_ : *right_images_;
    PlaneWorker<T>& planes = *scratch_[worker].planes;
    Propagator<T>& propagator = *propagators_[worker];
    PairState<T>& state = propagator.start(1, tile.rows, tile.columns);
    const Step& head = program_.steps[plan_->head];
    const double delta_shift = std::ldexp(1.0, scales_.variance[head.in] - scales_.variance[head.out]);
    const double theta_shift = std::ldexp(1.0, scales_.theta[head.in] - scales_.theta[head.out]);
    const std::size_t lanes = planes.lanes();
    const T* lefts[kDiagonalRows];
    for (std::size_t r = 0; r < tile.rows; ++r) lefts[r] = left_images_->left(tile.row + r);
    std::vector<PlaneMeans> means(tile.rows * lanes);
    std::fill_n(state.delta(), state.size(), T(0));
    for (std::size_t c = 0; c < tile.columns; c += lanes) {
      if (same_ && tile.column + c >= tile.row + tile.rows) break;
      planes.diagonals(lefts, tile.rows, rights.group((tile.column + c) / lanes), means.data());
      for (std::size_t r = 0; r < tile.rows; ++r) {
        for (std::size_t lane = 0; lane < std::min(lanes, tile.columns - c); ++lane) {
          const PlaneMeans& mean = means[r * lanes + lane];
          const std::size_t at = r * state.stride() + c + lane;
          state.delta()[at] = static_cast<T>(delta_shift * mean.delta);
          if (what_.ntk) state.theta()[at] = static_cast<T>(theta_shift * mean.theta);
        }
      }
    }
    propagator.run(place(tile.row, tile.column), plan_->head + 1, program_.steps.size());
    store(propagator.state(), tile, tile, worker);
  }

  template <class Wanted>
  void pairs(const Tile& tile, std::size_t worker, const Wanted& wanted) {
    const std::size_t pixels = program_.pixels[0];
    const std::size_t channels = program_.channels;
    const Inputs<T>& right = right_inputs();
    const std::size_t row = tile.row;
    if (plan_) {
      planes(tile, worker, wanted);
      return;
    }
    for (std::size_t column = tile.column; column < tile.column + tile.columns; ++column) {
      if ((same_ && column > row) || !wanted(row, column)) continue;
      PairState<T>& state = propagators_[worker]->start(1, pixels, pixels);
      for (std::size_t p = 0; p < pixels; ++p) {
        covariance_kernels<T>().squared_differences(
            left_inputs_->rows() + (row * pixels + p) * channels,
            right.columns() + column * channels * right.stride(), right.stride(), channels,
            T(0.5) / static_cast<T>(channels), state.delta() + p * state.stride(), pixels);
      }
      run_and_store({row, 1, column, 1}, tile, worker);
    }
  }

  template <class Wanted>
  void planes(const Tile& tile, std::size_t worker, const Wanted& wanted) {
    using Image = typename PlaneWorker<T>::Image;
    const auto image = [&](const Inputs<T>& inputs, const Sides<T>& side, std::size_t i) {
      return Image{inputs.columns() + i * program_.channels * inputs.stride(), inputs.stride(), &side, i};
    };
    Image rights[kFullColumns];
    bool same[kFullColumns];
    PlaneMeans means[kFullColumns];
    std::size_t count = 0;
    for (std::size_t column = tile.column; column < tile.column + tile.columns; ++column) {
      if ((same_ && column > tile.row) || !wanted(tile.row, column)) continue;
      same[count] = same_ && column == tile.row;
      rights[count++] = image(right_inputs(), right_sides(), column);
    }
    const Inputs<T>& left = same_ ? right_inputs() : *left_inputs_;
    if (plan_->window_h > 0) {
      for (std::size_t j = 0; j < count; ++j) {
        windows(image(left, *left_sides_, tile.row), rights[j], worker);
        store(propagators_[worker]->state(), {tile.row, 1, rights[j].index, 1}, tile, worker);
      }
      return;
    }
    scratch_[worker].planes->run(image(left, *left_sides_, tile.row), rights, count, same, means);
    for (std::size_t j = 0; j < count; ++j) {
      Propagator<T>& propagator = *propagators_[worker];
      const BlockPlace<T> where = place(tile.row, rights[j].index);
      propagator.start(1, 1, 1);
      propagator.set_mean(plan_->head, where, means[j].delta, means[j].theta);
      propagator.run(where, plan_->head + 1, program_.steps.size());
      store(propagator.state(), {tile.row, 1, rights[j].index, 1}, tile, worker);
    }
  }

  void windows(const typename PlaneWorker<T>::Image& left, const typename PlaneWorker<T>::Image& right,
               std::size_t worker) {
    if constexpr (std::is_same_v<T, double>) {
      if (narrow_ != nullptr && narrow_windows(left.index, right.index, worker)) return;
    }
    const ConvGeometry& g = program_.steps[plan_->head].geometry;
    PairState<T>& state = propagators_[worker]->start(1, g.out_pixels(), g.out_pixels());
    std::fill_n(state.delta(), state.size(), T(0));
    scratch_[worker].planes->run_windows(left, right, state.delta(), state.theta(), state.stride());
    finish_windows(*plan_, *propagators_[worker], place(left.index, right.index), what_.ntk);
    propagators_[worker]->run(place(left.index, right.index), plan_->head + 1, program_.steps.size());
  }

  /// The same with planes in f32. False where two windows' pre-activations are nearly parallel: pooling has
  /// then left little of the digits of the angle.
  bool narrow_windows(std::size_t row, std::size_t column, std::size_t worker) {
    if (same_ && row == column) return false;
    const Step& head = program_.steps[plan_->head];
    const std::size_t windows = head.geometry.out_pixels();
    const auto image = [&](const Tensor<float>& channels, const Sides<float>& side, std::size_t i) {
      const std::size_t stride = right_inputs().stride();
      return PlaneWorker<float>::Image{channels.data() + i * program_.channels * stride, stride, &side, i};
    };
    NarrowPlanes& planes = *narrow_;
    Tensor<float>& deltas = planes.deltas[worker];
    Tensor<float>& thetas = planes.thetas[worker];
    std::fill_n(deltas.data(), deltas.size(), 0.0F);
    if (what_.ntk) std::fill_n(thetas.data(), thetas.size(), 0.0F);
    planes.workers[worker]->run_windows(image(planes.left_channels, *planes.left, row),
                                        same_ ? image(planes.left_channels, *planes.left, column)
                                              : image(planes.right_channels, *planes.right, column),
                                        deltas.data(), what_.ntk ? thetas.data() : nullptr, windows);
    PairState<T>& state = propagators_[worker]->start(1, windows, windows);
    for (std::size_t p = 0; p < windows; ++p) {
      std::copy_n(deltas.data() + p * windows, windows, state.delta() + p * state.stride());
      if (what_.ntk) std::copy_n(thetas.data() + p * windows, windows, state.theta() + p * state.stride());
    }
    finish_windows(*plan_, *propagators_[worker], place(row, column), what_.ntk);
    const auto roots = [&](const Sides<T>& side, std::size_t example) {
      std::vector<T> result(side.variance(head.out, 0, example),
                            side.variance(head.out, 0, example) + windows);
      for (T& value : result) value = std::sqrt(value);
      return result;
    };
    const std::vector<T> left = roots(*left_sides_, row);
    const std::vector<T> right = roots(right_sides(), column);
    unsigned near = 0;
    for (std::size_t p = 0; p < windows; ++p) {
      const T* const delta = state.delta() + p * state.stride();
      for (std::size_t q = 0; q < windows; ++q) {
        const T gap = left[p] - right[q];
        near |= delta[q] - gap * gap / 2 < static_cast<T>(kNearlyParallel) * left[p] * right[q] ? 1U : 0U;
      }
    }
    if (near != 0) return false;
    propagators_[worker]->run(place(row, column), plan_->head + 1, program_.steps.size());
    return true;
  }

  /// Follows the pairs of `part` to the end and keeps their kernels in the scratch of the tile.
  void run_and_store(const Tile& part, const Tile& tile, std::size_t worker) {
    Propagator<T>& propagator = *propagators_[worker];
    propagator.run(place(part.row, part.column), 0, program_.steps.size());
    store(propagator.state(), part, tile, worker);
  }

  void store(PairState<T>& state, const Tile& part, const Tile& tile, std::size_t worker) {
    const std::size_t last = program_.steps.empty() ? 0 : program_.steps.back().out;
    const T* const left = left_sides_->variance(last, 0, part.row);
    const T* const right = right_sides().variance(last, 0, part.column);
    const double covariance_unit = std::ldexp(1.0, scales_.variance[last]);
    const double theta_unit = std::ldexp(1.0, scales_.theta[last]);
    Scratch& scratch = scratch_[worker];
    for (std::size_t r = 0; r < part.rows; ++r) {
      const std::size_t i = part.row + r;
      const std::size_t to = (i - tile.row) * largest_tile().columns + part.column - tile.column;
      const std::size_t count =
          same_ ? std::min(part.columns, i + 1 - std::min(part.column, i + 1)) : part.columns;
      const T* const delta = state.delta() + r * state.stride();
      if (what_.nngp) {
        T* const out = scratch.nngp.data() + to;
        const double half = static_cast<double>(left[r]) / 2;
        for (std::size_t c = 0; c < count; ++c) {
          const double mean = half + static_cast<double>(right[c]) / 2;
          out[c] = static_cast<T>(covariance_unit * (mean - static_cast<double>(delta[c])));
        }
        clear_nulls(out, i, part.column, count);
      }
      if (what_.ntk) {
        T* const out = scratch.ntk.data() + to;
        const T* const theta = state.theta() + r * state.stride();
        const T narrow_unit = static_cast<T>(theta_unit);
        if (std::isnormal(narrow_unit)) {  // a power of two: as exact as in f64
          for (std::size_t c = 0; c < count; ++c) out[c] = narrow_unit * theta[c];
        } else {
          for (std::size_t c = 0; c < count; ++c) {
            out[c] = static_cast<T>(theta_unit * static_cast<double>(theta[c]));
          }
        }
        clear_nulls(out, i, part.column, count);
      }
    }
  }

  /// Zero examples give zeros, whatever rounding says.
  void clear_nulls(T* row, std::size_t i, std::size_t column, std::size_t count) const {
    if (left_sides_->null(i)) std::fill_n(row, count, T(0));
    if (count == 0 || !right_sides().any_null(column, count)) return;
    for (std::size_t c = 0; c < count; ++c) {
      if (right_sides().null(column + c)) row[c] = T(0);
    }
  }

  static IndexRange overlap(IndexRange a, std::size_t begin, std::size_t count) {
    return {std::max(a.begin, begin), std::max(begin, std::min(a.end, begin + count))};
  }

  /// Copies what was asked for from a tile, and of a symmetric matrix its mirror image.
  template <class Out>
  void deliver(const Tensor<T>& from, const Tile& tile, IndexRange rows, IndexRange columns, Out* out,
               std::size_t stride) const {
    const std::size_t step = largest_tile().columns;
    const auto entry = [&](std::size_t i, std::size_t j) {
      return from.data()[(i - tile.row) * step + j - tile.column];
    };
    // Entries of a symmetric tile above the diagonal are not set.
    for (std::size_t i = tile.row; i < tile.row + tile.rows; ++i) {
      const bool wanted = rows.holds(i) || (same_ && columns.holds(i));
      const std::size_t end =
          same_ ? std::min(tile.column + tile.columns, i + 1) : tile.column + tile.columns;
      unsigned broken = 0;
      const T* const line = &from.data()[(i - tile.row) * step];
      for (std::size_t c = 0; c + tile.column < end; ++c) broken |= is_finite<Out>(line[c]) ? 0U : 1U;
      if (broken == 0 || !wanted) continue;
      for (std::size_t j = tile.column; j < end; ++j) {
        const bool asked =
            (rows.holds(i) && columns.holds(j)) || (same_ && rows.holds(j) && columns.holds(i));
        if (!asked || is_finite<Out>(entry(i, j))) continue;
        throw NumericError("infinite_kernel: entry (" + std::to_string(i) + ", " + std::to_string(j) +
                           ") is " + std::to_string(entry(i, j)) + ", not a finite number of this precision");
      }
    }
    const IndexRange r = overlap(rows, tile.row, tile.rows);
    const IndexRange c = overlap(columns, tile.column, tile.columns);
    for (std::size_t i = r.begin; i < r.end; ++i) {
      Out* const line = out + (i - rows.begin) * stride;
      const std::size_t end = same_ ? std::min(c.end, i + 1) : c.end;
      for (std::size_t j = c.begin; j < end; ++j) line[j - columns.begin] = static_cast<Out>(entry(i, j));
    }
    if (!same_) return;
    // One of the two sides runs down columns: in blocks.
    constexpr std::size_t kBlock = 32;
    const IndexRange down = overlap(columns, tile.row, tile.rows);
    const IndexRange across = overlap(rows, tile.column, tile.columns);
    for (std::size_t top = down.begin; top < down.end; top += kBlock) {
      for (std::size_t j = across.begin; j < across.end; ++j) {
        Out* const line = out + (j - rows.begin) * stride;
        for (std::size_t i = std::max(top, j + 1); i < std::min(down.end, top + kBlock); ++i) {
          line[i - columns.begin] = static_cast<Out>(entry(i, j));
        }
      }
    }
  }

  Program program_;
  std::size_t rows_ = 0, columns_ = 0;
  bool same_;
  const InfiniteOptions what_;
  const Workers& workers_;
  Scales scales_;
  SeriesList series_;
  std::unique_ptr<CosineVectors<T>> cosines_;  ///< instead of all that follows, where it serves
  std::optional<PlanePlan> plan_;              ///< for models that planes can follow
  std::optional<FirstNonlinearity> first_;     ///< of vectors
  std::unique_ptr<Sides<T>> left_sides_, right_sides_;
  std::unique_ptr<Inputs<T>> left_inputs_, right_inputs_;
  std::unique_ptr<PlaneImages<T>> left_images_, right_images_;  ///< for diagonal plans
  std::vector<std::unique_ptr<Propagator<T>>> propagators_;     ///< per worker
  std::vector<Scratch> scratch_;                                ///< per worker
  std::unique_ptr<WideVectors> wide_;                           ///< see kAngleDigits
  std::unique_ptr<NarrowPlanes> narrow_;                        ///< see narrow_planes
};

template <class To, class From>
Tensor<To> converted(TensorView<const From> from) {
  Tensor<To> to(from.shape());
  std::transform(from.data(), from.data() + from.size(), to.data(),
                 [](From v) { return static_cast<To>(v); });
  return to;
}

}  // namespace
}  // namespace infinite

template <class T>
struct InfiniteKernel<T>::Implementation {
  std::unique_ptr<infinite::Builder<T>> narrow;
  std::unique_ptr<infinite::Builder<double>> wide;

  Implementation(const models::Model& model, const models::NetworkOptions& options, TensorView<const T> x,
                 const TensorView<const T>* versus, const InfiniteOptions& what, const Workers& workers,
                 bool held) {
    const infinite::Program program = infinite::compile(model, options, what.ntk);
    if (infinite::holds_examples(program, x) &&
        (versus == nullptr || infinite::holds_examples(program, *versus))) {
      const std::size_t budget = what.memory == 0 ? cpu_info().memory_bytes / 2 : what.memory;
      const std::size_t columns = versus == nullptr ? 0 : versus->shape()[0];
      MemoryAccount account("infinite_kernel", budget);
      account.phase(held ? "the kernel" : "what belongs to the examples",
                    infinite::required_bytes<T>(program, x.shape()[0], columns, what, workers.count(), held));
      account.check();
    }
    if constexpr (std::is_same_v<T, float>) {
      const bool whole = infinite::holds_examples(program, x) &&
                         (versus == nullptr || infinite::holds_examples(program, *versus));
      if (infinite::runs_wide<T>(program) || (whole && infinite::mixes_logistics(program, x, versus))) {
        const Tensor<double> wide_x = infinite::converted<double, float>(x);
        Tensor<double> wide_versus;
        if (versus != nullptr) wide_versus = infinite::converted<double, float>(*versus);
        const TensorView<const double> view = std::as_const(wide_versus).view();
        wide = std::make_unique<infinite::Builder<double>>(model, options, wide_x.view(),
                                                           versus == nullptr ? nullptr : &view, what, workers,
                                                           infinite_entry_error<T>());
        wide->narrow_planes();
        return;
      }
    }
    narrow = std::make_unique<infinite::Builder<T>>(model, options, x, versus, what, workers,
                                                    infinite_entry_error<T>());
  }
  template <class Call>
  auto visit(const Call& call) const {
    return wide != nullptr ? call(*wide) : call(*narrow);
  }
};

template <class T>
InfiniteKernel<T>::InfiniteKernel(const models::Model& model, const models::NetworkOptions& options,
                                  TensorView<const T> x, const InfiniteOptions& what, const Workers& workers)
    : implementation_(std::make_unique<Implementation>(model, options, x, nullptr, what, workers, false)) {}
template <class T>
InfiniteKernel<T>::InfiniteKernel(const models::Model& model, const models::NetworkOptions& options,
                                  TensorView<const T> x, TensorView<const T> versus,
                                  const InfiniteOptions& what, const Workers& workers)
    : implementation_(std::make_unique<Implementation>(model, options, x, &versus, what, workers, false)) {}
template <class T>
InfiniteKernel<T>::InfiniteKernel(InfiniteKernel&&) noexcept = default;
template <class T>
InfiniteKernel<T>& InfiniteKernel<T>::operator=(InfiniteKernel&&) noexcept = default;
template <class T>
InfiniteKernel<T>::~InfiniteKernel() = default;

template <class T>
std::size_t InfiniteKernel<T>::rows() const noexcept {
  return implementation_->visit([](const auto& builder) { return builder.rows(); });
}
template <class T>
std::size_t InfiniteKernel<T>::columns() const noexcept {
  return implementation_->visit([](const auto& builder) { return builder.columns(); });
}
template <class T>
bool InfiniteKernel<T>::symmetric() const noexcept {
  return implementation_->visit([](const auto& builder) { return builder.symmetric(); });
}
template <class T>
void InfiniteKernel<T>::block(IndexRange rows, IndexRange columns, const InfiniteBlock<T>& out,
                              const Progress& progress) {
  implementation_->visit([&](auto& builder) { builder.block(rows, columns, out, progress); });
}

namespace infinite {
namespace {

template <class T>
InfiniteKernels<T> whole(const models::Model& model, const models::NetworkOptions& options,
                         TensorView<const T> x, const TensorView<const T>* versus,
                         const InfiniteOptions& what, const Workers& workers) {
  const typename InfiniteKernel<T>::Implementation prepared(model, options, x, versus, what, workers, true);
  return prepared.visit([&](auto& builder) {
    InfiniteKernels<T> result;
    const Shape shape{builder.rows(), builder.columns()};
    if (what.nngp) result.nngp = Tensor<T>(shape);
    if (what.ntk) result.ntk = Tensor<T>(shape);
    builder.block({0, builder.rows()}, {0, builder.columns()},
                  InfiniteBlock<T>{what.nngp ? result.nngp.data() : nullptr,
                                   what.ntk ? result.ntk.data() : nullptr, builder.columns()},
                  what.progress);
    return result;
  });
}

}  // namespace
}  // namespace infinite

template <class T>
InfiniteKernels<T> infinite_kernel(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, const InfiniteOptions& what,
                                   const Workers& workers) {
  return infinite::whole<T>(model, options, x, nullptr, what, workers);
}

template <class T>
InfiniteKernels<T> infinite_kernel(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, TensorView<const T> versus,
                                   const InfiniteOptions& what, const Workers& workers) {
  return infinite::whole<T>(model, options, x, &versus, what, workers);
}

template <class T>
std::size_t infinite_kernel_bytes(const models::Model& model, const models::NetworkOptions& options,
                                  std::size_t rows, std::size_t columns, const InfiniteOptions& what,
                                  std::size_t workers, bool matrices) {
  return infinite::required_bytes<T>(infinite::compile(model, options, what.ntk), rows, columns, what,
                                     workers, matrices);
}

#define GRADGRAM_INSTANTIATE(T)                                                                             \
  template std::size_t infinite_kernel_bytes<T>(const models::Model&, const models::NetworkOptions&,        \
                                                std::size_t, std::size_t, const InfiniteOptions&,           \
                                                std::size_t, bool);                                         \
  template class InfiniteKernel<T>;                                                                         \
  template InfiniteKernels<T> infinite_kernel(const models::Model&, const models::NetworkOptions&,          \
                                              TensorView<const T>, const InfiniteOptions&, const Workers&); \
  template InfiniteKernels<T> infinite_kernel(const models::Model&, const models::NetworkOptions&,          \
                                              TensorView<const T>, TensorView<const T>,                     \
                                              const InfiniteOptions&, const Workers&);
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk
