#include "ntk/infinite/nearly_parallel.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace gradgram::ntk::infinite {
namespace {

/// Vectors: 1 - |cosine| is known to about eps (s + s^2), s^2 = (sqrt q - sqrt q')^2 / sqrt(q q'), where it
/// is small, and the angle to that divided by itself. Pairs are followed apart, in f64, where (s + s^2)^2 >
/// this times 1 - cosine, which leaves the others angles to 16 eps; likewise opposite ones, whose 1 + cosine
/// is known to eps (1 + s^2 / 2).
constexpr double kAngleDigits = 256;
/// Smooth nonlinearities in f64 see no angles but Q (1 - |cosine|) beside 1, Q = sqrt(q q') of the
/// pre-activations. Pairs are followed apart where s + s^2 > this times 1 / Q + 1 - cosine, which leaves the
/// others that sum to 1e-11 of itself.
constexpr double kSmoothDigits = 50000;

double square(double value) {
  return value * value;
}

}  // namespace

template <class T>
bool widens_vectors(const Program& program) {
  return std::is_same_v<T, float> && program.reach == Reach::Vector;
}

std::optional<FirstNonlinearity> first_nonlinearity(const Program& program) {
  FirstNonlinearity first;
  for (; first.step < program.steps.size(); ++first.step) {
    const Step& step = program.steps[first.step];
    if (step.kind == StepKind::Affine) {
      first.weight *= step.weight_variance;
      continue;
    }
    const bool power = step.kind == StepKind::Nonlinear && step.phi.kind == Nonlinearity::Kind::Monomial;
    if (power || (step.kind != StepKind::Nonlinear && step.kind != StepKind::Normalize)) return std::nullopt;
    first.angles = step.kind == StepKind::Normalize || step.phi.kind == Nonlinearity::Kind::ArcCosine ||
                   step.phi.kind == Nonlinearity::Kind::Sign;
    return first;
  }
  return std::nullopt;
}

template <class T>
NearlyParallel<T>::NearlyParallel(const Sides<double>& left, const Sides<double>& right, const Tile& tile,
                                  double weight)
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

template <class T>
void NearlyParallel<T>::mark(std::size_t r, std::size_t i, const T* product, const T* delta,
                             std::size_t columns) {
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

/// One comparison for most pairs of an example, from the column whose norm differs most.
template <class T>
bool NearlyParallel<T>::any_candidate(double root, const T* product, std::size_t columns) const {
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

template <class T>
double half_squared_distance(const T* a, const T* b, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += difference * difference;
  }
  return sum / (2 * static_cast<double>(n));
}

template <class T>
double squared_sine(const T* a, const T* b, std::size_t n) {
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

double sine_square(const Program& program, const Scales& scales, const FirstNonlinearity& first, double sine,
                   double delta, const BlockPlace<double>& pair) {
  for (std::size_t s = 0; s < first.step; ++s) {
    const Step& step = program.steps[s];
    const double weight =
        std::ldexp(step.weight_variance, scales.variance[step.in] - scales.variance[step.out]);
    const double bias = std::ldexp(step.bias_variance, -scales.variance[step.out]);
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

#define GRADGRAM_INSTANTIATE(T)                                           \
  template bool widens_vectors<T>(const Program&);                        \
  template class NearlyParallel<T>;                                       \
  template double half_squared_distance(const T*, const T*, std::size_t); \
  template double squared_sine(const T*, const T*, std::size_t);
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk::infinite
