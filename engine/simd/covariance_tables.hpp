#pragma once

#include "engine/simd/covariance.hpp"

/// One table per instruction set, each defined in a library compiled for that set.
namespace gradgram::simd {

namespace sse2 {
extern const CovarianceTable<float> float_covariances;
extern const CovarianceTable<double> double_covariances;
}  // namespace sse2
namespace avx2 {
extern const CovarianceTable<float> float_covariances;
extern const CovarianceTable<double> double_covariances;
}  // namespace avx2
namespace avx512 {
extern const CovarianceTable<float> float_covariances;
extern const CovarianceTable<double> double_covariances;
}  // namespace avx512

}  // namespace gradgram::simd
