#include "models/price.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/models/random_model.hpp"

namespace gradgram::models {
namespace {

TEST(Price, PricesEveryLayerByHand) {
  const Model model = parse(
      "conv(8,3x5,stride=2,pad=1,bias=false) relu residual(conv(8,3) tanh | conv(8,1)) maxpool(2) gap "
      "dense(4)",
      {9, 11, 3});
  // conv: rows (9+2-3)/2+1 = 5, columns (11+2-5)/2+1 = 5
  const std::vector<LayerPrice> prices = price(model);
  ASSERT_EQ(prices.size(), 9U);
  const std::vector<std::string> names{"0", "1", "2.0", "2.1", "2.shortcut.0", "2", "3", "4", "5"};
  for (std::size_t i = 0; i < names.size(); ++i) EXPECT_EQ(prices[i].name, names[i]);

  EXPECT_EQ(prices[0].text, "conv(8,3x5,stride=2,pad=1,bias=false)");
  EXPECT_TRUE(prices[0].in == Shape({9, 11, 3}));
  EXPECT_TRUE(prices[0].out == Shape({5, 5, 8}));
  EXPECT_EQ(prices[0].positions, 25U);
  EXPECT_EQ(prices[0].d_in, 45U);
  EXPECT_EQ(prices[0].d_out, 8U);
  EXPECT_EQ(prices[0].taps, 15U);
  EXPECT_EQ(prices[0].parameters, 360U);
  EXPECT_EQ(prices[0].flop, 2.0 * 25 * 45 * 8);

  EXPECT_EQ(prices[1].positions, 0U);
  EXPECT_EQ(prices[1].parameters, 0U);
  EXPECT_EQ(prices[1].flop, 200.0);

  EXPECT_EQ(prices[2].flop, 2.0 * 25 * 72 * 8 + 200);
  EXPECT_EQ(prices[2].parameters, 72U * 8 + 8);
  EXPECT_EQ(prices[4].d_in, 8U);
  EXPECT_EQ(prices[5].text, "residual");
  EXPECT_EQ(prices[5].flop, 200.0);

  EXPECT_TRUE(prices[6].out == Shape({2, 2, 8}));
  EXPECT_EQ(prices[6].flop, 2.0 * 2 * 8 * 4);
  EXPECT_EQ(prices[7].flop, 32.0);

  EXPECT_EQ(prices[8].positions, 1U);
  EXPECT_EQ(prices[8].taps, 1U);
  EXPECT_EQ(prices[8].parameters, 8U * 4 + 4);
  EXPECT_EQ(prices[8].flop, 2.0 * 8 * 4 + 4);
}

TEST(Price, AgreesWithTheModelOnParametersAndShapes) {
  constexpr std::uint64_t kSeed = 30;
  RecordProperty("seed", std::to_string(kSeed));
  testing::RandomModelMaker maker(kSeed);
  for (int i = 0; i < 300; ++i) {
    const testing::RandomModel made = maker.next();
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", model " << i << ": " << made.text);
    const Model model(made.layers, made.input);
    std::size_t parameters = 0;
    std::size_t top = 0;
    for (const LayerPrice& one : price(model)) {
      parameters += one.parameters;
      if (one.name.find('.') == std::string::npos) {
        EXPECT_EQ(one.name, std::to_string(top));
        EXPECT_TRUE(one.out == model.output(top));
        ++top;
      }
      EXPECT_EQ(one.positions * one.d_out, one.positions == 0 ? 0 : one.out.size());
    }
    EXPECT_EQ(top, model.layers().size());
    EXPECT_EQ(parameters, model.parameter_count());
  }
}

}  // namespace
}  // namespace gradgram::models
