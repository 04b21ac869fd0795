#include <cmath>
#include <functional>
#include <numbers>

#include "tests/engine/op_check.hpp"

namespace gradgram {
namespace {

using simd::Activation;
using testing::check_op;
using testing::random_tensor;

constexpr double kSlope = 0.2;

struct Case {
  Activation kind;
  std::function<double(double)> value;
};

const Case kCases[] = {
    {Activation::Relu, [](double x) { return x > 0 ? x : 0; }},
    {Activation::LeakyRelu, [](double x) { return x > 0 ? x : kSlope * x; }},
    {Activation::Tanh, [](double x) { return std::tanh(x); }},
    {Activation::Sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }},
    {Activation::Erf, [](double x) { return std::erf(x); }},
    {Activation::Gelu, [](double x) { return 0.5 * x * std::erfc(-x / std::numbers::sqrt2); }},
    {Activation::Softplus, [](double x) { return std::log1p(std::exp(x)); }},
    {Activation::Sin, [](double x) { return std::sin(x); }},
};
static_assert(std::size(kCases) == simd::kActivationCount);

auto activation_op(Activation kind) {
  return [=]<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) {
    return ops::activation(tape, x, kind, static_cast<T>(kSlope));
  };
}

TEST(Activation, DerivativesAndBlocks) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(static_cast<int>(c.kind));
    check_op(activation_op(c.kind), random_tensor<double>(Shape{3, 2, 7}, 3, 0.01), {});
  }
}

TEST(Activation, EqualsTheFormula) {
  Tensor<double> x(Shape{1, 41});
  for (std::size_t i = 0; i < 41; ++i) x.data()[i] = 0.25 * (static_cast<double>(i) - 20);
  for (const Case& c : kCases) {
    const auto y = testing::forward<double>(activation_op(c.kind), x.view(), {});
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_NEAR(y.data()[i], c.value(x.data()[i]), 4e-14) << static_cast<int>(c.kind) << " " << x.data()[i];
    }
  }
}

TEST(Activation, AValueUsedTwiceCollectsBothCotangents) {
  // y = tanh(x) + relu(x): the second use adds to the cotangent of the first.
  const auto op = []<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) {
    return ops::add(tape, ops::activation(tape, x, Activation::Tanh),
                    ops::activation(tape, x, Activation::Relu));
  };
  check_op(op, random_tensor<double>(Shape{3, 5}, 3, 0.01), {});
}

TEST(Activation, AtTheKink) {
  const Tensor<double> zero(Shape{1, 1});
  Tensor<double> seed(Shape{1, 1});
  seed(0, 0) = 1;
  EXPECT_EQ(testing::gradients<double>(activation_op(Activation::Relu), zero.view(), {}, seed.view()).x(0, 0),
            0.0);
  EXPECT_EQ(
      testing::gradients<double>(activation_op(Activation::LeakyRelu), zero.view(), {}, seed.view()).x(0, 0),
      kSlope);
}

}  // namespace
}  // namespace gradgram
