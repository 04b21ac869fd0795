#include "models/network.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/arena.hpp"
#include "engine/error.hpp"
#include "engine/random.hpp"
#include "models/price.hpp"
#include "tests/models/random_model.hpp"

namespace gradgram::models {
namespace {

template <class T>
Tensor<T> normal(Shape shape, std::uint64_t seed) {
  Tensor<T> result(shape);
  Random random(seed);
  for (T& value : result.span()) value = static_cast<T>(random.normal());
  return result;
}

template <class T>
std::vector<T> outputs(const Network<T>& network, const Tensor<T>& x) {
  Arena arena;
  Tape<T> tape(arena, false);
  const auto values = tape.value(network.forward(tape, tape.input(x.view()))).span();
  return {values.begin(), values.end()};
}

template <class T>
std::vector<std::string> names(const Network<T>& network) {
  std::vector<std::string> result;
  for (std::size_t i = 0; i < network.parameters().count(); ++i)
    result.push_back(network.parameters().name(i));
  return result;
}

template <class T>
class NetworkOf : public ::testing::Test {};
using Precisions = ::testing::Types<float, double>;
TYPED_TEST_SUITE(NetworkOf, Precisions);

TYPED_TEST(NetworkOf, NamesParametersAsSequentialDoes) {
  const Network<TypeParam> network(
      parse("conv(4,3x5) relu residual(conv(4,3) tanh conv(4,1,bias=false) | conv(4,1)) "
            "gap residual(residual(dense(4) | relu dense(4))) dense(2)",
            {8, 8, 3}),
      {});
  EXPECT_EQ(names(network), (std::vector<std::string>{
                                "0.weight", "0.bias", "2.0.weight", "2.0.bias", "2.2.weight",
                                "2.shortcut.0.weight", "2.shortcut.0.bias", "4.0.0.weight", "4.0.0.bias",
                                "4.0.shortcut.1.weight", "4.0.shortcut.1.bias", "5.weight", "5.bias"}));
  const auto& p = network.parameters();
  EXPECT_TRUE(p.value(0).shape() == Shape({3, 5, 3, 4}));
  EXPECT_TRUE(p.value(1).shape() == Shape({4}));
  EXPECT_TRUE(p.value(4).shape() == Shape({1, 1, 4, 4}));
  EXPECT_TRUE(p.value(p.find("5.weight")).shape() == Shape({2, 4}));
  EXPECT_EQ(p.size(), network.model().parameter_count());
}

TYPED_TEST(NetworkOf, NtkWithoutBiasVarianceHasNoBiases) {
  const Model model = parse("dense(3) relu dense(2)", {4});
  const Network<TypeParam> without(model, {.parameterization = Parameterization::Ntk});
  EXPECT_EQ(names(without), (std::vector<std::string>{"0.weight", "2.weight"}));
  const Network<TypeParam> with(model, {.parameterization = Parameterization::Ntk, .bias_variance = 0.1});
  EXPECT_EQ(names(with), (std::vector<std::string>{"0.weight", "0.bias", "2.weight", "2.bias"}));
  const Network<TypeParam> standard(model, {});
  ASSERT_EQ(names(standard), names(with));
  for (const TypeParam b : standard.parameters().value(1).span()) EXPECT_EQ(b, 0);
}

TEST(Network, DrawsWithTheRightVariance) {
  struct Case {
    Parameterization parameterization;
    double weight_variance, bias_variance;
    double weight, bias;  // expected variances
  };
  for (const auto& [text, input, fan_in] : std::vector<std::tuple<std::string, Shape, double>>{
           {"dense(3000)", {200}, 200}, {"conv(3000,3x2) gap", {5, 5, 16}, 96}}) {
    for (const Case& c : {Case{Parameterization::Standard, 2, 0.25, 2 / fan_in, 0.25},
                          Case{Parameterization::Standard, 1, 1, 1 / fan_in, 1},
                          Case{Parameterization::Ntk, 2, 0.25, 1, 1}}) {
      const Network<double> network(parse(text, input), {.parameterization = c.parameterization,
                                                         .weight_variance = c.weight_variance,
                                                         .bias_variance = c.bias_variance,
                                                         .seed = 3});
      const std::array expected{c.weight, c.bias};
      for (std::size_t i = 0; i < 2; ++i) {
        const auto values = network.parameters().value(i).span();
        double sum = 0;
        double squares = 0;
        for (const double v : values) {
          sum += v;
          squares += v * v;
        }
        const auto n = static_cast<double>(values.size());
        SCOPED_TRACE(text + " " + network.parameters().name(i));
        // Five standard errors of the mean and of the variance of a normal sample.
        EXPECT_NEAR(sum / n, 0, 5 * std::sqrt(expected[i] / n));
        EXPECT_NEAR(squares / n, expected[i], 5 * expected[i] * std::sqrt(2 / n));
      }
    }
  }
}

TEST(Network, DrawsTheSameBitsEverywhere) {
  // Committed values, which an independent program (Philox, AS 241) gives too: a change of these is a change
  // of every result that names a seed.
  const Network<double> network(parse("conv(2,1x2) gap dense(3)", {3, 3, 2}),
                                {.bias_variance = 0.5, .seed = 7});
  const auto bits = [&](const char* name, std::size_t i) {
    return std::bit_cast<std::uint64_t>(
        network.parameters().value(network.parameters().find(name)).data()[i]);
  };
  EXPECT_EQ(bits("0.weight", 0), 0xbfc481ee3c818b54U);
  EXPECT_EQ(bits("0.weight", 1), 0x3fc4ebf5db148bb2U);
  EXPECT_EQ(bits("0.weight", 7), 0x3fc002dcc24c9700U);
  EXPECT_EQ(bits("0.bias", 1), 0xbf990c3ffb66b087U);
  EXPECT_EQ(bits("2.weight", 5), 0xbff1d5ee401f0c4bU);
  EXPECT_EQ(bits("2.bias", 2), 0xbfea5cd54f18c4beU);
}

TEST(Network, DrawsInPytorchsOrderWhateverTheLayout) {
  // The same fan-in and slot: a convolution's numbers in the order [out, in, h, w] are the dense layer's
  // [out, in].
  const Network<double> conv(parse("conv(3,2x3) gap", {4, 4, 5}), {.seed = 11});
  const Network<double> dense(parse("dense(3)", {30}), {.seed = 11});
  const auto w = conv.parameters().value(0);
  const auto v = dense.parameters().value(0);
  for (std::size_t o = 0; o < 3; ++o) {
    for (std::size_t i = 0; i < 5; ++i) {
      for (std::size_t y = 0; y < 2; ++y) {
        for (std::size_t x = 0; x < 3; ++x) EXPECT_EQ(w(y, x, i, o), v(o, (i * 2 + y) * 3 + x));
      }
    }
  }
}

TEST(Network, DrawsDependOnSeedAndLayerAlone) {
  const Shape input{6};
  const auto weights = [&](const std::string& text, const NetworkOptions& options, const char* name) {
    const Network<double> network(parse(text, input), options);
    const auto values = network.parameters().value(network.parameters().find(name)).span();
    return std::vector<double>(values.begin(), values.end());
  };
  const auto base = weights("dense(4) relu dense(4)", {.seed = 1}, "2.weight");
  EXPECT_EQ(weights("dense(4,bias=false) relu tanh dense(4)", {.seed = 1}, "3.weight"), base);
  EXPECT_EQ(weights("dense(4) relu dense(4)", {.bias_variance = 1, .seed = 1}, "2.weight"), base);
  EXPECT_NE(weights("dense(4) relu dense(4)", {.seed = 2}, "2.weight"), base);
  EXPECT_NE(weights("dense(4) relu dense(4) dense(4)", {.seed = 1}, "3.weight"), base);
  // f32 weights are the rounded f64 ones.
  const Network<float> rounded(parse("dense(4) relu dense(4)", input), {.seed = 1});
  for (std::size_t i = 0; i < base.size(); ++i) {
    EXPECT_EQ(rounded.parameters().value(2).data()[i], static_cast<float>(base[i]));
  }
}

TYPED_TEST(NetworkOf, ClonesApart) {
  Network<TypeParam> network(parse("dense(4)", {3}), {.seed = 5});
  Network<TypeParam> copy = network.clone();
  EXPECT_TRUE(copy.model() == network.model());
  EXPECT_EQ(copy.options().seed, 5U);
  const TypeParam before = network.parameters().value(0).data()[0];
  copy.parameters().value(0).data()[0] = 100;
  EXPECT_EQ(network.parameters().value(0).data()[0], before);
}

TEST(Network, RefusesVariancesOutOfRange) {
  const Model model = parse("dense(2)", {3});
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double bad : {0.0, -1.0, 1e-31, 1e31, nan, infinity}) {
    EXPECT_THROW(Network<float>(model, {.weight_variance = bad}), ArgumentError) << bad;
  }
  for (const double bad : {-1.0, 1e-31, 1e31, nan, infinity}) {
    EXPECT_THROW(Network<float>(model, {.bias_variance = bad}), ArgumentError) << bad;
  }
}

TEST(Network, NamesParameterizations) {
  for (const Parameterization p : {Parameterization::Standard, Parameterization::Ntk}) {
    EXPECT_EQ(parse_parameterization(parameterization_name(p)), p);
  }
  try {
    parse_parameterization("NTK");
    FAIL();
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(), "parameterization: found 'NTK', expected standard or ntk");
  }
}

TYPED_TEST(NetworkOf, ForwardChecksTheInputs) {
  const Network<TypeParam> network(parse("conv(2,3) gap", {6, 5, 2}), {});
  Arena arena;
  Tape<TypeParam> tape(arena);
  const Tensor<TypeParam> wrong({4, 5, 6, 2});
  try {
    network.forward(tape, tape.input(wrong.view()));
    FAIL();
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(),
                 "network: forward: found inputs [4, 5, 6, 2], expected [examples] followed by [6, 5, 2]");
  }
  const Tensor<TypeParam> flat({4, 60});
  EXPECT_THROW(network.forward(tape, tape.input(flat.view())), ShapeError);
  const Tensor<TypeParam> right({4, 6, 5, 2});
  EXPECT_TRUE(tape.shape(network.forward(tape, tape.input(right.view()))) == Shape({4, 2}));
}

/// Standard weights are sigma_w / sqrt(fan_in) times the NTK ones of the same seed, and biases sigma_b times:
/// the same function. `scale` multiplies one weight, for the negative control.
template <class T>
double disagreement(const testing::RandomModel& made, std::uint64_t seed, T scale = 1) {
  const Model model(made.layers, made.input);
  NetworkOptions options{.weight_variance = 1.7, .bias_variance = 0.3, .seed = seed};
  const Network<T> standard(model, options);
  options.parameterization = Parameterization::Ntk;
  Network<T> ntk(model, options);
  ntk.parameters().value(ntk.parameters().count() - 1).data()[0] *= scale;
  const Tensor<T> x = normal<T>(made.input.with_outer(3), seed);
  const std::vector<T> a = outputs(standard, x);
  const std::vector<T> b = outputs(ntk, x);
  EXPECT_EQ(a.size(), 3 * model.outputs());
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  double size = 1;
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(std::isfinite(a[i]));
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    size = std::max(size, std::abs(static_cast<double>(a[i])));
  }
  return largest / size;
}

TYPED_TEST(NetworkOf, BothParameterizationsAreTheSameFunction) {
  constexpr std::uint64_t kSeed = 40;
  this->RecordProperty("seed", std::to_string(kSeed));
  // Rounding differs between the two, and grows with depth; kinks do no harm, since values are continuous.
  testing::RandomModelMaker maker(kSeed);
  for (int i = 0; i < 100; ++i) {
    const testing::RandomModel made = maker.next();
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", model " << i << " on "
                                      << made.input.to_string() << ": " << made.text);
    const double tolerance = 2000 * static_cast<double>(std::numeric_limits<TypeParam>::epsilon());
    EXPECT_TRUE(disagreement<TypeParam>(made, kSeed + i) <= tolerance)
        << disagreement<TypeParam>(made, kSeed + i);
  }
}

TEST(Network, ParameterizationCheckCanFail) {
  testing::RandomModel made;
  made.input = {5};
  made.layers = parse("dense(4) tanh dense(2)", {5}).layers();
  EXPECT_TRUE(disagreement<double>(made, 1) <= 1e-14);
  EXPECT_TRUE(disagreement<double>(made, 1, 1.001) > 1e-6);
}

TEST(Network, BothPrecisionsAreTheSameFunction) {
  constexpr std::uint64_t kSeed = 41;
  RecordProperty("seed", std::to_string(kSeed));
  testing::RandomModelMaker maker(kSeed);
  for (int i = 0; i < 100; ++i) {
    const testing::RandomModel made = maker.next();
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", model " << i << ": " << made.text);
    const Model model(made.layers, made.input);
    const Tensor<float> x = normal<float>(made.input.with_outer(3), 1);
    Tensor<double> exact(x.shape());
    for (std::size_t k = 0; k < x.size(); ++k) exact.data()[k] = x.data()[k];
    const std::vector<float> a = outputs(Network<float>(model, {.bias_variance = 0.1, .seed = 3}), x);
    const std::vector<double> b = outputs(Network<double>(model, {.bias_variance = 0.1, .seed = 3}), exact);
    double size = 1;
    for (const double v : b) size = std::max(size, std::abs(v));
    for (std::size_t k = 0; k < a.size(); ++k) EXPECT_NEAR(a[k], b[k], 1e-4 * size);
  }
}

TYPED_TEST(NetworkOf, BlocksDoNotMatter) {
  const Network<TypeParam> network(parse("cnn3:channels=5,outputs=3", {9, 11, 3}), {.seed = 2});
  const Tensor<TypeParam> x = normal<TypeParam>({5, 9, 11, 3}, 8);
  const std::vector<TypeParam> whole = outputs(network, x);
  for (std::size_t i = 0; i < 5; ++i) {
    const Tensor<TypeParam> one({1, 9, 11, 3}, std::as_const(x).view().slice(i, i + 1).span());
    const std::vector<TypeParam> y = outputs(network, one);
    for (std::size_t k = 0; k < 3; ++k) EXPECT_EQ(y[k], whole[i * 3 + k]);
  }
}

TEST(Network, RefusesLayersOfTheInfiniteReadingByName) {
  for (const char* const layer : {"cos", "sign", "monomial(2)", "layernorm", "dropout(0.5)"}) {
    const Model model = parse("dense(4) " + std::string(layer) + " dense(1)", {3});
    try {
      const Network<double> network(model, {});
      FAIL() << layer;
    } catch (const ArgumentError& error) {
      EXPECT_NE(std::string(error.what()).find("layer 1 '" + std::string(layer) + "'"), std::string::npos)
          << error.what();
    }
  }
}

TEST(Network, LayersScaleTheirOwnWeights) {
  for (const Parameterization parameterization : {Parameterization::Standard, Parameterization::Ntk}) {
    NetworkOptions options;
    options.parameterization = parameterization;
    options.weight_variance = 2.25;
    options.bias_variance = 0.25;
    const Network<double> common(parse("dense(4) tanh dense(1)", {3}), options);
    options.weight_variance = 1;
    options.bias_variance = 4;
    const Network<double> own(
        parse("dense(4,sigma_w=1.5,sigma_b=0.5) tanh dense(1,sigma_w=1.5,sigma_b=0.5)", {3}), options);
    const std::vector<double> x{0.3, -1, 2};
    Arena arena;
    const auto value = [&](const Network<double>& network) {
      Tape<double> tape(arena, false);
      const Var y = network.forward(tape, tape.input(TensorView<const double>(x.data(), Shape{1, 3})));
      return tape.value(y)(0, 0);
    };
    EXPECT_EQ(value(common), value(own));
  }
}

}  // namespace
}  // namespace gradgram::models
