#include "engine/blas.hpp"

#include <blis.h>

#include <cstdlib>
#include <mutex>

#include "engine/cpu.hpp"

namespace gradgram::blas {
namespace {

/// BLIS's numbers for its kernel sets, as its environment variable wants them. They are those of the x86_64
/// configuration family and have no names in the library's interface.
const char* kernel_set_id(Isa isa) {
  switch (isa) {
    case Isa::Amx:
    case Isa::Avx512:
      return "0";  // skx
    case Isa::Avx2:
      return "3";  // haswell
    case Isa::Sse2:
      return "25";  // generic
  }
  return "25";
}

void choose_kernel_set() {
  // No overwriting: a choice that the user exported stands.
  setenv("BLIS_ARCH_TYPE", kernel_set_id(active_isa()), 0);
  bli_init();
}

trans_t transposition(Transpose transpose) {
  return transpose == Transpose::Yes ? BLIS_TRANSPOSE : BLIS_NO_TRANSPOSE;
}

/// BLIS's path for small and narrow matrices sums in another order than the blocked one; switched off, a row
/// of C has the same bits whatever number of rows the call has.
rntm_t one_thread_blocked() {
  rntm_t runtime;
  bli_rntm_init_from_global(&runtime);
  bli_rntm_set_num_threads(1, &runtime);
  bli_rntm_disable_l3_sup(&runtime);
  return runtime;
}

}  // namespace

void initialize() {
  static std::once_flag once;
  std::call_once(once, choose_kernel_set);
}

std::string kernel_set() {
  initialize();
  return bli_arch_string(bli_arch_query_id());
}

void gemm(Transpose a_transpose, Transpose b_transpose, std::size_t m, std::size_t n, std::size_t k,
          float alpha, const float* a, std::size_t lda, const float* b, std::size_t ldb, float beta, float* c,
          std::size_t ldc) {
  initialize();
  rntm_t runtime = one_thread_blocked();
  // The typed interface reads its operands through pointers to non-const; it does not write them.
  bli_sgemm_ex(transposition(a_transpose), transposition(b_transpose), static_cast<dim_t>(m),
               static_cast<dim_t>(n), static_cast<dim_t>(k), &alpha, const_cast<float*>(a),
               static_cast<inc_t>(lda), 1, const_cast<float*>(b), static_cast<inc_t>(ldb), 1, &beta, c,
               static_cast<inc_t>(ldc), 1, nullptr, &runtime);
}

void gemm(Transpose a_transpose, Transpose b_transpose, std::size_t m, std::size_t n, std::size_t k,
          double alpha, const double* a, std::size_t lda, const double* b, std::size_t ldb, double beta,
          double* c, std::size_t ldc) {
  initialize();
  rntm_t runtime = one_thread_blocked();
  bli_dgemm_ex(transposition(a_transpose), transposition(b_transpose), static_cast<dim_t>(m),
               static_cast<dim_t>(n), static_cast<dim_t>(k), &alpha, const_cast<double*>(a),
               static_cast<inc_t>(lda), 1, const_cast<double*>(b), static_cast<inc_t>(ldb), 1, &beta, c,
               static_cast<inc_t>(ldc), 1, nullptr, &runtime);
}

}  // namespace gradgram::blas
