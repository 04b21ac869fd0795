#pragma once

#include <cstddef>
#include <span>

#include "engine/blas.hpp"
#include "engine/tensor.hpp"

/// The one door to LAPACK. Every call first lets BLIS pick its kernel set (blas::initialize). All
/// single-threaded and safe to call from many threads; fixed summation order, the same bits on every call.
namespace gradgram::ntk::lapack {

/// Largest n for which dsyevd's workspace of 1 + 6n + 2n^2 numbers fits LAPACK's 32-bit integers.
inline constexpr std::size_t kMostWithVectors = 32766;

/// All eigenvalues of a symmetric matrix [n, n], of which only the lower triangle (row-major) is read,
/// ascending into values [n], by divide and conquer (dsyevd). With vectors the matrix is overwritten: row i
/// is the unit eigenvector of values[i]; otherwise it is destroyed. Takes 2 n^2 numbers of workspace with
/// vectors, O(n) without. Entries must be finite. Throws ShapeError, ArgumentError when n is too large,
/// NumericError without convergence, std::bad_alloc.
void symmetric_eigen(TensorView<double> matrix, std::span<double> values, bool vectors);

/// A block of a larger row-major matrix, for the calls below, whose sizes are the caller's to check.
struct Block {
  double* data;
  std::size_t rows, columns;
  std::size_t stride;  ///< between rows
};

/// The lower Cholesky factor L of a square block, K = L L^T, in the place of its lower triangle; nothing
/// above the diagonal is read or written. Returns n when it succeeds, otherwise the first row whose pivot is
/// not positive; the triangle then holds nothing of use.
std::size_t cholesky(Block matrix);
/// x := L^-1 x, or L^-T x when transposed.
void solve_lower(const Block& lower, blas::Transpose transpose, Block x);
/// x := x L^-T.
void solve_lower_from_right(const Block& lower, Block x);

/// Left singular vectors of a tall matrix whose columns are the rows of `columns` [r, n], r <= n: row i
/// becomes the unit vector of values[i], descending (dgesdd). Throws ShapeError, NumericError without
/// convergence, std::bad_alloc.
void left_singular_vectors(TensorView<double> columns, std::span<double> values);

}  // namespace gradgram::ntk::lapack
