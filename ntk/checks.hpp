#pragma once

#include <cstddef>
#include <span>

/// Checks of numbers that are handed in, shared by what reads matrices.
namespace gradgram::ntk {

bool all_finite(std::span<const double> values);

/// Throws NumericError naming the first entry of `matrix` [n, n] that is not finite. `call` and `what`
/// (kernel, matrix) are what the message calls the caller and the matrix.
void require_finite_entries(const double* matrix, std::size_t n, const char* call, const char* what);

/// Throws ArgumentError naming two entries of `matrix` [n, n], K_ij and K_ji, that differ by more than
/// `relative` times the larger of their magnitudes and sqrt(K_ii K_jj). Returns ||K - K^T||_F / 2.
double require_symmetric(const double* matrix, std::size_t n, double relative, const char* call,
                         const char* what);

}  // namespace gradgram::ntk
