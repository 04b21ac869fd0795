#pragma once

#include <cstddef>
#include <span>

#include "engine/tensor.hpp"

/// The one door to LAPACK. Every call first lets BLIS pick its kernel set (blas::initialize).
namespace gradgram::ntk::lapack {

/// Largest n for which dsyevd's workspace of 1 + 6n + 2n^2 numbers fits LAPACK's 32-bit integers.
inline constexpr std::size_t kMostWithVectors = 32766;

/// All eigenvalues of a symmetric matrix [n, n], of which only the lower triangle (row-major) is read,
/// ascending into values [n], by divide and conquer (dsyevd). With vectors the matrix is overwritten: row i
/// is the unit eigenvector of values[i]; otherwise it is destroyed. Takes 2 n^2 numbers of workspace with
/// vectors, O(n) without. Entries must be finite. Throws ShapeError, ArgumentError when n is too large,
/// NumericError without convergence, std::bad_alloc.
void symmetric_eigen(TensorView<double> matrix, std::span<double> values, bool vectors);

}  // namespace gradgram::ntk::lapack
