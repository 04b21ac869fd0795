#include "engine/parameters.hpp"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace gradgram {
namespace {

ParameterSet<double> two() {
  ParameterSet<double> parameters;
  EXPECT_EQ(
      parameters.add("0.weight", Tensor<double>(Shape{2, 3}, std::vector<double>{1, 2, 3, 4, 5, 1.0 / 3})),
      0U);
  EXPECT_EQ(parameters.add("0.bias", Tensor<double>(Shape{2}, std::vector<double>{7, 8})), 1U);
  return parameters;
}

TEST(ParameterSet, CountsNamesAndOffsets) {
  const ParameterSet<double> parameters = two();
  EXPECT_EQ(parameters.count(), 2U);
  EXPECT_EQ(parameters.size(), 8U);
  EXPECT_EQ(parameters.offset(0), 0U);
  EXPECT_EQ(parameters.offset(1), 6U);
  EXPECT_EQ(parameters.name(1), "0.bias");
  EXPECT_EQ(parameters.find("0.bias"), 1U);
  EXPECT_EQ(parameters.value(0)(1, 0), 4.0);
}

TEST(ParameterSet, RefusesUnknownAndTakenNames) {
  ParameterSet<double> parameters = two();
  EXPECT_THROW(parameters.find("1.bias"), ArgumentError);
  EXPECT_THROW(parameters.add("0.bias", Tensor<double>(Shape{1})), ArgumentError);
  EXPECT_EQ(parameters.size(), 8U);
}

TEST(ParameterSet, CopiesAreIndependent) {
  ParameterSet<double> parameters = two();
  ParameterSet<double> clone = parameters.clone();
  ParameterSet<double> zeros = parameters.zeros();
  clone.value(1)(0) = 70;
  EXPECT_EQ(parameters.value(1)(0), 7.0);
  EXPECT_EQ(zeros.name(0), "0.weight");
  EXPECT_EQ(zeros.offset(1), 6U);
  EXPECT_EQ(zeros.size(), 8U);
  for (const double value : zeros.value(0).span()) EXPECT_EQ(value, 0.0);
  clone.fill_zero();
  for (const double value : clone.value(1).span()) EXPECT_EQ(value, 0.0);
  EXPECT_EQ(parameters.value(1)(1), 8.0);
}

TEST(ParameterSet, CastRounds) {
  const ParameterSet<float> rounded = two().cast<float>();
  EXPECT_EQ(rounded.value(0)(1, 2), 1.0F / 3.0F);
  EXPECT_EQ(rounded.name(1), "0.bias");
  const ParameterSet<double> back = rounded.cast<double>();
  EXPECT_EQ(back.value(0)(1, 2), double(1.0F / 3.0F));
  EXPECT_EQ(back.value(0)(0, 1), 2.0);
}

}  // namespace
}  // namespace gradgram
