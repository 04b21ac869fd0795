#include "ntk/dynamics.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "engine/error.hpp"
#include "engine/random.hpp"

namespace gradgram::ntk {
namespace {

using Values = std::vector<double>;

struct Problem {
  std::size_t n, columns;
  Tensor<double> kernel, residual;
};

Problem problem(std::size_t n, std::size_t columns, std::uint64_t seed) {
  Problem result{n, columns, Tensor<double>(Shape{n, n}), Tensor<double>(Shape{n, columns})};
  Random random(seed);
  Tensor<double> x(Shape{n, n + 3});
  for (double& value : x.span()) value = random.normal();
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (std::size_t f = 0; f < n + 3; ++f) sum += x(i, f) * x(j, f);
      result.kernel(i, j) = result.kernel(j, i) = sum / static_cast<double>(n);
    }
  }
  for (double& value : result.residual.span()) value = random.normal();
  return result;
}

/// K v for v [n, C], plainly.
Values times(const Tensor<double>& kernel, const Values& v, std::size_t columns) {
  const std::size_t rows = kernel.shape()[0];
  const std::size_t n = kernel.shape()[1];
  Values result(rows * columns);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      for (std::size_t c = 0; c < columns; ++c) result[i * columns + c] += kernel(i, j) * v[j * columns + c];
    }
  }
  return result;
}

/// Classical Runge-Kutta of order 4.
Values integrate(Values state, double span, int steps, const std::function<Values(const Values&)>& velocity) {
  const double h = span / steps;
  const auto ahead = [&](const Values& at, const Values& by, double step) {
    Values result = at;
    for (std::size_t i = 0; i < at.size(); ++i) result[i] += step * by[i];
    return result;
  };
  for (int s = 0; s < steps; ++s) {
    const Values a = velocity(state);
    const Values b = velocity(ahead(state, a, h / 2));
    const Values c = velocity(ahead(state, b, h / 2));
    const Values d = velocity(ahead(state, c, h));
    for (std::size_t i = 0; i < state.size(); ++i) state[i] += h / 6 * (a[i] + 2 * b[i] + 2 * c[i] + d[i]);
  }
  return state;
}

Values copy(const Tensor<double>& tensor) {
  return {tensor.span().begin(), tensor.span().end()};
}

double worst_difference(const double* found, const Values& expected) {
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(found[i] - expected[i]);
    if (!(difference <= worst)) worst = std::isnan(difference) ? INFINITY : difference;
  }
  return worst;
}

TEST(LinearizedResiduals, AgreeWithRungeKutta) {
  for (const std::size_t columns : {1UL, 3UL}) {
    const Problem p = problem(13, columns, columns);
    const Spectrum pairs = spectrum(p.kernel);
    const Values eta_t{0, 0.1, 0.7, 2};
    const Tensor<double> found = linearized_residuals(pairs, p.residual, eta_t);
    ASSERT_EQ(found.shape(), (Shape{4, 13, columns}));
    for (std::size_t t = 0; t < eta_t.size(); ++t) {
      const Values expected = integrate(copy(p.residual), eta_t[t], 4000, [&](const Values& r) {
        Values velocity = times(p.kernel, r, columns);
        for (double& value : velocity) value = -value;
        return velocity;
      });
      const double* const slice = found.data() + t * 13 * columns;
      EXPECT_LE(worst_difference(slice, expected), 1e-10) << t;
      // A result that stood still must not pass.
      EXPECT_EQ(worst_difference(slice, copy(p.residual)) <= 1e-2, t == 0);
    }
  }
}

TEST(LinearizedResiduals, TakeAPlainVector) {
  const Problem p = problem(6, 1, 3);
  const Tensor<double> column = linearized_residuals(spectrum(p.kernel), p.residual, Values{0.3});
  const Tensor<double> plain =
      linearized_residuals(spectrum(p.kernel), p.residual.view().reshaped(Shape{6}), Values{0.3});
  ASSERT_EQ(plain.shape(), (Shape{1, 6, 1}));
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(plain.data()[i], column.data()[i]);
}

// A kernel of rank 1: 19 eigenvalues are rounding noise of either sign, which must not grow in 1e18 time
// units.
TEST(LinearizedResiduals, NoiseDoesNotGrow) {
  const std::size_t n = 20;
  Tensor<double> kernel(Shape{n, n});
  Tensor<double> residual(Shape{n, 1});
  Random random(2);
  Values x(n);
  for (double& value : x) value = random.normal();
  double along = 0;
  double norm = 0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) kernel(i, j) = x[i] * x[j];
    residual(i, 0) = random.normal();
    along += residual(i, 0) * x[i];
    norm += x[i] * x[i];
  }
  const Tensor<double> early = linearized_residuals(spectrum(kernel), residual, Values{1e3});
  const Tensor<double> late = linearized_residuals(spectrum(kernel), residual, Values{1e18});
  for (std::size_t i = 0; i < n; ++i) {
    EXPECT_LE(std::abs(early(0, i, 0) - (residual(i, 0) - along / norm * x[i])), 1e-9);
    EXPECT_LE(std::abs(late(0, i, 0)), 10);
  }
}

TEST(LinearizedResiduals, RefuseWhatMakesNoSense) {
  const Problem p = problem(5, 1, 1);
  const Spectrum pairs = spectrum(p.kernel);
  EXPECT_THROW(linearized_residuals(pairs, p.residual, Values{-1}), ArgumentError);
  EXPECT_THROW(linearized_residuals(pairs, p.residual, Values{std::nan("")}), ArgumentError);
  EXPECT_THROW(linearized_residuals(pairs, Tensor<double>(Shape{4, 1}), Values{1}), ShapeError);
  EXPECT_THROW(linearized_residuals(spectrum(p.kernel, {.vectors = false}), p.residual, Values{1}),
               ArgumentError);
  EXPECT_THROW(linearized_residuals(spectrum(p.kernel, {.top = 2}), p.residual, Values{1}), ArgumentError);
  Tensor<double> broken = p.residual.clone();
  broken(2, 0) = std::nan("");
  EXPECT_THROW(linearized_residuals(pairs, broken, Values{1}), NumericError);
}

TEST(LinearizedDescent, AgreesWithItsOwnSteps) {
  const Problem p = problem(11, 2, 5);
  const Spectrum pairs = spectrum(p.kernel);
  // Both signs of 1 - eta lambda occur.
  const double eta = 1.6 / pairs.values.front();
  const Tensor<double> found = linearized_descent(pairs, p.residual, eta, Values{0, 1, 2, 40});
  Values state = copy(p.residual);
  std::size_t next = 0;
  for (int step = 0; step <= 40; ++step) {
    if (step == 0 || step == 1 || step == 2 || step == 40) {
      EXPECT_LE(worst_difference(found.data() + next++ * 22, state), 1e-12) << step;
    }
    const Values gradient = times(p.kernel, state, 2);
    for (std::size_t i = 0; i < state.size(); ++i) state[i] -= eta * gradient[i];
  }
  EXPECT_THROW(linearized_descent(pairs, p.residual, eta, Values{1.5}), ArgumentError);
  EXPECT_THROW(linearized_descent(pairs, p.residual, -1, Values{1}), ArgumentError);
  EXPECT_THROW(linearized_descent(pairs, p.residual, 10 / pairs.values.front(), Values{1e6}), NumericError);
}

TEST(LinearizedPredictions, OnTheTrainingPointsAreTheResiduals) {
  const Problem p = problem(9, 2, 7);
  const Spectrum pairs = spectrum(p.kernel);
  Tensor<double> initial(Shape{9, 2});
  for (std::size_t i = 0; i < 18; ++i) initial.data()[i] = 0.1 * static_cast<double>(i);
  const Values eta_t{0, 0.4, 3};
  const Tensor<double> outputs = linearized_predictions(pairs, p.kernel, initial, p.residual, eta_t);
  const Tensor<double> residuals = linearized_residuals(pairs, p.residual, eta_t);
  for (std::size_t t = 0; t < 3; ++t) {
    for (std::size_t i = 0; i < 18; ++i) {
      const double target = initial.data()[i] - p.residual.data()[i];
      EXPECT_LE(std::abs(outputs.data()[t * 18 + i] - target - residuals.data()[t * 18 + i]), 1e-12);
    }
  }
}

TEST(LinearizedPredictions, OnOtherPointsAgreeWithRungeKutta) {
  const std::size_t n = 8;
  const std::size_t points = 5;
  // One kernel on 13 points, cut in two.
  const Problem both = problem(n + points, 1, 8);
  Problem p{n, 1, Tensor<double>(Shape{n, n}), Tensor<double>(Shape{n, 1})};
  Tensor<double> versus(Shape{points, n});
  Tensor<double> initial(Shape{points, 1});
  for (std::size_t j = 0; j < n; ++j) {
    p.residual(j, 0) = both.residual(j, 0);
    for (std::size_t i = 0; i < n; ++i) p.kernel(i, j) = both.kernel(i, j);
    for (std::size_t i = 0; i < points; ++i) versus(i, j) = both.kernel(n + i, j);
  }
  for (std::size_t i = 0; i < points; ++i) initial(i, 0) = static_cast<double>(i);
  const Values eta_t{0.2, 1.5};
  const Tensor<double> found = linearized_predictions(spectrum(p.kernel), versus, initial, p.residual, eta_t);
  for (std::size_t t = 0; t < 2; ++t) {
    Values state = copy(p.residual);
    state.insert(state.end(), initial.data(), initial.data() + points);
    state = integrate(state, eta_t[t], 4000, [&](const Values& now) {
      const Values r(now.begin(), now.begin() + n);
      Values velocity = times(p.kernel, r, 1);
      const Values unseen = times(versus, r, 1);
      velocity.insert(velocity.end(), unseen.begin(), unseen.end());
      for (double& value : velocity) value = -value;
      return velocity;
    });
    EXPECT_LE(worst_difference(found.data() + t * points, Values(state.begin() + n, state.end())), 1e-10);
  }
  EXPECT_THROW(linearized_predictions(spectrum(p.kernel), initial, initial, p.residual, eta_t), ShapeError);
  EXPECT_THROW(linearized_predictions(spectrum(p.kernel), versus, p.residual, p.residual, eta_t), ShapeError);
}

TEST(LinearizedCrossEntropy, ConvergesToTheFlowInSecondOrder) {
  const std::size_t n = 10;
  const std::size_t columns = 3;
  const Problem p = problem(n, columns, 12);
  const std::vector<std::int32_t> labels{0, 1, 2, 2, 1, 0, 0, 1, 2, 1};
  const double largest = spectrum(p.kernel).values.front();
  const Values eta_t{0, 0.5, 0.5, 2};
  const Values expected = integrate(copy(p.residual), 2, 4000, [&](const Values& f) {
    Values gradient(f.size());
    for (std::size_t i = 0; i < n; ++i) {
      double sum = 0;
      for (std::size_t c = 0; c < columns; ++c) sum += std::exp(f[i * columns + c]);
      for (std::size_t c = 0; c < columns; ++c) {
        gradient[i * columns + c] =
            (static_cast<std::size_t>(labels[i]) == c ? 1 : 0) - std::exp(f[i * columns + c]) / sum;
      }
    }
    return times(p.kernel, gradient, columns);
  });
  const auto error = [&](double step) {
    const Tensor<double> found = linearized_cross_entropy(p.kernel, largest, p.residual, labels, eta_t, step);
    EXPECT_EQ(worst_difference(found.data(), copy(p.residual)), 0);
    EXPECT_EQ(worst_difference(found.data() + n * columns,
                               Values(found.data() + 2 * n * columns, found.data() + 3 * n * columns)),
              0);
    return worst_difference(found.data() + 3 * n * columns, expected);
  };
  const double coarse = error(0.1);
  const double fine = error(0.05);
  EXPECT_LE(coarse, 1e-2);
  EXPECT_GT(coarse / fine, 3);
  EXPECT_LT(coarse / fine, 5.5);
  EXPECT_LE(error(1e-3), 1e-6);
}

TEST(LinearizedCrossEntropy, RefusesWhatMakesNoSense) {
  const Problem p = problem(4, 2, 1);
  const std::vector<std::int32_t> labels{0, 1, 1, 0};
  const std::vector<std::int32_t> wrong{0, 1, 2, 0};
  EXPECT_THROW(linearized_cross_entropy(p.kernel, 1, p.residual, wrong, Values{1}), ArgumentError);
  EXPECT_THROW(linearized_cross_entropy(p.kernel, 1, p.residual, labels, Values{2, 1}), ArgumentError);
  EXPECT_THROW(linearized_cross_entropy(p.kernel, 1, p.residual, labels, Values{1e9}), ArgumentError);
  EXPECT_THROW(linearized_cross_entropy(p.kernel, 1, p.residual, std::vector<std::int32_t>{0}, Values{1}),
               ShapeError);
}

}  // namespace
}  // namespace gradgram::ntk
