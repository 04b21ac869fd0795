#include "engine/bf16.hpp"

#include <cpuid.h>

#include "engine/cpu.hpp"

namespace gradgram {
namespace {

bool has_avx512_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 5 & 1U) != 0;
}

bool has_amx_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 22 & 1U) != 0 &&
         has_tile_registers();
}

/// Packing needs AVX-512 for both.
const simd::Bf16Kernels* find(bool amx) {
  if (active_isa() < Isa::Avx512 || !has_avx512_bf16()) return nullptr;
  if (!amx) return &simd::avx512_bf16_kernels;
  return has_amx_bf16() ? &simd::amx_bf16_kernels : nullptr;
}

}  // namespace

const simd::Bf16Kernels* bf16_kernels(const std::string& name) {
  static const simd::Bf16Kernels* const amx = find(true);
  static const simd::Bf16Kernels* const avx512 = find(false);
  for (const simd::Bf16Kernels* kernels : {amx, avx512}) {
    if (kernels != nullptr && name == kernels->name) return kernels;
  }
  return nullptr;
}

const simd::Bf16Kernels* bf16_kernels() {
  const simd::Bf16Kernels* const amx = bf16_kernels("amx_bf16");
  return amx != nullptr ? amx : bf16_kernels("avx512_bf16");
}

}  // namespace gradgram
