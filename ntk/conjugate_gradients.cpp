#include "ntk/conjugate_gradients.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "engine/blas.hpp"
#include "engine/error.hpp"
#include "engine/random.hpp"
#include "ntk/lapack.hpp"

namespace gradgram::ntk {
namespace {

using blas::Transpose;

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
constexpr std::uint64_t kSketchStream = std::uint64_t{5} << 32;

double dot(const double* a, const double* b, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void check_stop(const std::stop_token& stop) {
  if (stop.stop_requested()) throw Cancelled("conjugate_gradients: stopped");
}

/// U D U^T with orthonormal rows of `vectors`, values descending.
struct Nystrom {
  Tensor<double> vectors;  ///< [r, n]
  std::vector<double> values;

  /// z = P^-1 r of `count` rows of n numbers.
  void apply(const double* r, double* z, std::size_t count, std::size_t n, double shift) const {
    const std::size_t rank = values.size();
    std::copy_n(r, count * n, z);
    if (rank == 0) return;
    std::vector<double> along(count * rank);
    blas::gemm(Transpose::No, Transpose::Yes, count, rank, n, 1.0, r, n, vectors.data(), n, 0.0, along.data(),
               rank);
    for (std::size_t c = 0; c < count; ++c) {
      for (std::size_t i = 0; i < rank; ++i) {
        along[c * rank + i] *= (values.back() + shift) / (values[i] + shift) - 1;
      }
    }
    blas::gemm(Transpose::No, Transpose::No, count, n, rank, 1.0, along.data(), rank, vectors.data(), n, 1.0,
               z, n);
  }
};

Nystrom nystrom(SymmetricOperator& kernel, std::size_t rank, const ConjugateGradientOptions& options) {
  const std::size_t n = kernel.size();
  // Orthonormal test vectors: the left singular vectors of a Gaussian matrix.
  Tensor<double> test(Shape{rank, n});
  for (std::size_t i = 0; i < rank; ++i) {
    Random random(options.seed, kSketchStream + i);
    for (std::size_t j = 0; j < n; ++j) test.data()[i * n + j] = random.normal();
  }
  std::vector<double> values(rank);
  lapack::left_singular_vectors(test, values);
  Tensor<double> sketch(Shape{rank, n});
  constexpr std::size_t kPiece = 64;
  for (std::size_t i = 0; i < rank; i += kPiece) {
    check_stop(options.stop);
    const std::size_t end = std::min(rank, i + kPiece);
    kernel.apply(test.view().slice(i, end), sketch.view().slice(i, end));
  }
  double squares = 0;
  for (const double value : sketch.span()) squares += value * value;
  Nystrom result;
  if (squares == 0) return result;
  // K + nu I has a factor on the sketch, and nu is taken off again.
  double nu = std::max(kEpsilon, kernel.relative_error()) * std::sqrt(squares);
  Tensor<double> core(Shape{rank, rank});
  Tensor<double> shifted(Shape{rank, n});
  for (int attempt = 0;; ++attempt) {
    for (std::size_t i = 0; i < rank * n; ++i) shifted.data()[i] = sketch.data()[i] + nu * test.data()[i];
    blas::gemm(Transpose::No, Transpose::Yes, rank, rank, n, 1.0, test.data(), n, shifted.data(), n, 0.0,
               core.data(), rank);
    if (lapack::cholesky({core.data(), rank, rank, rank}) == rank) break;
    if (attempt == 8) return result;  // far from positive semidefinite: the iteration will tell
    nu *= 10;
  }
  // Rows of B^T = L^-1 (K + nu I) Omega^T.
  lapack::solve_lower({core.data(), rank, rank, rank}, Transpose::No, {shifted.data(), rank, n, n});
  lapack::left_singular_vectors(shifted, values);
  std::size_t kept = 0;
  for (const double value : values) {
    const double eigenvalue = value * value - nu;
    if (!(eigenvalue > nu)) break;
    result.values.push_back(eigenvalue);
    ++kept;
  }
  result.vectors =
      kept == rank ? std::move(shifted) : Tensor<double>(Shape{kept, n}, shifted.span().first(kept * n));
  return result;
}

}  // namespace

ConjugateGradientResult conjugate_gradients(SymmetricOperator& kernel, TensorView<const double> y,
                                            const ConjugateGradientOptions& options) {
  const std::size_t n = kernel.size();
  if (y.shape().rank() != 2 || y.shape()[0] != n) {
    throw ShapeError(
        fmt::format("conjugate_gradients: y {} must be [n, C] with n = {}", y.shape().to_string(), n));
  }
  if (!(options.shift >= 0) || !std::isfinite(options.shift) || !(options.tolerance > 0)) {
    throw ArgumentError(
        fmt::format("conjugate_gradients: shift ({}) must be a finite number >= 0 and tolerance "
                    "({}) positive",
                    options.shift, options.tolerance));
  }
  const std::size_t columns = y.shape()[1];
  ConjugateGradientResult result;
  result.solution = Tensor<double>(y.shape());
  result.residuals.assign(columns, 0);
  result.iterations.assign(columns, 0);
  // Vectors are rows, as operators take them.
  Tensor<double> right(Shape{columns, n});
  std::vector<double> wanted(columns);
  for (std::size_t c = 0; c < columns; ++c) {
    for (std::size_t i = 0; i < n; ++i) {
      const double value = y.data()[i * columns + c];
      if (!std::isfinite(value)) {
        throw ArgumentError(fmt::format("conjugate_gradients: y({}, {}) is {}", i, c, value));
      }
      right.data()[c * n + i] = value;
    }
    wanted[c] = std::sqrt(dot(right.data() + c * n, right.data() + c * n, n));
  }
  if (n == 0 || columns == 0) return result;

  const std::size_t rank = std::min(
      n, options.rank != 0 ? options.rank : std::max<std::size_t>(1, std::min<std::size_t>(256, n / 4)));
  const Nystrom preconditioner = nystrom(kernel, rank, options);
  result.products += rank;
  result.rank = preconditioner.values.size();
  result.largest_eigenvalue = preconditioner.values.empty() ? 0 : preconditioner.values.front();

  // The columns still at work, side by side: their x, residual, direction and product.
  std::vector<std::size_t> open;
  for (std::size_t c = 0; c < columns; ++c) {
    if (wanted[c] > 0) open.push_back(c);
  }
  Tensor<double> x(Shape{columns, n});
  Tensor<double> r = right.clone();
  Tensor<double> p(Shape{columns, n});
  Tensor<double> packed(Shape{columns, n});
  Tensor<double> product(Shape{columns, n});
  std::vector<double> rho(columns, 0);
  const auto multiply = [&](const std::vector<std::size_t>& which, Tensor<double>& of) {
    for (std::size_t k = 0; k < which.size(); ++k)
      std::copy_n(of.data() + which[k] * n, n, packed.data() + k * n);
    kernel.apply(packed.view().slice(0, which.size()), product.view().slice(0, which.size()));
    result.products += which.size();
    for (std::size_t k = 0; k < which.size(); ++k) {
      const double* const from = packed.data() + k * n;
      double* const to = product.data() + k * n;
      for (std::size_t i = 0; i < n; ++i) to[i] += options.shift * from[i];
    }
  };
  std::vector<bool> fresh(columns, true);
  for (std::size_t step = 0; !open.empty() && step < options.most_iterations; ++step) {
    check_stop(options.stop);
    if (options.progress) options.progress(step, options.most_iterations);
    for (std::size_t k = 0; k < open.size(); ++k)
      std::copy_n(r.data() + open[k] * n, n, packed.data() + k * n);
    preconditioner.apply(packed.data(), product.data(), open.size(), n, options.shift);
    for (std::size_t k = 0; k < open.size(); ++k) {
      const std::size_t c = open[k];
      const double* const z = product.data() + k * n;
      double* const direction = p.data() + c * n;
      const double next = dot(r.data() + c * n, z, n);
      const double beta = fresh[c] ? 0 : next / rho[c];
      for (std::size_t i = 0; i < n; ++i) direction[i] = z[i] + beta * direction[i];
      rho[c] = next;
      fresh[c] = false;
    }
    multiply(open, p);
    std::vector<std::size_t> done;
    for (std::size_t k = 0; k < open.size(); ++k) {
      const std::size_t c = open[k];
      const double* const direction = p.data() + c * n;
      const double* const image = product.data() + k * n;
      const double curvature = dot(direction, image, n);
      if (!(curvature > 0)) {
        throw NumericError(
            fmt::format("conjugate_gradients: the matrix ({} rows, {:g} added to the diagonal) is not "
                        "positive definite: a "
                        "direction of length {:.3g} has curvature {:.3g}; add a jitter (ridge) above {:.1g}",
                        n, options.shift, std::sqrt(dot(direction, direction, n)), curvature,
                        std::max(-2 * curvature / std::max(dot(direction, direction, n), 1e-300),
                                 kernel.relative_error() * result.largest_eigenvalue)));
      }
      const double alpha = rho[c] / curvature;
      double* const solution = x.data() + c * n;
      double* const residual = r.data() + c * n;
      for (std::size_t i = 0; i < n; ++i) {
        solution[i] += alpha * direction[i];
        residual[i] -= alpha * image[i];
      }
      ++result.iterations[c];
      if (std::sqrt(dot(residual, residual, n)) <= options.tolerance * wanted[c]) done.push_back(c);
    }
    if (done.empty()) continue;
    // What the recursion calls converged is measured.
    multiply(done, x);
    for (std::size_t k = 0; k < done.size(); ++k) {
      const std::size_t c = done[k];
      double* const residual = r.data() + c * n;
      for (std::size_t i = 0; i < n; ++i) residual[i] = right.data()[c * n + i] - product.data()[k * n + i];
      result.residuals[c] = std::sqrt(dot(residual, residual, n)) / wanted[c];
      fresh[c] = true;
      if (result.residuals[c] <= options.tolerance) open.erase(std::find(open.begin(), open.end(), c));
    }
  }
  if (!open.empty()) {
    multiply(open, x);
    double worst = 0;
    for (std::size_t k = 0; k < open.size(); ++k) {
      const std::size_t c = open[k];
      double squares = 0;
      for (std::size_t i = 0; i < n; ++i) {
        const double difference = right.data()[c * n + i] - product.data()[k * n + i];
        squares += difference * difference;
      }
      worst = std::max(worst, std::sqrt(squares) / wanted[c]);
    }
    throw NumericError(fmt::format(
        "conjugate_gradients: {} iterations with a Nystrom preconditioner of rank {} reach a relative "
        "residual of "
        "{:.2e}, not {:.2e}; a larger ridge (now {:g}), a larger rank or a larger tolerance would do",
        options.most_iterations, result.rank, worst, options.tolerance, options.shift));
  }
  for (std::size_t c = 0; c < columns; ++c) {
    for (std::size_t i = 0; i < n; ++i) result.solution.data()[i * columns + c] = x.data()[c * n + i];
  }
  return result;
}

}  // namespace gradgram::ntk
