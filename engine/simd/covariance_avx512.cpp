#define GRADGRAM_SIMD_NAMESPACE avx512
#define GRADGRAM_SIMD_ARCH avx512bw
#include "engine/simd/covariance_instantiate.hpp"

namespace gradgram::simd::avx512 {

constinit const CovarianceTable<float> float_covariances = make_covariance_table<float>("avx512");
constinit const CovarianceTable<double> double_covariances = make_covariance_table<double>("avx512");

}  // namespace gradgram::simd::avx512
