// What is predicted of infinitely wide networks against wide networks themselves: their kernels, the law of
// ensembles of them after training, and where training stops being stable.

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "engine/random.hpp"
#include "engine/training.hpp"
#include "models/network.hpp"
#include "ntk/infinite/infinite.hpp"
#include "ntk/kernel.hpp"
#include "ntk/monte_carlo.hpp"
#include "ntk/predict.hpp"

namespace gradgram::ntk {
namespace {

Tensor<double> normals(Shape shape, std::uint64_t seed) {
  Random random(seed);
  Tensor<double> result(shape);
  for (double& value : result.span()) value = random.normal();
  return result;
}

models::NetworkOptions options_of(std::uint64_t seed) {
  models::NetworkOptions options;
  options.parameterization = models::Parameterization::Ntk;
  options.weight_variance = 1.6;
  options.bias_variance = 0.1;
  options.seed = seed;
  return options;
}

std::string hidden(std::size_t width, const std::string& activation) {
  return "dense(" + std::to_string(width) + ") " + activation + " ";
}

Tensor<double> kernel_of(const models::Network<double>& network, TensorView<const double> x,
                         const Workers& workers) {
  return std::move(kernel<double>(network, x, KernelOptions{}, workers).values);
}

double distance(const Tensor<double>& a, const Tensor<double>& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(a.data()[i] - b.data()[i], 2);
    norm += b.data()[i] * b.data()[i];
  }
  return difference / norm;
}

struct Line {
  double slope = 0;
  double standard_error = 0;
};

/// Weighted least squares through points whose ordinates have these standard errors.
Line fit(const std::vector<double>& x, const std::vector<double>& y, const std::vector<double>& error) {
  double weight = 0;
  double mean_x = 0;
  double mean_y = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double w = 1 / (error[i] * error[i]);
    weight += w;
    mean_x += w * x[i];
    mean_y += w * y[i];
  }
  mean_x /= weight;
  mean_y /= weight;
  double xx = 0;
  double xy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double w = 1 / (error[i] * error[i]);
    xx += w * (x[i] - mean_x) * (x[i] - mean_x);
    xy += w * (x[i] - mean_x) * (y[i] - mean_y);
  }
  return {xy / xx, 1 / std::sqrt(xx)};
}

/// Of log(root mean square of ||K_width - limit|| / ||limit||) against log(width), over `seeds` networks
/// each.
Line slope_towards(const Tensor<double>& limit, TensorView<const double> x, const Workers& workers) {
  constexpr std::size_t kSeeds = 24;
  std::vector<double> log_width;
  std::vector<double> log_error;
  std::vector<double> error;
  for (const std::size_t width : {64, 128, 256, 512}) {
    const models::Model model =
        models::parse(hidden(width, "relu") + hidden(width, "relu") + "dense(1)", Shape{5});
    double mean = 0;
    double squares = 0;
    for (std::size_t seed = 0; seed < kSeeds; ++seed) {
      const models::Network<double> network(model, options_of(monte_carlo_seed(width, seed)));
      const double d = distance(kernel_of(network, x, workers), limit);
      mean += d / kSeeds;
      squares += d * d / kSeeds;
    }
    log_width.push_back(std::log(static_cast<double>(width)));
    log_error.push_back(std::log(mean) / 2);
    // d log(sqrt m) = dm / 2m.
    error.push_back(std::sqrt((squares - mean * mean) / (kSeeds - 1)) / (2 * mean));
  }
  return fit(log_width, log_error, error);
}

TEST(WideNetworks, KernelsTendToTheLimitAsTheRootOfTheWidth) {
  const Workers workers(2);
  const Tensor<double> x = normals(Shape{6, 5}, 11);
  const models::Model model = models::parse("dense(8) relu dense(8) relu dense(1)", Shape{5});
  Tensor<double> limit =
      std::move(infinite_kernel<double>(model, options_of(0), x, InfiniteOptions{}, workers).ntk);
  const Line line = slope_towards(limit, x, workers);
  RecordProperty("slope", std::to_string(line.slope) + " +- " + std::to_string(line.standard_error));
  EXPECT_LT(line.standard_error, 0.08);
  EXPECT_LE(std::abs(line.slope + 0.5), 3.5 * line.standard_error) << line.slope;
  // Negative control: to a limit that is off by a tenth they do not tend at that rate.
  for (double& value : limit.span()) value *= 1.1;
  const Line wrong = slope_towards(limit, x, workers);
  EXPECT_FALSE(std::abs(wrong.slope + 0.5) <= 3.5 * wrong.standard_error) << wrong.slope;
}

struct Way {
  Optimizer optimizer;
  Descent descent;
};
constexpr Way kWays[] = {{Optimizer::Sgd, Descent::Steps},
                         {Optimizer::Momentum, Descent::HeavyBall},
                         {Optimizer::Nesterov, Descent::Nesterov}};

Tensor<double> train(models::Network<double>& network, const Tensor<double>& x, const Tensor<double>& y,
                     const Way& way, double rate, std::size_t steps, const Workers& workers) {
  TrainingOptions training;
  training.optimizer = way.optimizer;
  training.learning_rate = rate;
  training.momentum = 0.8;
  training.batch = 0;
  Trainer<double> trainer(network, x, {y.view(), {}}, training, workers);
  for (std::size_t step = 0; step < steps; ++step) trainer.epoch();
  return evaluate<double>(network, x, workers);
}

Learning learning_of(const Way& way, double rate, std::size_t steps, std::size_t n, std::size_t outputs) {
  Learning learning;
  learning.descent = way.descent;
  learning.rate = rate_of_half_sum(rate, LossScale::Mean, n, outputs);
  learning.momentum = 0.8;
  learning.time = static_cast<double>(steps);
  return learning;
}

// A network without hidden layers is its own linearization: the trainer and the prediction agree to rounding,
// which fixes what rate and momentum mean.
TEST(WideNetworks, LinearNetworksTrainExactlyAsPredicted) {
  const Workers workers(2);
  const Tensor<double> x = normals(Shape{9, 4}, 1);
  const Tensor<double> y = normals(Shape{9, 3}, 2);
  for (const Way& way : kWays) {
    models::Network<double> network(models::parse("dense(3)", Shape{4}), options_of(3));
    const Spectrum pairs = spectrum(kernel_of(network, x, workers));
    const Tensor<double> initial = evaluate<double>(network, x.view(), workers);
    const double rate =
        rate_under(LossScale::Mean, 0.5 * largest_stable_rate(way.descent, pairs.values[0], 0.8), 9, 3);
    const Tensor<double> trained = train(network, x, y, way, rate, 25, workers);
    const Tensor<double> predicted = predict_train(pairs, learning_of(way, rate, 25, 9, 3), y, initial);
    const Tensor<double> late = predict_train(pairs, learning_of(way, rate, 26, 9, 3), y, initial);
    EXPECT_LE(distance(predicted, trained), 1e-24);
    EXPECT_FALSE(distance(late, trained) <= 1e-24);
  }
}

// The mean and covariance of the outputs over an ensemble of trained networks, in units of their own standard
// errors, against those predicted for infinite width.
TEST(WideNetworks, EnsemblesOfTrainedNetworksHaveThePredictedMeanAndCovariance) {
  constexpr std::size_t kMembers = 100;
  constexpr std::size_t kWidth = 2048;
  constexpr std::size_t kSteps = 12;
  constexpr std::size_t n = 5;
  constexpr std::size_t m = 3;
  const Workers workers(2);
  const Tensor<double> x = normals(Shape{n, 4}, 21);
  const Tensor<double> z = normals(Shape{m, 4}, 22);
  const Tensor<double> y = normals(Shape{n, 1}, 23);
  const models::Model model = models::parse(hidden(kWidth, "erf") + "dense(1)", Shape{4});
  InfiniteOptions both;
  both.nngp = true;
  const auto kernels = infinite_kernel<double>(model, options_of(0), x, both, workers);
  const auto cross = infinite_kernel<double>(model, options_of(0), z.view(), x.view(), both, workers);
  const auto test = infinite_kernel<double>(model, options_of(0), z, both, workers);
  const Spectrum pairs = spectrum(kernels.ntk);
  for (const Way& way : {kWays[0], kWays[1]}) {
    const double rate =
        rate_under(LossScale::Mean, 0.3 * largest_stable_rate(way.descent, pairs.values[0], 0.8), n, 1);
    const Learning learning = learning_of(way, rate, kSteps, n, 1);
    const GaussianOutputs law = ensemble(pairs, learning, cross.ntk, kernels.nngp, cross.nngp, test.nngp, y);
    const GaussianOutputs train_law = ensemble_train(pairs, learning, kernels.nngp, y);

    Tensor<double> outputs(Shape{kMembers, m});
    Tensor<double> train_outputs(Shape{kMembers, n});
    workers.run(kMembers, [&](std::size_t member, std::size_t) {
      const Workers alone(1);
      models::Network<double> network(model, options_of(monte_carlo_seed(6, member)));
      const Tensor<double> f = train(network, x, y, way, rate, kSteps, alone);
      const Tensor<double> g = evaluate<double>(network, z.view(), alone);
      for (std::size_t i = 0; i < n; ++i) train_outputs(member, i) = f.data()[i];
      for (std::size_t i = 0; i < m; ++i) outputs(member, i) = g.data()[i];
    });
    /// Mean square of the deviations of the means and the largest of all, in standard errors. (Those of the
    /// covariances move together where few directions of f_0 are left.)
    struct Deviations {
      double mean = 0, largest = 0;
    };
    const auto deviations = [&](const Tensor<double>& found, const Tensor<double>& mean,
                                const Tensor<double>& covariance) {
      const std::size_t points = found.shape()[1];
      std::vector<double> average(points, 0.0);
      for (std::size_t k = 0; k < kMembers; ++k) {
        for (std::size_t i = 0; i < points; ++i) average[i] += found(k, i) / kMembers;
      }
      Deviations result;
      for (std::size_t i = 0; i < points; ++i) {
        const double z_mean = (average[i] - mean.data()[i]) / std::sqrt(covariance(i, i) / kMembers);
        result.mean += z_mean * z_mean / static_cast<double>(points);
        result.largest = std::max(result.largest, std::abs(z_mean));
        for (std::size_t j = 0; j < points; ++j) {
          double sample = 0;
          for (std::size_t k = 0; k < kMembers; ++k) {
            sample += (found(k, i) - average[i]) * (found(k, j) - average[j]) / (kMembers - 1);
          }
          // Of a sample covariance of Gaussian numbers.
          const double error = std::sqrt(
              (covariance(i, i) * covariance(j, j) + covariance(i, j) * covariance(i, j)) / (kMembers - 1));
          const double z_covariance = (sample - covariance(i, j)) / error;
          result.largest = std::max(result.largest, std::abs(z_covariance));
        }
      }
      return result;
    };
    for (const bool on_train : {false, true}) {
      const Deviations found = on_train ? deviations(train_outputs, train_law.mean, train_law.covariance)
                                        : deviations(outputs, law.mean, law.covariance);
      EXPECT_LT(found.mean, 4);
      EXPECT_LT(found.largest, 4.5);
    }
    // Negative controls: the law before training, and that of the posterior instead of the ensemble's.
    Tensor<double> none(Shape{m, 1});
    EXPECT_GT(deviations(outputs, none, test.nngp).largest, 6);
    const CholeskyFactor factor(kernels.nngp.clone(), workers);
    const GaussianOutputs posterior = gaussian_process(factor, cross.nngp, test.nngp, y, workers);
    EXPECT_GT(deviations(outputs, posterior.mean, posterior.covariance).largest, 6);
  }
}

TEST(WideNetworks, LossFallsBelowTheLargestStableRateAndGrowsBeyond) {
  const Workers workers(2);
  const Tensor<double> x = normals(Shape{8, 5}, 31);
  const Tensor<double> y = normals(Shape{8, 1}, 32);
  const models::Model model = models::parse(hidden(1024, "relu") + "dense(1)", Shape{5});
  const auto kernels = infinite_kernel<double>(model, options_of(0), x, InfiniteOptions{}, workers);
  const double largest = spectrum(kernels.ntk).values[0];
  for (const Way& way : kWays) {
    const double most = rate_under(LossScale::Mean, largest_stable_rate(way.descent, largest, 0.8), 8, 1);
    const auto loss = [&](double factor, std::size_t steps) {
      models::Network<double> network(model, options_of(4));
      const Tensor<double> f = steps == 0 ? evaluate<double>(network, x.view(), workers)
                                          : train(network, x, y, way, factor * most, steps, workers);
      double sum = 0;
      for (std::size_t i = 0; i < 8; ++i) sum += std::pow(f.data()[i] - y.data()[i], 2);
      return sum;
    };
    const double start = loss(1, 0);
    EXPECT_LT(loss(0.5, 60), 0.5 * start);
    EXPECT_LT(loss(0.93, 120), start);
    EXPECT_GT(loss(3, 8), 10 * start);
  }
}

}  // namespace
}  // namespace gradgram::ntk
