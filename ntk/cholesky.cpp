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

/// Rows and columns of a block of the solves.
constexpr std::size_t kBlock = 256;
/// Where a block of the factorization is factored by scalar code: BLIS gains nothing on so few rows.
constexpr std::size_t kSmall = 64;
/// Rows of a strip of a diagonal block, of which only what is below the diagonal is computed.
constexpr std::size_t kStrip = 128;
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

/// Columns that the factorization finishes at once. What BLIS packs of all rows for a product serves as many
/// columns, so wide blocks are faster, as long as the triangles in them are a small part.
std::size_t factor_block(std::size_t n) {
  return n < 3000 ? 256 : 512;
}

/// The factor of at most kSmall rows; nothing above the diagonal is read or written. Returns the first row
/// whose pivot is not positive, or their number.
std::size_t factor_small(const lapack::Block& matrix) {
  const std::size_t n = matrix.rows;
  // Transposed: columns of the factor are contiguous, and so are the updates.
  double columns[kSmall * kSmall];
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) columns[j * kSmall + i] = matrix.data[i * matrix.stride + j];
  }
  for (std::size_t j = 0; j < n; ++j) {
    double* const column = columns + j * kSmall;
    if (!(column[j] > 0)) return j;
    column[j] = std::sqrt(column[j]);
    for (std::size_t i = j + 1; i < n; ++i) column[i] /= column[j];
    for (std::size_t k = j + 1; k < n; ++k) {
      double* const other = columns + k * kSmall;
      for (std::size_t i = k; i < n; ++i) other[i] -= column[k] * column[i];
    }
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) matrix.data[i * matrix.stride + j] = columns[j * kSmall + i];
  }
  return n;
}

/// x := x L^-T, the products by BLIS.
void solve_from_right(const lapack::Block& lower, const lapack::Block& x) {
  const std::size_t n = lower.rows;
  if (n <= kSmall) {
    lapack::solve_lower_from_right(lower, x);
    return;
  }
  const std::size_t half = (n / 2 + kSmall - 1) / kSmall * kSmall;
  solve_from_right({lower.data, half, half, lower.stride}, {x.data, x.rows, half, x.stride});
  blas::gemm(Transpose::No, Transpose::Yes, x.rows, n - half, half, -1.0, x.data, x.stride,
             lower.data + half * lower.stride, lower.stride, 1.0, x.data + half, x.stride);
  solve_from_right({lower.data + half * lower.stride + half, n - half, n - half, lower.stride},
                   {x.data + half, x.rows, n - half, x.stride});
}

/// The factor of a diagonal block, as factor_small().
std::size_t factor_diagonal(const lapack::Block& matrix) {
  const std::size_t stride = matrix.stride;
  for (std::size_t begin = 0; begin < matrix.rows; begin += kSmall) {
    const std::size_t width = std::min(kSmall, matrix.rows - begin);
    double* const rows = matrix.data + begin * stride;
    if (begin != 0) {
      blas::gemm(Transpose::No, Transpose::Yes, matrix.rows - begin, width, begin, -1.0, rows, stride, rows,
                 stride, 1.0, rows + begin, stride);
    }
    const lapack::Block diagonal{rows + begin, width, width, stride};
    const std::size_t good = factor_small(diagonal);
    if (good != width) return begin + good;
    const std::size_t below = matrix.rows - begin - width;
    if (below != 0) solve_from_right(diagonal, {rows + width * stride + begin, below, width, stride});
  }
  return matrix.rows;
}

/// Whether all entries are finite and both triangles have the same bits, as those of computed kernels do: one
/// pass in the place of two.
bool is_plainly_symmetric(const double* matrix, std::size_t n, const Workers& workers) {
  constexpr std::size_t kTile = 32;  // two tiles of 8 KiB stay in the first-level cache
  const std::size_t tiles = (n + kTile - 1) / kTile;
  std::vector<char> sound(tiles, 0);
  workers.run(tiles, [&](std::size_t row_tile, std::size_t) {
    const std::size_t rows = row_tile * kTile;
    double sum = 0;  // of zeros, unless an entry is not finite
    bool same = true;
    for (std::size_t columns = 0; columns <= rows; columns += kTile) {
      for (std::size_t i = rows; i < std::min(n, rows + kTile); ++i) {
        for (std::size_t j = columns; j < std::min(i + 1, columns + kTile); ++j) {
          const double lower = matrix[i * n + j];
          same = same && lower == matrix[j * n + i];
          sum += 0.0 * lower;
        }
      }
    }
    sound[row_tile] = same && sum == 0 ? 1 : 0;
  });
  return std::all_of(sound.begin(), sound.end(), [](char good) { return good != 0; });
}

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
  if (!is_plainly_symmetric(matrix_.data(), n, workers)) {
    require_finite_entries(matrix_.data(), n, "cholesky", "matrix");
    require_symmetric(matrix_.data(), n, kSymmetric, "cholesky", "matrix");
  }
  diagonal_.resize(n);
  for (std::size_t i = 0; i < n; ++i) diagonal_[i] = matrix_.data()[i * n + i] += shift_;
  factor(workers, options);
}

void CholeskyFactor::factor(const Workers& workers, const CholeskyOptions& options) {
  const std::size_t n = size();
  const std::size_t block = factor_block(n);
  double* const a = matrix_.data();
  Tensor<double> pivot(Shape{block, block});
  for (std::size_t begin = 0; begin < n; begin += block) {
    const std::size_t width = std::min(block, n - begin);
    const std::size_t end = begin + width;
    // Smaller pieces towards the end, where few are left for the workers to share.
    const std::size_t piece = n - end >= 8 * block ? block : block / 2;
    const std::size_t pieces = (n - end + piece - 1) / piece;
    const auto rows_of_piece = [&](std::size_t index) { return std::min(piece, n - end - index * piece); };
    std::size_t good = width;
    // Everything to the left of this block's columns at once; then the block itself.
    workers.run(
        1 + pieces,
        [&](std::size_t index, std::size_t) {
          if (index != 0) {
            const std::size_t first = end + (index - 1) * piece;
            blas::gemm(Transpose::No, Transpose::Yes, rows_of_piece(index - 1), width, begin, -1.0,
                       a + first * n, n, a + begin * n, n, 1.0, a + first * n + begin, n);
            return;
          }
          // Aside, because the upper triangle of this tile keeps K.
          double* const tile = pivot.data();
          for (std::size_t i = 0; i < width; ++i) {
            std::copy_n(a + (begin + i) * n + begin, i + 1, tile + i * block);
          }
          for (std::size_t strip = 0; strip < width; strip += kStrip) {
            const std::size_t rows = std::min(kStrip, width - strip);
            blas::gemm(Transpose::No, Transpose::Yes, rows, strip + rows, begin, -1.0,
                       a + (begin + strip) * n, n, a + begin * n, n, 1.0, tile + strip * block, block);
          }
          good = factor_diagonal({tile, width, width, block});
          for (std::size_t i = 0; i < width; ++i) {
            std::copy_n(tile + i * block, i + 1, a + (begin + i) * n + begin);
          }
        },
        {}, options.stop);
    if (good != width) refuse(begin + good, workers, options.stop);
    workers.run(
        pieces,
        [&](std::size_t index, std::size_t) {
          solve_from_right({pivot.data(), width, width, block},
                           {a + (end + index * piece) * n + begin, rows_of_piece(index), width, n});
        },
        {}, options.stop);
    if (options.progress) options.progress((end + block - 1) / block, (n + block - 1) / block);
  }
}

void CholeskyFactor::refuse(std::size_t row, const Workers& workers, const std::stop_token& stop) const {
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
    if (stop.stop_requested()) throw Cancelled("cholesky: stopped");
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
      // Of a matrix of zeros any.
      largest == 0 ? 1
                   : rounded_up(std::max(
                         {2 * std::max(-smallest, 0.0), rounding, std::numeric_limits<double>::min()}));
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
