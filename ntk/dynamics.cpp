#include "ntk/dynamics.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "engine/blas.hpp"
#include "engine/error.hpp"
#include "ntk/checks.hpp"

namespace gradgram::ntk {
namespace {

using blas::Transpose;

std::size_t columns_of(TensorView<const double> values, std::size_t n, const char* call, const char* what) {
  const Shape& shape = values.shape();
  if ((shape.rank() != 1 && shape.rank() != 2) || shape[0] != n) {
    throw ShapeError(std::string(call) + ": " + what + " " + shape.to_string() +
                     " must be [n] or [n, C] with n = " + std::to_string(n));
  }
  return shape.rank() == 1 ? 1 : shape[1];
}

void require_pairs(const Spectrum& spectrum, const char* call) {
  if (spectrum.values.size() != spectrum.n || spectrum.vectors.size() != spectrum.n * spectrum.n) {
    throw ArgumentError(std::string(call) + ": needs all eigenpairs, found " +
                        std::to_string(spectrum.values.size()) + " values and " +
                        std::to_string(spectrum.n == 0 ? 0 : spectrum.vectors.size() / spectrum.n) +
                        " vectors of " + std::to_string(spectrum.n));
  }
}

void require_times(std::span<const double> times, const char* call) {
  for (const double time : times) {
    if (!(time >= 0) || !std::isfinite(time)) {
      throw ArgumentError(std::string(call) + ": a time must be a finite number >= 0, found " +
                          fmt::to_string(time));
    }
  }
}

/// Noise of a positive semidefinite kernel must not grow exponentially.
double denoised(const Spectrum& spectrum, std::size_t i) {
  const double value = spectrum.values[i];
  return value < 0 && value >= -spectrum.error_bar ? 0 : value;
}

void require_finite(std::span<const double> values, const char* call, const std::string& why) {
  if (!all_finite(values)) {
    throw NumericError(std::string(call) + ": the result is not finite; " + why);
  }
}

/// U r: coefficients [n, C] of the residual along the eigenvectors (rows of U).
Tensor<double> coefficients(const Spectrum& spectrum, TensorView<const double> residual,
                            std::size_t columns) {
  Tensor<double> result(Shape{spectrum.n, columns});
  blas::gemm(Transpose::No, Transpose::No, spectrum.n, columns, spectrum.n, 1.0, spectrum.vectors.data(),
             spectrum.n, residual.data(), columns, 0.0, result.data(), columns);
  return result;
}

/// U^T diag(factor) c for each time into out [times, n, C].
Tensor<double> evolve(const Spectrum& spectrum, const Tensor<double>& along, std::size_t columns,
                      std::size_t times,
                      const std::function<double(std::size_t time, std::size_t i)>& factor) {
  const std::size_t n = spectrum.n;
  Tensor<double> result(Shape{times, n, columns});
  Tensor<double> scaled(Shape{n, columns});
  for (std::size_t t = 0; t < times; ++t) {
    for (std::size_t i = 0; i < n; ++i) {
      const double by = factor(t, i);
      for (std::size_t c = 0; c < columns; ++c)
        scaled.data()[i * columns + c] = by * along.data()[i * columns + c];
    }
    blas::gemm(Transpose::Yes, Transpose::No, n, columns, n, 1.0, spectrum.vectors.data(), n, scaled.data(),
               columns, 0.0, result.data() + t * n * columns, columns);
  }
  return result;
}

}  // namespace

Tensor<double> apply_function(const Spectrum& spectrum, std::span<const double> factors,
                              TensorView<const double> values) {
  require_pairs(spectrum, "apply_function");
  const std::size_t columns = columns_of(values, spectrum.n, "apply_function", "values");
  if (factors.size() != spectrum.n) {
    throw ShapeError("apply_function: factors (" + std::to_string(factors.size()) +
                     ") must be n = " + std::to_string(spectrum.n));
  }
  Tensor<double> result = evolve(spectrum, coefficients(spectrum, values, columns), columns, 1,
                                 [&](std::size_t, std::size_t i) { return factors[i]; });
  return Tensor<double>(Shape{spectrum.n, columns}, result.span());
}

Tensor<double> linearized_residuals(const Spectrum& spectrum, TensorView<const double> residual,
                                    std::span<const double> eta_t) {
  require_pairs(spectrum, "linearized_residuals");
  require_times(eta_t, "linearized_residuals");
  const std::size_t columns = columns_of(residual, spectrum.n, "linearized_residuals", "residual");
  Tensor<double> result =
      evolve(spectrum, coefficients(spectrum, residual, columns), columns, eta_t.size(),
             [&](std::size_t t, std::size_t i) { return std::exp(-denoised(spectrum, i) * eta_t[t]); });
  require_finite(result.span(), "linearized_residuals",
                 "the residual must be finite and the kernel not indefinite");
  return result;
}

Tensor<double> linearized_descent(const Spectrum& spectrum, TensorView<const double> residual, double eta,
                                  std::span<const double> steps) {
  require_pairs(spectrum, "linearized_descent");
  const std::size_t columns = columns_of(residual, spectrum.n, "linearized_descent", "residual");
  for (const double step : steps) {
    if (!(step >= 0) || step != std::floor(step) || !std::isfinite(step)) {
      throw ArgumentError("linearized_descent: a step must be a whole number >= 0, found " +
                          fmt::to_string(step));
    }
  }
  if (!(eta >= 0) || !std::isfinite(eta)) {
    throw ArgumentError("linearized_descent: eta must be a finite number >= 0, found " + fmt::to_string(eta));
  }
  Tensor<double> result = evolve(
      spectrum, coefficients(spectrum, residual, columns), columns, steps.size(),
      [&](std::size_t t, std::size_t i) { return std::pow(1 - eta * denoised(spectrum, i), steps[t]); });
  require_finite(result.span(), "linearized_descent",
                 "the descent diverges unless eta (" + fmt::to_string(eta) + ") < 2 / lambda_max (" +
                     fmt::to_string(spectrum.n == 0 ? 0 : 2 / spectrum.values.front()) + ")");
  return result;
}

Tensor<double> linearized_predictions(const Spectrum& spectrum, TensorView<const double> versus,
                                      TensorView<const double> initial, TensorView<const double> residual,
                                      std::span<const double> eta_t) {
  const std::size_t n = spectrum.n;
  require_pairs(spectrum, "linearized_predictions");
  require_times(eta_t, "linearized_predictions");
  const std::size_t columns = columns_of(residual, n, "linearized_predictions", "residual");
  if (versus.shape().rank() != 2 || versus.shape()[1] != n) {
    throw ShapeError("linearized_predictions: versus " + versus.shape().to_string() +
                     " must be [m, n] with n = " + std::to_string(n));
  }
  const std::size_t points = versus.shape()[0];
  if (columns_of(initial, points, "linearized_predictions", "initial") != columns) {
    throw ShapeError("linearized_predictions: initial " + initial.shape().to_string() + " and residual " +
                     residual.shape().to_string() + " must have equally many columns");
  }
  // (1 - e^{-lambda s}) / lambda, which tends to s as lambda goes to 0.
  const Tensor<double> moved =
      evolve(spectrum, coefficients(spectrum, residual, columns), columns, eta_t.size(),
             [&](std::size_t t, std::size_t i) {
               const double lambda = denoised(spectrum, i);
               return lambda == 0 ? eta_t[t] : -std::expm1(-lambda * eta_t[t]) / lambda;
             });
  Tensor<double> result(Shape{eta_t.size(), points, columns});
  for (std::size_t t = 0; t < eta_t.size(); ++t) {
    double* const out = result.data() + t * points * columns;
    std::copy(initial.data(), initial.data() + points * columns, out);
    blas::gemm(Transpose::No, Transpose::No, points, columns, n, -1.0, versus.data(), n,
               moved.data() + t * n * columns, columns, 1.0, out, columns);
  }
  require_finite(result.span(), "linearized_predictions", "versus, initial and residual must be finite");
  return result;
}

Tensor<double> linearized_cross_entropy(TensorView<const double> kernel, double largest_eigenvalue,
                                        TensorView<const double> initial,
                                        std::span<const std::int32_t> labels, std::span<const double> eta_t,
                                        double step, std::size_t most_steps) {
  const char* const call = "linearized_cross_entropy";
  if (kernel.shape().rank() != 2 || kernel.shape()[0] != kernel.shape()[1]) {
    throw ShapeError("linearized_cross_entropy: kernel " + kernel.shape().to_string() + " must be [n, n]");
  }
  const std::size_t n = kernel.shape()[0];
  const std::size_t columns = columns_of(initial, n, call, "initial");
  if (labels.size() != n) {
    throw ShapeError("linearized_cross_entropy: labels (" + std::to_string(labels.size()) +
                     ") and kernel rows (" + std::to_string(n) + ") must match");
  }
  for (const std::int32_t label : labels) {
    if (label < 0 || static_cast<std::size_t>(label) >= columns) {
      throw ArgumentError("linearized_cross_entropy: label " + std::to_string(label) + " is outside [0, " +
                          std::to_string(columns) + ")");
    }
  }
  require_times(eta_t, call);
  if (!std::is_sorted(eta_t.begin(), eta_t.end())) {
    throw ArgumentError("linearized_cross_entropy: the times must ascend");
  }
  if (!(step > 0) || !std::isfinite(largest_eigenvalue)) {
    throw ArgumentError("linearized_cross_entropy: step (" + fmt::to_string(step) +
                        ") must be positive and largest_eigenvalue (" + fmt::to_string(largest_eigenvalue) +
                        ") finite");
  }
  const std::size_t size = n * columns;
  // The velocity -K (softmax(f) - Y) of outputs f.
  Tensor<double> gradient(Shape{n, columns});
  const auto velocity = [&](const double* outputs, double* into) {
    for (std::size_t i = 0; i < n; ++i) {
      const double* const f = outputs + i * columns;
      double* const g = gradient.data() + i * columns;
      const double largest = *std::max_element(f, f + columns);
      double sum = 0;
      for (std::size_t c = 0; c < columns; ++c) sum += g[c] = std::exp(f[c] - largest);
      for (std::size_t c = 0; c < columns; ++c) g[c] /= sum;
      g[labels[i]] -= 1;
    }
    blas::gemm(Transpose::No, Transpose::No, n, columns, n, -1.0, kernel.data(), n, gradient.data(), columns,
               0.0, into, columns);
  };
  Tensor<double> result(Shape{eta_t.size(), n, columns});
  Tensor<double> now(Shape{n, columns}, initial.span());
  Tensor<double> ahead(Shape{n, columns});
  Tensor<double> first(Shape{n, columns});
  Tensor<double> second(Shape{n, columns});
  double time = 0;
  double steps_so_far = 0;
  for (std::size_t t = 0; t < eta_t.size(); ++t) {
    const double span = eta_t[t] - time;
    const double steps =
        size == 0 || span == 0 ? 0 : std::max(1.0, std::ceil(span * std::abs(largest_eigenvalue) / step));
    steps_so_far += steps;
    if (!(steps_so_far <= static_cast<double>(most_steps))) {
      throw ArgumentError("linearized_cross_entropy: time " + fmt::to_string(eta_t[t]) +
                          " with lambda_max = " + fmt::to_string(largest_eigenvalue) + " needs more than " +
                          std::to_string(most_steps) + " steps");
    }
    const double h = steps == 0 ? 0 : span / steps;
    for (double s = 0; s < steps; ++s) {
      velocity(now.data(), first.data());
      for (std::size_t i = 0; i < size; ++i) ahead.data()[i] = now.data()[i] + h * first.data()[i];
      velocity(ahead.data(), second.data());
      for (std::size_t i = 0; i < size; ++i) now.data()[i] += h / 2 * (first.data()[i] + second.data()[i]);
    }
    time = eta_t[t];
    std::copy(now.data(), now.data() + size, result.data() + t * size);
  }
  require_finite(result.span(), call, "kernel and initial outputs must be finite");
  return result;
}

}  // namespace gradgram::ntk
