#include "ntk/statistics.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "engine/error.hpp"
#include "engine/random.hpp"

namespace gradgram::ntk {
namespace {

using testing::ElementsAre;
using Values = std::vector<double>;
using Classes = std::vector<std::int32_t>;

TEST(Statistics, TiedRanksAreAveraged) {
  EXPECT_THAT(average_ranks(Values{10, 20, 10, 5, 20, 20}), ElementsAre(2.5, 5, 2.5, 1, 5, 5));
  EXPECT_THAT(average_ranks(Values{}), ElementsAre());
  EXPECT_THAT(average_ranks(Values{7}), ElementsAre(1));
  EXPECT_THAT(average_ranks(Values{0.0, -0.0, -1}), ElementsAre(2.5, 2.5, 1));
  EXPECT_THROW(average_ranks(Values{1, std::nan("")}), NumericError);
}

// By hand: ranks x = 1, 2.5, 2.5, 4 and y = 2, 1, 3.5, 3.5; deviations -1.5, 0, 0, 1.5 and -0.5, -1.5, 1, 1;
// products sum to 0.75 + 1.5 = 2.25, squares to 4.5 and 4.5: 2.25 / 4.5 = 1/2. The formula without ties,
// 1 - 6 sum d^2 / (n (n^2 - 1)) with d = -1, 1.5, -1, 0.5, would give 0.55.
TEST(Statistics, SpearmanWithTiesByHand) {
  EXPECT_NEAR(spearman(Values{1, 2, 2, 3}, Values{5, 4, 9, 9}), 0.5, 1e-15);
  EXPECT_EQ(spearman(Values{1, 2, 3}, Values{2, 20, 200}), 1);
  EXPECT_EQ(spearman(Values{1, 2, 3}, Values{2, -20, -200}), -1);
  EXPECT_EQ(spearman(Values{1, 2, 3}, Values{4, 4, 4}), 0);
  EXPECT_EQ(spearman(Values{}, Values{}), 0);
  EXPECT_THROW(spearman(Values{1}, Values{1, 2}), ShapeError);
  EXPECT_THROW(spearman(Values{1, INFINITY}, Values{1, 2}), NumericError);
}

TEST(Statistics, CorrelationByHand) {
  // Deviations -1, 0, 1 and -4/3, -1/3, 5/3: 3 / sqrt(2 * 42/9).
  EXPECT_NEAR(correlation(Values{1, 2, 3}, Values{1, 2, 4}), 3 / std::sqrt(2 * 42.0 / 9), 1e-15);
  // The mean of three 0.1 is not 0.1: a constant must still count as one.
  EXPECT_EQ(correlation(Values{0.1, 0.1, 0.1}, Values{1, 2, 4}), 0);
}

TEST(Statistics, PartialCorrelationByHand) {
  const Values x{1, 2, 3, 4};
  const Values y{2, 1, 4, 3};
  const Values z{1, 3, 2, 4};
  // r_xy = 0.6, r_xz = 0.8, r_yz = 0 (1 - 6 sum d^2 / 60 with sum d^2 = 4, 2, 10).
  EXPECT_NEAR(partial_spearman(x, y, z), 0.6 / 0.6, 1e-12);
  EXPECT_EQ(partial_spearman(x, y, x), 0);
  EXPECT_EQ(partial_spearman(x, y, Values{5, 5, 5, 5}), spearman(x, y));
}

TEST(Statistics, WithinClassesIgnoresTheDifferenceBetweenThem) {
  // Perfectly falling in each class, rising between them.
  const Values x{1, 2, 3, 11, 12, 13};
  const Values y{3, 2, 1, 13, 12, 11};
  const Classes classes{0, 0, 0, 1, 1, 1};
  EXPECT_GT(spearman(x, y), 0.5);
  EXPECT_EQ(spearman_within(x, y, classes), -1);
  EXPECT_EQ(spearman_within(x, y, Classes{0, 0, 1, 1, 2, 2}), 0);
  // Class 0 (4 members): -1; class 1 (3 members): +1; the lone one is left out.
  EXPECT_NEAR(spearman_within(Values{1, 2, 3, 4, 1, 2, 3, 9}, Values{4, 3, 2, 1, 1, 2, 3, 9},
                              Classes{0, 0, 0, 0, 1, 1, 1, 2}),
              -1.0 / 7, 1e-15);
}

TEST(Statistics, CorrelationRatioByHand) {
  EXPECT_EQ(correlation_ratio(Values{1, 1, 5, 5}, Classes{0, 0, 1, 1}), 1);
  EXPECT_EQ(correlation_ratio(Values{1, 5, 1, 5}, Classes{0, 0, 1, 1}), 0);
  // Means 2 and 5, of all 3.5: between 4 * 1.5^2 = 9; total 6.25 + 0.25 + 0.25 + 6.25 = 13.
  EXPECT_NEAR(correlation_ratio(Values{1, 3, 4, 6}, Classes{7, 7, -2, -2}), 9.0 / 13, 1e-15);
  EXPECT_EQ(correlation_ratio(Values{2, 2}, Classes{0, 1}), 0);
}

// For independent normal samples the standard error of Spearman's rho is 1 / sqrt(n - 1).
TEST(Statistics, TheBootstrapFindsTheKnownStandardError) {
  Random random(5);
  const std::size_t n = 400;
  Values x(n);
  Values y(n);
  for (std::size_t i = 0; i < n; ++i) {
    x[i] = random.normal();
    y[i] = random.normal();
  }
  const double error = spearman_standard_error(x, y, 1000, 3);
  // The bootstrap's own scatter: 1 / sqrt(2 * 1000) of its value, and the sample's kurtosis; 15 % is four of
  // them.
  EXPECT_NEAR(error, 1 / std::sqrt(399.0), 0.15 / std::sqrt(399.0));
  EXPECT_EQ(error, spearman_standard_error(x, y, 1000, 3));
  EXPECT_NE(error, spearman_standard_error(x, y, 1000, 4));
}

// The O(n) ranks by counting against spearman() itself on the resamples, redrawn here.
TEST(Statistics, TheBootstrapIsTheStandardDeviationOverResamples) {
  const Values x{1, 2, 2, 3, 5, 5, 8};
  const Values y{2, 1, 2, 2, 9, 4, 4};
  Random random(17);
  Values rho;
  for (int sample = 0; sample < 50; ++sample) {
    Values xs;
    Values ys;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t drawn = random.below(x.size());
      xs.push_back(x[drawn]);
      ys.push_back(y[drawn]);
    }
    rho.push_back(spearman(xs, ys));
  }
  double mean = 0;
  for (const double value : rho) mean += value / 50;
  double squares = 0;
  for (const double value : rho) squares += (value - mean) * (value - mean);
  EXPECT_NEAR(spearman_standard_error(x, y, 50, 17), std::sqrt(squares / 49), 1e-12);
  EXPECT_EQ(spearman_standard_error(Values{1, 1, 1}, Values{1, 2, 3}, 10), 0);
  EXPECT_THROW(spearman_standard_error(x, y, 1), ArgumentError);
}

}  // namespace
}  // namespace gradgram::ntk
