#pragma once

#include <cstddef>
#include <stop_token>
#include <string>
#include <vector>

#include "engine/error.hpp"
#include "engine/parallel.hpp"
#include "engine/tensor.hpp"

/// Equations with a kernel that fits into memory in f64 (docs/predict.md).
namespace gradgram::ntk {

/// A Cholesky factor does not exist. The text names the row, an estimate of the smallest eigenvalue and what
/// to add to the diagonal.
class NotPositiveDefinite : public NumericError {
 public:
  NotPositiveDefinite(const std::string& text, std::size_t row, double smallest_eigenvalue, double jitter)
      : NumericError(text), row_(row), smallest_eigenvalue_(smallest_eigenvalue), jitter_(jitter) {}
  /// The first row whose pivot is not positive.
  std::size_t row() const noexcept { return row_; }
  /// Of the matrix with its shift, by Lanczos, from above.
  double smallest_eigenvalue() const noexcept { return smallest_eigenvalue_; }
  /// Add this to the shift: above the negative eigenvalues and rounding.
  double jitter() const noexcept { return jitter_; }

 private:
  std::size_t row_;
  double smallest_eigenvalue_;
  double jitter_;
};

struct CholeskyOptions {
  double shift = 0;  ///< factor K + shift I, shift >= 0
  Progress progress = {};
  std::stop_token stop = {};
};

/// K + shift I = L L^T, and equations with it. L takes the place of the lower triangle while the upper one
/// keeps K, so that residuals and, where there is no factor, the smallest eigenvalue are those of K.
///
/// n^3 / 6 multiply-adds, left-looking by blocks of 512 columns (256 below n = 3,000), f64; nothing but K and
/// 2 MiB is held. The same bits for any number of workers.
class CholeskyFactor {
 public:
  /// Takes K [n, n], symmetric (of which both triangles are read). Throws ShapeError, ArgumentError (not
  /// symmetric: naming both entries; a bad shift), NumericError on NaN or infinity, NotPositiveDefinite,
  /// Cancelled.
  explicit CholeskyFactor(Tensor<double> matrix, const Workers& workers, const CholeskyOptions& options = {});

  std::size_t size() const noexcept { return diagonal_.size(); }
  double shift() const noexcept { return shift_; }
  /// x := (K + shift I)^-1 x; x [n] or [n, C]. 2 n^2 C multiply-adds. Throws ShapeError.
  void solve(TensorView<double> x, const Workers& workers) const;
  /// x := L^-1 x, of which ||L^-1 k||^2 = k^T (K + shift I)^-1 k. Throws ShapeError.
  void solve_lower(TensorView<double> x, const Workers& workers) const;
  /// (K + shift I) x from the triangle that was kept. Throws ShapeError.
  Tensor<double> multiply(TensorView<const double> x, const Workers& workers) const;
  /// The largest ||y - (K + shift I) x|| / ||y|| of the columns; a column of zeros counts by ||x||. Throws
  /// ShapeError.
  double residual(TensorView<const double> x, TensorView<const double> y, const Workers& workers) const;
  /// log det (K + shift I).
  double log_determinant() const;

 private:
  void factor(const Workers& workers, const CholeskyOptions& options);
  [[noreturn]] void refuse(std::size_t row, const Workers& workers, const std::stop_token& stop) const;

  Tensor<double> matrix_;         ///< L below and on the diagonal, K above
  std::vector<double> diagonal_;  ///< of K + shift I
  double shift_ = 0;
};

/// The smallest of four numbers 1, 2, 5, 10 times a power of ten that is not below `value` > 0: a jitter as a
/// person would write it.
double rounded_up(double value);

}  // namespace gradgram::ntk
