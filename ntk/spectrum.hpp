#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine/tensor.hpp"

namespace gradgram::ntk {

struct SpectrumOptions {
  /// 0: all eigenpairs by LAPACK (dsyevd on BLIS, O(n^3)). Otherwise the k largest by Lanczos (Spectra).
  std::size_t top = 0;
  bool vectors = true;
  /// Relative error of the kernel's entries, for the error bar: 0 = that of an f64 kernel. Use entry_error<T>().
  double entry_error = 0;
};

/// A kernel read by its eigenvalues, all in f64.
struct Spectrum {
  std::vector<double> values;  ///< descending; n of them or `top`
  Tensor<double> vectors;      ///< [count, n]: row i belongs to values[i]; empty when not asked for
  std::size_t n = 0;
  double trace = 0;            ///< of the matrix, not of the values found
  double frobenius = 0;        ///< ||K||_F
  double error_bar = 0;        ///< absolute error of an eigenvalue from the precision of the entries and of LAPACK
  /// tr^2 / ||K||_F^2.
  double effective_rank() const;
  /// lambda_max / lambda_min; infinity when lambda_min is within its error bar. Needs all values.
  double condition() const;
  /// Whether the smallest value stands above its error bar.
  bool smallest_is_resolved() const;
};

/// K [n, n], symmetric (ShapeError / ArgumentError otherwise). Throws NumericError on NaN or no convergence.
Spectrum spectrum(TensorView<const double> kernel, const SpectrumOptions& options = {});

/// Share of ||y||^2 along each eigenvector: (u_i . y)^2 / ||y||^2, per value; y [n, C] gives the sum over columns.
std::vector<double> label_energy(const Spectrum& spectrum, TensorView<const double> y);
/// <K, Y Y^T> / (||K||_F ||Y Y^T||_F), y [n, C]; centred: with H K H and H Y (Cortes et al. 2012).
double kernel_target_alignment(TensorView<const double> kernel, TensorView<const double> y, bool centred);
/// A relative bound on the error of an entry, in units of sqrt(k_ii k_jj), for a kernel in precision T.
template <class T>
double entry_error();

}  // namespace gradgram::ntk
