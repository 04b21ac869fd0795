#include "engine/covariance.hpp"

#include <xmmintrin.h>

#include <algorithm>
#include <string>
#include <type_traits>

#include "engine/error.hpp"
#include "engine/simd/covariance_tables.hpp"

namespace gradgram {
namespace {

template <class T>
const simd::CovarianceTable<T>& table(Isa isa) {
  constexpr bool kSingle = std::is_same_v<T, float>;
  switch (isa) {
    case Isa::Amx:
    case Isa::Avx512:
      if constexpr (kSingle)
        return simd::avx512::float_covariances;
      else
        return simd::avx512::double_covariances;
    case Isa::Avx2:
      if constexpr (kSingle)
        return simd::avx2::float_covariances;
      else
        return simd::avx2::double_covariances;
    case Isa::Sse2:
      break;
  }
  if constexpr (kSingle)
    return simd::sse2::float_covariances;
  else
    return simd::sse2::double_covariances;
}

}  // namespace

template <class T>
const simd::CovarianceTable<T>& covariance_kernels() {
  static const simd::CovarianceTable<T>& active = table<T>(active_isa());
  return active;
}

template <class T>
const simd::CovarianceTable<T>& covariance_kernels(Isa isa) {
  const std::vector<Isa> available = available_isas();
  if (std::ranges::find(available, isa) == available.end()) {
    throw ArgumentError("covariance_kernels: instruction set '" + std::string(isa_name(isa)) +
                        "' does not run on this processor");
  }
  return table<T>(isa);
}

FlushDenormals::FlushDenormals() noexcept : before_(_mm_getcsr()) {
  constexpr unsigned kFlushResults = 0x8000;
  constexpr unsigned kFlushOperands = 0x0040;
  _mm_setcsr(before_ | kFlushResults | kFlushOperands);
}

FlushDenormals::~FlushDenormals() {
  _mm_setcsr(before_);
}

template const simd::CovarianceTable<float>& covariance_kernels<float>();
template const simd::CovarianceTable<double>& covariance_kernels<double>();
template const simd::CovarianceTable<float>& covariance_kernels<float>(Isa);
template const simd::CovarianceTable<double>& covariance_kernels<double>(Isa);

}  // namespace gradgram
