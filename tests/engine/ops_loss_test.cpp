#include "tests/engine/op_check.hpp"

namespace gradgram {
namespace {

using testing::check_op;
using testing::random_tensor;

const auto softmax_op = []<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) {
  return ops::softmax(tape, x);
};
const auto log_softmax_op = []<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) {
  return ops::log_softmax(tape, x);
};

TEST(Softmax, DerivativesAndBlocks) {
  for (const std::size_t outputs : {1U, 2U, 11U}) {
    check_op(softmax_op, random_tensor<double>(Shape{3, outputs}, 3), {});
    check_op(log_softmax_op, random_tensor<double>(Shape{3, outputs}, 3), {});
  }
  const auto twice = []<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) {
    return ops::add(tape, ops::softmax(tape, x), ops::add(tape, ops::log_softmax(tape, x), x));
  };
  check_op(twice, random_tensor<double>(Shape{3, 4}, 3), {});
}

TEST(Softmax, NoFiniteInputOverflows) {
  const Tensor<float> x(Shape{1, 3}, std::vector<float>{3e38F, -3e38F, 3e38F});
  const auto p = testing::forward<float>(softmax_op, x.view(), {});
  EXPECT_FLOAT_EQ(p(0, 0), 0.5F);
  EXPECT_EQ(p(0, 1), 0.0F);
  const auto l = testing::forward<float>(log_softmax_op, x.view(), {});
  EXPECT_FLOAT_EQ(l(0, 2), -std::log(2.0F));
  const Tensor<float> nan(Shape{1, 2}, std::vector<float>{1, std::numeric_limits<float>::quiet_NaN()});
  EXPECT_TRUE(std::isnan(testing::forward<float>(softmax_op, nan.view(), {})(0, 0)));
}

TEST(Softmax, RefusesOtherRanks) {
  const Tensor<double> x(Shape{2, 3, 4});
  EXPECT_THROW(testing::forward<double>(softmax_op, x.view(), {}), ShapeError);
  EXPECT_THROW(testing::forward<double>(log_softmax_op, x.view(), {}), ShapeError);
}

/// Losses need targets of the block's size: derivatives are checked on a fixed block.
void check_derivatives(const testing::Record<double>& record, const Tensor<double>& x) {
  EXPECT_TRUE(testing::difference_error(record, x, {}) <= 1e-9);
  EXPECT_TRUE(testing::tangent_error(record, x, {}) <= 1e-9);
  EXPECT_TRUE(testing::adjoint_error(record, x, {}) <= 1e-12);
}

TEST(MeanSquaredError, DerivativesAndValue) {
  const Tensor<double> targets = random_tensor<double>(Shape{3, 4}, 9);
  const Tensor<double> x = random_tensor<double>(Shape{3, 4}, 3);
  const testing::Record<double> record = [&](Tape<double>& tape, Var in, const ParameterSet<double>&) {
    return ops::mean_squared_error(tape, in, targets.view());
  };
  check_derivatives(record, x);
  const auto y = testing::forward(record, x.view(), {});
  for (std::size_t i = 0; i < 3; ++i) {
    double expected = 0;
    for (std::size_t k = 0; k < 4; ++k) expected += std::pow(x(i, k) - targets(i, k), 2) / 4;
    EXPECT_NEAR(y(i), expected, 1e-15);
  }
  const Tensor<double> other(Shape{2, 4});
  EXPECT_THROW(testing::forward(record, other.view(), {}), ShapeError);
}

TEST(CrossEntropy, DerivativesAndValue) {
  const std::vector<std::int32_t> labels{0, 3, 2};
  const Tensor<double> x = random_tensor<double>(Shape{3, 4}, 3);
  const testing::Record<double> record = [&](Tape<double>& tape, Var in, const ParameterSet<double>&) {
    return ops::cross_entropy(tape, in, labels);
  };
  check_derivatives(record, x);
  const auto y = testing::forward(record, x.view(), {});
  for (std::size_t i = 0; i < 3; ++i) {
    double sum = 0;
    for (std::size_t k = 0; k < 4; ++k) sum += std::exp(x(i, k));
    EXPECT_NEAR(y(i), -std::log(std::exp(x(i, static_cast<std::size_t>(labels[i]))) / sum), 1e-14);
  }
}

TEST(CrossEntropy, LossesAddToOtherUsesOfTheOutputs) {
  const std::vector<std::int32_t> labels{1, 0};
  const Tensor<double> targets(Shape{2, 2});
  const testing::Record<double> record = [&](Tape<double>& tape, Var in, const ParameterSet<double>&) {
    return ops::add(tape, ops::cross_entropy(tape, in, labels),
                    ops::mean_squared_error(tape, in, targets.view()));
  };
  check_derivatives(record, random_tensor<double>(Shape{2, 2}, 3));
}

TEST(CrossEntropy, RefusesLabelsAtOnce) {
  const Tensor<double> x(Shape{2, 3});
  const auto apply = [&](std::vector<std::int32_t> labels) {
    Arena arena;
    Tape<double> tape(arena);
    ops::cross_entropy(tape, tape.input(x.view(), true), std::span<const std::int32_t>(labels));
  };
  EXPECT_NO_THROW(apply({0, 2}));
  EXPECT_THROW(apply({0, 3}), ArgumentError);
  EXPECT_THROW(apply({-1, 0}), ArgumentError);
  EXPECT_THROW(apply({0}), ShapeError);
}

}  // namespace
}  // namespace gradgram
