#pragma once

#include <cstdint>
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
/// Streaming: whole cache lines past the caches, for what is read much later; end with a fence.
template <class T, bool Streaming = false>
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
        T* const target = packed + (k + i) * kGramGroup<T>;
        if constexpr (Streaming) {
          store_streaming(target, x[i]);
        } else {
          store(target, x[i]);
        }
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
      T* const out = target(row);
      const bool streaming =
          sizeof(Batch<T>) == kCacheLine && reinterpret_cast<std::uintptr_t>(out) % kCacheLine == 0;
      const auto pack = streaming ? gram_pack_lanes<T, true> : gram_pack_lanes<T, false>;
      pack(source, job.stride, kLane, job.columns, left >= 2 * kLane, out);
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

inline void fence_packing() noexcept {
  fence_streaming();
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

/// Steps between two lines fetched ahead, and how many such runs before its end a tile fetches one of its
/// rows of results: early enough to arrive, late enough not to be pushed out by the columns that pass.
inline constexpr std::size_t kAheadSteps = 4;
inline constexpr std::size_t kWantedRuns = 2;

/// Those of so many runs of kAheadSteps steps during which the rows of results are not fetched yet.
template <class T>
constexpr std::size_t early_runs(std::size_t depth) {
  const std::size_t runs = depth / kAheadSteps;
  return runs < kGramRows<T> * kWantedRuns ? runs % kWantedRuns : runs - kGramRows<T> * kWantedRuns;
}

/// The products of a tile, its columns Vectors registers wide. Meanwhile fetch(), called `fetches` times
/// about evenly at most, fetches what comes next, wanted(r) the results of row r.
template <class T, std::size_t Vectors, class Fetch, class Wanted>
GRADGRAM_INLINE void gram_sums(const T* row, const T* column, std::size_t depth, std::size_t fetches,
                               const Fetch& fetch, const Wanted& wanted, Batch<T>* part) {
  constexpr std::size_t kRows = kGramRows<T>;
  Unroll<0, kRows * Vectors>::run([&](std::size_t at)
                                      __attribute__((always_inline)) { part[at] = broadcast(T(0)); });
  const auto step = [&]() __attribute__((always_inline)) {
    Batch<T> columns[Vectors];
    Unroll<0, Vectors>::run([&](std::size_t vector) __attribute__((always_inline)) {
      columns[vector] = load(column + vector * kLanes<T>);
    });
    Unroll<0, kRows>::run([&](std::size_t r) __attribute__((always_inline)) {
      const Batch<T> value = broadcast(row[r]);
      Unroll<0, Vectors>::run([&](std::size_t vector) __attribute__((always_inline)) {
        const std::size_t at = r * Vectors + vector;
        part[at] = multiply_add(value, columns[vector], part[at]);
      });
    });
    column += kGramGroup<T>;
    row += kGramGroup<T>;
  };
  const auto four = [&]() __attribute__((always_inline)) {
    Unroll<0, kAheadSteps>::run([&](std::size_t) __attribute__((always_inline)) { step(); });
  };
  const auto steps = [&](std::size_t runs) __attribute__((always_inline)) {
    for (std::size_t run = 0; run < runs; ++run) four();
  };
  const std::size_t runs = depth / kAheadSteps;
  const std::size_t early = early_runs<T>(depth);
  const std::size_t last = (runs - early) / kWantedRuns;
  if (fetches >= early) {
    for (std::size_t run = 0; run < early; ++run) {
      fetch();
      four();
    }
  } else {
    const std::size_t spacing = early / fetches;
    for (std::size_t at = 0; at < fetches; ++at) {
      fetch();
      steps(spacing);
    }
    steps(early - fetches * spacing);
  }
  for (std::size_t r = 0; r < last; ++r) {
    wanted(r);
    steps(kWantedRuns);
  }
  for (std::size_t k = runs * kAheadSteps; k < depth; ++k) step();
}

template <class T, std::size_t Vectors>
void gram_tile(const T* row, const T* column, std::size_t depth, double* sum, std::size_t stride,
               bool accumulate, const T* next_rows, const T* next_columns) noexcept {
  constexpr std::size_t kRows = kGramRows<T>;
  constexpr std::size_t kLane = kLanes<T>;
  Batch<T> part[kRows * Vectors];
  const auto fetch = [&]() __attribute__((always_inline)) {
    __builtin_prefetch(next_rows, 0, 2);
    next_rows += kGramLine<T>;
    __builtin_prefetch(next_columns, 0, 2);
    next_columns += kGramLine<T>;
  };
  const auto wanted = [&](std::size_t r) __attribute__((always_inline)) {
    Unroll<0, kWantedRuns>::run([&](std::size_t) __attribute__((always_inline)) { fetch(); });
    Unroll<0, (Vectors * kLane + 7) / 8>::run([&](std::size_t line) __attribute__((always_inline)) {
      __builtin_prefetch(sum + r * stride + line * 8, 1);
    });
  };
  gram_sums<T, Vectors>(row, column, depth, depth, fetch, wanted, part);
  Unroll<0, kRows * Vectors>::run([&](std::size_t at) __attribute__((always_inline)) {
    add_wide(sum + at / Vectors * stride + at % Vectors * kLane, part[at], accumulate);
  });
}

/// Walks over a side of the next product, a tile's share at a time. Both sides are walked over at once: a
/// small product has too few tiles for one after the other.
template <class T>
class GramAhead {
 public:
  GramAhead(const T* side, std::size_t count, std::size_t depth)
      : side_(side),
        count_(side == nullptr ? 0 : count * depth),
        share_(depth / kAheadSteps * kGramLine<T>) {}

  /// `idle`: something that is at hand, when all is fetched.
  const T* next(const T* idle) {
    const std::size_t at = at_;
    at_ += share_;
    return at < count_ ? side_ + at : idle;
  }

 private:
  const T* side_;
  std::size_t count_, share_;
  std::size_t at_ = 0;
};

/// Wide columns come from the second-level cache anyway: row by row, so that a tile's rows stay in the first.
/// Narrower ones stay there themselves, column by column.
template <class T>
void gram_product(const GramProduct<T>& job) noexcept {
  constexpr std::size_t kGroup = kGramGroup<T>;
  constexpr std::size_t kRows = kGramRows<T>;
  constexpr std::size_t kLane = kLanes<T>;
  GramAhead<T> next_rows(job.next_rows, job.row_count, job.depth);
  GramAhead<T> next_columns(job.next_columns, job.column_count, job.depth);
  const auto product = [&](std::size_t row, std::size_t column) {
    const T* const columns = job.columns + column * job.depth;
    // The registers that hold a column; of a tile on the diagonal only those that reach down to it.
    const std::size_t there = job.column_count - column;
    const std::size_t reach = job.lower && row + kRows - column < there ? row + kRows - column : there;
    const auto tile = reach <= kLane       ? gram_tile<T, 1>
                      : reach <= 2 * kLane ? gram_tile<T, 2>
                                           : gram_tile<T, kGramVectors>;
    tile(job.rows + row / kGroup * kGroup * job.depth + row % kGroup, columns, job.depth,
         job.sum + row * job.sum_stride + column, job.sum_stride, job.accumulate, next_rows.next(columns),
         next_columns.next(columns));
  };
  // kRows divides kGroup: a tile on the diagonal lies in the last group of its columns.
  if constexpr (sizeof(Batch<T>) == kCacheLine) {
    for (std::size_t row = 0; row < job.row_count; row += kRows) {
      const std::size_t end = job.lower ? row + kRows : job.column_count;
      for (std::size_t column = 0; column < end && column < job.column_count; column += kGroup) {
        product(row, column);
      }
    }
  } else {
    for (std::size_t column = 0; column < job.column_count; column += kGroup) {
      for (std::size_t row = job.lower ? column : 0; row < job.row_count; row += kRows) product(row, column);
    }
  }
}

/// Rows on a side of a tile at the most: the packed panels of both sides, those of the next product, which
/// are fetched meanwhile, and the sums stay in the second-level cache.
inline constexpr std::size_t kGramTileRows = 192;
inline constexpr double kGramSideProducts = 24;

inline std::size_t no_gram_scratch(std::size_t) noexcept {
  return 0;
}

/// Packs the columns of the next product piece by piece, a tile's share at a time: squares of kLanes, in the
/// order in which they follow each other in memory.
template <class T>
class PanelAhead {
 public:
  static constexpr std::size_t kLane = kLanes<T>;

  PanelAhead(const PanelPacking<T>& job, std::size_t tiles)
      : job_(job),
        steps_((job.depth + kLane - 1) / kLane),
        pieces_(job.source == nullptr ? 0 : steps_ * kGramVectors),
        share_(tiles == 0 ? pieces_ : (pieces_ + tiles - 1) / tiles) {}

  /// Where the first row of piece `index` of the share after the next one ends, or `idle` when there is none.
  const T* source(std::size_t index, const T* idle) const {
    const std::size_t piece = at_ + share_ + index;
    return piece < pieces_ ? begin(depth_of(piece), column_of(piece)) + (kLane - 1) : idle;
  }
  std::size_t stride() const { return job_.stride; }
  /// Whether this share is two squares that need no more than copying.
  bool copies() const {
    return !job_.transposed && share_ == 2 && at_ + 1 < pieces_ && whole(at_) && whole(at_ + 1);
  }
  /// Where piece `index` of this share comes from and goes to, when it copies().
  const T* from(std::size_t index) const { return begin(depth_of(at_ + index), column_of(at_ + index)); }
  T* to(std::size_t index) const {
    return job_.packed + depth_of(at_ + index) * kGramGroup<T> + column_of(at_ + index);
  }
  void skip_share() { at_ += share_; }

  void pack_share() {
    for (std::size_t end = at_ + share_ < pieces_ ? at_ + share_ : pieces_; at_ < end; ++at_) {
      const std::size_t k = depth_of(at_);
      const std::size_t column = column_of(at_);
      const std::size_t depth = job_.depth - k < kLane ? job_.depth - k : kLane;
      const std::size_t there = column < job_.columns ? job_.columns - column : 0;
      const std::size_t columns = there < kLane ? there : kLane;
      T* const target = job_.packed + k * kGramGroup<T> + column;
      if (job_.transposed) {
        gram_pack_lanes(columns == 0 ? job_.source : begin(k, column), job_.stride, columns, depth, false,
                        target);
        continue;
      }
      for (std::size_t i = 0; i < depth; ++i) {
        T* const to = target + i * kGramGroup<T>;
        if (columns == kLane) {
          store(to, load(begin(k + i, column)));
        } else {
          store(to, columns == 0 ? broadcast(T(0)) : load_first(begin(k + i, column), columns));
        }
      }
    }
  }

 private:
  std::size_t depth_of(std::size_t piece) const {
    return (job_.transposed ? piece % steps_ : piece / kGramVectors) * kLane;
  }
  std::size_t column_of(std::size_t piece) const {
    return (job_.transposed ? piece / steps_ : piece % kGramVectors) * kLane;
  }
  bool whole(std::size_t piece) const {
    return depth_of(piece) + kLane <= job_.depth && column_of(piece) + kLane <= job_.columns;
  }
  const T* begin(std::size_t k, std::size_t column) const {
    return job_.source + (job_.transposed ? column * job_.stride + k : k * job_.stride + column);
  }

  const PanelPacking<T>& job_;
  std::size_t steps_, pieces_, share_;
  std::size_t at_ = 0;
};

/// `rows` and `columns` say how much of the tile is there. Meanwhile the next share's first two pieces are
/// fetched (when there are none, `column` is) and, with Copy, this share is copied.
template <class T, std::size_t Vectors, bool Copy>
void panel_tile(const T* row, const T* column, const PanelProduct<T>& job, T* out, std::size_t rows,
                std::size_t columns, const PanelAhead<T>& ahead) noexcept {
  constexpr std::size_t kRows = kGramRows<T>;
  constexpr std::size_t kLane = kLanes<T>;
  constexpr std::size_t kWidth = Vectors * kLane;
  Batch<T> part[kRows * Vectors];
  const bool whole = rows >= kRows && columns >= kWidth;
  alignas(64) T edge[kRows * kWidth];
  T* const target = whole ? out : edge;
  const std::size_t stride = whole ? job.stride : kWidth;
  if (!whole) {
    std::memset(edge, 0, sizeof(edge));
    rows = rows < kRows ? rows : kRows;
    columns = columns < kWidth ? columns : kWidth;
    for (std::size_t r = 0; job.accumulate && r < rows; ++r) {
      std::memcpy(edge + r * kWidth, out + r * job.stride, columns * sizeof(T));
    }
  }
  auto next = reinterpret_cast<std::uintptr_t>(ahead.source(0, column));
  auto after = reinterpret_cast<std::uintptr_t>(ahead.source(1, column));
  const std::size_t stride_bytes = ahead.stride() * sizeof(T);
  const T* from = Copy ? ahead.from(0) : nullptr;
  const T* from_after = Copy ? ahead.from(1) : nullptr;
  T* to = Copy ? ahead.to(0) : nullptr;
  T* to_after = Copy ? ahead.to(1) : nullptr;
  const auto fetch = [&]() __attribute__((always_inline)) {
    __builtin_prefetch(reinterpret_cast<const void*>(next), 0, 2);
    const std::uintptr_t fetched = next;
    next = after;
    after = fetched + stride_bytes;
    if constexpr (Copy) {
      store(to, load(from));
      const T* const copied = from;
      from = from_after;
      from_after = copied + ahead.stride();
      T* const stored = to;
      to = to_after;
      to_after = stored + kGramGroup<T>;
    }
  };
  const auto wanted = [&](std::size_t r) __attribute__((always_inline)) {
    Unroll<0, Vectors>::run([&](std::size_t vector) __attribute__((always_inline)) {
      __builtin_prefetch(target + r * stride + vector * kLane, 1);
    });
  };
  gram_sums<T, Vectors>(row, column, job.depth, 2 * kLane, fetch, wanted, part);
  const Batch<T> scale = broadcast(job.scale);
  Unroll<0, kRows * Vectors>::run([&](std::size_t at) __attribute__((always_inline)) {
    T* const to = target + at / Vectors * stride + at % Vectors * kLane;
    store(to, job.accumulate ? multiply_add(scale, part[at], load(to)) : Batch<T>(scale * part[at]));
  });
  for (std::size_t r = 0; !whole && r < rows; ++r) {
    std::memcpy(out + r * job.stride, edge + r * kWidth, columns * sizeof(T));
  }
}

template <class T>
void panel_product(const PanelProduct<T>& job) noexcept {
  constexpr std::size_t kGroup = kGramGroup<T>;
  constexpr std::size_t kRows = kGramRows<T>;
  constexpr std::size_t kLane = kLanes<T>;
  const std::size_t tiles = (job.column_count + kGroup - 1) / kGroup * ((job.row_count + kRows - 1) / kRows);
  PanelAhead<T> ahead(job.next, tiles);
  if (tiles == 0) ahead.pack_share();
  const bool all_fetched = early_runs<T>(job.depth) >= 2 * kLane;
  for (std::size_t column = 0; column < job.column_count; column += kGroup) {
    const std::size_t columns = job.column_count - column;
    for (std::size_t row = 0; row < job.row_count; row += kRows) {
      const bool copy = all_fetched && columns > 2 * kLane && ahead.copies();
      const auto tile = columns <= kLane       ? panel_tile<T, 1, false>
                        : columns <= 2 * kLane ? panel_tile<T, 2, false>
                        : copy                 ? panel_tile<T, kGramVectors, true>
                                               : panel_tile<T, kGramVectors, false>;
      tile(job.rows + row / kGroup * kGroup * job.depth + row % kGroup, job.columns + column * job.depth, job,
           job.out + row * job.stride + column, job.row_count - row, columns, ahead);
      if (copy) {
        ahead.skip_share();
      } else {
        ahead.pack_share();
      }
    }
  }
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
