#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/simd/kernels.hpp"

/// Gaussian moments of nonlinearities.
namespace gradgram::ntk::infinite {

struct Nonlinearity {
  enum class Kind { ArcCosine, Erf, Gelu, Sin, Cos, Sign, Monomial, Series };
  Kind kind = Kind::ArcCosine;
  double slope = 0;                                    ///< ArcCosine: phi(x) = x above 0, slope x below
  std::size_t degree = 1;                              ///< Monomial
  simd::Activation function = simd::Activation::Tanh;  ///< Series: tanh, sigmoid, softplus

  double scale() const { return (1 + slope * slope) / 2; }
  double turn() const;  ///< (1 - slope)^2 / (2 pi)
  /// Coefficients of E[phi phi] and E[phi' phi'] in the cosine, divided by the variances' powers (Monomial).
  std::vector<double> value_coefficients() const;
  std::vector<double> slope_coefficients() const;
};

struct Moments {
  double value = 0;  ///< E[phi(u)^2]
  double slope = 0;  ///< E[phi'(u)^2]; 0 for Sign
};

/// A smooth function by its Hermite coefficients: E[phi(u) phi(v)] = sum_k a_k(q) a_k(q') c^k with
/// a_k(q) = E[phi(sqrt(q) g) h_k(g)] and orthonormal Hermite polynomials h_k; likewise phi'.
///
/// The integrals are sums over evenly spaced nodes, which converge exponentially for functions that are
/// analytic in a strip (tanh, sigmoid and softplus are). Terms are taken until what follows is below
/// `tolerance` of E[phi'^2] at the largest variance; at most 512.
class HermiteSeries {
 public:
  /// None when 512 terms do not reach the tolerance: about 50 terms are needed per unit of the variance of
  /// tanh for 1e-14, a quarter as many for sigmoid and softplus.
  static std::optional<HermiteSeries> fit(simd::Activation function, double largest_variance,
                                          double tolerance);

  std::size_t terms() const noexcept { return terms_; }
  Moments moments(double variance) const;
  /// [variances][terms()], row-major, of phi and of phi'.
  void coefficients(std::span<const double> variances, double* value, double* slope) const;

 private:
  HermiteSeries(simd::Activation function, double largest_variance);
  void fill_basis();
  void sample(std::span<const double> variances, std::vector<double>& value,
              std::vector<double>& slope) const;

  simd::Activation function_;
  std::size_t terms_ = 0;
  std::vector<double> nodes_;
  std::vector<double> root_weights_;  ///< sqrt of the Gaussian weight at each node
  std::vector<double> basis_;         ///< [nodes][terms]: root weight * h_k * spacing
  double spacing_ = 0;
};

/// tanh, sigmoid and softplus as steps and ramps under logistic noise, which is normal noise of random
/// standard deviation lambda, twice a variable of Kolmogorov's distribution (D. F. Andrews, C. L. Mallows,
/// Scale mixtures of normal distributions, J. R. Stat. Soc. B 36, 1974; L. A. Stefanski, A normal scale
/// mixture representation of the logistic distribution, Stat. Probab. Lett. 11, 1991):
///     sigmoid(x) = E[1(x + lambda z > 0)],    softplus(x) = E[relu(x + lambda z)],    tanh(x) = 2 sigmoid(2
///     x) - 1,
/// so that moments are means, over lambda and lambda', of closed forms between variances q + lambda^2 and
/// q' + lambda'^2. The means are Gauss quadrature with respect to log lambda; its error does not depend on
/// the variances, which may be anything.
class LogisticMixture {
 public:
  /// Relative error 1e-15, or 3e-10 with a third of the terms where `tolerance` allows it.
  LogisticMixture(simd::Activation function, double tolerance);

  std::size_t count() const noexcept { return squares_.size(); }
  std::span<const double> squares() const noexcept { return squares_; }  ///< of lambda
  std::span<const double> weights() const noexcept { return weights_; }
  double offset() const noexcept { return offset_; }  ///< see simd::CovarianceMixture
  double factor() const noexcept { return factor_; }
  bool rectified() const noexcept { return rectified_; }
  Moments moments(double variance) const;

 private:
  std::vector<double> squares_, weights_;
  double offset_ = 0, factor_ = 0;
  bool rectified_ = false;
};

/// A function without a closed form, for variances up to a bound: a series where a short one will do, since
/// it takes less time, else a mixture.
struct SmoothForm {
  std::optional<HermiteSeries> series;
  LogisticMixture mixture;

  Moments moments(double variance) const {
    return series ? series->moments(variance) : mixture.moments(variance);
  }
};

/// Closed forms; `smooth` serves Kind::Series alone.
Moments self_moments(const Nonlinearity& phi, double variance, const SmoothForm* smooth);

}  // namespace gradgram::ntk::infinite
