#pragma once

#include "engine/simd/kernels.hpp"

/// One table per instruction set, each defined in a library compiled for that set. Reading a table is safe on
/// any processor; calling what stands in it is not.
namespace gradgram::simd {

namespace sse2 {
extern const KernelTable<float> float_kernels;
extern const KernelTable<double> double_kernels;
}  // namespace sse2
namespace avx2 {
extern const KernelTable<float> float_kernels;
extern const KernelTable<double> double_kernels;
}  // namespace avx2
namespace avx512 {
extern const KernelTable<float> float_kernels;
extern const KernelTable<double> double_kernels;
}  // namespace avx512

}  // namespace gradgram::simd
