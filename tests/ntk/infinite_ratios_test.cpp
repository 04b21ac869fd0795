#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.hpp"
#include "engine/random.hpp"
#include "models/model.hpp"
#include "models/network.hpp"
#include "ntk/infinite/infinite.hpp"
#include "tests/reference/infinite_cntk.hpp"

/// Infinite kernels between examples, and between pixels, whose sizes are far apart.
namespace gradgram::ntk {
namespace {

models::NetworkOptions variances(double weight, double bias) {
  return {.weight_variance = weight, .bias_variance = bias};
}

/// Noise, of which images 1 and 3 are `ratio` times larger; image 2 is one constant.
template <class T>
Tensor<T> images(double ratio, std::size_t side = 5) {
  Tensor<T> x(Shape{4, side, side, 2});
  const std::size_t size = side * side * 2;
  Random random(3);
  for (std::size_t k = 0; k < x.size(); ++k) {
    // In f32 first, so that both precisions read the same.
    const auto value = static_cast<float>(k / size == 2 ? 0.7 : random.normal());
    x.data()[k] = static_cast<T>(static_cast<double>(value) * (k / size % 2 == 1 ? ratio : 1));
  }
  return x;
}

template <class T>
InfiniteKernels<T> kernels(const std::string& text, const models::NetworkOptions& options, const Tensor<T>& x,
                           const Tensor<T>* versus = nullptr) {
  InfiniteOptions what;
  what.nngp = true;
  const models::Model model = models::parse(text, x.shape().inner());
  if (versus == nullptr) return infinite_kernel<T>(model, options, x.view(), what, Workers(2));
  return infinite_kernel<T>(model, options, x.view(), versus->view(), what, Workers(2));
}

std::vector<double> image(const Tensor<double>& x, std::size_t i) {
  const auto span = x.view().slice(i).span();
  return {span.begin(), span.end()};
}

const double kRatios[] = {0x1p10, 0x1p20, 0x1p30, 0x1p40, 0x1p43, 0x1p47, 0x1p50, 0x1p53, 0x1p56, 0x1p60};

/// Kernels without biases grow with either input, so that those at any ratio are known from those at ratio 1.
template <class T>
void expect_multiples(const std::string& text, double promised) {
  const Tensor<double> unit = images<double>(1);
  const InfiniteKernels<double> expected = kernels<double>(text, variances(2, 0), unit);
  for (const double ratio : kRatios) {
    const Tensor<T> x = images<T>(ratio);
    const InfiniteKernels<T> square = kernels<T>(text, variances(2, 0), x);
    const InfiniteKernels<T> block = kernels<T>(text, variances(2, 0), x, &x);
    for (const bool tangent : {false, true}) {
      const Tensor<double>& wanted = tangent ? expected.ntk : expected.nngp;
      for (std::size_t i = 0; i < 4; ++i) {
        for (std::size_t j = 0; j < 4; ++j) {
          const double growth = (i % 2 == 1 ? ratio : 1) * (j % 2 == 1 ? ratio : 1);
          const double allowed = promised * growth * std::sqrt(wanted(i, i) * wanted(j, j));
          for (const InfiniteKernels<T>* found : {&square, &block}) {
            // An image beside a copy of it has half of the digits of its angle behind an average.
            if (i == j && found == &block) continue;
            const Tensor<T>& k = tangent ? found->ntk : found->nngp;
            EXPECT_LE(std::abs(static_cast<double>(k(i, j)) - growth * wanted(i, j)), allowed)
                << text << ", ratio " << ratio << ", " << (tangent ? "ntk" : "nngp") << " (" << i << ", " << j
                << ")";
          }
        }
      }
    }
  }
}

TEST(InfiniteRatios, ImagesKeepTheirKernelsWhateverTheirNorms) {
  for (const char* text : {
           "conv(8,3) relu gap dense(1)",
           "conv(8,3) relu conv(8,3) relu gap dense(1)",
           "conv(8,3) relu conv(8,3) relu conv(8,3) relu flatten dense(1)",
           "conv(8,3) leakyrelu(0.2) conv(8,5) abs conv(8,3) relu gap dense(8) relu dense(1)",
           "conv(8,3) relu conv(8,3,stride=2) relu gap dense(1)",
           "conv(8,2,pad=valid) relu conv(8,3) relu flatten dense(1)",
           "conv(8,3) relu avgpool(2) conv(8,3) relu gap dense(1)",
           "conv(8,2,pad=valid) relu avgpool(2) conv(8,3) relu conv(8,3) relu avgpool(2) flatten dense(1)",
           "conv(8,3) relu residual(conv(8,3) relu conv(8,3)) conv(8,3) relu gap dense(1)",
           "conv(8,3) identity conv(8,3) relu dropout(0.5) conv(8,3) relu gap dense(1)",
           "conv(8,2,pad=valid) avgpool(2) conv(8,3) relu conv(8,3) relu gap dense(1)",
           "flatten dense(8) relu dense(8) relu dense(1)",
           "flatten dense(8) relu dense(8) residual(relu dense(8)) relu dense(1)",
       }) {
    expect_multiples<double>(text, infinite_entry_error<double>());
    expect_multiples<float>(text, infinite_entry_error<float>());
  }
}

std::string repeated(const std::string& text, std::size_t times) {
  std::string result;
  for (std::size_t k = 0; k < times; ++k) result += text;
  return result;
}

/// Largest error of both kernels, relative to sqrt(k_ii k_jj), against the recursion written out.
template <class T>
double worst_error(const reference::CntkModel& model, const Tensor<double>& x) {
  const std::string text = repeated("conv(4," + std::to_string(model.kernel) + ") relu ", model.layers) +
                           (model.pooling ? "gap" : "flatten") + " dense(1)";
  Tensor<T> typed(x.shape());
  std::transform(x.data(), x.data() + x.size(), typed.data(), [](double v) { return static_cast<T>(v); });
  const InfiniteKernels<T> found =
      kernels<T>(text, variances(model.weight_variance, model.bias_variance), typed);
  const std::size_t n = x.shape()[0];
  std::vector<reference::CntkEntry> expected(n * n);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      expected[i * n + j] =
          reference::cntk(model, image(x, i), image(x, j), x.shape()[1], x.shape()[2], x.shape()[3]);
    }
  }
  double worst = 0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < i; ++j) {  // the recursion loses half of the digits of an image with itself
      const auto error = [&](const Tensor<T>& k, double reference::CntkEntry::*kernel) {
        const double scale = std::sqrt(expected[i * n + i].*kernel) * std::sqrt(expected[j * n + j].*kernel);
        return std::abs(static_cast<double>(k(i, j)) - expected[i * n + j].*kernel) / scale;
      };
      for (const double e :
           {error(found.nngp, &reference::CntkEntry::nngp), error(found.ntk, &reference::CntkEntry::ntk)}) {
        if (!(e <= worst)) worst = e;
      }
    }
  }
  return worst;
}

/// From layer to layer the light of one pixel spreads by one more, and what arrives first is a ninth: behind
/// many layers variances of one image are far apart.
TEST(InfiniteRatios, LightOfOnePixelSpreadsThroughManyLayers) {
  constexpr std::size_t kSide = 19;
  Tensor<double> x(Shape{3, kSide, kSide, 1});
  std::fill_n(x.data(), x.size(), 0.0);
  Random random(5);
  x(0, 0, 0, 0) = 1;
  x(1, kSide - 1, kSide - 1, 0) = 0.75;
  for (std::size_t k = 0; k < kSide * kSide; ++k) {
    x.data()[2 * kSide * kSide + k] = static_cast<double>(static_cast<float>(random.normal()));
  }
  for (const bool pooling : {true, false}) {
    const reference::CntkModel model{.layers = kSide - 1, .pooling = pooling};
    EXPECT_LE(worst_error<double>(model, x), 1e-9) << pooling;
    EXPECT_LE(worst_error<float>(model, x), 1e-5) << pooling;
  }
}

/// Areas of one image that are far apart.
TEST(InfiniteRatios, PixelsOfOneImageMayBeFarApart) {
  constexpr std::size_t kSide = 5;
  for (const double ratio : kRatios) {
    Tensor<double> x(Shape{3, kSide, kSide, 2});
    Random random(7);
    for (std::size_t k = 0; k < x.size(); ++k) {
      const std::size_t column = k / 2 % kSide;
      const bool small = k / (2 * kSide * kSide) == 1 ? column < 2 : column >= 2;
      x.data()[k] = static_cast<double>(static_cast<float>(random.normal())) * (small ? 1 / ratio : 1);
    }
    for (const std::size_t kernel : {1U, 3U, 5U}) {
      for (const bool pooling : {true, false}) {
        const reference::CntkModel model{.layers = 3, .kernel = kernel, .pooling = pooling};
        EXPECT_LE(worst_error<double>(model, x), 1e-9) << ratio << ' ' << kernel << ' ' << pooling;
        EXPECT_LE(worst_error<float>(model, x), 1e-5) << ratio << ' ' << kernel << ' ' << pooling;
      }
    }
  }
}

template <class T>
std::string refusal(const std::string& text, const models::NetworkOptions& options, const Tensor<T>& x,
                    const Tensor<T>* versus = nullptr) {
  try {
    kernels<T>(text, options, x, versus);
  } catch (const NumericError& error) {
    return error.what();
  }
  return "";
}

/// What f32 would round to zero, or to few digits, is not told as a kernel.
TEST(InfiniteRatios, KernelsTooSmallForTheirPrecisionAreRefused) {
  const Tensor<float> vectors(Shape{2, 3}, std::vector<float>{1, 2, 3, 0, 0, 0});
  for (const double variance : {1e-30, 1e-20}) {
    for (const char* text : {"dense(8) relu dense(1)", "dense(8) abs dense(8) leakyrelu(0.1) dense(1)"}) {
      const std::string message = refusal(text, variances(variance, 0), vectors);
      EXPECT_NE(message.find("entry (0, 0) is "), std::string::npos) << message;
      EXPECT_NE(message.find("1.2e-38 is the least"), std::string::npos) << message;
    }
    for (const char* text : {"conv(8,3) relu gap dense(1)", "conv(8,3) relu conv(8,3) relu flatten dense(1)",
                             "conv(8,3) relu avgpool(2) conv(8,3) relu gap dense(1)"}) {
      EXPECT_NE(refusal(text, variances(variance, 0), images<float>(1)).find("1.2e-38 is the least"),
                std::string::npos)
          << text;
      EXPECT_EQ(refusal(text, variances(variance, 0), images<double>(1)), "") << text;
    }
  }
  // Nor in the block of two sets.
  for (const char* text : {"flatten dense(8) relu dense(1)", "conv(8,3) relu gap dense(1)",
                           "conv(8,3) relu conv(8,3) relu flatten dense(1)",
                           "conv(8,3) relu avgpool(2) conv(8,3) relu gap dense(1)"}) {
    Tensor<float> x = images<float>(1);
    for (std::size_t k = 0; k < x.size(); ++k) x.data()[k] *= 1e-22F;
    const Tensor<float> large = images<float>(1);
    const std::string message = refusal(text, variances(2, 0), x, &x);
    EXPECT_NE(message.find("1.2e-38 is the least"), std::string::npos) << text << message;
    EXPECT_EQ(refusal(text, variances(2, 0), x, &large), "") << text;
    EXPECT_EQ(refusal(text, variances(2, 0.1), x, &x), "") << text;
    EXPECT_EQ(refusal(text, variances(1e12, 0), x, &x), "") << text;
  }
  EXPECT_EQ(refusal("dense(8) relu dense(1)", variances(1e-10, 0), vectors), "");
}

/// Inputs whose variances f32 does not hold, with weights that bring them back and with some that do not.
TEST(InfiniteRatios, InputsTooSmallToBeSquaredInF32KeepTheirKernels) {
  Tensor<float> small(Shape{2, 3}, std::vector<float>{1, 2, 3, -2, 1, 4});
  Tensor<double> wide(small.shape());
  for (std::size_t k = 0; k < small.size(); ++k) {
    small.data()[k] *= 1e-22F;
    wide.data()[k] = static_cast<double>(small.data()[k]);
  }
  for (const char* text : {"dense(8) relu dense(1)", "dense(8) identity dense(1)",
                           "dense(8) relu dense(8) residual(relu dense(8)) relu dense(1)"}) {
    const auto found = kernels<float>(text, variances(1e12, 0), small);
    const auto expected = kernels<double>(text, variances(1e12, 0), wide);
    for (std::size_t i = 0; i < 2; ++i) {
      for (std::size_t j = 0; j < 2; ++j) {
        EXPECT_LE(std::abs(static_cast<double>(found.ntk(i, j)) - expected.ntk(i, j)),
                  infinite_entry_error<float>() * std::sqrt(expected.ntk(i, i) * expected.ntk(j, j)))
            << text;
      }
    }
    const std::string message = refusal(text, variances(2, 0), small);
    EXPECT_NE(message.find("1.2e-38 is the least"), std::string::npos) << message;
    EXPECT_EQ(message.find("nan"), std::string::npos) << message;
  }
}

/// A normalization takes norms out, but of covariances that have lost the smaller example already.
TEST(InfiniteRatios, NormalizationsKeepTheirKernelsOrAreRefused) {
  const auto vectors = [](double ratio) {
    Tensor<double> x(Shape{6, 10});
    Random random(5);
    for (std::size_t k = 0; k < x.size(); ++k) {
      x.data()[k] = random.normal() * (k / 10 % 2 == 1 ? ratio : 1);
    }
    return x;
  };
  for (const char* text :
       {"dense(8) layernorm erf dense(1)", "dense(8) layernorm relu dense(8) relu dense(1)"}) {
    const auto expected = kernels<double>(text, variances(2, 0), vectors(1));
    const auto found = kernels<double>(text, variances(2, 0), vectors(0x1p17));
    for (std::size_t i = 0; i < 6; ++i) {
      for (std::size_t j = 0; j < 6; ++j) {
        EXPECT_LE(std::abs(found.nngp(i, j) - expected.nngp(i, j)),
                  infinite_entry_error<double>() * std::sqrt(expected.nngp(i, i) * expected.nngp(j, j)))
            << text;
      }
    }
    for (const double ratio : {0x1p27, 0x1p50}) {
      const std::string message = refusal(text, variances(2, 0), vectors(ratio));
      EXPECT_NE(message.find("before layer 1 'layernorm'"), std::string::npos) << message;
      EXPECT_NE(message.find("1e-10 is promised"), std::string::npos) << message;
    }
  }
}

/// With biases a large image and a small one cannot be brought to one norm.
TEST(InfiniteRatios, BiasesAreHeldBesideLargeImagesOrRefused) {
  for (const bool pooling : {true, false}) {
    const reference::CntkModel model{.layers = 2, .bias_variance = 0.1, .pooling = pooling};
    for (const double ratio : {0x1p10, 0x1p17}) {
      EXPECT_LE(worst_error<double>(model, images<double>(ratio)), infinite_entry_error<double>()) << ratio;
    }
    for (const double ratio : {0x1p10, 0x1p20, 0x1p33}) {
      EXPECT_LE(worst_error<float>(model, images<double>(ratio)), infinite_entry_error<float>()) << ratio;
    }
    const std::string text =
        std::string("conv(4,3) relu conv(4,3) relu ") + (pooling ? "gap" : "flatten") + " dense(1)";
    for (const double ratio : {0x1p24, 0x1p40, 0x1p50, 0x1p60}) {
      const std::string message = refusal(text, variances(2, 0.1), images<double>(ratio));
      EXPECT_NE(message.find("of example "), std::string::npos) << message;
      EXPECT_NE(message.find(" apart"), std::string::npos) << message;
      EXPECT_NE(message.find("1e-10 is promised"), std::string::npos) << message;
      EXPECT_NE(message.find("bring the examples to one norm"), std::string::npos) << message;
      // Where f32 is refused as well it is no advice.
      EXPECT_EQ(message.find("ask for f32") != std::string::npos, ratio < 0x1p30) << message;
    }
    for (const double ratio : {0x1p42, 0x1p50, 0x1p60}) {
      const std::string message = refusal(text, variances(2, 0.1), images<float>(ratio));
      EXPECT_NE(message.find("1e-05 is promised"), std::string::npos) << message;
    }
  }
}

}  // namespace
}  // namespace gradgram::ntk
