#pragma once

#include <string>

#include "engine/simd/bf16.hpp"

namespace gradgram {

/// The bfloat16 products of this processor, AMX's where the system lets the process have its registers;
/// null when there are none, or when a weaker instruction set than AVX-512 is forced. Fixed from the first
/// call on.
const simd::Bf16Kernels* bf16_kernels();
/// Those of a name (`avx512_bf16`, `amx_bf16`), null when they do not run here.
const simd::Bf16Kernels* bf16_kernels(const std::string& name);

}  // namespace gradgram
