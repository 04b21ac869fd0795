#include "engine/tape.hpp"

#include "tests/engine/small_modules.hpp"

namespace gradgram {
namespace {

using testing::random_tensor;
using testing::same_bits;
using testing::SharedNet;

TEST(Tape, AnEvaluationKeepsNoNodesAndCannotBeReplayed) {
  const SharedNet<double> net(4, 2);
  const auto x = random_tensor<double>(Shape{3, 4}, 1);
  Arena arena;
  Tape<double> tape(arena, false);
  const Var y = net.forward(tape, tape.input(x.view()));
  const Tensor<double> seed(Shape{3, 2});
  NullSink<double> sink;
  EXPECT_THROW(tape.reverse(y, seed.view(), sink), ArgumentError);
  EXPECT_THROW(tape.tangents(y, nullptr), ArgumentError);
}

TEST(Tape, RefusesSeedsAndTangentsOfOtherShapes) {
  const SharedNet<double> net(4, 2);
  const auto x = random_tensor<double>(Shape{3, 4}, 1);
  Arena arena;
  Tape<double> tape(arena);
  const Var constant = tape.input(x.view());
  const Var y = net.forward(tape, constant);
  const Tensor<double> seed(Shape{2, 2});
  NullSink<double> sink;
  EXPECT_THROW(tape.reverse(y, seed.view(), sink), ShapeError);
  EXPECT_THROW(tape.tangents(y, nullptr, constant, seed.view()), ShapeError);
  EXPECT_THROW(tape.tangents(y, nullptr, constant, x.view()), ArgumentError);  // not differentiable
  EXPECT_THROW(tape.input(TensorView<const double>(x.data(), Shape{})), ShapeError);
}

TEST(Tape, MemoryOfAReplayIsReusedAndGivenBack) {
  const SharedNet<double> net(4, 2);
  const auto x = random_tensor<double>(Shape{3, 4}, 1);
  const auto seed = random_tensor<double>(Shape{3, 2}, 2);
  Arena arena;
  const Arena::Mark before = arena.mark();
  std::size_t capacity = 0;
  {
    Tape<double> tape(arena);
    const Var in = tape.input(x.view(), true);
    const Var y = net.forward(tape, in);
    NullSink<double> sink;
    tape.reverse(y, seed.view(), sink);
    const double* first = tape.cotangent(in).data();
    const Arena::Mark after = arena.mark();
    for (int i = 0; i < 3; ++i) {
      tape.reverse(y, seed.view(), sink);
      EXPECT_EQ(tape.cotangent(in).data(), first);
      EXPECT_EQ(arena.mark().used, after.used);
    }
    capacity = arena.capacity();
  }
  EXPECT_EQ(arena.mark().used, before.used);
  EXPECT_EQ(arena.capacity(), capacity);
}

TEST(Tape, SeedsInTheTapesOwnArenaSurviveReplays) {
  const SharedNet<double> net(4, 2);
  const auto x = random_tensor<double>(Shape{3, 4}, 1);
  const auto seeds = random_tensor<double>(Shape{4, 3, 2}, 2);
  Arena arena;
  Tape<double> tape(arena);
  const Var in = tape.input(x.view(), true);
  const Var y = net.forward(tape, in);
  NullSink<double> sink;
  std::vector<TensorView<double>> kept;
  for (std::size_t k = 0; k < 4; ++k) {
    const auto seed = arena.tensor<double>(Shape{3, 2});
    std::copy_n(seeds.view().slice(k).data(), seed.size(), seed.data());
    kept.push_back(seed);
    tape.reverse(y, seed, sink);
    const auto expected = testing::gradients<double>(
        [&](Tape<double>& other, Var z, const ParameterSet<double>&) { return net.forward(other, z); },
        x.view(), net.parameters(), seeds.view().slice(k));
    EXPECT_TRUE(same_bits<double>(tape.cotangent(in), expected.x.view())) << k;
  }
  for (std::size_t k = 0; k < 4; ++k) EXPECT_TRUE(same_bits<double>(kept[k], seeds.view().slice(k))) << k;
}

TEST(Tape, MoreMayBeRecordedAfterAReplay) {
  const auto x = random_tensor<double>(Shape{3, 4}, 1);
  Arena arena;
  Tape<double> tape(arena);
  const Var in = tape.input(x.view(), true);
  const Var half = ops::activation(tape, in, simd::Activation::Sin);
  NullSink<double> sink;
  tape.reverse(half, x.view(), sink);
  const Var whole = ops::activation(tape, half, simd::Activation::Tanh);
  const Tensor<double> values(tape.shape(whole), tape.value(whole).span());
  for (int i = 0; i < 2; ++i) {
    tape.reverse(whole, x.view(), sink);
    EXPECT_TRUE(same_bits<double>(tape.value(whole), values.view()));
    for (std::size_t k = 0; k < x.size(); ++k) {
      const double expected =
          x.data()[k] * (1 - std::pow(std::tanh(std::sin(x.data()[k])), 2)) * std::cos(x.data()[k]);
      EXPECT_NEAR(tape.cotangent(in).data()[k], expected, 1e-14);
    }
  }
}

TEST(Tape, InnerOutputsMayBeReversedAlone) {
  const auto x = random_tensor<double>(Shape{3, 4}, 1);
  Arena arena;
  Tape<double> tape(arena);
  const Var in = tape.input(x.view(), true);
  const Var half = ops::activation(tape, in, simd::Activation::Sin);
  ops::activation(tape, half, simd::Activation::Tanh);
  NullSink<double> sink;
  tape.reverse(half, x.view(), sink);
  for (std::size_t k = 0; k < x.size(); ++k) {
    EXPECT_NEAR(tape.cotangent(in).data()[k], x.data()[k] * std::cos(x.data()[k]), 1e-15);
  }
}

TEST(Tape, NothingReachesAConstant) {
  const auto x = random_tensor<double>(Shape{3, 4}, 1);
  Arena arena;
  Tape<double> tape(arena);
  const Var constant = tape.input(x.view());
  const Var y = ops::activation(tape, constant, simd::Activation::Sin);
  EXPECT_FALSE(tape.depends(y));
  NullSink<double> sink;
  tape.reverse(y, x.view(), sink);
  EXPECT_FALSE(tape.cotangent(constant));
  const auto tangent = tape.tangents(y, nullptr);
  for (const double value : tangent.span()) EXPECT_EQ(value, 0.0);
}

TEST(Evaluate, EqualsTheForwardPassForAnyNumberOfThreads) {
  const SharedNet<float> net(4, 2);
  const auto x = random_tensor<float>(Shape{53, 4}, 1);
  const auto expected = testing::forward<float>(
      [&](Tape<float>& tape, Var in, const ParameterSet<float>&) { return net.forward(tape, in); }, x.view(),
      net.parameters());
  for (const std::size_t threads : {1U, 2U, 7U}) {
    EXPECT_TRUE(same_bits<float>(evaluate(net, x.view(), Workers(threads)).view(), expected.view()));
  }
  const Tensor<float> none(Shape{0, 4});
  EXPECT_EQ(evaluate(net, none.view(), Workers(1)).shape(), (Shape{0, 2}));
}

TEST(Evaluate, NamesTheExampleThatIsNotFinite) {
  const SharedNet<float> net(4, 2);
  auto x = random_tensor<float>(Shape{53, 4}, 1);
  x(37, 1) = std::numeric_limits<float>::quiet_NaN();
  try {
    evaluate(net, std::as_const(x).view(), Workers(2));
    FAIL();
  } catch (const NumericError& error) {
    EXPECT_NE(std::string(error.what()).find("example 37"), std::string::npos) << error.what();
  }
  const Tensor<float> wrong(Shape{3, 5});
  EXPECT_THROW(evaluate(net, wrong.view(), Workers(1)), ShapeError);
}

}  // namespace
}  // namespace gradgram
