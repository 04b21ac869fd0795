#include "ntk/conjugate_gradients.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/npy.hpp"
#include "engine/random.hpp"
#include "models/network.hpp"
#include "ntk/cholesky.hpp"
#include "ntk/kernel.hpp"
#include "ntk/matrix_operator.hpp"

namespace gradgram::ntk {
namespace {

Tensor<double> random_tensor(Shape shape, std::uint64_t seed) {
  Random random(seed);
  Tensor<double> result(shape);
  for (double& value : result.span()) value = random.normal();
  return result;
}

/// exp(-|x - x'|) on sorted random points: positive definite, with eigenvalues that fall as a power.
Tensor<double> kernel_of(std::size_t n) {
  Random random(5);
  std::vector<double> x(n);
  for (double& value : x) value = 3 * random.uniform();
  Tensor<double> k(Shape{n, n});
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) k(i, j) = std::exp(-std::abs(x[i] - x[j]));
  }
  return k;
}

/// ||y - (K + shift) x|| / ||y|| of a column by plain loops.
double residual(const Tensor<double>& k, double shift, const Tensor<double>& x, const Tensor<double>& y,
                std::size_t column) {
  const std::size_t n = k.shape()[0];
  double missed = 0;
  double wanted = 0;
  for (std::size_t i = 0; i < n; ++i) {
    double sum = shift * x(i, column);
    for (std::size_t j = 0; j < n; ++j) sum += k(i, j) * x(j, column);
    missed += std::pow(y(i, column) - sum, 2);
    wanted += std::pow(y(i, column), 2);
  }
  return std::sqrt(missed / wanted);
}

TEST(ConjugateGradients, SolveAtRaggedSizes) {
  const Workers workers(2);
  for (const std::size_t n : {1, 2, 3, 31, 64, 65, 131, 257}) {
    const Tensor<double> k = kernel_of(n);
    const Tensor<double> y = random_tensor(Shape{n, 3}, 7);
    MatrixOperator<double> kernel(k, workers);
    ConjugateGradientOptions options;
    options.shift = 1e-3;
    options.tolerance = 1e-10;
    ConjugateGradientResult result = conjugate_gradients(kernel, y, options);
    const CholeskyFactor factor(k.clone(), workers, {.shift = 1e-3});
    Tensor<double> exact = y.clone();
    factor.solve(exact, workers);
    for (std::size_t c = 0; c < 3; ++c) {
      const double measured = residual(k, 1e-3, result.solution, y, c);
      EXPECT_LE(measured, 1e-10) << n;
      EXPECT_NEAR(result.residuals[c], measured, 1e-12);
    }
    for (std::size_t i = 0; i < y.size(); ++i) {
      EXPECT_NEAR(result.solution.data()[i], exact.data()[i], 1e-5) << n;
    }
    // Negative control.
    result.solution.data()[0] += 1e-6;
    EXPECT_FALSE(residual(k, 1e-3, result.solution, y, 0) <= 1e-10);
  }
}

TEST(ConjugateGradients, SketchSavesIterations) {
  const Workers workers(2);
  const Tensor<double> k = kernel_of(400);
  const Tensor<double> y = random_tensor(Shape{400, 1}, 8);
  MatrixOperator<double> kernel(k, workers);
  ConjugateGradientOptions options;
  options.shift = 1e-4;
  options.rank = 1;
  const ConjugateGradientResult without = conjugate_gradients(kernel, y, options);
  options.rank = 120;
  const ConjugateGradientResult with = conjugate_gradients(kernel, y, options);
  EXPECT_LT(4 * with.iterations[0], without.iterations[0]);
  EXPECT_EQ(with.rank, 120);
  EXPECT_GE(with.products, 120 + with.iterations[0]);
}

TEST(ConjugateGradients, SinglePrecisionAndMappedMatricesGiveTheSame) {
  const Workers workers(2);
  const Tensor<double> k = kernel_of(137);
  Tensor<float> rounded(k.shape());
  for (std::size_t i = 0; i < k.size(); ++i) rounded.data()[i] = static_cast<float>(k.data()[i]);
  Tensor<double> widened(k.shape());
  for (std::size_t i = 0; i < k.size(); ++i) widened.data()[i] = static_cast<double>(rounded.data()[i]);
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "mapped_kernel.npy";
  write_npy<float>(path, rounded.view());
  const MappedNpy mapped(path);
  EXPECT_EQ(mapped.type(), NpyType::F4);
  EXPECT_FALSE(mapped.f64());
  const Tensor<double> y = random_tensor(Shape{137, 2}, 9);
  ConjugateGradientOptions options;
  options.shift = 1e-2;
  MatrixOperator<double> in_memory(widened, workers);
  MatrixOperator<float> from_file(mapped.f32(), workers);
  const ConjugateGradientResult a = conjugate_gradients(in_memory, y, options);
  const ConjugateGradientResult b = conjugate_gradients(from_file, y, options);
  EXPECT_LE(residual(widened, 1e-2, b.solution, y, 1), 1e-8);
  for (std::size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(a.solution.data()[i], b.solution.data()[i], 1e-5);
  std::filesystem::remove(path);
}

TEST(ConjugateGradients, SameBitsForAnyNumberOfWorkers) {
  const Tensor<double> k = kernel_of(211);
  const Tensor<double> y = random_tensor(Shape{211, 2}, 9);
  ConjugateGradientOptions options;
  options.shift = 1e-2;
  std::vector<Tensor<double>> solutions;
  for (const std::size_t threads : {1, 2, 7}) {
    const Workers workers(threads);
    MatrixOperator<double> kernel(k, workers);
    solutions.push_back(conjugate_gradients(kernel, y, options).solution);
  }
  for (std::size_t i = 1; i < solutions.size(); ++i) {
    EXPECT_EQ(std::memcmp(solutions[0].data(), solutions[i].data(), y.size() * sizeof(double)), 0);
  }
}

TEST(ConjugateGradients, SolveWithTheKernelOfANetworkThatIsNeverFormed) {
  const Workers workers(2);
  models::NetworkOptions network_options;
  network_options.parameterization = models::Parameterization::Ntk;
  const models::Network<double> network(models::parse("dense(64) tanh dense(1)", Shape{6}), network_options);
  const Tensor<double> x = random_tensor(Shape{29, 6}, 3);
  const Tensor<double> y = random_tensor(Shape{29, 1}, 4);
  KernelOperator<double> kernel(network, x, OperatorOptions{}, workers);
  ConjugateGradientOptions options;
  options.shift = 0.05;
  const ConjugateGradientResult result = conjugate_gradients(kernel, y, options);
  const KernelMatrix<double> matrix = ntk::kernel<double>(network, x, KernelOptions{}, workers);
  EXPECT_LE(residual(matrix.values, 0.05, result.solution, y, 0), 1.1e-8);
}

TEST(ConjugateGradients, SayWhatIsWrong) {
  const Workers workers(1);
  const Tensor<double> k = kernel_of(90);
  const Tensor<double> y = random_tensor(Shape{90, 1}, 8);
  MatrixOperator<double> kernel(k, workers);
  ConjugateGradientOptions options;
  options.most_iterations = 2;
  options.rank = 1;
  try {
    conjugate_gradients(kernel, y, options);
    FAIL();
  } catch (const NumericError& error) {
    EXPECT_NE(std::string(error.what()).find("relative residual"), std::string::npos) << error.what();
  }
  Tensor<double> indefinite = k.clone();
  for (std::size_t i = 0; i < 90; ++i) indefinite(i, i) -= 3;
  MatrixOperator<double> wrong(indefinite, workers);
  try {
    conjugate_gradients(wrong, y, ConjugateGradientOptions{});
    FAIL();
  } catch (const NumericError& error) {
    EXPECT_NE(std::string(error.what()).find("not positive definite"), std::string::npos) << error.what();
  }
  EXPECT_THROW(conjugate_gradients(kernel, random_tensor(Shape{91, 1}, 8)), ShapeError);
  options.shift = -1;
  EXPECT_THROW(conjugate_gradients(kernel, y, options), ArgumentError);
  const Tensor<double> zero(Shape{90, 2});
  const ConjugateGradientResult nothing = conjugate_gradients(kernel, zero);
  EXPECT_EQ(nothing.residuals[1], 0);
  EXPECT_EQ(nothing.solution(3, 1), 0);
}

TEST(MappedNpy, RefusesWhatItCannotMap) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "unmappable.npy";
  const std::vector<std::int32_t> labels = {1, 2, 3};
  write_npy(path, labels);
  EXPECT_THROW(MappedNpy{path}, FormatError);
  write_npy<double>(path, random_tensor(Shape{5, 5}, 1));
  EXPECT_NO_THROW(MappedNpy{path});
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 8);
  EXPECT_THROW(MappedNpy{path}, FormatError);
  std::filesystem::remove(path);
  EXPECT_THROW(MappedNpy{path}, IoError);
}

}  // namespace
}  // namespace gradgram::ntk
