#include "datasets/synthetic.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numbers>
#include <vector>

#include "datasets/dataset.hpp"
#include "engine/error.hpp"
#include "tests/datasets/bytes.hpp"

namespace gradgram::datasets {
namespace {

using testing_files::expect_holds;
using testing_files::message;

/// The mean of f over all entries.
double mean(const Examples& examples, const std::function<double(double)>& f) {
  double sum = 0;
  for (std::size_t i = 0; i < examples.values.size(); ++i) sum += f(examples.values.at(i));
  return sum / static_cast<double>(examples.values.size());
}

double positive_share(const Examples& examples) {
  double sum = 0;
  for (const std::int32_t label : examples.labels) sum += label;
  return sum / static_cast<double>(examples.labels.size());
}

TEST(Synthetic, CircleIsEvenlySpacedAndLabelledByTheSignOfTheCosine) {
  for (const std::size_t n : {1UL, 2UL, 4UL, 7UL, 200UL}) {
    for (const int frequency : {0, 1, 3}) {
      for (const bool test : {false, true}) {
        const Examples examples =
            synthetic("circle:n=" + std::to_string(n) + ",frequency=" + std::to_string(frequency), 0, test);
        ASSERT_EQ(examples.size(), n);
        for (std::size_t i = 0; i < n; ++i) {
          const long double angle = 2 * std::numbers::pi_v<long double> *
                                    (static_cast<long double>(i) + (test ? 0.5L : 0.0L)) /
                                    static_cast<long double>(n);
          // The angle, up to 2 pi, is rounded twice: 2 x 4.4e-16 and more from the functions.
          EXPECT_NEAR(examples.values.at(2 * i), static_cast<double>(std::cos(angle)), 3e-15);
          EXPECT_NEAR(examples.values.at(2 * i + 1), static_cast<double>(std::sin(angle)), 3e-15);
          const double wave = static_cast<double>(std::cos(frequency * angle));
          // Within rounding of zero the label is 1: zero counts as positive.
          EXPECT_EQ(examples.labels[i], wave > -1e-12 ? 1 : 0) << n << ' ' << frequency << ' ' << i;
        }
      }
    }
  }
}

TEST(Synthetic, MomentsOfTheDistributions) {
  // 200,000 entries: the standard error of a mean is below 0.0023 times the entry's deviation; five of them.
  const std::string size = ":n=20000,d=10";
  const auto square = [](double x) { return x * x; };
  for (const char* name : {"gaussian", "rademacher", "laplace"}) {
    const Examples examples = synthetic(name + size, 3, false);
    EXPECT_NEAR(mean(examples, [](double x) { return x; }), 0, 0.0115) << name;
    EXPECT_NEAR(mean(examples, square), 1, 0.026) << name;
    EXPECT_NEAR(positive_share(examples), 0.5, 0.02) << name;
  }
  const auto fourth = [](double x) { return x * x * x * x; };
  EXPECT_NEAR(mean(synthetic("gaussian" + size, 3, false), fourth), 3, 0.12);
  EXPECT_EQ(mean(synthetic("rademacher" + size, 3, false), fourth), 1);
  EXPECT_NEAR(mean(synthetic("laplace" + size, 3, false), fourth), 6, 0.6);
  // Student t with 3 degrees of freedom: P(|t| > 3.182) = 0.05; with 1 (Cauchy): P(|t| > 1) = 1/2.
  EXPECT_NEAR(
      mean(synthetic("student" + size, 3, false), [](double x) { return std::abs(x) > 3.18245 ? 1.0 : 0.0; }),
      0.05, 0.0025);
  EXPECT_NEAR(mean(synthetic("student:df=1,n=20000,d=10", 3, false),
                   [](double x) { return std::abs(x) > 1 ? 1.0 : 0.0; }),
              0.5, 0.006);
}

TEST(Synthetic, SphereHasUnitNormsInEveryDirection) {
  const Examples examples = synthetic("sphere:n=5000,d=3", 1, false);
  std::vector<double> sums(3, 0);
  for (std::size_t i = 0; i < 5000; ++i) {
    double norm = 0;
    for (std::size_t k = 0; k < 3; ++k) {
      const double x = examples.values.at(3 * i + k);
      norm += x * x;
      sums[k] += x * x / 5000;
    }
    EXPECT_NEAR(norm, 1, 1e-15 * 8);
  }
  for (const double sum : sums) EXPECT_NEAR(sum, 1.0 / 3, 0.025);
}

TEST(Synthetic, MoonsWithoutNoiseLieOnTheirCurves) {
  const Examples examples = synthetic("moons:n=101,noise=0", 1, false);
  for (std::size_t i = 0; i < 101; ++i) {
    const double x = examples.values.at(2 * i) - (examples.labels[i] == 1 ? 1 : 0);
    const double y = examples.values.at(2 * i + 1) - (examples.labels[i] == 1 ? 0.5 : 0);
    EXPECT_NEAR(x * x + y * y, 1, 1e-14);
    EXPECT_GE(examples.labels[i] == 1 ? -y : y, 0);
  }
  EXPECT_EQ(examples.class_names, (std::vector<std::string>{"upper", "lower"}));
}

TEST(Synthetic, SeedsDecideAndLargerSetsOnlyAppend) {
  for (const char* name : {"gaussian", "sphere", "student", "moons"}) {
    const Examples small = synthetic(std::string(name) + ":n=5", 7, false);
    const Examples large = synthetic(std::string(name) + ":n=50", 7, false);
    for (std::size_t i = 0; i < small.values.size(); ++i)
      EXPECT_EQ(small.values.at(i), large.values.at(i)) << name;
    EXPECT_TRUE(std::equal(small.labels.begin(), small.labels.end(), large.labels.begin())) << name;
    EXPECT_NE(small.values.bytes, synthetic(std::string(name) + ":n=5", 8, false).values.bytes) << name;
    EXPECT_NE(small.values.bytes, synthetic(std::string(name) + ":n=5", 7, true).values.bytes) << name;
  }
  // Portable to the bit: what any machine must give.
  const Examples known = synthetic("laplace:n=1,d=2", 42, false);
  EXPECT_EQ(known.values.at(0), 0x1.ccddf91e3ca01p-3);
  EXPECT_EQ(known.values.at(1), -0x1.dbeb3a3d76d47p-3);
}

TEST(Synthetic, OpensByNameWithTheUsualSteps) {
  const Dataset data = open("gaussian:n=30,d=4", {.limit = 10, .unit_norm = true, .seed = 9});
  EXPECT_EQ(data.inputs.shape(), (Shape{10, 4}));
  expect_holds(data.source, {"gaussian:n=30,d=4", "synthetic", "seed 9"});
  EXPECT_EQ(open("circle").size(), 200U);
  EXPECT_EQ(class_names("moons"), (std::vector<std::string>{"upper", "lower"}));
}

TEST(Synthetic, RefusesUnknownKeysAndValuesWithTheirPosition) {
  const auto refused = [](const std::string& text) {
    return message<ArgumentError>([&] { synthetic(text, 0, false); });
  };
  expect_holds(refused("ring"), {"'ring'", "circle"});
  expect_holds(refused("circle:d=3"), {"character 8", "n, frequency", "'d=3'"});
  expect_holds(refused("circle:n=3,n=4"), {"character 12", "once"});
  expect_holds(refused("circle:"), {"character 8"});
  expect_holds(refused("circle:n"), {"character 8", "'n'"});
  expect_holds(refused("circle:n=3,"), {"character 12"});
  for (const char* value : {"", "x", "0", "-1", "1.5", "nan", "inf", "1e30", "3x"}) {
    expect_holds(refused(std::string("circle:n=") + value), {"character 10", "whole number"});
  }
  expect_holds(refused("moons:noise=-1"), {"noise"});
  expect_holds(refused("gaussian:n=100000000,d=1000000"), {"n times d"});
}

}  // namespace
}  // namespace gradgram::datasets
