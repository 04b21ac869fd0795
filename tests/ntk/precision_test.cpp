#include "ntk/precision.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "models/network.hpp"
#include "ntk/kernel.hpp"
#include "tests/ntk/kernel_cases.hpp"

namespace gradgram::ntk {
namespace {

/// The same weights and inputs in both precisions.
struct Pair {
  Pair(const std::string& text, const Shape& input, std::size_t examples)
      : model(models::parse(text, input)),
        narrow(model, options()),
        wide(model, options()),
        x(kernel_cases::inputs_of<float>(input, examples, 3)),
        x_wide(x.shape()) {
    wide.parameters() = narrow.parameters().cast<double>();
    // As pixels are: of one sign, the worst case of a long sum.
    for (float& value : x.span()) value = std::abs(value);
    std::copy(x.span().begin(), x.span().end(), x_wide.span().begin());
  }
  static models::NetworkOptions options() {
    models::NetworkOptions result;
    result.parameterization = models::Parameterization::Ntk;
    result.bias_variance = 0.1;
    result.seed = 4;
    return result;
  }
  models::Model model;
  models::Network<float> narrow;
  models::Network<double> wide;
  Tensor<float> x;
  Tensor<double> x_wide;
};

/// The greatest difference in units of sqrt(k_ii k_jj); NaN when an entry is.
double worst(TensorView<const float> k, TensorView<const double> exact) {
  double result = 0;
  for (std::size_t i = 0; i < exact.shape()[0]; ++i) {
    for (std::size_t j = 0; j < exact.shape()[1]; ++j) {
      const double error = std::abs(k(i, j) - exact(i, j)) / std::sqrt(exact(i, i) * exact(j, j));
      if (!(error <= result)) result = error;
    }
  }
  return result;
}

/// What docs/precision.md promises of ten million parameters.
constexpr double kPromised = 1e-6;

TEST(Precision, TenMillionParametersOfDenseLayersBothWays) {
  const Pair net("dense(2700) relu dense(2700) relu dense(1)", {784}, 4);
  ASSERT_GT(net.narrow.parameters().size(), 9'000'000U);
  const Workers workers(2);
  KernelOptions options;
  const auto exact = kernel<double>(net.wide, net.x_wide.view(), options, workers).values;
  const auto outer = kernel<float>(net.narrow, net.x.view(), options, workers).values;
  EXPECT_LE(worst(outer.view(), exact.view()), kPromised);
  for (std::size_t p = 0; p < net.narrow.parameters().count(); ++p) {
    if (net.narrow.parameters().value(p).shape().rank() == 2) {
      options.ways.emplace_back(net.narrow.parameters().name(p), Way::Materialize);
    }
  }
  const auto formed = kernel<float>(net.narrow, net.x.view(), options, workers).values;
  EXPECT_LE(worst(formed.view(), exact.view()), kPromised);

  // Negative control.
  Tensor<float> off = formed.clone();
  off(1, 0) *= 1.00001F;
  EXPECT_FALSE(worst(off.view(), exact.view()) <= kPromised);
}

TEST(Precision, TenMillionParametersOfConvolutionsBothWays) {
  const Pair net("conv(512,3) relu conv(512,3) relu conv(512,3) relu conv(512,3) gap dense(1)", {4, 4, 512},
                 3);
  ASSERT_GT(net.narrow.parameters().size(), 9'000'000U);
  const Workers workers(2);
  KernelOptions options;
  const auto exact = kernel<double>(net.wide, net.x_wide.view(), options, workers).values;
  for (const Way way : {Way::PositionGram, Way::Materialize}) {
    options.ways.clear();
    for (std::size_t p = 0; p < net.narrow.parameters().count(); ++p) {
      if (net.narrow.parameters().value(p).shape().rank() == 4) {
        options.ways.emplace_back(net.narrow.parameters().name(p), way);
      }
    }
    const auto k = kernel<float>(net.narrow, net.x.view(), options, workers).values;
    EXPECT_LE(worst(k.view(), exact.view()), kPromised) << static_cast<int>(way);
  }
  const Tensor<double> d = diagonal<float>(net.narrow, net.x.view(), {}, workers);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_LE(std::abs(d(i) - exact(i, i)), kPromised * exact(i, i));
}

}  // namespace
}  // namespace gradgram::ntk
