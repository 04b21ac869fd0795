#include "ntk/passes.hpp"

#include <algorithm>
#include <cmath>

namespace gradgram::ntk {

std::size_t seed_count(Reduce reduce, std::size_t outputs) {
  return reduce == Reduce::Output || reduce == Reduce::TrueClass ? 1 : outputs;
}

void check_reduction(const char* call, const KernelOptions& options, std::size_t outputs, std::size_t n) {
  if (options.reduce == Reduce::Output && options.output >= outputs) {
    throw ArgumentError(std::string(call) + ": output (" + std::to_string(options.output) +
                        ") must be below the number of outputs (" + std::to_string(outputs) + ")");
  }
  if (options.reduce == Reduce::TrueClass) {
    if (outputs < 2) {
      throw ArgumentError(std::string(call) + ": the reduction true-class needs at least 2 outputs, not " +
                          std::to_string(outputs));
    }
    check_labels(call, "labels", options.labels, outputs, n);
  }
}

void check_labels(const char* call, const char* option, std::span<const std::int32_t> labels,
                  std::size_t outputs, std::size_t n) {
  if (labels.size() != n) {
    throw ShapeError(std::string(call) + ": " + option + " (" + std::to_string(labels.size()) +
                     ") and examples (" + std::to_string(n) + ") must match");
  }
  for (std::size_t i = 0; i < n; ++i) {
    if (labels[i] < 0 || static_cast<std::size_t>(labels[i]) >= outputs) {
      throw ArgumentError(std::string(call) + ": " + option + "[" + std::to_string(i) + "] (" +
                          std::to_string(labels[i]) + ") must be in [0, " + std::to_string(outputs) + ")");
    }
  }
}

void check_inputs(const char* call, const char* argument, const Shape& x, const Shape& input) {
  if (x.rank() == 0 || !(x.inner() == input)) {
    throw ShapeError(std::string(call) + ": " + argument + " " + x.to_string() +
                     " and the module's inputs [n, ...] with ... = " + input.to_string() + " must match");
  }
}

template <class T>
void fill_seed(Reduce reduce, std::size_t output, std::size_t pass, TensorView<const T> outputs,
               std::span<const std::int32_t> labels, TensorView<T> seed) {
  const std::size_t n = seed.shape()[0];
  const std::size_t count = seed.shape()[1];
  std::fill_n(seed.data(), seed.size(), T(0));
  for (std::size_t i = 0; i < n; ++i) {
    T* row = seed.data() + i * count;
    if (reduce != Reduce::TrueClass) {
      row[reduce == Reduce::Output ? output : pass] = T(1);
      continue;
    }
    const T* f = outputs.data() + i * count;
    const T largest = *std::max_element(f, f + count);
    double sum = 0;
    for (std::size_t k = 0; k < count; ++k) sum += std::exp(static_cast<double>(f[k] - largest));
    const auto probability = [&](std::size_t k) {
      return std::exp(static_cast<double>(f[k] - largest)) / sum;
    };
    const auto label = static_cast<std::size_t>(labels[i]);
    const double p_label = probability(label);
    double others = 0;
    for (std::size_t k = 0; k < count; ++k) {
      if (k == label) continue;
      const double p = probability(k);
      others += p;
      row[k] = static_cast<T>(-p_label * p);
    }
    // 1 - p_y as the sum of the others: no cancellation when the label is almost certain.
    row[label] = static_cast<T>(p_label * others);
  }
}

template void fill_seed(Reduce, std::size_t, std::size_t, TensorView<const float>,
                        std::span<const std::int32_t>, TensorView<float>);
template void fill_seed(Reduce, std::size_t, std::size_t, TensorView<const double>,
                        std::span<const std::int32_t>, TensorView<double>);

}  // namespace gradgram::ntk
