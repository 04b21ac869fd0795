#define GRADGRAM_SIMD_NAMESPACE avx2
#define GRADGRAM_SIMD_ARCH fma3<xsimd::avx2>
#include "engine/simd/covariance_instantiate.hpp"

namespace gradgram::simd::avx2 {

constinit const CovarianceTable<float> float_covariances = make_covariance_table<float>("avx2");
constinit const CovarianceTable<double> double_covariances = make_covariance_table<double>("avx2");

}  // namespace gradgram::simd::avx2
