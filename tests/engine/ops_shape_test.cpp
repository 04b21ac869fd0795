#include "tests/engine/op_check.hpp"

namespace gradgram {
namespace {

using testing::check_op;
using testing::random_tensor;

const auto flatten_op = []<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) {
  return ops::flatten(tape, x);
};
auto reshape_op(Shape shape) {
  return [=]<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) { return ops::reshape(tape, x, shape); };
}

TEST(Flatten, DerivativesAndBlocks) {
  check_op(flatten_op, random_tensor<double>(Shape{3, 2, 5, 4}, 3), {});
  check_op(flatten_op, random_tensor<double>(Shape{3, 2, 5, 1}, 3), {});
  check_op(flatten_op, random_tensor<double>(Shape{3, 1, 1, 4}, 3), {});
  check_op(flatten_op, random_tensor<double>(Shape{3, 4}, 3), {});
}

TEST(Flatten, OrderIsChannelRowColumn) {
  Tensor<double> x(Shape{2, 2, 3, 2});
  for (std::size_t i = 0; i < 2; ++i)
    for (std::size_t r = 0; r < 2; ++r)
      for (std::size_t s = 0; s < 3; ++s)
        for (std::size_t c = 0; c < 2; ++c)
          x(i, r, s, c) = 1000.0 * double(i) + 100.0 * double(c) + 10.0 * double(r) + double(s);
  const auto y = testing::forward<double>(flatten_op, x.view(), {});
  EXPECT_EQ(y.shape(), (Shape{2, 12}));
  const double expected[] = {0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112};
  for (std::size_t k = 0; k < 12; ++k) EXPECT_EQ(y(1, k), 1000 + expected[k]);
}

TEST(Reshape, DerivativesAndRefusal) {
  check_op(reshape_op(Shape{2, 3, 2}), random_tensor<double>(Shape{3, 12}, 3), {});
  const Tensor<double> x(Shape{2, 12});
  EXPECT_THROW(testing::forward<double>(reshape_op(Shape{5}), x.view(), {}), ShapeError);
}

TEST(Reshape, AValueUsedInTwoShapesCollectsBothCotangents) {
  const auto op = []<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) {
    const Var image = ops::reshape(tape, x, Shape{2, 3, 2});
    const Var squashed = ops::activation(tape, image, simd::Activation::Tanh);
    return ops::add(tape, ops::flatten(tape, squashed), ops::add(tape, x, ops::flatten(tape, image)));
  };
  check_op(op, random_tensor<double>(Shape{3, 12}, 3), {});
}

TEST(Add, DerivativesOfEveryCombination) {
  // x + x, x + f(x), f(x) + x, and a sum that is used twice itself.
  check_op([]<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) { return ops::add(tape, x, x); },
           random_tensor<double>(Shape{3, 5}, 3), {});
  check_op(
      []<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) {
        return ops::add(tape, x, ops::activation(tape, x, simd::Activation::Sin));
      },
      random_tensor<double>(Shape{3, 5}, 3), {});
  check_op(
      []<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) {
        const Var sum = ops::add(tape, ops::activation(tape, x, simd::Activation::Sin), x);
        return ops::add(tape, sum, ops::add(tape, ops::activation(tape, sum, simd::Activation::Tanh), sum));
      },
      random_tensor<double>(Shape{3, 5}, 3), {});
}

TEST(Add, ConstantsHaveNoCotangent) {
  const Tensor<double> a = random_tensor<double>(Shape{2, 3}, 1);
  const Tensor<double> b = random_tensor<double>(Shape{2, 3}, 2);
  Arena arena;
  Tape<double> tape(arena);
  const Var constant = tape.input(a.view());
  const Var variable = tape.input(b.view(), true);
  for (const bool first : {true, false}) {
    const Var sum = first ? ops::add(tape, constant, variable) : ops::add(tape, variable, constant);
    NullSink<double> sink;
    tape.reverse(sum, a.view(), sink);
    EXPECT_FALSE(tape.cotangent(constant));
    EXPECT_TRUE(testing::same_bits<double>(tape.cotangent(variable), a.view()));
    EXPECT_TRUE(testing::same_bits<double>(tape.tangents(sum, nullptr, variable, b.view()), b.view()));
  }
}

TEST(Add, RefusesDifferentShapes) {
  const Tensor<double> a(Shape{2, 3});
  const Tensor<double> b(Shape{2, 4});
  Arena arena;
  Tape<double> tape(arena);
  EXPECT_THROW(ops::add(tape, tape.input(a.view()), tape.input(b.view())), ShapeError);
}

}  // namespace
}  // namespace gradgram
