#pragma once

#include <cstddef>
#include <string>

namespace gradgram::blas {

enum class Transpose { No, Yes };

/// C = alpha op(A) op(B) + beta C; all row-major; op(A) is m x k, op(B) is k x n, C is m x n; ld* are row
/// strides of the stored matrices. beta = 0 overwrites C whatever it holds. Single-threaded; safe to call
/// from many threads. Fixed summation order for given (m, n, k): the same bits on every call. Sizes of zero
/// are allowed.
void gemm(Transpose a_transpose, Transpose b_transpose, std::size_t m, std::size_t n, std::size_t k,
          float alpha, const float* a, std::size_t lda, const float* b, std::size_t ldb, float beta, float* c,
          std::size_t ldc);
void gemm(Transpose a_transpose, Transpose b_transpose, std::size_t m, std::size_t n, std::size_t k,
          double alpha, const double* a, std::size_t lda, const double* b, std::size_t ldb, double beta,
          double* c, std::size_t ldc);

/// Must run before the first BLAS or LAPACK call of the process, whoever makes it; gemm() and the LAPACK door
/// call it themselves. Picks BLIS's kernel set to match the active instruction set (the library's own guess
/// falls back to generic kernels on processors newer than it). A BLIS_ARCH_TYPE that the user exported wins.
void initialize();
/// The kernel set that BLIS then uses, in BLIS's words: `skx`, `haswell`, `generic`, ...
std::string kernel_set();

}  // namespace gradgram::blas
