#pragma once

#include <cmath>
#include <cstddef>

namespace gradgram::ops {

/// log softmax(x)_k = (x_k - top) - log_sum, in f64. Kept apart because top + log_sum loses log_sum when the
/// inputs are large. NaN in, NaN out.
struct LogNormalizer {
  double top = -INFINITY;
  double log_sum = 0;
  template <class T>
  double log_probability(T x) const {
    return (static_cast<double>(x) - top) - log_sum;
  }
};

template <class T>
LogNormalizer log_normalizer(const T* x, std::size_t n) {
  LogNormalizer result;
  for (std::size_t k = 0; k < n; ++k) result.top = std::fmax(result.top, static_cast<double>(x[k]));
  double sum = 0;
  for (std::size_t k = 0; k < n; ++k) sum += std::exp(static_cast<double>(x[k]) - result.top);
  result.log_sum = std::log(sum);
  return result;
}

}  // namespace gradgram::ops
