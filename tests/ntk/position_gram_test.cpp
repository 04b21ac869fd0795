#include "ntk/position_gram.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "engine/random.hpp"
#include "engine/simd/kernels.hpp"

namespace gradgram::ntk {
namespace {

struct Problem {
  const char* name;
  ConvGeometry geometry;
  std::size_t rows, columns, group, seeds;
};

std::vector<Problem> problems() {
  const Padding same{};
  const Padding valid{Padding::Kind::Valid, 0};
  const Padding two{Padding::Kind::Explicit, 2};
  const Padding five{Padding::Kind::Explicit, 5};
  ConvGeometry positions;  // a dense layer at 11 positions
  positions.in_h = positions.out_h = positions.kernel_h = positions.kernel_w = 1;
  positions.in_w = positions.out_w = 11;
  positions.c_in = 5;
  positions.c_out = 4;
  return {
      {"3x3", conv_geometry(4, 4, 7, 5, 3, 3, 1, 1, same), 19, 53, 1, 1},
      {"valid, oblong", conv_geometry(6, 5, 3, 4, 3, 2, 1, 1, valid), 5, 18, 1, 2},
      {"5x3 window, pad 2", conv_geometry(5, 7, 2, 3, 5, 3, 1, 1, two), 3, 17, 2, 1},
      {"stride 2", conv_geometry(8, 8, 3, 5, 3, 3, 2, 2, same), 7, 33, 1, 1},
      {"stride 2, odd, pad 2", conv_geometry(7, 9, 3, 2, 3, 3, 2, 2, two), 4, 16, 2, 2},
      {"stride 2 and 3, 5x4 window", conv_geometry(9, 11, 2, 3, 5, 4, 2, 3, same), 3, 5, 1, 3},
      {"1x1", conv_geometry(3, 3, 6, 5, 1, 1, 1, 1, same), 9, 49, 1, 1},
      {"1x1, stride 2", conv_geometry(5, 4, 6, 5, 1, 1, 2, 2, same), 9, 20, 1, 1},
      {"window less than the stride", conv_geometry(9, 8, 3, 2, 2, 2, 3, 3, same), 5, 6, 1, 1},
      {"padding alone", conv_geometry(1, 1, 2, 3, 1, 1, 20, 20, five), 3, 4, 1, 1},
      {"more padding than image", conv_geometry(2, 3, 2, 3, 3, 3, 1, 1, five), 2, 3, 1, 1},
      {"many positions", conv_geometry(18, 17, 2, 1, 3, 3, 1, 1, same), 2, 3, 1, 1},
      {"several panels", conv_geometry(2, 3, 801, 400, 3, 3, 1, 1, same), 3, 5, 1, 1},
      {"positions", positions, 20, 31, 2, 1},
      {"one", conv_geometry(1, 1, 1, 1, 1, 1, 1, 1, same), 1, 1, 1, 1},
  };
}

/// Values with one row per example (inputs) or per example and group (cotangents), rows apart by NaN.
template <class T>
struct Rows {
  Rows(std::size_t count, std::size_t width, std::uint64_t seed) : width(width), stride(width + 3) {
    Random random(seed);
    values.assign(count * stride, std::numeric_limits<T>::quiet_NaN());
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t k = 0; k < width; ++k) values[i * stride + k] = static_cast<T>(random.normal());
    }
  }
  const T* row(std::size_t i) const { return values.data() + i * stride; }
  std::size_t width, stride;
  std::vector<T> values;
};

template <class T>
struct Sides {
  explicit Sides(const Problem& p, std::size_t count, std::uint64_t seed)
      : inputs(count, p.geometry.in_pixels() * p.geometry.c_in, seed),
        cotangents(count * p.group, p.seeds * p.geometry.out_pixels() * p.geometry.c_out, seed + 1) {}
  typename PositionGram<T>::Side side(const Problem& p, std::size_t first, std::size_t count) const {
    return {inputs.row(first), inputs.stride, cotangents.row(first * p.group), cotangents.stride, count};
  }
  Rows<T> inputs, cotangents;
};

/// The gradient of one row (example and group) and seed, formed in f64 from its definition.
struct Gradient {
  std::vector<double> weight;  ///< [c_out][taps, c_in]
  std::vector<double> bias;
  /// sum_p |b_p|^2 |a_p|^2 and sum_p |b_p|^2: the squared lengths if positions were independent, which
  /// rounding is in proportion to even where they cancel.
  double weight_size = 0, bias_size = 0;
};

template <class T>
Gradient gradient(const ConvGeometry& g, const T* image, const T* cotangent) {
  Gradient result{std::vector<double>(g.weights(), 0.0), std::vector<double>(g.c_out, 0.0)};
  for (std::size_t p = 0; p < g.out_pixels(); ++p) {
    double length = 0, patch = 0;
    for (std::size_t o = 0; o < g.c_out; ++o) {
      const double b = cotangent[p * g.c_out + o];
      result.bias[o] += b;
      length += b * b;
    }
    for (std::size_t tap = 0; tap < g.kernel_h * g.kernel_w; ++tap) {
      const auto y =
          static_cast<long>(p / g.out_w * g.stride_h + tap / g.kernel_w) - static_cast<long>(g.pad_top);
      const auto x =
          static_cast<long>(p % g.out_w * g.stride_w + tap % g.kernel_w) - static_cast<long>(g.pad_left);
      if (y < 0 || x < 0 || y >= static_cast<long>(g.in_h) || x >= static_cast<long>(g.in_w)) continue;
      const T* const pixel =
          image + (static_cast<std::size_t>(y) * g.in_w + static_cast<std::size_t>(x)) * g.c_in;
      for (std::size_t i = 0; i < g.c_in; ++i) {
        const double a = pixel[i];
        patch += a * a;
        for (std::size_t o = 0; o < g.c_out; ++o) {
          const double b = cotangent[p * g.c_out + o];
          result.weight[(o * g.kernel_h * g.kernel_w + tap) * g.c_in + i] += b * a;
        }
      }
    }
    result.weight_size += length * patch;
    result.bias_size += length;
  }
  return result;
}

using Gradients = std::vector<std::vector<Gradient>>;  ///< [row][seed]

template <class T>
Gradients gradients(const Problem& p, const Sides<T>& sides, std::size_t count) {
  Gradients result(count * p.group);
  for (std::size_t row = 0; row < result.size(); ++row) {
    for (std::size_t s = 0; s < p.seeds; ++s) {
      result[row].push_back(
          gradient(p.geometry, sides.inputs.row(row / p.group),
                   sides.cotangents.row(row) + s * p.geometry.out_pixels() * p.geometry.c_out));
    }
  }
  return result;
}

/// sqrt(size_i size_j), the unit of errors.
double unit(const std::vector<Gradient>& a, const std::vector<Gradient>& b, double Gradient::*size) {
  double left = 0, right = 0;
  for (const Gradient& g : a) left += g.*size;
  for (const Gradient& g : b) right += g.*size;
  return std::sqrt(left * right);
}

/// The greatest error of weight and bias kernels in that unit; NaN when an entry is.
double worst(const Gradients& a, const Gradients& b, const std::vector<double>& weight,
             const std::vector<double>& bias) {
  double result = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < b.size(); ++j) {
      const auto note = [&](double value, std::vector<double> Gradient::*part, double Gradient::*size) {
        double expected = 0;
        for (std::size_t s = 0; s < a[i].size(); ++s) {
          for (std::size_t k = 0; k < (a[i][s].*part).size(); ++k)
            expected += (a[i][s].*part)[k] * (b[j][s].*part)[k];
        }
        const double error = std::abs(value - expected) / (unit(a[i], b[j], size) + 1e-300);
        if (!(error <= result)) result = error;
      };
      note(weight[i * b.size() + j], &Gradient::weight, &Gradient::weight_size);
      note(bias[i * b.size() + j], &Gradient::bias, &Gradient::bias_size);
    }
  }
  return result;
}

template <class T>
void matches_formed_gradients(const Problem& p) {
  SCOPED_TRACE(p.name);
  const Sides<T> rows(p, p.rows, 1), columns(p, p.columns, 3);
  const PositionGram<T> gram(p.geometry, p.group, p.seeds);
  const std::size_t width = p.columns * p.group;
  std::vector<double> weight(p.rows * p.group * width, 0.0), bias = weight;
  Arena arena(gram.scratch_bytes());
  const auto contract = [&](const auto& a, const auto& b, bool lower, std::vector<double>& w,
                            std::vector<double>& c, std::size_t stride) {
    gram.contract(a, b, lower, {w.data(), c.data(), stride}, arena);
  };
  contract(rows.side(p, 0, p.rows), columns.side(p, 0, p.columns), false, weight, bias, width);
  EXPECT_LE(arena.capacity(), gram.scratch_bytes());
  const Gradients a = gradients(p, rows, p.rows);
  const Gradients b = gradients(p, columns, p.columns);
  const double bound = sizeof(T) == 8 ? 1e-14 : 1e-6;
  EXPECT_LE(worst(a, b, weight, bias), bound);
  // Negative control.
  auto corrupt = weight;
  corrupt.back() += 4 * bound * unit(a.back(), b.back(), &Gradient::weight_size) + 1e-30;
  EXPECT_FALSE(worst(a, b, corrupt, bias) <= bound);

  // The other way round, and a part alone: the same bits.
  std::vector<double> turned(weight.size(), 0.0), turned_bias = turned;
  contract(columns.side(p, 0, p.columns), rows.side(p, 0, p.rows), false, turned, turned_bias,
           p.rows * p.group);
  for (std::size_t i = 0; i < p.rows * p.group; ++i) {
    for (std::size_t j = 0; j < width; ++j) {
      ASSERT_EQ(weight[i * width + j], turned[j * p.rows * p.group + i]);
      ASSERT_EQ(bias[i * width + j], turned_bias[j * p.rows * p.group + i]);
    }
  }
  const std::size_t row = p.rows - 1, column = p.columns / 2;
  std::vector<double> single(p.group * p.group, 0.0), single_bias = single;
  contract(rows.side(p, row, 1), columns.side(p, column, 1), false, single, single_bias, p.group);
  for (std::size_t k = 0; k < p.group; ++k) {
    for (std::size_t l = 0; l < p.group; ++l) {
      ASSERT_EQ(single[k * p.group + l], weight[(row * p.group + k) * width + column * p.group + l]);
    }
  }
  // A triangle: what is wanted of it, and no bias where none is.
  std::vector<double> square(width * width, 0.0), square_bias = square, triangle = square;
  contract(columns.side(p, 0, p.columns), columns.side(p, 0, p.columns), false, square, square_bias, width);
  gram.contract(columns.side(p, 0, p.columns), columns.side(p, 0, p.columns), true,
                {triangle.data(), nullptr, width}, arena);
  for (std::size_t i = 0; i < width; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      ASSERT_EQ(square[i * width + j], square[j * width + i]);
      ASSERT_EQ(square[i * width + j], triangle[i * width + j]);
    }
  }
}

TEST(PositionGram, MatchesFormedGradientsInF64) {
  for (const Problem& p : problems()) matches_formed_gradients<double>(p);
}

TEST(PositionGram, MatchesFormedGradientsInF32) {
  for (const Problem& p : problems()) matches_formed_gradients<float>(p);
}

TEST(PositionGram, AStrideFormsOnlyTheProductsThatMeet) {
  // 8x8 pixels in four classes of 4x4.
  const ConvGeometry g = conv_geometry(8, 8, 3, 5, 3, 3, 2, 2, {});
  EXPECT_EQ(PositionGram<float>(g, 1, 1).multiply_adds(), 4.0 * 256 * 3 + 256 * 5);
  EXPECT_EQ(PositionGram<float>(g, 2, 3).multiply_adds(), 4.0 * 256 * 3 + 12 * 256 * 5);
  const ConvGeometry shortcut = conv_geometry(8, 8, 3, 5, 1, 1, 2, 2, {});
  EXPECT_EQ(PositionGram<float>(shortcut, 1, 1).multiply_adds(), 256.0 * 3 + 256 * 5);
}

}  // namespace
}  // namespace gradgram::ntk
