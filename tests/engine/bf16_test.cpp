#include "engine/bf16.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "engine/random.hpp"

namespace gradgram {
namespace {

/// The nearest number with 8 significant bits, ties to even: from its definition, not from its bits.
double rounded(double value) {
  if (value == 0) return 0;
  int exponent = 0;
  const double fraction = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
}

struct Matrix {
  Matrix(std::size_t rows, std::size_t columns, std::uint64_t seed) : columns(columns), stride(columns + 5) {
    // What is between the rows must not be read.
    values.assign(rows * stride, std::numeric_limits<float>::quiet_NaN());
    Random random(seed);
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t k = 0; k < columns; ++k) values[i * stride + k] = static_cast<float>(random.normal());
    }
  }
  double at(std::size_t i, std::size_t k) const { return values[i * stride + k]; }
  std::size_t columns, stride;
  std::vector<float> values;
};

constexpr double kUntouched = -7;

/// rows x columns of a b^T, with a border that must stay as it was.
std::vector<double> product(const simd::Bf16Kernels& kernels, const Matrix& a, std::size_t rows,
                            const Matrix& b, std::size_t columns, bool lower, bool accumulate,
                            std::size_t& stride) {
  const auto padded = [](std::size_t count, std::size_t to) { return (count + to - 1) / to * to; };
  const std::size_t depth = padded(a.columns, simd::kBf16Block);
  std::vector<std::uint16_t> left(padded(rows, simd::kBf16Padding) * depth),
      right(padded(columns, simd::kBf16Padding) * depth);
  kernels.pack_rows(a.values.data(), a.stride, rows, a.columns, left.data());
  kernels.pack_columns(b.values.data(), b.stride, columns, a.columns, right.data());
  stride = padded(columns, simd::kBf16Padding) + 3;
  std::vector<double> sum((padded(rows, simd::kBf16Padding) + 1) * stride, kUntouched);
  kernels.product(
      {left.data(), right.data(), a.columns, rows, columns, sum.data(), stride, lower, accumulate});
  for (std::size_t i = 0; i + stride <= sum.size(); i += stride) {
    for (std::size_t j = stride - 3; j < stride; ++j) EXPECT_EQ(sum[i + j], kUntouched);
  }
  for (std::size_t j = 0; j < stride; ++j) EXPECT_EQ(sum[sum.size() - 1 - j], kUntouched);
  return sum;
}

/// The greatest error in units of the rounding of a sum of products that are rounded once: NaN when a value
/// is.
double worst(const Matrix& a, std::size_t rows, const Matrix& b, std::size_t columns, double start,
             const std::vector<double>& sum, std::size_t stride, bool lower) {
  double result = 0;
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < (lower ? i + 1 : columns); ++j) {
      double expected = start, size = 0;
      for (std::size_t k = 0; k < a.columns; ++k) {
        const double term = rounded(a.at(i, k)) * rounded(b.at(j, k));
        expected += term;
        size += std::abs(term);
      }
      const double error =
          std::abs(sum[i * stride + j] - expected) / (static_cast<double>(a.columns) * size * 6e-8 + 1e-30);
      if (!(error <= result)) result = error;
    }
  }
  return result;
}

class Bf16 : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    kernels = bf16_kernels(GetParam());
    if (kernels == nullptr) GTEST_SKIP() << GetParam() << " does not run on this processor";
  }
  const simd::Bf16Kernels* kernels = nullptr;
};

TEST_P(Bf16, RoundsTheFactorsAndNothingElse) {
  for (const std::size_t rows : {1, 15, 17, 33, 50}) {
    for (const std::size_t columns : {1, 16, 31, 49, 97}) {
      for (const std::size_t depth : {1, 2, 31, 32, 33, 100}) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns) + " x " + std::to_string(depth));
        const Matrix a(rows, depth, 1), b(columns, depth, 2);
        std::size_t stride = 0;
        const auto sum = product(*kernels, a, rows, b, columns, false, false, stride);
        EXPECT_LE(worst(a, rows, b, columns, 0, sum, stride, false), 2);
        const auto added = product(*kernels, a, rows, b, columns, false, true, stride);
        EXPECT_LE(worst(a, rows, b, columns, kUntouched, added, stride, false), 2);
      }
    }
  }
}

TEST_P(Bf16, TheCheckSeesAFactorThatIsNotRounded) {
  const Matrix a(3, 64, 1);
  Matrix b(5, 64, 2);
  std::size_t stride = 0;
  const auto sum = product(*kernels, a, 3, b, 5, false, false, stride);
  EXPECT_LE(worst(a, 3, b, 5, 0, sum, stride, false), 2);
  b.values[0] = static_cast<float>(rounded(b.values[0]) * (1 + 1.0 / 128));
  EXPECT_FALSE(worst(a, 3, b, 5, 0, sum, stride, false) <= 2);
}

TEST_P(Bf16, ExchangingTheFactorsAndTheirPlaceChangeNoBit) {
  const Matrix a(77, 301, 3);
  std::size_t stride = 0;
  const auto whole = product(*kernels, a, 77, a, 77, false, false, stride);
  for (std::size_t i = 0; i < 77; ++i) {
    for (std::size_t j = 0; j < i; ++j) ASSERT_EQ(whole[i * stride + j], whole[j * stride + i]);
  }
  std::size_t narrow = 0;
  const auto lower = product(*kernels, a, 77, a, 77, true, false, narrow);
  for (std::size_t i = 0; i < 77; ++i) {
    for (std::size_t j = 0; j <= i; ++j) ASSERT_EQ(whole[i * stride + j], lower[i * narrow + j]);
  }
  Matrix tail = a;
  tail.values.erase(tail.values.begin(), tail.values.begin() + static_cast<std::ptrdiff_t>(40 * a.stride));
  const auto part = product(*kernels, tail, 37, a, 50, false, false, narrow);
  for (std::size_t i = 0; i < 37; ++i) {
    for (std::size_t j = 0; j < 50; ++j) ASSERT_EQ(part[i * narrow + j], whole[(40 + i) * stride + j]);
  }
}

TEST_P(Bf16, NotANumberStaysOne) {
  Matrix a(20, 40, 4);
  a.values[7 * a.stride + 3] = std::numeric_limits<float>::quiet_NaN();
  std::size_t stride = 0;
  const auto sum = product(*kernels, a, 20, a, 20, false, false, stride);
  for (std::size_t i = 0; i < 20; ++i) {
    for (std::size_t j = 0; j < 20; ++j) EXPECT_EQ(std::isnan(sum[i * stride + j]), i == 7 || j == 7);
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, Bf16, testing::Values("avx512_bf16", "amx_bf16"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Bf16Reference, RoundsToNearestEven) {
  EXPECT_EQ(rounded(1.0), 1.0);
  EXPECT_EQ(rounded(1.0 + 1.0 / 256), 1.0);
  EXPECT_EQ(rounded(1.0 + 3.0 / 256), 1.0 + 1.0 / 64);
  EXPECT_EQ(rounded(-1.0 - 1.1 / 256), -1.0 - 1.0 / 128);
}

}  // namespace
}  // namespace gradgram
