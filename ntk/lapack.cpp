#include "ntk/lapack.hpp"

#include <lapacke.h>

#include <limits>
#include <new>
#include <string>

#include "engine/blas.hpp"
#include "engine/error.hpp"

namespace gradgram::ntk::lapack {

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

}  // namespace gradgram::ntk::lapack
