#pragma once

#include "engine/cpu.hpp"
#include "engine/simd/covariance.hpp"

namespace gradgram {

/// The covariance kernels of the active instruction set, and of a given one (which must be available;
/// ArgumentError otherwise).
template <class T>
const simd::CovarianceTable<T>& covariance_kernels();
template <class T>
const simd::CovarianceTable<T>& covariance_kernels(Isa isa);

/// While it lives, this thread's vector arithmetic takes denormal numbers for zeros, which costs nothing,
/// instead of handling them, which costs a hundred times an operation. What held before holds after.
class FlushDenormals {
 public:
  FlushDenormals() noexcept;
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned before_;
};

}  // namespace gradgram
