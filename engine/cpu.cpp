#include "engine/cpu.hpp"

#include <cpuid.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "engine/control_group.hpp"
#include "engine/error.hpp"
#include "engine/simd/tables.hpp"

namespace gradgram {
namespace {

constexpr std::array kAllIsas = {Isa::Sse2, Isa::Avx2, Isa::Avx512, Isa::Amx};

unsigned extended_features_edx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 ? edx : 0;
}

// __builtin_cpu_supports asks the processor and, for the wide registers, the operating system (XCR0).
bool runs_here(Isa isa) {
  __builtin_cpu_init();
  switch (isa) {
    case Isa::Sse2:
      return __builtin_cpu_supports("sse2") != 0;
    case Isa::Avx2:
      return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
    case Isa::Avx512:
      return runs_here(Isa::Avx2) && __builtin_cpu_supports("avx512f") != 0 &&
             __builtin_cpu_supports("avx512cd") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
             __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0;
    case Isa::Amx:
      return runs_here(Isa::Avx512) && (extended_features_edx() >> 25 & 1U) != 0 && has_tile_registers();
  }
  return false;
}

std::string available_names() {
  std::string names;
  for (const Isa isa : available_isas()) names.append(names.empty() ? "" : ", ").append(isa_name(isa));
  return names;
}

Isa parse_isa_of(std::string_view name, const std::string& where) {
  for (const Isa isa : kAllIsas) {
    if (name != isa_name(isa)) continue;
    if (runs_here(isa)) return isa;
    throw ArgumentError(where + ": instruction set '" + std::string(name) +
                        "' does not run on this processor; available: " + available_names());
  }
  throw ArgumentError(where + ": unknown instruction set '" + std::string(name) +
                      "'; available: " + available_names());
}

Isa choose_isa() {
  // An empty value counts as unset, as is usual for environment variables.
  if (const char* forced = std::getenv("GRADGRAM_ISA"); forced != nullptr && *forced != '\0') {
    return parse_isa_of(forced, "GRADGRAM_ISA");
  }
  return available_isas().back();
}

std::string brand() {
  unsigned highest = __get_cpuid_max(0x80000000U, nullptr);
  if (highest < 0x80000004U) return "x86-64";
  std::array<unsigned, 12> words{};
  for (unsigned part = 0; part < 3; ++part) {
    unsigned* const to = words.data() + std::size_t{4} * part;
    __get_cpuid(0x80000002U + part, to, to + 1, to + 2, to + 3);
  }
  std::array<char, sizeof(words) + 1> text{};
  std::memcpy(text.data(), words.data(), sizeof(words));
  std::string name(text.data());
  const auto first = name.find_first_not_of(' ');
  if (first == std::string::npos) return "x86-64";
  return name.substr(first, name.find_last_not_of(' ') - first + 1);
}

std::size_t usable_cores() {
  // The affinity mask may be longer than cpu_set_t on very large machines: grow until the kernel accepts it.
  for (int processors = 1024; processors <= 1 << 20; processors *= 4) {
    cpu_set_t* const set = CPU_ALLOC(static_cast<std::size_t>(processors));
    if (set == nullptr) break;
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(processors));
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    const int count = known ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (known && count > 0) return static_cast<std::size_t>(count);
  }
  return static_cast<std::size_t>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
}

std::size_t usable_memory() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page = sysconf(_SC_PAGE_SIZE);
  const std::size_t physical =
      pages > 0 && page > 0 ? static_cast<std::size_t>(pages) * static_cast<std::size_t>(page) : SIZE_MAX;
  const std::size_t usable = std::min(physical, control_group_memory());
  return usable == SIZE_MAX ? 0 : usable;
}

template <class T>
const simd::KernelTable<T>& table(Isa isa);
template <>
const simd::KernelTable<float>& table<float>(Isa isa) {
  static const simd::KernelTable<float> amx = [] {
    simd::KernelTable<float> kernels = simd::avx512::float_kernels;
    kernels.isa = "amx";
    kernels.gram_product = simd::amx::gram_product;
    kernels.gram_scratch_bytes = simd::amx::gram_scratch_bytes;
    kernels.gram_tiles_are_faster = true;
    kernels.gram_tile_rows = simd::amx::gram_tile_rows;
    kernels.gram_side_products = simd::amx::gram_side_products;
    return kernels;
  }();
  switch (isa) {
    case Isa::Amx:
      return amx;
    case Isa::Avx512:
      return simd::avx512::float_kernels;
    case Isa::Avx2:
      return simd::avx2::float_kernels;
    case Isa::Sse2:
      break;
  }
  return simd::sse2::float_kernels;
}
template <>
const simd::KernelTable<double>& table<double>(Isa isa) {
  static const simd::KernelTable<double> amx = [] {
    simd::KernelTable<double> kernels = simd::avx512::double_kernels;
    kernels.isa = "amx";
    return kernels;
  }();
  switch (isa) {
    case Isa::Amx:
      return amx;
    case Isa::Avx512:
      return simd::avx512::double_kernels;
    case Isa::Avx2:
      return simd::avx2::double_kernels;
    case Isa::Sse2:
      break;
  }
  return simd::sse2::double_kernels;
}

}  // namespace

bool has_tile_registers() noexcept {
  static const bool has = [] {
    constexpr long kRequestPermission = 0x1023;
    constexpr long kTileData = 18;
    return (extended_features_edx() >> 24 & 1U) != 0 &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return has;
}

std::string_view isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::Sse2:
      return "sse2";
    case Isa::Avx2:
      return "avx2";
    case Isa::Avx512:
      return "avx512";
    case Isa::Amx:
      return "amx";
  }
  return "unknown";
}

std::vector<Isa> available_isas() {
  std::vector<Isa> found;
  std::copy_if(kAllIsas.begin(), kAllIsas.end(), std::back_inserter(found), runs_here);
  return found;
}

Isa parse_isa(std::string_view name) {
  return parse_isa_of(name, "parse_isa");
}

Isa active_isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

template <class T>
const simd::KernelTable<T>& kernels() {
  static const simd::KernelTable<T>& active = table<T>(active_isa());
  return active;
}

template <class T>
const simd::KernelTable<T>& kernels(Isa isa) {
  if (!runs_here(isa)) {
    throw ArgumentError("kernels: instruction set '" + std::string(isa_name(isa)) +
                        "' does not run on this processor; available: " + available_names());
  }
  return table<T>(isa);
}

template const simd::KernelTable<float>& kernels<float>();
template const simd::KernelTable<double>& kernels<double>();
template const simd::KernelTable<float>& kernels<float>(Isa);
template const simd::KernelTable<double>& kernels<double>(Isa);

CpuInfo cpu_info() {
  return {brand(), std::min(usable_cores(), control_group_processors()), usable_memory()};
}

}  // namespace gradgram
