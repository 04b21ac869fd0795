#include "ntk/spectrum.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "engine/error.hpp"
#include "engine/random.hpp"

namespace gradgram::ntk {
namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

/// Second differences on a path: eigenvalues 2 - 2 cos(k pi / (n + 1)).
Tensor<double> path(std::size_t n) {
  Tensor<double> result(Shape{n, n});
  for (std::size_t i = 0; i < n; ++i) {
    result(i, i) = 2;
    if (i + 1 < n) result(i, i + 1) = result(i + 1, i) = -1;
  }
  return result;
}

Tensor<double> gram(std::size_t n, std::size_t features, std::uint64_t seed) {
  Random random(seed);
  Tensor<double> x(Shape{n, features});
  for (double& value : x.span()) value = random.normal();
  Tensor<double> result(Shape{n, n});
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (std::size_t f = 0; f < features; ++f) sum += x(i, f) * x(j, f);
      result(i, j) = result(j, i) = sum;
    }
  }
  return result;
}

/// Largest entry of |U^T diag(values) U - K| and of |U U^T - I|: zero for all eigenpairs.
double decomposition_error(const Spectrum& spectrum, const Tensor<double>& kernel) {
  const std::size_t n = spectrum.n;
  double worst = 0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      double rebuilt = 0;
      double product = 0;
      for (std::size_t m = 0; m < n; ++m) {
        rebuilt += spectrum.values[m] * spectrum.vectors(m, i) * spectrum.vectors(m, j);
        product += spectrum.vectors(i, m) * spectrum.vectors(j, m);
      }
      for (const double error :
           {std::abs(rebuilt - kernel(i, j)), std::abs(product - (i == j ? 1.0 : 0.0))}) {
        if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
      }
    }
  }
  return worst;
}

TEST(Spectrum, FindsTheKnownEigenvaluesOfAPath) {
  for (const std::size_t n : {1UL, 2UL, 3UL, 7UL, 64UL, 101UL}) {
    const Tensor<double> kernel = path(n);
    const Spectrum all = spectrum(kernel);
    const Spectrum only_values = spectrum(kernel, {.vectors = false});
    ASSERT_EQ(all.values.size(), n);
    ASSERT_EQ(only_values.values.size(), n);
    EXPECT_EQ(only_values.vectors.size(), 0U);
    const double tolerance = static_cast<double>(n) * 4 * kEpsilon * 4;
    for (std::size_t i = 0; i < n; ++i) {
      const double k = static_cast<double>(n - i);
      const double expected = 2 - 2 * std::cos(k * std::numbers::pi / static_cast<double>(n + 1));
      EXPECT_LE(std::abs(all.values[i] - expected), tolerance) << n << " " << i;
      EXPECT_LE(std::abs(only_values.values[i] - expected), tolerance) << n << " " << i;
    }
    EXPECT_EQ(all.trace, 2.0 * static_cast<double>(n));
    EXPECT_LE(decomposition_error(all, kernel), tolerance) << n;
    EXPECT_LE(all.residual, tolerance);
  }
}

TEST(Spectrum, TheDecompositionCheckCanFail) {
  const Tensor<double> kernel = gram(23, 40, 1);
  Spectrum all = spectrum(kernel);
  const double tolerance = 23 * kEpsilon * all.values.front() * 4;
  EXPECT_LE(decomposition_error(all, kernel), tolerance);
  all.vectors(5, 7) += 1e-9;
  EXPECT_FALSE(decomposition_error(all, kernel) <= tolerance);
}

TEST(Spectrum, LanczosAgreesWithLapack) {
  for (const std::size_t n : {30UL, 97UL, 200UL}) {
    const Tensor<double> kernel = gram(n, n / 2, n);
    const Spectrum all = spectrum(kernel);
    for (const std::size_t top : {1UL, 5UL, 13UL}) {
      const Spectrum some = spectrum(kernel, {.top = top});
      ASSERT_EQ(some.values.size(), top);
      ASSERT_EQ(some.vectors.shape(), (Shape{top, n}));
      const double tolerance = 1e-11 * all.values.front();
      for (std::size_t i = 0; i < top; ++i) {
        EXPECT_LE(std::abs(some.values[i] - all.values[i]), tolerance) << n << " " << top << " " << i;
        EXPECT_LE(std::abs(some.values[i] - all.values[i]), some.error_bar);
        for (std::size_t j = 0; j < n; ++j) {
          EXPECT_LE(std::abs(some.vectors(i, j) - all.vectors(i, j)), 1e-6) << n << " " << top << " " << i;
        }
      }
      EXPECT_EQ(some.trace, all.trace);
      EXPECT_EQ(some.frobenius, all.frobenius);
      EXPECT_THROW(some.condition(), ArgumentError);
      EXPECT_EQ(spectrum(kernel, {.top = top, .vectors = false}).vectors.size(), 0U);
    }
  }
}

// A network of few parameters: fewer eigenvalues than are asked for, and a Krylov space that ends early.
TEST(Spectrum, TheLargestOfAKernelOfLowRank) {
  Tensor<double> ones(Shape{50, 50});
  for (double& value : ones.span()) value = 1;
  const Spectrum one = spectrum(ones, {.top = 5});
  EXPECT_LE(std::abs(one.values[0] - 50), 1e-11);
  for (const std::size_t rank : {1UL, 2UL, 3UL, 7UL}) {
    for (const std::size_t n : {47UL, 120UL}) {
      const Tensor<double> kernel = gram(n, rank, n + rank);
      const Spectrum all = spectrum(kernel);
      for (const std::size_t top : {1UL, 5UL, 20UL}) {
        const Spectrum some = spectrum(kernel, {.top = top});
        ASSERT_EQ(some.values.size(), top);
        ASSERT_EQ(some.vectors.shape(), (Shape{top, n}));
        for (std::size_t i = 0; i < top; ++i) {
          EXPECT_LE(std::abs(some.values[i] - all.values[i]), 1e-11 * all.values.front())
              << rank << " " << n << " " << i;
        }
      }
    }
  }
}

TEST(Spectrum, MoreThanHalfOrMoreThanAllOfTheValuesComeFromLapack) {
  const Tensor<double> kernel = gram(11, 20, 3);
  const Spectrum all = spectrum(kernel);
  const Spectrum most = spectrum(kernel, {.top = 7});
  ASSERT_EQ(most.values.size(), 7U);
  ASSERT_EQ(most.vectors.shape(), (Shape{7, 11}));
  for (std::size_t i = 0; i < 7; ++i) {
    EXPECT_EQ(most.values[i], all.values[i]);
    for (std::size_t j = 0; j < 11; ++j) EXPECT_EQ(most.vectors(i, j), all.vectors(i, j));
  }
  EXPECT_EQ(spectrum(kernel, {.top = 50}).values.size(), 11U);
}

// Both the absolute part of Lanczos' test and the squares in a norm are traps for small and large units.
TEST(Spectrum, ScalesWithTheKernel) {
  const Tensor<double> kernel = gram(60, 60, 5);
  const Spectrum plain = spectrum(kernel, {.top = 4});
  for (const double scale : {0x1p-500, 0x1p+500}) {
    Tensor<double> scaled = kernel.clone();
    for (double& value : scaled.span()) value *= scale;
    const Spectrum top = spectrum(scaled, {.top = 4});
    const Spectrum all = spectrum(scaled);
    for (std::size_t i = 0; i < 4; ++i) {
      EXPECT_LE(std::abs(top.values[i] / scale - plain.values[i]), 1e-10 * plain.values[0]);
      EXPECT_LE(std::abs(all.values[i] / scale - plain.values[i]), 1e-10 * plain.values[0]);
    }
    EXPECT_LE(std::abs(all.frobenius / scale - plain.frobenius), 1e-12 * plain.frobenius);
  }
}

TEST(Spectrum, ZeroAndEmptyKernels) {
  const Spectrum empty = spectrum(Tensor<double>(Shape{0, 0}));
  EXPECT_EQ(empty.n, 0U);
  EXPECT_TRUE(empty.values.empty());
  EXPECT_FALSE(empty.smallest_is_resolved());
  EXPECT_THROW(empty.condition(), ArgumentError);
  EXPECT_EQ(empty.effective_rank(), 0);
  for (const std::size_t top : {0UL, 2UL}) {
    const Spectrum zero = spectrum(Tensor<double>(Shape{9, 9}), {.top = top});
    for (const double value : zero.values) EXPECT_EQ(value, 0);
    EXPECT_FALSE(zero.smallest_is_resolved());
    EXPECT_EQ(zero.effective_rank(), 0);
  }
}

TEST(Spectrum, RefusesWhatIsNoKernel) {
  EXPECT_THROW(spectrum(Tensor<double>(Shape{3, 4})), ShapeError);
  EXPECT_THROW(spectrum(Tensor<double>(Shape{9})), ShapeError);
  Tensor<double> kernel = path(40);
  kernel(33, 2) = 0.25;
  try {
    spectrum(kernel);
    FAIL() << "an asymmetric kernel passed";
  } catch (const ArgumentError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("kernel(33, 2) = 0.25 and kernel(2, 33) = 0"));
  }
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    Tensor<double> broken = path(5);
    broken(4, 1) = bad;
    EXPECT_THROW(spectrum(broken), NumericError);
    EXPECT_THROW(spectrum(broken, {.top = 1}), NumericError);
    EXPECT_THROW(kernel_target_alignment(broken, Tensor<double>(Shape{5}), false), NumericError);
  }
  EXPECT_THROW(spectrum(path(3), {.entry_error = -1}), ArgumentError);
  EXPECT_THROW(spectrum(path(3), {.entry_error = std::nan("")}), ArgumentError);
}

TEST(Spectrum, ForgivesAsymmetryWithinTheEntryError) {
  Tensor<double> kernel = gram(12, 12, 2);
  const Spectrum exact = spectrum(kernel);
  kernel(3, 8) *= 1 + 1e-7;
  EXPECT_THROW(spectrum(kernel), ArgumentError);
  const Spectrum near = spectrum(kernel, {.entry_error = 2e-7});
  for (std::size_t i = 0; i < 12; ++i) EXPECT_LE(std::abs(near.values[i] - exact.values[i]), near.error_bar);
}

TEST(Spectrum, KeepsToItsBudget) {
  const std::size_t n = 50;
  EXPECT_THROW(spectrum(path(n), {.memory = 3 * n * n * 8 - 1}), BudgetError);
  EXPECT_NO_THROW(spectrum(path(n), {.memory = 3 * n * n * 8}));
  EXPECT_NO_THROW(spectrum(path(n), {.vectors = false, .memory = n * n * 8}));
}

// K = I + 1 1^T with every entry off by e sqrt(k_ii k_jj) in the same direction: the worst case, and the bar
// meets it.
TEST(Spectrum, TheErrorBarHoldsAndIsAttainedInTheWorstCase) {
  const std::size_t n = 24;
  const double e = 1e-6;
  Tensor<double> kernel(Shape{n, n});
  Tensor<double> wrong(Shape{n, n});
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      kernel(i, j) = i == j ? 2 : 1;
      wrong(i, j) = kernel(i, j) + e * 2;
    }
  }
  const Spectrum found = spectrum(wrong, {.entry_error = e});
  const double shift = std::abs(found.values.front() - (1 + static_cast<double>(n)));
  EXPECT_LE(shift, found.error_bar);
  EXPECT_GE(shift, 0.99 * found.error_bar);
  EXPECT_LT(found.likely_error, found.error_bar);
}

// Rounding to f32 makes independent errors of at most 2^-24 |k_ij|.
TEST(Spectrum, TheErrorBarsCoverRoundedEntries) {
  const std::size_t n = 120;
  const Tensor<double> kernel = gram(n, n + 20, 9);
  Tensor<double> rounded = kernel.clone();
  for (double& value : rounded.span()) value = static_cast<float>(value);
  const Spectrum exact = spectrum(kernel);
  const Spectrum found = spectrum(rounded, {.entry_error = 0x1p-24});
  for (std::size_t i = 0; i < n; ++i) {
    EXPECT_LE(std::abs(found.values[i] - exact.values[i]), found.error_bar);
    EXPECT_LE(std::abs(found.values[i] - exact.values[i]), found.likely_error);
  }
}

TEST(Spectrum, NeverCallsNoiseAnEigenvalue) {
  const std::size_t n = 40;
  const std::size_t rank = 11;
  const Tensor<double> kernel = gram(n, rank, 4);
  const Spectrum exact = spectrum(kernel);
  EXPECT_FALSE(exact.smallest_is_resolved());
  EXPECT_EQ(exact.resolved(), rank);
  EXPECT_EQ(exact.condition(), std::numeric_limits<double>::infinity());
  Tensor<double> rounded = kernel.clone();
  for (double& value : rounded.span()) value = static_cast<float>(value);
  EXPECT_EQ(spectrum(rounded, {.entry_error = 0x1p-24}).resolved(), rank);
  // Told that the entries are exact, it believes in some of the rounding noise: the bar is what makes the
  // difference.
  EXPECT_GT(spectrum(rounded).resolved(), rank);
  EXPECT_TRUE(spectrum(gram(n, 3 * n, 4)).smallest_is_resolved());
}

TEST(Spectrum, SummariesOfAKnownDiagonal) {
  Tensor<double> kernel(Shape{5, 5});
  const double diagonal[] = {1, 4, 0.5, 4, 2};
  for (std::size_t i = 0; i < 5; ++i) kernel(i, i) = diagonal[i];
  const Spectrum found = spectrum(kernel);
  EXPECT_THAT(found.values, testing::ElementsAre(4, 4, 2, 1, 0.5));
  EXPECT_DOUBLE_EQ(found.trace, 11.5);
  EXPECT_DOUBLE_EQ(found.frobenius, std::sqrt(37.25));
  EXPECT_DOUBLE_EQ(found.effective_rank(), 11.5 * 11.5 / 37.25);
  EXPECT_DOUBLE_EQ(found.condition(), 8);
  EXPECT_DOUBLE_EQ(found.effective_dimension(2), 2 * 4.0 / 6 + 2.0 / 4 + 1.0 / 3 + 0.5 / 2.5);
  EXPECT_THROW(found.effective_dimension(0), ArgumentError);
  EXPECT_THAT(eigenvalue_cdf(found), testing::ElementsAre(1, 1, 0.6, 0.4, 0.2));
}

TEST(Spectrum, SignsAreFixedAndRunsAreEqualToTheBit) {
  const Tensor<double> kernel = gram(61, 90, 8);
  for (const std::size_t top : {0UL, 6UL}) {
    const Spectrum first = spectrum(kernel, {.top = top});
    const Spectrum second = spectrum(kernel, {.top = top});
    EXPECT_EQ(first.values, second.values);
    ASSERT_EQ(first.vectors.size(), second.vectors.size());
    for (std::size_t i = 0; i < first.vectors.size(); ++i) {
      EXPECT_EQ(first.vectors.data()[i], second.vectors.data()[i]);
    }
    for (std::size_t i = 0; i < first.values.size(); ++i) {
      double largest = 0;
      for (std::size_t j = 0; j < 61; ++j) {
        if (std::abs(first.vectors(i, j)) > std::abs(largest)) largest = first.vectors(i, j);
      }
      EXPECT_GT(largest, 0);
    }
  }
}

TEST(LabelEnergy, LiesWhereTheLabelsLie) {
  const std::size_t n = 31;
  const Spectrum found = spectrum(gram(n, 50, 6));
  Tensor<double> y(Shape{n});
  for (std::size_t j = 0; j < n; ++j) y(j) = 3 * found.vectors(4, j) - 4 * found.vectors(20, j);
  const std::vector<double> energy = label_energy(found, y);
  for (std::size_t i = 0; i < n; ++i) {
    EXPECT_LE(std::abs(energy[i] - (i == 4 ? 0.36 : i == 20 ? 0.64 : 0.0)), 1e-12) << i;
  }
  Tensor<double> two(Shape{n, 2});
  for (std::size_t j = 0; j < n; ++j) {
    two(j, 0) = found.vectors(0, j);
    two(j, 1) = 2 * found.vectors(1, j);
  }
  const std::vector<double> shared = label_energy(found, two);
  EXPECT_LE(std::abs(shared[0] - 0.2), 1e-12);
  EXPECT_LE(std::abs(shared[1] - 0.8), 1e-12);
  EXPECT_THROW(label_energy(found, Tensor<double>(Shape{n})), NumericError);
  EXPECT_THROW(label_energy(found, Tensor<double>(Shape{n + 1})), ShapeError);
  EXPECT_THROW(label_energy(spectrum(path(3), {.vectors = false}), Tensor<double>(Shape{3})), ArgumentError);
}

TEST(KernelTargetAlignment, ClosedForms) {
  const std::size_t n = 17;
  Tensor<double> y(Shape{n, 2});
  Random random(11);
  for (double& value : y.span()) value = random.normal();
  Tensor<double> ideal(Shape{n, n});
  Tensor<double> shifted(Shape{n, n});
  Tensor<double> identity(Shape{n, n});
  Tensor<double> constant(Shape{n, n});
  for (std::size_t i = 0; i < n; ++i) {
    identity(i, i) = 1;
    for (std::size_t j = 0; j < n; ++j) {
      ideal(i, j) = y(i, 0) * y(j, 0) + y(i, 1) * y(j, 1);
      shifted(i, j) = ideal(i, j) + 1000;
      constant(i, j) = 3;
    }
  }
  EXPECT_NEAR(kernel_target_alignment(ideal, y, false), 1, 1e-12);
  EXPECT_NEAR(kernel_target_alignment(ideal, y, true), 1, 1e-12);
  EXPECT_LT(kernel_target_alignment(shifted, y, false), 0.9);
  EXPECT_NEAR(kernel_target_alignment(shifted, y, true), 1, 1e-9);
  Tensor<double> signs(Shape{n});
  for (std::size_t i = 0; i < n; ++i) signs(i) = i % 3 == 0 ? 1 : -1;
  EXPECT_NEAR(kernel_target_alignment(identity, signs, false), 1 / std::sqrt(17.0), 1e-12);
  // H I H = H and ||H||_F^2 = n - 1; <H, y y^T> = ||H y||^2.
  EXPECT_NEAR(kernel_target_alignment(identity, signs, true), 1 / std::sqrt(16.0), 1e-12);
  EXPECT_THROW(kernel_target_alignment(constant, signs, true), NumericError);
  EXPECT_THROW(kernel_target_alignment(Tensor<double>(Shape{n, n}), signs, false), NumericError);
  Tensor<double> same(Shape{n});
  for (double& value : same.span()) value = 0.1;
  EXPECT_THROW(kernel_target_alignment(identity, same, true), NumericError);
  EXPECT_THROW(kernel_target_alignment(identity, Tensor<double>(Shape{n - 1}), true), ShapeError);
}

}  // namespace
}  // namespace gradgram::ntk
