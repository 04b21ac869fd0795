#include "ntk/lapack.hpp"

#include <lapacke.h>

#include <limits>
#include <new>
#include <string>

#include "engine/blas.hpp"
#include "engine/error.hpp"

// Of BLIS, whose own header cannot stand beside LAPACKE's.
extern "C" void dtrsm_(const char* side, const char* triangle, const char* transpose, const char* diagonal,
                       const lapack_int* rows, const lapack_int* columns, const double* alpha,
                       const double* a, const lapack_int* lda, double* b, const lapack_int* ldb);

namespace gradgram::ntk::lapack {
namespace {

lapack_int integer(std::size_t value) {
  return static_cast<lapack_int>(value);
}

/// In Fortran's column-major order, where a row-major lower triangle is an upper one.
void triangular_solve(char side, char transpose, std::size_t rows, std::size_t columns, const Block& lower,
                      const Block& x) {
  if (rows == 0 || columns == 0) return;
  blas::initialize();
  const lapack_int m = integer(rows);
  const lapack_int n = integer(columns);
  const lapack_int lda = integer(lower.stride);
  const lapack_int ldb = integer(x.stride);
  const double one = 1;
  const char upper = 'U';
  const char pivots = 'N';
  dtrsm_(&side, &upper, &transpose, &pivots, &m, &n, &one, lower.data, &lda, x.data, &ldb);
}

}  // namespace

void symmetric_eigen(TensorView<double> matrix, std::span<double> values, bool vectors) {
  const Shape& shape = matrix.shape();
  if (shape.rank() != 2 || shape[0] != shape[1] || values.size() != shape[0]) {
    throw ShapeError("symmetric_eigen: matrix " + shape.to_string() + " must be square and values (" +
                     std::to_string(values.size()) + ") as many as its rows");
  }
  const std::size_t n = shape[0];
  if (n == 0) return;
  const std::size_t most =
      vectors ? kMostWithVectors : std::size_t{std::numeric_limits<lapack_int>::max()} / 4;
  if (n > most) {
    throw ArgumentError("symmetric_eigen: n = " + std::to_string(n) +
                        " is more than LAPACK's 32-bit workspace allows (" + std::to_string(most) +
                        "); ask for the largest eigenvalues only");
  }
  blas::initialize();
  // A row-major lower triangle is a column-major upper one, and LAPACK's eigenvector columns are our rows: no
  // transposition.
  const lapack_int order = static_cast<lapack_int>(n);
  const lapack_int info =
      LAPACKE_dsyevd(LAPACK_COL_MAJOR, vectors ? 'V' : 'N', 'U', order, matrix.data(), order, values.data());
  if (info == LAPACK_WORK_MEMORY_ERROR) throw std::bad_alloc();
  if (info != 0) {
    throw NumericError("symmetric_eigen: dsyevd did not converge on a matrix of " + std::to_string(n) +
                       " rows (info = " + std::to_string(info) + ")");
  }
}

std::size_t cholesky(Block matrix) {
  blas::initialize();
  const std::size_t n = matrix.rows;
  if (n == 0) return 0;
  const lapack_int info =
      LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', integer(n), matrix.data, integer(matrix.stride));
  return info == 0 ? n : static_cast<std::size_t>(info) - 1;
}

void solve_lower(const Block& lower, blas::Transpose transpose, Block x) {
  // L X = B is X^T U = B^T.
  triangular_solve('R', transpose == blas::Transpose::No ? 'N' : 'T', x.columns, x.rows, lower, x);
}

void solve_lower_from_right(const Block& lower, Block x) {
  // X L^T = B is U^T X^T = B^T.
  triangular_solve('L', 'T', x.columns, x.rows, lower, x);
}

void left_singular_vectors(TensorView<double> columns, std::span<double> values) {
  const Shape& shape = columns.shape();
  if (shape.rank() != 2 || shape[0] > shape[1] || values.size() != shape[0]) {
    throw ShapeError("left_singular_vectors: columns " + shape.to_string() +
                     " must be [r, n] with r <= n, and values (" + std::to_string(values.size()) + ") r");
  }
  const std::size_t r = shape[0];
  const std::size_t n = shape[1];
  if (r == 0) return;
  blas::initialize();
  Tensor<double> right(Shape{r, r});
  double unused = 0;
  const lapack_int info = LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'O', integer(n), integer(r), columns.data(),
                                         integer(n), values.data(), &unused, 1, right.data(), integer(r));
  if (info == LAPACK_WORK_MEMORY_ERROR) throw std::bad_alloc();
  if (info != 0) {
    throw NumericError("left_singular_vectors: dgesdd did not converge on " + shape.to_string() +
                       " (info = " + std::to_string(info) + ")");
  }
}

}  // namespace gradgram::ntk::lapack
