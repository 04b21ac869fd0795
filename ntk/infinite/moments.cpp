#include "ntk/infinite/moments.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "engine/blas.hpp"
#include "engine/cpu.hpp"
#include "engine/error.hpp"

namespace gradgram::ntk::infinite {
namespace {

using std::numbers::pi;

/// (k - 1)!! for even k: E[g^k].
double gaussian_moment(std::size_t k) {
  double product = 1;
  for (std::size_t i = 1; i < k; i += 2) product *= static_cast<double>(i);
  return product;
}

/// E[x^k y^k] for standard normal x, y with correlation c, by the number j of pairings across.
std::vector<double> pairings(std::size_t k) {
  std::vector<double> result(k + 1);
  for (std::size_t j = k % 2; j <= k; j += 2) {
    double choose = 1;
    double factorial = 1;
    for (std::size_t i = 1; i <= j; ++i) {
      choose = choose * static_cast<double>(k - j + i) / static_cast<double>(i);
      factorial *= static_cast<double>(i);
    }
    const double rest = gaussian_moment(k - j);
    result[j] = choose * choose * factorial * rest * rest;
  }
  return result;
}

/// Twice as many would take as long as a mixture, which every variance suits.
constexpr std::size_t kMostTerms = 512;

/// lambda^2 and its weight: the Gauss quadrature of log lambda, where lambda / 2 has Kolmogorov's
/// distribution; found by the Stieltjes procedure in arithmetic of 80 digits.
struct ScaleNode {
  double square, weight;
};
constexpr ScaleNode kFineScales[] = {
    {2.662631432272718044e-1, 6.077562610404654229e-7}, {3.827748533811697129e-1, 8.832181174652557260e-5},
    {5.416483422905051741e-1, 2.254695776331619427e-3}, {7.705901402281102850e-1, 1.999636656279342969e-2},
    {1.110799864010446463e+0, 8.239507072423321295e-2}, {1.626437370112330577e+0, 1.864269762491454235e-1},
    {2.415110356297930172e+0, 2.586069002276632443e-1}, {3.616044649531256876e+0, 2.358294428105469535e-1},
    {5.408883844157847049e+0, 1.441729020862705091e-1}, {8.009869857045247751e+0, 5.630047166203429417e-2},
    {1.169177475361294974e+1, 1.254167517624523743e-2}, {1.684155809599075575e+1, 1.335762411399454925e-3},
    {2.411604869073775260e+1, 5.046658856265828768e-5}, {3.506998494265632947e+1, 3.401567663966644779e-7},
};
constexpr ScaleNode kCoarseScales[] = {
    {4.504696813797185358e-1, 7.331591457234241741e-4}, {7.553542329930066723e-1, 2.589222684912865803e-2},
    {1.270980023137825962e+0, 1.649294750577310938e-1}, {2.195130266849648889e+0, 3.495804255560893602e-1},
    {3.871384746830054134e+0, 3.150195917340310300e-1}, {6.808588026153119136e+0, 1.255601715562860276e-1},
    {1.173192007356643613e+1, 1.780740483075644030e-2}, {2.014227992954884291e+1, 4.775452702539659269e-4},
};

}  // namespace

double Nonlinearity::turn() const {
  return (1 - slope) * (1 - slope) / (2 * pi);
}

std::vector<double> Nonlinearity::value_coefficients() const {
  return pairings(degree);
}

std::vector<double> Nonlinearity::slope_coefficients() const {
  std::vector<double> result = pairings(degree - 1);
  for (double& entry : result) entry *= static_cast<double>(degree * degree);
  result.resize(degree + 1);
  return result;
}

Moments self_moments(const Nonlinearity& phi, double q, const SmoothForm* smooth) {
  switch (phi.kind) {
    case Nonlinearity::Kind::ArcCosine:
      return {phi.scale() * q, phi.scale()};
    case Nonlinearity::Kind::Erf:
      return {2 / pi * std::atan2(2 * q, std::sqrt(1 + 4 * q)), 4 / pi / std::sqrt(1 + 4 * q)};
    case Nonlinearity::Kind::Gelu: {
      const double s = q / (1 + q);
      const double d = 1 / (2 * pi * std::sqrt(1 + 2 * q));
      const double p = 0.25 + std::atan2(q, std::sqrt(1 + 2 * q)) / (2 * pi);
      return {q * p + 2 * q * s * d, p + q * d * (2 / (1 + q) + 1 / (1 + 2 * q))};
    }
    case Nonlinearity::Kind::Sin:
      return {-std::expm1(-2 * q) / 2, (1 + std::exp(-2 * q)) / 2};
    case Nonlinearity::Kind::Cos:
      return {(1 + std::exp(-2 * q)) / 2, -std::expm1(-2 * q) / 2};
    case Nonlinearity::Kind::Sign:
      return {q > 0 ? 1.0 : 0.0, 0};
    case Nonlinearity::Kind::Monomial: {
      const auto k = static_cast<double>(phi.degree);
      return {gaussian_moment(2 * phi.degree) * std::pow(q, k),
              k * k * gaussian_moment(2 * phi.degree - 2) * std::pow(q, k - 1)};
    }
    case Nonlinearity::Kind::Series:
      return smooth->moments(q);
  }
  throw ArgumentError("self_moments: unknown nonlinearity");
}

HermiteSeries::HermiteSeries(simd::Activation function, double largest_variance)
    : function_(function), terms_(kMostTerms) {
  // The nearest poles of tanh(s g) and its square lie at i pi / (2 s); sampling at `spacing` leaves
  // exp(-2 pi (pi / 2) / (s spacing)), below 1e-17 with 0.25 / s. The Hermite functions up to k oscillate
  // no faster than 2 sqrt(k) + a margin, and meet their like.
  const double root = std::sqrt(std::max(largest_variance, 1e-300));
  spacing_ = std::min(0.25 / root, 2 * pi / (2 * std::sqrt(static_cast<double>(kMostTerms)) + 14));
  const double reach = 12.6;  // the root weight is below 1e-17 beyond
  const auto half = static_cast<std::size_t>(std::ceil(reach / spacing_));
  for (std::size_t i = 0; i <= 2 * half; ++i) {
    const double g = (static_cast<double>(i) - static_cast<double>(half)) * spacing_;
    nodes_.push_back(g);
    root_weights_.push_back(std::exp(-g * g / 4) / std::pow(2 * pi, 0.25));
  }
  fill_basis();
}

void HermiteSeries::fill_basis() {
  basis_.assign(nodes_.size() * terms_, 0);
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    double before = 0;
    double here = root_weights_[i] * spacing_;
    for (std::size_t k = 0; k < terms_; ++k) {
      basis_[i * terms_ + k] = here;
      const auto n = static_cast<double>(k);
      const double next = (nodes_[i] * here - std::sqrt(n) * before) / std::sqrt(n + 1);
      before = here;
      here = next;
    }
  }
}

std::optional<HermiteSeries> HermiteSeries::fit(simd::Activation function, double largest_variance,
                                                double tolerance) {
  // What 512 terms reach at best: 1e-9 needs five per unit of the variance, of softplus.
  if (!(largest_variance < kMostTerms / 4.0)) return std::nullopt;
  HermiteSeries result(function, largest_variance);
  std::vector<double> value(result.terms_);
  std::vector<double> slope(result.terms_);
  result.coefficients({&largest_variance, 1}, value.data(), slope.data());
  const Moments whole = result.moments(largest_variance);
  double tail = 0;
  std::size_t needed = result.terms_;
  // Rounding leaves about 1e-17 of the whole in every term.
  while (needed > 1) {
    const double term = std::max(slope[needed - 1] * slope[needed - 1] / whole.slope,
                                 value[needed - 1] * value[needed - 1] / whole.value);
    if (tail + term > tolerance) break;
    tail += term;
    --needed;
  }
  if (needed == kMostTerms) return std::nullopt;
  result.terms_ = needed;
  result.fill_basis();
  return result;
}

LogisticMixture::LogisticMixture(simd::Activation function, double tolerance)
    : rectified_(function == simd::Activation::Softplus) {
  const bool fine = tolerance < 5e-10;
  const std::span<const ScaleNode> nodes =
      fine ? std::span<const ScaleNode>(kFineScales) : std::span<const ScaleNode>(kCoarseScales);
  const bool tanh = function == simd::Activation::Tanh;
  for (const ScaleNode& node : nodes) {
    squares_.push_back(tanh ? node.square / 4 : node.square);
    weights_.push_back(node.weight);
  }
  offset_ = tanh ? 0 : 0.25;
  factor_ = tanh ? 2 / pi : 1 / (2 * pi);
}

Moments LogisticMixture::moments(double q) const {
  double angle = 0;
  double roots = 0;
  double inverses = 0;
  for (std::size_t j = 0; j < count(); ++j) {
    for (std::size_t k = 0; k < count(); ++k) {
      const double weight = weights_[j] * weights_[k];
      const double root = std::sqrt(q * (squares_[j] + squares_[k]) + squares_[j] * squares_[k]);
      angle += weight * std::atan2(q, root);
      roots += weight * root;
      inverses += weight / root;
    }
  }
  const double turned = offset_ + factor_ * angle;
  if (rectified_) return {factor_ * roots + q * turned, turned};
  return {turned, factor_ * inverses};
}

void HermiteSeries::sample(std::span<const double> variances, std::vector<double>& value,
                           std::vector<double>& slope) const {
  const std::size_t count = variances.size() * nodes_.size();
  std::vector<double> x(count);
  const std::vector<double> ones(count, 1.0);
  for (std::size_t v = 0; v < variances.size(); ++v) {
    const double root = std::sqrt(variances[v]);
    for (std::size_t i = 0; i < nodes_.size(); ++i) x[v * nodes_.size() + i] = root * nodes_[i];
  }
  value.resize(count);
  slope.resize(count);
  kernels<double>().activate(function_, 0, x.data(), value.data(), count);
  kernels<double>().activation_chain(function_, 0, x.data(), value.data(), ones.data(), slope.data(), count);
}

Moments HermiteSeries::moments(double variance) const {
  std::vector<double> value;
  std::vector<double> slope;
  sample({&variance, 1}, value, slope);
  Moments result;
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const double weight = root_weights_[i] * root_weights_[i] * spacing_;
    result.value += weight * value[i] * value[i];
    result.slope += weight * slope[i] * slope[i];
  }
  return result;
}

void HermiteSeries::coefficients(std::span<const double> variances, double* value, double* slope) const {
  std::vector<double> values;
  std::vector<double> slopes;
  sample(variances, values, slopes);
  const std::size_t count = nodes_.size();
  for (std::size_t v = 0; v < variances.size(); ++v) {
    for (std::size_t i = 0; i < count; ++i) {
      values[v * count + i] *= root_weights_[i];
      slopes[v * count + i] *= root_weights_[i];
    }
  }
  blas::gemm(blas::Transpose::No, blas::Transpose::No, variances.size(), terms_, count, 1.0, values.data(),
             count, basis_.data(), terms_, 0.0, value, terms_);
  blas::gemm(blas::Transpose::No, blas::Transpose::No, variances.size(), terms_, count, 1.0, slopes.data(),
             count, basis_.data(), terms_, 0.0, slope, terms_);
}

}  // namespace gradgram::ntk::infinite
