#include "ntk/predict.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <utility>
#include <vector>

#include "engine/blas.hpp"
#include "engine/cpu.hpp"
#include "engine/error.hpp"
#include "engine/memory_account.hpp"
#include "ntk/checks.hpp"
#include "ntk/cholesky.hpp"
#include "ntk/conjugate_gradients.hpp"
#include "ntk/dynamics.hpp"
#include "ntk/estimators.hpp"
#include "ntk/matrix_operator.hpp"

namespace gradgram::ntk {
namespace {

using blas::Transpose;

void check(const Learning& learning) {
  const auto refuse = [](const char* what, double value, const char* must) {
    throw ArgumentError(fmt::format("predict: {} ({}) must be {}", what, value, must));
  };
  if (!(learning.rate > 0) || !std::isfinite(learning.rate)) {
    refuse("rate", learning.rate, "a finite number above 0");
  }
  if (!(learning.momentum >= 0 && learning.momentum < 1)) {
    refuse("momentum", learning.momentum, "at least 0 and below 1");
  }
  if (!(learning.ridge >= 0) || !std::isfinite(learning.ridge)) {
    refuse("ridge", learning.ridge, "a finite number >= 0");
  }
  if (!(learning.time >= 0)) refuse("time", learning.time, "at least 0");
  if (learning.descent != Descent::Flow && learning.time != kForever &&
      (learning.time != std::floor(learning.time) || learning.time > 1e15)) {
    refuse("time", learning.time, "a whole number of steps, at most 1e15");
  }
}

using Matrix3 = std::array<double, 9>;

Matrix3 operator*(const Matrix3& a, const Matrix3& b) {
  Matrix3 product{};
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t j = 0; j < 3; ++j) {
      for (std::size_t k = 0; k < 3; ++k) product[i * 3 + j] += a[i * 3 + k] * b[k * 3 + j];
    }
  }
  return product;
}

/// (gained, rate v, remaining) after so many steps from (0, 0, 1), of a residual with gradient s * remaining.
std::pair<double, double> after_steps(const Learning& learning, double s) {
  const double rate = learning.rate;
  const double m = learning.descent == Descent::Steps ? 0 : learning.momentum;
  // m' = momentum m + rate r; the step is m' or, looking ahead, rate r + momentum m'.
  const double of_m = learning.descent == Descent::Nesterov ? m * m : m;
  const double of_r = learning.descent == Descent::Nesterov ? rate * (1 + m) : rate;
  Matrix3 step{1, of_m, of_r, 0, m, rate, 0, -s * of_m, 1 - s * of_r};
  Matrix3 power{1, 0, 0, 0, 1, 0, 0, 0, 1};
  for (auto left = static_cast<std::uint64_t>(learning.time); left != 0; left >>= 1) {
    if ((left & 1) != 0) power = power * step;
    if (left > 1) step = step * step;
  }
  return {power[2], power[8]};
}

/// Noise of a positive semidefinite kernel must neither grow nor, forever, be divided by. What is negative
/// beyond noise, ridge included, would grow like exp(rate |s| time).
double resolved(const Spectrum& spectrum, const Learning& learning, std::size_t i) {
  const double value = spectrum.values[i];
  const double least = learning.time == kForever && learning.ridge == 0 ? spectrum.error_bar : 0;
  if (std::abs(value) <= least || (value < 0 && value >= -spectrum.error_bar)) return 0;
  const bool forever = learning.time == kForever;
  if (forever ? !(value + learning.ridge > 0) : value + learning.ridge < -spectrum.error_bar) {
    const double smallest = spectrum.values.back();
    const double jitter = rounded_up(std::max(-2 * (smallest + learning.ridge), spectrum.error_bar));
    throw NumericError(fmt::format(
        "predict: needs a positive semidefinite kernel, but the smallest eigenvalue is {:g} (error bar "
        "{:g}){}; a ridge of {:g} would do",
        smallest, spectrum.error_bar,
        learning.ridge == 0 ? "" : fmt::format(", below zero with the ridge of {:g} too", learning.ridge),
        learning.ridge + jitter));
  }
  return value;
}

std::size_t columns_of(TensorView<const double> values, std::size_t n, const char* what) {
  const Shape& shape = values.shape();
  if ((shape.rank() != 1 && shape.rank() != 2) || shape[0] != n) {
    throw ShapeError(fmt::format("predict: {} {} must be [{}] or [{}, C]", what, shape.to_string(), n, n));
  }
  return shape.rank() == 1 ? 1 : shape[1];
}

void require_matrix(TensorView<const double> matrix, std::size_t rows, std::size_t columns,
                    const char* what) {
  const Shape& shape = matrix.shape();
  if (shape.rank() != 2 || shape[0] != rows || shape[1] != columns) {
    throw ShapeError(fmt::format("predict: {} {} must be [{}, {}]", what, shape.to_string(), rows, columns));
  }
}

std::size_t rows_of(TensorView<const double> versus, std::size_t n, const char* what) {
  if (versus.shape().rank() != 2) {
    throw ShapeError(fmt::format("predict: {} {} must be [m, {}]", what, versus.shape().to_string(), n));
  }
  require_matrix(versus, versus.shape()[0], n, what);
  return versus.shape()[0];
}

/// Whether the whole covariance is wanted; throws unless `prior` is [m, m], [m] or empty.
enum class Wanted { Mean, Variance, Covariance };
Wanted wanted_of(TensorView<const double> prior, std::size_t points) {
  if (!prior) return Wanted::Mean;
  if (prior.shape() == Shape{points}) return Wanted::Variance;
  require_matrix(prior, points, points, "prior");
  return Wanted::Covariance;
}

std::vector<Learned> along_all(const Spectrum& spectrum, const Learning& learning) {
  check(learning);
  if (spectrum.n != 0 && learning.time == kForever && learning.descent != Descent::Flow) {
    const double most = largest_stable_rate(learning.descent, std::max(0.0, spectrum.values.front()),
                                            learning.momentum, learning.ridge);
    if (!(learning.rate < most)) {
      throw NumericError(
          fmt::format("predict: the descent diverges: rate {:g} must be below the largest stable rate {:g} "
                      "(of the loss 1/2 "
                      "sum r^2)",
                      learning.rate, most));
    }
  }
  std::vector<Learned> result(spectrum.values.size());
  for (std::size_t i = 0; i < result.size(); ++i)
    result[i] = learned(learning, resolved(spectrum, learning, i));
  return result;
}

std::vector<double> gained_of(const std::vector<Learned>& all) {
  std::vector<double> result;
  for (const Learned& one : all) result.push_back(one.gained);
  return result;
}

std::vector<double> remaining_of(const std::vector<Learned>& all) {
  std::vector<double> result;
  for (const Learned& one : all) result.push_back(one.remaining);
  return result;
}

void require_finite(const Spectrum& spectrum, const Learning& learning, std::span<const double> values) {
  if (all_finite(values)) return;
  throw NumericError(fmt::format(
      "predict: the outputs are not finite; kernels, targets and initial outputs must be, and rate ({:g}) "
      "below "
      "the largest stable rate ({:g}, of the loss 1/2 sum r^2)",
      learning.rate,
      largest_stable_rate(learning.descent, std::max(0.0, spectrum.n == 0 ? 0 : spectrum.values.front()),
                          learning.momentum, learning.ridge)));
}

/// Throws NumericError when a value is not finite; `cause` is what can have brought it.
void require_finite_values(const char* call, const char* cause, std::span<const double> values) {
  if (all_finite(values)) return;
  throw NumericError(fmt::format("{}: {} must be finite", call, cause));
}

/// f_0 - y [n, C].
Tensor<double> residual_of(TensorView<const double> y, TensorView<const double> initial, std::size_t n) {
  const std::size_t columns = columns_of(y, n, "y");
  Tensor<double> result(Shape{n, columns});
  for (std::size_t i = 0; i < result.size(); ++i) result.data()[i] = -y.data()[i];
  if (initial) {
    if (columns_of(initial, n, "initial") != columns) {
      throw ShapeError(fmt::format("predict: initial {} and y {} must have equally many columns",
                                   initial.shape().to_string(), y.shape().to_string()));
    }
    for (std::size_t i = 0; i < result.size(); ++i) result.data()[i] += initial.data()[i];
  }
  return result;
}

/// Rows of a product that one piece of work makes.
constexpr std::size_t kRows = 128;

/// c [m, n] := a [m, k] op(b) + beta c of matrices without gaps, panels of rows on all workers.
void multiply(const Workers& workers, Transpose of_b, std::size_t m, std::size_t n, std::size_t k,
              const double* a, const double* b, double beta, double* c) {
  workers.run((m + kRows - 1) / kRows, [&](std::size_t piece, std::size_t) {
    const std::size_t begin = piece * kRows;
    blas::gemm(Transpose::No, of_b, std::min(kRows, m - begin), n, k, 1.0, a + begin * k, k, b,
               of_b == Transpose::No ? n : k, beta, c + begin * n, n);
  });
}

/// matrix * U^T diag(factors) U for a matrix [m, n].
Tensor<double> times_function(TensorView<const double> matrix, const Spectrum& spectrum,
                              const std::vector<double>& factors, const Workers& workers) {
  const std::size_t m = matrix.shape()[0];
  const std::size_t n = spectrum.n;
  Tensor<double> along(Shape{m, n});
  multiply(workers, Transpose::Yes, m, n, n, matrix.data(), spectrum.vectors.data(), 0.0, along.data());
  for (std::size_t i = 0; i < m; ++i) {
    for (std::size_t j = 0; j < n; ++j) along.data()[i * n + j] *= factors[j];
  }
  Tensor<double> result(Shape{m, n});
  multiply(workers, Transpose::No, m, n, n, along.data(), spectrum.vectors.data(), 0.0, result.data());
  return result;
}

/// The same bits on both sides of the diagonal.
void symmetrize(Tensor<double>& matrix) {
  const std::size_t n = matrix.shape()[0];
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      double& lower = matrix.data()[i * n + j];
      double& upper = matrix.data()[j * n + i];
      lower = upper = (lower + upper) / 2;
    }
  }
}

void require_pairs(const Spectrum& spectrum) {
  if (spectrum.values.size() != spectrum.n || spectrum.vectors.size() != spectrum.n * spectrum.n) {
    throw ArgumentError(
        fmt::format("predict: needs all eigenpairs, found {} of {}", spectrum.values.size(), spectrum.n));
  }
}

double scale_of(LossScale scale, std::size_t n, std::size_t columns) {
  if (n == 0 || columns == 0) {
    throw ArgumentError(fmt::format("predict: a mean loss needs examples ({}) and outputs ({})", n, columns));
  }
  const double count = static_cast<double>(n) * static_cast<double>(columns);
  return scale == LossScale::HalfSum ? 1 : scale == LossScale::Mean ? 2 / count : 1 / count;
}

}  // namespace

double rate_of_half_sum(double rate, LossScale scale, std::size_t n, std::size_t columns) {
  return rate * scale_of(scale, n, columns);
}

double rate_under(LossScale scale, double rate_of_half_sum, std::size_t n, std::size_t columns) {
  return rate_of_half_sum / scale_of(scale, n, columns);
}

Learned learned(const Learning& learning, double lambda) {
  check(learning);
  const double s = lambda + learning.ridge;
  Learned result;
  double remaining = 1;  // of the regularized residual
  if (learning.time == kForever) {
    result.gained = s == 0 ? 0 : 1 / s;
    remaining = s == 0 ? 1 : 0;
  } else if (learning.descent == Descent::Flow) {
    // The largest with the least first: no product on the way is beyond what the whole is.
    std::array<double, 3> factors{learning.rate, s, learning.time};
    std::ranges::sort(factors);
    const double exponent = -(factors[0] * factors[2]) * factors[1];
    result.gained = s == 0 ? learning.rate * learning.time : -std::expm1(exponent) / s;
    remaining = std::exp(exponent);
  } else {
    std::tie(result.gained, remaining) = after_steps(learning, s);
  }
  // 1 - lambda gained, but exact also when it is tiny.
  result.remaining = remaining + learning.ridge * result.gained;
  return result;
}

double largest_stable_rate(Descent descent, double largest_eigenvalue, double momentum, double ridge) {
  if (!(largest_eigenvalue >= 0) || !std::isfinite(largest_eigenvalue)) {
    throw ArgumentError(fmt::format(
        "largest_stable_rate: largest_eigenvalue ({}) must be a finite number >= 0", largest_eigenvalue));
  }
  Learning learning;
  learning.momentum = momentum;
  learning.ridge = ridge;
  check(learning);
  const double s = largest_eigenvalue + ridge;
  if (descent == Descent::Flow || s == 0) return kForever;
  switch (descent) {
    case Descent::HeavyBall:
      return 2 * (1 + momentum) / s;
    case Descent::Nesterov:
      return (2 + 2 * momentum) / ((1 + 2 * momentum) * s);
    default:
      return 2 / s;
  }
}

Tensor<double> predict_train(const Spectrum& spectrum, const Learning& learning, TensorView<const double> y,
                             TensorView<const double> initial) {
  require_pairs(spectrum);
  const Tensor<double> residual = residual_of(y, initial, spectrum.n);
  Tensor<double> result =
      apply_function(spectrum, remaining_of(along_all(spectrum, learning)), residual.view());
  for (std::size_t i = 0; i < result.size(); ++i) result.data()[i] += y.data()[i];
  require_finite(spectrum, learning, result.span());
  return result;
}

Tensor<double> predict(const Spectrum& spectrum, const Learning& learning, TensorView<const double> versus,
                       TensorView<const double> y, TensorView<const double> initial,
                       TensorView<const double> initial_versus) {
  require_pairs(spectrum);
  const std::size_t n = spectrum.n;
  const std::size_t points = rows_of(versus, n, "versus");
  const Tensor<double> residual = residual_of(y, initial, n);
  const std::size_t columns = residual.shape()[1];
  const Tensor<double> moved =
      apply_function(spectrum, gained_of(along_all(spectrum, learning)), residual.view());
  Tensor<double> result(Shape{points, columns});
  if (initial_versus) {
    if (columns_of(initial_versus, points, "initial_versus") != columns) {
      throw ShapeError(fmt::format("predict: initial_versus {} and y {} must have equally many columns",
                                   initial_versus.shape().to_string(), y.shape().to_string()));
    }
    std::copy_n(initial_versus.data(), result.size(), result.data());
  }
  blas::gemm(Transpose::No, Transpose::No, points, columns, n, -1.0, versus.data(), n, moved.data(), columns,
             1.0, result.data(), columns);
  require_finite(spectrum, learning, result.span());
  return result;
}

GaussianOutputs gaussian_process(const CholeskyFactor& factor, TensorView<const double> versus,
                                 TensorView<const double> prior, TensorView<const double> y,
                                 const Workers& workers) {
  const std::size_t n = factor.size();
  const std::size_t points = rows_of(versus, n, "versus");
  const std::size_t columns = columns_of(y, n, "y");
  const Wanted wanted = wanted_of(prior, points);
  require_finite_values("predict", "y", y.span());
  require_finite_values("predict", "versus", versus.span());
  GaussianOutputs result;
  result.coefficients = Tensor<double>(Shape{n, columns}, y.span());
  factor.solve(result.coefficients, workers);
  result.mean = apply_kernel<double>(versus, result.coefficients, workers);
  if (wanted == Wanted::Mean) return result;
  Tensor<double> half(Shape{n, points});
  for (std::size_t i = 0; i < points; ++i) {
    for (std::size_t j = 0; j < n; ++j) half.data()[j * points + i] = versus.data()[i * n + j];
  }
  factor.solve_lower(half, workers);
  result.covariance = Tensor<double>(prior.shape(), prior.span());
  if (wanted == Wanted::Variance) {
    for (std::size_t j = 0; j < n; ++j) {
      const double* const row = half.data() + j * points;
      for (std::size_t i = 0; i < points; ++i) result.covariance.data()[i] -= row[i] * row[i];
    }
    return result;
  }
  workers.run((points + kRows - 1) / kRows, [&](std::size_t piece, std::size_t) {
    const std::size_t begin = piece * kRows;
    blas::gemm(Transpose::Yes, Transpose::No, std::min(kRows, points - begin), points, n, -1.0,
               half.data() + begin, points, half.data(), points, 1.0,
               result.covariance.data() + begin * points, points);
  });
  symmetrize(result.covariance);
  return result;
}

double log_marginal_likelihood(const CholeskyFactor& factor, TensorView<const double> y,
                               const Workers& workers) {
  const std::size_t n = factor.size();
  const std::size_t columns = columns_of(y, n, "y");
  Tensor<double> half(Shape{n, columns}, y.span());
  factor.solve_lower(half, workers);
  double squares = 0;
  for (const double value : half.span()) squares += value * value;
  return -0.5 * squares -
         0.5 * static_cast<double>(columns) *
             (factor.log_determinant() + static_cast<double>(n) * std::log(2 * std::numbers::pi));
}

GaussianOutputs ensemble(const Spectrum& tangent, const Learning& learning,
                         TensorView<const double> tangent_versus, TensorView<const double> nngp,
                         TensorView<const double> nngp_versus, TensorView<const double> prior,
                         TensorView<const double> y, const Workers& workers) {
  require_pairs(tangent);
  const std::size_t n = tangent.n;
  const std::size_t points = rows_of(tangent_versus, n, "tangent_versus");
  require_matrix(nngp, n, n, "nngp");
  require_matrix(nngp_versus, points, n, "nngp_versus");
  const std::size_t columns = columns_of(y, n, "y");
  const Wanted wanted = wanted_of(prior, points);
  const Tensor<double> a =
      times_function(tangent_versus, tangent, gained_of(along_all(tangent, learning)), workers);
  GaussianOutputs result;
  result.mean = Tensor<double>(Shape{points, columns});
  multiply(workers, Transpose::No, points, columns, n, a.data(), y.data(), 0.0, result.mean.data());
  require_finite(tangent, learning, result.mean.span());
  if (wanted == Wanted::Mean) return result;
  // A (A K - 2 K*)^T, whose symmetric part is what is added to the prior.
  Tensor<double> beside(Shape{points, n});
  multiply(workers, Transpose::No, points, n, n, a.data(), nngp.data(), 0.0, beside.data());
  for (std::size_t i = 0; i < beside.size(); ++i) beside.data()[i] -= 2 * nngp_versus.data()[i];
  result.covariance = Tensor<double>(prior.shape(), prior.span());
  if (wanted == Wanted::Variance) {
    for (std::size_t i = 0; i < points; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        result.covariance.data()[i] += a.data()[i * n + j] * beside.data()[i * n + j];
      }
    }
  } else {
    multiply(workers, Transpose::Yes, points, points, n, a.data(), beside.data(), 1.0,
             result.covariance.data());
    symmetrize(result.covariance);
  }
  require_finite(tangent, learning, result.covariance.span());
  return result;
}

GaussianOutputs ensemble_train(const Spectrum& tangent, const Learning& learning,
                               TensorView<const double> nngp, TensorView<const double> y, bool covariance,
                               const Workers& workers) {
  require_pairs(tangent);
  const std::size_t n = tangent.n;
  require_matrix(nngp, n, n, "nngp");
  GaussianOutputs result;
  result.mean = predict_train(tangent, learning, y);
  const std::vector<double> remaining = remaining_of(along_all(tangent, learning));
  Tensor<double> identity(Shape{n, n});
  for (std::size_t i = 0; i < n; ++i) identity.data()[i * n + i] = 1;
  const Tensor<double> b = times_function(identity.view(), tangent, remaining, workers);
  Tensor<double> half(Shape{n, n});
  multiply(workers, Transpose::No, n, n, n, b.data(), nngp.data(), 0.0, half.data());
  if (covariance) {
    result.covariance = Tensor<double>(Shape{n, n});
    multiply(workers, Transpose::Yes, n, n, n, half.data(), b.data(), 0.0, result.covariance.data());
    symmetrize(result.covariance);
  } else {
    result.covariance = Tensor<double>(Shape{n});
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        result.covariance.data()[i] += half.data()[i * n + j] * b.data()[i * n + j];
      }
    }
  }
  require_finite(tangent, learning, result.covariance.span());
  return result;
}

Regression kernel_regression(SymmetricOperator& kernel, TensorView<const double> y,
                             const RegressionOptions& options) {
  const std::size_t columns = columns_of(y, kernel.size(), "y");
  ConjugateGradientOptions conjugate;
  conjugate.shift = options.ridge;
  conjugate.tolerance = options.tolerance;
  conjugate.most_iterations = options.most_iterations;
  conjugate.rank = options.rank;
  conjugate.progress = options.progress;
  conjugate.stop = options.stop;
  ConjugateGradientResult solved =
      conjugate_gradients(kernel, y.reshaped(Shape{kernel.size(), columns}), conjugate);
  Regression result;
  result.coefficients = std::move(solved.solution);
  result.rank = solved.rank;
  for (const double residual : solved.residuals) result.residual = std::max(result.residual, residual);
  for (const std::size_t count : solved.iterations) result.iterations = std::max(result.iterations, count);
  return result;
}

namespace {

std::size_t vector_bytes(std::size_t n, std::size_t columns) {
  return checked_multiply(checked_multiply(n, columns, "kernel_regression"), 4 * sizeof(double),
                          "kernel_regression");
}

/// A factor and its right-hand sides.
std::size_t factor_bytes(std::size_t n, std::size_t columns) {
  const std::size_t square = checked_multiply(n, n, "kernel_regression");
  return checked_add(checked_multiply(square, sizeof(double), "kernel_regression"), vector_bytes(n, columns),
                     "kernel_regression");
}

/// Conjugate gradients, and their preconditioner for each unit of its rank: two of its size while it is made.
std::size_t iteration_bytes(std::size_t n, std::size_t columns, std::size_t workers) {
  return checked_add(2 * vector_bytes(n, columns), workers * kProductRows * n * sizeof(double),
                     "kernel_regression");
}
std::size_t rank_bytes(std::size_t n) {
  return 4 * n * sizeof(double);
}

}  // namespace

std::size_t least_regression_bytes(std::size_t n, std::size_t columns, std::size_t workers) {
  return std::min(factor_bytes(n, columns), iteration_bytes(n, columns, workers) + rank_bytes(n));
}

template <class T>
Regression kernel_regression(TensorView<const T> kernel, TensorView<const double> y,
                             const RegressionOptions& options, const Workers& workers) {
  if (kernel.shape().rank() != 2 || kernel.shape()[0] != kernel.shape()[1]) {
    throw ShapeError(fmt::format("kernel_regression: kernel {} must be [n, n]", kernel.shape().to_string()));
  }
  const std::size_t n = kernel.shape()[0];
  const std::size_t columns = columns_of(y, n, "y");
  const std::size_t memory = options.memory != 0 ? options.memory : cpu_info().memory_bytes / 2;
  require_finite_values("kernel_regression", "y", y.span());
  if (factor_bytes(n, columns) <= memory) {
    Tensor<double> matrix(kernel.shape());
    std::copy_n(kernel.data(), matrix.size(), matrix.data());
    CholeskyOptions cholesky;
    cholesky.shift = options.ridge;
    cholesky.progress = options.progress;
    cholesky.stop = options.stop;
    const CholeskyFactor factor(std::move(matrix), workers, cholesky);
    Regression result;
    result.factored = true;
    result.coefficients = Tensor<double>(Shape{n, columns}, y.span());
    factor.solve(result.coefficients, workers);
    result.residual = factor.residual(result.coefficients, y.reshaped(result.coefficients.shape()), workers);
    return result;
  }
  RegressionOptions smaller = options;
  MemoryAccount account("kernel_regression", memory);
  account.phase(fmt::format("equations of n = {} with {} columns beside the kernel", n, columns),
                least_regression_bytes(n, columns, workers.count()));
  account.check();
  const std::size_t fixed = iteration_bytes(n, columns, workers.count());
  const std::size_t affordable = (memory - fixed) / rank_bytes(n);
  const std::size_t rank =
      options.rank != 0 ? options.rank : std::max<std::size_t>(1, std::min<std::size_t>(256, n / 4));
  smaller.rank = std::min(rank, affordable);
  MatrixOperator<T> products(kernel, workers);
  return kernel_regression(products, y, smaller);
}
template Regression kernel_regression(TensorView<const float>, TensorView<const double>,
                                      const RegressionOptions&, const Workers&);
template Regression kernel_regression(TensorView<const double>, TensorView<const double>,
                                      const RegressionOptions&, const Workers&);

template <class T>
Tensor<double> apply_kernel(TensorView<const T> versus, TensorView<const double> coefficients,
                            const Workers& workers) {
  if (versus.shape().rank() != 2) {
    throw ShapeError(fmt::format("apply_kernel: versus {} must be [m, n]", versus.shape().to_string()));
  }
  const std::size_t points = versus.shape()[0];
  const std::size_t n = versus.shape()[1];
  const std::size_t columns = columns_of(coefficients, n, "coefficients");
  Tensor<double> result(Shape{points, columns});
  std::vector<std::vector<double>> scratch(workers.count());
  workers.run((points + kProductRows - 1) / kProductRows, [&](std::size_t piece, std::size_t worker) {
    const std::size_t begin = piece * kProductRows;
    const std::size_t rows = std::min(kProductRows, points - begin);
    scratch[worker].resize(kProductRows * n);
    std::copy_n(versus.data() + begin * n, rows * n, scratch[worker].begin());
    blas::gemm(Transpose::No, Transpose::No, rows, columns, n, 1.0, scratch[worker].data(), n,
               coefficients.data(), columns, 0.0, result.data() + begin * columns, columns);
  });
  require_finite_values("apply_kernel", "the kernel or the coefficients", result.span());
  return result;
}
template Tensor<double> apply_kernel(TensorView<const float>, TensorView<const double>, const Workers&);
template Tensor<double> apply_kernel(TensorView<const double>, TensorView<const double>, const Workers&);

double largest_eigenvalue(SymmetricOperator& kernel) {
  const std::size_t n = kernel.size();
  if (n == 0) return 0;
  if (n == 1) {
    const double one = 1;
    double product = 0;
    kernel.apply({&one, Shape{1, 1}}, {&product, Shape{1, 1}});
    return product;
  }
  TopOptions options;
  options.top = 1;
  return largest_pairs(kernel, options).values.front();
}

template <class T>
Tensor<double> join_outputs(TensorView<const T> kernel) {
  const Shape& shape = kernel.shape();
  if (shape.rank() != 4 || shape[2] != shape[3]) {
    throw ShapeError(fmt::format("join_outputs: kernel {} must be [n, m, O, O]", shape.to_string()));
  }
  const std::size_t n = shape[0];
  const std::size_t m = shape[1];
  const std::size_t outputs = shape[2];
  Tensor<double> result(Shape{n * outputs, m * outputs});
  const T* from = kernel.data();
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < m; ++j) {
      for (std::size_t k = 0; k < outputs; ++k) {
        for (std::size_t l = 0; l < outputs; ++l) {
          result.data()[(i * outputs + k) * m * outputs + j * outputs + l] = static_cast<double>(*from++);
        }
      }
    }
  }
  return result;
}
template Tensor<double> join_outputs(TensorView<const float>);
template Tensor<double> join_outputs(TensorView<const double>);

}  // namespace gradgram::ntk
