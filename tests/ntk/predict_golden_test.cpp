#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "engine/npy.hpp"
#include "models/model.hpp"
#include "ntk/infinite/infinite.hpp"
#include "ntk/predict.hpp"
#include "tests/source_root.hpp"

namespace gradgram::ntk {
namespace {

/// tests/golden/predict, made by tests/golden/make_predictions.py with neural-tangents.
std::filesystem::path folder() {
  return source_root() / "tests" / "golden" / "predict";
}

Tensor<double> golden(const std::string& name) {
  static const std::map<std::string, NpyArray> all = read_npz(folder() / "predictions.npz");
  return all.at(name).to_tensor<double>();
}

std::vector<std::vector<std::string>> lines() {
  std::ifstream file(folder() / "cases.txt");
  std::vector<std::vector<std::string>> result;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    result.emplace_back();
    for (std::string field; std::getline(fields, field, '|');) result.back().push_back(field);
  }
  return result;
}

double time_of(const std::string& text) {
  return text == "inf" ? kForever : std::stod(text);
}

/// The largest difference relative to the largest entry; NaN counts as infinite.
double gap(const Tensor<double>& found, const Tensor<double>& expected) {
  if (found.size() != expected.size()) return INFINITY;
  double largest = 0;
  double worst = 0;
  for (const double value : expected.span()) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double difference = std::abs(found.data()[i] - expected.data()[i]);
    if (!(difference <= worst)) worst = std::isnan(difference) ? INFINITY : difference;
  }
  return worst / std::max(largest, 1e-3);
}

// neural-tangents' eigenvalues and ours differ by rounding, which division by the smallest ones raises; the
// kernels' own 1e-10 goes the same way.
constexpr double kTolerance = 1e-9;

TEST(GoldenPredictions, OfNeuralTangents) {
  const Workers workers(2);
  const auto all = lines();
  ASSERT_GE(all.size(), 15);
  const std::vector<std::string>& network = all.front();
  models::NetworkOptions variances;
  variances.weight_variance = std::stod(network[1]);
  variances.bias_variance = std::stod(network[2]);
  const Tensor<double> x = golden("x_train");
  const Tensor<double> z = golden("x_test");
  const models::Model model = models::parse(network[3], Shape{x.shape()[1]});
  InfiniteOptions both;
  both.nngp = true;
  const auto train = infinite_kernel<double>(model, variances, x, both, workers);
  const auto cross = infinite_kernel<double>(model, variances, z.view(), x.view(), both, workers);
  const auto test = infinite_kernel<double>(model, variances, z, both, workers);
  EXPECT_LE(gap(train.ntk, golden("ntk.train")), 1e-8);
  EXPECT_LE(gap(cross.nngp, golden("nngp.cross")), 1e-10);
  const Tensor<double> y = golden("y");
  const std::size_t n = y.shape()[0];
  const std::size_t outputs = y.shape()[1];
  const Spectrum tangent = spectrum(train.ntk);
  const Spectrum process = spectrum(train.nngp);

  std::size_t checked = 0;
  std::size_t rates = 0;
  for (const auto& line : all) {
    const std::string& kind = line[0];
    if (kind == "network") continue;
    if (kind == "stable" || kind == "max_rate") {
      ++rates;
      continue;
    }
    const std::string& name = line[1];
    Learning learning;
    learning.rate = rate_of_half_sum(1, LossScale::HalfMean, n, outputs);
    if (kind == "ensemble") {
      learning.time = time_of(line[2]);
      const bool ntk = line[3] == "ntk";
      const Spectrum& pairs = ntk ? tangent : process;
      const GaussianOutputs on_test =
          ensemble(pairs, learning, ntk ? cross.ntk : cross.nngp, train.nngp, cross.nngp, test.nngp, y);
      const GaussianOutputs on_train = ensemble_train(pairs, learning, train.nngp, y);
      EXPECT_LE(gap(on_test.mean, golden(name + ".test.mean")), kTolerance) << name;
      EXPECT_LE(gap(on_test.covariance, golden(name + ".test.cov")), kTolerance) << name;
      EXPECT_LE(gap(on_train.mean, golden(name + ".train.mean")), kTolerance) << name;
      EXPECT_LE(gap(on_train.covariance, golden(name + ".train.cov")), kTolerance) << name;
      if (learning.time > 0 && learning.time < 100) {
        // Negative control: another measure of the rate.
        learning.rate *= 2;
        EXPECT_GT(
            gap(ensemble(pairs, learning, ntk ? cross.ntk : cross.nngp, train.nngp, cross.nngp, {}, y).mean,
                golden(name + ".test.mean")),
            1e-5);
      }
    } else if (kind == "gp") {
      const double ridge = std::stod(line[2]);
      const bool ntk = line[3] == "ntk";
      GaussianOutputs found;
      if (ntk) {
        learning.time = kForever;
        learning.ridge = ridge;
        found = ensemble(tangent, learning, cross.ntk, train.nngp, cross.nngp, test.nngp, y);
      } else {
        const CholeskyFactor factor(train.nngp.clone(), workers, {.shift = ridge});
        found = gaussian_process(factor, cross.nngp, test.nngp, y, workers);
      }
      EXPECT_LE(gap(found.mean, golden(name + ".test.mean")), kTolerance) << name;
      EXPECT_LE(gap(found.covariance, golden(name + ".test.cov")), kTolerance) << name;
    } else if (kind == "mse") {
      learning.time = time_of(line[2]);
      const Tensor<double> initial = golden("initial_train");
      EXPECT_LE(gap(predict_train(tangent, learning, y, initial), golden(name + ".train")), kTolerance)
          << name;
      Tensor<double> found = predict(tangent, learning, cross.ntk, y, initial, golden("initial_test"));
      EXPECT_LE(gap(found, golden(name + ".test")), kTolerance) << name;
      found.data()[0] *= 1 + 1e-4;
      EXPECT_FALSE(gap(found, golden(name + ".test")) <= kTolerance);
    } else {
      ADD_FAILURE() << kind;
    }
    ++checked;
  }
  EXPECT_EQ(checked + rates + 1, all.size());
}

TEST(GoldenPredictions, LargestStableRatesOfNeuralTangentsAndOfTheRecursionsThemselves) {
  const Tensor<double> y = golden("y");
  std::map<std::string, double> largest;
  for (const std::string get : {"nngp", "ntk"})
    largest[get] = spectrum(golden(get + ".train")).values.front();
  const std::map<std::string, Descent> descents = {
      {"Steps", Descent::Steps}, {"HeavyBall", Descent::HeavyBall}, {"Nesterov", Descent::Nesterov}};
  constexpr double kRateTolerance = 1e-12;
  std::size_t checked = 0;
  for (const auto& line : lines()) {
    double found = 0;
    if (line[0] == "max_rate") {
      const double momentum = std::stod(line[2]);
      const double rate = largest_stable_rate(Descent::HeavyBall, largest.at(line[1]), momentum);
      found = rate_under(LossScale::HalfMean, rate, y.shape()[0], y.shape()[1]);
      if (momentum == 0) {
        EXPECT_EQ(rate, largest_stable_rate(Descent::Steps, largest.at(line[1])));
      }
    } else if (line[0] == "stable") {
      found = largest_stable_rate(descents.at(line[1]), largest.at(line[2]), std::stod(line[3]),
                                  std::stod(line[4]));
    } else {
      continue;
    }
    const double expected = std::stod(line.back());
    EXPECT_LE(std::abs(found / expected - 1), kRateTolerance) << line[0] << " " << line[1] << " " << line[2];
    EXPECT_FALSE(std::abs(found * (1 + 1e-11) / expected - 1) <= kRateTolerance) << "negative control";
    ++checked;
  }
  EXPECT_EQ(checked, 38U);
}

}  // namespace
}  // namespace gradgram::ntk
