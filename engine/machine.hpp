#pragma once

#include <cstddef>

#include "engine/cpu.hpp"
#include "engine/parallel.hpp"

namespace gradgram {

/// What this machine does now, in FLOP/s (a multiply-add is two) and bytes/s. Clocks drift by some ten
/// percent within minutes: compare only with numbers measured at the same time.
struct MachineRates {
  std::size_t threads = 1;  ///< what `all` means
  double fma_f32 = 0;       ///< fused multiply-adds from registers, one core: the ceiling of all else but AMX
  double fma_f64 = 0;
  double sgemm = 0;      ///< 1024 x 1024 x 1024 through blas::gemm, one thread
  double sgemm_all = 0;  ///< one such product on each thread at once, summed
  double dgemm = 0;      ///< f64, one thread
  double bandwidth = 0;  ///< y += a x on arrays beyond the caches, one thread, bytes read and written
};

/// Measures all of them with the active kernels, within about a second; takes 80 MiB and 12 MiB for each
/// thread. Throws std::bad_alloc, and ArgumentError as active_isa() does.
MachineRates measure_rates(const Workers& workers);

/// FLOP/s of fused multiply-adds on this core right now, about 2 ms: the probe that benchmarks interleave
/// with their own measurement. `isa`: whose multiply-adds.
template <class T>
double probe_fma_rate(Isa isa = active_isa());
/// FLOP/s of a 512 x 512 x 512 product through blas::gemm on this core, about 5 ms.
template <class T>
double probe_gemm_rate();

}  // namespace gradgram
