#define GRADGRAM_SIMD_NAMESPACE avx512
#define GRADGRAM_SIMD_ARCH avx512bw
#include "engine/simd/instantiate.hpp"

namespace gradgram::simd::avx512 {

constinit const KernelTable<float> float_kernels = make_table<float>("avx512");
constinit const KernelTable<double> double_kernels = make_table<double>("avx512");

}  // namespace gradgram::simd::avx512
