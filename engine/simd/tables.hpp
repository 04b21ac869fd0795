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
/// What stands in the place of avx512's.
namespace amx {
void gram_product(const GramProduct<float>&) noexcept;
std::size_t gram_scratch_bytes(std::size_t rows) noexcept;
extern const std::size_t gram_tile_rows;
extern const double gram_side_products;
}  // namespace amx

}  // namespace gradgram::simd
