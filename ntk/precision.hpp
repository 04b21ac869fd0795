#pragma once

#include <cstddef>

namespace gradgram::ntk {

/// Columns of a product that are summed in T before the sum moves to f64.
inline constexpr std::size_t kPanelColumns = 4096;

/// A bound on the error of a kernel entry in precision T, in units of sqrt(k_ii k_jj): the model of
/// docs/precision.md, measured against f64 with a margin. It covers rounding; it does not cover an input so
/// close to a kink (ReLU, max pooling) that rounding decides which side it is on.
template <class T>
double entry_error();

}  // namespace gradgram::ntk
