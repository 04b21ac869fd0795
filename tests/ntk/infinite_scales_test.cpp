#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "engine/covariance.hpp"
#include "engine/error.hpp"
#include "engine/npy.hpp"
#include "engine/random.hpp"
#include "models/model.hpp"
#include "ntk/infinite/infinite.hpp"
#include "tests/ntk/infinite_cases.hpp"
#include "tests/source_root.hpp"

namespace gradgram::ntk {
namespace {

using infinite_cases::Case;

/// Made by tests/golden/make_scales.py: multiples, opposites and perturbations of vectors, of sizes 0.001 to
/// 100,000 and norms up to a factor 10,000 apart; vectors and images behind smooth nonlinearities.
std::vector<Case> cases() {
  return infinite_cases::read("scales.txt");
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
  if (entry.input == "areas" || entry.input == "lit") return biased ? 1e-10 : 1e-7;
  if (entry.input == "images" || entry.input == "gray") {
    // A kink takes the angle of parallel and opposite windows from a rounded difference of small numbers.
    return biased || holds(entry, "gelu") ? 1e-10 : 2e-8;
  }
  // Opposite inputs whose cosine is -1 behind another nonlinearity: 2 less a small number.
  if (holds(entry, "layernorm") && !biased) return 2e-8;
  if (entry.input != "behind") return 1e-10;
  return holds(entry, "abs dense(8) relu") ? 1e-8 : 2e-9;
}
constexpr double kSingleBound = 1e-5;

TEST_P(InfiniteScales, DoubleAgreesWithRecursionsInSixtyDigits) {
  compare<double>(GetParam(), double_bound(GetParam()));
}
TEST_P(InfiniteScales, SingleAgreesWithinItsPrecision) {
  compare<float>(GetParam(), kSingleBound);
}

INSTANTIATE_TEST_SUITE_P(All, InfiniteScales, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

/// What a zero input has in common with any other one is the biases, which single precision loses beside the
/// variance of a large one.
TEST(InfiniteZeros, ShareTheBiasesWithInputsOfAnySize) {
  constexpr double kWeight = 1.5;
  constexpr double kBias = 0.1;
  constexpr std::size_t kChannels = 3;
  constexpr std::size_t kExamples = 37;
  Tensor<float> x(Shape{kExamples, kChannels});
  for (std::size_t i = 0; i < kExamples; ++i) {
    for (std::size_t c = 0; c < kChannels; ++c) {
      const double size = std::pow(10.0, static_cast<double>(i) / 5 - 1);  // to 1.6e6
      x(i, c) = i % 12 == 0 ? 0 : static_cast<float>(size * std::sin(static_cast<double>(7 * i + 3 * c + 1)));
    }
  }
  const auto expect = [&](std::size_t i, bool rectified, double& nngp, double& ntk) {
    double square = 0;
    for (std::size_t c = 0; c < kChannels; ++c) square += std::pow(static_cast<double>(x(i, c)), 2);
    const double variance = kWeight * square / static_cast<double>(kChannels) + kBias;
    const double root = std::sqrt(variance * kBias);
    const double angle = std::acos(kBias / root);
    constexpr double kPi = std::numbers::pi;
    const double value =
        rectified ? root * (std::sin(angle) + (kPi - angle) * std::cos(angle)) / (2 * kPi) : kBias;
    const double slope = rectified ? (kPi - angle) / (2 * kPi) : 1;
    nngp = kWeight * value + kBias;
    ntk = nngp + kWeight * slope * kBias;
  };
  const Workers workers(2);
  InfiniteOptions what;
  what.nngp = true;
  const models::NetworkOptions options{.weight_variance = kWeight, .bias_variance = kBias};
  for (const char* text : {"dense(8) relu dense(1)", "dense(8) identity dense(1)"}) {
    const bool rectified = std::string(text).find("relu") != std::string::npos;
    const models::Model model = models::parse(text, {kChannels});
    const auto all = std::as_const(x).view();
    const auto found = infinite_kernel<float>(model, options, all, what, workers);
    const auto block = infinite_kernel<float>(model, options, all, all, what, workers);
    double rounded = 0;
    for (std::size_t zero = 0; zero < kExamples; zero += 12) {
      for (std::size_t i = 0; i < kExamples; ++i) {
        if (i % 12 == 0) continue;
        double nngp = 0;
        double ntk = 0;
        expect(i, rectified, nngp, ntk);
        const auto size = [&](const Tensor<float>& k) {
          return std::sqrt(static_cast<double>(k(i, i)) * static_cast<double>(k(zero, zero)));
        };
        for (const auto* kernels : {&found, &block}) {
          EXPECT_NEAR(kernels->nngp(zero, i), nngp, 1e-5 * size(found.nngp))
              << text << ' ' << zero << ' ' << i;
          EXPECT_NEAR(kernels->nngp(i, zero), nngp, 1e-5 * size(found.nngp))
              << text << ' ' << zero << ' ' << i;
          EXPECT_NEAR(kernels->ntk(zero, i), ntk, 1e-5 * size(found.ntk)) << text << ' ' << zero << ' ' << i;
          EXPECT_NEAR(kernels->ntk(i, zero), ntk, 1e-5 * size(found.ntk)) << text << ' ' << zero << ' ' << i;
        }
        rounded = std::max(rounded, static_cast<double>(std::numeric_limits<float>::epsilon()) *
                                        static_cast<double>(found.nngp(i, i)) / size(found.nngp));
      }
    }
    EXPECT_GT(rounded, 1e-2) << "negative control: half of the larger variance would hold less";
  }
}

/// Multiples that single precision rounded are parallel but for that, and large variances make the derivative
/// of erf see it. Of two components q q' - c^2 is the square of their cross product, which holds no rounding.
TEST(InfiniteScalesLimits, DoubleKeepsTheAnglesThatRoundingLeaves) {
  constexpr std::size_t kExamples = 24;
  Tensor<double> x(Shape{kExamples, 2});
  for (std::size_t i = 0; i < kExamples; ++i) {
    const double size = 1e8 * (1 + static_cast<double>(i) / 3);
    x(i, 0) = static_cast<double>(static_cast<float>(size * std::cos(0.7)));
    x(i, 1) = static_cast<double>(static_cast<float>(size * std::sin(0.7)));
  }
  const auto found = infinite_kernel<double>(models::parse("dense(8) erf dense(1)", {2}),
                                             {.weight_variance = 1, .bias_variance = 0},
                                             std::as_const(x).view(), {}, Workers(1));
  const auto expected = [&](std::size_t i, std::size_t j, double distortion) {
    const double q = (x(i, 0) * x(i, 0) + x(i, 1) * x(i, 1)) / 2;
    const double r = (x(j, 0) * x(j, 0) + x(j, 1) * x(j, 1)) / 2;
    const double c = (x(i, 0) * x(j, 0) + x(i, 1) * x(j, 1)) / 2;
    const double cross = (x(i, 0) * x(j, 1) - x(i, 1) * x(j, 0)) / 2;
    const double root = std::sqrt(1 + 2 * q + 2 * r + distortion * 4 * cross * cross);
    return 2 / std::numbers::pi * (std::atan2(2 * c, root) + 2 * c / root);
  };
  double worst = 0;
  double corrupted = 0;
  for (std::size_t i = 0; i < kExamples; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      const double size = std::sqrt(found.ntk(i, i) * found.ntk(j, j));
      worst = std::max(worst, std::abs(found.ntk(i, j) - expected(i, j, 1)) / size);
      corrupted = std::max(corrupted, std::abs(found.ntk(i, j) - expected(i, j, 1 + 1e-8)) / size);
    }
  }
  EXPECT_LE(worst, 1e-11);
  EXPECT_GT(corrupted, 1e-10) << "negative control";
}

/// The same behind a rectifier: 1 - cosine of what it leaves is that of its inputs less a term of higher
/// order.
TEST(InfiniteScalesLimits, DoubleKeepsAnglesBehindARectifier) {
  constexpr long double kPi = std::numbers::pi_v<long double>;
  constexpr std::size_t kExamples = 40;
  for (const double size : {1e3, 1e6, 1e8}) {
    Tensor<double> x(Shape{kExamples, 2});
    for (std::size_t i = 0; i < kExamples; ++i) {
      const double angle = 0.7 + (i % 5 == 0 ? 0 : std::pow(10.0, -static_cast<double>(i) / 3));
      const double norm = size * (1 + static_cast<double>(i % 7) / 3);
      x(i, 0) = norm * std::cos(angle);
      x(i, 1) = norm * std::sin(angle);
    }
    for (const bool mirrored : {false, true}) {
      const auto found = infinite_kernel<double>(
          models::parse(
              mirrored ? "dense(8) abs dense(8) erf dense(1)" : "dense(8) relu dense(8) erf dense(1)", {2}),
          {.weight_variance = 1, .bias_variance = 0}, std::as_const(x).view(), {}, Workers(1));
      const long double scale = mirrored ? 1 : 0.5L;
      const long double ratio = mirrored ? 2 / kPi : 1 / kPi;
      const auto expected = [&](std::size_t i, std::size_t j, long double distortion) {
        const auto at = [&](std::size_t n, std::size_t k) { return static_cast<long double>(x(n, k)); };
        const long double q = (at(i, 0) * at(i, 0) + at(i, 1) * at(i, 1)) / 2;
        const long double r = (at(j, 0) * at(j, 0) + at(j, 1) * at(j, 1)) / 2;
        const long double c = (at(i, 0) * at(j, 0) + at(i, 1) * at(j, 1)) / 2;
        const long double cross = (at(i, 0) * at(j, 1) - at(i, 1) * at(j, 0)) / 2;
        const long double angle = std::atan2(std::abs(cross), c);
        const long double half = std::sin(angle / 2);
        const long double lune = angle < 1e-2L ? angle * angle * angle * (1 / 3.0L - angle * angle / 30)
                                               : std::sin(angle) - angle * std::cos(angle);
        const long double versine = (2 * half * half - ratio * lune) * distortion;
        const long double roots = scale * std::sqrt(q * r);
        const long double covariance = roots * (1 - versine);
        const long double tangent = covariance + c * scale * (1 - ratio * angle);
        const long double root =
            std::sqrt(1 + 2 * scale * (q + r) + 4 * roots * roots * versine * (2 - versine));
        return static_cast<double>(2 / kPi * (std::atan2(2 * covariance, root) + 2 * tangent / root));
      };
      double worst = 0;
      double corrupted = 0;
      for (std::size_t i = 0; i < kExamples; ++i) {
        for (std::size_t j = 0; j <= i; ++j) {
          const double own = std::sqrt(found.ntk(i, i) * found.ntk(j, j));
          worst = std::max(worst, std::abs(found.ntk(i, j) - expected(i, j, 1)) / own);
          corrupted = std::max(corrupted, std::abs(found.ntk(i, j) - expected(i, j, 1 + 1e-5L)) / own);
        }
      }
      EXPECT_LE(worst, size > 1e7 ? 2e-9 : 1e-10);
      EXPECT_GT(corrupted, 1e-7) << "negative control";
    }
  }
}

/// What simd::ParallelPixels promises, as it is written there, in f64.
double plain_parallel_pixels(const simd::ParallelPixels<float>& pixels) {
  const auto pair = [&](std::size_t i, std::size_t j) {
    const double a = static_cast<double>(pixels.left[i]);
    const double b = static_cast<double>(pixels.right[j]);
    double apart = 0;
    double sign = 0;
    for (std::size_t k = 1; k <= simd::kParallelDirections; ++k) {
      const double u = static_cast<double>(pixels.left[k * pixels.left_stride + i]);
      const double v = static_cast<double>(pixels.right[k * pixels.right_stride + j]);
      apart = std::max(apart, std::abs(std::abs(u) - std::abs(v)));
      sign += u * v;
    }
    if (apart >= static_cast<double>(pixels.reach)) return 0.0;
    const double gap = std::abs(a - b);
    const double opposite = sign < 0 ? static_cast<double>(pixels.opposite) * a * b : 0;
    const double e = static_cast<double>(pixels.rounding) * (gap * (std::sqrt(a * b) + gap) + opposite);
    const double least = std::sqrt(a * b * 2 * e);
    return apart == 0 ? least : std::min(least, e / apart);
  };
  double sum = 0;
  for (std::size_t i = 0; i < pixels.rows; i += pixels.row_step) {
    for (std::size_t j = 0; j < pixels.columns; ++j) {
      if (!pixels.equal || i == j) sum += pair(i, j);
    }
  }
  return sum;
}

TEST(InfiniteParallelPixels, AreSummedAsPlainly) {
  constexpr std::size_t kStride = 80;
  constexpr std::size_t kArrays = 1 + simd::kParallelDirections;
  Random random(31);
  for (const std::size_t pixels : {1U, 5U, 15U, 16U, 17U, 33U, 67U}) {
    // A few directions, each with multiples, opposites and perturbations.
    std::vector<float> sides[2];
    for (std::vector<float>& side : sides) {
      side.assign(kArrays * kStride, 0);
      for (std::size_t i = 0; i < pixels; ++i) {
        side[i] = static_cast<float>(1 + (i + (&side == sides ? 0 : 2)) % 7) / 3;
        for (std::size_t k = 1; k < kArrays; ++k) {
          const double noise = (i % 4 == 0 ? 0 : i % 4 == 1 ? 1e-4 : 0.02) * random.normal();
          const double value = std::sin(static_cast<double>(i % 3 + 5 * k)) + noise;
          side[k * kStride + i] = static_cast<float>(i % 5 == 0 ? -value : value);
        }
      }
    }
    for (const bool equal : {false, true}) {
      for (const float opposite : {0.0F, 1.0F}) {
        for (const float reach : {0.01F, 2.0F}) {
          simd::ParallelPixels<float> run;
          run.rows = run.columns = pixels;
          run.row_step = equal ? 1 : 3;
          run.left = sides[0].data();
          run.right = sides[1].data();
          run.left_stride = run.right_stride = kStride;
          run.equal = equal;
          run.reach = reach;
          run.rounding = 1e-7F;
          run.opposite = opposite;
          run.enough = 1e30;
          const double plain = plain_parallel_pixels(run);
          const double found = covariance_kernels<float>().parallel_pixels(run);
          // Differences of features near one are known to half a unit of theirs, and least differ by 1e-6.
          EXPECT_NEAR(found, plain, 1e-3 * plain)
              << pixels << ' ' << equal << ' ' << opposite << ' ' << reach;
          EXPECT_TRUE(plain > 0 || pixels < 5);
          run.rounding = 1.02e-7F;
          EXPECT_TRUE(plain == 0 || std::abs(plain_parallel_pixels(run) - found) > 1e-3 * plain)
              << "negative control";
        }
      }
    }
  }
}

template <class Error>
std::string refusal(const std::string& text, const models::NetworkOptions& options, const Tensor<double>& x,
                    const InfiniteOptions& what = {}) {
  try {
    infinite_kernel<double>(models::parse(text, x.shape().inner()), options, x.view(), what, Workers(1));
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// Behind another nonlinearity angles are known to the roundings of its covariance.
TEST(InfiniteScalesLimits, RefusesSteepStepsBehindAnotherNonlinearity) {
  const std::vector<double> large{3e8, -1e8, 2e8, 6e8, -2e8, 4e8};
  const Tensor<double> vectors(Shape{2, 3}, large);
  for (const std::string function : {"erf", "tanh", "sigmoid", "sin", "cos"}) {
    const std::string text =
        refusal<NumericError>("dense(8) gelu dense(8) " + function + " dense(1)", {}, vectors);
    EXPECT_NE(text.find("layer 3 '" + function + "' sees variances up to 3.7"), std::string::npos) << text;
    EXPECT_NE(text.find("behind another nonlinearity, where 4.5e+10 is the most"), std::string::npos) << text;
  }
  const std::string waves = refusal<NumericError>("dense(8) relu dense(8) sin dense(1)", {}, vectors);
  EXPECT_NE(waves.find("where 4.5e+10 is the most"), std::string::npos) << waves;
  const std::string steep =
      refusal<NumericError>("dense(8) relu dense(8) erf dense(1)", {.weight_variance = 1e4}, vectors);
  EXPECT_NE(steep.find("where 1e+18 is the most"), std::string::npos) << steep;
  const Tensor<double> image(Shape{1, 1, 2, 3}, large);
  const std::string text = refusal<NumericError>("conv(8,1) erf gap dense(1)", {}, image);
  EXPECT_NE(text.find("layer 1 'erf' sees variances up to"), std::string::npos) << text;
  EXPECT_NE(text.find("between pixels"), std::string::npos) << text;
  // What does not read the angle, or reads it as it was given.
  InfiniteOptions covariances;
  covariances.nngp = true;
  covariances.ntk = false;
  EXPECT_EQ(refusal<NumericError>("dense(8) gelu dense(8) erf dense(1)", {}, vectors, covariances), "");
  EXPECT_EQ(refusal<NumericError>("dense(8) gelu dense(8) gelu dense(1)", {}, vectors), "");
  EXPECT_EQ(refusal<NumericError>("dense(8) relu dense(8) erf dense(1)", {}, vectors), "");
  EXPECT_EQ(refusal<NumericError>("dense(8) dense(8) erf dense(1)", {}, vectors), "");
}

TEST(InfiniteScalesLimits, RefusesInputsWhoseSquaresAreNoNumbers) {
  const std::string model = "dense(8) relu dense(1)";
  for (const double size : {1e-146, 1e-155, 1e-160, 1e-170, 5e-324}) {
    for (const double bias : {0.0, 0.1}) {
      const Tensor<double> x(Shape{2, 2}, std::vector<double>{1, 2, -size, size});
      const std::string text = refusal<NumericError>(model, {.bias_variance = bias}, x);
      EXPECT_NE(text.find("x: example 1 holds numbers so small that their mean square is"), std::string::npos)
          << text;
      EXPECT_NE(text.find("where 1e-290 is the least"), std::string::npos) << text;
    }
  }
  // The same kernel, up to the scale, where they are not refused; a small pixel beside others is not.
  const Tensor<double> least(Shape{2, 2}, std::vector<double>{1e-144, 2e-144, -3e-144, 1e-144});
  const Tensor<double> one(Shape{2, 2}, std::vector<double>{1, 2, -3, 1});
  const auto small = infinite_kernel<double>(models::parse(model, {2}), {}, least.view(), {}, Workers(1));
  const auto unit = infinite_kernel<double>(models::parse(model, {2}), {}, one.view(), {}, Workers(1));
  EXPECT_NEAR(small.ntk(0, 1) / small.ntk(0, 0), unit.ntk(0, 1) / unit.ntk(0, 0), 1e-12);
  const Tensor<double> pixels(Shape{1, 1, 2, 2}, std::vector<double>{1e-200, 0, 1, 2});
  EXPECT_EQ(refusal<NumericError>("conv(8,1) relu gap dense(1)", {}, pixels), "");
  const std::string power = refusal<NumericError>("dense(8) monomial(2) dense(1)", {}, least);
  EXPECT_NE(power.find("the largest variance after layer 1 'monomial(2)' is 0, that before it 1e-287"),
            std::string::npos)
      << power;
}

TEST(InfiniteScalesLimits, RefusesWeightsAndBiasesOfALayerOutsideTheRangeOfAll) {
  const Tensor<double> x(Shape{1, 2}, std::vector<double>{1, 2});
  for (const std::string scale : {"1e38", "1e16", "1e-16", "1e-30"}) {
    for (const std::string which : {"sigma_w", "sigma_b"}) {
      const std::string text =
          refusal<ArgumentError>("dense(8) relu dense(8," + which + "=" + scale + ") relu dense(1)", {}, x);
      EXPECT_NE(text.find("infinite_kernel: layer 2 'dense(8," + which), std::string::npos) << text;
      EXPECT_NE(text.find("': " + which + ": found 1e"), std::string::npos) << text;
      EXPECT_NE(text.find(scale.substr(2) + ", expected 1e-15 to 1e+15"), std::string::npos) << text;
    }
  }
  for (const std::string scale : {"1e15", "1.1e-15"}) {
    for (const std::string which : {"sigma_w", "sigma_b"}) {
      EXPECT_EQ(refusal<ArgumentError>("dense(8," + which + "=" + scale + ") relu dense(1)", {}, x), "")
          << scale;
    }
  }
}

TEST(InfiniteScalesLimits, RefusesVariancesWhoseSquareIsNoNumber) {
  const Tensor<double> x(Shape{2, 1}, std::vector<double>{1e76, -1e76});
  for (const char* function : {"tanh", "sigmoid", "softplus", "erf", "gelu", "sin", "cos"}) {
    const models::Model model = models::parse("dense(8) " + std::string(function) + " dense(1)", {1});
    for (const bool tangent : {true, false}) {
      InfiniteOptions what;
      what.nngp = !tangent;
      what.ntk = tangent;
      try {
        infinite_kernel<double>(model, {}, x.view(), what, Workers(1));
        ADD_FAILURE() << function << ": no error";
      } catch (const NumericError& error) {
        EXPECT_NE(
            std::string(error.what()).find("layer 1 '" + std::string(function) + "' sees variances up to"),
            std::string::npos)
            << error.what();
      }
    }
  }
  // Nothing is multiplied in kernels of homogeneous functions.
  const auto found =
      infinite_kernel<double>(models::parse("dense(8) relu dense(1)", {1}), {}, x.view(), {}, Workers(1));
  EXPECT_NEAR(found.ntk(0, 0) / 4e152, 1, 1e-12);
  EXPECT_NEAR(found.ntk(0, 1) / 4e152, 0, 1e-12);
}

}  // namespace
}  // namespace gradgram::ntk
