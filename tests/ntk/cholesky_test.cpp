#include "ntk/cholesky.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "engine/random.hpp"
#include "ntk/lapack.hpp"
#include "tests/reference/linear_training.hpp"

namespace gradgram::ntk {
namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

Tensor<double> random_tensor(Shape shape, std::uint64_t seed) {
  Random random(seed);
  Tensor<double> result(shape);
  for (double& value : result.span()) value = random.normal();
  return result;
}

/// F F^T / features + shift I: positive definite for a positive shift.
Tensor<double> kernel_of(std::size_t n, std::size_t features, double shift, std::uint64_t seed) {
  const Tensor<double> f = random_tensor(Shape{n, features}, seed);
  Tensor<double> k(Shape{n, n});
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (std::size_t p = 0; p < features; ++p)
        sum += f.data()[i * features + p] * f.data()[j * features + p];
      k(i, j) = k(j, i) = sum / static_cast<double>(features) + (i == j ? shift : 0);
    }
  }
  return k;
}

/// ||y - (K + shift) x|| / (||K + shift||_F ||x||), column 0, by plain loops.
double backward_error(const Tensor<double>& k, double shift, const Tensor<double>& x,
                      const Tensor<double>& y) {
  const std::size_t n = k.shape()[0];
  const std::size_t columns = x.size() / n;
  double missed = 0;
  double norm = 0;
  double length = 0;
  for (std::size_t i = 0; i < n; ++i) {
    double sum = 0;
    for (std::size_t j = 0; j < n; ++j) {
      const double entry = k.data()[i * n + j] + (i == j ? shift : 0);
      sum += entry * x.data()[j * columns];
      norm += entry * entry;
    }
    missed += std::pow(y.data()[i * columns] - sum, 2);
    length += std::pow(x.data()[i * columns], 2);
  }
  return std::sqrt(missed) / (std::sqrt(norm) * std::sqrt(length));
}

// Around the block of 256 columns and its multiples, primes among them.
TEST(Cholesky, SolvesAtRaggedSizes) {
  const Workers workers(2);
  for (const std::size_t n : {1, 2, 3, 31, 127, 255, 256, 257, 509, 521}) {
    const Tensor<double> k = kernel_of(n, n + 3, 0, 7 + n);
    for (const std::size_t columns : {1, 3, 129}) {
      const Tensor<double> y = random_tensor(Shape{n, columns}, 11);
      const CholeskyFactor factor(k.clone(), workers, {.shift = 0.25});
      Tensor<double> x = y.clone();
      factor.solve(x, workers);
      const double error = backward_error(k, 0.25, x, y);
      EXPECT_LE(error, 4 * static_cast<double>(n) * kEpsilon) << n << ' ' << columns;
      EXPECT_NEAR(factor.residual(x, y, workers), error * 1, 1e-10);
      // Negative control: a solution that is a little wrong.
      x.data()[0] += 1e-6;
      EXPECT_FALSE(backward_error(k, 0.25, x, y) <= 4 * static_cast<double>(n) * kEpsilon);
      EXPECT_GT(factor.residual(x, y, workers), 1e-10);
    }
  }
}

// Blocks of 512 columns and whole pieces of rows, which smaller matrices do not see; made in n^2 operations.
TEST(Cholesky, LargeBlocks) {
  for (const std::size_t n : {2503u, 3001u}) {
    Random random(n);
    Tensor<double> k(Shape{n, n});
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < i; ++j) k(i, j) = k(j, i) = random.normal();
      k(i, i) = 3 * std::sqrt(static_cast<double>(n));
    }
    const Tensor<double> y = random_tensor(Shape{n, 2}, 13);
    std::vector<Tensor<double>> solutions;
    for (const std::size_t threads : {1, 3}) {
      const Workers workers(threads);
      const CholeskyFactor factor(k.clone(), workers);
      solutions.push_back(y.clone());
      factor.solve(solutions.back(), workers);
    }
    EXPECT_LE(backward_error(k, 0, solutions[0], y), 4 * static_cast<double>(n) * kEpsilon);
    EXPECT_EQ(std::memcmp(solutions[0].data(), solutions[1].data(), y.size() * sizeof(double)), 0);
  }
}

TEST(Cholesky, AgreesWithLapackOnTheWholeMatrix) {
  const Workers workers(2);
  constexpr std::size_t n = 523;
  const Tensor<double> k = kernel_of(n, 2 * n, 0.1, 3);
  const CholeskyFactor factor(k.clone(), workers);
  Tensor<double> whole = k.clone();
  ASSERT_EQ(lapack::cholesky({whole.data(), n, n, n}), n);
  double log_determinant = 0;
  for (std::size_t i = 0; i < n; ++i) log_determinant += 2 * std::log(whole(i, i));
  EXPECT_NEAR(factor.log_determinant(), log_determinant, 1e-11 * static_cast<double>(n));
  Tensor<double> y = random_tensor(Shape{n, 2}, 5);
  Tensor<double> half = y.clone();
  factor.solve_lower(half, workers);
  lapack::solve_lower({whole.data(), n, n, n}, blas::Transpose::No, {y.data(), n, 2, 2});
  for (std::size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(half.data()[i], y.data()[i], 1e-11);
}

TEST(Cholesky, AgreesWithElimination) {
  const Workers workers(1);
  constexpr std::size_t n = 37;
  const Tensor<double> k = kernel_of(n, 50, 0.2, 4);
  const Tensor<double> y = random_tensor(Shape{n}, 6);
  const CholeskyFactor factor(k.clone(), workers);
  Tensor<double> x = y.clone();
  factor.solve(x, workers);
  const std::vector<double> expected =
      reference::solve({k.span().begin(), k.span().end()}, {y.span().begin(), y.span().end()}, n);
  for (std::size_t i = 0; i < n; ++i) EXPECT_NEAR(x(i), expected[i], 1e-11 * std::abs(expected[i]) + 1e-12);
}

TEST(Cholesky, SameBitsForAnyNumberOfWorkers) {
  constexpr std::size_t n = 607;
  const Tensor<double> k = kernel_of(n, n, 0.1, 8);
  const Tensor<double> y = random_tensor(Shape{n, 150}, 9);
  std::vector<Tensor<double>> solutions;
  for (const std::size_t threads : {1, 2, 7}) {
    const Workers workers(threads);
    const CholeskyFactor factor(k.clone(), workers);
    solutions.push_back(y.clone());
    factor.solve(solutions.back(), workers);
  }
  for (std::size_t i = 1; i < solutions.size(); ++i) {
    EXPECT_EQ(std::memcmp(solutions[0].data(), solutions[i].data(), y.size() * sizeof(double)), 0);
  }
}

TEST(Cholesky, NamesTheSmallestEigenvalueAndAJitterThatDoes) {
  const Workers workers(2);
  for (const std::size_t n : {1, 2, 53, 300, 530}) {
    Tensor<double> k = kernel_of(n, n + 10, 1, 12);
    // One direction of negative curvature: -0.5 along a unit vector, which the last rows carry.
    for (std::size_t i = n - std::min<std::size_t>(n, 2); i < n; ++i) {
      for (std::size_t j = n - std::min<std::size_t>(n, 2); j < n; ++j) k(i, j) = i == j ? -0.5 : 0;
    }
    Tensor<double> copy = k.clone();
    std::vector<double> values(n);
    lapack::symmetric_eigen(copy, values, false);
    try {
      const CholeskyFactor factor(k.clone(), workers);
      FAIL() << "n = " << n;
    } catch (const NotPositiveDefinite& error) {
      EXPECT_LT(error.row(), n);
      EXPECT_NEAR(error.smallest_eigenvalue(), values[0], 0.02 * std::abs(values[0])) << n;
      EXPECT_GE(error.jitter(), -values[0]);
      EXPECT_LE(error.jitter(), -6 * values[0]);
      EXPECT_NE(std::string(error.what()).find("not positive definite"), std::string::npos);
      EXPECT_NE(std::string(error.what()).find("jitter"), std::string::npos);
      const CholeskyFactor factor(k.clone(), workers, {.shift = error.jitter()});
      EXPECT_EQ(factor.size(), n);
    }
  }
}

// A kernel of more examples than parameters, whose zero eigenvalues come out as rounding of either sign.
TEST(Cholesky, JitterOfASingularKernelDoes) {
  const Workers workers(2);
  const Tensor<double> k = kernel_of(400, 20, 0, 21);
  double jitter = 0;
  try {
    const CholeskyFactor factor(k.clone(), workers);
  } catch (const NotPositiveDefinite& error) {
    EXPECT_LT(std::abs(error.smallest_eigenvalue()), 1e-11);
    jitter = error.jitter();
  }
  ASSERT_GT(jitter, 0);
  EXPECT_LT(jitter, 1e-9);
  EXPECT_NO_THROW(CholeskyFactor(k.clone(), workers, {.shift = jitter}));
}

TEST(Cholesky, RefusesWhatIsNoKernel) {
  const Workers workers(1);
  EXPECT_THROW(CholeskyFactor(Tensor<double>(Shape{2, 3}), workers), ShapeError);
  Tensor<double> k = kernel_of(5, 9, 1, 2);
  k(1, 3) += 0.1;
  EXPECT_THROW(CholeskyFactor(k.clone(), workers), ArgumentError);
  k = kernel_of(5, 9, 1, 2);
  EXPECT_THROW(CholeskyFactor(k.clone(), workers, {.shift = -1}), ArgumentError);
  EXPECT_THROW(CholeskyFactor(k.clone(), workers, {.shift = NAN}), ArgumentError);
  k(2, 2) = NAN;
  EXPECT_THROW(CholeskyFactor(k.clone(), workers), NumericError);
  const CholeskyFactor none(Tensor<double>(Shape{0, 0}), workers);
  EXPECT_EQ(none.log_determinant(), 0);
  const CholeskyFactor factor(kernel_of(5, 9, 1, 2), workers);
  Tensor<double> x(Shape{6});
  EXPECT_THROW(factor.solve(x, workers), ShapeError);
  std::stop_source source;
  source.request_stop();
  EXPECT_THROW(CholeskyFactor(kernel_of(5, 9, 1, 2), workers, {.stop = source.get_token()}), Cancelled);
}

TEST(Cholesky, RoundsJittersUp) {
  EXPECT_DOUBLE_EQ(rounded_up(1), 1);
  EXPECT_DOUBLE_EQ(rounded_up(1.1e-7), 2e-7);
  EXPECT_DOUBLE_EQ(rounded_up(2.1e3), 5e3);
  EXPECT_DOUBLE_EQ(rounded_up(6e-12), 1e-11);
}

}  // namespace
}  // namespace gradgram::ntk
