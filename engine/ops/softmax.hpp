#pragma once

#include <cmath>
#include <cstddef>

namespace gradgram::ops {

/// log sum_k exp(x_k) in f64, shifted by the maximum: no finite input overflows. NaN in, NaN out. n = 0 gives
/// -infinity.
template <class T>
double log_sum_exp(const T* x, std::size_t n) {
  double top = -INFINITY;
  for (std::size_t k = 0; k < n; ++k) {
    const double value = static_cast<double>(x[k]);
    if (!(value <= top)) top = value;  // a NaN stays
    if (std::isnan(value)) return value;
  }
  if (std::isinf(top)) return top;
  double sum = 0;
  for (std::size_t k = 0; k < n; ++k) sum += std::exp(static_cast<double>(x[k]) - top);
  return top + std::log(sum);
}

}  // namespace gradgram::ops
