#include "ntk/infinite/parallel_images.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <optional>

#include "engine/covariance.hpp"
#include "engine/error.hpp"
#include "engine/random.hpp"

namespace gradgram::ntk::infinite {
namespace {

constexpr std::size_t kArrays = 1 + simd::kParallelDirections;

/// Pixels looked at: of the image when equal ones meet, else of the left one. A twentieth of them must be
/// parallel to something for an entry to be off by 1e-5.
constexpr std::size_t kLookedAt = 256;

/// Features of pixels at an angle beyond this differ by more than it in one of three directions nearly
/// always, and f32 keeps 1e-5 of such an angle.
constexpr float kReach = 0.01F;

/// Between images whose norms are that far apart, every angle may matter.
constexpr double kFarApart = 2.5;

/// In the scale of the largest.
constexpr double kLeastVariance = 1e-20;

/// Of sums of squares over a window, and of roots of variances: a few roundings of half a unit.
constexpr double kRounding = std::numeric_limits<float>::epsilon();

/// What an entry may be off by as it is estimated in f32. Roundings that add up are overestimated, those
/// of later layers are not in it.
constexpr double kAllowed = 3e-6;

struct Chain {
  std::vector<std::size_t> steps;  ///< in their order
  std::size_t kink = 0;
};

/// The linear steps from the input to the first nonlinearity, if that has a kink and nothing else feeds it.
std::optional<Chain> linear_chain(const Program& program) {
  Chain chain;
  const auto is_kink = [](const Step& step) {
    return step.kind == StepKind::Nonlinear &&
           (step.phi.kind == Nonlinearity::Kind::ArcCosine || step.phi.kind == Nonlinearity::Kind::Sign);
  };
  const auto first = std::ranges::find_if(program.steps, is_kink);
  if (first == program.steps.end()) return std::nullopt;
  chain.kink = static_cast<std::size_t>(first - program.steps.begin());
  std::size_t slot = first->in;
  for (std::size_t s = chain.kink; s-- > 0 && slot != 0;) {
    const Step& step = program.steps[s];
    if (step.out != slot || step.kind == StepKind::Push || step.kind == StepKind::Exchange) continue;
    const bool identity = step.kind == StepKind::Nonlinear && step.phi.kind == Nonlinearity::Kind::Monomial &&
                          step.phi.degree == 1;
    if (step.kind == StepKind::Affine || step.kind == StepKind::Flatten) {
      chain.steps.insert(chain.steps.begin(), s);
    } else if (!identity) {
      return std::nullopt;
    }
    slot = step.in;
  }
  return slot == 0 ? std::optional(chain) : std::nullopt;
}

/// Pixels kept of a slot that has so many.
std::size_t step_of(std::size_t pixels) {
  std::size_t step = std::max<std::size_t>(1, (pixels + kLookedAt - 1) / kLookedAt);
  // No divisor in common with the width of an image, or all would stand in a part of its columns.
  while (std::gcd(step, pixels) > 1) ++step;
  return step;
}
std::size_t kept(const Program& program, std::size_t pixels) {
  if (program.reach == Reach::Full) return pixels;
  return (pixels + step_of(pixels) - 1) / step_of(pixels);
}

/// Random linear functions, one for each direction, of what a pixel of a step's output sees, of the variance
/// that pre-activations have.
struct Features {
  Features(const Program& program, const Scales& scales, std::size_t index, std::size_t width_in)
      : step(program.steps[index]),
        whole(step.kind == StepKind::Flatten),
        width(width_in),
        pixels(program.pixels[step.out]),
        taps(whole              ? program.pixels[step.in]
             : step.convolution ? step.geometry.kernel_h * step.geometry.kernel_w
                                : 1) {
    const double rescale = std::ldexp(1.0, scales.variance[step.in] - scales.variance[step.out]);
    const double weight =
        std::sqrt((whole ? 1 : step.weight_variance) * rescale / static_cast<double>(taps * width));
    const double bias = whole ? 0 : std::sqrt(std::ldexp(step.bias_variance, -scales.variance[step.out]));
    Random random(0x9e3779b97f4a7c15U, index);
    weights.resize(taps * width * simd::kParallelDirections);
    for (double& entry : weights) entry = weight * random.normal();
    for (double& entry : biases) entry = bias * random.normal();
  }

  /// [pixels in][width] to the directions of pixel p.
  void operator()(const double* in, std::size_t p, double* to) const {
    const ConvGeometry& g = step.geometry;
    std::copy_n(biases, simd::kParallelDirections, to);
    for (std::size_t tap = 0; tap < taps; ++tap) {
      std::size_t from = whole ? tap : p;
      if (step.convolution) {
        const std::size_t row = p / g.out_w * g.stride_h + tap / g.kernel_w - g.pad_top;  // wraps around
        const std::size_t column = p % g.out_w * g.stride_w + tap % g.kernel_w - g.pad_left;
        if (row >= g.in_h || column >= g.in_w) continue;
        from = row * g.in_w + column;
      }
      const double* const w = weights.data() + tap * width * simd::kParallelDirections;
      for (std::size_t c = 0; c < width; ++c) {
        for (std::size_t k = 0; k < simd::kParallelDirections; ++k) {
          to[k] += in[from * width + c] * w[c * simd::kParallelDirections + k];
        }
      }
    }
  }

  const Step& step;
  bool whole;
  std::size_t width, pixels, taps;
  std::vector<double> weights;
  double biases[simd::kParallelDirections];
};

/// The variance of one pixel, wherever Sides hold it.
template <class T>
double variance_of(const Sides<T>& side, bool full, std::size_t slot, std::size_t pixel,
                   std::size_t example) {
  return static_cast<double>(full ? side.variance(slot, 0, example)[pixel]
                                  : *side.variance(slot, pixel, example));
}

}  // namespace

bool ParallelImages::serves(const Program& program) {
  return program.reach != Reach::Vector && linear_chain(program).has_value();
}

std::size_t ParallelImages::bytes(const Program& program, std::size_t examples) {
  const std::optional<Chain> chain = linear_chain(program);
  if (!chain) return 0;
  const std::size_t pixels = kept(program, program.pixels[program.steps[chain->kink].in]);
  return checked_multiply(examples, kArrays * padded<float>(pixels) * sizeof(float),
                          "infinite_kernel: bytes of features");
}

template <class T>
ParallelImages::ParallelImages(const Program& program, const Scales& scales, const Examples<T>& left,
                               const Examples<T>* right, bool opposites, const Workers& workers)
    : step_(step_of(program.pixels[program.steps[linear_chain(program)->kink].in])),
      equal_(program.reach != Reach::Full),
      same_(right == nullptr),
      opposites_(opposites) {
  const Step& kink = program.steps[linear_chain(program)->kink];
  pixels_ = kept(program, program.pixels[kink.in]);
  // |x| makes opposites equal, but for the rounding of their delta.
  if (kink.phi.slope < 0) opposites_ = false;
  const bool sign = kink.phi.kind == Nonlinearity::Kind::Sign;
  turn_ = sign ? 2 / std::numbers::pi : kink.phi.turn() / kink.phi.scale();
  left_ = side(program, scales, left, workers);
  if (!same_) right_ = side(program, scales, *right, workers);
}

template <class T>
ParallelImages::Side ParallelImages::side(const Program& program, const Scales& scales, const Examples<T>& of,
                                          const Workers& workers) const {
  const Chain chain = *linear_chain(program);
  const std::size_t slot = program.steps[chain.kink].in;
  const std::size_t inputs = program.input.size();
  const std::size_t examples = of.side->examples();
  const std::size_t stride = padded<float>(pixels_);
  const std::size_t apart = equal_ ? step_ : 1;
  std::vector<Features> maps;
  for (const std::size_t s : chain.steps) {
    maps.emplace_back(program, scales, s, maps.empty() ? program.channels : simd::kParallelDirections);
  }
  Side result{Tensor<float>(Shape{examples, kArrays, stride}), std::vector<double>(examples)};
  workers.run(examples, [&](std::size_t i, std::size_t) {
    std::vector<double> values(of.rows + i * inputs, of.rows + (i + 1) * inputs);
    std::vector<double> next;
    for (std::size_t m = 0; m + 1 < maps.size(); ++m) {
      next.resize(maps[m].pixels * simd::kParallelDirections);
      for (std::size_t p = 0; p < maps[m].pixels; ++p) {
        maps[m](values.data(), p, next.data() + p * simd::kParallelDirections);
      }
      values.swap(next);
    }
    float* const arrays = result.arrays.data() + i * kArrays * stride;
    double sum = of.side->null(i) ? 0 : std::numeric_limits<double>::min();
    for (std::size_t n = 0; n < pixels_; ++n) {
      const double variance = variance_of(*of.side, !equal_, slot, n * apart, i);
      if (!(variance > 0)) continue;
      const double root = std::sqrt(variance);
      double at[simd::kParallelDirections];
      maps.back()(values.data(), n * apart, at);
      arrays[n] = static_cast<float>(root);
      for (std::size_t k = 0; k < simd::kParallelDirections; ++k) {
        arrays[(k + 1) * stride + n] = static_cast<float>(at[k] / root);
      }
      sum += variance;
    }
    result.mean_variance[i] = sum / static_cast<double>(pixels_);
  });
  return result;
}

bool ParallelImages::lost(std::size_t i, std::size_t j) const {
  const double left = left_.mean_variance[i];
  const double right_variance = right().mean_variance[j];
  if (!(left > 0) || !(right_variance > 0)) return false;
  // Beside so much larger ones f32 has no numbers left for what these differ in.
  if (std::min(left, right_variance) < kLeastVariance) return true;
  const double roots = std::sqrt(left) * std::sqrt(right_variance);
  // What a covariance is off by, which is held as the mean variance less delta.
  const double ratio = std::sqrt(left / right_variance);
  const double unequal = kRounding / 2 * (ratio + 1 / ratio) / 2;
  if (unequal > kAllowed) return true;
  const std::size_t stride = left_.arrays.shape()[2];
  simd::ParallelPixels<float> pixels;
  pixels.rows = pixels.columns = pixels_;
  pixels.row_step = equal_ ? 1 : step_;
  pixels.left = left_.arrays.data() + i * kArrays * stride;
  pixels.right = right().arrays.data() + j * kArrays * stride;
  pixels.left_stride = pixels.right_stride = stride;
  pixels.equal = equal_;
  // An angle x is off by up to the ratio of the roots times rounding / x.
  pixels.reach = ratio + 1 / ratio > kFarApart ? 2 : kReach;
  pixels.rounding = static_cast<float>(kRounding);
  pixels.opposite = opposites_ ? 0 : 1;
  const std::size_t rows = (pixels_ + step_ - 1) / step_;
  const auto pairs = static_cast<double>(equal_ ? pixels_ : rows * pixels_);
  pixels.enough = kAllowed / turn_ * pairs * roots;
  return covariance_kernels<float>().parallel_pixels(pixels) > pixels.enough;
}

#define GRADGRAM_INSTANTIATE(T)                                                              \
  template ParallelImages::ParallelImages(const Program&, const Scales&, const Examples<T>&, \
                                          const Examples<T>*, bool, const Workers&);
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk::infinite
