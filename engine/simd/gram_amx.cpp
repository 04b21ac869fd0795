#define GRADGRAM_SIMD_NAMESPACE amx
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "engine/simd/tables.hpp"
#include "engine/simd/tile_registers.hpp"

/// Gram products in f32 made of products of bytes, of which AMX does 32 times as many in a cycle as AVX-512
/// does of f32. Within a panel every row gets a power of two as its unit, such that its greatest number takes
/// the range of three digits to the base 256, from -128 to 127: a number is off by 1.004 2^-23 of the row's
/// greatest one at the most. Products of digits are summed in 32-bit integers, without rounding. Of their
/// nine pairs that of the two last digits alone is left out: for each column 1.008 2^-30 of the product of
/// the rows' greatest numbers at the most, of either sign. Rows of subnormal numbers alone, which do not
/// reach the leading digit, lose more: their squares are far below the least f32.
namespace gradgram::simd::amx {
namespace {

constexpr std::size_t kLane = 16;    ///< rows in a strip: those of a tile register
constexpr std::size_t kStep = 64;    ///< columns of a tile register
constexpr std::size_t kTile = 1024;  ///< bytes of one
constexpr std::size_t kGroup = kGramGroupVectors * kLane;
static_assert(kGroup == kGramPadding<float>);
constexpr std::size_t kDigits = 3;
/// Pairs of digits whose places add up to the same number are summed in the same registers.
constexpr std::size_t kLevels = 4;
constexpr std::size_t kMostSteps = kGramDepth<float> / kStep;
static_assert(kMostSteps * kStep == kGramDepth<float>);
/// The greatest sum of a level, three pairs of 2^14 in every column.
static_assert(3 * kGramDepth<float> < (std::size_t{1} << 17));
/// Less deep products take less time in f32.
constexpr std::size_t kLeastDepth = 64;

/// The digits of a strip of rows: a tile for every digit, the leading one first, and step. Of rows of the
/// product a tile's rows are theirs; of columns they are four columns of the panel, side by side for every
/// column of the product.
struct alignas(64) Strip {
  std::int8_t tiles[kDigits][kMostSteps * kTile];
  double units[kLane];  ///< of the leading digit; NaN of a row that is not finite
};

/// The sums of a strip by a strip, by level. Level l counts 256^-l units of both.
struct alignas(64) Block {
  std::int32_t sums[kLevels][kLane * kLane];
};

__m512i magnitude(const float* x) {
  return _mm512_and_si512(_mm512_loadu_si512(x), _mm512_set1_epi32(0x7fffffff));
}

/// The greatest magnitudes in the rows of a group.
struct Measure {
  Measure() = default;
  Measure(const float* group, std::size_t depth) {
    for (std::size_t k = 0; k < depth; ++k) {
      for (std::size_t strip = 0; strip < kGramGroupVectors; ++strip) {
        most[strip] = _mm512_max_epu32(most[strip], magnitude(group + k * kGroup + strip * kLane));
      }
    }
  }
  __m512i most[kGramGroupVectors] = {};
};

/// A strip of a packed panel on its way to digits.
class Splitter {
 public:
  Splitter() = default;
  /// `most`: the greatest magnitudes of the rows.
  Splitter(const float* source, std::size_t depth, __m512i most, Strip& strip)
      : source_(source), depth_(depth), strip_(&strip) {
    // Three digits reach from -0x808080 to 0x7f7f7f: numbers from 1.992 of a power of two on need the next
    // one. Of subnormal rows the last digit counts the least number there is.
    const __m512i exponent = _mm512_srli_epi32(_mm512_add_epi32(most, _mm512_set1_epi32(0x010101)), 23);
    // x 2^shift is below 2^23; exponents are biased by 127.
    const __m512i shift = _mm512_sub_epi32(_mm512_set1_epi32(127 + 22), exponent);
    shift_ = _mm512_cvtepi32_ps(shift);
    factor_ = _mm512_scalef_ps(_mm512_set1_ps(1), shift_);
    factor_is_finite_ = _mm512_cmpgt_epi32_mask(shift, _mm512_set1_epi32(127)) == 0;
    const unsigned finite = _mm512_cmplt_epi32_mask(most, _mm512_set1_epi32(0x7f800000));
    // The leading level counts 2^32 of both rows' least places.
    const __m512 unit = _mm512_sub_ps(_mm512_set1_ps(16), shift_);
    const auto units = [&](__m256 exponents, unsigned valid) {
      return _mm512_mask_scalef_pd(_mm512_set1_pd(__builtin_nan("")), static_cast<__mmask8>(valid),
                                   _mm512_set1_pd(1), _mm512_cvtps_pd(exponents));
    };
    _mm512_store_pd(strip.units, units(_mm512_castps512_ps256(unit), finite & 0xffU));
    _mm512_store_pd(strip.units + 8, units(_mm512_extractf32x8_ps(unit, 1), finite >> 8U));
  }

  /// Columns 4 `four` ... 4 `four` + 3, as they are wanted of columns of the product: each digit of the four
  /// side by side for every row.
  inline __attribute__((always_inline)) void four_columns(std::size_t four) const {
    const std::size_t k = 4 * four;
    const float* const x = source_ + k * kGroup;
    if (factor_is_finite_ && k + 4 <= depth_) {
      const auto column = [&](std::size_t i) __attribute__((always_inline)) {
        return digits(_mm512_mul_ps(_mm512_loadu_ps(x + i * kGroup), factor_));
      };
      store(four, column(0), column(1), column(2), column(3));
      return;
    }
    const auto column = [&](std::size_t i) {
      return digits(k + i < depth_ ? _mm512_scalef_ps(_mm512_loadu_ps(x + i * kGroup), shift_)
                                   : _mm512_setzero_ps());
    };
    store(four, column(0), column(1), column(2), column(3));
  }

 private:
  /// Each plus 128, the last one in the lowest byte.
  inline __attribute__((always_inline)) __m512i digits(__m512 scaled) const {
    return _mm512_add_epi32(_mm512_cvtps_epi32(scaled), half_);
  }

  inline __attribute__((always_inline)) void store(std::size_t four, __m512i x0, __m512i x1, __m512i x2,
                                                   __m512i x3) const {
    // Bits of x where the mask has them, of y elsewhere.
    const auto select = [](__m512i mask, __m512i x, __m512i y) __attribute__((always_inline)) {
      return _mm512_ternarylogic_epi32(mask, x, y, 0xca);
    };
    const __m512i low01 = select(bytes_, x0, _mm512_slli_epi32(x1, 8));
    const __m512i low23 = select(bytes_, x2, _mm512_slli_epi32(x3, 8));
    const __m512i middle01 = select(bytes_, _mm512_srli_epi32(x0, 8), x1);
    const __m512i middle23 = select(bytes_, _mm512_srli_epi32(x2, 8), x3);
    const auto put = [&](std::size_t digit, __m512i x) __attribute__((always_inline)) {
      _mm512_store_si512(strip_->tiles[digit] + four * 64, _mm512_xor_si512(x, signs_));
    };
    put(0, select(words_, _mm512_srli_epi32(low01, 16), low23));
    put(1, select(words_, middle01, _mm512_slli_epi32(middle23, 16)));
    put(2, select(words_, low01, _mm512_slli_epi32(low23, 16)));
  }

  /// A constant that stays in a register: compilers make them anew where they are used, which takes longer.
  static __m512i constant(std::uint32_t x) {
    __m512i result = _mm512_set1_epi32(static_cast<int>(x));
    __asm__("" : "+v"(result));
    return result;
  }

  __m512i half_ = constant(0x808080), signs_ = constant(0x80808080);
  __m512i bytes_ = constant(0x00ff00ff), words_ = constant(0x0000ffff);
  const float* source_ = nullptr;
  std::size_t depth_ = 0;
  Strip* strip_ = nullptr;
  __m512 shift_ = _mm512_setzero_ps(), factor_ = _mm512_setzero_ps();
  bool factor_is_finite_ = true;
};

/// A tile as a matrix of 16 x 16 groups of four bytes.
inline void transpose(std::int8_t* tile) {
  __m512i x[16];
  __m512i y[16];
  for (int i = 0; i < 16; ++i) x[i] = _mm512_load_si512(tile + i * 64);
  for (int i = 0; i < 8; ++i) {
    y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
    x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
    x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
    x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
  }
  // Quarter q of x[4 i + c] holds rows 4 i ... 4 i + 3 of column 4 q + c.
  for (int c = 0; c < 4; ++c) {
    const __m512i even_low = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x88);
    const __m512i even_high = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xdd);
    _mm512_store_si512(tile + c * 64, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    _mm512_store_si512(tile + (4 + c) * 64, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_store_si512(tile + (8 + c) * 64, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    _mm512_store_si512(tile + (12 + c) * 64, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}

/// Adds finished sums to the result, row by row of a block.
struct Drain {
  std::size_t stride;
  bool accumulate;
  const Block* block = nullptr;
  const Strip* rows = nullptr;
  const Strip* columns = nullptr;
  double* sum = nullptr;

  inline __attribute__((always_inline)) void row(std::size_t number) const {
    const auto level = [&](std::size_t l) __attribute__((always_inline)) {
      return _mm512_load_si512(block->sums[l] + number * kLane);
    };
    // The three lower levels count 1/256 of the leading one at the most: a float is enough for their sum.
    const __m512 step = _mm512_set1_ps(0x1p-8F);
    const __m512 lowest = _mm512_fmadd_ps(_mm512_cvtepi32_ps(level(3)), step, _mm512_cvtepi32_ps(level(2)));
    const __m512 lower = _mm512_fmadd_ps(lowest, step, _mm512_cvtepi32_ps(level(1)));
    const __m512i leading = level(0);
    const __m512d row_unit = _mm512_set1_pd(rows->units[number]);
    double* const to = sum + number * stride;
    const auto add = [&](__m256i high, __m256 low, std::size_t at) __attribute__((always_inline)) {
      const __m512d value =
          _mm512_fmadd_pd(_mm512_cvtps_pd(low), _mm512_set1_pd(0x1p-8), _mm512_cvtepi32_pd(high));
      const __m512d unit = _mm512_mul_pd(row_unit, _mm512_load_pd(columns->units + at));
      _mm512_storeu_pd(to + at, accumulate ? _mm512_fmadd_pd(value, unit, _mm512_loadu_pd(to + at))
                                           : _mm512_mul_pd(value, unit));
    };
    add(_mm512_castsi512_si256(leading), _mm512_castps512_ps256(lower), 0);
    add(_mm512_extracti64x4_epi64(leading, 1), _mm512_extractf32x8_ps(lower, 1), 8);
  }
};

/// A strip of rows times a strip of columns. The columns stay in the first-level cache while all rows pass:
/// the eight pairs of digits are taken together, so that both sides are read once. After every four products
/// of tiles meanwhile(number of the call) does something for the other units.
template <class Meanwhile>
inline __attribute__((always_inline)) void multiply(const Strip& rows, const Strip& columns,
                                                    std::size_t steps, Block& block,
                                                    const Meanwhile& meanwhile) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::size_t step = 0; step < steps; ++step) {
    _tile_loadd(4, rows.tiles[0] + step * kTile, 64);
    _tile_loadd(7, columns.tiles[0] + step * kTile, 64);
    _tile_dpbssd(0, 4, 7);
    _tile_loadd(5, rows.tiles[1] + step * kTile, 64);
    _tile_dpbssd(1, 5, 7);
    _tile_loadd(6, rows.tiles[2] + step * kTile, 64);
    _tile_dpbssd(2, 6, 7);
    _tile_loadd(7, columns.tiles[1] + step * kTile, 64);
    _tile_dpbssd(1, 4, 7);
    meanwhile(2 * step);
    _tile_dpbssd(2, 5, 7);
    _tile_dpbssd(3, 6, 7);
    _tile_loadd(7, columns.tiles[2] + step * kTile, 64);
    _tile_dpbssd(2, 4, 7);
    _tile_dpbssd(3, 5, 7);
    meanwhile(2 * step + 1);
  }
  _tile_stored(0, block.sums[0], 64);
  _tile_stored(1, block.sums[1], 64);
  _tile_stored(2, block.sums[2], 64);
  _tile_stored(3, block.sums[3], 64);
}

/// Strips of columns that are kept: this one, the next, which is split meanwhile, and the one before, whose
/// last sums are still to be added.
constexpr std::size_t kColumnStrips = 3;
constexpr std::size_t kFours = kStep / 4;

std::size_t strips(std::size_t rows) {
  return (rows + kLane - 1) / kLane;
}
const float* strip_of(const float* packed, std::size_t strip, std::size_t depth) {
  return packed + strip * kLane / kGroup * kGroup * depth + strip * kLane % kGroup;
}

}  // namespace

constinit const std::size_t gram_tile_rows = 480;
constinit const double gram_side_products = 60;

std::size_t gram_scratch_bytes(std::size_t rows) noexcept {
  return (strips(rows) + kColumnStrips) * sizeof(Strip) + 2 * sizeof(Block) + alignof(Block);
}

void gram_product(const GramProduct<float>& job) noexcept {
  if (job.depth < kLeastDepth) return avx512::float_kernels.gram_product(job);
  const TileConfiguration configuration;
  _tile_loadconfig(&configuration);
  const std::size_t steps = (job.depth + kStep - 1) / kStep;
  const std::size_t fours = steps * kFours;
  const std::size_t calls = 2 * steps;
  const std::size_t row_strips = strips(job.row_count);
  const std::size_t column_strips = strips(job.column_count);
  const auto address = (reinterpret_cast<std::uintptr_t>(job.scratch) + alignof(Block) - 1) / alignof(Block);
  auto* const blocks = reinterpret_cast<Block*>(address * alignof(Block));
  auto* const column_digits = reinterpret_cast<Strip*>(blocks + 2);
  Strip* const rows = column_digits + kColumnStrips;
  // Rows begin groups as columns do.
  Measure measure;
  const auto split_of = [&](const float* packed, std::size_t i, Strip& strip) {
    const float* const source = strip_of(packed, i, job.depth);
    if (i % kGramGroupVectors == 0) measure = Measure(source, job.depth);
    return Splitter(source, job.depth, measure.most[i % kGramGroupVectors], strip);
  };
  for (std::size_t i = 0; i < row_strips; ++i) {
    const Splitter splitter = split_of(job.rows, i, rows[i]);
    for (std::size_t step = 0; step < steps; ++step) {
      for (std::size_t four = 0; four < kFours; ++four) splitter.four_columns(step * kFours + four);
      for (auto& digit : rows[i].tiles) transpose(digit + step * kTile);
    }
  }
  const auto column_strip = [&](std::size_t c) -> Strip& { return column_digits[c % kColumnStrips]; };
  const Splitter first_splitter = split_of(job.columns, 0, column_strip(0));
  for (std::size_t four = 0; four < fours; ++four) first_splitter.four_columns(four);

  // What is fetched into the second-level cache, in the order of its addresses, as many lines at a time as a
  // strip has: columns more than a group ahead, then those with which the next product begins; its rows in
  // the second half.
  const auto lines_of = [&](const float* packed, std::size_t strip) {
    return packed + strip * job.depth * kLane;
  };
  const float* const next_columns = job.next_columns != nullptr ? job.next_columns : job.next_rows;
  const auto columns_ahead = [&](std::size_t c) -> const float* {
    if (c < column_strips) return lines_of(job.columns, c);
    const std::size_t next = c - column_strips;
    return next_columns == nullptr || next >= column_strips ? nullptr : lines_of(next_columns, next);
  };
  std::size_t next_row = job.next_rows == nullptr ? row_strips : 0;

  Drain drain{.stride = job.sum_stride, .accumulate = job.accumulate};
  std::size_t number = 0;
  for (std::size_t c = 0; c < column_strips; ++c) {
    const std::size_t first = job.lower ? c : 0;
    if (first >= row_strips) break;
    const bool splits = c + 1 < column_strips;
    const Splitter splitter = splits ? split_of(job.columns, c + 1, column_strip(c + 1)) : Splitter();
    const std::size_t all_calls = (row_strips - first) * calls;
    const std::size_t share = splits ? (fours + all_calls - 1) / all_calls : 0;
    std::size_t four = splits ? 0 : fours;
    const float* line = columns_ahead(c + kGramGroupVectors + 1);
    std::size_t lines = line == nullptr ? 0 : job.depth;
    const std::size_t left = column_strips - c;
    const std::size_t row_end =
        2 * c < column_strips ? next_row : next_row + (row_strips - next_row + left - 1) / left;
    const std::size_t line_share = (job.depth * (1 + row_end - next_row) + all_calls - 1) / all_calls;
    for (std::size_t r = first; r < row_strips; ++r) {
      Block& block = blocks[number++ % 2];
      double* const sum = job.sum + r * kLane * job.sum_stride + c * kLane;
      if (lines < line_share && next_row < row_end) {
        line = lines_of(job.next_rows, next_row++);
        lines = job.depth;
      }
      const auto meanwhile = [&](std::size_t call) __attribute__((always_inline)) {
        if (drain.block != nullptr && call < kLane / 2) {
          drain.row(2 * call);
          drain.row(2 * call + 1);
        }
        if (call < kLane / 2) {
          double* const wanted = sum + 2 * call * job.sum_stride;
          __builtin_prefetch(wanted, 1);
          __builtin_prefetch(wanted + 8, 1);
          __builtin_prefetch(wanted + job.sum_stride, 1);
          __builtin_prefetch(wanted + job.sum_stride + 8, 1);
        }
        for (std::size_t i = 0; i < share && four < fours; ++i, ++four) splitter.four_columns(four);
        if (lines >= line_share) {
          for (std::size_t i = 0; i < line_share; ++i, line += kLane) __builtin_prefetch(line, 0, 2);
          lines -= line_share;
        }
      };
      multiply(rows[r], column_strip(c), steps, block, meanwhile);
      for (std::size_t row = 2 * calls; drain.block != nullptr && row < kLane; ++row) drain.row(row);
      drain.block = &block;
      drain.rows = &rows[r];
      drain.columns = &column_strip(c);
      drain.sum = sum;
    }
    for (; four < fours; ++four) splitter.four_columns(four);
  }
  for (std::size_t row = 0; drain.block != nullptr && row < kLane; ++row) drain.row(row);
  _tile_release();
}

}  // namespace gradgram::simd::amx
