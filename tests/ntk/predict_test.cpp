#include "ntk/predict.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "engine/error.hpp"
#include "engine/random.hpp"
#include "models/network.hpp"
#include "ntk/dynamics.hpp"
#include "ntk/kernel.hpp"
#include "ntk/matrix_operator.hpp"
#include "tests/reference/linear_training.hpp"

namespace gradgram::ntk {
namespace {

constexpr std::size_t kTrain = 23;
constexpr std::size_t kTest = 7;

std::vector<double> random_numbers(std::size_t count, std::uint64_t seed) {
  Random random(seed);
  std::vector<double> result(count);
  for (double& value : result) value = random.normal();
  return result;
}

std::vector<double> product(const std::vector<double>& a, const std::vector<double>& b,
                            std::size_t features) {
  const std::size_t m = a.size() / features;
  const std::size_t n = b.size() / features;
  std::vector<double> result(m * n, 0.0);
  for (std::size_t i = 0; i < m; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      for (std::size_t p = 0; p < features; ++p)
        result[i * n + j] += a[i * features + p] * b[j * features + p];
    }
  }
  return result;
}

/// A linear model, its kernel's eigenpairs, and what predict() takes.
struct Problem {
  reference::LinearModel model;
  Tensor<double> kernel;
  Tensor<double> versus;
  Tensor<double> y, initial, initial_test;
  Spectrum pairs;

  explicit Problem(std::size_t features, double ridge = 0) {
    model.features = features;
    model.train = random_numbers(kTrain * features, 1);
    model.test = random_numbers(kTest * features, 2);
    for (double& value : model.train) value /= std::sqrt(static_cast<double>(features));
    model.y = random_numbers(kTrain, 3);
    model.initial = random_numbers(kTrain, 4);
    model.initial_test = random_numbers(kTest, 5);
    model.ridge = ridge;
    kernel = Tensor<double>(Shape{kTrain, kTrain}, product(model.train, model.train, features));
    versus = Tensor<double>(Shape{kTest, kTrain}, product(model.test, model.train, features));
    y = Tensor<double>(Shape{kTrain, 1}, model.y);
    initial = Tensor<double>(Shape{kTrain, 1}, model.initial);
    initial_test = Tensor<double>(Shape{kTest, 1}, model.initial_test);
    pairs = spectrum(kernel);
  }
  double largest() const { return pairs.values.front(); }
};

/// The largest difference; NaN counts as infinite.
double gap(std::span<const double> a, std::span<const double> b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(a[i] - b[i]);
    if (!(difference <= worst)) worst = std::isnan(difference) ? INFINITY : difference;
  }
  return worst;
}

reference::LinearOutputs written_out(const Problem& problem, const Learning& learning) {
  if (learning.descent == Descent::Flow) {
    return reference::flow(problem.model, learning.rate, learning.time, 2000);
  }
  return reference::descend(problem.model, learning.rate,
                            learning.descent == Descent::Steps ? 0 : learning.momentum,
                            learning.descent == Descent::Nesterov, static_cast<std::size_t>(learning.time));
}

constexpr Descent kAll[] = {Descent::Flow, Descent::Steps, Descent::HeavyBall, Descent::Nesterov};

// More parameters than examples, and fewer: then the kernel is singular.
TEST(Predict, FollowsTheWrittenOutTrainingOfALinearModel) {
  for (const std::size_t features : {31, 11}) {
    for (const double ridge : {0.0, 0.3}) {
      const Problem problem(features, ridge);
      for (const Descent descent : kAll) {
        for (const double time : {0.0, 1.0, 2.0, 7.0, 40.0}) {
          Learning learning;
          learning.descent = descent;
          learning.rate = 0.7 / (problem.largest() + ridge);
          learning.momentum = 0.8;
          learning.time = time;
          learning.ridge = ridge;
          const reference::LinearOutputs expected = written_out(problem, learning);
          Tensor<double> train = predict_train(problem.pairs, learning, problem.y, problem.initial);
          const Tensor<double> test = predict(problem.pairs, learning, problem.versus, problem.y,
                                              problem.initial, problem.initial_test);
          EXPECT_LE(gap(train.span(), expected.train), 2e-12) << time;
          EXPECT_LE(gap(test.span(), expected.test), 2e-11) << time;
          // Negative controls: a wrong rate, a wrong number.
          if (time > 0) {
            learning.rate *= 1.001;
            EXPECT_GT(gap(predict_train(problem.pairs, learning, problem.y, problem.initial).span(),
                          expected.train),
                      1e-6);
          }
          train(3, 0) += 1e-10;
          EXPECT_FALSE(gap(train.span(), expected.train) <= 2e-12);
        }
      }
    }
  }
}

TEST(Predict, AgreesWithTheFunctionsOfDynamics) {
  const Problem problem(31);
  Learning learning;
  learning.rate = 0.3;
  learning.time = 2.5;
  Tensor<double> residual(Shape{kTrain, 1});
  for (std::size_t i = 0; i < kTrain; ++i) residual(i, 0) = problem.initial(i, 0) - problem.y(i, 0);
  const double times[] = {0.75};
  EXPECT_LE(
      gap(predict(problem.pairs, learning, problem.versus, problem.y, problem.initial, problem.initial_test)
              .span(),
          linearized_predictions(problem.pairs, problem.versus, problem.initial_test, residual, times)
              .span()),
      1e-12);
  learning.descent = Descent::Steps;
  learning.rate = 0.01;
  learning.time = 13;
  const double steps[] = {13};
  const Tensor<double> descended = linearized_descent(problem.pairs, residual, 0.01, steps);
  const Tensor<double> train = predict_train(problem.pairs, learning, problem.y, problem.initial);
  for (std::size_t i = 0; i < kTrain; ++i) {
    EXPECT_NEAR(train(i, 0) - problem.y(i, 0), descended.data()[i], 1e-12);
  }
}

TEST(Predict, ForeverIsTheEndOfEveryDescent) {
  for (const std::size_t features : {31, 11}) {
    for (const double ridge : {0.0, 0.3}) {
      const Problem problem(features, ridge);
      // theta = -F^T (F F^T + ridge)^+ r: by the normal equations when there are fewer parameters.
      Learning forever;
      forever.ridge = ridge;
      const Tensor<double> test =
          predict(problem.pairs, forever, problem.versus, problem.y, problem.initial, problem.initial_test);
      const std::vector<double> square = product(problem.model.train, problem.model.train, features);
      std::vector<double> expected = problem.model.initial_test;
      std::vector<double> residual = problem.model.initial;
      for (std::size_t i = 0; i < kTrain; ++i) residual[i] -= problem.model.y[i];
      if (features > kTrain) {
        std::vector<double> k = square;
        for (std::size_t i = 0; i < kTrain; ++i) k[i * kTrain + i] += ridge;
        const std::vector<double> c = reference::solve(k, residual, kTrain);
        for (std::size_t i = 0; i < kTest; ++i) {
          for (std::size_t j = 0; j < kTrain; ++j) expected[i] -= problem.versus(i, j) * c[j];
        }
      } else {
        std::vector<double> normal(features * features, 0.0);
        std::vector<double> right(features, 0.0);
        for (std::size_t p = 0; p < features; ++p) {
          normal[p * features + p] += ridge;
          for (std::size_t i = 0; i < kTrain; ++i) {
            right[p] += problem.model.train[i * features + p] * residual[i];
            for (std::size_t q = 0; q < features; ++q) {
              normal[p * features + q] +=
                  problem.model.train[i * features + p] * problem.model.train[i * features + q];
            }
          }
        }
        const std::vector<double> theta = reference::solve(normal, right, features);
        for (std::size_t i = 0; i < kTest; ++i) {
          for (std::size_t p = 0; p < features; ++p)
            expected[i] -= problem.model.test[i * features + p] * theta[p];
        }
      }
      EXPECT_LE(gap(test.span(), expected), 1e-9) << features << ' ' << ridge;
      for (const Descent descent : kAll) {
        Learning learning = forever;
        learning.descent = descent;
        learning.rate = 1 / (problem.largest() + ridge);
        learning.momentum = 0.5;
        learning.time = 1e7;
        EXPECT_LE(gap(predict(problem.pairs, learning, problem.versus, problem.y, problem.initial,
                              problem.initial_test)
                          .span(),
                      expected),
                  1e-7);
      }
    }
  }
}

// The power of the step's matrix against the recursion it stands for, at large numbers of steps and at
// eigenvalues down to none.
TEST(Predict, ManyStepsAreTheRecursion) {
  constexpr double kSteps = 10000;
  for (const Descent descent : {Descent::Steps, Descent::HeavyBall, Descent::Nesterov}) {
    for (const double lambda : {0.0, 1e-12, 1e-6, 1e-4, 0.03, 0.9, 1.9}) {
      for (const double momentum : {0.0, 0.5, 0.99}) {
        if (descent == Descent::Nesterov && lambda > 1.3) continue;
        Learning learning;
        learning.descent = descent;
        learning.momentum = momentum;
        learning.time = kSteps;
        const Learned found = learned(learning, lambda);
        double velocity = 0;
        double gained = 0;
        const double mu = descent == Descent::Steps ? 0 : momentum;
        for (int t = 0; t < kSteps; ++t) {
          const double remaining = 1 - lambda * gained;
          velocity = mu * velocity + remaining;
          gained += descent == Descent::Nesterov ? remaining + mu * velocity : velocity;
        }
        EXPECT_NEAR(found.gained, gained, 1e-9 * std::abs(gained)) << lambda << ' ' << momentum;
        EXPECT_NEAR(found.remaining, 1 - lambda * gained, 1e-9);
      }
    }
  }
  // A share that is tiny is still a number, not rounding.
  Learning learning;
  learning.descent = Descent::Steps;
  learning.time = 100;
  EXPECT_NEAR(learned(learning, 0.9).remaining, 1e-100, 1e-111);
  learning.descent = Descent::Flow;
  EXPECT_NEAR(learned(learning, 1).remaining / std::exp(-100.0), 1, 1e-12);
  // Factors of 1e308 of which one alone would overflow with the next.
  const double huge = 1e308;
  for (const auto& [rate, time, lambda] : {std::array{huge, 1e-308, 100.0}, std::array{huge, 1 / huge, 100.0},
                                           std::array{1e-300, huge, 1e-6}, std::array{1e4, 1e-308, 1e306}}) {
    learning.rate = rate;
    learning.time = time;
    EXPECT_NEAR(learned(learning, lambda).remaining / std::exp(-100.0), 1, 1e-10) << rate;
  }
  learning.rate = huge;
  learning.time = 0;
  EXPECT_EQ(learned(learning, 1e300).gained, 0);
  EXPECT_EQ(learned(learning, 1e300).remaining, 1);
  learning.rate = 1;
  // A ridge that just undoes an eigenvalue: the regularized residual stays, 1 - lambda gained is left.
  learning.ridge = 3;
  learning.time = 2;
  EXPECT_EQ(learned(learning, -3).gained, 2);
  EXPECT_EQ(learned(learning, -3).remaining, 7);
}

TEST(Predict, LargestStableRateParts) {
  const Problem problem(31);
  for (const Descent descent : {Descent::Steps, Descent::HeavyBall, Descent::Nesterov}) {
    for (const double momentum : {0.0, 0.6, 0.9}) {
      const double most = largest_stable_rate(descent, problem.largest(), momentum);
      const double mu = descent == Descent::Steps ? 0 : momentum;
      const auto loss = [&](double factor, std::size_t steps) {
        const reference::LinearOutputs out =
            reference::descend(problem.model, factor * most, mu, descent == Descent::Nesterov, steps);
        double sum = 0;
        for (std::size_t i = 0; i < kTrain; ++i) sum += std::pow(out.train[i] - problem.model.y[i], 2) / 2;
        return sum;
      };
      const double start = loss(1, 0);
      EXPECT_LT(loss(0.5, 3000), start);
      EXPECT_LT(loss(0.99, 3000), start);
      EXPECT_GT(loss(1.01, 3000), 1e6 * start);
      EXPECT_GT(loss(3, 60), 1e6 * start);
      Learning learning;
      learning.descent = descent;
      learning.momentum = momentum;
      learning.rate = 1.01 * most;
      EXPECT_THROW(predict_train(problem.pairs, learning, problem.y), NumericError);
      learning.rate = 0.99 * most;
      EXPECT_LE(gap(predict_train(problem.pairs, learning, problem.y).span(), problem.model.y), 1e-9);
    }
  }
  EXPECT_EQ(largest_stable_rate(Descent::Flow, 3), kForever);
  EXPECT_EQ(largest_stable_rate(Descent::Steps, 0), kForever);
  EXPECT_DOUBLE_EQ(largest_stable_rate(Descent::Steps, 3, 0, 1), 0.5);
}

TEST(Predict, RatesOfTheThreeLosses) {
  EXPECT_DOUBLE_EQ(rate_of_half_sum(0.3, LossScale::HalfSum, 10, 4), 0.3);
  EXPECT_DOUBLE_EQ(rate_of_half_sum(0.3, LossScale::Mean, 10, 4), 0.3 * 2 / 40);
  EXPECT_DOUBLE_EQ(rate_of_half_sum(0.3, LossScale::HalfMean, 10, 4), 0.3 / 40);
  EXPECT_DOUBLE_EQ(rate_under(LossScale::Mean, 0.015, 10, 4), 0.3);
  EXPECT_THROW(rate_of_half_sum(0.3, LossScale::Mean, 0, 4), ArgumentError);
}

/// d f_t / d f_0 of the linear model, column by column: rows are the outputs on train and test.
std::vector<double> response(const Problem& problem, const Learning& learning, bool to_targets) {
  const std::size_t all = kTrain + kTest;
  std::vector<double> result(all * all, 0.0);
  for (std::size_t j = 0; j < all; ++j) {
    Problem unit(problem.model.features, problem.model.ridge);
    unit.model.y.assign(kTrain, 0.0);
    unit.model.initial.assign(kTrain, 0.0);
    unit.model.initial_test.assign(kTest, 0.0);
    if (j < kTrain) {
      (to_targets ? unit.model.y : unit.model.initial)[j] = 1;
    } else if (!to_targets) {
      unit.model.initial_test[j - kTrain] = 1;
    }
    const reference::LinearOutputs out = written_out(unit, learning);
    for (std::size_t i = 0; i < kTrain; ++i) result[i * all + j] = out.train[i];
    for (std::size_t i = 0; i < kTest; ++i) result[(kTrain + i) * all + j] = out.test[i];
  }
  return result;
}

// A trained network is a linear function of its initial outputs; the written-out training of each unit vector
// gives that function, and the covariance follows by plain products.
TEST(Predict, EnsembleIsTheLawOfTrainedLinearModels) {
  const std::size_t all = kTrain + kTest;
  for (const double ridge : {0.0, 0.2}) {
    const Problem problem(31, ridge);
    // Any covariance of all initial outputs.
    const std::vector<double> prior = product(random_numbers(all * 40, 9), random_numbers(all * 40, 9), 40);
    Tensor<double> nngp(Shape{kTrain, kTrain});
    Tensor<double> nngp_versus(Shape{kTest, kTrain});
    Tensor<double> nngp_test(Shape{kTest, kTest});
    Tensor<double> nngp_diagonal(Shape{kTest});
    for (std::size_t i = 0; i < all; ++i) {
      for (std::size_t j = 0; j < all; ++j) {
        const double value = prior[i * all + j];
        if (i < kTrain && j < kTrain) nngp(i, j) = value;
        if (i >= kTrain && j < kTrain) nngp_versus(i - kTrain, j) = value;
        if (i >= kTrain && j >= kTrain) nngp_test(i - kTrain, j - kTrain) = value;
        if (i >= kTrain && j == i) nngp_diagonal(i - kTrain) = value;
      }
    }
    for (const Descent descent : kAll) {
      Learning learning;
      learning.descent = descent;
      learning.rate = 0.7 / (problem.largest() + ridge);
      learning.momentum = 0.6;
      learning.time = 9;
      learning.ridge = ridge;
      const std::vector<double> by = response(problem, learning, false);
      const std::vector<double> of_targets = response(problem, learning, true);
      std::vector<double> covariance(all * all, 0.0);
      std::vector<double> mean(all, 0.0);
      for (std::size_t i = 0; i < all; ++i) {
        for (std::size_t j = 0; j < kTrain; ++j) mean[i] += of_targets[i * all + j] * problem.model.y[j];
        for (std::size_t j = 0; j < all; ++j) {
          for (std::size_t k = 0; k < all; ++k) {
            for (std::size_t l = 0; l < all; ++l) {
              covariance[i * all + j] += by[i * all + k] * prior[k * all + l] * by[j * all + l];
            }
          }
        }
      }
      const GaussianOutputs test =
          ensemble(problem.pairs, learning, problem.versus, nngp, nngp_versus, nngp_test, problem.y);
      const GaussianOutputs train = ensemble_train(problem.pairs, learning, nngp, problem.y);
      const GaussianOutputs variances =
          ensemble(problem.pairs, learning, problem.versus, nngp, nngp_versus, nngp_diagonal, problem.y);
      const GaussianOutputs train_variances = ensemble_train(problem.pairs, learning, nngp, problem.y, false);
      const GaussianOutputs on_three = ensemble(problem.pairs, learning, problem.versus, nngp, nngp_versus,
                                                nngp_test, problem.y, Workers(3));
      EXPECT_TRUE(std::ranges::equal(on_three.mean.span(), test.mean.span()));
      EXPECT_TRUE(std::ranges::equal(on_three.covariance.span(), test.covariance.span()));
      constexpr double kTolerance = 1e-8;  // of entries up to a few thousand
      for (std::size_t i = 0; i < kTest; ++i) {
        EXPECT_NEAR(test.mean(i, 0), mean[kTrain + i], 1e-10);
        EXPECT_NEAR(variances.covariance(i), test.covariance(i, i), kTolerance);
        for (std::size_t j = 0; j < kTest; ++j) {
          EXPECT_NEAR(test.covariance(i, j), covariance[(kTrain + i) * all + kTrain + j], kTolerance);
          EXPECT_EQ(test.covariance(i, j), test.covariance(j, i));
        }
      }
      for (std::size_t i = 0; i < kTrain; ++i) {
        EXPECT_NEAR(train.mean(i, 0), mean[i], 1e-10);
        EXPECT_NEAR(train_variances.covariance(i), train.covariance(i, i), kTolerance);
        for (std::size_t j = 0; j < kTrain; ++j) {
          EXPECT_NEAR(train.covariance(i, j), covariance[i * all + j], kTolerance);
        }
      }
      // Negative control: the prior itself is not the covariance after learning.
      EXPECT_GT(std::abs(test.covariance(0, 0) - nngp_test(0, 0)), 1e-3);
      EXPECT_FALSE(ensemble(problem.pairs, learning, problem.versus, nngp, nngp_versus, {}, problem.y)
                       .covariance.view());
    }
  }
}

TEST(Predict, GaussianProcessAgainstElimination) {
  const Workers workers(2);
  const Problem problem(31);
  constexpr double kNoise = 0.05;
  const std::vector<double> prior = product(problem.model.test, problem.model.test, 31);
  const Tensor<double> whole(Shape{kTest, kTest}, prior);
  Tensor<double> diagonal(Shape{kTest});
  for (std::size_t i = 0; i < kTest; ++i) diagonal(i) = whole(i, i);
  const CholeskyFactor factor(problem.kernel.clone(), workers, {.shift = kNoise});
  const GaussianOutputs found = gaussian_process(factor, problem.versus, whole, problem.y, workers);
  const GaussianOutputs variances = gaussian_process(factor, problem.versus, diagonal, problem.y, workers);
  std::vector<double> k(problem.kernel.span().begin(), problem.kernel.span().end());
  for (std::size_t i = 0; i < kTrain; ++i) k[i * kTrain + i] += kNoise;
  std::vector<double> beside(kTrain * kTest);
  for (std::size_t i = 0; i < kTest; ++i) {
    for (std::size_t j = 0; j < kTrain; ++j) beside[j * kTest + i] = problem.versus(i, j);
  }
  const std::vector<double> solved = reference::solve(k, beside, kTrain);
  const std::vector<double> weights = reference::solve(k, problem.model.y, kTrain);
  for (std::size_t i = 0; i < kTest; ++i) {
    double mean = 0;
    for (std::size_t j = 0; j < kTrain; ++j) mean += problem.versus(i, j) * weights[j];
    EXPECT_NEAR(found.mean(i, 0), mean, 1e-9);
    for (std::size_t l = 0; l < kTest; ++l) {
      double covariance = prior[i * kTest + l];
      for (std::size_t j = 0; j < kTrain; ++j) covariance -= problem.versus(i, j) * solved[j * kTest + l];
      EXPECT_NEAR(found.covariance(i, l), covariance, 1e-9);
    }
    EXPECT_NEAR(variances.covariance(i), found.covariance(i, i), 1e-10);
    EXPECT_GT(found.covariance(i, i), 0);
    EXPECT_LT(found.covariance(i, i), prior[i * kTest + i]);
  }
  // The evidence from its definition: y^T K^-1 y and the product of the eigenvalues.
  double evidence = -0.5 * static_cast<double>(kTrain) * std::log(2 * M_PI);
  for (std::size_t i = 0; i < kTrain; ++i) {
    evidence -= 0.5 * (problem.model.y[i] * weights[i] + std::log(problem.pairs.values[i] + kNoise));
  }
  EXPECT_NEAR(log_marginal_likelihood(factor, problem.y, workers), evidence, 1e-8);
}

TEST(Predict, KernelRegressionByEitherWayWithinItsBudget) {
  const Workers workers(2);
  const Problem problem(31);
  RegressionOptions options;
  options.ridge = 0.1;
  const Regression factored = kernel_regression<double>(problem.kernel, problem.y, options, workers);
  EXPECT_TRUE(factored.factored);
  EXPECT_LE(factored.residual, 1e-13);
  options.memory = kTrain * kTrain * 8 + kTrain * 8 * 3;  // a few numbers short of a factor
  options.tolerance = 1e-12;
  const Workers one(1);
  try {
    kernel_regression<double>(problem.kernel, problem.y, options, one);
    FAIL();
  } catch (const BudgetError& error) {
    EXPECT_NE(std::string(error.what()).find("the least that would do"), std::string::npos);
  }
  // Enough for panels and a small sketch, on a larger kernel.
  constexpr std::size_t n = 400;
  Tensor<float> large(Shape{n, n});
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      large(i, j) = std::exp(-std::abs(static_cast<float>(i) - static_cast<float>(j)) / 40.0F);
    }
  }
  const Tensor<double> y(Shape{n, 2}, random_numbers(2 * n, 3));
  const Regression direct = kernel_regression<float>(large, y, options = {.ridge = 0.1}, one);
  options.memory = 800'000;
  options.tolerance = 1e-11;
  const Regression iterated = kernel_regression<float>(large, y, options, one);
  EXPECT_TRUE(direct.factored);
  EXPECT_FALSE(iterated.factored);
  EXPECT_GT(iterated.iterations, 0);
  EXPECT_LE(iterated.residual, 1e-11);
  EXPECT_LE(gap(direct.coefficients.span(), iterated.coefficients.span()), 1e-7);
  const Tensor<double> back = apply_kernel<float>(large, direct.coefficients, workers);
  for (std::size_t i = 0; i < y.size(); ++i) {
    EXPECT_NEAR(back.data()[i] + 0.1 * direct.coefficients.data()[i], y.data()[i], 1e-9);
  }
  MatrixOperator<float> products(large, workers);
  Tensor<double> widened(Shape{n, n});
  for (std::size_t i = 0; i < n * n; ++i) widened.data()[i] = static_cast<double>(large.data()[i]);
  SpectrumOptions values_only;
  values_only.vectors = false;
  EXPECT_NEAR(largest_eigenvalue(products) / spectrum(widened, values_only).values.front(), 1, 1e-10);
}

// With several outputs the whole kernel says exactly what training the linearized network does.
TEST(Predict, FullKernelsOfSeveralOutputsAreOneMatrix) {
  const Workers workers(2);
  models::NetworkOptions network_options;
  network_options.parameterization = models::Parameterization::Ntk;
  const models::Network<double> network(models::parse("dense(9) tanh dense(2)", Shape{4}), network_options);
  const Tensor<double> x(Shape{6, 4}, random_numbers(24, 1));
  const Tensor<double> z(Shape{3, 4}, random_numbers(12, 2));
  KernelOptions options;
  options.reduce = Reduce::Full;
  const KernelMatrix<double> train = kernel<double>(network, x, options, workers);
  const KernelMatrix<double> cross = kernel<double>(network, z.view(), x.view(), options, workers);
  const Tensor<double> joined = join_outputs<double>(train.values);
  const Tensor<double> joined_cross = join_outputs<double>(cross.values);
  ASSERT_EQ(joined.shape(), (Shape{12, 12}));
  ASSERT_EQ(joined_cross.shape(), (Shape{6, 12}));
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t j = 0; j < 6; ++j) {
      for (std::size_t k = 0; k < 2; ++k) {
        for (std::size_t l = 0; l < 2; ++l) {
          EXPECT_EQ(joined_cross(2 * i + k, 2 * j + l), cross.values(i, j, k, l));
        }
      }
    }
  }
  for (std::size_t i = 0; i < 12; ++i) {
    for (std::size_t j = 0; j < 12; ++j) EXPECT_EQ(joined(i, j), joined(j, i));
  }
  const Tensor<double> y(Shape{12}, random_numbers(12, 3));
  Learning forever;
  const Tensor<double> fitted = predict_train(spectrum(joined), forever, y);
  EXPECT_LE(gap(fitted.span(), y.span()), 1e-9);
  EXPECT_THROW(join_outputs<double>(joined), ShapeError);
}

TEST(Predict, SeveralColumnsAreEachTheirOwn) {
  const Problem problem(31);
  const Tensor<double> y(Shape{kTrain, 3}, random_numbers(kTrain * 3, 8));
  Learning learning;
  learning.time = 3;
  const Tensor<double> all = predict(problem.pairs, learning, problem.versus, y);
  for (std::size_t c = 0; c < 3; ++c) {
    Tensor<double> column(Shape{kTrain});
    for (std::size_t i = 0; i < kTrain; ++i) column(i) = y(i, c);
    const Tensor<double> one = predict(problem.pairs, learning, problem.versus, column);
    for (std::size_t i = 0; i < kTest; ++i) EXPECT_NEAR(one(i, 0), all(i, c), 1e-12);
  }
}

TEST(Predict, SaysWhatIsWrong) {
  const Problem problem(31);
  const auto fails = [&](Learning learning, const std::string& word) {
    try {
      predict_train(problem.pairs, learning, problem.y);
      ADD_FAILURE() << word;
    } catch (const ArgumentError& error) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  fails({.rate = 0}, "rate");
  fails({.rate = NAN}, "rate");
  fails({.momentum = 1}, "momentum");
  fails({.time = -1}, "time");
  fails({.descent = Descent::Steps, .time = 1.5}, "whole number");
  fails({.ridge = -1}, "ridge");
  // Not finite: never a silent NaN.
  const double spoilt[] = {1, NAN, 2, 3};
  const double sound[] = {1, 2, 3, 4};
  const Tensor<double> cross(Shape{2, 2}, spoilt);
  const Tensor<double> coefficients(Shape{2, 1}, std::span(sound, 2));
  const Tensor<double> kernel(Shape{2, 2}, std::vector<double>{2, 1, 1, 2});
  EXPECT_THROW(apply_kernel<double>(cross.view(), coefficients.view(), Workers(1)), NumericError);
  EXPECT_NO_THROW(apply_kernel<double>(kernel.view(), coefficients.view(), Workers(1)));
  const Tensor<double> y(Shape{2, 1}, std::span(spoilt, 2));
  EXPECT_THROW(kernel_regression<double>(kernel.view(), y.view(), {}, Workers(1)), NumericError);
  EXPECT_NO_THROW(kernel_regression<double>(kernel.view(), coefficients.view(), {}, Workers(1)));
  EXPECT_THROW(predict_train(problem.pairs, {}, problem.versus), ShapeError);
  EXPECT_THROW(predict(problem.pairs, {}, problem.kernel.view().slice(0), problem.y), ShapeError);
  Learning diverging{.descent = Descent::Steps, .rate = 100, .time = 100000};
  try {
    predict_train(problem.pairs, diverging, problem.y);
    FAIL();
  } catch (const NumericError& error) {
    EXPECT_NE(std::string(error.what()).find("largest stable rate"), std::string::npos) << error.what();
  }
  SpectrumOptions few;
  few.top = 2;
  EXPECT_THROW(predict_train(spectrum(problem.kernel, few), {}, problem.y), ArgumentError);
  Tensor<double> indefinite = problem.kernel.clone();
  for (std::size_t i = 0; i < kTrain; ++i) indefinite(i, i) -= 0.5;
  EXPECT_THROW(predict_train(spectrum(indefinite), {}, problem.y), NumericError);
}

}  // namespace
}  // namespace gradgram::ntk
