#define GRADGRAM_SIMD_NAMESPACE sse2
#define GRADGRAM_SIMD_ARCH sse2
#include "engine/simd/covariance_instantiate.hpp"

namespace gradgram::simd::sse2 {

constinit const CovarianceTable<float> float_covariances = make_covariance_table<float>("sse2");
constinit const CovarianceTable<double> double_covariances = make_covariance_table<double>("sse2");

}  // namespace gradgram::simd::sse2
