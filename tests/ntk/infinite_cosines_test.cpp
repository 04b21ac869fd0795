#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "engine/cpu.hpp"
#include "engine/error.hpp"
#include "engine/random.hpp"
#include "models/model.hpp"
#include "ntk/infinite/cosines.hpp"
#include "ntk/infinite/infinite.hpp"

namespace gradgram::ntk {
namespace {

/// One layer of the plain oracle: dense layers, then phi(x) = x above 0 and slope x below.
struct PlainLayer {
  int affines = 1;
  double slope = 0;
};
struct PlainNetwork {
  std::string text;
  std::vector<PlainLayer> layers;
  int affines_after = 1;
};

std::vector<PlainNetwork> networks() {
  const auto deep = [](const std::string& name, double slope, int depth) {
    PlainNetwork network;
    for (int i = 0; i < depth; ++i) {
      network.text += "dense(8) " + name + " ";
      network.layers.push_back({1, slope});
    }
    network.text += "dense(1)";
    return network;
  };
  return {deep("relu", 0, 1),
          deep("relu", 0, 5),
          deep("relu", 0, 50),
          deep("abs", -1, 7),
          deep("abs", -1, 50),
          deep("leakyrelu(0.3)", 0.3, 9),
          deep("leakyrelu(0.99)", 0.99, 9),
          {"dense(4) dense(4) relu dense(3) leakyrelu(0.1) dense(2) dense(2) dense(1) abs",
           {{2, 0}, {1, 0.1}, {3, -1}},
           0},
          {"dense(4) dense(1)", {}, 2}};
}

struct Entries {
  double nngp = 0, ntk = 0;
};

/// Both kernels from covariances, as the formulas are written, in extended precision.
Entries plain(const PlainNetwork& network, double weight, const double* x, const double* y, std::size_t d) {
  using Wide = long double;
  const Wide pi = std::acos(Wide(-1));
  Wide q = 0;
  Wide r = 0;
  Wide near = 0;
  Wide far = 0;
  for (std::size_t k = 0; k < d; ++k) {
    q += static_cast<Wide>(x[k]) * static_cast<Wide>(x[k]) / static_cast<Wide>(d);
    r += static_cast<Wide>(y[k]) * static_cast<Wide>(y[k]) / static_cast<Wide>(d);
  }
  if (q == 0 || r == 0) return {};
  for (std::size_t k = 0; k < d; ++k) {
    const Wide a = static_cast<Wide>(x[k]) / std::sqrt(q);
    const Wide b = static_cast<Wide>(y[k]) / std::sqrt(r);
    near += (a - b) * (a - b);
    far += (a + b) * (a + b);
  }
  Wide angle = 2 * std::atan2(std::sqrt(near), std::sqrt(far));
  Wide norms = std::sqrt(q * r);
  Wide tangent = 0;
  Wide cosine = std::cos(angle);
  const auto affine = [&](int times) {
    for (int i = 0; i < times; ++i) {
      norms *= static_cast<Wide>(weight);
      tangent = tangent * static_cast<Wide>(weight) + norms * cosine;
    }
  };
  for (const PlainLayer& layer : network.layers) {
    affine(layer.affines);
    const Wide slope = static_cast<Wide>(layer.slope);
    const Wide scale = (1 + slope * slope) / 2;
    const Wide turn = (1 - slope) * (1 - slope) / (2 * pi);
    tangent *= scale - turn * angle;
    norms *= scale;
    // The half squared sine of the new angle, without the cancellation of a cosine near 1.
    const Wide versine = 2 * std::sin(angle / 2) * std::sin(angle / 2) -
                         turn / scale * (std::sin(angle) - angle * std::cos(angle));
    angle = 2 * std::asin(std::sqrt(std::clamp(versine / 2, Wide(0), Wide(1))));
    cosine = 1 - versine;
  }
  affine(network.affines_after);
  return {static_cast<double>(norms * cosine), static_cast<double>(tangent)};
}

/// Directions and, of some, duplicates, multiples, near-duplicates, opposites, and zeros.
template <class T>
Tensor<T> vectors(std::size_t n, std::size_t d, std::uint64_t seed) {
  Tensor<T> x(Shape{n, d});
  Random random(seed);
  for (T& value : x.span()) value = static_cast<T>(random.normal());
  const auto copy = [&](std::size_t to, std::size_t from, double factor, double noise) {
    for (std::size_t k = 0; k < d; ++k) {
      x(to, k) = static_cast<T>(factor * (static_cast<double>(x(from, k)) + noise * random.normal()));
    }
  };
  copy(n / 2, 0, 1, 0);
  copy(n / 2 + 1, 0, 3, 0);
  copy(n / 2 + 2, 0, 0.01, 1e-5);
  copy(n / 2 + 3, 1, 1, 1e-2);
  copy(n / 2 + 4, 1, -1, 0);
  copy(n / 2 + 5, 1, -2.5, 1e-4);
  copy(n / 2 + 6, 1, 0, 0);
  return x;
}

template <class T>
double worst_of(const PlainNetwork& network, const Tensor<T>& x, const Tensor<T>& y,
                const InfiniteKernels<T>& found, double weight) {
  const std::size_t d = x.shape()[1];
  const auto wide = [](const Tensor<T>& from) {
    return std::vector<double>(from.span().begin(), from.span().end());
  };
  const std::vector<double> left = wide(x);
  const std::vector<double> right = wide(y);
  double worst = 0;
  for (std::size_t i = 0; i < x.shape()[0]; ++i) {
    const Entries own = plain(network, weight, &left[i * d], &left[i * d], d);
    for (std::size_t j = 0; j < y.shape()[0]; ++j) {
      const Entries other = plain(network, weight, &right[j * d], &right[j * d], d);
      const Entries entries = plain(network, weight, &left[i * d], &right[j * d], d);
      const double nngp = std::abs(static_cast<double>(found.nngp(i, j)) - entries.nngp);
      const double ntk = std::abs(static_cast<double>(found.ntk(i, j)) - entries.ntk);
      if (own.nngp == 0 || other.nngp == 0) {
        EXPECT_EQ(nngp, 0) << network.text;
        EXPECT_EQ(ntk, 0) << network.text;
        continue;
      }
      const double error =
          std::max(nngp / std::sqrt(own.nngp * other.nngp), ntk / std::sqrt(own.ntk * other.ntk));
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

template <class T>
void agrees_with_formulas(double bound) {
  InfiniteOptions what;
  what.nngp = true;
  const Workers workers(2);
  models::NetworkOptions options;
  options.parameterization = models::Parameterization::Ntk;
  options.weight_variance = 1.7;
  const Tensor<T> x = vectors<T>(43, 7, 3);
  const Tensor<T> y = vectors<T>(19, 7, 3);  // shares its first directions with x
  for (const PlainNetwork& network : networks()) {
    const models::Model model = models::parse(network.text, {7});
    const auto whole = infinite_kernel<T>(model, options, x.view(), what, workers);
    auto between = infinite_kernel<T>(model, options, x.view(), y.view(), what, workers);
    EXPECT_LE(worst_of(network, x, x, whole, 1.7), bound) << network.text;
    EXPECT_LE(worst_of(network, x, y, between, 1.7), bound) << network.text;
    between.ntk(11, 2) += static_cast<T>(2 * bound) * std::sqrt(whole.ntk(11, 11) * whole.ntk(2, 2));
    EXPECT_GT(worst_of(network, x, y, between, 1.7), bound) << "the oracle sees nothing";
  }
}

TEST(InfiniteCosines, AgreeWithTheFormulasInF32) {
  agrees_with_formulas<float>(1.5e-6);
}
TEST(InfiniteCosines, AgreeWithTheFormulasInF64) {
  agrees_with_formulas<double>(3e-12);
}

/// Hardly a pair but is nearly parallel or nearly opposite.
template <class T>
void agrees_where_all_are_near(double bound) {
  InfiniteOptions what;
  what.nngp = true;
  models::NetworkOptions options;
  options.weight_variance = 1.7;
  PlainNetwork network{
      "dense(8) abs dense(8) leakyrelu(0.3) dense(8) relu dense(1)", {{1, -1}, {1, 0.3}, {1, 0}}, 1};
  for (const std::size_t d : {1U, 5U, 16U, 67U, 1031U}) {
    Tensor<T> x(Shape{37, d});
    Random random(d);
    std::vector<double> shared(d);
    for (double& value : shared) value = random.normal();
    for (std::size_t i = 0; i < 37; ++i) {
      const double noise = i % 3 == 0 ? 0.1 : 1e-5;
      const double sign = i % 4 == 1 ? -1 : 1;
      for (std::size_t k = 0; k < d; ++k) {
        x(i, k) = static_cast<T>(sign * (shared[k] + noise * random.normal()));
      }
    }
    auto found = infinite_kernel<T>(models::parse(network.text, {d}), options, x.view(), what, Workers(2));
    EXPECT_LE(worst_of(network, x, x, found, 1.7), bound) << d;
    found.ntk(5, 2) += static_cast<T>(2 * bound) * std::sqrt(found.ntk(5, 5) * found.ntk(2, 2));
    EXPECT_GT(worst_of(network, x, x, found, 1.7), bound) << "the oracle sees nothing";
  }
}

TEST(InfiniteCosines, AgreeWhereAllAreNearlyParallelOrOpposite) {
  agrees_where_all_are_near<float>(1e-6);
  agrees_where_all_are_near<double>(3e-14);
}

TEST(InfiniteCosines, BlocksHoldTheBitsOfTheWholeAndNothingElseIsWritten) {
  InfiniteOptions what;
  what.nngp = true;
  const Workers workers(2);
  const Tensor<float> x = vectors<float>(311, 13, 5);
  const Tensor<float> y = vectors<float>(523, 13, 6);
  const models::Model model = models::parse("dense(4) relu dense(4) relu dense(1)", {13});
  const auto whole = infinite_kernel<float>(model, {}, x.view(), y.view(), what, workers);
  InfiniteKernel<float> prepared(model, {}, x.view(), y.view(), what, workers);
  for (const auto& [rows, columns] : std::vector<std::pair<IndexRange, IndexRange>>{
           {{0, 311}, {0, 523}}, {{5, 290}, {250, 263}}, {{255, 257}, {1, 523}}, {{310, 311}, {511, 512}}}) {
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
        different += nngp[i * stride + j] == a && ntk[i * stride + j] == b ? 0 : 1;
      }
    }
    EXPECT_EQ(different, 0U) << rows.begin << " " << columns.begin;
  }
}

TEST(InfiniteCosines, GiveWayWhereEntriesMightLeaveTheNumbers) {
  Tensor<float> x = vectors<float>(17, 5, 5);
  const models::Model model = models::parse("dense(4) relu dense(4) relu dense(1)", {5});
  for (float& value : x.span()) value *= 1e19F;
  EXPECT_THROW(infinite_kernel<float>(model, {}, x.view(), {}, Workers(1)), NumericError);
  for (float& value : x.span()) value *= 1e-20F;
  const auto found = infinite_kernel<float>(model, {}, x.view(), {}, Workers(1));
  EXPECT_TRUE(std::ranges::all_of(found.ntk.span(), [](float value) { return std::isfinite(value); }));
}

/// Every instruction set, every number of columns up to several groups of registers.
template <class T>
void every_isa(double tolerance) {
  constexpr std::size_t kRows = 3;
  constexpr std::size_t kMost = 150;
  constexpr std::size_t kStride = 192;
  std::vector<T> entries(kRows * kStride), left(kRows), right(kStride);
  Random random(8);
  for (T& value : entries) value = static_cast<T>(2 * random.uniform() - 1);
  entries[0] = 1;
  entries[1] = -1;
  entries[2] = T(-0.999);
  for (T& value : left) value = static_cast<T>(1 + random.uniform());
  for (T& value : right) value = static_cast<T>(1 + random.uniform());
  for (const Isa isa : available_isas()) {
    const simd::CovarianceTable<T>& table = covariance_kernels<T>(isa);
    std::vector<simd::CosineLayer<T>> layers(3);
    const double slopes[] = {0, 0.2, -1};
    for (std::size_t l = 0; l < 3; ++l) {
      layers[l].affines = static_cast<T>(l + 1);
      layers[l].ratio =
          static_cast<T>((1 - slopes[l]) * (1 - slopes[l]) / (std::acos(-1.0) * (1 + slopes[l] * slopes[l])));
      layers[l].obtuse = l != 1;
      table.cosine_layer(layers[l]);
    }
    for (std::size_t columns = 0; columns <= kMost; ++columns) {
      std::vector<T> nngp(kRows * kStride, T(-7));
      std::vector<T> ntk(kRows * kStride, T(-7));
      T outermost[kRows] = {};
      simd::CosineRun<T> run;
      run.rows = kRows;
      run.columns = columns;
      run.entries = entries.data();
      run.stride = kStride;
      run.layers = layers.data();
      run.layer_count = layers.size();
      run.affines_after = 2;
      run.left_root = left.data();
      run.right_root = right.data();
      run.covariance = nngp.data();
      run.tangent = columns % 7 == 3 ? nullptr : ntk.data();
      run.out_stride = kStride;
      table.cosine_run(run, outermost);
      double worst = 0;
      std::size_t outside = 0;
      for (std::size_t r = 0; r < kRows; ++r) {
        T most = 0;
        for (std::size_t c = 0; c < kStride; ++c) {
          const std::size_t at = r * kStride + c;
          if (c >= columns) {
            outside += nngp[at] == T(-7) && ntk[at] == T(-7) ? 0 : 1;
            continue;
          }
          most = std::max(most, std::abs(entries[at]));
          double cosine = static_cast<double>(entries[at]);
          double theta = 0;
          for (std::size_t l = 0; l < 3; ++l) {
            const double angle = std::acos(std::clamp(cosine, -1.0, 1.0));
            const double ratio =
                (1 - slopes[l]) * (1 - slopes[l]) / (std::acos(-1.0) * (1 + slopes[l] * slopes[l]));
            theta = (theta + static_cast<double>(l + 1) * cosine) * (1 - ratio * angle);
            cosine += ratio * (std::sin(angle) - angle * std::cos(angle));
          }
          theta += 2 * cosine;
          const double roots = static_cast<double>(left[r]) * static_cast<double>(right[c]);
          double error = std::abs(static_cast<double>(nngp[at]) / roots - cosine);
          if (run.tangent != nullptr) {
            error = std::max(error, std::abs(static_cast<double>(ntk[at]) / roots - theta) / 8);
          }
          if (!(error <= worst)) worst = error;
        }
        EXPECT_GE(outermost[r], most);
      }
      EXPECT_EQ(outside, 0U) << isa_name(isa) << " " << columns;
      EXPECT_LE(worst, tolerance) << isa_name(isa) << " " << columns;
    }
  }
}

TEST(InfiniteCosines, EveryInstructionSetReadsRaggedRows) {
  every_isa<float>(6e-7);
  every_isa<double>(4e-15);
}

}  // namespace
}  // namespace gradgram::ntk
