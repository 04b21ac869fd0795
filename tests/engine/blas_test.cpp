#include "engine/blas.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/cpu.hpp"
#include "engine/matrix_product.hpp"

namespace gradgram {
namespace {

using blas::Transpose;

template <class T>
class Gemm : public ::testing::Test {
 protected:
  std::vector<T> reals(std::size_t size) {
    std::vector<T> numbers(size);
    std::normal_distribution<double> normal;
    for (T& number : numbers) number = static_cast<T>(normal(random_));
    return numbers;
  }
  std::vector<T> integers(std::size_t size) {
    std::vector<T> numbers(size);
    for (T& number : numbers) number = static_cast<T>(static_cast<int>(random_() % 9) - 4);
    return numbers;
  }
  std::mt19937_64 random_{17};
};
using Precisions = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Gemm, Precisions);

TEST(Blas, KernelSetFollowsTheInstructionSet) {
  if (std::getenv("BLIS_ARCH_TYPE") != nullptr) {
    GTEST_SKIP() << "BLIS_ARCH_TYPE is exported: the user's choice stands";
  }
  const Isa isa = active_isa();
  EXPECT_EQ(blas::kernel_set(), isa >= Isa::Avx512 ? "skx" : isa == Isa::Avx2 ? "haswell" : "generic");
}

TYPED_TEST(Gemm, IsExactOnIntegersForAllTransposesAndStrides) {
  using T = TypeParam;
  for (const Transpose at : {Transpose::No, Transpose::Yes}) {
    for (const Transpose bt : {Transpose::No, Transpose::Yes}) {
      for (const std::size_t m : {0, 1, 2, 7, 33}) {
        for (const std::size_t n : {0, 1, 3, 17, 50}) {
          for (const std::size_t k : {0, 1, 5, 70}) {
            const std::size_t lda = (at == Transpose::No ? k : m) + 3;
            const std::size_t ldb = (bt == Transpose::No ? n : k) + 2;
            const std::size_t ldc = n + 1;
            const auto a = this->integers((at == Transpose::No ? m : k) * lda);
            const auto b = this->integers((bt == Transpose::No ? k : n) * ldb);
            for (const int beta : {0, 1, -2}) {
              auto c = this->integers(m * ldc);
              const auto before = c;
              blas::gemm(at, bt, m, n, k, T(2), a.data(), lda, b.data(), ldb, T(beta), c.data(), ldc);
              for (std::size_t i = 0; i < m; ++i) {
                for (std::size_t j = 0; j < n; ++j) {
                  double sum = 0;
                  for (std::size_t l = 0; l < k; ++l) {
                    sum += static_cast<double>(at == Transpose::No ? a[i * lda + l] : a[l * lda + i]) *
                           static_cast<double>(bt == Transpose::No ? b[l * ldb + j] : b[j * ldb + l]);
                  }
                  ASSERT_EQ(c[i * ldc + j], 2 * sum + beta * static_cast<double>(before[i * ldc + j]))
                      << m << " x " << n << " x " << k << ", beta " << beta;
                }
                ASSERT_EQ(c[i * ldc + n], before[i * ldc + n]) << "wrote past the row";
              }
            }
          }
        }
      }
    }
  }
}

TYPED_TEST(Gemm, BetaZeroOverwritesNaN) {
  using T = TypeParam;
  for (const std::size_t m : {1, 5, 64}) {
    for (const std::size_t k : {0, 1, 600}) {
      const std::size_t n = 37;
      const auto a = this->integers(m * k);
      const auto b = this->integers(k * n);
      std::vector<T> c(m * n, std::numeric_limits<T>::quiet_NaN());
      blas::gemm(Transpose::No, Transpose::No, m, n, k, T(1), a.data(), std::max<std::size_t>(k, 1), b.data(),
                 n, T(0), c.data(), n);
      EXPECT_TRUE(std::all_of(c.begin(), c.end(), [](T value) { return std::isfinite(value); }))
          << m << ", " << k;
    }
  }
}

TYPED_TEST(Gemm, KeepsTheErrorBound) {
  using T = TypeParam;
  const std::size_t m = 61;
  const std::size_t n = 47;
  const std::size_t k = 1031;
  const auto a = this->reals(m * k);
  const auto b = this->reals(k * n);
  std::vector<T> c(m * n);
  blas::gemm(Transpose::No, Transpose::No, m, n, k, T(1), a.data(), k, b.data(), n, T(0), c.data(), n);
  const auto holds = [&] {
    for (std::size_t i = 0; i < m; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        long double sum = 0;
        long double magnitude = 0;
        for (std::size_t l = 0; l < k; ++l) {
          const long double term = static_cast<long double>(a[i * k + l]) * b[l * n + j];
          sum += term;
          magnitude += std::abs(term);
        }
        if (!(std::abs(c[i * n + j] - sum) <=
              static_cast<long double>(k) * std::numeric_limits<T>::epsilon() * magnitude)) {
          return false;
        }
      }
    }
    return true;
  };
  EXPECT_TRUE(holds());
  c[m * n / 2] += T(1);  // negative control
  EXPECT_FALSE(holds());
}

TYPED_TEST(Gemm, ARowHasTheSameBitsWhateverTheNumberOfRows) {
  using T = TypeParam;
  for (const Transpose at : {Transpose::No, Transpose::Yes}) {
    for (const Transpose bt : {Transpose::No, Transpose::Yes}) {
      for (const std::size_t n : {1, 2, 10, 64, 100}) {
        for (const std::size_t k : {1, 27, 300, 1100}) {
          const std::size_t most = 70;
          const std::size_t lda = at == Transpose::No ? k : most;
          const std::size_t ldb = bt == Transpose::No ? n : k;
          const auto a = this->reals(most * k);
          const auto b = this->reals(k * n);
          std::vector<T> whole(most * n);
          blas::gemm(at, bt, most, n, k, T(0.7), a.data(), lda, b.data(), ldb, T(0), whole.data(), n);
          for (const std::size_t m : {1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 31, 32, 33, 48, 63, 64, 65}) {
            for (const std::size_t first : {std::size_t{0}, std::size_t{1}, most - m}) {
              if (first + m > most) continue;
              std::vector<T> part(m * n);
              const T* const start = at == Transpose::No ? a.data() + first * lda : a.data() + first;
              blas::gemm(at, bt, m, n, k, T(0.7), start, lda, b.data(), ldb, T(0), part.data(), n);
              ASSERT_EQ(std::memcmp(part.data(), whole.data() + first * n, m * n * sizeof(T)), 0)
                  << m << " rows from " << first << " of " << most << ", n " << n << ", k " << k
                  << ", transposes " << (at == Transpose::Yes) << (bt == Transpose::Yes);
            }
          }
        }
      }
    }
  }
}

TYPED_TEST(Gemm, ManyThreadsGiveTheSameBits) {
  using T = TypeParam;
  const std::size_t size = 150;
  const auto a = this->reals(size * size);
  const auto b = this->reals(size * size);
  const auto product = [&] {
    std::vector<T> c(size * size);
    blas::gemm(Transpose::No, Transpose::Yes, size, size, size, T(1), a.data(), size, b.data(), size, T(0),
               c.data(), size);
    return c;
  };
  const auto expected = product();
  std::vector<std::vector<T>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (int repeat = 0; repeat < 5; ++repeat) result = product();
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

TYPED_TEST(Gemm, ThePackedProductIsExactOnIntegers) {
  using T = TypeParam;
  struct Sizes {
    std::size_t rows, columns, depth;
  };
  for (const bool transposed : {false, true}) {
    for (const Sizes& s : {Sizes{0, 3, 2},
                           {2, 0, 3},
                           {3, 2, 0},
                           {1, 1, 1},
                           {7, 50, 33},
                           {49, 95, 385},
                           {401, 257, 31},
                           {5, 250, 771},
                           {300, 150, 400},
                           {523, 101, 390},
                           {500, 490, 64},
                           {37, 1000, 1000}}) {
      for (const bool accumulate : {false, true}) {
        const std::size_t lda = s.depth + 2;
        const std::size_t ldb = (transposed ? s.depth : s.columns) + 3;
        const std::size_t ldc = s.columns + 1;
        const auto a = this->integers(s.rows * lda);
        const auto b = this->integers((transposed ? s.columns : s.depth) * ldb);
        std::vector<T> c(s.rows * ldc, T(3));
        Arena arena;
        multiply(transposed, s.rows, s.columns, s.depth, T(0.5), a.data(), lda, b.data(), ldb, accumulate,
                 c.data(), ldc, arena);
        std::size_t wrong = 0;
        std::size_t wrong_control = 0;
        for (std::size_t i = 0; i < s.rows; ++i) {
          for (std::size_t j = 0; j < ldc; ++j) {
            double expected = accumulate || j >= s.columns ? 3 : 0;
            for (std::size_t k = 0; j < s.columns && k < s.depth; ++k) {
              expected += 0.5 * static_cast<double>(a[i * lda + k]) *
                          static_cast<double>(transposed ? b[j * ldb + k] : b[k * ldb + j]);
            }
            const auto value = static_cast<double>(c[i * ldc + j]);
            if (!(value == expected)) ++wrong;
            if (!(value == expected + 1)) ++wrong_control;
          }
        }
        EXPECT_EQ(wrong, 0u) << s.rows << " " << s.columns << " " << s.depth << " " << transposed;
        EXPECT_EQ(wrong_control, s.rows * ldc);
      }
    }
  }
}

TYPED_TEST(Gemm, ARowOfThePackedProductHasTheSameBitsInAnyBlock) {
  using T = TypeParam;
  const std::size_t rows = 431, columns = 301, depth = 517;
  const auto a = this->reals(rows * depth);
  const auto b = this->reals(columns * depth);
  for (const bool transposed : {false, true}) {
    const std::size_t ldb = transposed ? depth : columns;
    std::vector<T> whole(rows * columns, T(1));
    Arena arena;
    multiply(transposed, rows, columns, depth, T(0.75), a.data(), depth, b.data(), ldb, true, whole.data(),
             columns, arena);
    for (const std::size_t block : {1, 7, 100}) {
      std::vector<T> parts(rows * columns, T(1));
      for (std::size_t i = 0; i < rows; i += block) {
        multiply(transposed, std::min(block, rows - i), columns, depth, T(0.75), a.data() + i * depth, depth,
                 b.data(), ldb, true, parts.data() + i * columns, columns, arena);
      }
      EXPECT_EQ(0, std::memcmp(parts.data(), whole.data(), whole.size() * sizeof(T))) << block;
    }
  }
}

}  // namespace
}  // namespace gradgram
