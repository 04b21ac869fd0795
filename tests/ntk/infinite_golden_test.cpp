#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "engine/npy.hpp"
#include "models/model.hpp"
#include "ntk/infinite/infinite.hpp"
#include "tests/ntk/infinite_cases.hpp"
#include "tests/source_root.hpp"

namespace gradgram::ntk {
namespace {

using infinite_cases::Case;

std::filesystem::path folder() {
  return source_root() / "tests" / "golden" / "infinite";
}

/// Made by tests/golden/make_infinite.py with neural-tangents.
std::vector<Case> cases() {
  return infinite_cases::read("cases.txt");
}

const std::map<std::string, NpyArray>& arrays() {
  static const std::map<std::string, NpyArray> all = read_npz(folder() / "kernels.npz");
  return all;
}

/// The root of the largest entries of row i and of column j.
double scale(const Tensor<double>& matrix, std::size_t i, std::size_t j) {
  double row = 0;
  double column = 0;
  for (std::size_t k = 0; k < matrix.shape()[1]; ++k) row = std::max(row, std::abs(matrix(i, k)));
  for (std::size_t k = 0; k < matrix.shape()[0]; ++k) column = std::max(column, std::abs(matrix(k, j)));
  return std::sqrt(row * column);
}

/// The largest difference relative to the largest golden entry of the pair's row and column, about
/// sqrt(k_ii k_jj); NaN counts as infinite. `skip_diagonal` leaves out where the golden numbers are no better
/// than 1e-8.
template <class T>
double worst(const Tensor<T>& found, const Tensor<double>& golden, bool skip_diagonal) {
  EXPECT_EQ(found.shape(), golden.shape());
  if (!(found.shape() == golden.shape())) return INFINITY;
  double result = 0;
  for (std::size_t i = 0; i < golden.shape()[0]; ++i) {
    for (std::size_t j = 0; j < golden.shape()[1]; ++j) {
      if (skip_diagonal && i == j) continue;
      const double expected = golden(i, j);
      const double error = std::abs(static_cast<double>(found(i, j)) - expected) / scale(golden, i, j);
      if (!(error <= result)) result = std::isnan(error) ? INFINITY : error;
    }
  }
  return result;
}

class InfiniteGolden : public testing::TestWithParam<Case> {};

template <class T>
void compare(const Case& entry, double tolerance, double diagonal_tolerance) {
  const Tensor<T> x = arrays().at("input." + entry.input).to_tensor<T>();
  const std::size_t half = x.shape()[0] / 2;
  const models::Model model = models::parse(entry.text, x.shape().inner());
  const Workers workers(2);
  const bool tangent = arrays().contains(entry.name + ".ntk");
  InfiniteOptions what;
  what.nngp = true;
  what.ntk = tangent;
  const auto all = std::as_const(x).view();
  const auto block = infinite_kernel<T>(model, entry.options, all.slice(0, half),
                                        all.slice(half, x.shape()[0]), what, workers);
  const auto nngp = arrays().at(entry.name + ".nngp").to_tensor<double>();
  EXPECT_LE(worst(block.nngp, nngp, false), tolerance) << entry.text;
  if (!tangent) return;
  const auto ntk = arrays().at(entry.name + ".ntk").to_tensor<double>();
  EXPECT_LE(worst(block.ntk, ntk, false), tolerance) << entry.text;
  Tensor<T> corrupted = block.ntk.clone();
  corrupted(half - 1, 0) += static_cast<T>(4 * tolerance * scale(ntk, half - 1, 0));
  EXPECT_GT(worst(corrupted, ntk, false), tolerance) << "negative control";

  const auto self = infinite_kernel<T>(model, entry.options, all.slice(0, half), what, workers);
  const auto self_ntk = arrays().at(entry.name + ".self.ntk").to_tensor<double>();
  EXPECT_LE(worst(self.ntk, self_ntk, true), tolerance) << entry.text;
  EXPECT_LE(worst(self.ntk, self_ntk, false), diagonal_tolerance) << entry.text;
}

TEST_P(InfiniteGolden, DoubleAgreesWithNeuralTangents) {
  compare<double>(GetParam(), 1e-10, 1e-6);
}
TEST_P(InfiniteGolden, SingleAgreesWithinItsPrecision) {
  compare<float>(GetParam(), 1e-5, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(All, InfiniteGolden, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST(InfiniteGoldenFiles, HoldAtLeastThirtyArchitectures) {
  EXPECT_GE(cases().size(), 30U);
}

}  // namespace
}  // namespace gradgram::ntk
