#define GRADGRAM_SIMD_NAMESPACE sse2
#define GRADGRAM_SIMD_ARCH sse2
#include "engine/simd/instantiate.hpp"

namespace gradgram::simd::sse2 {

constinit const KernelTable<float> float_kernels = make_table<float>("sse2");
constinit const KernelTable<double> double_kernels = make_table<double>("sse2");

}  // namespace gradgram::simd::sse2
