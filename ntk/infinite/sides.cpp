#include "ntk/infinite/sides.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "engine/error.hpp"
#include "ntk/infinite/nearly_parallel.hpp"

namespace gradgram::ntk::infinite {
namespace {

bool has_factors(const Step& step) {
  return step.kind == StepKind::Nonlinear || step.kind == StepKind::Normalize;
}

/// Closed forms of functions that are not homogeneous multiply two variances.
void require_moderate(const Step& step, double largest) {
  constexpr double kMost = 1e150;
  switch (step.phi.kind) {
    case Nonlinearity::Kind::Erf:
    case Nonlinearity::Kind::Gelu:
    case Nonlinearity::Kind::Sin:
    case Nonlinearity::Kind::Cos:
    case Nonlinearity::Kind::Series:
      break;
    default:
      return;
  }
  if (largest <= kMost) return;
  throw NumericError(fmt::format(
      "infinite_kernel: {} sees variances up to {:g}, where {:g} is the most that it can take; scale the "
      "inputs or lower the weight variance",
      step.name, largest, kMost));
}

/// Whether exp(-delta) is the kernel, and not a function of the angle.
bool reads_delta(const Step& step) {
  return step.phi.kind == Nonlinearity::Kind::Sin || step.phi.kind == Nonlinearity::Kind::Cos;
}

/// Where angles are known to the roundings of earlier steps alone, delta is known to eps of the variance. An
/// error of eps times the variance is then one of the derivatives of steps (and of all of sin and cos)
/// between nearly parallel inputs: at this bound 1e-5, somewhat above it all of them.
constexpr double kMostBehind = 1e-5 / std::numeric_limits<double>::epsilon();
/// Where nearly parallel pairs are followed apart, the others' relative error is 16 eps sqrt(variance).
constexpr double kMostCarried = 1e18;
void require_known_angles(const Program& program, const Step& step, double largest, double most) {
  switch (step.phi.kind) {
    case Nonlinearity::Kind::Sin:
    case Nonlinearity::Kind::Cos:
      break;
    case Nonlinearity::Kind::Erf:
      if (!program.tangent) return;
      break;
    case Nonlinearity::Kind::Series:
      if (!program.tangent || step.phi.function == simd::Activation::Softplus) return;
      break;
    default:
      return;
  }
  if (largest <= most) return;
  throw NumericError(fmt::format(
      "infinite_kernel: {} sees variances up to {:g}{}, where {:.2g} is the most at which nearly parallel "
      "inputs keep 1e-5 of their kernel; scale the inputs or lower the weight variance",
      step.name, largest, program.reach == Reach::Vector ? " behind another nonlinearity" : " between pixels",
      most));
}

std::unique_ptr<SmoothForm> smooth_form(const Step& step, double largest, double tolerance) {
  return std::make_unique<SmoothForm>(SmoothForm{HermiteSeries::fit(step.phi.function, largest, tolerance),
                                                 LogisticMixture(step.phi.function, tolerance)});
}

}  // namespace

Scales choose_scales(const Program& program, double largest, double smallest, double tolerance,
                     SeriesList& series) {
  const std::size_t slots = program.pixels.size();
  series.clear();
  series.resize(program.steps.size());
  Scales scales{std::vector<int>(slots), std::vector<int>(slots)};
  // Variances and tangents are followed as fractions times powers of two of their own.
  struct Followed {
    double fraction = 0;
    int exponent = 0;
    void normalize() {
      if (fraction == 0 || !std::isfinite(fraction)) return;
      const int shift = std::ilogb(fraction);
      fraction = std::ldexp(fraction, -shift);
      exponent += shift;
    }
    double value() const { return std::ldexp(fraction, exponent); }
    void add(const Followed& other) {
      if (other.fraction == 0) return;
      if (fraction == 0) {
        *this = other;
        return;
      }
      const int top = std::max(exponent, other.exponent);
      fraction = std::ldexp(fraction, exponent - top) + std::ldexp(other.fraction, other.exponent - top);
      exponent = top;
      normalize();
    }
    void times(double factor) {
      fraction *= factor;
      normalize();
    }
  };
  const auto exponent_of = [](const Followed& followed) {
    if (followed.fraction == 0 || std::abs(followed.exponent) <= 30) return 0;
    return followed.exponent - (followed.exponent % 2);
  };
  // Angles of vectors are followed exactly to their first nonlinearity.
  const auto first = first_nonlinearity(program);
  const std::size_t known = program.reach == Reach::Vector && first ? first->step : program.steps.size();
  // And, of pairs that are followed apart, through rectifiers, which leave others 16 eps / angle of 1 -
  // cosine.
  std::size_t carried = known;
  while (carried < program.steps.size() &&
         (program.steps[carried].kind == StepKind::Affine || program.steps[carried].is_rectifier())) {
    ++carried;
  }
  // Of all examples and pixels: E[cos(u)^2] falls with the variance and is 1 at zero, the others rise.
  std::vector<Followed> bound(slots);
  bound[0] = {largest, 0};
  bound[0].normalize();
  for (const double start : {largest, smallest}) {
    std::vector<Followed> variance(slots);
    std::vector<Followed> theta(slots);
    variance[0] = {start, 0};
    variance[0].normalize();
    for (std::size_t s = 0; s < program.steps.size(); ++s) {
      const Step& step = program.steps[s];
      if (step.kind == StepKind::Push || step.kind == StepKind::Exchange) continue;
      Followed q = variance[step.in];
      Followed t = theta[step.in];
      Followed most = bound[step.in];
      switch (step.kind) {
        case StepKind::Affine:
          q.times(step.weight_variance);
          q.add({step.bias_variance, 0});
          most.times(step.weight_variance);
          most.add({step.bias_variance, 0});
          t.times(step.weight_variance);
          t.add(q);
          break;
        case StepKind::Nonlinear: {
          require_moderate(step, most.value());
          if (s != known) {
            require_known_angles(program, step, most.value(),
                                 s == carried && !reads_delta(step) ? kMostCarried : kMostBehind);
          }
          if (step.phi.kind == Nonlinearity::Kind::Series && series[s] == nullptr) {
            series[s] = smooth_form(step, most.value(), tolerance);
          }
          if (step.phi.kind == Nonlinearity::Kind::ArcCosine) {
            q.times(step.phi.scale());
            most.times(step.phi.scale());
            t.times(step.phi.scale());
          } else {
            const Moments moments = self_moments(step.phi, q.value(), series[s].get());
            if (start == largest && q.fraction > 0 && moments.value < std::numeric_limits<double>::min()) {
              throw NumericError(fmt::format(
                  "infinite_kernel: the largest variance after {} is {:g}, that before it {:g}; scale "
                  "the inputs or raise the weight variance",
                  step.name, moments.value, q.value()));
            }
            q = {moments.value, 0};
            q.normalize();
            const bool falls = step.phi.kind == Nonlinearity::Kind::Cos;
            most = {falls ? 1 : self_moments(step.phi, most.value(), series[s].get()).value, 0};
            most.normalize();
            t.times(moments.slope);
          }
          break;
        }
        case StepKind::Normalize:
          if (q.fraction != 0) {
            t.fraction /= q.fraction;
            t.exponent -= q.exponent;
            q = {1, 0};
          }
          most = {1, 0};
          break;
        case StepKind::Dropout:
          q.times(1 / step.keep);
          most.times(1 / step.keep);
          t.times(1 / step.keep);
          break;
        case StepKind::Add:
          q.add(variance[step.other]);
          most.add(bound[step.other]);
          t.add(theta[step.other]);
          break;
        default:
          break;  // means
      }
      variance[step.out] = q;
      theta[step.out] = t;
      bound[step.out] = most;
    }
    for (std::size_t slot = 0; slot < slots; ++slot) {
      // The larger of the two followed examples decides, and the smaller start speaks second.
      if (start == largest) {
        if (program.homogeneous) scales.variance[slot] = exponent_of(variance[slot]);
        // Zeros, as of inputs, have that of the tangents that they are added to.
        scales.theta[slot] = theta[slot].fraction == 0 ? scales.variance[slot] : exponent_of(theta[slot]);
      } else if (theta[slot].fraction != 0) {
        scales.theta[slot] = std::max(scales.theta[slot], exponent_of(theta[slot]));
      }
    }
    if (!(smallest > 0)) break;
  }
  return scales;
}

void advance(const Program& program, const Scales& scales, const SeriesList& series, std::size_t index,
             ExampleVariances& example) {
  const Step& step = program.steps[index];
  if (step.kind == StepKind::Push || step.kind == StepKind::Exchange) return;
  const std::vector<double>& in = example.variance[step.in];
  std::vector<double>& out = example.variance[step.out];
  out.assign(program.pixels[step.out], 0.0);
  const double rescale = std::ldexp(1.0, scales.variance[step.in] - scales.variance[step.out]);
  const double unit = std::ldexp(1.0, -scales.variance[step.out]);
  switch (step.kind) {
    case StepKind::Affine:
      if (step.convolution) {
        const ConvGeometry& g = step.geometry;
        const double weight = step.weight_variance * rescale / static_cast<double>(g.kernel_h * g.kernel_w);
        for (std::size_t y = 0; y < g.out_h; ++y) {
          for (std::size_t x = 0; x < g.out_w; ++x) {
            double sum = 0;
            for (std::size_t i = 0; i < g.kernel_h; ++i) {
              const std::size_t row = y * g.stride_h + i - g.pad_top;  // wraps around below zero
              if (row >= g.in_h) continue;
              for (std::size_t j = 0; j < g.kernel_w; ++j) {
                const std::size_t column = x * g.stride_w + j - g.pad_left;
                if (column < g.in_w) sum += in[row * g.in_w + column];
              }
            }
            out[y * g.out_w + x] = weight * sum + step.bias_variance * unit;
          }
        }
      } else {
        out[0] = step.weight_variance * rescale * in[0] + step.bias_variance * unit;
      }
      break;
    case StepKind::Nonlinear:
    case StepKind::Normalize: {
      auto& factor = example.factor[index];
      auto& inverse = example.inverse[index];
      factor.resize(in.size());
      inverse.resize(in.size());
      for (std::size_t p = 0; p < in.size(); ++p) {
        const double q = in[p];
        const double root = std::sqrt(q);
        factor[p] = root;
        inverse[p] = q > 0 ? 1 / root : 0;
        if (step.kind == StepKind::Normalize) {
          out[p] = q > 0 ? unit : 0;
          continue;
        }
        if (step.phi.kind == Nonlinearity::Kind::Erf) inverse[p] = 1 / std::sqrt(1 + 2 * q);
        if (step.phi.kind == Nonlinearity::Kind::Gelu) inverse[p] = 1 / std::sqrt(1 + q);
        out[p] = rescale * self_moments(step.phi, q, series[index].get()).value;
      }
      break;
    }
    case StepKind::AveragePool:
      break;  // pairs of pixels decide
    case StepKind::Flatten: {
      double sum = 0;
      for (const double q : in) sum += q;
      out[0] = rescale * sum / static_cast<double>(in.size());
      break;
    }
    case StepKind::Dropout:
      for (std::size_t p = 0; p < in.size(); ++p) out[p] = rescale * in[p] / step.keep;
      break;
    case StepKind::Add: {
      const std::vector<double>& other = example.variance[step.other];
      const double other_rescale = std::ldexp(1.0, scales.variance[step.other] - scales.variance[step.out]);
      for (std::size_t p = 0; p < in.size(); ++p) out[p] = rescale * in[p] + other_rescale * other[p];
      break;
    }
    case StepKind::Push:
    case StepKind::Exchange:
      break;
  }
  for (const double q : out) {
    if (!std::isfinite(q)) {
      throw NumericError(fmt::format("infinite_kernel: the variance after {} is {:g}", step.name, q));
    }
  }
}

template <class T>
Sides<T>::Sides(const Program& program, std::size_t examples)
    : examples_(examples), full_(program.reach == Reach::Full), null_(examples) {
  const auto shape = [&](std::size_t pixels) {
    return full_ ? Shape{examples, padded<T>(pixels)} : Shape{pixels, padded<T>(examples)};
  };
  for (const std::size_t pixels : program.pixels) variance_.emplace_back(shape(pixels));
  for (const Step& step : program.steps) {
    const std::size_t pixels = has_factors(step) ? program.pixels[step.in] : 0;
    factor_.emplace_back(shape(pixels));
    inverse_.emplace_back(shape(pixels));
  }
}

template <class T>
template <class From>
Sides<T>::Sides(const Program& program, const Sides<From>& from) : Sides(program, from.examples_) {
  null_ = from.null_;
  const auto round = [](const std::vector<Tensor<From>>& arrays, std::vector<Tensor<T>>& rounded) {
    for (std::size_t a = 0; a < arrays.size(); ++a) {
      const Shape& shape = arrays[a].shape();
      const std::size_t stride = rounded[a].shape()[1];
      const std::size_t count = std::min(stride, shape[1]);
      for (std::size_t row = 0; row < shape[0]; ++row) {
        const From* const line = arrays[a].data() + row * shape[1];
        std::transform(line, line + count, rounded[a].data() + row * stride,
                       [](From value) { return static_cast<T>(value); });
      }
    }
  };
  round(from.variance_, variance_);
  round(from.factor_, factor_);
  round(from.inverse_, inverse_);
}

template <class T>
std::size_t Sides<T>::bytes(const Program& program, std::size_t examples) {
  std::size_t total = 0;
  for (const std::size_t pixels : program.pixels) total += padded<T>(pixels);
  for (const Step& step : program.steps) {
    if (has_factors(step)) total += 2 * padded<T>(program.pixels[step.in]);
  }
  return checked_multiply(checked_multiply(total, examples, "infinite_kernel: bytes of variances"), sizeof(T),
                          "infinite_kernel: bytes of variances");
}

template <class T>
void Sides<T>::write(Tensor<T>& array, std::size_t example, const std::vector<double>& values) const {
  const std::size_t stride = array.shape()[1];
  for (std::size_t p = 0; p < values.size(); ++p) {
    array.data()[full_ ? example * stride + p : p * stride + example] = static_cast<T>(values[p]);
  }
}

template <class T>
void Sides<T>::set(std::size_t example, const ExampleVariances& from) {
  null_[example] = 1;
  for (std::size_t s = 0; s < variance_.size(); ++s) {
    write(variance_[s], example, from.variance[s]);
    for (const double q : from.variance[s]) {
      if (q != 0) null_[example] = 0;
    }
  }
  for (std::size_t s = 0; s < factor_.size(); ++s) {
    write(factor_[s], example, from.factor[s]);
    write(inverse_[s], example, from.inverse[s]);
  }
}

template class Sides<float>;
template class Sides<double>;
template Sides<float>::Sides(const Program&, const Sides<double>&);

}  // namespace gradgram::ntk::infinite
