#include "ntk/monte_carlo.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "engine/error.hpp"
#include "engine/random.hpp"
#include "ntk/infinite/infinite.hpp"

namespace gradgram::ntk {
namespace {

Tensor<double> inputs(std::size_t n, std::size_t features, std::uint64_t seed) {
  Random random(seed);
  Tensor<double> x(Shape{n, features});
  for (double& value : x.span()) value = random.normal();
  return x;
}

models::NetworkOptions ntk_options() {
  models::NetworkOptions options;
  options.parameterization = models::Parameterization::Ntk;
  options.weight_variance = 1.7;
  options.bias_variance = 0.1;
  return options;
}

TEST(MonteCarlo, IsTheMeanOfTheNetworksThatItNames) {
  const Workers workers(2);
  const models::Model model = models::parse("dense(7) relu dense(2)", Shape{4});
  const Tensor<double> x = inputs(5, 4, 1);
  const Tensor<double> z = inputs(3, 4, 2);
  MonteCarloOptions what;
  what.samples = 9;
  what.seed = 77;
  what.reduce = Reduce::Full;
  const MonteCarloKernel found =
      monte_carlo_kernel<double>(model, ntk_options(), x.view(), z.view(), what, workers);
  ASSERT_EQ(found.mean.shape(), (Shape{5, 3, 2, 2}));
  // Two passes over the stored samples.
  std::vector<Tensor<double>> samples;
  for (std::size_t i = 0; i < what.samples; ++i) {
    models::NetworkOptions options = ntk_options();
    options.seed = monte_carlo_seed(77, i);
    KernelOptions kernel_options;
    kernel_options.reduce = Reduce::Full;
    samples.push_back(std::move(
        kernel<double>(models::Network<double>(model, options), x.view(), z.view(), kernel_options, workers)
            .values));
  }
  for (std::size_t e = 0; e < found.mean.size(); ++e) {
    double mean = 0;
    for (const auto& sample : samples) mean += sample.data()[e] / 9;
    double squares = 0;
    for (const auto& sample : samples) squares += std::pow(sample.data()[e] - mean, 2);
    EXPECT_NEAR(found.mean.data()[e], mean, 1e-13);
    EXPECT_NEAR(found.standard_error.data()[e], std::sqrt(squares / 8 / 9), 1e-13);
  }
  EXPECT_GT(found.relative_error, 0);
  EXPECT_LT(found.relative_error, 1);
  EXPECT_GT(found.largest_error, 0);
}

// With one hidden layer a kernel is a mean over independent units, so that its expectation at any width is
// the limit: the error of the estimate is its standard error and nothing else.
TEST(MonteCarlo, StandardErrorsAreHonest) {
  const Workers workers(2);
  const models::Model model = models::parse("dense(16) relu dense(1)", Shape{4});
  const Tensor<double> x = inputs(5, 4, 3);
  InfiniteOptions both;
  both.nngp = true;
  const InfiniteKernels<double> limit = infinite_kernel<double>(model, ntk_options(), x, both, workers);
  for (const Estimated of : {Estimated::Tangent, Estimated::Covariance}) {
    const Tensor<double>& exact = of == Estimated::Tangent ? limit.ntk : limit.nngp;
    MonteCarloOptions what;
    what.samples = 600;
    what.seed = 5;
    what.what = of;
    const MonteCarloKernel found = monte_carlo_kernel<double>(model, ntk_options(), x, what, workers);
    double squares = 0;
    double shifted = 0;
    for (std::size_t e = 0; e < exact.size(); ++e) {
      const double z = (found.mean.data()[e] - exact.data()[e]) / found.standard_error.data()[e];
      EXPECT_LE(std::abs(z), 4.5);
      squares += z * z / static_cast<double>(exact.size());
      shifted +=
          std::pow((found.mean.data()[e] - 1.3 * exact.data()[e]) / found.standard_error.data()[e], 2) /
          static_cast<double>(exact.size());
    }
    // The entries are not independent; the mean square still lies near 1.
    EXPECT_LT(squares, 4);
    EXPECT_GT(squares, 0.05);
    EXPECT_GT(shifted, 4);  // negative control
  }
}

TEST(MonteCarlo, SameBitsForAnyNumberOfWorkersAndEverySampleItsOwnSeed) {
  const models::Model model = models::parse("conv(3,3) relu maxpool(2) gap dense(1)", Shape{4, 4, 2});
  Random random(4);
  Tensor<float> x(Shape{6, 4, 4, 2});
  for (float& value : x.span()) value = static_cast<float>(random.normal());
  MonteCarloOptions what;
  what.samples = 3;
  std::vector<MonteCarloKernel> found;
  for (const std::size_t threads : {1, 2, 7}) {
    const Workers workers(threads);
    found.push_back(monte_carlo_kernel<float>(model, ntk_options(), x, what, workers));
  }
  for (const MonteCarloKernel& other : found) {
    EXPECT_EQ(std::memcmp(found[0].mean.data(), other.mean.data(), other.mean.size() * sizeof(double)), 0);
    EXPECT_EQ(std::memcmp(found[0].standard_error.data(), other.standard_error.data(),
                          other.mean.size() * sizeof(double)),
              0);
  }
  std::set<std::uint64_t> seeds;
  for (std::size_t i = 0; i < 100; ++i) {
    seeds.insert(monte_carlo_seed(0, i));
    seeds.insert(monte_carlo_seed(1, i));
  }
  EXPECT_EQ(seeds.size(), 200);
}

TEST(MonteCarlo, SaysWhatIsWrong) {
  const Workers workers(1);
  const models::Model model = models::parse("dense(7) relu dense(1)", Shape{4});
  const Tensor<double> x = inputs(5, 4, 1);
  MonteCarloOptions what;
  what.samples = 1;
  EXPECT_THROW(monte_carlo_kernel<double>(model, ntk_options(), x, what, workers), ArgumentError);
  what.samples = 2;
  what.reduce = Reduce::TrueClass;
  EXPECT_THROW(monte_carlo_kernel<double>(model, ntk_options(), x, what, workers), ArgumentError);
  what.reduce = Reduce::TraceMean;
  what.memory = 100;
  EXPECT_THROW(monte_carlo_kernel<double>(model, ntk_options(), x, what, workers), BudgetError);
  what.memory = 0;
  std::stop_source source;
  source.request_stop();
  what.stop = source.get_token();
  EXPECT_THROW(monte_carlo_kernel<double>(model, ntk_options(), x, what, workers), Cancelled);
}

}  // namespace
}  // namespace gradgram::ntk
