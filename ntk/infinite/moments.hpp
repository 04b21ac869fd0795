#pragma once

#include <cstddef>
#include <memory>
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
  /// Throws NumericError when 512 terms do not reach the tolerance: `name` names the layer.
  HermiteSeries(simd::Activation function, double largest_variance, double tolerance, const char* name);

  std::size_t terms() const noexcept { return terms_; }
  Moments moments(double variance) const;
  /// [variances][terms()], row-major, of phi and of phi'.
  void coefficients(std::span<const double> variances, double* value, double* slope) const;

 private:
  void sample(std::span<const double> variances, std::vector<double>& value,
              std::vector<double>& slope) const;

  simd::Activation function_;
  std::size_t terms_ = 0;
  std::vector<double> nodes_;
  std::vector<double> root_weights_;  ///< sqrt of the Gaussian weight at each node
  std::vector<double> basis_;         ///< [nodes][terms]: root weight * h_k * spacing
  double spacing_ = 0;
};

/// Closed forms; `series` serves Kind::Series alone.
Moments self_moments(const Nonlinearity& phi, double variance, const HermiteSeries* series);

}  // namespace gradgram::ntk::infinite
