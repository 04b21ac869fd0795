#pragma once

#include <cstddef>

#include "engine/module.hpp"
#include "engine/simd/kernels.hpp"

namespace gradgram::ntk {

/// Columns of a product that are summed in T, at the most, before the sum moves to f64.
template <class T>
inline constexpr std::size_t kPanelColumns = simd::kGramDepth<T>;

/// What the error of a kernel entry in precision T stays below, in units of sqrt(k_ii k_jj): measured against
/// f64 on networks of up to kShallow weights, with a margin, not proven (docs/precision.md). It covers
/// rounding; it does not cover an input so close to a kink (ReLU, max pooling) that rounding decides which
/// side it is on.
template <class T>
double entry_error();

/// Roundings gather with depth, fastest where a layer amplifies small differences (tanh at weight variance
/// 2): beyond this many weights the error is taken to grow with the square of their number.
inline constexpr std::size_t kShallow = 8;
/// The same for the kernel of `module`, by the number of its weights (parameters that are not vectors).
template <class T>
double entry_error(const Module<T>& module);

}  // namespace gradgram::ntk
