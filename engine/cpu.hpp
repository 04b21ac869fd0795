#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "engine/simd/kernels.hpp"

namespace gradgram {

/// Instruction sets that kernels are compiled for, weakest first.
///
/// Amx is Avx512 but for Gram products in f32, which it makes of products of bytes.
enum class Isa { Sse2, Avx2, Avx512, Amx };

std::string_view isa_name(Isa isa) noexcept;
/// Those that this processor and operating system can run, weakest first.
std::vector<Isa> available_isas();
/// `avx2` -> Isa::Avx2. Throws ArgumentError naming the text and the available sets when it is unknown or
/// cannot run here.
Isa parse_isa(std::string_view name);
/// The set in use: the strongest available, or the one that the environment variable GRADGRAM_ISA forces.
/// Decided on the first call and fixed from then on. Throws ArgumentError as parse_isa does.
Isa active_isa();

/// Whether this processor has AMX's tile registers and the operating system lets the process use them (Linux
/// 5.16 on, asked for by the first call).
bool has_tile_registers() noexcept;

/// The kernels of the active set, and of a given one (which must be available; ArgumentError otherwise).
template <class T>
const simd::KernelTable<T>& kernels();
template <class T>
const simd::KernelTable<T>& kernels(Isa isa);

/// What the program runs on.
struct CpuInfo {
  std::string name;              ///< brand string, or the architecture's name
  std::size_t cores = 1;         ///< processors this process may run on
  std::size_t memory_bytes = 0;  ///< physical memory, or the control group's limit when that is lower
};
CpuInfo cpu_info();

}  // namespace gradgram
