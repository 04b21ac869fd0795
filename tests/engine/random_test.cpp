#include "engine/random.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace gradgram {
namespace {

TEST(Random, SameSeedAndStreamGiveTheSameNumbers) {
  Random a(7, 3);
  Random b(7, 3);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.bits(), b.bits());
}

TEST(Random, StreamsAndSeedsDiffer) {
  Random a(7, 3);
  Random b(7, 4);
  Random c(8, 3);
  const auto first = a.bits64();
  EXPECT_NE(first, b.bits64());
  EXPECT_NE(first, c.bits64());
}

// The known-answer test published with Philox4x32-10: counter 0, key 0 gives 6627e8d5 e169c58d bc57ac4c
// 9b00dbd8.
TEST(Random, MatchesThePublishedPhiloxAnswer) {
  Random random(0, 0);
  EXPECT_EQ(random.bits(), 0x9b00dbd8U);
  EXPECT_EQ(random.bits(), 0xbc57ac4cU);
  EXPECT_EQ(random.bits(), 0xe169c58dU);
  EXPECT_EQ(random.bits(), 0x6627e8d5U);
}

TEST(Random, UniformStaysInsideTheOpenInterval) {
  Random random(1);
  for (int i = 0; i < 10000; ++i) {
    const double u = random.uniform();
    EXPECT_TRUE(u > 0 && u < 1) << u;
  }
}

TEST(Random, NormalHasTheRightMomentsAndTails) {
  Random random(2);
  const int n = 400000;
  double sum = 0, squares = 0, fourth = 0;
  int beyond2 = 0;
  for (int i = 0; i < n; ++i) {
    const double z = random.normal();
    sum += z;
    squares += z * z;
    fourth += z * z * z * z;
    beyond2 += std::abs(z) > 2 ? 1 : 0;
  }
  EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 1, 5 * std::sqrt(2.0 / n));
  EXPECT_NEAR(fourth / n, 3, 5 * std::sqrt(96.0 / n));
  EXPECT_NEAR(static_cast<double>(beyond2) / n, std::erfc(2 / std::sqrt(2.0)), 5 * std::sqrt(0.0455 / n));
}

TEST(Random, PortableLogAgreesWithTheLibrary) {
  Random random(3);
  for (int i = 0; i < 10000; ++i) {
    const double x = std::exp2(200 * (random.uniform() - 0.5)) * random.uniform();
    EXPECT_LE(std::abs(portable_log(x) - std::log(x)), 4e-16 * std::abs(std::log(x)) + 1e-16) << x;
  }
  EXPECT_EQ(portable_log(1.0), 0.0);
  EXPECT_LE(std::abs(portable_log(5e-324) - std::log(5e-324)), 1e-12);
}

TEST(Random, BelowCoversItsRangeEvenly) {
  Random random(4);
  std::vector<int> counts(7);
  for (int i = 0; i < 70000; ++i) ++counts[random.below(7)];
  for (const int count : counts) EXPECT_NEAR(count, 10000, 5 * std::sqrt(10000 * 6.0 / 7));
}

}  // namespace
}  // namespace gradgram
