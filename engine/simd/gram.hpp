#pragma once

#include <cstring>

#include "engine/simd/kernels.hpp"
#include "engine/simd/vector.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// A tile is kGramRows rows by one group of columns, three registers wide: with 32 registers 8 x 3
/// accumulators, 3 columns and a broadcast; with 16 registers 4 x 3 (or fewer, so that rows divide a group),
/// 3 and 1. Eleven loads for 24 multiply-adds leave the load ports half idle.
inline constexpr std::size_t kGramVectors = kGramGroupVectors;
template <class T>
inline constexpr std::size_t kGramGroup = kGramVectors* kLanes<T>;
template <class T>
inline constexpr std::size_t kGramRows = sizeof(Batch<T>) == 64   ? 8
                                         : kGramGroup<T> % 4 == 0 ? 4
                                                                  : 2;

/// x[i] are rows of a square matrix of kLanes; afterwards its columns. A perfect shuffle of all elements
/// rotates the bits of their address by one; after log2(kLanes) of them row and column have changed places.
template <class T, std::size_t Rounds>
GRADGRAM_INLINE void transpose(Batch<T>* x) {
  constexpr std::size_t kHalf = kLanes<T> / 2;
  if constexpr (Rounds > 1) {
    Batch<T> y[kLanes<T>];
    Unroll<0, kHalf>::run([&](std::size_t i) __attribute__((always_inline)) {
      y[2 * i] = interleave_low(x[i], x[i + kHalf]);
      y[2 * i + 1] = interleave_high(x[i], x[i + kHalf]);
    });
    Unroll<0, kLanes<T>>::run([&](std::size_t i) __attribute__((always_inline)) { x[i] = y[i]; });
    transpose<T, Rounds / 2>(x);
  }
}

/// `rows` <= kLanes rows into one vector of every column of a group. Rows are far apart and their pieces
/// short, too short for the processor to foresee: with `more`, the next kLanes rows are fetched meanwhile.
template <class T>
void gram_pack_lanes(const T* source, std::size_t stride, std::size_t rows, std::size_t depth, bool more,
                     T* packed) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  std::size_t k = 0;
  if (rows == kLane) {
    for (; k + kLane <= depth; k += kLane) {
      Batch<T> x[kLane];
      Unroll<0, kLane>::run([&](std::size_t i)
                                __attribute__((always_inline)) { x[i] = load(source + i * stride + k); });
      if (more) {
        Unroll<0, kLane>::run([&](std::size_t i) __attribute__((always_inline)) {
          __builtin_prefetch(source + (kLane + i) * stride + k);
        });
      }
      transpose<T, kLane>(x);
      Unroll<0, kLane>::run([&](std::size_t i) __attribute__((always_inline)) {
        store(packed + (k + i) * kGramGroup<T>, x[i]);
      });
    }
  }
  for (; k < depth; ++k) {
    T* const target = packed + k * kGramGroup<T>;
    for (std::size_t i = 0; i < rows; ++i) target[i] = source[i * stride + k];
    for (std::size_t i = rows; i < kLane; ++i) target[i] = T(0);
  }
}

template <class T>
void gram_pack(const T* source, std::size_t stride, std::size_t rows, std::size_t depth, T* packed) noexcept {
  for (std::size_t group = 0; group < rows; group += kGramGroup<T>) {
    for (std::size_t vector = 0; vector < kGramVectors; ++vector) {
      const std::size_t first = group + vector * kLanes<T>;
      const std::size_t left = first < rows ? rows - first : 0;
      gram_pack_lanes(source + (left == 0 ? 0 : first * stride), stride, left < kLanes<T> ? left : kLanes<T>,
                      depth, left >= 2 * kLanes<T>, packed + group * depth + vector * kLanes<T>);
    }
  }
}

template <class T>
void gram_pack_rows(const GramPacking<T>& job) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  constexpr std::size_t kGroup = kGramGroup<T>;
  const auto target = [&](std::size_t row) {
    return job.packed + row / kGroup * kGroup * job.depth + job.column * kGroup + row % kGroup;
  };
  for (std::size_t i = 0; i < job.rows;) {
    const T* const source = job.source + i * job.stride;
    const std::size_t row = job.first + i * job.step;
    const std::size_t left = job.rows - i;
    if (job.step == 1 && row % kLane == 0 && left >= kLane) {
      gram_pack_lanes(source, job.stride, kLane, job.columns, left >= 2 * kLane, target(row));
      i += kLane;
      continue;
    }
    // Rows up to the next whole register, side by side.
    const std::size_t to_whole = kLane - row % kLane;
    const std::size_t run = job.step != 1 ? 1 : left < to_whole ? left : to_whole;
    T* const out = target(row);
    for (std::size_t k = 0; k < job.columns; ++k) {
      for (std::size_t r = 0; r < run; ++r) out[k * kGroup + r] = source[r * job.stride + k];
    }
    i += run;
  }
}

GRADGRAM_INLINE void add_wide(double* sum, const Batch<float>& value, bool accumulate) {
  constexpr std::size_t kLane = kLanes<double>;
  const Widened wide = widen(value);
  store(sum, accumulate ? Batch<double>(load(sum) + wide.low) : wide.low);
  store(sum + kLane, accumulate ? Batch<double>(load(sum + kLane) + wide.high) : wide.high);
}
GRADGRAM_INLINE void add_wide(double* sum, const Batch<double>& value, bool accumulate) {
  store(sum, accumulate ? Batch<double>(load(sum) + value) : value);
}

/// The products of a tile. `ahead`: what to fetch meanwhile, a cache line for every kAheadSteps steps.
inline constexpr std::size_t kAheadSteps = 4;
template <class T>
GRADGRAM_INLINE void gram_sums(const T* row, const T* column, std::size_t depth, const T* ahead,
                               Batch<T>* part) {
  constexpr std::size_t kRows = kGramRows<T>;
  Unroll<0, kRows * kGramVectors>::run([&](std::size_t at)
                                           __attribute__((always_inline)) { part[at] = broadcast(T(0)); });
  const auto step = [&]() __attribute__((always_inline)) {
    Batch<T> columns[kGramVectors];
    Unroll<0, kGramVectors>::run([&](std::size_t vector) __attribute__((always_inline)) {
      columns[vector] = load(column + vector * kLanes<T>);
    });
    Unroll<0, kRows>::run([&](std::size_t r) __attribute__((always_inline)) {
      const Batch<T> value = broadcast(row[r]);
      Unroll<0, kGramVectors>::run([&](std::size_t vector) __attribute__((always_inline)) {
        const std::size_t at = r * kGramVectors + vector;
        part[at] = multiply_add(value, columns[vector], part[at]);
      });
    });
    column += kGramGroup<T>;
    row += kGramGroup<T>;
  };
  std::size_t k = 0;
  for (; k + kAheadSteps <= depth; k += kAheadSteps) {
    __builtin_prefetch(ahead, 0, 2);
    ahead += kGramLine<T>;
    Unroll<0, kAheadSteps>::run([&](std::size_t) __attribute__((always_inline)) { step(); });
  }
  for (; k < depth; ++k) step();
}

template <class T>
void gram_tile(const T* row, const T* column, std::size_t depth, double* sum, std::size_t stride,
               bool accumulate, const T* ahead) noexcept {
  constexpr std::size_t kRows = kGramRows<T>;
  constexpr std::size_t kLane = kLanes<T>;
  Batch<T> part[kRows * kGramVectors];
  // The sums are wanted only at the end; by then they have arrived.
  Unroll<0, kRows>::run([&](std::size_t r) __attribute__((always_inline)) {
    Unroll<0, kGramGroup<T> / 8>::run([&](std::size_t line) __attribute__((always_inline)) {
      __builtin_prefetch(sum + r * stride + line * 8, 1);
    });
  });
  gram_sums<T>(row, column, depth, ahead, part);
  Unroll<0, kRows * kGramVectors>::run([&](std::size_t at) __attribute__((always_inline)) {
    add_wide(sum + at / kGramVectors * stride + at % kGramVectors * kLane, part[at], accumulate);
  });
}

/// Walks over the two sides of the next product, a tile's share at a time.
template <class T>
class GramAhead {
 public:
  explicit GramAhead(const GramProduct<T>& job)
      : rows_(job.next_rows),
        columns_(job.next_columns),
        row_count_(job.next_rows == nullptr ? 0 : job.row_count * job.depth),
        column_count_(job.next_columns == nullptr ? 0 : job.column_count * job.depth),
        share_(job.depth / kAheadSteps * kGramLine<T>) {}

  /// `idle`: something that is at hand, when all is fetched.
  const T* next(const T* idle) {
    const std::size_t at = at_;
    at_ += share_;
    if (at < row_count_) return rows_ + at;
    return at - row_count_ < column_count_ ? columns_ + (at - row_count_) : idle;
  }

 private:
  const T *rows_, *columns_;
  std::size_t row_count_, column_count_, share_;
  std::size_t at_ = 0;
};

template <class T>
void gram_product(const GramProduct<T>& job) noexcept {
  constexpr std::size_t kGroup = kGramGroup<T>;
  constexpr std::size_t kRows = kGramRows<T>;
  GramAhead<T> ahead(job);
  for (std::size_t column = 0; column < job.column_count; column += kGroup) {
    const T* const columns = job.columns + column * job.depth;
    // kRows divides kGroup: the tile that holds the diagonal's first entry begins at `column`.
    for (std::size_t row = job.lower ? column : 0; row < job.row_count; row += kRows) {
      const T* const rows = job.rows + row / kGroup * kGroup * job.depth + row % kGroup;
      gram_tile<T>(rows, columns, job.depth, job.sum + row * job.sum_stride + column, job.sum_stride,
                   job.accumulate, ahead.next(columns));
    }
  }
}

/// `rows` and `columns` say how much of the tile is there.
template <class T>
void panel_tile(const T* row, const T* column, const PanelProduct<T>& job, T* out, std::size_t rows,
                std::size_t columns) noexcept {
  constexpr std::size_t kRows = kGramRows<T>;
  constexpr std::size_t kLane = kLanes<T>;
  constexpr std::size_t kGroup = kGramGroup<T>;
  Batch<T> part[kRows * kGramVectors];
  const bool whole = rows >= kRows && columns >= kGroup;
  alignas(64) T edge[kRows * kGroup] = {};
  T* const target = whole ? out : edge;
  const std::size_t stride = whole ? job.stride : kGroup;
  if (whole) {
    Unroll<0, kRows>::run([&](std::size_t r) __attribute__((always_inline)) {
      Unroll<0, kGramVectors>::run([&](std::size_t vector) __attribute__((always_inline)) {
        __builtin_prefetch(out + r * stride + vector * kLane, 1);
      });
    });
  } else {
    rows = rows < kRows ? rows : kRows;
    columns = columns < kGroup ? columns : kGroup;
    for (std::size_t r = 0; job.accumulate && r < rows; ++r) {
      std::memcpy(edge + r * kGroup, out + r * job.stride, columns * sizeof(T));
    }
  }
  gram_sums<T>(row, column, job.depth, column, part);
  const Batch<T> scale = broadcast(job.scale);
  Unroll<0, kRows * kGramVectors>::run([&](std::size_t at) __attribute__((always_inline)) {
    T* const to = target + at / kGramVectors * stride + at % kGramVectors * kLane;
    store(to, job.accumulate ? multiply_add(scale, part[at], load(to)) : Batch<T>(scale * part[at]));
  });
  for (std::size_t r = 0; !whole && r < rows; ++r) {
    std::memcpy(out + r * job.stride, edge + r * kGroup, columns * sizeof(T));
  }
}

template <class T>
void panel_product(const PanelProduct<T>& job) noexcept {
  constexpr std::size_t kGroup = kGramGroup<T>;
  constexpr std::size_t kRows = kGramRows<T>;
  for (std::size_t column = 0; column < job.column_count; column += kGroup) {
    for (std::size_t row = 0; row < job.row_count; row += kRows) {
      panel_tile<T>(job.rows + row / kGroup * kGroup * job.depth + row % kGroup,
                    job.columns + column * job.depth, job, job.out + row * job.stride + column,
                    job.row_count - row, job.column_count - column);
    }
  }
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
