#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/cpu.hpp"
#include "engine/simd/kernels.hpp"

// gram_pack and gram_product of every instruction set that runs here against plain loops.
namespace gradgram {
namespace {

std::size_t round_up(std::size_t count, std::size_t step) {
  return (count + step - 1) / step * step;
}

/// Rows with NaN between and behind them: what is read beyond `depth` shows up in results.
template <class T>
struct Matrix {
  Matrix(std::size_t rows, std::size_t depth, bool integers, std::uint64_t seed)
      : rows(rows), depth(depth), stride(depth + 3) {
    values.assign(rows * stride, std::numeric_limits<T>::quiet_NaN());
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t k = 0; k < depth; ++k) {
        values[i * stride + k] =
            static_cast<T>(integers ? static_cast<double>(random() % 9) - 4 : normal(random));
      }
    }
  }
  std::vector<T> packed(const simd::KernelTable<T>& table) const {
    const T guard = T(77);
    const std::size_t room = round_up(rows, simd::kGramPadding<T>) * depth;
    std::vector<T> result(room + 8, std::numeric_limits<T>::quiet_NaN());
    std::fill_n(result.data() + room, 8, guard);
    table.gram_pack(values.data(), stride, rows, depth, result.data());
    for (std::size_t i = room; i < room + 8; ++i) EXPECT_EQ(result[i], guard);
    return result;
  }
  T at(std::size_t i, std::size_t k) const { return values[i * stride + k]; }

  std::size_t rows, depth, stride;
  std::vector<T> values;
};

struct Sizes {
  std::size_t rows, columns, depth;
};

template <class T>
class Gram : public ::testing::Test {
 protected:
  static std::vector<double> product(const simd::KernelTable<T>& table, const Matrix<T>& a,
                                     const Matrix<T>& b, bool lower, bool accumulate, double start) {
    const std::size_t stride = round_up(b.rows, simd::kGramPadding<T>) + 8;
    const std::size_t room = round_up(a.rows, simd::kGramPadding<T>) * stride;
    std::vector<double> sum(room + 8, start);
    std::fill_n(sum.data() + room, 8, 77.0);
    const auto rows = a.packed(table);
    const auto columns = b.packed(table);
    const std::size_t scratch_bytes = table.gram_scratch_bytes(a.rows);
    std::vector<std::byte> scratch(scratch_bytes + 64, std::byte{77});
    table.gram_product({.rows = rows.data(),
                        .columns = columns.data(),
                        .depth = a.depth,
                        .row_count = a.rows,
                        .column_count = b.rows,
                        .sum = sum.data(),
                        .sum_stride = stride,
                        .lower = lower,
                        .accumulate = accumulate,
                        .scratch = scratch.data()});
    for (std::size_t i = scratch_bytes; i < scratch.size(); ++i) EXPECT_EQ(scratch[i], std::byte{77});
    for (std::size_t i = room; i < room + 8; ++i) EXPECT_EQ(sum[i], 77.0);
    std::vector<double> result(a.rows * b.rows);
    for (std::size_t i = 0; i < a.rows; ++i) {
      for (std::size_t j = 0; j < b.rows; ++j) result[i * b.rows + j] = sum[i * stride + j];
    }
    return result;
  }

  static std::vector<Sizes> sizes() {
    return {{1, 1, 1},      {2, 3, 5},      {7, 49, 16},   {48, 48, 48},   {49, 95, 33},
            {97, 23, 64},   {25, 130, 17},  {13, 11, 384}, {101, 103, 31}, {33, 50, 100},
            {17, 201, 320}, {130, 66, 384}, {1, 1, 65}};
  }
};
using Precisions = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Gram, Precisions);

TYPED_TEST(Gram, IsExactOnSmallIntegers) {
  using T = TypeParam;
  for (const Isa isa : available_isas()) {
    const auto& table = kernels<T>(isa);
    for (const Sizes& s : this->sizes()) {
      SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::to_string(s.rows) + " x " +
                   std::to_string(s.columns) + " x " + std::to_string(s.depth));
      const Matrix<T> a(s.rows, s.depth, true, 1);
      const Matrix<T> b(s.columns, s.depth, true, 2);
      for (const bool accumulate : {false, true}) {
        const auto sum = this->product(table, a, b, false, accumulate, 0.5);
        std::size_t wrong = 0;
        std::size_t wrong_control = 0;
        for (std::size_t i = 0; i < s.rows; ++i) {
          for (std::size_t j = 0; j < s.columns; ++j) {
            double expected = accumulate ? 0.5 : 0.0;
            for (std::size_t k = 0; k < s.depth; ++k) {
              expected += static_cast<double>(a.at(i, k)) * static_cast<double>(b.at(j, k));
            }
            if (!(sum[i * s.columns + j] == expected)) ++wrong;
            // Negative control: the last product left out.
            expected -= static_cast<double>(a.at(i, s.depth - 1)) * static_cast<double>(b.at(j, s.depth - 1));
            if (!(sum[i * s.columns + j] == expected)) ++wrong_control;
          }
        }
        EXPECT_EQ(wrong, 0u);
        if (s.rows > 10) {
          EXPECT_GT(wrong_control, 0u);
        }
      }
    }
  }
}

TYPED_TEST(Gram, TheLowerTriangleHasTheBitsOfTheWhole) {
  using T = TypeParam;
  for (const Isa isa : available_isas()) {
    const auto& table = kernels<T>(isa);
    for (const std::size_t n : {1, 5, 24, 48, 50, 131}) {
      SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::to_string(n));
      const Matrix<T> a(n, 77, false, 3);
      const auto whole = this->product(table, a, a, false, true, 0.25);
      const auto lower = this->product(table, a, a, true, true, 0.25);
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j <= i; ++j) {
          ASSERT_EQ(lower[i * n + j], whole[i * n + j]);
          ASSERT_EQ(whole[i * n + j], whole[j * n + i]);
        }
      }
    }
  }
}

TYPED_TEST(Gram, AnEntryDoesNotDependOnItsNeighbours) {
  using T = TypeParam;
  for (const Isa isa : available_isas()) {
    SCOPED_TRACE(std::string(isa_name(isa)));
    const auto& table = kernels<T>(isa);
    const Matrix<T> a(67, 53, false, 4);
    const Matrix<T> b(59, 53, false, 5);
    const auto whole = this->product(table, a, b, false, false, 0);
    for (const std::size_t first : {1, 13, 50}) {
      Matrix<T> part = a;
      part.values.erase(part.values.begin(),
                        part.values.begin() + static_cast<std::ptrdiff_t>(first * a.stride));
      part.rows = a.rows - first;
      const auto rest = this->product(table, part, b, false, false, 0);
      for (std::size_t i = 0; i < part.rows; ++i) {
        for (std::size_t j = 0; j < b.rows; ++j) {
          ASSERT_EQ(rest[i * b.rows + j], whole[(i + first) * b.rows + j]);
        }
      }
    }
  }
}

TYPED_TEST(Gram, SumsWithinTheErrorOfItsRoundings) {
  using T = TypeParam;
  const double epsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
  for (const Isa isa : available_isas()) {
    SCOPED_TRACE(std::string(isa_name(isa)));
    const Matrix<T> a(31, simd::kGramDepth<T>, false, 6);
    const Matrix<T> b(29, simd::kGramDepth<T>, false, 7);
    const auto sum = this->product(kernels<T>(isa), a, b, false, false, 0);
    for (std::size_t i = 0; i < a.rows; ++i) {
      for (std::size_t j = 0; j < b.rows; ++j) {
        long double expected = 0, size = 0;
        for (std::size_t k = 0; k < a.depth; ++k) {
          const long double term =
              static_cast<long double>(a.at(i, k)) * static_cast<long double>(b.at(j, k));
          expected += term;
          size += std::abs(term);
        }
        const auto bound = static_cast<double>(size) * epsilon * static_cast<double>(a.depth);
        EXPECT_LE(std::abs(sum[i * b.rows + j] - static_cast<double>(expected)), bound);
      }
    }
  }
}

TYPED_TEST(Gram, RowsOfAnyScaleAreExactOnSmallIntegers) {
  using T = TypeParam;
  // From the least number there is to what a product of two can still hold.
  const int least = std::numeric_limits<T>::min_exponent - std::numeric_limits<T>::digits;
  for (const Isa isa : available_isas()) {
    SCOPED_TRACE(std::string(isa_name(isa)));
    for (const std::size_t depth : {31, 64, 100, 384}) {
      if (depth > simd::kGramDepth<T>) continue;
      const std::size_t n = 37;
      Matrix<T> a(n, depth, true, 1);
      Matrix<T> b(n, depth, true, 2);
      const Matrix<T> small_a = a, small_b = b;
      const int most = std::numeric_limits<T>::max_exponent - 4;
      const auto scale = [&](std::size_t i) {
        return least + static_cast<int>(i) * (most - least) / static_cast<int>(n);
      };
      const auto other_scale = [&](std::size_t i) { return std::min(-scale(i), most); };
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t k = 0; k < depth; ++k) {
          a.values[i * a.stride + k] = std::ldexp(a.at(i, k), scale(i));
          b.values[i * b.stride + k] = std::ldexp(b.at(i, k), other_scale(i));
        }
      }
      const auto sum = this->product(kernels<T>(isa), a, b, false, false, 0);
      std::size_t wrong = 0, wrong_control = 0;
      for (std::size_t i = 0; i < n; ++i) {
        double expected = 0;
        for (std::size_t k = 0; k < depth; ++k) {
          expected += static_cast<double>(small_a.at(i, k)) * static_cast<double>(small_b.at(i, k));
        }
        const int exponent = scale(i) + other_scale(i);
        wrong += sum[i * n + i] == std::ldexp(expected, exponent) ? 0 : 1;
        wrong_control += sum[i * n + i] == std::ldexp(expected + 1e-3, exponent) ? 0 : 1;
      }
      EXPECT_EQ(wrong, 0u) << depth;
      EXPECT_EQ(wrong_control, n);
    }
  }
}

TYPED_TEST(Gram, RowsWithFewGreatNumbersKeepTheirSmallOnes) {
  using T = TypeParam;
  const double epsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
  for (const Isa isa : available_isas()) {
    SCOPED_TRACE(std::string(isa_name(isa)));
    const std::size_t n = 60, depth = simd::kGramDepth<T>;
    Matrix<T> a(n, depth, false, 11);
    std::mt19937_64 random(12);
    std::normal_distribution<double> normal;
    for (T& value : a.values)
      value = static_cast<T>(static_cast<double>(value) * std::exp(2 * normal(random)));
    // The greatest one right below a power of two, at one, and negative.
    a.values[3] = static_cast<T>(4096) - static_cast<T>(4096) * std::numeric_limits<T>::epsilon() / 2;
    a.values[a.stride + 3] = static_cast<T>(4096);
    a.values[2 * a.stride + 3] = -a.values[3];
    const auto sum = this->product(kernels<T>(isa), a, a, false, false, 0);
    // Rows to 16 bits of their greatest number.
    Matrix<T> coarse = a;
    std::vector<double> length(n);
    for (std::size_t i = 0; i < n; ++i) {
      double most = 0;
      for (std::size_t k = 0; k < depth; ++k) {
        most = std::max(most, std::abs(static_cast<double>(a.at(i, k))));
        length[i] += static_cast<double>(a.at(i, k)) * static_cast<double>(a.at(i, k));
      }
      length[i] = std::sqrt(length[i]);
      const double unit = std::ldexp(most, sizeof(T) == sizeof(float) ? -15 : -40);
      for (std::size_t k = 0; k < depth; ++k) {
        T& value = coarse.values[i * a.stride + k];
        value = static_cast<T>(std::round(static_cast<double>(value) / unit) * unit);
      }
    }
    const auto off = this->product(kernels<T>(isa), coarse, coarse, false, false, 0);
    double worst = 0, worst_control = 0;
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        long double expected = 0;
        for (std::size_t k = 0; k < depth; ++k) {
          expected += static_cast<long double>(a.at(i, k)) * static_cast<long double>(a.at(j, k));
        }
        const double size = length[i] * length[j];
        worst = std::max(worst, std::abs(sum[i * n + j] - static_cast<double>(expected)) / size);
        worst_control =
            std::max(worst_control, std::abs(off[i * n + j] - static_cast<double>(expected)) / size);
      }
    }
    const double bound = (isa == Isa::Amx && sizeof(T) == sizeof(float) ? 4 : 30) * epsilon;
    EXPECT_LE(worst, bound);
    EXPECT_GT(worst_control, bound);
  }
}

/// Numbers around the ends of what three digits reach, of every size and either sign.
TEST(GramDigits, KeepTheirBoundAtTheEndsOfTheirRange) {
  const auto available = available_isas();
  if (std::find(available.begin(), available.end(), Isa::Amx) == available.end()) {
    GTEST_SKIP() << "no AMX";
  }
  const auto& table = kernels<float>(Isa::Amx);
  std::mt19937_64 random(21);
  std::size_t wrong_control = 0;
  for (const std::size_t depth : {64, 127, 200, 384}) {
    for (const int exponent : {-126, -103, -1, 0, 1, 100, 127}) {
      // 1.992..., where the next power of two is needed, lies between the second and the third.
      const std::vector<int> mantissas = {0, 0x7efefe, 0x7efeff, 0x7f7f7f, 0x7f7f80, 0x7fffff, 0x008080};
      const std::size_t n = 3 * mantissas.size();
      Matrix<float> a(n, depth, false, 1);
      std::vector<double> most(n), size(n);
      for (std::size_t i = 0; i < n; ++i) {
        const auto edge =
            static_cast<float>(std::ldexp(0x800000 + mantissas[i % mantissas.size()], exponent - 23));
        for (std::size_t k = 0; k < depth; ++k) {
          const float share = i < mantissas.size() ? 1.0F : static_cast<float>(random() % 1000) / 1000;
          const float value = (k == 0 ? 1.0F : share) * edge;
          const bool negative = i >= 2 * mantissas.size() ? random() % 2 == 0 : i % 2 == 0;
          a.values[i * a.stride + k] = negative ? -value : value;
          most[i] = std::max(most[i], std::abs(static_cast<double>(value)));
          size[i] += std::abs(static_cast<double>(value));
        }
      }
      const std::size_t stride = round_up(n, simd::kGramPadding<float>);
      std::vector<double> sum(stride * stride, 77.0);
      const auto packed = a.packed(table);
      std::vector<std::byte> scratch(table.gram_scratch_bytes(n));
      table.gram_product({.rows = packed.data(),
                          .columns = packed.data(),
                          .depth = depth,
                          .row_count = n,
                          .column_count = n,
                          .sum = sum.data(),
                          .sum_stride = stride,
                          .lower = false,
                          .accumulate = false,
                          .next_rows = packed.data(),
                          .scratch = scratch.data()});
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) {
          long double expected = 0;
          for (std::size_t k = 0; k < depth; ++k) {
            expected += static_cast<long double>(a.at(i, k)) * static_cast<long double>(a.at(j, k));
          }
          // Rounding to digits, the pair that is left out, and the sum of the lower levels in f32.
          const double bound = 0x1.02p-23 * (most[i] * size[j] + most[j] * size[i]) +
                               0x1.03p-30 * static_cast<double>(depth) * most[i] * most[j];
          const double off = std::abs(sum[i * stride + j] - static_cast<double>(expected));
          ASSERT_LE(off, bound) << depth << " " << exponent << " " << i << " " << j;
          const double last =
              static_cast<double>(a.at(i, depth - 1)) * static_cast<double>(a.at(j, depth - 1));
          wrong_control += off + std::abs(last) > 2 * bound ? 1 : 0;
        }
      }
    }
  }
  EXPECT_GT(wrong_control, 1000U);
}

TYPED_TEST(Gram, RowsThatAreNotFiniteSpoilTheirOwnEntriesAlone) {
  using T = TypeParam;
  for (const Isa isa : available_isas()) {
    for (const std::size_t depth : {31, 100}) {
      SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::to_string(depth));
      const std::size_t n = 70;
      const Matrix<T> a(n, depth, false, 13);
      Matrix<T> spoilt = a;
      const std::vector<std::pair<std::size_t, T>> bad = {{5, std::numeric_limits<T>::infinity()},
                                                          {17, -std::numeric_limits<T>::infinity()},
                                                          {40, std::numeric_limits<T>::quiet_NaN()}};
      for (const auto& [row, value] : bad) spoilt.values[row * a.stride + row % depth] = value;
      const auto good = this->product(kernels<T>(isa), a, a, false, false, 0);
      const auto sum = this->product(kernels<T>(isa), spoilt, spoilt, false, false, 0);
      const auto is_bad = [&](std::size_t i) {
        return std::any_of(bad.begin(), bad.end(), [&](const auto& b) { return b.first == i; });
      };
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) {
          if (is_bad(i) || is_bad(j)) {
            ASSERT_FALSE(std::isfinite(sum[i * n + j])) << i << " " << j;
          } else {
            ASSERT_EQ(sum[i * n + j], good[i * n + j]) << i << " " << j;
          }
        }
      }
    }
  }
}

TYPED_TEST(Gram, RowsPackedPieceByPieceAreThoseOfOneCall) {
  using T = TypeParam;
  struct Piece {
    std::size_t rows, first, step, column, columns;
  };
  for (const Isa isa : available_isas()) {
    SCOPED_TRACE(std::string(isa_name(isa)));
    const auto& table = kernels<T>(isa);
    const std::size_t n = 117, depth = 75;
    const Matrix<T> a(n, depth, false, 8);
    const auto whole = a.packed(table);
    auto pieces = std::vector<T>(whole.size(), T(0));
    const auto pack = [&](const Piece& p) {
      // Rows in order, whatever the place that they go to.
      std::vector<T> source;
      for (std::size_t i = 0; i < p.rows; ++i) {
        for (std::size_t k = 0; k < p.columns; ++k)
          source.push_back(a.at(p.first + i * p.step, p.column + k));
        source.push_back(std::numeric_limits<T>::quiet_NaN());
      }
      table.gram_pack_rows({.source = source.data(),
                            .stride = p.columns + 1,
                            .rows = p.rows,
                            .columns = p.columns,
                            .packed = pieces.data(),
                            .depth = depth,
                            .column = p.column,
                            .first = p.first,
                            .step = p.step});
    };
    for (const Piece& p : {Piece{64, 0, 1, 0, 40},
                           {64, 0, 1, 40, 35},
                           {3, 64, 1, 0, 75},
                           {1, 67, 1, 0, 75},
                           {16, 68, 1, 0, 75},
                           {7, 84, 3, 0, 75},
                           {7, 85, 3, 0, 75},
                           {7, 86, 3, 0, 75},
                           {12, 105, 1, 0, 75}}) {
      pack(p);
    }
    // A narrow group leaves the rest of the widest one's room alone.
    const auto wrong = [&] {
      std::size_t count = 0;
      for (std::size_t i = 0; i + 8 < whole.size(); ++i) {
        if (!std::isnan(whole[i]) && !(pieces[i] == whole[i])) ++count;
      }
      return count;
    };
    EXPECT_EQ(wrong(), 0u);
    pieces[50] += T(1);
    EXPECT_EQ(wrong(), 1u);  // negative control
  }
}

TYPED_TEST(Gram, PanelProductsAreExactOnSmallIntegersAndWriteNothingElse) {
  using T = TypeParam;
  for (const Isa isa : available_isas()) {
    const auto& table = kernels<T>(isa);
    for (const Sizes& s : this->sizes()) {
      SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::to_string(s.rows) + " x " +
                   std::to_string(s.columns) + " x " + std::to_string(s.depth));
      const Matrix<T> a(s.rows, s.depth, true, 1);
      const Matrix<T> b(s.columns, s.depth, true, 2);
      const auto rows = a.packed(table);
      const auto columns = b.packed(table);
      const std::size_t stride = s.columns + 3;
      for (const bool accumulate : {false, true}) {
        std::vector<T> out(s.rows * stride, T(5));
        table.panel_product({.rows = rows.data(),
                             .columns = columns.data(),
                             .depth = s.depth,
                             .row_count = s.rows,
                             .column_count = s.columns,
                             .out = out.data(),
                             .stride = stride,
                             .scale = T(0.5),
                             .accumulate = accumulate});
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < s.rows; ++i) {
          for (std::size_t j = 0; j < stride; ++j) {
            double expected = j >= s.columns || accumulate ? 5 : 0;
            for (std::size_t k = 0; j < s.columns && k < s.depth; ++k) {
              expected += 0.5 * static_cast<double>(a.at(i, k)) * static_cast<double>(b.at(j, k));
            }
            if (!(static_cast<double>(out[i * stride + j]) == expected)) ++wrong;
          }
        }
        EXPECT_EQ(wrong, 0u);
      }
    }
  }
}

}  // namespace
}  // namespace gradgram
