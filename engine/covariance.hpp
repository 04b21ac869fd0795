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

}  // namespace gradgram
