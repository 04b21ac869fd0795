#include "engine/simd/kernels.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/cpu.hpp"
#include "engine/error.hpp"

// Every kernel of every instruction set that runs here against plain loops in a wider type.
namespace gradgram {
namespace {

using simd::Activation;

template <class T>
struct Wider;
template <>
struct Wider<float> {
  using Type = double;
};
template <>
struct Wider<double> {
  using Type = long double;
};
template <class T>
using Wide = typename Wider<T>::Type;

template <class T>
inline constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
template <class T>
inline constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
inline constexpr T kEpsilon = std::numeric_limits<T>::epsilon();

/// True when the numbers agree; a NaN on either side alone fails.
template <class T>
bool within(T value, Wide<T> reference, Wide<T> tolerance) {
  return std::abs(static_cast<Wide<T>>(value) - reference) <= tolerance;
}

/// An array at any misalignment with guards on both sides: NaN in front and behind, so that reading past the
/// end shows up in results, and writing past it in intact().
template <class T>
class Guarded {
 public:
  static constexpr std::size_t kGuard = 64;
  explicit Guarded(std::size_t size, std::size_t misalignment = 0)
      : size_(size), start_(kGuard + misalignment), numbers_(size + 2 * kGuard + misalignment, poison()) {}
  T* data() { return numbers_.data() + start_; }
  const T* data() const { return numbers_.data() + start_; }
  T& operator[](std::size_t i) { return numbers_[start_ + i]; }
  T operator[](std::size_t i) const { return numbers_[start_ + i]; }
  std::size_t size() const { return size_; }
  bool intact() const {
    const auto poisoned = [](const T& value) {
      const T expected = poison();
      return std::memcmp(&value, &expected, sizeof(T)) == 0;
    };
    return std::all_of(numbers_.begin(), numbers_.begin() + static_cast<std::ptrdiff_t>(start_), poisoned) &&
           std::all_of(numbers_.begin() + static_cast<std::ptrdiff_t>(start_ + size_), numbers_.end(),
                       poisoned);
  }

 private:
  static T poison() {
    if constexpr (std::is_floating_point_v<T>) {
      return kNaN<T>;
    } else {
      return T(-77);
    }
  }
  std::size_t size_;
  std::size_t start_;
  std::vector<T> numbers_;
};

std::vector<std::size_t> sizes(std::size_t lanes) {
  return {0, 1, lanes - 1, lanes, lanes + 1, 2 * lanes - 1, 2 * lanes + 1, 8 * lanes + 2};
}

template <class T>
class Kernels : public ::testing::Test {
 protected:
  using Table = simd::KernelTable<T>;

  /// Runs body(table) for every instruction set that this machine has.
  template <class Body>
  void each(const Body& body) {
    for (const Isa isa : available_isas()) {
      SCOPED_TRACE(std::string(isa_name(isa)));
      body(kernels<T>(isa));
    }
  }
  Guarded<T> integers(std::size_t size, std::size_t misalignment = 0) {
    Guarded<T> numbers(size, misalignment);
    for (std::size_t i = 0; i < size; ++i) numbers[i] = static_cast<T>(static_cast<int>(random_() % 9) - 4);
    return numbers;
  }
  Guarded<T> reals(std::size_t size, std::size_t misalignment = 0) {
    Guarded<T> numbers(size, misalignment);
    std::normal_distribution<double> normal;
    for (std::size_t i = 0; i < size; ++i) numbers[i] = static_cast<T>(normal(random_));
    return numbers;
  }
  std::mt19937_64 random_{20240607};
};
using Precisions = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Kernels, Precisions);

TYPED_TEST(Kernels, TablesNameTheirInstructionSetAndRegister) {
  for (const Isa isa : available_isas()) {
    const auto& table = kernels<TypeParam>(isa);
    EXPECT_EQ(table.isa, isa_name(isa));
    const std::size_t bytes = isa >= Isa::Avx512 ? 64 : isa == Isa::Avx2 ? 32 : 16;
    EXPECT_EQ(table.vector_length * sizeof(TypeParam), bytes);
  }
}

// ---- gather_product
// ----------------------------------------------------------------------------------------------

/// One product with its data: rows read overlapping windows of x, rows of out lie in reverse order with gaps.
template <class T>
struct Product {
  Product(std::size_t rows, std::size_t depth, std::size_t columns, std::size_t v_stride,
          std::size_t misalignment)
      : rows(rows),
        depth(depth),
        columns(columns),
        v_stride(v_stride),
        x(2 * rows + 3 * depth + 1, misalignment),
        v(depth * v_stride, misalignment),
        out(rows * (columns + 3), misalignment),
        x_base(rows),
        x_offset(depth),
        out_base(rows) {
    for (std::size_t j = 0; j < rows; ++j) {
      x_base[j] = static_cast<std::ptrdiff_t>(2 * j);
      out_base[j] = static_cast<std::ptrdiff_t>((rows - 1 - j) * (columns + 3));
    }
    for (std::size_t i = 0; i < depth; ++i) x_offset[i] = static_cast<std::ptrdiff_t>(3 * ((i * 7) % depth));
  }
  void poison_padding() {
    for (std::size_t i = 0; i < depth; ++i) {
      for (std::size_t c = columns; c < v_stride; ++c) v[i * v_stride + c] = kNaN<T>;
    }
  }
  simd::GatherProduct<T> job(bool accumulate) {
    return {x.data(),        x_base.data(), x_offset.data(), v.data(), v_stride,  out.data(),
            out_base.data(), rows,          depth,           columns,  accumulate};
  }
  /// Whether out holds the product (plus `before`) within depth * eps * sum |products|, and nothing else was
  /// touched.
  bool holds(const Guarded<T>& before, bool accumulate, bool exactly) const {
    Guarded<T> expected = before;
    if (!out.intact()) return false;
    std::vector<bool> covered(out.size(), false);
    for (std::size_t j = 0; j < rows; ++j) {
      for (std::size_t c = 0; c < columns; ++c) {
        const std::size_t at = static_cast<std::size_t>(out_base[j]) + c;
        covered[at] = true;
        Wide<T> sum = accumulate ? before[at] : T(0);
        Wide<T> magnitude = std::abs(sum);
        for (std::size_t i = 0; i < depth; ++i) {
          const Wide<T> term = static_cast<Wide<T>>(x[static_cast<std::size_t>(x_base[j] + x_offset[i])]) *
                               static_cast<Wide<T>>(v[i * v_stride + c]);
          sum += term;
          magnitude += std::abs(term);
        }
        const Wide<T> tolerance = exactly ? 0 : static_cast<Wide<T>>(depth + 1) * kEpsilon<T> * magnitude;
        if (!within<T>(out[at], sum, tolerance)) return false;
      }
    }
    for (std::size_t at = 0; at < out.size(); ++at) {
      if (!covered[at] && std::memcmp(&out.data()[at], &before.data()[at], sizeof(T)) != 0) return false;
    }
    return true;
  }

  std::size_t rows, depth, columns, v_stride;
  Guarded<T> x, v, out;
  std::vector<std::ptrdiff_t> x_base, x_offset, out_base;
};

std::size_t padded(std::size_t columns, std::size_t padding) {
  return (columns + padding - 1) / padding * padding;
}

TYPED_TEST(Kernels, GatherProductIsExactOnIntegers) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    const std::size_t lanes = table.vector_length;
    std::vector<std::size_t> widths = sizes(lanes);
    for (const std::size_t vectors : {3, 4, 5, 7}) widths.push_back(vectors * lanes - 1);
    for (const std::size_t columns : widths) {
      for (const std::size_t rows : {0, 1, 2, 5, 6, 7, 8, 9, 13, 67}) {
        for (const std::size_t depth : {0, 1, 2, 7, 131}) {
          for (const bool accumulate : {false, true}) {
            const std::size_t extra = rows % 2 * simd::kColumnPadding<T>;
            Product<T> product(rows, depth, columns, padded(columns, simd::kColumnPadding<T>) + extra,
                               columns % 3);
            product.x = this->integers(product.x.size(), 1);
            product.v = this->integers(product.v.size(), columns % 3);
            product.poison_padding();
            if (accumulate) product.out = this->integers(product.out.size(), 1);
            const Guarded<T> before = product.out;
            table.gather_product(product.job(accumulate));
            ASSERT_TRUE(product.holds(before, accumulate, true))
                << "rows " << rows << ", depth " << depth << ", columns " << columns << ", accumulate "
                << accumulate;
          }
        }
      }
    }
  });
}

TYPED_TEST(Kernels, GatherProductStartsScalesTransposesAndRectifies) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    const std::size_t lanes = table.vector_length;
    for (const std::size_t columns :
         {std::size_t{1}, lanes - 1, lanes, 3 * lanes + 2, 4 * lanes, 5 * lanes + 1}) {
      for (const std::size_t rows : {1, 13, 67}) {
        for (const std::size_t depth : {0, 5, 67, 1000}) {
          for (int options = 0; options < 16; ++options) {
            Product<T> product(rows, depth, columns, columns + 1, columns % 3);
            product.x = this->integers(product.x.size(), 1);
            product.v = this->integers(product.v.size(), columns % 3);
            product.poison_padding();
            const Guarded<T> start = this->integers(columns, 1);
            auto job = product.job((options & 1) != 0);
            if (job.accumulate) product.out = this->integers(product.out.size(), 1);
            if ((options & 2) != 0) job.start = start.data();
            job.start_scale = T(3);
            job.rectify = (options & 4) != 0;
            job.v_scale = T(2);
            // The transposed matrix: columns `depth + 3` apart, its rows in runs of 24 with gaps, last run
            // first.
            const std::size_t run = 24;
            const std::size_t length = depth + depth / run * 2 + 3;
            Guarded<T> transposed(columns * length, 1);
            std::vector<std::ptrdiff_t> v_offset(depth);
            if ((options & 8) != 0) {
              for (std::size_t i = 0; i < depth; ++i) {
                const std::size_t runs = (depth - 1) / run;
                const std::size_t at = (runs - i / run) * (run + 1) + i % run;
                v_offset[i] = static_cast<std::ptrdiff_t>(at);
                for (std::size_t c = 0; c < columns; ++c) {
                  transposed[c * length + at] = product.v[i * product.v_stride + c];
                }
              }
              job.v = transposed.data();
              job.v_stride = length;
              job.v_offset = v_offset.data();
            }
            const Guarded<T> before = product.out;
            job.out = product.out.data();
            table.gather_product(job);
            ASSERT_TRUE(product.out.intact());
            for (std::size_t j = 0; j < rows; ++j) {
              for (std::size_t c = 0; c < columns; ++c) {
                const std::size_t at = static_cast<std::size_t>(product.out_base[j]) + c;
                T sum = job.accumulate ? before[at] : job.start != nullptr ? 3 * start[c] : T(0);
                for (std::size_t i = 0; i < depth; ++i) {
                  sum += product.x[static_cast<std::size_t>(product.x_base[j] + product.x_offset[i])] * 2 *
                         product.v[i * product.v_stride + c];
                }
                if (job.rectify && sum < 0) sum = 0;
                ASSERT_EQ(product.out[at], sum) << "row " << j << " of " << rows << ", column " << c << " of "
                                                << columns << ", depth " << depth << ", options " << options;
              }
              for (std::size_t c = columns; c < columns + 3; ++c) {
                ASSERT_TRUE(job.accumulate ||
                            std::isnan(product.out[static_cast<std::size_t>(product.out_base[j]) + c]));
              }
            }
          }
        }
      }
    }
  });
}

TYPED_TEST(Kernels, GatherProductKeepsTheErrorBound) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    for (const std::size_t columns : {10, 32, 64, 100}) {
      Product<T> product(83, 577, columns, padded(columns, simd::kColumnPadding<T>), 0);
      product.x = this->reals(product.x.size());
      product.v = this->reals(product.v.size());
      product.poison_padding();
      const Guarded<T> before = product.out;
      table.gather_product(product.job(false));
      EXPECT_TRUE(product.holds(before, false, false));
      EXPECT_FALSE(product.holds(before, false, true))
          << "rounded results cannot equal the wide reference everywhere";
      // Negative control: a sum without its last term is seen.
      auto shorter = product.job(false);
      --shorter.depth;
      table.gather_product(shorter);
      EXPECT_FALSE(product.holds(before, false, false));
    }
  });
}

TYPED_TEST(Kernels, GatherProductHasTheSameBitsWhateverTheBlocking) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    for (const std::size_t columns : {5, 64, 100}) {
      const std::size_t depth = 613;
      Product<T> whole(71, depth, columns, padded(columns, simd::kColumnPadding<T>), 0);
      whole.x = this->reals(whole.x.size());
      whole.v = this->reals(whole.v.size());
      table.gather_product(whole.job(false));

      Product<T> pieces = whole;
      pieces.out = Guarded<T>(whole.out.size());
      for (std::size_t row = 0; row < whole.rows;) {
        const std::size_t rows = std::min(whole.rows - row, 1 + row % 4);
        auto job = pieces.job(false);
        job.x_base += row;
        job.out_base += row;
        job.rows = rows;
        // The depth in two calls, the second accumulating: still one chain.
        job.depth = 200;
        table.gather_product(job);
        job.x_offset += 200;
        job.v += 200 * job.v_stride;
        job.depth = depth - 200;
        job.accumulate = true;
        table.gather_product(job);
        row += rows;
      }
      EXPECT_EQ(std::memcmp(whole.out.data(), pieces.out.data(), whole.out.size() * sizeof(T)), 0);

      Product<T> narrow = whole;
      narrow.out = Guarded<T>(whole.out.size());
      const std::size_t first = std::min<std::size_t>(columns, 3);
      auto job = narrow.job(false);
      job.columns = first;
      table.gather_product(job);
      // Another alignment of the rest: copied to a matrix of its own.
      const std::size_t rest = columns - first;
      const std::size_t stride = padded(rest, simd::kColumnPadding<T>);
      Guarded<T> v(depth * stride, 1);
      for (std::size_t i = 0; i < depth; ++i)
        std::copy_n(whole.v.data() + i * whole.v_stride + first, rest, v.data() + i * stride);
      job.v = v.data();
      job.v_stride = stride;
      job.out += first;
      job.columns = rest;
      table.gather_product(job);
      EXPECT_EQ(std::memcmp(whole.out.data(), narrow.out.data(), whole.out.size() * sizeof(T)), 0);
    }
  });
}

// ---- sparse_gradient
// ----------------------------------------------------------------------------------------------

TYPED_TEST(Kernels, CountsWhatIsNotZero) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    for (const std::size_t n : sizes(table.vector_length)) {
      Guarded<T> x = this->integers(n, 1);
      std::size_t expected = 0;
      for (std::size_t i = 0; i < n; ++i) {
        if (i % 5 == 1) x[i] = kNaN<T>;
        if (i % 7 == 2) x[i] = T(-0.0);
        if (x[i] != T(0)) ++expected;
      }
      EXPECT_EQ(table.count_nonzero(x.data(), n), expected);
    }
  });
}

TYPED_TEST(Kernels, SparseGradientIsTheGatherProductBitForBit) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    const std::size_t lanes = table.vector_length;
    for (const std::size_t c_in : {std::size_t{1}, 2 * lanes - 1, 2 * lanes, 4 * lanes + 3}) {
      for (const std::size_t c_out : {std::size_t{1}, lanes, 2 * lanes + 5}) {
        for (const std::size_t taps : {1, 4, 9, 10, 25}) {
          for (const std::size_t pixels : {1, 16, 67}) {
            for (const double density : {0.0, 0.3, 1.0}) {
              const bool accumulate = (taps + pixels) % 2 == 0;
              const std::size_t image_pixels = pixels + 3 * taps;
              const Guarded<T> image = this->reals(image_pixels * c_in, 1);
              Guarded<T> cotangent = this->reals(pixels * c_out, 3);
              std::uniform_real_distribution<double> uniform;
              for (std::size_t i = 0; i < cotangent.size(); ++i) {
                if (uniform(this->random_) >= density) cotangent[i] = i % 2 == 0 ? T(0) : T(-0.0);
              }
              std::vector<std::ptrdiff_t> tap_offset(taps);
              std::vector<std::ptrdiff_t> pixel_offset(pixels);
              for (std::size_t t = 0; t < taps; ++t)
                tap_offset[t] = static_cast<std::ptrdiff_t>(3 * (taps - 1 - t));
              for (std::size_t p = 0; p < pixels; ++p) pixel_offset[p] = static_cast<std::ptrdiff_t>(p);
              Guarded<T> expected = this->reals(taps * c_in * c_out, 1);
              Guarded<T> found = expected;
              std::vector<std::ptrdiff_t> x_base;
              std::vector<std::ptrdiff_t> x_offset;
              std::vector<std::ptrdiff_t> out_base;
              for (std::size_t t = 0; t < taps; ++t) {
                for (std::size_t c = 0; c < c_in; ++c) {
                  x_base.push_back(tap_offset[t] * static_cast<std::ptrdiff_t>(c_in) +
                                   static_cast<std::ptrdiff_t>(c));
                  out_base.push_back(static_cast<std::ptrdiff_t>((t * c_in + c) * c_out));
                }
              }
              for (const std::ptrdiff_t p : pixel_offset)
                x_offset.push_back(p * static_cast<std::ptrdiff_t>(c_in));
              table.gather_product({image.data(), x_base.data(), x_offset.data(), cotangent.data(), c_out,
                                    expected.data(), out_base.data(), x_base.size(), pixels, c_out,
                                    accumulate});
              const std::size_t padding = simd::kSparsePadding<T>;
              const std::size_t lists = simd::kColumnPadding<T> * (pixels + simd::kColumnPadding<T>);
              Guarded<T> blocks(image_pixels * padded(c_in, padding));
              Guarded<T> values(lists, 1);
              Guarded<std::int32_t> offsets(lists, 1);
              table.sparse_gradient({image.data(), image_pixels, c_in, cotangent.data(), pixels, c_out, taps,
                                     tap_offset.data(), pixel_offset.data(), accumulate, found.data(),
                                     blocks.data(), values.data(), offsets.data()});
              ASSERT_TRUE(found.intact() && blocks.intact() && values.intact() && offsets.intact());
              ASSERT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(T)), 0)
                  << c_in << "->" << c_out << ", taps " << taps << ", pixels " << pixels << ", density "
                  << density;
            }
          }
        }
      }
    }
  });
}

// ---- winograd
// ----------------------------------------------------------------------------------------------------

/// The transforms around products of components in plain loops; integers (weights: fourfold) stay exact.
template <class T>
struct WinogradCase {
  std::size_t images, out_h, out_w, c_in, c_out;
  std::size_t down() const { return (out_h + 1) / 2; }
  std::size_t across() const { return (out_w + 1) / 2; }
  std::size_t tiles() const { return images * down() * across(); }
  std::size_t plane_h() const { return 2 * down() + 2; }
  std::size_t plane_w() const { return 2 * across() + 2; }
  std::size_t input(std::size_t n, std::size_t y, std::size_t x, std::size_t c) const {
    return ((n * plane_h() + y) * plane_w() + x) * c_in + c;
  }
  std::size_t output(std::size_t n, std::size_t y, std::size_t x, std::size_t c) const {
    return ((n * out_h + y) * out_w + x) * c_out + c;
  }
  /// f(input, weight [3, 3, c_in, c_out], output) for all products of the correlation.
  template <class F>
  void each(F f) const {
    for (std::size_t n = 0; n < images; ++n) {
      for (std::size_t y = 0; y < out_h; ++y) {
        for (std::size_t x = 0; x < out_w; ++x) {
          for (std::size_t tap = 0; tap < 9; ++tap) {
            for (std::size_t i = 0; i < c_in; ++i) {
              for (std::size_t k = 0; k < c_out; ++k) {
                f(input(n, y + tap / 3, x + tap % 3, i), (tap * c_in + i) * c_out + k, output(n, y, x, k));
              }
            }
          }
        }
      }
    }
  }
};

TYPED_TEST(Kernels, WinogradIsTheCorrelationExactlyOnIntegers) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    const std::size_t line = simd::kColumnPadding<T>;
    const std::size_t wide = table.panel_columns;
    for (const auto& c :
         {WinogradCase<T>{2, 3, 4, line, wide + line}, WinogradCase<T>{1, 5, 5, 2 * line, line},
          WinogradCase<T>{3, 2, 1, wide + line, 2 * line}}) {
      for (int options = 0; options < 16; ++options) {
        const bool transposed = (options & 1) != 0;
        const bool accumulate = (options & 2) != 0;
        const bool rectify = (options & 4) != 0;
        const bool starts = (options & 8) != 0;
        const Guarded<T> plane = this->integers(c.images * c.plane_h() * c.plane_w() * c.c_in, 1);
        Guarded<T> weights = this->integers(9 * c.c_in * c.c_out, 1);
        for (std::size_t i = 0; i < weights.size(); ++i) weights[i] *= 4;
        // As those of a transposed convolution: turned around, channels exchanged.
        Guarded<T> given = weights;
        for (std::size_t at = 0; transposed && at < given.size(); ++at) {
          const std::size_t k = at % c.c_out;
          const std::size_t i = at / c.c_out % c.c_in;
          given[((8 - at / c.c_out / c.c_in) * c.c_out + k) * c.c_in + i] = weights[at];
        }
        const Guarded<T> start = this->integers(c.c_out, 1);
        Guarded<T> out = this->integers(c.images * c.out_h * c.out_w * c.c_out, 1);
        std::vector<T> expected(out.data(), out.data() + out.size());
        for (std::size_t at = 0; at < expected.size() && !accumulate; ++at) {
          expected[at] = starts ? 3 * start[at % c.c_out] : T(0);
        }
        c.each(
            [&](std::size_t x, std::size_t w, std::size_t y) { expected[y] += 2 * plane[x] * weights[w]; });
        for (T& value : expected) value = rectify ? std::max(value, T(0)) : value;

        // In two parts.
        for (std::size_t first = 0, count = 0; first < c.tiles(); first += count) {
          count = first == 0 ? (c.tiles() + 2) / 3 : c.tiles() - first;
          const simd::WinogradGrid grid{c.across(), c.down(), first, count};
          const std::size_t window = simd::winograd_component<T>(count, c.c_in);
          Guarded<T> windows(16 * window, 1);
          table.winograd_input({grid, plane.data(), c.plane_w() * c.c_in, c.plane_h() * c.plane_w() * c.c_in,
                                c.c_in, windows.data(), window});
          ASSERT_TRUE(windows.intact());
          for (std::size_t column = 0; column < c.c_out; column += wide) {
            const std::size_t width = std::min(wide, c.c_out - column);
            const std::size_t component = simd::winograd_component<T>(count, width);
            const std::size_t weight = simd::winograd_component<T>(c.c_in, width);
            Guarded<T> transformed(16 * weight, 1);
            table.winograd_weights({given.data(), transposed ? c.c_out : c.c_in,
                                    transposed ? c.c_in : c.c_out, transposed, T(2), column, width,
                                    transformed.data()});
            ASSERT_TRUE(transformed.intact());
            Guarded<T> products(16 * component, 1);
            for (std::size_t at = 0; at < 16; ++at) {
              for (std::size_t t = 0; t < count; ++t) {
                for (std::size_t k = 0; k < width; ++k) {
                  T sum = 0;
                  for (std::size_t i = 0; i < c.c_in; ++i) {
                    sum += windows[at * window + t * c.c_in + i] * transformed[at * weight + i * width + k];
                  }
                  products[at * component + t * width + k] = sum;
                }
              }
            }
            table.winograd_output({grid, products.data(), component, width, out.data() + column, c.out_h,
                                   c.out_w, c.c_out, accumulate, starts ? start.data() + column : nullptr,
                                   T(3), rectify});
          }
        }
        ASSERT_TRUE(out.intact());
        for (std::size_t at = 0; at < expected.size(); ++at) {
          ASSERT_EQ(out[at], expected[at]) << "output " << at << ", options " << options;
        }
      }
    }
  });
}

TYPED_TEST(Kernels, WinogradGradientIsExactOnIntegers) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    const std::size_t line = simd::kColumnPadding<T>;
    for (const auto& c : {WinogradCase<T>{1, 3, 4, 3, 3 * line}, WinogradCase<T>{2, 5, 3, line, line}}) {
      for (const bool accumulate : {false, true}) {
        const Guarded<T> plane = this->integers(c.images * c.plane_h() * c.plane_w() * c.c_in, 1);
        Guarded<T> cotangent = this->integers(c.images * c.out_h * c.out_w * c.c_out, 1);
        for (std::size_t i = 0; i < cotangent.size(); ++i) cotangent[i] *= 4;
        Guarded<T> gradient = this->integers(9 * c.c_in * c.c_out, 1);
        std::vector<T> expected(gradient.data(), gradient.data() + gradient.size());
        if (!accumulate) std::fill(expected.begin(), expected.end(), T(0));
        c.each([&](std::size_t x, std::size_t w, std::size_t y) { expected[w] += plane[x] * cotangent[y]; });
        const simd::WinogradGrid grid{c.across(), c.down(), 0, c.tiles()};
        for (std::size_t column = 0; column < c.c_out; column += 2 * line) {
          const std::size_t width = std::min(2 * line, c.c_out - column);
          const std::size_t component = simd::winograd_component<T>(c.tiles(), width);
          Guarded<T> transformed(16 * component, 1);
          table.winograd_cotangent({grid, cotangent.data() + column, c.out_h, c.out_w, c.c_out, width,
                                    transformed.data(), component});
          ASSERT_TRUE(transformed.intact());
          const std::size_t product = simd::winograd_component<T>(c.c_in, width);
          std::vector<T> products(16 * product);
          for (std::size_t at = 0; at < 16; ++at) {
            for (std::size_t t = 0; t < c.tiles(); ++t) {
              // B^T d B, by its definition.
              constexpr int kInput[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
              const std::size_t n = t / (c.down() * c.across());
              const std::size_t y = t / c.across() % c.down();
              const std::size_t x = t % c.across();
              for (std::size_t i = 0; i < c.c_in; ++i) {
                T window = 0;
                for (std::size_t a = 0; a < 4; ++a) {
                  for (std::size_t b = 0; b < 4; ++b) {
                    window += static_cast<T>(kInput[at / 4][a] * kInput[at % 4][b]) *
                              plane[c.input(n, 2 * y + a, 2 * x + b, i)];
                  }
                }
                for (std::size_t k = 0; k < width; ++k) {
                  products[at * product + i * width + k] +=
                      window * transformed[at * component + t * width + k];
                }
              }
            }
          }
          table.winograd_gradient(
              {products.data(), product, c.c_in, width, gradient.data() + column, c.c_out, accumulate});
        }
        ASSERT_TRUE(gradient.intact());
        for (std::size_t at = 0; at < expected.size(); ++at) {
          ASSERT_EQ(gradient[at], expected[at]) << "gradient " << at << ", accumulate " << accumulate;
        }
      }
    }
  });
}

TYPED_TEST(Kernels, WinogradProductsAreExactOnIntegers) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    const std::size_t line = simd::kColumnPadding<T>;
    const std::size_t tiles = 7;
    for (const std::size_t inputs : {std::size_t{1}, line + 1, 3 * line}) {
      for (std::size_t width = table.vector_length; width <= table.panel_columns;
           width += table.vector_length) {
        const std::size_t window = simd::winograd_component<T>(tiles, inputs);
        const std::size_t component = simd::winograd_component<T>(tiles, width);
        const Guarded<T> windows = this->integers(16 * window, 1);
        Guarded<T> cotangents = this->integers(16 * component, 2);
        for (std::size_t i = 0; i < cotangents.size(); ++i) cotangents[i] *= 4;
        std::vector<std::ptrdiff_t> channel(inputs), tile(tiles);
        for (std::size_t i = 0; i < inputs; ++i) channel[i] = static_cast<std::ptrdiff_t>(i);
        for (std::size_t t = 0; t < tiles; ++t) tile[t] = static_cast<std::ptrdiff_t>(t * inputs);
        const std::size_t row = width + 5;
        const std::size_t tap = inputs * row + 3;
        for (const bool accumulate : {false, true}) {
          Guarded<T> gradient = this->integers(9 * tap, 1);
          std::vector<T> expected(gradient.data(), gradient.data() + gradient.size());
          // G^T u G, by its definition.
          constexpr double kGradient[3][4] = {{1, 0.5, 0.5, 0}, {0, 0.5, -0.5, 0}, {0, 0.5, 0.5, 1}};
          for (std::size_t i = 0; i < inputs; ++i) {
            for (std::size_t k = 0; k < width; ++k) {
              double sums[9] = {};
              for (std::size_t c = 0; c < 16; ++c) {
                double product = 0;
                for (std::size_t t = 0; t < tiles; ++t) {
                  product += static_cast<double>(windows[c * window + t * inputs + i]) *
                             static_cast<double>(cotangents[c * component + t * width + k]);
                }
                for (std::size_t at = 0; at < 9; ++at) {
                  sums[at] += kGradient[at / 3][c / 4] * kGradient[at % 3][c % 4] * product;
                }
              }
              for (std::size_t at = 0; at < 9; ++at) {
                T& value = expected[at * tap + i * row + k];
                value = static_cast<T>(sums[at]) + (accumulate ? value : T(0));
              }
            }
          }
          table.winograd_products({.windows = windows.data(),
                                   .window_component = window,
                                   .cotangents = cotangents.data(),
                                   .cotangent_component = component,
                                   .tiles = tiles,
                                   .inputs = inputs,
                                   .columns = width,
                                   .channel = channel.data(),
                                   .tile = tile.data(),
                                   .gradient = gradient.data(),
                                   .row = row,
                                   .tap = tap,
                                   .accumulate = accumulate});
          ASSERT_TRUE(gradient.intact());
          for (std::size_t at = 0; at < expected.size(); ++at) {
            ASSERT_EQ(gradient[at], expected[at])
                << "gradient " << at << ", accumulate " << accumulate << ", width " << width;
          }
        }
      }
    }
  });
}

// ---- elementwise
// -------------------------------------------------------------------------------------------------

TYPED_TEST(Kernels, AddAxpyAndDotAreExactOnIntegers) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    for (const std::size_t n : sizes(table.vector_length)) {
      for (const std::size_t misalignment : {0, 1, 3}) {
        const Guarded<T> a = this->integers(n, misalignment);
        const Guarded<T> b = this->integers(n, 3 - misalignment);
        Guarded<T> sum(n, misalignment);
        table.add(a.data(), b.data(), sum.data(), n);
        Guarded<T> updated = b;
        table.axpy(T(3), a.data(), updated.data(), n);
        double product = 0;
        for (std::size_t i = 0; i < n; ++i) {
          EXPECT_EQ(sum[i], a[i] + b[i]);
          EXPECT_EQ(updated[i], b[i] + 3 * a[i]);
          product += static_cast<double>(a[i]) * static_cast<double>(b[i]);
        }
        EXPECT_EQ(table.dot(a.data(), b.data(), n), product);
        EXPECT_TRUE(sum.intact() && updated.intact());
        Guarded<T> in_place = a;
        table.add(in_place.data(), b.data(), in_place.data(), n);
        EXPECT_EQ(std::memcmp(in_place.data(), sum.data(), n * sizeof(T)), 0);
      }
    }
  });
}

TYPED_TEST(Kernels, DotAccumulatesInDouble) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    const std::size_t n = 10007;
    const Guarded<T> a = this->reals(n);
    const Guarded<T> b = this->reals(n, 1);
    long double expected = 0;
    long double magnitude = 0;
    double naive = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const long double term = static_cast<long double>(a[i]) * static_cast<long double>(b[i]);
      expected += term;
      magnitude += std::abs(term);
      naive = static_cast<double>(static_cast<float>(naive) + static_cast<float>(term));
    }
    const long double tolerance = static_cast<long double>(n) * kEpsilon<double> * magnitude;
    EXPECT_LE(std::abs(table.dot(a.data(), b.data(), n) - expected), tolerance);
    // Negative control: a sum in float is told apart.
    EXPECT_GT(std::abs(naive - expected), tolerance);
  });
}

// ---- max_pool
// ----------------------------------------------------------------------------------------------

/// The place and value that a window gives, read one by one; false when the window holds a NaN.
template <class T>
bool plain_window(const ConvGeometry& g, const Guarded<T>& in, std::size_t y, std::size_t x, std::size_t c,
                  bool rectify, T& best, T& place) {
  best = rectify ? T(0) : -kInfinity<T>;
  place = T(-1);
  for (std::size_t a = 0; a < g.kernel_h; ++a) {
    for (std::size_t b = 0; b < g.kernel_w; ++b) {
      const long row = long(y * g.stride_h + a) - long(g.pad_top);
      const long column = long(x * g.stride_w + b) - long(g.pad_left);
      if (row < 0 || column < 0 || row >= long(g.in_h) || column >= long(g.in_w)) continue;
      const T value = in[(std::size_t(row) * g.in_w + std::size_t(column)) * g.c_in + c];
      if (std::isnan(value)) return false;
      if (value > best || (!rectify && place == T(-1))) {
        best = value;
        place = static_cast<T>(a * g.kernel_w + b);
      }
    }
  }
  return true;
}

TYPED_TEST(Kernels, MaxPoolKeepsTheFirstMaximumAndNaN) {
  using T = TypeParam;
  const Padding one{.kind = Padding::Kind::Explicit, .amount = 1};
  this->each([&](const simd::KernelTable<T>& table) {
    for (const std::size_t channels : sizes(table.vector_length)) {
      if (channels == 0) continue;
      for (const ConvGeometry& g :
           {conv_geometry(4, 6, channels, channels, 2, 2, 2, 2, {}),
            conv_geometry(5, 7, channels, channels, 3, 2, 2, 1, one),
            conv_geometry(5, 7, channels, channels, 2, 3, 3, 4, {.kind = Padding::Kind::Valid})}) {
        const std::size_t size = g.out_pixels() * channels;
        for (const bool rectify : {false, true}) {
          Guarded<T> in = this->integers(g.in_pixels() * channels, 1);
          for (std::size_t i = 0; i < in.size(); ++i) {
            if (i % 23 == 5) in[i] = kNaN<T>;
            if (i % 7 == 3) in[i] = -kInfinity<T>;
          }
          Guarded<T> out(size, 3);
          Guarded<T> chosen(size);
          table.max_pool(g, rectify, in.data(), out.data(), chosen.data());
          ASSERT_TRUE(out.intact() && chosen.intact());
          const Guarded<T> cotangent = this->integers(size, 1);
          const Guarded<T> before = this->integers(in.size());
          Guarded<T> sums = before;
          table.max_pool_chain(g, cotangent.data(), chosen.data(), true, sums.data());
          Guarded<T> expected = before;
          Guarded<T> plain(in.size());
          Guarded<T> stored = plain;
          std::size_t at = 0;
          for (std::size_t y = 0; y < g.out_h; ++y) {
            for (std::size_t x = 0; x < g.out_w; ++x) {
              for (std::size_t c = 0; c < channels; ++c, ++at) {
                T best{};
                T place{};
                const bool numbers = plain_window<T>(g, in, y, x, c, rectify, best, place);
                if (numbers) {
                  ASSERT_EQ(out[at], best);
                  ASSERT_EQ(chosen[at], place);
                } else {
                  ASSERT_TRUE(std::isnan(out[at]) && std::isnan(chosen[at]));
                }
                for (std::size_t a = 0; a < g.kernel_h; ++a) {
                  for (std::size_t b = 0; b < g.kernel_w; ++b) {
                    const std::size_t row = y * g.stride_h + a - g.pad_top;
                    const std::size_t column = x * g.stride_w + b - g.pad_left;
                    if (row >= g.in_h || column >= g.in_w) continue;
                    const bool mine = place == static_cast<T>(a * g.kernel_w + b);
                    const T share = !numbers ? kNaN<T> : mine ? cotangent[at] : T(0);
                    const std::size_t pixel = (row * g.in_w + column) * channels + c;
                    expected[pixel] += share;
                    plain[pixel] = share;
                  }
                }
              }
            }
          }
          const auto same = [](const Guarded<T>& a, const Guarded<T>& b) {
            for (std::size_t i = 0; i < a.size(); ++i) {
              if (!(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])))) return false;
            }
            return a.intact() && b.intact();
          };
          EXPECT_TRUE(same(sums, expected));
          if (g.stride_h >= g.kernel_h && g.stride_w >= g.kernel_w) {
            table.max_pool_chain(g, cotangent.data(), chosen.data(), false, stored.data());
            EXPECT_TRUE(same(stored, plain));
          }
          // Negative control: another place is seen.
          for (std::size_t i = 0; i < size; ++i) chosen[i] = chosen[i] == T(1) ? T(0) : T(1);
          sums = before;
          table.max_pool_chain(g, cotangent.data(), chosen.data(), true, sums.data());
          EXPECT_FALSE(same(sums, expected));
        }
      }
    }
  });
}

TYPED_TEST(Kernels, FmaPeakCountsItsWork) {
  this->each([&](const simd::KernelTable<TypeParam>& table) {
    TypeParam sink = 1;
    const double once = table.fma_peak(1000, &sink);
    EXPECT_TRUE(std::isfinite(sink));
    EXPECT_GT(once, 2000.0 * static_cast<double>(table.vector_length));
    EXPECT_EQ(table.fma_peak(3000, &sink), 3 * once);
  });
}

// ---- activations
// -------------------------------------------------------------------------------------------------

constexpr std::array kActivations = {Activation::Relu,     Activation::LeakyRelu, Activation::Tanh,
                                     Activation::Sigmoid,  Activation::Erf,       Activation::Gelu,
                                     Activation::Softplus, Activation::Sin};
static_assert(kActivations.size() == simd::kActivationCount);

template <class W>
W value_of(Activation kind, W slope, W x) {
  switch (kind) {
    case Activation::Relu:
      return x > 0 ? x : 0;
    case Activation::LeakyRelu:
      return x > 0 ? x : slope * x;
    case Activation::Tanh:
      return std::tanh(x);
    case Activation::Sigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::Erf:
      return std::erf(x);
    case Activation::Gelu:
      return x * std::erfc(-x / std::sqrt(W(2))) / 2;
    case Activation::Softplus:
      return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
    case Activation::Sin:
      return std::sin(x);
  }
  return x;
}

template <class W>
W derivative_of(Activation kind, W slope, W x) {
  const W pi = std::acos(W(-1));
  switch (kind) {
    case Activation::Relu:
      return x > 0 ? 1 : 0;
    case Activation::LeakyRelu:
      return x > 0 ? 1 : slope;
    case Activation::Tanh:
      return 1 / (std::cosh(x) * std::cosh(x));
    case Activation::Sigmoid:
      return 1 / ((1 + std::exp(-x)) * (1 + std::exp(x)));
    case Activation::Erf:
      return 2 / std::sqrt(pi) * std::exp(-x * x);
    case Activation::Gelu:
      return std::erfc(-x / std::sqrt(W(2))) / 2 + x * std::exp(-x * x / 2) / std::sqrt(2 * pi);
    case Activation::Softplus:
      return 1 / (1 + std::exp(-x));
    case Activation::Sin:
      return std::cos(x);
  }
  return x;
}

/// What a value may be off by: a few units in its last place, and where the formula subtracts, in the last
/// place of what is subtracted. Below the smallest normal number only the absolute size counts.
template <class T>
Wide<T> value_tolerance(Activation kind, Wide<T> reference, T x) {
  Wide<T> scale = std::abs(reference);
  // sin is reduced by multiples of pi/2 known to a little more than the precision.
  if (kind == Activation::Sin) scale += std::abs(static_cast<Wide<T>>(x)) * kEpsilon<T>;
  return 4 * kEpsilon<T> * scale + std::numeric_limits<T>::min();
}
template <class T>
Wide<T> derivative_tolerance(Activation kind, Wide<T> reference, T x) {
  Wide<T> scale = std::abs(reference);
  // From y: 1 - y carries the rounding of y. Gelu: Phi(x) and x phi(x) cancel near its minimum and in the
  // left tail.
  if (kind == Activation::Tanh || kind == Activation::Sigmoid) scale += 1;
  if (kind == Activation::Gelu) scale += std::abs(x) * std::exp(-static_cast<Wide<T>>(x) * x / 2);
  if (kind == Activation::Sin) scale += std::abs(static_cast<Wide<T>>(x)) * kEpsilon<T>;
  // The exponential flushes what is subnormal; gelu multiplies that by x.
  return 4 * kEpsilon<T> * scale + (1 + std::min<Wide<T>>(std::abs(x), 100)) * std::numeric_limits<T>::min();
}

template <class T>
std::vector<T> arguments() {
  std::vector<T> points = {T(0), T(-0.0), std::numeric_limits<T>::min(), -std::numeric_limits<T>::min()};
  for (int i = -4000; i <= 4000; ++i) points.push_back(static_cast<T>(i * 0.0051));
  for (T magnitude = T(1e-20); magnitude < 1; magnitude *= T(1.37)) {
    points.push_back(magnitude);
    points.push_back(-magnitude);
  }
  for (const T large : {T(30), T(80), T(87.2), T(100), T(700.5), T(1000), T(12345.678)}) {
    points.push_back(large);
    points.push_back(-large);
  }
  return points;
}

TYPED_TEST(Kernels, ActivationsAndDerivativesMatchTheWideReference) {
  using T = TypeParam;
  const std::vector<T> x = arguments<T>();
  const T slope = T(0.01);
  this->each([&](const simd::KernelTable<T>& table) {
    for (const Activation kind : kActivations) {
      SCOPED_TRACE("activation " + std::to_string(static_cast<int>(kind)));
      std::vector<T> y(x.size());
      std::vector<T> derivative(x.size());
      const std::vector<T> ones(x.size(), T(1));
      table.activate(kind, slope, x.data(), y.data(), x.size());
      table.activation_chain(kind, slope, x.data(), y.data(), ones.data(), derivative.data(), x.size());
      double worst_value = 0;
      double worst_derivative = 0;
      T value_at = 0;
      T derivative_at = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const auto value = value_of<Wide<T>>(kind, slope, x[i]);
        const auto slope_there = derivative_of<Wide<T>>(kind, slope, x[i]);
        const auto value_share =
            static_cast<double>(std::abs(y[i] - value) / value_tolerance<T>(kind, value, x[i]));
        const auto derivative_share = static_cast<double>(std::abs(derivative[i] - slope_there) /
                                                          derivative_tolerance<T>(kind, slope_there, x[i]));
        // Written so that NaN counts as worst.
        if (!(value_share <= worst_value)) worst_value = value_share, value_at = x[i];
        if (!(derivative_share <= worst_derivative))
          worst_derivative = derivative_share, derivative_at = x[i];
      }
      EXPECT_LE(worst_value, 1.0) << "of the tolerance, at x = " << value_at;
      EXPECT_LE(worst_derivative, 1.0) << "of the tolerance, at x = " << derivative_at;
    }
  });
}

TYPED_TEST(Kernels, ActivationsOfExtremesAreLimitsAndNaNStaysNaN) {
  using T = TypeParam;
  const std::array<T, 5> x = {kNaN<T>, kInfinity<T>, -kInfinity<T>, std::numeric_limits<T>::max(),
                              std::numeric_limits<T>::lowest()};
  const T slope = T(0.25);
  const std::array<T, 5> ones = {1, 1, 1, 1, 1};
  this->each([&](const simd::KernelTable<T>& table) {
    for (const Activation kind : kActivations) {
      SCOPED_TRACE("activation " + std::to_string(static_cast<int>(kind)));
      std::array<T, 5> y{};
      std::array<T, 5> derivative{};
      table.activate(kind, slope, x.data(), y.data(), x.size());
      table.activation_chain(kind, slope, x.data(), y.data(), ones.data(), derivative.data(), x.size());
      EXPECT_TRUE(std::isnan(y[0]));
      EXPECT_TRUE(std::isnan(derivative[0]));
      if (kind == Activation::Sin) {
        EXPECT_TRUE(std::isnan(y[1]) && std::isnan(y[2]));
        EXPECT_LE(std::abs(y[3]), T(1));
        EXPECT_LE(std::abs(derivative[4]), T(1));
        continue;
      }
      const bool linear = kind == Activation::Relu || kind == Activation::LeakyRelu ||
                          kind == Activation::Gelu || kind == Activation::Softplus;
      EXPECT_EQ(y[1], linear ? kInfinity<T> : T(1));
      EXPECT_EQ(y[3], linear ? x[3] : T(1));
      const T left = kind == Activation::Tanh || kind == Activation::Erf ? T(-1) : T(0);
      EXPECT_EQ(y[2], kind == Activation::LeakyRelu ? -kInfinity<T> : left);
      EXPECT_EQ(y[4], kind == Activation::LeakyRelu ? slope * x[4] : left);
      EXPECT_EQ(derivative[1], linear ? T(1) : T(0));
      EXPECT_EQ(derivative[3], linear ? T(1) : T(0));
      EXPECT_EQ(derivative[2], kind == Activation::LeakyRelu ? slope : T(0));
      EXPECT_EQ(derivative[4], kind == Activation::LeakyRelu ? slope : T(0));
    }
  });
}

TYPED_TEST(Kernels, ActivationsGiveTheSameBitsAtAnyPlaceAndInPlace) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    for (const Activation kind : kActivations) {
      for (const std::size_t n : sizes(table.vector_length)) {
        const Guarded<T> x = this->reals(n, 1);
        const Guarded<T> t = this->reals(n, 2);
        Guarded<T> y(n, 3);
        Guarded<T> chained(n);
        table.activate(kind, T(0.1), x.data(), y.data(), n);
        table.activation_chain(kind, T(0.1), x.data(), y.data(), t.data(), chained.data(), n);
        EXPECT_TRUE(y.intact() && chained.intact());
        for (std::size_t i = 0; i < n; ++i) {
          T alone = kNaN<T>;
          table.activate(kind, T(0.1), x.data() + i, &alone, 1);
          ASSERT_EQ(alone, y[i]);
          table.activation_chain(kind, T(0.1), x.data() + i, &y[i], t.data() + i, &alone, 1);
          ASSERT_EQ(alone, chained[i]);
        }
        Guarded<T> in_place = x;
        table.activate(kind, T(0.1), in_place.data(), in_place.data(), n);
        EXPECT_EQ(std::memcmp(in_place.data(), y.data(), n * sizeof(T)), 0);
        in_place = t;
        table.activation_chain(kind, T(0.1), x.data(), y.data(), in_place.data(), in_place.data(), n);
        EXPECT_EQ(std::memcmp(in_place.data(), chained.data(), n * sizeof(T)), 0);
      }
    }
  });
}

TYPED_TEST(Kernels, DerivativesAtZero) {
  using T = TypeParam;
  this->each([&](const simd::KernelTable<T>& table) {
    const T zero = 0;
    const T one = 1;
    T out = kNaN<T>;
    table.activation_chain(Activation::Relu, T(0.3), &zero, &zero, &one, &out, 1);
    EXPECT_EQ(out, T(0));
    table.activation_chain(Activation::LeakyRelu, T(0.3), &zero, &zero, &one, &out, 1);
    EXPECT_EQ(out, T(0.3));
  });
}

}  // namespace
}  // namespace gradgram
