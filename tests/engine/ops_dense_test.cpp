#include "tests/engine/op_check.hpp"

namespace gradgram {
namespace {

using testing::check_op;
using testing::random_tensor;

ParameterSet<double> dense_parameters(std::size_t d_in, std::size_t d_out) {
  ParameterSet<double> parameters;
  parameters.add("weight", random_tensor<double>(Shape{d_out, d_in}, 1));
  parameters.add("bias", random_tensor<double>(Shape{d_out}, 2));
  return parameters;
}

auto dense_op(bool bias, double weight_scale, double bias_scale) {
  return [=]<class T>(Tape<T>& tape, Var x, const ParameterSet<T>& parameters) {
    return ops::dense(tape, x,
                      ops::Affine<T>{.parameters = parameters,
                                     .weight = 0,
                                     .bias = bias ? 1 : kNoParameter,
                                     .weight_scale = static_cast<T>(weight_scale),
                                     .bias_scale = static_cast<T>(bias_scale)});
  };
}

TEST(Dense, DerivativesAndBlocks) {
  for (const std::size_t d_in : {1U, 3U, 17U}) {
    for (const std::size_t d_out : {1U, 5U, 16U}) {
      const auto parameters = dense_parameters(d_in, d_out);
      const auto x = random_tensor<double>(Shape{7, d_in}, 3);
      check_op(dense_op(true, 1, 1), x, parameters);
      check_op(dense_op(false, 0.37, 1), x, parameters);
      check_op(dense_op(true, 0.37, 1.7), x, parameters);
    }
  }
}

TEST(Dense, PositionsAreSummedInTheGradient) {
  check_op(dense_op(true, 0.5, 0.25), random_tensor<double>(Shape{3, 4, 5}, 3), dense_parameters(5, 6));
}

TEST(Dense, EqualsTheFormula) {
  const auto parameters = dense_parameters(3, 2);
  const auto x = random_tensor<double>(Shape{4, 3}, 3);
  const auto y = testing::forward<double>(dense_op(true, 0.5, 2), x.view(), parameters);
  for (std::size_t i = 0; i < 4; ++i) {
    for (std::size_t k = 0; k < 2; ++k) {
      double expected = 2 * parameters.value(1)(k);
      for (std::size_t j = 0; j < 3; ++j) expected += 0.5 * parameters.value(0)(k, j) * x(i, j);
      EXPECT_NEAR(y(i, k), expected, 1e-15);
    }
  }
}

TEST(Dense, RefusesWhatDoesNotMatch) {
  const auto parameters = dense_parameters(785, 2);
  const auto apply = [&](Shape shape, std::size_t weight, std::size_t bias) {
    const Tensor<double> x(shape);
    Arena arena;
    Tape<double> tape(arena);
    ops::dense(tape, tape.input(x.view()),
               ops::Affine<double>{.parameters = parameters, .weight = weight, .bias = bias});
  };
  EXPECT_THROW(apply({1, 784}, 0, 1), ShapeError);
  EXPECT_THROW(apply({785}, 0, 1), ShapeError);
  EXPECT_THROW(apply({1, 785}, 0, 0), ShapeError);
  EXPECT_THROW(apply({1, 785}, 1, kNoParameter), ShapeError);
  EXPECT_THROW(apply({1, 785}, 9, kNoParameter), ShapeError);
  try {
    apply({1, 784}, 0, 1);
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(), "dense: inputs.features (784) and weights.d_in (785) must match");
  }
}

/// What the checker is for: a derivative that is off by a thousandth, and one that is not there.
template <class T>
class WrongNode final : public Node<T> {
 public:
  WrongNode(Var x, Var y, T factor) : x_(x), y_(y), factor_(factor) {}
  void jvp(Tape<T>& tape) const override {
    const auto x = tape.tangent(x_);
    if (!x) return;
    const auto y = tape.make_tangent(y_);
    for (std::size_t i = 0; i < y.size(); ++i) y.data()[i] = factor_ * x.data()[i];
  }
  void vjp(Tape<T>& tape, Sink<T>&) const override {
    const auto y = tape.cotangent(y_);
    const auto x = tape.add_cotangent(x_);
    for (std::size_t i = 0; i < x.size(); ++i) x.data()[i] += factor_ * y.data()[i];
  }

 private:
  Var x_;
  Var y_;
  T factor_;
};

TEST(OpCheck, NoticesAWrongDerivative) {
  const auto identity_with = [](double factor) {
    return [=]<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) {
      const Var y = tape.emit(tape.shape(x), true);
      std::copy_n(tape.value(x).data(), tape.value(x).size(), tape.mutable_value(y).data());
      tape.record(WrongNode<T>(x, y, static_cast<T>(factor)));
      return y;
    };
  };
  const ParameterSet<double> none;
  const auto x = random_tensor<double>(Shape{3, 4}, 3);
  EXPECT_LE(testing::difference_error(identity_with(1), x, none), 1e-9);
  EXPECT_GT(testing::difference_error(identity_with(1.001), x, none), 1e-4);
  EXPECT_GT(testing::tangent_error(identity_with(1.001), x, none), 1e-4);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(testing::difference_error(identity_with(nan), x, none) <= 1e-9);
  EXPECT_FALSE(testing::tangent_error(identity_with(nan), x, none) <= 1e-9);
  EXPECT_FALSE(testing::adjoint_error<double>(identity_with(nan), x, none) <= 1e-12);
}

}  // namespace
}  // namespace gradgram
