#include "ntk/spectrum.hpp"

#include <Spectra/SymEigsSolver.h>
#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "engine/error.hpp"
#include "ntk/checks.hpp"
#include "ntk/lapack.hpp"

namespace gradgram::ntk {
namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

std::size_t square_rows(TensorView<const double> kernel, const char* call) {
  const Shape& shape = kernel.shape();
  if (shape.rank() != 2 || shape[0] != shape[1]) {
    throw ShapeError(std::string(call) + ": kernel " + shape.to_string() + " must be [n, n]");
  }
  return shape[0];
}

/// K x / scale for Spectra. Scaled, because Spectra's convergence test has an absolute part.
class DenseOperator {
 public:
  using Scalar = double;
  DenseOperator(const double* kernel, std::size_t n, double scale)
      : kernel_(kernel, static_cast<Eigen::Index>(n), static_cast<Eigen::Index>(n)), inverse_(1 / scale) {}
  Eigen::Index rows() const { return kernel_.rows(); }
  Eigen::Index cols() const { return kernel_.cols(); }
  void perform_op(const double* x, double* y) const {
    const Eigen::Map<const Eigen::VectorXd> in(x, rows());
    Eigen::Map<Eigen::VectorXd> out(y, rows());
    out.noalias() = kernel_ * in;
    out *= inverse_;
  }

 private:
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Eigen::Map<const Matrix> kernel_;
  double inverse_;
};

double pair_residual(const double* kernel, std::size_t n, double value, const double* vector) {
  double squares = 0;
  for (std::size_t i = 0; i < n; ++i) {
    double sum = 0;
    const double* row = kernel + i * n;
    for (std::size_t j = 0; j < n; ++j) sum += row[j] * vector[j];
    const double difference = sum - value * vector[i];
    squares += difference * difference;
  }
  return std::sqrt(squares);
}

/// An eigenvector is free in its sign: the first component that is largest to rounding becomes positive.
void fix_sign(double* vector, std::size_t n) {
  double largest = 0;
  for (std::size_t j = 0; j < n; ++j) largest = std::max(largest, std::abs(vector[j]));
  // Symmetric modes hold +c and -c that differ by rounding only; 1e-8 keeps such ties from deciding.
  const std::size_t first = static_cast<std::size_t>(
      std::find_if(vector, vector + n, [&](double c) { return std::abs(c) >= (1 - 1e-8) * largest; }) -
      vector);
  if (first < n && vector[first] < 0) {
    for (std::size_t j = 0; j < n; ++j) vector[j] = -vector[j];
  }
}

std::size_t all_bytes(std::size_t n, bool vectors) {
  return checked_multiply(checked_multiply(n, n, "spectrum"), (vectors ? 3 : 1) * sizeof(double), "spectrum");
}

/// Spectra's advice is at least twice as many Krylov vectors as pairs; 20 help when few pairs are asked for.
std::size_t krylov_of(std::size_t n, std::size_t count) {
  return std::min(n, std::max<std::size_t>(2 * count + 1, 20));
}

std::size_t largest_bytes(std::size_t n, std::size_t count) {
  return checked_multiply(checked_multiply(n, krylov_of(n, count) + 2 * count + 8, "spectrum"),
                          sizeof(double), "spectrum");
}

/// Lanczos needs room for a Krylov space.
bool by_lanczos(std::size_t n, const SpectrumOptions& options) {
  return options.top != 0 && 2 * options.top < n;
}

void require_budget(std::size_t needed, const SpectrumOptions& options, std::size_t n, const char* remedy) {
  if (options.memory != 0 && needed > options.memory) {
    throw BudgetError("spectrum: n = " + std::to_string(n) + " needs " + std::to_string(needed) +
                      " bytes beside the kernel, the budget is " + std::to_string(options.memory) + remedy);
  }
}

void all_pairs(const double* kernel, std::size_t n, std::size_t count, double asymmetry,
               const SpectrumOptions& options, Spectrum& result) {
  const std::size_t square = checked_multiply(n, n, "spectrum");
  require_budget(all_bytes(n, options.vectors), options, n,
                 options.vectors ? "; without vectors, or for the largest eigenvalues only, less does" : "");
  Tensor<double> matrix(Shape{n, n}, std::span(kernel, square));
  std::vector<double> values(n);
  lapack::symmetric_eigen(matrix, values, options.vectors);

  // The sums of the values and of their squares are known: a check of all values that costs nothing.
  double sum = 0;
  double squares = 0;
  const double norm = std::max(std::abs(values.front()), std::abs(values.back()));
  for (const double value : values) {
    sum += value;
    squares += norm == 0 ? 0 : (value / norm) * (value / norm);
  }
  const double slack = 16 * static_cast<double>(n) * kEpsilon;
  if (!(std::abs(sum - result.trace) <= slack * static_cast<double>(n) * norm) ||
      !(std::abs(norm * std::sqrt(squares) - result.frobenius) <= slack * result.frobenius + asymmetry)) {
    throw NumericError("spectrum: the eigenvalues' sum (" + fmt::to_string(sum) +
                       ") does not match the trace (" + fmt::to_string(result.trace) + ")");
  }
  result.values.assign(values.rbegin(), values.rbegin() + static_cast<std::ptrdiff_t>(count));
  if (!options.vectors) return;
  for (std::size_t i = 0; i < n / 2; ++i) {
    std::swap_ranges(&matrix.span()[i * n], &matrix.span()[i * n] + n, &matrix.span()[(n - 1 - i) * n]);
  }
  result.vectors =
      count == n ? std::move(matrix) : Tensor<double>(Shape{count, n}, matrix.span().first(count * n));
}

/// What n eps ||K|| and the asymmetry leave uncertain of an eigenvalue.
double solver_error(std::size_t n, double norm, double asymmetry) {
  return static_cast<double>(n) * kEpsilon * norm + asymmetry;
}

/// ||K u - lambda u|| beyond this is no rounding.
double residual_limit(std::size_t n, double norm, double asymmetry) {
  return std::max(16 * solver_error(n, norm, asymmetry), 1e-11 * norm) + 2 * asymmetry;
}

/// False when the iteration breaks down, does not converge or ends in pairs that are none, as it may where
/// the Krylov space is smaller than asked for: a kernel of few parameters has few nonzero eigenvalues.
bool largest_pairs(const double* kernel, std::size_t n, std::size_t count, double scale, double asymmetry,
                   const SpectrumOptions& options, Spectrum& result) {
  const std::size_t krylov = krylov_of(n, count);
  require_budget(largest_bytes(n, count), options, n, "");
  DenseOperator operation(kernel, n, scale);
  Spectra::SymEigsSolver<DenseOperator> solver(operation, static_cast<Eigen::Index>(count),
                                               static_cast<Eigen::Index>(krylov));
  try {
    solver.init();
    solver.compute(Spectra::SortRule::LargestAlge, 2000, 1e-13);
  } catch (const std::runtime_error&) {
    return false;
  }
  if (solver.info() != Spectra::CompInfo::Successful) return false;
  const Eigen::VectorXd values = solver.eigenvalues();
  const Eigen::MatrixXd vectors = solver.eigenvectors();
  result.values.resize(count);
  result.vectors = Tensor<double>(Shape{count, n});
  for (std::size_t i = 0; i < count; ++i) {
    result.values[i] = values[static_cast<Eigen::Index>(i)] * scale;
    const auto column = vectors.col(static_cast<Eigen::Index>(i));
    std::copy(column.data(), column.data() + n, &result.vectors.span()[i * n]);
    const double residual = pair_residual(kernel, n, result.values[i], &result.vectors.span()[i * n]);
    if (!(residual <= residual_limit(n, result.frobenius, asymmetry))) return false;
  }
  return true;
}

/// y [n] or [n, C] as rows and columns.
std::size_t label_columns(TensorView<const double> y, std::size_t n, const char* call) {
  const Shape& shape = y.shape();
  if ((shape.rank() != 1 && shape.rank() != 2) || shape[0] != n) {
    throw ShapeError(std::string(call) + ": y " + shape.to_string() +
                     " must be [n] or [n, C] with n = " + std::to_string(n));
  }
  return shape.rank() == 1 ? 1 : shape[1];
}

void require_all(const Spectrum& spectrum, const char* call) {
  if (spectrum.n == 0 || spectrum.values.size() != spectrum.n) {
    throw ArgumentError(std::string(call) + ": needs all eigenvalues, found " +
                        std::to_string(spectrum.values.size()) + " of " + std::to_string(spectrum.n));
  }
}

}  // namespace

std::size_t spectrum_bytes(std::size_t n, const SpectrumOptions& options) {
  return by_lanczos(n, options) ? largest_bytes(n, options.top) : all_bytes(n, options.vectors);
}

Spectrum spectrum(TensorView<const double> kernel, const SpectrumOptions& options) {
  const std::size_t n = square_rows(kernel, "spectrum");
  if (!(options.entry_error >= 0) || !std::isfinite(options.entry_error)) {
    throw ArgumentError("spectrum: entry_error must be a number >= 0, found " +
                        fmt::to_string(options.entry_error));
  }
  Spectrum result;
  result.n = n;
  if (n == 0) {
    result.vectors = Tensor<double>(Shape{0, 0});
    return result;
  }
  const double* const k = kernel.data();
  require_finite_entries(k, n, "spectrum", "kernel");
  const double asymmetry =
      require_symmetric(k, n, std::max(16 * kEpsilon, 2 * options.entry_error), "spectrum", "kernel");

  double largest_entry = 0;
  for (const double value : kernel.span()) largest_entry = std::max(largest_entry, std::abs(value));
  double squares = 0;
  double diagonal_sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    result.trace += k[i * n + i];
    diagonal_sum += std::abs(k[i * n + i]);
  }
  if (largest_entry > 0) {
    for (const double value : kernel.span()) squares += (value / largest_entry) * (value / largest_entry);
  }
  result.frobenius = largest_entry * std::sqrt(squares);

  const std::size_t count = options.top == 0 ? n : std::min(options.top, n);
  // A zero matrix gives no Krylov space.
  const bool lanczos = by_lanczos(n, options) && largest_entry > 0 &&
                       largest_pairs(k, n, count, largest_entry, asymmetry, options, result);
  if (!lanczos) {
    result.vectors = Tensor<double>();  // of an attempt that failed
    all_pairs(k, n, count, asymmetry, options, result);
  }

  // ||K||_2 <= ||K||_F; all values give it exactly.
  const double norm = result.values.size() == n
                          ? std::max(std::abs(result.values.front()), std::abs(result.values.back()))
                          : result.frobenius;
  const double solver = solver_error(n, norm, asymmetry);
  if (result.vectors.size() != 0) {
    const std::size_t checked = lanczos ? count : std::min<std::size_t>(count, 8);
    for (std::size_t c = 0; c < checked; ++c) {
      const std::size_t i = checked == 1 ? 0 : c * (count - 1) / (checked - 1);
      result.residual =
          std::max(result.residual, pair_residual(k, n, result.values[i], &result.vectors.span()[i * n]));
    }
    if (!(result.residual <= residual_limit(n, norm, asymmetry))) {
      throw NumericError(
          "spectrum: the largest residual ||K u - lambda u|| = " + fmt::to_string(result.residual) +
          " is beyond rounding for ||K|| = " + fmt::to_string(norm));
    }
    for (std::size_t i = 0; i < count; ++i) fix_sign(&result.vectors.span()[i * n], n);
  }
  const double relative = std::max(options.entry_error, kEpsilon);
  double largest_diagonal = 0;
  for (std::size_t i = 0; i < n; ++i) largest_diagonal = std::max(largest_diagonal, std::abs(k[i * n + i]));
  const double solved = lanczos ? std::max(solver, result.residual) : solver;
  const double perturbed = options.relative_perturbation * result.frobenius;
  result.error_bar = relative * diagonal_sum + perturbed + solved;
  result.likely_error =
      2 * relative * std::sqrt(largest_diagonal) * std::sqrt(diagonal_sum) + perturbed + solved;
  if (lanczos && !options.vectors) result.vectors = Tensor<double>();
  if (!std::isfinite(result.error_bar) || !std::isfinite(result.frobenius) || !std::isfinite(result.trace)) {
    throw NumericError("spectrum: the kernel's trace or norm overflows; largest |entry| = " +
                       fmt::to_string(largest_entry));
  }
  return result;
}

double Spectrum::effective_rank() const {
  if (frobenius == 0) return 0;
  const double ratio = trace / frobenius;
  return ratio * ratio;
}

double Spectrum::condition() const {
  require_all(*this, "condition");
  return smallest_is_resolved() ? values.front() / values.back() : std::numeric_limits<double>::infinity();
}

bool Spectrum::smallest_is_resolved() const {
  return !values.empty() && values.back() > error_bar;
}

std::size_t Spectrum::resolved() const {
  return static_cast<std::size_t>(
      std::count_if(values.begin(), values.end(), [this](double value) { return value > error_bar; }));
}

double Spectrum::effective_dimension(double lambda) const {
  require_all(*this, "effective_dimension");
  if (!(lambda > 0)) {
    throw ArgumentError("effective_dimension: lambda must be > 0, found " + fmt::to_string(lambda));
  }
  double sum = 0;
  for (const double value : values) sum += value > 0 ? value / (value + lambda) : 0;
  return sum;
}

std::vector<double> eigenvalue_cdf(const Spectrum& spectrum) {
  std::vector<double> result(spectrum.values.size());
  const double n = static_cast<double>(spectrum.n);
  std::size_t larger = 0;
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (i > 0 && spectrum.values[i] < spectrum.values[i - 1]) larger = i;
    result[i] = (n - static_cast<double>(larger)) / n;
  }
  return result;
}

std::vector<double> label_energy(const Spectrum& spectrum, TensorView<const double> y) {
  const std::size_t n = spectrum.n;
  const std::size_t columns = label_columns(y, n, "label_energy");
  const std::size_t count = spectrum.values.size();
  if (spectrum.vectors.size() != count * n) {
    throw ArgumentError("label_energy: the spectrum holds " + std::to_string(count) +
                        " values but no vectors");
  }
  double total = 0;
  for (const double value : y.span()) total += value * value;
  if (!(total > 0) || !std::isfinite(total)) {
    throw NumericError("label_energy: ||y||^2 = " + fmt::to_string(total) + " must be positive and finite");
  }
  std::vector<double> result(count);
  std::vector<double> along(columns);
  for (std::size_t i = 0; i < count; ++i) {
    std::fill(along.begin(), along.end(), 0.0);
    for (std::size_t j = 0; j < n; ++j) {
      const double component = spectrum.vectors.data()[i * n + j];
      for (std::size_t c = 0; c < columns; ++c) along[c] += component * y.data()[j * columns + c];
    }
    for (const double value : along) result[i] += value * value / total;
  }
  return result;
}

double kernel_target_alignment(TensorView<const double> kernel, TensorView<const double> y, bool centred) {
  const std::size_t n = square_rows(kernel, "kernel_target_alignment");
  const std::size_t columns = label_columns(y, n, "kernel_target_alignment");
  const double* const k = kernel.data();
  require_finite_entries(k, n, "kernel_target_alignment", "kernel");
  Tensor<double> target(Shape{n, columns}, y.span());
  std::vector<double> row_means(n);
  double mean = 0;
  if (centred && n > 0) {
    const double count = static_cast<double>(n);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) row_means[i] += k[i * n + j];
      row_means[i] /= count;
      mean += row_means[i] / count;
    }
    for (std::size_t c = 0; c < columns; ++c) {
      double sum = 0;
      for (std::size_t i = 0; i < n; ++i) sum += target(i, c);
      for (std::size_t i = 0; i < n; ++i) target(i, c) -= sum / count;
    }
  }
  double kernel_squares = 0;
  double inner = 0;
  double rounding = 0;  // what ||HKH||^2 could be by cancellation alone
  std::vector<double> product(columns);
  for (std::size_t i = 0; i < n; ++i) {
    std::fill(product.begin(), product.end(), 0.0);
    for (std::size_t j = 0; j < n; ++j) {
      const double value = k[i * n + j] - (centred ? row_means[i] + row_means[j] - mean : 0.0);
      kernel_squares += value * value;
      rounding += k[i * n + j] * k[i * n + j];
      for (std::size_t c = 0; c < columns; ++c) product[c] += value * target.data()[j * columns + c];
    }
    for (std::size_t c = 0; c < columns; ++c) inner += product[c] * target.data()[i * columns + c];
  }
  // ||Y Y^T||_F = ||Y^T Y||_F, which is C x C.
  double target_squares = 0;
  for (std::size_t a = 0; a < columns; ++a) {
    for (std::size_t b = 0; b < columns; ++b) {
      double gram = 0;
      for (std::size_t i = 0; i < n; ++i)
        gram += target.data()[i * columns + a] * target.data()[i * columns + b];
      target_squares += gram * gram;
    }
  }
  double label_squares = 0;
  for (const double value : y.span()) label_squares += value * value;
  const double noise = 64 * static_cast<double>(n) * kEpsilon;
  const bool kernel_vanishes = !(kernel_squares > noise * noise * rounding);
  const bool target_vanishes = !(std::sqrt(target_squares) > noise * noise * label_squares);
  const double result = inner / (std::sqrt(kernel_squares) * std::sqrt(target_squares));
  if (kernel_vanishes || target_vanishes || !std::isfinite(result)) {
    throw NumericError(std::string("kernel_target_alignment: ") +
                       (kernel_vanishes   ? "the kernel"
                        : target_vanishes ? "y"
                                          : "a norm") +
                       (kernel_vanishes || target_vanishes
                            ? (centred ? " is zero after centring" : " is zero")
                            : " overflows or is not a number"));
  }
  return result;
}

}  // namespace gradgram::ntk
