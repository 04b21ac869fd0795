#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stop_token>
#include <vector>

#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "ntk/kernel_operator.hpp"

/// What random probes and Lanczos tell of a kernel that is known by its products alone (docs/matrix-free.md).
/// Every estimate is fixed by its seed and carries an error bar.
namespace gradgram::ntk {

/// A mean over random probes with its error bar.
struct Estimate {
  double value = 0;
  double standard_error = 0;
  /// 95 % confidence interval from the spread of the probes (Student's t). It covers the randomness of the
  /// probes only.
  double low = 0;
  double high = 0;
  std::size_t probes = 0;  ///< independent samples behind the error bar
};

/// Mean and interval of independent samples, at least two. Throws ArgumentError.
Estimate mean_of(std::span<const double> samples);

enum class TraceMethod {
  /// Mean of z^T K z over random signs z (Hutchinson 1989).
  Hutchinson,
  /// A third of the products find the range Q of K S, a third sum it exactly, the rest probe what is left
  /// (Meyer, Musco, Musco, Woodruff 2021): far smaller error when eigenvalues decay.
  HutchPlusPlus,
};

struct ProbeOptions {
  TraceMethod method = TraceMethod::HutchPlusPlus;
  std::size_t products = 60;  ///< of the operator, at least 2 (Hutchinson) or 6 (Hutch++)
  std::uint64_t seed = 0;
  Progress progress = {};
};

struct Moments {
  Estimate trace;
  Estimate frobenius;        ///< ||K||_F
  std::size_t products = 0;  ///< spent
};

/// tr K and ||K||_F from the same products: ||K z||^2 has mean ||K||_F^2. Hutch++ splits K = K Q Q^T + K (I -
/// Q Q^T): the first part is exact, the error bar is that of the second. Where the rank of what is probed is
/// used up the error is zero up to rounding. Memory: up to 2/3 `products` vectors. O(products^2 n) besides
/// the products. Throws ArgumentError, and what the operator throws.
Moments estimate_moments(SymmetricOperator& kernel, const ProbeOptions& options = {});

struct TopOptions {
  std::size_t top = 10;  ///< at most n
  std::uint64_t seed = 0;
  std::size_t max_restarts = 300;
  Progress progress = {};  ///< products done; of how many is not known before the end
};

struct TopPairs {
  std::vector<double> values;     ///< descending
  Tensor<double> vectors;         ///< [top, n], unit rows, largest component positive
  std::vector<double> residuals;  ///< ||K u - lambda u||: an eigenvalue of K lies within it, up to
                                  ///< the rounding of the product
  std::size_t products = 0;       ///< spent
};

/// The largest eigenpairs by implicitly restarted Lanczos (Spectra). Memory: max(2 top + 1, 20) vectors; a
/// kernel of no more rows than that is multiplied out and decomposed instead.
/// Lanczos may miss copies of an eigenvalue that is repeated to rounding. Says nothing of the smallest.
/// Of a kernel that is zero any vectors are eigenvectors: the first unit vectors are given. Throws
/// ArgumentError, and NumericError when it does not converge, a product is not finite, or a residual is
/// beyond rounding.
TopPairs largest_pairs(SymmetricOperator& kernel, const TopOptions& options = {});

struct DensityOptions {
  std::size_t probes = 10;  ///< at least 2
  std::size_t steps = 50;   ///< Lanczos steps of each: products = probes * steps
  std::uint64_t seed = 0;
  std::size_t block = 4;  ///< probes that run side by side, sharing forward passes; the bits do not depend on
                          ///< it unless the operator's do
  Progress progress = {};
};

/// The distribution of the eigenvalues, seen by stochastic Lanczos quadrature: each probe is a discrete
/// distribution on its Ritz values whose first 2 steps - 1 moments are those of the probe's own spectral
/// measure; the mean of these measures over probes is the eigenvalue distribution.
///
/// It resolves about ||K|| / steps. It does not resolve lambda_min, and no condition number follows from it.
struct SpectralDensity {
  struct Node {
    double value;   ///< Ritz value
    double weight;  ///< the weights of a probe sum to 1
  };
  std::vector<std::vector<Node>> probes;  ///< each ascending in value
  std::size_t n = 0;
  std::size_t products = 0;

  /// Share of eigenvalues <= x. The interval is that of the probes; the steps smear by about ||K|| / steps.
  Estimate cdf(double x) const;
  /// sum_i f(lambda_i), for smooth f: n times the mean of sum_j w_j f(theta_j).
  Estimate sum(const std::function<double(double)>& f) const;
  /// tr K (K + lambda I)^-1, lambda > 0; negative Ritz values count as 0.
  Estimate effective_dimension(double lambda) const;
  /// The largest Ritz value: lambda_max is at least this, up to rounding.
  double largest() const;
};

/// Lanczos with full reorthogonalization: memory block * steps vectors, O(probes steps^2 n) besides the
/// products. Throws ArgumentError, and what the operator throws.
SpectralDensity spectral_density(SymmetricOperator& kernel, const DensityOptions& options = {});

}  // namespace gradgram::ntk
