#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine/tensor.hpp"

namespace gradgram::ntk {

struct SpectrumOptions {
  /// 0: all eigenpairs by LAPACK (dsyevd on BLIS; O(n^3) time, 3 n^2 numbers of memory with vectors, n^2
  /// without). Otherwise the `top` largest by Lanczos (Spectra; O(n^2) a step), unless they are half of them
  /// or more, or Lanczos breaks down (a kernel of low rank): then by LAPACK. Lanczos may miss copies of an
  /// eigenvalue that is repeated to rounding.
  std::size_t top = 0;
  bool vectors = true;
  /// Relative error of the kernel's entries, in units of sqrt(k_ii k_jj), for the error bar; entry_error<T>()
  /// of precision.hpp. 0: exact to f64 rounding.
  double entry_error = 0;
  /// What else the whole kernel is off by, as a norm ||E||_F relative to ||K||_F, such as the standard error
  /// of an estimate: moves no eigenvalue by more than ||E||_F, which both error bars contain.
  double relative_perturbation = 0;
  std::size_t memory = 0;  ///< bytes that may be used beside the kernel itself; 0 = no limit
};

/// A kernel read by its eigenvalues, all in f64.
struct Spectrum {
  std::vector<double> values;  ///< descending; n of them or `top`
  /// [count, n]: row i belongs to values[i], unit length, its largest component positive; empty when not
  /// asked for.
  Tensor<double> vectors;
  std::size_t n = 0;
  double trace = 0;      ///< of the matrix, not of the values found
  double frobenius = 0;  ///< ||K||_F
  /// Bound on the absolute error of an eigenvalue (Weyl): entry_error * sum |k_ii|, which is the norm of the
  /// worst perturbation |E_ij| <= entry_error sqrt(k_ii k_jj), plus n eps ||K||_2 for the solver.
  double error_bar = 0;
  /// What is likely instead when the entries' errors are independent: 2 entry_error max_i sqrt(k_ii sum
  /// |k_jj|) (the norm of a random symmetric matrix with that variance profile), plus the same solver term.
  /// Not a bound.
  double likely_error = 0;
  /// Largest ||K u - lambda u|| of the pairs that were checked: all of Lanczos', 8 spread over LAPACK's. 0
  /// without vectors.
  double residual = 0;
  /// tr^2 / ||K||_F^2; 0 for a zero matrix.
  double effective_rank() const;
  /// lambda_max / lambda_min; infinity when lambda_min is within its error bar. Needs all values
  /// (ArgumentError).
  double condition() const;
  /// Whether the smallest value found stands above its error bar.
  bool smallest_is_resolved() const;
  /// How many values found stand above the error bar.
  std::size_t resolved() const;
  /// tr K (K + lambda)^{-1}, lambda > 0; negative values count as 0. Needs all values (ArgumentError).
  double effective_dimension(double lambda) const;
};

/// What spectrum() of n examples takes beside the kernel. Lanczos that breaks down takes as much as all
/// eigenpairs.
std::size_t spectrum_bytes(std::size_t n, const SpectrumOptions& options);

/// K [n, n], symmetric to rounding (each pair may differ by 2 entry_error, at least 16 eps, of sqrt(k_ii
/// k_jj) or itself). Deterministic, single-threaded. Throws ShapeError when not square, ArgumentError naming
/// both entries when not symmetric or n too large for LAPACK's 32-bit workspace (32,766), NumericError on
/// NaN, infinity or no convergence, BudgetError.
Spectrum spectrum(TensorView<const double> kernel, const SpectrumOptions& options = {});

/// For each value found, the share of all n eigenvalues that are not larger: the ordinate of the CDF at
/// values[i].
std::vector<double> eigenvalue_cdf(const Spectrum& spectrum);
/// Share of ||y||^2 along each eigenvector: (u_i . y)^2 / ||y||^2, per value; y [n] or [n, C] (sums over
/// columns). Needs vectors. Throws ShapeError, ArgumentError, NumericError when y is zero or not finite.
std::vector<double> label_energy(const Spectrum& spectrum, TensorView<const double> y);
/// <K, Y Y^T> / (||K||_F ||Y Y^T||_F), y [n] or [n, C]; centred: with H K H and H Y, H = I - 1 1^T / n
/// (Cortes, Mohri, Rostamizadeh 2012). O(n^2 C). Throws ShapeError, NumericError when either norm is zero or
/// not finite.
double kernel_target_alignment(TensorView<const double> kernel, TensorView<const double> y, bool centred);

}  // namespace gradgram::ntk
