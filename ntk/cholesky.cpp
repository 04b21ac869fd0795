#include "ntk/cholesky.hpp"

#include <fmt/format.h>

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "engine/blas.hpp"
#include "engine/random.hpp"
#include "ntk/checks.hpp"
#include "ntk/lapack.hpp"

namespace gradgram::ntk {
namespace {

using blas::Transpose;

/// Columns of a block: as deep as BLIS's own panels, so that the products run at its full rate.
constexpr std::size_t kBlock = 256;
/// Right-hand sides that one piece of work takes.
constexpr std::size_t kColumns = 128;
constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

std::size_t blocks_of(std::size_t n) {
  return (n + kBlock - 1) / kBlock;
}

std::size_t rows_of(std::size_t block, std::size_t n) {
  return std::min(kBlock, n - block * kBlock);
}

std::size_t columns_of(const Shape& shape, std::size_t n, const char* call) {
  if ((shape.rank() != 1 && shape.rank() != 2) || shape[0] != n) {
    throw ShapeError(fmt::format("{}: x {} must be [n] or [n, C] with n = {}", call, shape.to_string(), n));
  }
  return shape.rank() == 1 ? 1 : shape[1];
}

/// Of K_ij and K_ji: the rounding of entries that were computed one by one.
constexpr double kSymmetric = 1e-5;

double norm(const std::vector<double>& v) {
  double squares = 0;
  for (const double value : v) squares += value * value;
  return std::sqrt(squares);
}

}  // namespace

double rounded_up(double value) {
  const double power = std::pow(10.0, std::floor(std::log10(value)));
  for (const double digit : {1.0, 2.0, 5.0}) {
    if (digit * power >= value) return digit * power;
  }
  return 10 * power;
}

CholeskyFactor::CholeskyFactor(Tensor<double> matrix, const Workers& workers, const CholeskyOptions& options)
    : matrix_(std::move(matrix)), shift_(options.shift) {
  const Shape& shape = matrix_.shape();
  if (shape.rank() != 2 || shape[0] != shape[1]) {
    throw ShapeError(fmt::format("cholesky: matrix {} must be [n, n]", shape.to_string()));
  }
  if (!(shift_ >= 0) || !std::isfinite(shift_)) {
    throw ArgumentError(fmt::format("cholesky: shift ({}) must be a finite number >= 0", shift_));
  }
  const std::size_t n = shape[0];
  require_finite_entries(matrix_.data(), n, "cholesky", "matrix");
  require_symmetric(matrix_.data(), n, kSymmetric, "cholesky", "matrix");
  diagonal_.resize(n);
  for (std::size_t i = 0; i < n; ++i) diagonal_[i] = matrix_.data()[i * n + i] += shift_;
  factor(workers, options);
}

void CholeskyFactor::factor(const Workers& workers, const CholeskyOptions& options) {
  const std::size_t n = size();
  const std::size_t blocks = blocks_of(n);
  double* const a = matrix_.data();
  Tensor<double> pivot(Shape{kBlock, kBlock});
  for (std::size_t k = 0; k < blocks; ++k) {
    const std::size_t begin = k * kBlock;
    const std::size_t width = rows_of(k, n);
    std::size_t bad = width;
    // Everything to the left of this block's columns at once; then the block itself.
    workers.run(
        blocks - k,
        [&](std::size_t index, std::size_t) {
          const std::size_t first = begin + index * kBlock;
          const std::size_t rows = rows_of(k + index, n);
          if (index != 0) {
            blas::gemm(Transpose::No, Transpose::Yes, rows, width, begin, -1.0, a + first * n, n,
                       a + begin * n, n, 1.0, a + first * n + begin, n);
            return;
          }
          // Aside, because the upper triangle of this tile keeps K.
          double* const tile = pivot.data();
          for (std::size_t i = 0; i < width; ++i) {
            std::copy_n(a + (begin + i) * n + begin, i + 1, tile + i * kBlock);
          }
          blas::gemm(Transpose::No, Transpose::Yes, width, width, begin, -1.0, a + begin * n, n,
                     a + begin * n, n, 1.0, tile, kBlock);
          bad = lapack::cholesky({tile, width, width, kBlock});
          for (std::size_t i = 0; i < width; ++i) {
            std::copy_n(tile + i * kBlock, i + 1, a + (begin + i) * n + begin);
          }
        },
        {}, options.stop);
    if (bad != width) refuse(begin + bad, workers);
    workers.run(
        blocks - k - 1,
        [&](std::size_t index, std::size_t) {
          const std::size_t first = begin + (index + 1) * kBlock;
          lapack::solve_lower_from_right({pivot.data(), width, width, kBlock},
                                         {a + first * n + begin, rows_of(k + index + 1, n), width, n});
        },
        {}, options.stop);
    if (options.progress) options.progress(k + 1, blocks);
  }
}

void CholeskyFactor::refuse(std::size_t row, const Workers& workers) const {
  // Lanczos with full reorthogonalization on K, which the upper triangle still holds: the smallest Ritz value
  // bounds the smallest eigenvalue from above.
  const std::size_t n = size();
  const std::size_t steps = std::min<std::size_t>(n, 100);
  std::vector<std::vector<double>> basis;
  std::vector<double> along;
  std::vector<double> beside;
  Random random(0);
  std::vector<double> next(n);
  for (double& value : next) value = random.normal();
  double length = norm(next);
  while (basis.size() < steps) {
    for (double& value : next) value /= length;
    basis.push_back(next);
    const Tensor<double> product = multiply({basis.back().data(), Shape{n}}, workers);
    std::copy(product.span().begin(), product.span().end(), next.begin());
    const double before = norm(next);
    for (int pass = 0; pass < 2; ++pass) {
      for (std::size_t b = 0; b < basis.size(); ++b) {
        double dot = 0;
        for (std::size_t i = 0; i < n; ++i) dot += basis[b][i] * next[i];
        if (pass == 0 && b + 1 == basis.size()) along.push_back(dot);
        for (std::size_t i = 0; i < n; ++i) next[i] -= dot * basis[b][i];
      }
    }
    length = norm(next);
    if (!(length > 16 * kEpsilon * before)) break;
    beside.push_back(length);
  }
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver;
  const auto count = static_cast<Eigen::Index>(along.size());
  solver.computeFromTridiagonal(Eigen::Map<const Eigen::VectorXd>(along.data(), count),
                                Eigen::Map<const Eigen::VectorXd>(beside.data(), count - 1),
                                Eigen::EigenvaluesOnly);
  const double smallest = solver.eigenvalues()[0];
  const double largest = std::max(std::abs(solver.eigenvalues()[count - 1]), std::abs(smallest));
  const double rounding = 4 * static_cast<double>(n) * kEpsilon * largest;
  const double jitter =
      rounded_up(std::max({2 * std::max(-smallest, 0.0), rounding, std::numeric_limits<double>::min()}));
  throw NotPositiveDefinite(
      fmt::format("cholesky: the matrix ({} rows{}) is not positive definite: the pivot of row {} is not "
                  "positive, the smallest eigenvalue is about {:.3g} and the largest {:.3g}; add a jitter of "
                  "{:.1g} to the diagonal, or more",
                  n, shift_ == 0 ? "" : fmt::format(", {:g} already added to the diagonal", shift_), row,
                  smallest, largest, jitter),
      row, smallest, jitter);
}

void CholeskyFactor::solve_lower(TensorView<double> x, const Workers& workers) const {
  const std::size_t n = size();
  const std::size_t columns = columns_of(x.shape(), n, "cholesky");
  const double* const a = matrix_.data();
  workers.run((columns + kColumns - 1) / kColumns, [&](std::size_t piece, std::size_t) {
    const std::size_t count = std::min(kColumns, columns - piece * kColumns);
    double* const out = x.data() + piece * kColumns;
    for (std::size_t k = 0; k < blocks_of(n); ++k) {
      const std::size_t begin = k * kBlock;
      const std::size_t rows = rows_of(k, n);
      double* const mine = out + begin * columns;
      blas::gemm(Transpose::No, Transpose::No, rows, count, begin, -1.0, a + begin * n, n, out, columns, 1.0,
                 mine, columns);
      lapack::solve_lower({const_cast<double*>(a) + begin * n + begin, rows, rows, n}, Transpose::No,
                          {mine, rows, count, columns});
    }
  });
}

void CholeskyFactor::solve(TensorView<double> x, const Workers& workers) const {
  solve_lower(x, workers);
  const std::size_t n = size();
  const std::size_t columns = columns_of(x.shape(), n, "cholesky");
  const double* const a = matrix_.data();
  workers.run((columns + kColumns - 1) / kColumns, [&](std::size_t piece, std::size_t) {
    const std::size_t count = std::min(kColumns, columns - piece * kColumns);
    double* const out = x.data() + piece * kColumns;
    for (std::size_t k = blocks_of(n); k-- > 0;) {
      const std::size_t begin = k * kBlock;
      const std::size_t rows = rows_of(k, n);
      const std::size_t behind = begin + rows;
      double* const mine = out + begin * columns;
      blas::gemm(Transpose::Yes, Transpose::No, rows, count, n - behind, -1.0, a + behind * n + begin, n,
                 out + behind * columns, columns, 1.0, mine, columns);
      lapack::solve_lower({const_cast<double*>(a) + begin * n + begin, rows, rows, n}, Transpose::Yes,
                          {mine, rows, count, columns});
    }
  });
}

Tensor<double> CholeskyFactor::multiply(TensorView<const double> x, const Workers& workers) const {
  const std::size_t n = size();
  const std::size_t columns = columns_of(x.shape(), n, "cholesky");
  const double* const a = matrix_.data();
  Tensor<double> result(x.shape());
  workers.run(blocks_of(n), [&](std::size_t k, std::size_t) {
    const std::size_t begin = k * kBlock;
    const std::size_t rows = rows_of(k, n);
    const std::size_t behind = begin + rows;
    double* const out = result.data() + begin * columns;
    // The tile on the diagonal, mirrored; then what stands to its right, and what stands above it.
    std::vector<double> tile(rows * rows);
    for (std::size_t i = 0; i < rows; ++i) {
      tile[i * rows + i] = diagonal_[begin + i];
      for (std::size_t j = i + 1; j < rows; ++j) {
        tile[i * rows + j] = tile[j * rows + i] = a[(begin + i) * n + begin + j];
      }
    }
    blas::gemm(Transpose::No, Transpose::No, rows, columns, rows, 1.0, tile.data(), rows,
               x.data() + begin * columns, columns, 0.0, out, columns);
    blas::gemm(Transpose::No, Transpose::No, rows, columns, n - behind, 1.0, a + begin * n + behind, n,
               x.data() + behind * columns, columns, 1.0, out, columns);
    blas::gemm(Transpose::Yes, Transpose::No, rows, columns, begin, 1.0, a + begin, n, x.data(), columns, 1.0,
               out, columns);
  });
  return result;
}

double CholeskyFactor::residual(TensorView<const double> x, TensorView<const double> y,
                                const Workers& workers) const {
  const std::size_t n = size();
  const std::size_t columns = columns_of(x.shape(), n, "cholesky");
  if (!(x.shape() == y.shape())) {
    throw ShapeError(fmt::format("cholesky: x {} and y {} must have the same shape", x.shape().to_string(),
                                 y.shape().to_string()));
  }
  const Tensor<double> product = multiply(x, workers);
  double worst = 0;
  for (std::size_t c = 0; c < columns; ++c) {
    double missed = 0;
    double wanted = 0;
    double size_of_x = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double difference = y.data()[i * columns + c] - product.data()[i * columns + c];
      missed += difference * difference;
      wanted += y.data()[i * columns + c] * y.data()[i * columns + c];
      size_of_x += x.data()[i * columns + c] * x.data()[i * columns + c];
    }
    const double relative = wanted > 0 ? std::sqrt(missed / wanted) : std::sqrt(size_of_x);
    if (std::isnan(relative)) return relative;
    worst = std::max(worst, relative);
  }
  return worst;
}

double CholeskyFactor::log_determinant() const {
  double sum = 0;
  for (std::size_t i = 0; i < size(); ++i) sum += 2 * std::log(matrix_.data()[i * size() + i]);
  return sum;
}

}  // namespace gradgram::ntk
