#include "ntk/projection.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

#include "tests/ntk/kernel_cases.hpp"

namespace gradgram::ntk {
namespace {

using kernel_cases::Case;

/// Over seeds, for each entry: the mean is k_ij, the spread is as stated. `factor` corrupts the estimates.
struct Spread {
  double worst_bias = 0;      ///< largest |mean - k_ij| in standard errors of the mean
  double worst_variance = 0;  ///< largest variance over its bound (k_ii k_jj + k_ij^2) / d
  double mean_variance = 0;   ///< mean over entries of the same ratio
  double beyond = 0;          ///< share of entries beyond distortion_95
};

template <class T>
Spread spread(const Case& c, Reduce reduce, std::size_t d, double factor) {
  const auto module = kernel_cases::module_of<T>(c);
  const std::size_t n = 7;
  const std::size_t seeds = 300;
  const auto x = kernel_cases::inputs_of<T>(c.input, n, 1);
  const auto labels = kernel_cases::labels_of(n, module->outputs(), 3);
  const Workers workers(1);
  KernelOptions exact;
  exact.reduce = reduce;
  exact.output = module->outputs() - 1;
  exact.labels = labels;
  const auto k = kernel<T>(*module, x, exact, workers).values;
  Tensor<double> sums(Shape{n, n});
  Tensor<double> squares(Shape{n, n});
  Spread result;
  for (std::size_t seed = 0; seed < seeds; ++seed) {
    ProjectionOptions options;
    options.dimension = d;
    options.seed = seed;
    options.reduce = reduce;
    options.output = module->outputs() - 1;
    options.labels = labels;
    const auto projected = project_gradients<T>(*module, x, options, workers);
    const auto estimate = approximate_kernel(projected, workers);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        const double error = factor * double(estimate(i, j)) - double(k(i, j));
        sums(i, j) += error;
        squares(i, j) += error * error;
        result.beyond +=
            std::abs(error) > projected.distortion_95() * std::sqrt(double(k(i, i)) * double(k(j, j)));
      }
    }
  }
  const auto count = static_cast<double>(seeds);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      const double mean = sums(i, j) / count;
      const double variance = squares(i, j) / count - mean * mean;
      const double bound =
          (double(k(i, i)) * double(k(j, j)) + double(k(i, j)) * double(k(i, j))) / static_cast<double>(d);
      result.worst_bias = std::max(result.worst_bias, std::abs(mean) / std::sqrt(variance / count));
      result.worst_variance = std::max(result.worst_variance, variance / bound);
      result.mean_variance += variance / bound / static_cast<double>(n * n);
    }
  }
  result.beyond /= count * static_cast<double>(n * n);
  return result;
}

TEST(Projection, IsUnbiasedAndAsWideAsStated) {
  const auto cases = kernel_cases::all();
  const auto check = [&](const Spread& right, const Spread& wrong) {
    EXPECT_LE(right.worst_bias, 5.0);  // of 28 entries
    // A variance from 300 samples is off by some 10 %, more where tails are heavy.
    EXPECT_LE(right.worst_variance, 1.5);
    EXPECT_GE(right.mean_variance, 0.3);  // the bound is not idle
    EXPECT_LE(right.beyond, 0.05);
    EXPECT_FALSE(wrong.worst_bias <= 5.0);
  };
  check(spread<double>(cases[1], Reduce::TraceMean, 61, 1),
        spread<double>(cases[1], Reduce::TraceMean, 61, 1.1));
  check(spread<float>(cases[1], Reduce::TrueClass, 61, 1),
        spread<float>(cases[1], Reduce::TrueClass, 61, 1.1));
  check(spread<float>(cases[2], Reduce::TraceSum, 127, 1),
        spread<float>(cases[2], Reduce::TraceSum, 127, 1.1));
  check(spread<double>(cases[5], Reduce::Output, 127, 1), spread<double>(cases[5], Reduce::Output, 127, 1.1));
}

TEST(Projection, ComesNearerWithMoreDimensions) {
  const Case c = kernel_cases::all()[5];
  const auto module = kernel_cases::module_of<double>(c);
  const auto x = kernel_cases::inputs_of<double>(c.input, 19, 1);
  const Workers workers(2);
  const auto k = kernel<double>(*module, x, {}, workers).values;
  const auto error = [&](std::size_t d) {
    const auto projected = project_gradients<double>(*module, x, {.dimension = d}, workers);
    const auto estimate = approximate_kernel(projected, workers);
    double squares = 0;
    for (std::size_t i = 0; i < 19; ++i) {
      for (std::size_t j = 0; j < 19; ++j) {
        squares += std::pow(estimate(i, j) - k(i, j), 2) / (k(i, i) * k(j, j));
      }
    }
    return std::sqrt(squares) / 19 / projected.standard_distortion();
  };
  // In units of what is stated the error stays the same: it falls with 1 / sqrt(d).
  for (const std::size_t d : {31, 500, 8191}) {
    EXPECT_LE(error(d), 1.5) << d;
    EXPECT_GE(error(d), 0.2) << d;
  }
}

template <class T>
void same_bits(const Case& c, std::size_t n) {
  SCOPED_TRACE(c.name);
  const auto module = kernel_cases::module_of<T>(c);
  const auto x = kernel_cases::inputs_of<T>(c.input, n, 1);
  const auto run = [&](std::size_t threads, std::uint64_t seed, std::size_t memory) {
    const Workers workers(threads);
    const auto projected =
        project_gradients<T>(*module, x, {.dimension = 97, .seed = seed, .memory = memory}, workers);
    return std::make_pair(projected.features.clone(), approximate_kernel(projected, workers));
  };
  const auto first = run(1, 5, 0);
  const auto equal = [&](const auto& other) {
    return std::memcmp(first.first.data(), other.first.data(), n * 97 * sizeof(T)) == 0 &&
           std::memcmp(first.second.data(), other.second.data(), n * n * sizeof(T)) == 0;
  };
  EXPECT_TRUE(equal(run(2, 5, 0)));
  EXPECT_TRUE(equal(run(7, 5, 0)));
  EXPECT_FALSE(equal(run(1, 6, 0)));
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < i; ++j) EXPECT_EQ(first.second(i, j), first.second(j, i));
  }
  std::size_t least = 0;
  try {
    run(1, 5, 1);
    ADD_FAILURE() << "one byte sufficed";
  } catch (const BudgetError& error) {
    const std::string text = error.what();
    const std::string before = "the least that would do is ";
    ASSERT_NE(text.find(before), std::string::npos) << text;
    least = std::stoull(text.substr(text.find(before) + before.size()));
  }
  EXPECT_TRUE(equal(run(1, 5, least)));
  EXPECT_THROW(run(1, 5, least - 1), BudgetError);
}

TEST(Projection, SameBitsForAnyThreads) {
  const auto cases = kernel_cases::all();
  same_bits<float>(cases[1], 301);
  same_bits<double>(cases[2], 53);
  same_bits<float>(cases[4], 37);
}

TEST(Projection, SaysThatItIsApproximate) {
  const Case c = kernel_cases::all()[1];
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 3, 1);
  const Workers workers(1);
  const auto projected = project_gradients<float>(*module, x, {.dimension = 4096, .seed = 17}, workers);
  EXPECT_EQ(projected.label(),
            "approximate: gradients projected to 4096 dimensions (CountSketch, seed 17), entry error at most "
            "0.0221 sqrt(k_ii k_jj) (one standard deviation)");
  EXPECT_EQ(projected.reduce, "trace-mean");
  EXPECT_NEAR(projected.distortion_95(), std::sqrt(2 / 4096.0 / 0.05), 1e-12);
}

TEST(Projection, Refuses) {
  const Case c = kernel_cases::all()[1];
  const auto module = kernel_cases::module_of<float>(c);
  auto x = kernel_cases::inputs_of<float>(c.input, 10, 1);
  const Workers workers(1);
  EXPECT_THROW(project_gradients<float>(*module, x, {.reduce = Reduce::Full}, workers), ArgumentError);
  EXPECT_THROW(project_gradients<float>(*module, x, {.dimension = 0}, workers), ArgumentError);
  EXPECT_THROW(project_gradients<float>(*module, x, {.reduce = Reduce::Output, .output = 3}, workers),
               ArgumentError);
  const Tensor<float> nothing(Shape{0, 5});
  EXPECT_EQ(project_gradients<float>(*module, nothing, {}, workers).features.shape(), (Shape{0, 4096}));
  x(4, 0) = INFINITY;
  EXPECT_THROW(project_gradients<float>(*module, x, {}, workers), NumericError);
}

}  // namespace
}  // namespace gradgram::ntk
