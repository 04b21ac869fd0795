#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.hpp"
#include "engine/npy.hpp"
#include "models/model.hpp"
#include "ntk/infinite/infinite.hpp"
#include "tests/source_root.hpp"

namespace gradgram::ntk {
namespace {

/// One line of tests/golden/infinite/scales.txt, made by tests/golden/make_scales.py: multiples, opposites
/// and perturbations of vectors, of sizes 0.001 to 100,000 and norms up to a factor 10,000 apart.
struct Case {
  std::string name, input, text;
  models::NetworkOptions options;
  friend void PrintTo(const Case& entry, std::ostream* out) { *out << entry.text << " of " << entry.input; }
};

std::vector<Case> cases() {
  std::ifstream file(source_root() / "tests" / "golden" / "infinite" / "scales.txt");
  std::vector<Case> result;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    Case entry;
    std::string weight;
    std::string bias;
    std::getline(fields, entry.name, '|');
    std::getline(fields, entry.input, '|');
    std::getline(fields, weight, '|');
    std::getline(fields, bias, '|');
    std::getline(fields, entry.text);
    entry.options.weight_variance = std::stod(weight);
    entry.options.bias_variance = std::stod(bias);
    result.push_back(entry);
  }
  return result;
}

const std::map<std::string, NpyArray>& arrays() {
  static const std::map<std::string, NpyArray> all =
      read_npz(source_root() / "tests" / "golden" / "infinite" / "scales.npz");
  return all;
}

/// Largest |found - golden| / sqrt(golden_ii golden_jj); NaN counts as infinite.
template <class T>
double worst(const Tensor<T>& found, const Tensor<double>& golden) {
  double result = 0;
  for (std::size_t i = 0; i < golden.shape()[0]; ++i) {
    for (std::size_t j = 0; j < golden.shape()[1]; ++j) {
      const double error = std::abs(static_cast<double>(found(i, j)) - golden(i, j));
      const double relative = error / std::sqrt(golden(i, i) * golden(j, j));
      if (!(relative <= result)) result = std::isnan(relative) ? INFINITY : relative;
    }
  }
  return result;
}

class InfiniteScales : public testing::TestWithParam<Case> {};

template <class T>
void compare(const Case& entry, double tolerance) {
  const Tensor<T> x = arrays().at("input." + entry.input).to_tensor<T>();
  const models::Model model = models::parse(entry.text, x.shape().inner());
  const Workers workers(2);
  InfiniteOptions what;
  what.nngp = true;
  const auto all = std::as_const(x).view();
  const auto nngp = arrays().at(entry.name + ".nngp").to_tensor<double>();
  const auto ntk = arrays().at(entry.name + ".ntk").to_tensor<double>();
  const auto found = infinite_kernel<T>(model, entry.options, all, what, workers);
  const auto block = infinite_kernel<T>(model, entry.options, all, all, what, workers);
  EXPECT_LE(worst(found.nngp, nngp), tolerance);
  EXPECT_LE(worst(found.ntk, ntk), tolerance);
  EXPECT_LE(worst(block.nngp, nngp), tolerance);
  EXPECT_LE(worst(block.ntk, ntk), tolerance);
  Tensor<T> corrupted = found.ntk.clone();
  corrupted(1, 0) += static_cast<T>(4 * tolerance * std::sqrt(ntk(0, 0) * ntk(1, 1)));
  EXPECT_GT(worst(corrupted, ntk), tolerance) << "negative control";
}

bool holds(const Case& entry, const char* layer) {
  return entry.text.find(layer) != std::string::npos;
}

/// The bounds of docs/infinite.md.
double double_bound(const Case& entry) {
  const bool biased = entry.options.bias_variance > 0;
  if (entry.input == "images" || entry.input == "gray") {
    // A kink takes the angle of parallel and opposite windows from a rounded difference of small numbers.
    return biased || holds(entry, "gelu") ? 1e-10 : 2e-8;
  }
  // Opposite inputs whose cosine is -1 behind another nonlinearity: 2 less a small number.
  if (holds(entry, "layernorm") && !biased) return 2e-8;
  if (entry.input != "behind") return 1e-10;
  return holds(entry, "abs dense(8) relu") ? 1e-8 : 2e-9;
}
double single_bound(const Case& entry) {
  const bool image = entry.input == "images" || entry.input == "gray";
  const bool inside_double = holds(entry, "gelu") || holds(entry, "erf") ||
                             (entry.input == "gray" && entry.text.starts_with("conv(8,1) relu"));
  return image && entry.options.bias_variance == 0 && !inside_double ? 4e-4 : 1e-5;
}

TEST_P(InfiniteScales, DoubleAgreesWithRecursionsInSixtyDigits) {
  compare<double>(GetParam(), double_bound(GetParam()));
}
TEST_P(InfiniteScales, SingleAgreesWithinItsPrecision) {
  compare<float>(GetParam(), single_bound(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(All, InfiniteScales, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST(InfiniteScalesLimits, RefusesVariancesWhoseSquareIsNoNumber) {
  const Tensor<double> x(Shape{1, 1}, std::vector<double>{1e76});
  try {
    infinite_kernel<double>(models::parse("dense(8) tanh dense(1)", {1}), {}, x.view(), {}, Workers(1));
    FAIL() << "no error";
  } catch (const NumericError& error) {
    EXPECT_NE(std::string(error.what()).find("layer 1 'tanh' sees variances up to"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace gradgram::ntk
