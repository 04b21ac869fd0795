#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "engine/npy.hpp"
#include "models/network.hpp"
#include "ntk/kernel.hpp"
#include "ntk/precision.hpp"
#include "tests/source_root.hpp"

/// Kernels that PyTorch's gradients in f64 gave for eight networks (tests/golden/make_kernels.py).
namespace gradgram::ntk {
namespace {

namespace fs = std::filesystem;

fs::path folder() {
  return source_root() / "tests" / "golden" / "kernels";
}

struct Golden {
  std::string name, parameterization, text;
};

std::vector<Golden> goldens() {
  std::ifstream file(folder() / "index.txt");
  std::vector<Golden> result;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    Golden golden;
    std::getline(fields, golden.name, '|');
    std::getline(fields, golden.parameterization, '|');
    std::getline(fields, golden.text);
    result.push_back(golden);
  }
  return result;
}

/// [n, channels, height, width] -> [n, height, width, channels]; [n, features] stays.
template <class T>
Tensor<T> channels_last(const Tensor<T>& x) {
  if (x.shape().rank() == 2) return x.clone();
  const std::size_t n = x.shape()[0], c = x.shape()[1], h = x.shape()[2], w = x.shape()[3];
  Tensor<T> result(Shape{n, h, w, c});
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < c; ++k) {
      for (std::size_t y = 0; y < h; ++y) {
        for (std::size_t z = 0; z < w; ++z) result(i, y, z, k) = x(i, k, y, z);
      }
    }
  }
  return result;
}

/// Largest |value - expected| / (|expected| + floor), floor a number per entry; NaN stays.
template <class T, class Floor>
double worst(TensorView<const T> values, const Tensor<double>& expected, Floor floor) {
  if (!(values.shape() == expected.shape())) {
    ADD_FAILURE() << values.shape().to_string() << " against " << expected.shape().to_string();
    return INFINITY;
  }
  double result = 0;
  for (std::size_t e = 0; e < expected.size(); ++e) {
    const double truth = expected.span()[e];
    const double error = std::abs(static_cast<double>(values.span()[e]) - truth) / floor(e, truth);
    if (!(error <= result)) result = error;
  }
  return result;
}

template <class T>
void check(const Golden& golden) {
  auto arrays = read_npz(folder() / (golden.name + ".kernels.npz"));
  const Tensor<T> x = channels_last(arrays.at("x").to_tensor<T>());
  const Tensor<T> versus = channels_last(arrays.at("versus").to_tensor<T>());
  models::NetworkOptions options;
  options.parameterization = models::parse_parameterization(golden.parameterization);
  options.weight_variance = 2.0;
  options.bias_variance = 0.25;
  models::Network<T> network(models::parse(golden.text, x.shape().inner()), options);
  network.load_weights(folder() / (golden.name + ".weights.npz"));

  const Workers workers(2);
  const auto labels = arrays.at("labels").to_labels();
  const auto versus_labels = arrays.at("versus_labels").to_labels();
  const Tensor<double> full = arrays.at("full").to_tensor<double>();
  const std::size_t n = full.shape()[0], outputs = full.shape()[2];
  // In f64 relative to the entry; in f32 weights and inputs are rounded first, which the entry's condition
  // magnifies: relative to the largest of the diagonal, and with room for two more roundings of every number.
  double largest = 0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < outputs; ++k) largest = std::max(largest, full(i, i, k, k));
  }
  const bool narrow = sizeof(T) == 4;
  const double tolerance = narrow ? 2 * entry_error<T>() : 1e-9;
  const auto floor = [&](std::size_t, double truth) {
    return narrow ? largest * static_cast<double>(outputs) : std::abs(truth) + 1e-6 * largest;
  };

  const auto compare = [&](const char* what, Reduce reduce, bool rectangle) {
    SCOPED_TRACE(golden.name + " " + what);
    KernelOptions request;
    request.reduce = reduce;
    request.output = reduce == Reduce::Output ? outputs - 1 : 0;
    request.labels = labels;
    request.versus_labels = versus_labels;
    Tensor<double> expected = arrays.at(what).to_tensor<double>();
    const auto k =
        rectangle ? kernel<T>(network, x, versus, request, workers) : kernel<T>(network, x, request, workers);
    EXPECT_LE(worst<T>(k.values, expected, floor), tolerance);
    // Negative control.
    double* const biggest =
        std::max_element(expected.span().data(), expected.span().data() + expected.size());
    *biggest += 3 * tolerance * floor(0, *biggest);
    EXPECT_FALSE(worst<T>(k.values, expected, floor) <= tolerance);
  };
  compare("full", Reduce::Full, false);
  compare("trace_mean", Reduce::TraceMean, false);
  compare("trace_sum", Reduce::TraceSum, false);
  compare("output", Reduce::Output, false);
  compare("versus_full", Reduce::Full, true);
  if (outputs > 1) {
    compare("true_class", Reduce::TrueClass, false);
    compare("versus_true_class", Reduce::TrueClass, true);
  }
  const Tensor<double> d = diagonal<T>(network, x, {}, workers);
  EXPECT_LE(worst<double>(d, arrays.at("diagonal").to_tensor<double>(), floor), tolerance);
}

TEST(GoldenKernel, ThereAreEight) {
  EXPECT_EQ(goldens().size(), 8u);
}

TEST(GoldenKernel, AgreesWithPyTorchInF64) {
  for (const Golden& golden : goldens()) check<double>(golden);
}

TEST(GoldenKernel, AgreesWithPyTorchInF32) {
  for (const Golden& golden : goldens()) check<float>(golden);
}

}  // namespace
}  // namespace gradgram::ntk
