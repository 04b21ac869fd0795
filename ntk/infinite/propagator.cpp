#include "ntk/infinite/propagator.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <utility>

#include "engine/cpu.hpp"

namespace gradgram::ntk::infinite {
namespace {

double power_of_two(int exponent) {
  return std::ldexp(1.0, exponent);
}

/// Rows or columns of an image that a window covers.
struct Covered {
  std::size_t begin = 0, end = 0;
};
Covered covered(std::size_t out, std::size_t stride, std::size_t pad, std::size_t kernel,
                std::size_t extent) {
  const std::size_t begin = out * stride;
  return {begin > pad ? begin - pad : 0, std::min(extent, begin + kernel > pad ? begin + kernel - pad : 0)};
}

/// sum values[i], in f64.
template <class T>
double total(const T* values, std::size_t n) {
  double sums[4] = {};
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (std::size_t k = 0; k < 4; ++k) sums[k] += static_cast<double>(values[i + k]);
  }
  for (; i < n; ++i) sums[0] += static_cast<double>(values[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

template <class T>
void PairState<T>::resize(std::size_t groups, std::size_t rows, std::size_t columns, bool tangent) {
  groups_ = groups;
  rows_ = rows;
  columns_ = columns;
  stride_ = padded<T>(columns);
  tangent_ = tangent;
  if (delta_.size() < size()) delta_ = Tensor<T>(Shape{size()});
  if (tangent && theta_.size() < size()) theta_ = Tensor<T>(Shape{size()});
}

template <class T>
void PairState<T>::copy_from(const PairState& other) {
  resize(other.groups_, other.rows_, other.columns_, other.tangent_);
  std::copy_n(other.delta_.data(), size(), delta_.data());
  if (tangent_) std::copy_n(other.theta_.data(), size(), theta_.data());
}

template <class T>
Propagator<T>::Propagator(const Program& program, const Scales& scales, const SeriesList& series,
                          bool tangent)
    : program_(program),
      scales_(scales),
      series_(series),
      tangent_(tangent),
      kernels_(covariance_kernels<T>()),
      states_(program.depth) {}

template <class T>
PairState<T>& Propagator<T>::start(std::size_t groups, std::size_t rows, std::size_t columns) {
  aside_ = 0;
  sine_squares_.clear();
  carried_ = false;
  states_[0].resize(groups, rows, columns, tangent_);
  if (tangent_) std::fill_n(states_[0].theta(), states_[0].size(), T(0));
  return states_[0];
}

template <class T>
T* Propagator<T>::sine_squares(std::size_t index) {
  sine_step_ = index;
  sine_squares_.assign(states_[0].size(), T(0));
  return sine_squares_.data();
}

template <class T>
void Propagator<T>::run(const BlockPlace<T>& place, std::size_t begin, std::size_t end) {
  for (std::size_t i = begin; i < end; ++i) step(i, place);
}

template <class T>
bool Propagator<T>::same_example(const BlockPlace<T>& place, std::size_t row, std::size_t column) const {
  if (!place.same_set) return false;
  if (program_.reach == Reach::Full) return place.row == place.column && row == column;
  return place.row + row == place.column + column;
}

template <class T>
simd::CovarianceBlock<T> Propagator<T>::block(const Step& step, std::size_t index, const BlockPlace<T>& place,
                                              std::size_t group) {
  PairState<T>& state = states_[0];
  simd::CovarianceBlock<T> result;
  result.rows = state.rows();
  result.columns = state.stride();
  result.stride = state.stride();
  result.delta = state.delta(group);
  result.theta = state.theta(group);
  result.left_variance = place.left->variance(step.in, group, place.row);
  result.right_variance = place.right->variance(step.in, group, place.column);
  result.left_moment = place.left->variance(step.out, group, place.row);
  result.right_moment = place.right->variance(step.out, group, place.column);
  if (step.kind == StepKind::Nonlinear || step.kind == StepKind::Normalize) {
    result.left_factor = place.left->factor(index, group, place.row);
    result.left_inverse = place.left->inverse(index, group, place.row);
    result.right_factor = place.right->factor(index, group, place.column);
    result.right_inverse = place.right->inverse(index, group, place.column);
  }
  return result;
}

template <class T>
void Propagator<T>::step(std::size_t index, const BlockPlace<T>& place) {
  const Step& step = program_.steps[index];
  switch (step.kind) {
    case StepKind::Affine:
      affine(step, place);
      return;
    case StepKind::Nonlinear:
    case StepKind::Normalize:
      nonlinear(index, place);
      return;
    case StepKind::AveragePool:
      pool(index, place);
      return;
    case StepKind::Flatten:
      flatten(step);
      return;
    case StepKind::Dropout:
      dropout(step, place);
      return;
    case StepKind::Push:
      states_[++aside_].copy_from(states_[0]);
      return;
    case StepKind::Exchange:
      std::swap(states_[0], states_[aside_]);
      return;
    case StepKind::Add:
      add(step);
      return;
  }
}

template <class T>
void Propagator<T>::affine(const Step& step, const BlockPlace<T>& place) {
  if (step.convolution) {
    if (program_.reach == Reach::Full) {
      gather_full(step, place);
    } else {
      gather_diagonal(step.geometry);
    }
  }
  const double weight =
      step.weight_variance * power_of_two(scales_.variance[step.in] - scales_.variance[step.out]);
  const double theta_weight =
      step.weight_variance * power_of_two(scales_.theta[step.in] - scales_.theta[step.out]);
  const double covariance_weight = power_of_two(scales_.variance[step.out] - scales_.theta[step.out]);
  for (std::size_t group = 0; group < states_[0].groups(); ++group) {
    kernels_.affine(block(step, 0, place, group), static_cast<T>(weight), static_cast<T>(theta_weight),
                    static_cast<T>(covariance_weight));
  }
  if (carried_) carry_through_affine(step, place);
}

/// An affine map takes q q' sin^2 to w^2 q q' sin^2 + 2 w b delta: see sine_square().
template <class T>
void Propagator<T>::carry_through_affine(const Step& step, const BlockPlace<T>& place) {
  const double weight =
      step.weight_variance * power_of_two(scales_.variance[step.in] - scales_.variance[step.out]);
  const double bias = step.bias_variance * power_of_two(-scales_.variance[step.out]);
  PairState<T>& state = states_[0];
  for (std::size_t r = 0; r < state.rows(); ++r) {
    const T* const left = place.left->variance(step.in, 0, place.row);
    const T* const left_after = place.left->variance(step.out, 0, place.row);
    const T* const right = place.right->variance(step.in, 0, place.column);
    const T* const right_after = place.right->variance(step.out, 0, place.column);
    for (std::size_t c = 0; c < state.columns(); ++c) {
      T& square = sine_squares_[r * state.stride() + c];
      const auto q = static_cast<double>(left_after[r]);
      const auto other = static_cast<double>(right_after[c]);
      if (q == 0 || other == 0) {
        square = 0;
        continue;
      }
      const double kept =
          weight * static_cast<double>(left[r]) / q * (weight * static_cast<double>(right[c]) / other);
      const double added =
          2 * (bias / q) * (static_cast<double>(state.delta()[r * state.stride() + c]) / other);
      square = static_cast<T>(std::min(1.0, kept * static_cast<double>(square) + added));
    }
  }
}

/// 1 - cosine becomes itself less ratio (sin a - a cos a), which is smaller by a factor of the angle: nothing
/// cancels. |x| does the same to opposites; other steps do not leave them opposite.
template <class T>
void Propagator<T>::carry_through(std::size_t index, const simd::CovarianceBlock<T>& block) {
  const Step& step = program_.steps[index];
  std::size_t next = index + 1;
  while (next < program_.steps.size() && program_.steps[next].kind == StepKind::Affine) ++next;
  const bool reads = next < program_.steps.size() && (program_.steps[next].kind == StepKind::Nonlinear ||
                                                      program_.steps[next].kind == StepKind::Normalize);
  if (!reads) return;
  const double ratio = step.phi.turn() / step.phi.scale();
  for (std::size_t r = 0; r < block.rows; ++r) {
    for (std::size_t c = 0; c < states_[0].columns(); ++c) {
      T& square = sine_squares_[r * block.stride + c];
      const auto q = static_cast<double>(block.left_variance[r]);
      const auto other = static_cast<double>(block.right_variance[c]);
      const double covariance = (q + other) / 2 - static_cast<double>(block.delta[r * block.stride + c]);
      const double sine = std::sqrt(static_cast<double>(square));
      double versine = 0;
      if (square > T(0.5)) {
        // So close to one the square does not hold the cosine, which delta does.
        const double cosine = std::clamp(covariance / (std::sqrt(q) * std::sqrt(other)), -1.0, 1.0);
        versine = 1 - cosine - ratio * (sine - std::acos(cosine) * cosine);
      } else {
        const double cosine = std::sqrt(1 - static_cast<double>(square));
        const double angle = std::asin(sine);
        versine = static_cast<double>(square) / (1 + cosine);
        if (covariance < 0 && step.phi.slope != -1) {
          versine = 1 + cosine - ratio * (sine + (std::numbers::pi - angle) * cosine);
        } else if (angle > 1e-2) {
          versine -= ratio * (sine - angle * cosine);
        } else {
          const double a2 = angle * angle;
          versine -= ratio * angle * a2 * (1.0 / 3 - a2 * (1.0 / 30 - a2 / 840));
        }
      }
      square = static_cast<T>(std::clamp(versine * (2 - versine), 0.0, 1.0));
    }
  }
  sine_step_ = next;
  carried_ = true;
}

/// The mean over taps of the matrices of pixels. Beyond the border both pixels are zero together: so is
/// delta.
template <class T>
void Propagator<T>::gather_diagonal(const ConvGeometry& g) {
  PairState<T>& in = states_[0];
  spare_.resize(g.out_pixels(), in.rows(), in.columns(), tangent_);
  const T scale = T(1) / static_cast<T>(g.kernel_h * g.kernel_w);
  inputs_.resize(g.kernel_h * g.kernel_w);
  for (std::size_t y = 0; y < g.out_h; ++y) {
    const Covered rows = covered(y, g.stride_h, g.pad_top, g.kernel_h, g.in_h);
    for (std::size_t x = 0; x < g.out_w; ++x) {
      const Covered columns = covered(x, g.stride_w, g.pad_left, g.kernel_w, g.in_w);
      const std::size_t out = y * g.out_w + x;
      for (int which = 0; which < (tangent_ ? 2 : 1); ++which) {
        std::size_t count = 0;
        for (std::size_t r = rows.begin; r < rows.end; ++r) {
          for (std::size_t c = columns.begin; c < columns.end; ++c) {
            const std::size_t pixel = r * g.in_w + c;
            inputs_[count++] = which == 0 ? in.delta(pixel) : in.theta(pixel);
          }
        }
        kernels_.scaled_sum(inputs_.data(), count, scale, which == 0 ? spare_.delta(out) : spare_.theta(out),
                            in.matrix());
      }
    }
  }
  std::swap(in, spare_);
}

/// The mean over taps of delta(p + t, q + t). Both images stand in a frame as wide as the padding, where a
/// pixel is zero: a pair of which one is in the frame has half the other's variance as its delta. With the
/// frame's pixels in one row, a tap is a shift of the whole row.
template <class T>
void Propagator<T>::gather_full(const Step& step, const BlockPlace<T>& place) {
  const ConvGeometry& g = step.geometry;
  PairState<T>& in = states_[0];
  const std::size_t height = g.in_h + g.pad_top + g.pad_bottom;
  const std::size_t width = g.in_w + g.pad_left + g.pad_right;
  const bool framed = height != g.in_h || width != g.in_w;
  const auto place_in_frame = [&](std::size_t pixel) {
    return (pixel / g.in_w + g.pad_top) * width + pixel % g.in_w + g.pad_left;
  };
  PairState<T>* source = &in;
  if (framed) {
    frame_.resize(1, height * width, height * width, tangent_);
    const T* const left = place.left->variance(step.in, 0, place.row);
    const T* const right = place.right->variance(step.in, 0, place.column);
    const std::size_t stride = frame_.stride();
    if (line_.size() < stride) line_ = Tensor<T>(Shape{stride});
    std::fill_n(line_.data(), stride, T(0));
    for (std::size_t q = 0; q < g.in_pixels(); ++q) line_.data()[place_in_frame(q)] = right[q] / 2;
    std::size_t pixel = 0;
    for (std::size_t row = 0; row < height * width; ++row) {
      const std::size_t y = row / width;
      const std::size_t x = row % width;
      const bool inside =
          y >= g.pad_top && y < g.pad_top + g.in_h && x >= g.pad_left && x < g.pad_left + g.in_w;
      T* const delta = frame_.delta() + row * stride;
      T* const theta = tangent_ ? frame_.theta() + row * stride : nullptr;
      if (tangent_) std::fill_n(theta, stride, T(0));
      if (!inside) {
        std::copy_n(line_.data(), stride, delta);
        continue;
      }
      std::fill_n(delta, stride, left[pixel] / 2);
      for (std::size_t line = 0; line < g.in_h; ++line) {
        const std::size_t to = place_in_frame(line * g.in_w);
        const std::size_t from = pixel * in.stride() + line * g.in_w;
        std::copy_n(in.delta() + from, g.in_w, delta + to);
        if (tangent_) std::copy_n(in.theta() + from, g.in_w, theta + to);
      }
      ++pixel;
    }
    source = &frame_;
  }
  const std::size_t reach = height * width - ((g.kernel_h - 1) * width + g.kernel_w - 1);
  if (line_.size() < padded<T>(height * width)) line_ = Tensor<T>(Shape{padded<T>(height * width)});
  spare_.resize(1, g.out_pixels(), g.out_pixels(), tangent_);
  const T scale = T(1) / static_cast<T>(g.kernel_h * g.kernel_w);
  inputs_.resize(g.kernel_h * g.kernel_w);
  for (std::size_t p = 0; p < g.out_pixels(); ++p) {
    const std::size_t corner = p / g.out_w * g.stride_h * width + p % g.out_w * g.stride_w;
    for (int which = 0; which < (tangent_ ? 2 : 1); ++which) {
      const T* const values = which == 0 ? source->delta() : source->theta();
      for (std::size_t tap = 0; tap < inputs_.size(); ++tap) {
        const std::size_t shift = tap / g.kernel_w * width + tap % g.kernel_w;
        inputs_[tap] = values + (corner + shift) * source->stride() + shift;
      }
      kernels_.scaled_sum(inputs_.data(), inputs_.size(), scale, line_.data(), reach);
      T* out = (which == 0 ? spare_.delta() : spare_.theta()) + p * spare_.stride();
      for (std::size_t y = 0; y < g.out_h; ++y, out += g.out_w) {
        const T* const from = line_.data() + y * g.stride_h * width;
        if (g.stride_w == 1) {
          std::copy_n(from, g.out_w, out);
        } else {
          for (std::size_t x = 0; x < g.out_w; ++x) out[x] = from[x * g.stride_w];
        }
      }
    }
  }
  std::swap(in, spare_);
}

template <class T>
void Propagator<T>::nonlinear(std::size_t index, const BlockPlace<T>& place) {
  const Step& step = program_.steps[index];
  PairState<T>& state = states_[0];
  for (std::size_t group = 0; group < state.groups(); ++group) {
    simd::CovarianceBlock<T> entries = block(step, index, place, group);
    std::vector<T> before;
    if (!sine_squares_.empty() && index == sine_step_) {
      carried_ = false;
      entries.sine_squares = sine_squares_.data();
      if (step.is_rectifier()) {
        before = sine_squares_;
        entries.sine_squares = before.data();
        carry_through(index, entries);
      }
    }
    if (step.kind == StepKind::Normalize) {
      kernels_.normalize(entries);
      continue;
    }
    switch (step.phi.kind) {
      case Nonlinearity::Kind::ArcCosine:
        kernels_.arc_cosine(entries, static_cast<T>(step.phi.scale()), static_cast<T>(step.phi.turn()));
        break;
      case Nonlinearity::Kind::Erf:
        kernels_.erf(entries);
        break;
      case Nonlinearity::Kind::Gelu:
        kernels_.gelu(entries);
        break;
      case Nonlinearity::Kind::Sin:
        kernels_.sin(entries);
        break;
      case Nonlinearity::Kind::Cos:
        kernels_.cos(entries);
        break;
      case Nonlinearity::Kind::Sign:
        kernels_.sign(entries);
        break;
      case Nonlinearity::Kind::Monomial: {
        const std::vector<double> value = step.phi.value_coefficients();
        const std::vector<double> slope = step.phi.slope_coefficients();
        left_value_.assign(value.begin(), value.end());
        left_slope_.assign(slope.begin(), slope.end());
        kernels_.monomial(entries, step.phi.degree, left_value_.data(), left_slope_.data());
        break;
      }
      case Nonlinearity::Kind::Series:
        series(index, place, entries, group);
        break;
    }
  }
  rescale(step);
}

template <class T>
void Propagator<T>::series(std::size_t index, const BlockPlace<T>& place,
                           const simd::CovarianceBlock<T>& entries, std::size_t group) {
  const Step& step = program_.steps[index];
  if (!series_[index]->series) {
    mixture(series_[index]->mixture, entries);
    return;
  }
  const HermiteSeries& hermite = *series_[index]->series;
  const std::size_t terms = hermite.terms();
  const std::size_t columns = states_[0].columns();
  const T* const left = place.left->variance(step.in, group, place.row);
  const T* const right = place.right->variance(step.in, group, place.column);
  std::vector<double> variances(left, left + entries.rows);
  variances.insert(variances.end(), right, right + columns);
  coefficients_[0].resize(variances.size() * terms);
  coefficients_[1].resize(variances.size() * terms);
  hermite.coefficients(variances, coefficients_[0].data(), coefficients_[1].data());
  left_value_.resize(entries.rows * terms);
  left_slope_.resize(entries.rows * terms);
  for (std::size_t i = 0; i < entries.rows * terms; ++i) {
    left_value_[i] = static_cast<T>(coefficients_[0][i]);
    left_slope_[i] = static_cast<T>(coefficients_[1][i]);
  }
  right_value_.assign(terms * entries.columns, T(0));
  right_slope_.assign(terms * entries.columns, T(0));
  for (std::size_t c = 0; c < columns; ++c) {
    for (std::size_t k = 0; k < terms; ++k) {
      const std::size_t from = (entries.rows + c) * terms + k;
      right_value_[k * entries.columns + c] = static_cast<T>(coefficients_[0][from]);
      right_slope_[k * entries.columns + c] = static_cast<T>(coefficients_[1][from]);
    }
  }
  kernels_.series(entries, {.terms = terms,
                            .left_value = left_value_.data(),
                            .left_slope = left_slope_.data(),
                            .right_value = right_value_.data(),
                            .right_slope = right_slope_.data(),
                            .stride = entries.columns});
}

template <class T>
void Propagator<T>::mixture(const LogisticMixture& mixture, const simd::CovarianceBlock<T>& entries) {
  left_value_.assign(mixture.squares().begin(), mixture.squares().end());
  left_slope_.assign(mixture.weights().begin(), mixture.weights().end());
  kernels_.mixture(entries, {.count = mixture.count(),
                             .squares = left_value_.data(),
                             .weights = left_slope_.data(),
                             .offset = static_cast<T>(mixture.offset()),
                             .factor = static_cast<T>(mixture.factor()),
                             .rectified = mixture.rectified()});
}

/// Kernels leave the covariance in the scale of the slot after, but the tangent kernel in that of the slot
/// before.
template <class T>
void Propagator<T>::rescale(const Step& step) {
  // A normalization divides by variances as they are held and leaves a delta of no scale.
  const int divided = step.kind == StepKind::Normalize ? scales_.variance[step.in] : 0;
  const int shift = scales_.theta[step.in] - scales_.theta[step.out] - divided;
  PairState<T>& state = states_[0];
  if (tangent_ && shift != 0) {
    const T factor = static_cast<T>(power_of_two(shift));
    T* const theta = state.theta();
    for (std::size_t i = 0; i < state.size(); ++i) theta[i] *= factor;
  }
  // ArcCosine works in any scale, so that its output is in that of its input.
  const int variance_shift = scales_.variance[step.in] - scales_.variance[step.out] - divided;
  if (variance_shift != 0) {
    const T factor = static_cast<T>(power_of_two(variance_shift));
    T* const delta = state.delta();
    for (std::size_t i = 0; i < state.size(); ++i) delta[i] *= factor;
  }
}

template <class T>
void Propagator<T>::set_mean(std::size_t index, const BlockPlace<T>& place, double delta, double theta) {
  const Step& step = program_.steps[index];
  const std::size_t pixels = step.geometry.in_pixels();
  const double variances = total(place.left->variance(step.in, 0, place.row), pixels) +
                           total(place.right->variance(step.in, 0, place.column), pixels);
  const double covariance = variances / (2 * static_cast<double>(pixels)) - delta;
  const double after = static_cast<double>(*place.left->variance(step.out, 0, place.row)) +
                       static_cast<double>(*place.right->variance(step.out, 0, place.column));
  PairState<T>& state = states_[0];
  state.resize(1, 1, 1, tangent_);
  *state.delta() = static_cast<T>(
      after / 2 - covariance * power_of_two(scales_.variance[step.in] - scales_.variance[step.out]));
  if (program_.pooled_variances && same_example(place, 0, 0)) *state.delta() = T(0);
  if (tangent_) {
    *state.theta() = static_cast<T>(theta * power_of_two(scales_.theta[step.in] - scales_.theta[step.out]));
  }
}

template <class T>
void Propagator<T>::set_windows(std::size_t index, const BlockPlace<T>& place) {
  const Step& step = program_.steps[index];
  const ConvGeometry& g = step.geometry;
  const auto means = [&](const T* variance) {
    std::vector<double> result(g.out_pixels());
    for (std::size_t p = 0; p < g.in_pixels(); ++p) {
      const std::size_t window = p / g.in_w / g.kernel_h * g.out_w + p % g.in_w / g.kernel_w;
      result[window] += static_cast<double>(variance[p]) / static_cast<double>(g.kernel_h * g.kernel_w);
    }
    return result;
  };
  const std::vector<double> left = means(place.left->variance(step.in, 0, place.row));
  const std::vector<double> right = means(place.right->variance(step.in, 0, place.column));
  const T* const left_after = place.left->variance(step.out, 0, place.row);
  const T* const right_after = place.right->variance(step.out, 0, place.column);
  const double shift = power_of_two(scales_.variance[step.in] - scales_.variance[step.out]);
  const T theta_shift = static_cast<T>(power_of_two(scales_.theta[step.in] - scales_.theta[step.out]));
  PairState<T>& state = states_[0];
  for (std::size_t p = 0; p < g.out_pixels(); ++p) {
    T* const delta = state.delta() + p * state.stride();
    for (std::size_t q = 0; q < g.out_pixels(); ++q) {
      const double covariance = (left[p] + right[q]) / 2 - static_cast<double>(delta[q]);
      delta[q] =
          static_cast<T>((static_cast<double>(left_after[p]) + static_cast<double>(right_after[q])) / 2 -
                         shift * covariance);
      if (tangent_) state.theta()[p * state.stride() + q] *= theta_shift;
    }
    if (program_.pooled_variances && same_example(place, p, p)) delta[p] = T(0);
  }
}

template <class T>
void Propagator<T>::pool(std::size_t index, const BlockPlace<T>& place) {
  const Step& step = program_.steps[index];
  const ConvGeometry& g = step.geometry;
  PairState<T>& in = states_[0];
  const T* const left = place.left->variance(step.in, 0, place.row);
  const T* const right = place.right->variance(step.in, 0, place.column);
  const T* const left_after = place.left->variance(step.out, 0, place.row);
  const T* const right_after = place.right->variance(step.out, 0, place.column);
  if (g.out_pixels() == 1 && g.kernel_h == g.in_h && g.kernel_w == g.in_w) {
    double delta = 0;
    double theta = 0;
    for (std::size_t p = 0; p < in.rows(); ++p) {
      delta += total(in.delta() + p * in.stride(), in.columns());
      if (tangent_) theta += total(in.theta() + p * in.stride(), in.columns());
    }
    const auto pairs = static_cast<double>(g.in_pixels() * g.in_pixels());
    set_mean(index, place, delta / pairs, theta / pairs);
    return;
  }
  const double variance_shift = power_of_two(scales_.variance[step.in] - scales_.variance[step.out]);
  const double theta_shift = power_of_two(scales_.theta[step.in] - scales_.theta[step.out]);
  // First the rows of pixels p, then the columns of pixels q, as covariances: windows mix variances.
  for (std::size_t p = 0; p < in.rows(); ++p) {
    T* const row = in.delta() + p * in.stride();
    const T half = left[p] / 2;
    for (std::size_t q = 0; q < in.columns(); ++q) row[q] = half + right[q] / 2 - row[q];
  }
  const double window = static_cast<double>(g.kernel_h * g.kernel_w);
  spare_.resize(1, g.out_pixels(), g.out_pixels(), tangent_);
  if (line_.size() < in.stride()) line_ = Tensor<T>(Shape{in.stride()});
  inputs_.resize(g.kernel_h * g.kernel_w);
  for (std::size_t p = 0; p < g.out_pixels(); ++p) {
    const Covered rows = covered(p / g.out_w, g.stride_h, g.pad_top, g.kernel_h, g.in_h);
    const Covered columns = covered(p % g.out_w, g.stride_w, g.pad_left, g.kernel_w, g.in_w);
    for (int which = 0; which < (tangent_ ? 2 : 1); ++which) {
      const T* const values = which == 0 ? in.delta() : in.theta();
      std::size_t count = 0;
      for (std::size_t r = rows.begin; r < rows.end; ++r) {
        for (std::size_t c = columns.begin; c < columns.end; ++c) {
          inputs_[count++] = values + (r * g.in_w + c) * in.stride();
        }
      }
      const T scale = static_cast<T>((which == 0 ? variance_shift : theta_shift) / (window * window));
      kernels_.scaled_sum(inputs_.data(), count, scale, line_.data(), in.columns());
      T* const out = (which == 0 ? spare_.delta() : spare_.theta()) + p * spare_.stride();
      for (std::size_t q = 0; q < g.out_pixels(); ++q) {
        const Covered down = covered(q / g.out_w, g.stride_h, g.pad_top, g.kernel_h, g.in_h);
        const Covered across = covered(q % g.out_w, g.stride_w, g.pad_left, g.kernel_w, g.in_w);
        T sum = 0;
        for (std::size_t r = down.begin; r < down.end; ++r) {
          for (std::size_t c = across.begin; c < across.end; ++c) sum += line_.data()[r * g.in_w + c];
        }
        out[q] = which == 0 ? left_after[p] / 2 + right_after[q] / 2 - sum : sum;
      }
    }
    if (program_.pooled_variances && same_example(place, p, p))
      spare_.delta()[p * spare_.stride() + p] = T(0);
  }
  std::swap(in, spare_);
}

template <class T>
void Propagator<T>::flatten(const Step& step) {
  PairState<T>& in = states_[0];
  const double pixels = static_cast<double>(program_.pixels[step.in]);
  const double shifts[2] = {power_of_two(scales_.variance[step.in] - scales_.variance[step.out]) / pixels,
                            power_of_two(scales_.theta[step.in] - scales_.theta[step.out]) / pixels};
  if (program_.reach == Reach::Full) {
    double sums[2] = {};
    for (std::size_t p = 0; p < in.rows(); ++p) {
      sums[0] += static_cast<double>(in.delta()[p * in.stride() + p]);
      if (tangent_) sums[1] += static_cast<double>(in.theta()[p * in.stride() + p]);
    }
    in.resize(1, 1, 1, tangent_);
    *in.delta() = static_cast<T>(sums[0] * shifts[0]);
    if (tangent_) *in.theta() = static_cast<T>(sums[1] * shifts[1]);
    return;
  }
  spare_.resize(1, in.rows(), in.columns(), tangent_);
  for (std::size_t i = 0; i < in.matrix(); ++i) {
    double sums[2] = {};
    for (std::size_t g = 0; g < in.groups(); ++g) {
      sums[0] += static_cast<double>(in.delta(g)[i]);
      if (tangent_) sums[1] += static_cast<double>(in.theta(g)[i]);
    }
    spare_.delta()[i] = static_cast<T>(sums[0] * shifts[0]);
    if (tangent_) spare_.theta()[i] = static_cast<T>(sums[1] * shifts[1]);
  }
  std::swap(in, spare_);
}

/// Different examples, and different pixels, draw masks of their own: their covariance stays, their variances
/// grow. An example with itself shares its mask.
template <class T>
void Propagator<T>::dropout(const Step& step, const BlockPlace<T>& place) {
  PairState<T>& state = states_[0];
  const T more = static_cast<T>((1 / step.keep - 1) / 2);
  const T kept = static_cast<T>(1 / step.keep);
  for (std::size_t g = 0; g < state.groups(); ++g) {
    const T* const left = place.left->variance(step.in, g, place.row);
    const T* const right = place.right->variance(step.in, g, place.column);
    for (std::size_t r = 0; r < state.rows(); ++r) {
      T* const delta = state.delta(g) + r * state.stride();
      for (std::size_t c = 0; c < state.columns(); ++c) {
        if (!same_example(place, r, c)) {
          delta[c] += more * (left[r] + right[c]);
        } else if (tangent_) {
          state.theta(g)[r * state.stride() + c] *= kept;
        }
      }
    }
  }
  rescale(step);
}

template <class T>
void Propagator<T>::add(const Step& step) {
  PairState<T>& state = states_[0];
  PairState<T>& other = states_[aside_--];
  const auto sum = [&](T* to, const T* from, int shift, int other_shift) {
    const T factor = static_cast<T>(power_of_two(shift));
    const T other_factor = static_cast<T>(power_of_two(other_shift));
    for (std::size_t i = 0; i < state.size(); ++i) to[i] = factor * to[i] + other_factor * from[i];
  };
  sum(state.delta(), other.delta(), scales_.variance[step.in] - scales_.variance[step.out],
      scales_.variance[step.other] - scales_.variance[step.out]);
  if (tangent_) {
    sum(state.theta(), other.theta(), scales_.theta[step.in] - scales_.theta[step.out],
        scales_.theta[step.other] - scales_.theta[step.out]);
  }
}

template class PairState<float>;
template class PairState<double>;
template class Propagator<float>;
template class Propagator<double>;

}  // namespace gradgram::ntk::infinite
