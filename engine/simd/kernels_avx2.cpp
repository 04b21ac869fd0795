#define GRADGRAM_SIMD_NAMESPACE avx2
#define GRADGRAM_SIMD_ARCH fma3<xsimd::avx2>
#include "engine/simd/instantiate.hpp"

namespace gradgram::simd::avx2 {

constinit const KernelTable<float> float_kernels = make_table<float>("avx2");
constinit const KernelTable<double> double_kernels = make_table<double>("avx2");

}  // namespace gradgram::simd::avx2
