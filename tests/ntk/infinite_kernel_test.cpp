#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/error.hpp"
#include "engine/random.hpp"
#include "models/model.hpp"
#include "models/network.hpp"
#include "ntk/infinite/infinite.hpp"
#include "ntk/kernel.hpp"
#include "ntk/spectrum.hpp"
#include "tests/reference/infinite_cntk.hpp"

namespace gradgram::ntk {
namespace {

models::NetworkOptions variances(double weight, double bias) {
  models::NetworkOptions options;
  options.parameterization = models::Parameterization::Ntk;
  options.weight_variance = weight;
  options.bias_variance = bias;
  return options;
}

template <class T>
Tensor<T> normal(Shape shape, std::uint64_t seed) {
  Tensor<T> result(shape);
  Random random(seed);
  for (T& value : result.span()) value = static_cast<T>(random.normal());
  return result;
}

template <class T>
InfiniteKernels<T> both(const std::string& text, const models::NetworkOptions& options, const Tensor<T>& x,
                        std::size_t threads = 1) {
  InfiniteOptions what;
  what.nngp = true;
  return infinite_kernel<T>(models::parse(text, x.shape().inner()), options, x.view(), what,
                            Workers(threads));
}

/// E[f(u) g(v)] for centred Gaussians by the trapezoidal rule in both directions, which needs no smoothness
/// beyond what the integrand has: a plain oracle.
double expectation(const std::function<double(double)>& f, double q, double r, double c) {
  const double step = 0.02;
  const double reach = 9;
  const double pi = std::acos(-1.0);
  const double a = std::sqrt(q);
  const double b = c / a;
  const double rest = std::sqrt(std::max(0.0, r - b * b));
  double sum = 0;
  for (double s = -reach + step / 2; s < reach; s += step) {
    double inner = 0;
    for (double t = -reach + step / 2; t < reach; t += step)
      inner += std::exp(-t * t / 2) * f(b * s + rest * t);
    sum += std::exp(-s * s / 2) * f(a * s) * inner;
  }
  return sum * step * step / (2 * pi);
}

struct Function {
  std::string name;
  std::function<double(double)> value, slope;
  double tolerance;  ///< that of the oracle: functions with a kink converge as the step squared
};

std::vector<Function> functions() {
  const double pi = std::acos(-1.0);
  const auto phi = [](double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; };
  const auto density = [pi](double x) { return std::exp(-x * x / 2) / std::sqrt(2 * pi); };
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  return {
      {"relu", [](double x) { return std::max(x, 0.0); }, [](double x) { return x > 0 ? 1.0 : 0.0; }, 2e-3},
      {"leakyrelu(0.3)", [](double x) { return x > 0 ? x : 0.3 * x; },
       [](double x) { return x > 0 ? 1 : 0.3; }, 2e-3},
      {"abs", [](double x) { return std::abs(x); }, [](double x) { return x > 0 ? 1.0 : -1.0; }, 2e-3},
      {"erf", [](double x) { return std::erf(x); },
       [pi](double x) { return 2 / std::sqrt(pi) * std::exp(-x * x); }, 1e-11},
      {"gelu", [phi](double x) { return x * phi(x); },
       [phi, density](double x) { return phi(x) + x * density(x); }, 1e-11},
      {"sin", [](double x) { return std::sin(x); }, [](double x) { return std::cos(x); }, 1e-11},
      {"cos", [](double x) { return std::cos(x); }, [](double x) { return -std::sin(x); }, 1e-11},
      {"monomial(3)", [](double x) { return x * x * x; }, [](double x) { return 3 * x * x; }, 1e-11},
      {"monomial(4)", [](double x) { return x * x * x * x; }, [](double x) { return 4 * x * x * x; }, 1e-11},
      {"tanh", [](double x) { return std::tanh(x); },
       [](double x) { return 1 / (std::cosh(x) * std::cosh(x)); }, 1e-11},
      {"sigmoid", sigmoid, [sigmoid](double x) { return sigmoid(x) * (1 - sigmoid(x)); }, 1e-11},
      {"softplus", [](double x) { return std::log1p(std::exp(x)); }, sigmoid, 1e-11},
  };
}

TEST(InfiniteKernel, EveryNonlinearityAgreesWithPlainQuadrature) {
  const Tensor<double> x(Shape{3, 2}, std::vector<double>{0.9, -0.4, 0.3, 1.1, -1.3, 0.2});
  for (const Function& function : functions()) {
    const auto found = both<double>("dense(4) " + function.name + " dense(1)", variances(1.3, 0.2), x);
    for (std::size_t i = 0; i < 3; ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        const auto product = [&](std::size_t a, std::size_t b) {
          return 1.3 * (x(a, 0) * x(b, 0) + x(a, 1) * x(b, 1)) / 2 + 0.2;
        };
        const double value = expectation(function.value, product(i, i), product(j, j), product(i, j));
        const double slope = expectation(function.slope, product(i, i), product(j, j), product(i, j));
        const double nngp = 1.3 * value + 0.2;
        const double ntk = nngp + 1.3 * slope * product(i, j);
        const double scale = std::sqrt(found.nngp(i, i) * found.nngp(j, j));
        EXPECT_LE(std::abs(found.nngp(i, j) - nngp), function.tolerance * scale) << function.name;
        EXPECT_LE(std::abs(found.ntk(i, j) - ntk), 4 * function.tolerance * scale) << function.name;
        EXPECT_GT(std::abs(found.ntk(i, j) + 10 * function.tolerance * scale - ntk),
                  4 * function.tolerance * scale)
            << "negative control";
      }
    }
  }
}

TEST(InfiniteKernel, AgreesWithThePlainCntkRecursion) {
  const std::size_t h = 5;
  const std::size_t w = 4;
  const Tensor<double> x = normal<double>({3, h, w, 2}, 5);
  for (const bool pooling : {true, false}) {
    for (const std::size_t kernel : {1U, 2U, 3U}) {
      reference::CntkModel model;
      model.layers = 3;
      model.kernel = kernel;
      model.weight_variance = 1.7;
      model.bias_variance = 0.1;
      model.pooling = pooling;
      const std::string conv = "conv(4," + std::to_string(kernel) + ") relu ";
      const auto found = both<double>(conv + conv + conv + (pooling ? "gap" : "flatten") + " dense(1)",
                                      variances(1.7, 0.1), x);
      for (std::size_t i = 0; i < 3; ++i) {
        for (std::size_t j = 0; j <= i; ++j) {
          const auto image = [&](std::size_t k) {
            const auto span = x.view().slice(k).span();
            return std::vector<double>(span.begin(), span.end());
          };
          const auto expected = reference::cntk(model, image(i), image(j), h, w, 2);
          // The plain recursion takes roots of rounded differences where pixels meet themselves.
          const double tolerance = (i == j ? 1e-6 : 1e-11) * expected.ntk;
          EXPECT_LE(std::abs(found.nngp(i, j) - expected.nngp), tolerance);
          EXPECT_LE(std::abs(found.ntk(i, j) - expected.ntk), tolerance);
        }
      }
    }
  }
}

/// Images as they come: noise, a near-duplicate of it, constants, zeros, a duplicate.
template <class T>
Tensor<T> hard_images() {
  const std::size_t side = 6;
  Tensor<T> x = normal<T>({7, side, side, 3}, 11);
  const std::size_t size = side * side * 3;
  T* const data = x.data();
  for (std::size_t k = 0; k < size; ++k) {
    data[size + k] = data[k] * (k % 5 == 0 ? T(1.0001) : T(1));
    data[2 * size + k] = T(0.7);
    data[3 * size + k] = T(-0.2);
    data[4 * size + k] = T(0);
    data[5 * size + k] = data[k];
  }
  return x;
}

const std::vector<std::string>& image_models() {
  static const std::vector<std::string> models = {
      "conv(8,3) relu conv(8,3) relu gap dense(1)",
      "conv(8,3) relu conv(8,3) relu flatten dense(1)",
      "conv(8,3) relu avgpool(2) conv(8,3) relu conv(8,3) relu flatten dense(1)",
      "conv(8,3) erf residual(conv(8,3) gelu conv(8,3)) conv(8,2,pad=valid) abs gap dense(1)",
      "flatten dense(8) relu dense(8) relu dense(8) relu dense(1)",
  };
  return models;
}

TEST(InfiniteKernel, SingleAgreesWithDoubleOnHardImages) {
  for (const std::string& text : image_models()) {
    const auto wide = both<double>(text, variances(2, 0), hard_images<double>());
    const auto single = both<float>(text, variances(2, 0), hard_images<float>());
    double worst = 0;
    for (std::size_t i = 0; i < 7; ++i) {
      for (std::size_t j = 0; j < 7; ++j) {
        const double scale = std::sqrt(wide.ntk(i, i) * wide.ntk(j, j));
        const double error = std::abs(static_cast<double>(single.ntk(i, j)) - wide.ntk(i, j));
        if (scale == 0) {
          EXPECT_EQ(single.ntk(i, j), 0.0F);
        } else {
          EXPECT_LE(error, 1e-5 * scale) << text << " (" << i << ", " << j << ")";
          worst = std::max(worst, error / scale);
        }
      }
    }
    RecordProperty("worst", std::to_string(worst));
  }
}

/// Images of a few areas of one number each, from black to white: most windows are parallel.
Tensor<float> areas(std::size_t height, std::size_t width, std::size_t channels) {
  constexpr std::size_t kImages = 24;
  constexpr float kLevels[] = {0, 1, 30, 100, 255};
  Tensor<float> x(Shape{kImages, height, width, channels});
  for (std::size_t i = 0; i < kImages; ++i) {
    for (std::size_t p = 0; p < height * width; ++p) {
      const bool inside = i % 4 != 0 && (p % width + i) % width < width / 2 && p / width < height - i % 3;
      const float level = kLevels[(inside ? i / 2 + 1 : i) % 5];
      for (std::size_t c = 0; c < channels; ++c) x.data()[(i * height * width + p) * channels + c] = level;
    }
  }
  return x;
}

/// Largest |single - exact| / sqrt(exact_ii exact_jj).
double worst_entry(const Tensor<float>& single, const Tensor<double>& exact) {
  double worst = 0;
  for (std::size_t i = 0; i < exact.shape()[0]; ++i) {
    for (std::size_t j = 0; j < exact.shape()[0]; ++j) {
      const double error = std::abs(static_cast<double>(single(i, j)) - exact(i, j));
      const double relative = error / std::sqrt(exact(i, i) * exact(j, j));
      if (!(relative <= worst)) worst = relative;
    }
  }
  return worst;
}

TEST(InfiniteKernel, SingleHoldsImagesOfAreas) {
  const Workers workers(2);
  for (const std::string text :
       {"conv(8,3) relu conv(8,3) relu flatten dense(1)", "conv(8,3) relu conv(8,3) relu gap dense(1)",
        "conv(8,3) relu conv(8,3) relu avgpool(2) conv(8,3) relu flatten dense(1)",
        "conv(8,3) leakyrelu(0.1) conv(8,3) abs flatten dense(1)",
        "conv(8,3) abs conv(8,3) relu conv(8,3) relu gap dense(1)",
        "conv(8,3,stride=2) relu residual(conv(8,3) relu conv(8,3)) conv(8,1) relu gap dense(1)",
        "flatten dense(8) relu dense(8) relu dense(1)"}) {
    for (const double bias : {0.0, 0.1}) {
      const Tensor<float> x = areas(10, 9 + (text.find("avgpool") == std::string::npos ? 0U : 1U), 3);
      Tensor<double> wide(x.shape());
      std::ranges::copy(x.span(), wide.span().begin());
      const auto exact = both<double>(text, variances(2, bias), wide);
      const auto single = both<float>(text, variances(2, bias), x);
      const std::size_t n = x.shape()[0];
      const auto worst = [&](const Tensor<float>& found, const Tensor<double>& golden) {
        double result = 0;
        for (std::size_t i = 0; i < n; ++i) {
          for (std::size_t j = 0; j < n; ++j) {
            const double scale = std::sqrt(golden(i, i) * golden(j, j));
            const double error = std::abs(static_cast<double>(found(i, j)) - golden(i, j));
            if (scale == 0) {
              EXPECT_EQ(found(i, j), 0.0F);
            } else if (!(error / scale <= result)) {
              result = error / scale;
            }
          }
        }
        return result;
      };
      EXPECT_LE(worst(single.ntk, exact.ntk), 1e-5) << text << " bias " << bias;
      EXPECT_LE(worst(single.nngp, exact.nngp), 1e-5) << text << " bias " << bias;
      Tensor<float> corrupted = single.ntk.clone();
      corrupted(2, 1) += static_cast<float>(2e-5 * std::sqrt(exact.ntk(1, 1) * exact.ntk(2, 2)));
      EXPECT_GT(worst(corrupted, exact.ntk), 1e-5) << "negative control";
      // As one, on other threads, and in blocks.
      const auto threads = both<float>(text, variances(2, bias), x, 3);
      EXPECT_TRUE(std::ranges::equal(single.ntk.span(), threads.ntk.span())) << text;
      const models::Model model = models::parse(text, x.shape().inner());
      const auto beside = infinite_kernel<float>(model, variances(2, bias), x.view(), x.view(), {}, workers);
      EXPECT_LE(worst(beside.ntk, exact.ntk), 1e-5) << text << " bias " << bias << ", as two sides";
      InfiniteKernel<float> blocks(model, variances(2, bias), x.view(), {}, workers);
      Tensor<float> block(Shape{13, 17});
      blocks.block({9, 22}, {3, 20}, {.ntk = block.data(), .stride = 17});
      for (std::size_t i = 0; i < 13; ++i) {
        for (std::size_t j = 0; j < 17; ++j) EXPECT_EQ(block(i, j), single.ntk(i + 9, j + 3)) << text;
      }
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < i; ++j) EXPECT_EQ(single.ntk(i, j), single.ntk(j, i)) << text;
      }
    }
  }
}

std::string repeated(const std::string& layers, std::size_t times) {
  std::string text;
  for (std::size_t i = 0; i < times; ++i) text += layers + " ";
  return text + "dense(1)";
}

/// Six directions, each with multiples that are exact but for rounding, and with tiny perturbations of them.
Tensor<float> multiples() {
  const std::vector<float> factors{1, 0.01F, 3, -2, -1, 1.001F, 1.1F, -0.3F};
  const std::vector<float> noises{0, 1e-6F, 1e-4F, 3e-3F, 3e-2F};
  constexpr std::size_t kInputs = 37;
  const Tensor<float> directions = normal<float>({6, kInputs}, 11);
  const std::size_t each = factors.size() * noises.size();
  const Tensor<float> noise = normal<float>({6 * each, kInputs}, 12);
  Tensor<float> x(noise.shape());
  for (std::size_t i = 0; i < 6 * each; ++i) {
    const float factor = factors[i % factors.size()];
    const float amount = noises[i / factors.size() % noises.size()];
    for (std::size_t k = 0; k < kInputs; ++k) {
      x(i, k) = factor * (directions(i / each, k) + amount * noise(i, k));
    }
  }
  return x;
}

TEST(InfiniteKernel, SingleKeepsTheAnglesOfMultiples) {
  const Tensor<float> x = multiples();
  Tensor<double> wide(x.shape());
  std::ranges::copy(x.span(), wide.span().begin());
  for (const std::string& text :
       {repeated("dense(8) relu", 1), repeated("dense(8) relu", 12), repeated("dense(8) abs", 12),
        repeated("dense(8) leakyrelu(0.1)", 3), repeated("dense(8) layernorm relu", 2),
        std::string("dense(8) residual(relu dense(8)) relu dense(1)")}) {
    for (const double bias : {0.0, 0.1}) {
      const auto exact = both<double>(text, variances(2, bias), wide);
      const auto single = both<float>(text, variances(2, bias), x);
      EXPECT_LE(worst_entry(single.ntk, exact.ntk), 1e-5) << text << " bias " << bias;
      EXPECT_LE(worst_entry(single.nngp, exact.nngp), 1e-5) << text << " bias " << bias;
      const auto threads = both<float>(text, variances(2, bias), x, 3);
      EXPECT_TRUE(std::ranges::equal(single.ntk.span(), threads.ntk.span()));
      InfiniteOptions what;
      const Workers workers(2);
      const auto beside = infinite_kernel<float>(models::parse(text, x.shape().inner()), variances(2, bias),
                                                 x.view(), x.view(), what, workers);
      EXPECT_LE(worst_entry(beside.ntk, exact.ntk), 1e-5) << text << " bias " << bias << ", as two sides";
      InfiniteKernel<float> blocks(models::parse(text, x.shape().inner()), variances(2, bias), x.view(), what,
                                   workers);
      Tensor<float> block(Shape{70, 50});
      blocks.block({7, 77}, {41, 91}, {.ntk = block.data(), .stride = 50});
      for (std::size_t i = 0; i < 240; ++i) {
        for (std::size_t j = 0; j < i; ++j) EXPECT_EQ(single.ntk(i, j), single.ntk(j, i));
      }
      for (std::size_t i = 0; i < 70; ++i) {
        for (std::size_t j = 0; j < 50; ++j) EXPECT_EQ(block(i, j), single.ntk(i + 7, j + 41));
      }
    }
  }
}

/// dense + x^degree, `depth` times, and a dense layer, in covariances themselves: nothing cancels.
std::pair<double, double> power_kernels(int degree, int depth, const std::vector<double>& a,
                                        const std::vector<double>& b) {
  using Wide = long double;
  const auto product = [](const std::vector<double>& u, const std::vector<double>& v) {
    Wide sum = 0;
    for (std::size_t k = 0; k < u.size(); ++k) sum += static_cast<Wide>(u[k]) * static_cast<Wide>(v[k]);
    return sum / static_cast<Wide>(u.size());
  };
  Wide q = product(a, a);
  Wide r = product(b, b);
  Wide c = product(a, b);
  Wide tangent = c;
  for (int layer = 0; layer < depth; ++layer) {
    const Wide slope = degree == 2 ? 4 * c : 9 * (q * r + 2 * c * c);
    c = degree == 2 ? q * r + 2 * c * c : c * (9 * q * r + 6 * c * c);
    q = degree == 2 ? 3 * q * q : 15 * q * q * q;
    r = degree == 2 ? 3 * r * r : 15 * r * r * r;
    tangent = c + slope * tangent;
  }
  return {static_cast<double>(c), static_cast<double>(tangent)};
}

/// In f32 covariances are too little known far from norms of one: erf and its like run in f64 inside.
// Only |x| makes opposites equal; a steeper slope below zero leaves them at an angle of their own. Values of
// the recursion in 50 digits.
TEST(InfiniteKernel, SteepNegativeSlopesTellOppositesFromDuplicates) {
  const Tensor<double> x(Shape{3, 3}, std::vector<double>{1, 2, 3, -2, -4, -6, -2, -4, -5});
  const auto found = both<double>("dense(3) leakyrelu(-2) dense(3) erf dense(1)", variances(2, 0), x);
  EXPECT_NEAR(found.ntk(1, 0), 4.50318537, 1e-8);
  EXPECT_NEAR(found.ntk(2, 0), 4.35375677, 1e-8);
  EXPECT_NEAR(found.nngp(1, 0), 1.16945548, 1e-8);
  // Far from parallel once more behind a rectifier, sin^2 is one but for its rounding.
  const auto twice = both<double>("dense(3) relu dense(3) relu dense(3) erf dense(1)", variances(2, 0), x);
  // Opposites are at a right angle behind the first relu, at cosine 1 / pi behind the second.
  const double q = 28.0 / 3, r = 4 * q;
  const double covariance = std::sqrt(q * r) / std::numbers::pi;
  EXPECT_NEAR(twice.nngp(1, 0),
              4 / std::numbers::pi * std::asin(2 * covariance / std::sqrt((1 + 2 * q) * (1 + 2 * r))), 1e-12);
}

TEST(InfiniteKernel, SmoothNonlinearitiesKeepTheirPrecisionInSingleAtAnyScale) {
  const long double pi = std::acos(-1.0L);
  for (const double scale : {1e-3, 1e-2, 1.0, 1e2, 1e3}) {
    Tensor<float> x = normal<float>({5, 7}, 19);
    for (float& value : x.span()) value *= static_cast<float>(scale);
    const auto found = both<float>("dense(1) erf dense(1)", variances(1, 0), x);
    const auto product = [&](std::size_t a, std::size_t b) {
      long double sum = 0;
      for (std::size_t c = 0; c < 7; ++c) sum += static_cast<long double>(x(a, c)) * x(b, c);
      return sum / 7;
    };
    for (std::size_t i = 0; i < 5; ++i) {
      for (std::size_t j = 0; j <= i; ++j) {
        const long double q = 1 + 2 * product(i, i);
        const long double r = 1 + 2 * product(j, j);
        const long double c = product(i, j);
        const long double nngp = 2 / pi * std::asin(2 * c / std::sqrt(q * r));
        const long double ntk = nngp + 4 / pi * c / std::sqrt(q * r - 4 * c * c);
        const double unit = std::sqrt(static_cast<double>(found.ntk(i, i)) * found.ntk(j, j));
        const double nngp_unit = std::sqrt(static_cast<double>(found.nngp(i, i)) * found.nngp(j, j));
        EXPECT_LE(std::abs(static_cast<double>(found.nngp(i, j) - nngp)), 1e-5 * nngp_unit) << scale;
        EXPECT_LE(std::abs(static_cast<double>(found.ntk(i, j) - ntk)), 1e-5 * unit) << scale;
        EXPECT_GT(std::abs(static_cast<double>(found.ntk(i, j) + 2e-5 * unit - ntk)), 1e-5 * unit)
            << "negative control";
      }
    }
    for (std::size_t c = 0; c < 7; ++c) x(1, c) *= 0.01F;
    for (const char* text : {"dense(1) gelu dense(1) gelu dense(1)", "dense(1) sin dense(1) sin dense(1)",
                             "dense(1) cos dense(1)", "dense(1) layernorm relu dense(1)"}) {
      const auto single = both<float>(text, variances(1, 0), x);
      const auto wide =
          both<double>(text, variances(1, 0),
                       Tensor<double>(x.shape(), std::vector<double>(x.span().begin(), x.span().end())));
      EXPECT_LE(worst_entry(single.ntk, wide.ntk), 1e-5) << text << " " << scale;
      EXPECT_LE(worst_entry(single.nngp, wide.nngp), 1e-5) << text << " " << scale;
    }
  }
}

TEST(InfiniteKernel, DeepMonomialsKeepTheirPrecisionOrSayThatTheyCannot) {
  constexpr std::size_t kExamples = 9;
  constexpr std::size_t kInputs = 24;
  for (const int degree : {2, 3}) {
    const std::string text = repeated("dense(8) monomial(" + std::to_string(degree) + ")", 4);
    Tensor<float> x = normal<float>({kExamples, kInputs}, 3);
    const Tensor<float> shared = normal<float>({kInputs}, 4);
    // Acute angles, so that cosines have powers; norms within 20%, small enough for the 81st power.
    for (std::size_t i = 0; i < kExamples; ++i) {
      double sum = 0;
      for (std::size_t k = 0; k < kInputs; ++k) {
        x(i, k) = shared(k) + 0.05F * x(i, k);
        sum += static_cast<double>(x(i, k) * x(i, k));
      }
      const double norm = 0.4 * (1 + 0.025 * static_cast<double>(i));
      const auto factor = static_cast<float>(norm * std::sqrt(kInputs / sum));
      for (std::size_t k = 0; k < kInputs; ++k) x(i, k) *= factor;
    }
    Tensor<double> nngp(Shape{kExamples, kExamples});
    Tensor<double> ntk(nngp.shape());
    for (std::size_t i = 0; i < kExamples; ++i) {
      for (std::size_t j = 0; j < kExamples; ++j) {
        const std::vector<double> a(x.view().slice(i).span().begin(), x.view().slice(i).span().end());
        const std::vector<double> b(x.view().slice(j).span().begin(), x.view().slice(j).span().end());
        std::tie(nngp(i, j), ntk(i, j)) = power_kernels(degree, 4, a, b);
      }
    }
    const auto found = both<float>(text, variances(1, 0), x);
    EXPECT_LE(worst_entry(found.nngp, nngp), 1e-5) << text;
    EXPECT_LE(worst_entry(found.ntk, ntk), 1e-5) << text;
    ntk(2, 1) *= 1.00005;
    EXPECT_GT(worst_entry(found.ntk, ntk), 1e-5) << "negative control";

    // One example of a thousandth of the norm: its variance ends at the 1e-48th or 1e-243rd of the others'.
    for (std::size_t k = 0; k < kInputs; ++k) x(4, k) *= 1e-3F;
    try {
      both<float>(text, variances(1, 0), x);
      FAIL() << text << ": no error";
    } catch (const NumericError& error) {
      EXPECT_NE(std::string(error.what()).find("bring the examples to one norm"), std::string::npos)
          << error.what();
    }
  }
}

TEST(InfiniteKernel, DuplicatesShareTheirRowAndZerosGiveZeros) {
  for (const std::string& text : image_models()) {
    const auto found = both<float>(text, variances(2, 0), hard_images<float>());
    for (std::size_t j = 0; j < 7; ++j) {
      const float scale = std::sqrt(found.ntk(0, 0) * found.ntk(j, j));
      EXPECT_LE(std::abs(found.nngp(0, j) - found.nngp(5, j)), 2e-6F * scale) << text;
      EXPECT_LE(std::abs(found.ntk(0, j) - found.ntk(5, j)), 2e-6F * scale) << text;
      EXPECT_EQ(found.nngp(4, j), 0.0F) << text;
      EXPECT_EQ(found.ntk(4, j), 0.0F) << text;
    }
  }
}

TEST(InfiniteKernel, IsSymmetricAndTheSameForAnyNumberOfThreads) {
  for (const std::string& text : image_models()) {
    const Tensor<float> x = normal<float>({37, 5, 4, 2}, 3);
    const auto one = both<float>(text, variances(1.9, 0.1), x, 1);
    const auto five = both<float>(text, variances(1.9, 0.1), x, 5);
    EXPECT_TRUE(std::ranges::equal(one.nngp.span(), five.nngp.span())) << text;
    EXPECT_TRUE(std::ranges::equal(one.ntk.span(), five.ntk.span())) << text;
    for (std::size_t i = 0; i < 37; ++i) {
      for (std::size_t j = 0; j < i; ++j) EXPECT_EQ(one.ntk(i, j), one.ntk(j, i)) << text;
    }
    // A rectangular block holds the same numbers.
    InfiniteOptions what;
    const auto block = infinite_kernel<float>(models::parse(text, {5, 4, 2}), variances(1.9, 0.1),
                                              std::as_const(x).view().slice(20, 37),
                                              std::as_const(x).view().slice(0, 13), what, Workers(2));
    for (std::size_t i = 0; i < 17; ++i) {
      for (std::size_t j = 0; j < 13; ++j) {
        EXPECT_LE(std::abs(block.ntk(i, j) - one.ntk(20 + i, j)),
                  2e-6F * std::sqrt(one.ntk(20 + i, 20 + i) * one.ntk(j, j)))
            << text;
      }
    }
  }
}

TEST(InfiniteKernel, CoversSeveralTilesOfVectors) {
  const Tensor<double> x = normal<double>({271, 5}, 9);
  const auto whole = both<double>("dense(4) relu dense(4) gelu dense(1)", variances(2, 0.1), x, 3);
  for (const std::size_t i : {0U, 7U, 8U, 255U, 256U, 270U}) {
    const auto pair =
        infinite_kernel<double>(models::parse("dense(4) relu dense(4) gelu dense(1)", {5}), variances(2, 0.1),
                                x.view().slice(i, i + 1), x.view(), InfiniteOptions{}, Workers(1));
    for (std::size_t j = 0; j < 271; ++j) EXPECT_NEAR(pair.ntk(0, j), whole.ntk(i, j), 1e-11);
  }
}

TEST(InfiniteKernel, PreparedBlocksHoldTheBitsOfTheWhole) {
  std::vector<std::string> models = image_models();
  models.push_back("flatten dense(8) gelu dense(8) tanh dense(1)");
  for (const std::string& text : models) {
    const std::size_t n = text.starts_with("flatten") ? 300 : 41;
    const Tensor<float> x = normal<float>({n, 5, 4, 2}, 3);
    const Tensor<float> y = normal<float>({n / 2, 5, 4, 2}, 4);
    const models::Model model = models::parse(text, {5, 4, 2});
    InfiniteOptions what;
    what.nngp = true;
    const Workers workers(2);
    for (const bool symmetric : {true, false}) {
      const auto whole =
          symmetric ? infinite_kernel<float>(model, variances(1.9, 0.1), x.view(), what, workers)
                    : infinite_kernel<float>(model, variances(1.9, 0.1), x.view(), y.view(), what, workers);
      InfiniteKernel<float> prepared =
          symmetric ? InfiniteKernel<float>(model, variances(1.9, 0.1), x.view(), what, workers)
                    : InfiniteKernel<float>(model, variances(1.9, 0.1), x.view(), y.view(), what, workers);
      ASSERT_EQ(prepared.symmetric(), symmetric);
      ASSERT_EQ(prepared.rows(), n);
      ASSERT_EQ(prepared.columns(), symmetric ? n : n / 2);
      const std::size_t m = prepared.columns();
      const std::vector<std::pair<IndexRange, IndexRange>> blocks = {
          {{0, n}, {0, m}},     {{3, 11}, {1, m}},  {{n - 9, n}, {0, 7}},
          {{0, 7}, {m - 9, m}}, {{5, 18}, {8, 13}}, {{4, 4}, {0, m}}};
      for (const auto& [rows, columns] : blocks) {
        const std::size_t stride = columns.end - columns.begin + 3;
        std::vector<float> nngp((rows.end - rows.begin) * stride, -7.0F);
        std::vector<float> ntk(nngp.size(), -7.0F);
        prepared.block(rows, columns, {nngp.data(), ntk.data(), stride});
        std::size_t different = 0;
        for (std::size_t i = 0; i < rows.end - rows.begin; ++i) {
          for (std::size_t j = 0; j < stride; ++j) {
            const bool inside = j < columns.end - columns.begin;
            const float a = inside ? whole.nngp(rows.begin + i, columns.begin + j) : -7.0F;
            const float b = inside ? whole.ntk(rows.begin + i, columns.begin + j) : -7.0F;
            different += !(nngp[i * stride + j] == a) || !(ntk[i * stride + j] == b) ? 1 : 0;
          }
        }
        EXPECT_EQ(different, 0U) << text << " rows " << rows.begin << " columns " << columns.begin;
      }
      EXPECT_THROW(prepared.block({0, n + 1}, {0, 1}, {nullptr, nullptr, 1}), ArgumentError);
    }
  }
}

/// Images that meet every difficulty of planes: noise, a near-duplicate, its opposite, a part of it, a
/// constant, zeros, positive values.
Tensor<double> plane_images(std::size_t height, std::size_t width, std::size_t channels) {
  Tensor<double> x = normal<double>({7, height, width, channels}, 13);
  const std::size_t size = height * width * channels;
  double* const data = x.data();
  for (std::size_t k = 0; k < size; ++k) {
    data[size + k] = data[k] * (k % 5 == 0 ? 1.0001 : 1);
    data[2 * size + k] = -data[k];
    data[3 * size + k] = k % 3 == 0 ? data[k] : 0;
    data[4 * size + k] = 0.7;
    data[5 * size + k] = 0;
    data[6 * size + k] = std::abs(data[6 * size + k]);
  }
  return x;
}

struct PlaneCase {
  std::string layers;
  std::size_t height, width, channels;
};

TEST(InfinitePlanes, AgreeWithTheGeneralPath) {
  const std::string relu3 = "conv(8,3) relu conv(8,3) relu conv(8,3) relu ";
  std::string deep;  // its units outgrow their range
  for (std::size_t layer = 0; layer < 22; ++layer) deep += "conv(8,3) relu ";
  const std::vector<PlaneCase> cases = {
      {relu3, 7, 5, 3},
      {relu3, 3, 37, 1},  // lines of which no offset's pixel goes around
      {deep, 3, 4, 1},
      // Acute angles before a kink that is small, and too small for its inverse powers.
      {relu3 + "conv(8,3) leakyrelu(0.6) conv(8,3) relu conv(8,3) leakyrelu(0.9) ", 4, 5, 2},
      {relu3, 1, 9, 2},
      {relu3, 8, 1, 1},
      {relu3, 2, 17, 1},
      {relu3, 13, 11, 1},
      {"conv(8,1) relu conv(8,5) relu conv(8,3) abs ", 6, 7, 2},
      {"conv(8,7) leakyrelu(0.3) conv(8,3) leakyrelu(-0.2) conv(8,3,sigma_w=2,sigma_b=0.5) relu ", 5, 9, 3},
      {"conv(8,5,sigma_w=3) relu ", 6, 6, 1},
      // Windows of one column: nothing to sum ahead.
      {"conv(8,3x1) relu conv(8,5x1) relu conv(8,3x1) relu ", 7, 5, 2},
      {"conv(8,1x3) relu conv(8,3x1) relu conv(8,3) relu ", 6, 5, 1},
      {"conv(8,3x5) relu conv(8,5x3) leakyrelu(0.1) conv(8,1) relu ", 5, 4, 3},
  };
  for (const PlaneCase& entry : cases) {
    const Tensor<double> x = plane_images(entry.height, entry.width, entry.channels);
    Tensor<float> single(x.shape());
    std::ranges::copy(x.span(), single.span().begin());
    for (const std::string head : {"gap dense(1)", "flatten dense(1)", "gap dense(8) relu dense(1)"}) {
      for (const double bias : {0.0, 0.2}) {
        const models::NetworkOptions options = variances(1.8, bias);
        // Averaging over windows of one pixel changes nothing, but planes do not know that.
        const auto general = both<double>(entry.layers + "avgpool(1) avgpool(1) " + head, options, x);
        const auto planes = both<double>(entry.layers + head, options, x);
        const auto narrow = both<float>(entry.layers + head, options, single);
        double worst = 0;
        double worst_single = 0;
        for (std::size_t i = 0; i < 7; ++i) {
          for (std::size_t j = 0; j < 7; ++j) {
            // Where cosines are -1 (2 is opposite to 0 and 1) the general path has half of its digits.
            const double loss = i != j && (i == 2 || j == 2) ? 0.01 : 1;
            const auto compare = [&](const Tensor<double>& found, const Tensor<float>& narrow_found,
                                     const Tensor<double>& expected) {
              const double scale = std::sqrt(expected(i, i) * expected(j, j));
              if (scale == 0) {
                EXPECT_EQ(found(i, j), 0);
                EXPECT_EQ(narrow_found(i, j), 0.0F);
                return;
              }
              // Written so that NaN fails.
              const double error = loss * std::abs(found(i, j) - expected(i, j)) / scale;
              const double single_error =
                  std::abs(static_cast<double>(narrow_found(i, j)) - expected(i, j)) / scale;
              if (!(error <= worst)) worst = error;
              if (!(single_error <= worst_single)) worst_single = single_error;
            };
            compare(planes.ntk, narrow.ntk, general.ntk);
            compare(planes.nngp, narrow.nngp, general.nngp);
          }
        }
        EXPECT_LE(worst, 1e-10) << entry.layers << head << bias;
        const double scale = std::sqrt(general.ntk(0, 0) * general.ntk(6, 6));
        EXPECT_GT(std::abs(planes.ntk(0, 6) + 1e-9 * scale - general.ntk(0, 6)), 1e-10 * scale)
            << "negative control";
        EXPECT_LE(worst_single, 1e-5) << entry.layers << head << bias;
      }
    }
  }
}

TEST(InfinitePlanes, KeepTheAnglesOfNearDuplicatesInF32) {
  // Their angle is 1e-4 and less: lost in one layer, it would move the tangent kernel by 1e-5.
  for (const std::string head : {"gap dense(1)", "flatten dense(1)"}) {
    for (const std::string phi : {"relu ", "leakyrelu(0.3) "}) {
      const std::string text = "conv(8,3) " + phi + "conv(8,3) " + phi + "conv(8,3) relu " + head;
      const Tensor<double> x = plane_images(7, 5, 3);
      Tensor<float> single(x.shape());
      std::ranges::copy(x.span(), single.span().begin());
      Tensor<double> rounded(x.shape());
      std::ranges::copy(single.span(), rounded.span().begin());
      const auto wide = both<double>(text, variances(1.8, 0), rounded);
      const auto narrow = both<float>(text, variances(1.8, 0), single);
      const double scale = std::sqrt(wide.ntk(0, 0) * wide.ntk(1, 1));
      EXPECT_LE(std::abs(static_cast<double>(narrow.ntk(0, 1)) - wide.ntk(0, 1)), 1e-6 * scale) << text;
      EXPECT_GT((wide.ntk(0, 0) + wide.ntk(1, 1)) / 2 - wide.ntk(0, 1), 2e-6 * scale)
          << "negative control: without the angle this would be zero: " << text;
    }
  }
}

TEST(InfinitePlanes, BeforeAnInnerPoolingAreF32WhereTheAngleAllows) {
  const std::string text =
      "conv(8,3) relu conv(8,3) relu avgpool(2) conv(8,3) relu avgpool(2) flatten dense(1)";
  Tensor<float> x({5, 8, 12, 3});
  const Tensor<double> noise = normal<double>(x.shape(), 31);
  const std::size_t size = x.size() / 5;
  for (std::size_t k = 0; k < size; ++k) {
    const auto value = [&](std::size_t image) { return static_cast<float>(noise.data()[image * size + k]); };
    x.data()[k] = value(0);
    x.data()[size + k] = value(1);
    x.data()[2 * size + k] = value(0) * (k % 5 == 0 ? 1.0001F : 1.0F);  // nearly the first
    x.data()[3 * size + k] = 0.7F;                                      // two constants: parallel
    x.data()[4 * size + k] = 0.2F;
  }
  Tensor<double> wide_x(x.shape());
  std::ranges::copy(x.span(), wide_x.span().begin());
  const auto narrow = both<float>(text, variances(2, 0), x);
  const auto wide = both<double>(text, variances(2, 0), wide_x);
  std::size_t rounded_alike = 0;
  for (std::size_t i = 0; i < 5; ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      const double scale = std::sqrt(wide.ntk(i, i) * wide.ntk(j, j));
      EXPECT_LE(std::abs(static_cast<double>(narrow.ntk(i, j)) - wide.ntk(i, j)), 1e-6 * scale) << i << j;
      EXPECT_LE(std::abs(static_cast<double>(narrow.nngp(i, j)) - wide.nngp(i, j)),
                1e-6 * std::sqrt(wide.nngp(i, i) * wide.nngp(j, j)))
          << i << j;
      rounded_alike += narrow.ntk(i, j) == static_cast<float>(wide.ntk(i, j)) ? 1 : 0;
    }
  }
  EXPECT_EQ(narrow.ntk(2, 0), static_cast<float>(wide.ntk(2, 0))) << "near-duplicates are followed in f64";
  EXPECT_EQ(narrow.ntk(4, 3), static_cast<float>(wide.ntk(4, 3))) << "and parallel images";
  EXPECT_LT(rounded_alike, 8U) << "negative control: nothing was followed in f32";
}

TEST(InfinitePlanes, ReadEveryPixelOfBothImages) {
  // Each pixel of an image must move each entry with it: no column, row or plane is forgotten.
  const models::Model model = models::parse("conv(8,3) relu conv(8,3) relu gap dense(1)", {5, 6, 1});
  const Tensor<double> x = normal<double>({1, 5, 6, 1}, 3);
  const Tensor<double> y = normal<double>({1, 5, 6, 1}, 4);
  const Workers workers(1);
  const double before =
      infinite_kernel<double>(model, variances(2, 0), x.view(), y.view(), {}, workers).ntk(0, 0);
  for (const bool left : {true, false}) {
    for (std::size_t p = 0; p < 30; ++p) {
      Tensor<double> moved = (left ? x : y).clone();
      moved.data()[p] += 0.5;
      const double after = left ? infinite_kernel<double>(model, variances(2, 0), std::as_const(moved).view(),
                                                          y.view(), {}, workers)
                                      .ntk(0, 0)
                                : infinite_kernel<double>(model, variances(2, 0), x.view(),
                                                          std::as_const(moved).view(), {}, workers)
                                      .ntk(0, 0);
      EXPECT_GT(std::abs(after / before - 1), 1e-6) << p;
    }
  }
}

TEST(InfinitePlanes, AnImageWithItselfTakesHalfOfThePlanesAndTheSameValue) {
  for (const Shape& input :
       {Shape{6, 5, 2}, Shape{5, 6, 2}, Shape{4, 4, 2}, Shape{1, 1, 2}, Shape{1, 2, 2}}) {
    const models::Model model = models::parse("conv(8,1) relu conv(8,1) relu gap dense(1)", input);
    const Tensor<double> x = normal<double>(Shape(input.with_outer(3)), 3);
    const Tensor<double> y = x.clone();
    const auto self = infinite_kernel<double>(model, variances(2, 0.1), x.view(), {}, Workers(1));
    const auto cross = infinite_kernel<double>(model, variances(2, 0.1), x.view(), y.view(), {}, Workers(1));
    for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(self.ntk(i, i) / cross.ntk(i, i), 1, 1e-13);
  }
}

TEST(InfinitePlanes, NeitherOverflowNorVanishInDeepNetworks) {
  for (const std::string scale : {"0.5", "1.41421356", "4"}) {
    for (const std::string head : {"gap", "flatten"}) {
      std::string text;
      for (int i = 0; i < 60; ++i) text += "conv(8,3,sigma_w=" + scale + ") relu ";
      text += head + " dense(1)";
      const Tensor<double> x = normal<double>({2, 4, 5, 1}, 3);
      Tensor<float> single(x.shape());
      std::ranges::copy(x.span(), single.span().begin());
      const auto wide = both<double>(text, variances(2, 0), x);
      if (wide.ntk(0, 0) > 1e30 || wide.nngp(0, 0) < 1e-30) continue;  // beyond f32 itself
      const auto narrow = both<float>(text, variances(2, 0), single);
      for (std::size_t i = 0; i < 2; ++i) {
        for (std::size_t j = 0; j < 2; ++j) {
          EXPECT_LE(std::abs(static_cast<double>(narrow.ntk(i, j)) / wide.ntk(i, j) - 1), 1e-4) << text;
          EXPECT_LE(std::abs(static_cast<double>(narrow.nngp(i, j)) / wide.nngp(i, j) - 1), 1e-4) << text;
        }
      }
    }
  }
}

TEST(InfinitePlanes, AverageWindowsBetweenLayers) {
  struct Pooled {
    std::string layers, pool, rest;
    std::size_t height, width, channels;
  };
  const std::string relu2 = "conv(8,3) relu conv(8,3) relu ";
  const std::vector<Pooled> cases = {
      {relu2, "avgpool(2) ", "conv(8,3) relu flatten dense(1)", 8, 6, 2},
      {relu2, "avgpool(2) ", "conv(8,3) relu gap dense(1)", 8, 6, 2},
      {relu2, "avgpool(2) ", "flatten dense(1)", 8, 6, 2},
      {relu2, "avgpool(2) ", "flatten dense(8) relu dense(1)", 8, 6, 2},
      {relu2, "avgpool(2) ", "conv(8,3) relu avgpool(2) flatten dense(8) relu dense(1)", 8, 12, 2},
      // Lines that fill one register of f64, of f32, and two of each.
      {relu2, "avgpool(2) ", "conv(8,3) relu gap dense(1)", 6, 8, 2},
      {relu2, "avgpool(2) ", "conv(8,3) relu avgpool(2) flatten dense(1)", 4, 16, 3},
      {relu2, "avgpool(2) ", "conv(8,3) relu avgpool(2) flatten dense(1)", 4, 32, 1},
      // Three poolings; windows that are not square, one window across, one down; more lines than lanes.
      {relu2, "avgpool(2) ", relu2 + "avgpool(3) conv(8,3) relu avgpool(2) flatten dense(1)", 12, 24, 1},
      {relu2, "avgpool(3x2) ", "conv(8,3) relu avgpool(1x2) conv(8,1x3) relu gap dense(1)", 9, 20, 3},
      {relu2, "avgpool(2x7) ", "conv(8,3x1) relu conv(8,3x1) abs flatten dense(1)", 6, 7, 1},
      {relu2, "avgpool(7x2) ", "conv(8,1x5) relu conv(8,1x3) relu gap dense(1)", 7, 10, 1},
      {"conv(8,5) relu ", "avgpool(1x2) ", "conv(8,5) relu avgpool(2x1) conv(8,3) relu gap dense(1)", 4, 38,
       1},
      // Obtuse angles behind a pooling, and what planes do not follow: a stride, a sum.
      {"conv(8,3) leakyrelu(0.4) ", "avgpool(2) ", "conv(8,3) leakyrelu(0.2) conv(8,3) abs flatten dense(1)",
       6, 10, 2},
      {relu2, "avgpool(2) ", "conv(8,3) relu conv(8,3,stride=2) relu gap dense(1)", 8, 6, 2},
      {relu2, "avgpool(2) ", "conv(8,3) relu residual(conv(8,3) relu conv(8,3)) gap dense(1)", 8, 6, 2},
  };
  for (const Pooled& entry : cases) {
    const Tensor<double> x = plane_images(entry.height, entry.width, entry.channels);
    Tensor<float> single(x.shape());
    std::ranges::copy(x.span(), single.span().begin());
    const std::string text = entry.layers + entry.pool + entry.rest;
    for (const double bias : {0.0, 0.1}) {
      const models::NetworkOptions options = variances(2, bias);
      const auto planes = both<double>(text, options, x);
      const auto narrow = both<float>(text, options, single);
      const auto general =
          both<double>(entry.layers + "avgpool(1) avgpool(1) " + entry.pool + entry.rest, options, x);
      // Where angles of pairs are pi, the general path keeps half of their digits (2 is opposite to 0 and 1).
      for (std::size_t i = 0; i < 7; ++i) {
        for (std::size_t j = 0; j < 7; ++j) {
          const double loss = bias == 0 && i != j && (i == 2 || j == 2) ? 0.01 : 1;
          const auto compare = [&](double found, float narrow_found, double expected, double scale) {
            EXPECT_LE(loss * std::abs(found - expected), 1e-10 * scale) << text << i << j;
            EXPECT_LE(std::abs(static_cast<double>(narrow_found) - expected), 1e-5 * scale) << text << i << j;
          };
          compare(planes.ntk(i, j), narrow.ntk(i, j), general.ntk(i, j),
                  std::sqrt(general.ntk(i, i) * general.ntk(j, j)));
          compare(planes.nngp(i, j), narrow.nngp(i, j), general.nngp(i, j),
                  std::sqrt(general.nngp(i, i) * general.nngp(j, j)));
        }
      }
      EXPECT_GT(std::abs(general.ntk(0, 6) - general.ntk(0, 3)), 1e-5 * general.ntk(0, 0))
          << "negative control: entries that differ by less would not be told apart";
      InfiniteOptions what;
      what.nngp = true;
      what.ntk = false;
      const auto alone = infinite_kernel<double>(models::parse(text, x.shape().inner()), options, x.view(),
                                                 what, Workers(1));
      for (std::size_t k = 0; k < alone.nngp.size(); ++k) {
        EXPECT_EQ(alone.nngp.data()[k], planes.nngp.data()[k]) << text;
      }
    }
  }
}

TEST(InfiniteKernel, IsPositiveSemidefinite) {
  for (const std::string& text : image_models()) {
    const Tensor<double> x = normal<double>({24, 5, 4, 2}, 3);
    const auto found = both<double>(text, variances(2, 0.1), x);
    const Spectrum read = spectrum(found.ntk.view());
    const auto [least, most] = std::ranges::minmax(read.values);
    EXPECT_GE(least, -24 * 2.3e-15 * most) << text;
  }
}

TEST(InfiniteKernel, DeepNetworksNeitherOverflowNorVanishInSingle) {
  // Variances grow to 2^200 and fall to 2^-200 inside; f32 ends at 2^128.
  std::string text;
  for (int i = 0; i < 100; ++i) text += "dense(8,sigma_w=2.8284271247461903) relu ";
  for (int i = 0; i < 200; ++i) text += "dense(8,sigma_w=0.7071067811865476) relu ";
  for (int i = 0; i < 100; ++i) text += "dense(8,sigma_w=2.8284271247461903) relu ";
  text += "dense(1)";
  const Tensor<double> x = normal<double>({5, 6}, 2);
  Tensor<float> single(x.shape());
  std::ranges::copy(x.span(), single.span().begin());
  const auto wide = both<double>(text, variances(2, 0), x);
  const auto narrow = both<float>(text, variances(2, 0), single);
  for (std::size_t i = 0; i < 5; ++i) {
    for (std::size_t j = 0; j < 5; ++j) {
      EXPECT_GT(wide.nngp(i, j), 0);
      EXPECT_LE(std::abs(static_cast<double>(narrow.nngp(i, j)) / wide.nngp(i, j) - 1), 1e-4);
      EXPECT_LE(std::abs(static_cast<double>(narrow.ntk(i, j)) / wide.ntk(i, j) - 1), 1e-4);
    }
  }
}

TEST(InfiniteKernel, WideNetworksApproachItAsOneOverTheRootOfTheirWidth) {
  const Tensor<double> x = normal<double>({4, 5}, 21);
  const models::NetworkOptions options = variances(2, 0.1);
  const auto limit = both<double>("dense(4) relu dense(4) relu dense(1)", options, x);
  const auto distance = [&](std::size_t width) {
    double square = 0;
    const int draws = 12;
    for (int draw = 0; draw < draws; ++draw) {
      models::NetworkOptions drawn = options;
      drawn.seed = static_cast<std::uint64_t>(100 + draw);
      const std::string w = std::to_string(width);
      const models::Network<double> network(
          models::parse("dense(" + w + ") relu dense(" + w + ") relu dense(1)", {5}), drawn);
      const auto finite = kernel<double>(network, x.view(), KernelOptions{}, Workers(1));
      for (std::size_t i = 0; i < x.shape()[0]; ++i) {
        for (std::size_t j = 0; j < x.shape()[0]; ++j) {
          const double difference = finite.values(i, j) - limit.ntk(i, j);
          square += difference * difference;
        }
      }
    }
    return std::sqrt(square / draws);
  };
  const double narrow = distance(32);
  const double wide = distance(512);
  // 16 times the width: a quarter of the distance; 12 draws leave about a fifth of uncertainty.
  EXPECT_GT(narrow / wide, 2.6);
  EXPECT_LT(narrow / wide, 6.0);
}

TEST(InfiniteKernel, RefusesWhatHasNoLimitByName) {
  const auto refusal = [](const std::string& text, Shape input, bool tangent = true) -> std::string {
    const Tensor<double> x(Shape(input.with_outer(1)));
    InfiniteOptions what;
    what.nngp = true;
    what.ntk = tangent;
    try {
      infinite_kernel<double>(models::parse(text, input), {}, x.view(), what, Workers(1));
    } catch (const ArgumentError& error) {
      return error.what();
    }
    return "accepted";
  };
  const auto names = [&](const std::string& text, Shape input, const std::string& part) {
    EXPECT_NE(refusal(text, input).find(part), std::string::npos) << refusal(text, input);
  };
  names("conv(4,3) relu maxpool(2) flatten dense(1)", {4, 4, 1},
        "layer 2 'maxpool(2)' has no infinite-width");
  names("dense(4) softmax", {3}, "layer 1 'softmax'");
  names("dense(4) relu tanh dense(1)", {3}, "layer 2 'tanh'");
  names("relu dense(1)", {3}, "layer 0 'relu'");
  names("dense(4) residual(relu) dense(1)", {3}, "layer 1 'residual(relu)'");
  names("dense(4) sign dense(1)", {3}, "layer 1 'sign'");
  names("dropout(0.5) dense(1)", {3}, "layer 0 'dropout(0.5)'");
  names("flatten dropout(0.5) dense(1)", {2, 2, 3}, "layer 1 'dropout(0.5)' may not act on the input");
  names("dropout(0.5) flatten dense(1)", {2, 2, 3}, "layer 0 'dropout(0.5)' may not act on the input");
  names("residual(dense(3)) dropout(0.5) dense(1)", {3}, "layer 1 'dropout(0.5)' may not act on the input");
  names("conv(4,3) flatten layernorm relu dense(1)", {4, 4, 1}, "layer 3 'relu'");
  names("conv(4,3) flatten layernorm relu dense(1)", {4, 4, 1}, "put the activation before flatten");
  names("conv(4,3) residual(flatten dense(64) | flatten) relu dense(1)", {4, 4, 1},
        "put the activation before flatten");
  EXPECT_EQ(refusal("conv(4,3) relu gap flatten dropout(0.5) dense(1)", {4, 4, 1}), "accepted");
  EXPECT_EQ(refusal("conv(4,3,pad=valid) flatten layernorm relu dense(1)", {3, 3, 1}), "accepted");
  EXPECT_EQ(refusal("dropout(0) dense(1)", {3}), "accepted");
  EXPECT_EQ(refusal("dense(4) sign dense(1)", {3}, false), "accepted");
  EXPECT_EQ(refusal("dense(4) residual(relu dense(4)) relu dense(1)", {3}), "accepted");
}

// Pixels of one image have different variances: the mean of their covariances is not that of any Gaussian.
TEST(InfiniteKernel, ActivationsAfterFlattenAreFollowedPixelByPixel) {
  const models::NetworkOptions options = variances(1.7, 0.1);
  const Tensor<double> images = normal<double>({4, 4, 6, 2}, 5);
  for (const auto& [after, before] : std::vector<std::pair<std::string, std::string>>{
           {"conv(8,3) flatten relu dense(1)", "conv(8,3) relu flatten dense(1)"},
           {"conv(8,3) flatten dropout(0) erf dropout(0.5) dense(4) relu dense(1)",
            "conv(8,3) erf dropout(0.5) flatten dense(4) relu dense(1)"},
           {"conv(8,3) relu conv(8,2,stride=2) flatten sigmoid dense(1)",
            "conv(8,3) relu conv(8,2,stride=2) sigmoid flatten dense(1)"},
           {"conv(8,3) avgpool(2) flatten gelu dense(1)", "conv(8,3) avgpool(2) gelu flatten dense(1)"},
           {"conv(8,3) residual(flatten sin dense(8) | flatten dense(8)) relu dense(1)",
            "conv(8,3) residual(sin flatten dense(8) | flatten dense(8)) relu dense(1)"}}) {
    const auto moved = both<double>(before, options, images);
    const auto found = both<double>(after, options, images);
    for (std::size_t i = 0; i < found.ntk.size(); ++i) {
      EXPECT_NEAR(found.nngp.data()[i], moved.nngp.data()[i], 1e-13 * moved.nngp(0, 0)) << after;
      EXPECT_NEAR(found.ntk.data()[i], moved.ntk.data()[i], 1e-13 * moved.ntk(0, 0)) << after;
    }
  }

  // Two pixels of variances 1 and 9 under a 1 x 1 convolution, written out: E[relu(u)^2] = q / 2.
  const Tensor<double> x(Shape{2, 1, 2, 1}, std::vector<double>{1, 3, -2, 0.5});
  const auto found = both<double>("conv(8,1) flatten relu dense(1)", variances(1, 0), x);
  EXPECT_NEAR(found.nngp(0, 0), (1.0 + 9.0) / 4, 1e-14);
  EXPECT_NEAR(found.nngp(0, 1), (0 + 3 * 0.5 / 2) / 2, 1e-14);  // opposite pixels, parallel pixels
  const double root = std::sqrt(5 * 2.125);
  const double angle = std::acos(-0.25 / root);
  const double pi = std::acos(-1.0);
  const double mean_covariance = root / (2 * pi) * (std::sin(angle) + (pi - angle) * std::cos(angle));
  EXPECT_GT(std::abs(found.nngp(0, 1) - mean_covariance), 1e-2) << "negative control";
}

// The variance after layer norm is one, but it scales all pixels alike.
TEST(InfiniteKernel, NormalizesFlattenedPixelsByTheirMean) {
  const Tensor<double> x(Shape{2, 1, 2, 1}, std::vector<double>{1, 3, -2, 0.5});
  const auto found = both<double>("conv(8,1) flatten layernorm dense(1)", variances(1, 0), x);
  EXPECT_NEAR(found.nngp(0, 0), 1, 1e-14);
  EXPECT_NEAR(found.nngp(0, 1), (-2 + 1.5) / 2 / std::sqrt(5 * 2.125), 1e-14);
}

TEST(InfiniteKernel, RefusesBadInputs) {
  const models::Model model = models::parse("dense(4) relu dense(1)", {3});
  Tensor<double> x = normal<double>({2, 3}, 1);
  const Tensor<double> wrong = normal<double>({2, 4}, 1);
  const Workers workers(1);
  EXPECT_THROW(infinite_kernel<double>(model, {}, wrong.view(), InfiniteOptions{}, workers), ShapeError);
  InfiniteOptions small;
  small.memory = 1000;
  EXPECT_THROW(infinite_kernel<double>(model, {}, std::as_const(x).view(), small, workers), BudgetError);
  InfiniteOptions nothing;
  nothing.ntk = false;
  EXPECT_THROW(infinite_kernel<double>(model, {}, std::as_const(x).view(), nothing, workers), ArgumentError);
  x(1, 2) = NAN;
  EXPECT_THROW(infinite_kernel<double>(model, {}, std::as_const(x).view(), InfiniteOptions{}, workers),
               NumericError);
  std::stop_source source;
  source.request_stop();
  InfiniteOptions stopped;
  stopped.stop = source.get_token();
  x(1, 2) = 0;
  EXPECT_THROW(infinite_kernel<double>(model, {}, std::as_const(x).view(), stopped, workers), Cancelled);
  const Tensor<double> none(Shape{0, 3});
  EXPECT_EQ(infinite_kernel<double>(model, {}, none.view(), InfiniteOptions{}, workers).ntk.shape(),
            (Shape{0, 0}));
}

TEST(InfiniteKernel, VariancesBeyondTheNumbersAreRefusedAsOfFiniteNetworks) {
  const models::Model model = models::parse("dense(4) relu dense(1)", {3});
  const Tensor<double> x(Shape{2, 3});
  InfiniteOptions both;
  both.nngp = both.ntk = true;
  const auto words = [](const auto& call) {
    try {
      call();
    } catch (const ArgumentError& error) {
      const std::string text = error.what();
      return text.substr(text.find(": ") + 2);
    }
    return std::string();
  };
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double value : {-1.0, 5e-324, 1e-310, 9e-31, 1.1e30, 1e308, infinity, -infinity, std::nan("")}) {
    for (const bool bias : {false, true}) {
      models::NetworkOptions options;
      (bias ? options.bias_variance : options.weight_variance) = value;
      const std::string text =
          words([&] { infinite_kernel<double>(model, options, x.view(), both, Workers(1)); });
      EXPECT_EQ(text.rfind(bias ? "bias_variance: found " : "weight_variance: found ", 0), 0u) << text;
      EXPECT_EQ(text, words([&] { models::Network<float>(model, options); }));
    }
  }
  for (const double value : {1e-30, 1e30}) {
    models::NetworkOptions options;
    options.weight_variance = options.bias_variance = value;
    EXPECT_EQ(words([&] { infinite_kernel<double>(model, options, x.view(), both, Workers(1)); }), "");
  }
}

}  // namespace
}  // namespace gradgram::ntk
