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

constexpr std::size_t kMostTerms = 512;

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

Moments self_moments(const Nonlinearity& phi, double q, const HermiteSeries* series) {
  switch (phi.kind) {
    case Nonlinearity::Kind::ArcCosine:
      return {phi.scale() * q, phi.scale()};
    case Nonlinearity::Kind::Erf:
      return {2 / pi * std::asin(2 * q / (1 + 2 * q)), 4 / pi / std::sqrt(1 + 4 * q)};
    case Nonlinearity::Kind::Gelu: {
      const double s = q / (1 + q);
      const double d = 1 / (2 * pi * std::sqrt(1 + 2 * q));
      const double p = 0.25 + std::asin(s) / (2 * pi);
      return {q * d * (q - q * s) + q * p + q * s * d, p + q * d * (2 / (1 + q) + 1 / (1 + 2 * q))};
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
      return series->moments(q);
  }
  throw ArgumentError("self_moments: unknown nonlinearity");
}

HermiteSeries::HermiteSeries(simd::Activation function, double largest_variance, double tolerance,
                             const char* name)
    : function_(function), terms_(kMostTerms) {
  // The nearest poles of tanh(s g) and its square lie at i pi / (2 s); sampling at `spacing` leaves
  // exp(-2 pi (pi / 2) / (s spacing)), below 1e-17 with 0.25 / s. The Hermite functions up to k oscillate
  // no faster than 2 sqrt(k) + a margin, and meet their like.
  const double root = std::sqrt(std::max(largest_variance, 1e-300));
  spacing_ = std::min(0.25 / root, 2 * pi / (2 * std::sqrt(static_cast<double>(kMostTerms)) + 14));
  const double reach = 12.6;  // the root weight is below 1e-17 beyond
  const auto half = static_cast<std::size_t>(std::ceil(reach / spacing_));
  if (half > 100000) {
    throw NumericError(fmt::format(
        "infinite_kernel: {} sees the variance {:g}, for which {} Hermite terms leave more than {:g}; "
        "scale the inputs or lower the weight variance",
        name, largest_variance, kMostTerms, tolerance));
  }
  for (std::size_t i = 0; i <= 2 * half; ++i) {
    const double g = (static_cast<double>(i) - static_cast<double>(half)) * spacing_;
    nodes_.push_back(g);
    root_weights_.push_back(std::exp(-g * g / 4) / std::pow(2 * pi, 0.25));
  }
  const auto fill = [&] {
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
  };
  fill();
  std::vector<double> value(terms_);
  std::vector<double> slope(terms_);
  coefficients({&largest_variance, 1}, value.data(), slope.data());
  const Moments whole = moments(largest_variance);
  double tail = 0;
  std::size_t needed = terms_;
  // Rounding leaves about 1e-17 of the whole in every term.
  while (needed > 1) {
    const double term = std::max(slope[needed - 1] * slope[needed - 1] / whole.slope,
                                 value[needed - 1] * value[needed - 1] / whole.value);
    if (tail + term > tolerance) break;
    tail += term;
    --needed;
  }
  if (needed == kMostTerms) {
    throw NumericError(std::string("infinite_kernel: ") + name + " sees the variance " +
                       std::to_string(largest_variance) + ", where " + std::to_string(kMostTerms) +
                       " Hermite terms do not reach " + std::to_string(tolerance) + "; scale the inputs");
  }
  terms_ = needed;
  fill();
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
