#include "ntk/infinite/inputs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "engine/error.hpp"
#include "ntk/infinite/sides.hpp"

namespace gradgram::ntk::infinite {
namespace {

/// Squares below are cut off, or become zeros, which a zero input alone should give.
constexpr double kLeastSquare = 1e-290;

template <class T>
void require_digits(const Program& program, TensorView<const T> x, const std::vector<double>& variances,
                    const char* name) {
  const std::size_t pixels = program.pixels[0];
  const std::size_t size = pixels * program.channels;
  for (std::size_t i = 0; i < variances.size() / pixels; ++i) {
    const double* const own = variances.data() + i * pixels;
    const double most = *std::max_element(own, own + pixels);
    if (most >= kLeastSquare) continue;
    const T* const values = x.data() + i * size;
    if (std::all_of(values, values + size, [](T value) { return value == T(0); })) continue;
    throw NumericError(
        fmt::format("infinite_kernel: {}: example {} holds numbers so small that their mean square is {:g}, "
                    "where {:g} is "
                    "the least that keeps its digits; multiply the inputs by a power of two",
                    name, i, most, kLeastSquare));
  }
}

}  // namespace

template <class T>
bool holds_examples(const Program& program, TensorView<const T> x) {
  return x.shape().rank() != 0 && x.shape()[0] != 0 && x.shape().inner() == program.input;
}

template <class T>
std::vector<double> input_variances(const Program& program, TensorView<const T> x, const char* name) {
  const std::size_t channels = program.channels;
  std::vector<double> result(x.size() / channels);
  for (std::size_t p = 0; p < result.size(); ++p) {
    double sum = 0;
    for (std::size_t c = 0; c < channels; ++c) {
      const double value = static_cast<double>(x.data()[p * channels + c]);
      sum += value * value;
    }
    if (!std::isfinite(sum)) {
      throw NumericError("infinite_kernel: " + std::string(name) + ": example " +
                         std::to_string(p / program.pixels[0]) +
                         " holds numbers that are not finite or too large");
    }
    result[p] = sum / static_cast<double>(channels);
  }
  require_digits(program, x, result, name);
  return result;
}

bool maps_multiples(const Program& program) {
  return std::ranges::all_of(program.steps, [](const Step& step) {
    if (step.kind == StepKind::Affine) return step.bias_variance == 0;
    if (step.kind != StepKind::Nonlinear) return step.kind != StepKind::Normalize;
    return step.is_rectifier() || (step.phi.kind == Nonlinearity::Kind::Monomial && step.phi.degree == 1);
  });
}

namespace {

/// Of the largest pixel of each example.
std::vector<double> largest_of_each(const Program& program, const std::vector<double>& variances) {
  const std::size_t pixels = program.pixels[0];
  std::vector<double> result(variances.size() / pixels);
  for (std::size_t i = 0; i < result.size(); ++i) {
    const double* const own = variances.data() + i * pixels;
    result[i] = *std::max_element(own, own + pixels);
  }
  return result;
}

}  // namespace

Norms::Norms(const Program& program, const std::vector<double>& left, const std::vector<double>& right) {
  if (!maps_multiples(program)) return;
  constexpr double kTogether = 0x1p28;  // of variances: f64 is left with ten times what it promises
  std::vector<double> largest = largest_of_each(program, left);
  const std::vector<double> others = largest_of_each(program, right);
  largest.insert(largest.end(), others.begin(), others.end());
  std::ranges::sort(largest);
  for (const double q : largest) {
    if (q > 0 && (begins_.empty() || q / begins_.back() > kTogether)) begins_.push_back(q);
  }
  if (begins_.size() == 1) begins_.clear();
}

std::vector<int> Norms::take_out(const Program& program, std::vector<double>& variances) const {
  if (begins_.empty()) return {};
  std::vector<int> exponents;
  const std::size_t pixels = program.pixels[0];
  for (const double q : largest_of_each(program, variances)) {
    const auto above = std::ranges::upper_bound(begins_, q);
    const int exponent = above == begins_.begin() ? 0 : std::ilogb(*(above - 1)) / 2;
    double* const own = variances.data() + exponents.size() * pixels;
    std::transform(own, own + pixels, own, [&](double v) { return std::ldexp(v, -2 * exponent); });
    exponents.push_back(exponent);
  }
  return exponents;
}

template <class T>
Inputs<T>::Inputs(const Program& program, TensorView<const T> x, int exponent, const std::vector<int>& norms,
                  bool transposed)
    : rows_(x.shape()) {
  const std::size_t examples = x.shape()[0];
  const std::size_t pixels = program.pixels[0];
  const std::size_t channels = program.channels;
  const std::size_t size = pixels * channels;
  for (std::size_t i = 0; i < examples; ++i) {
    // In f64: the factor may be no number of T.
    const double factor = std::ldexp(1.0, -exponent / 2 - (norms.empty() ? 0 : norms[i]));
    std::transform(x.data() + i * size, x.data() + (i + 1) * size, rows_.data() + i * size,
                   [&](T value) { return static_cast<T>(factor * static_cast<double>(value)); });
  }
  if (!transposed) return;
  const bool full = program.reach == Reach::Full;
  stride_ = padded<T>(full ? pixels : examples);
  columns_ = Tensor<T>(Shape{full ? examples : pixels, channels, stride_});
  for (std::size_t i = 0; i < examples; ++i) {
    for (std::size_t p = 0; p < pixels; ++p) {
      for (std::size_t c = 0; c < channels; ++c) {
        const T value = rows_.data()[(i * pixels + p) * channels + c];
        const std::size_t to = full ? (i * channels + c) * stride_ + p : (p * channels + c) * stride_ + i;
        columns_.data()[to] = value;
      }
    }
  }
}

#define GRADGRAM_INSTANTIATE(T)                                                                   \
  template bool holds_examples(const Program&, TensorView<const T>);                              \
  template std::vector<double> input_variances(const Program&, TensorView<const T>, const char*); \
  template class Inputs<T>;
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk::infinite
