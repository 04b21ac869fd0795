#pragma once

#include "engine/simd/activations.hpp"
#include "engine/simd/gram.hpp"
#include "engine/simd/kernels.hpp"
#include "engine/simd/vector.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// Vectors of the widest tile and rows of a tile of `Vectors` vectors. Two multiply-adds a cycle with a
/// latency of 4 need 8 independent chains; beyond that, more rows mean fewer loads of v and more vectors
/// fewer broadcasts. 32 registers: 6 x 4 = 24 accumulators, 4 of v, the broadcast. 16 registers: 6 x 2 = 12,
/// 2, 1. Rows are limited by the pointers, one each, of which 15 fit: 10 x 2 and 8 x 3; a single vector is
/// bound by its broadcasts whatever the rows.
inline constexpr std::size_t kPanelVectors = sizeof(Batch<float>) == 64 ? 4 : 2;
template <std::size_t Vectors>
inline constexpr std::size_t kRows = Vectors == kPanelVectors ? 6
                                     : Vectors == 2           ? 10
                                                              : 8;

/// Elements of v (24 KiB) that stay in the first-level cache while all rows pass over them. The end of every
/// tile costs a mispredicted branch and the latency of the stored sums: the deeper, the better.
template <class T>
inline constexpr std::size_t kPanelElements = 24576 / sizeof(T);

/// What a tile of one panel and one block of the depth needs.
template <class T>
struct Panel {
  const T* x;
  const std::ptrdiff_t* x_base;
  const std::ptrdiff_t* x_offset;
  const T* v;
  std::size_t v_stride;
  T* out;
  const std::ptrdiff_t* out_base;
  std::size_t depth;
  std::size_t last_columns;  ///< of the last vector; kLanes unless it is cut
  const T* start;            ///< what sums start from, one panel wide; null: from `out`
  bool rectify;
};

template <class T, std::size_t Rows, std::size_t Vectors>
void tile(const Panel<T>& panel, std::size_t first_row) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  Batch<T> sum[Rows * Vectors];
  const T* x[Rows];
  T* const out = panel.out;
  const bool cut = panel.last_columns != kLane;
  const std::ptrdiff_t* const x_base = panel.x_base + first_row;
  const std::ptrdiff_t* const out_base = panel.out_base + first_row;
  Unroll<0, Rows>::run([&](std::size_t row)
                           __attribute__((always_inline)) { x[row] = panel.x + x_base[row]; });
  if (panel.start == nullptr) {
    Unroll<0, Rows * Vectors>::run([&](std::size_t at) __attribute__((always_inline)) {
      const T* const source = out + out_base[at / Vectors] + at % Vectors * kLane;
      sum[at] = at % Vectors == Vectors - 1 && cut ? load_first(source, panel.last_columns) : load(source);
    });
  } else {
    Unroll<0, Rows * Vectors>::run([&](std::size_t at) __attribute__((always_inline)) {
      sum[at] = load(panel.start + at % Vectors * kLane);
    });
  }
  const T* v = panel.v;
  const std::ptrdiff_t* offset = panel.x_offset;
  const std::ptrdiff_t* const end = offset + panel.depth;
  for (; offset != end; ++offset, v += panel.v_stride) {
    const std::ptrdiff_t at = *offset;
    Batch<T> columns[Vectors];
    Unroll<0, Vectors>::run([&](std::size_t vector) __attribute__((always_inline)) {
      columns[vector] = load(v + vector * kLane);
    });
    Unroll<0, Rows>::run([&](std::size_t row) __attribute__((always_inline)) {
      const Batch<T> value = broadcast(x[row][at]);
      Unroll<0, Vectors>::run([&](std::size_t vector) __attribute__((always_inline)) {
        sum[row * Vectors + vector] = multiply_add(value, columns[vector], sum[row * Vectors + vector]);
      });
    });
  }
  if (panel.rectify) {
    Unroll<0, Rows * Vectors>::run([&](std::size_t at)
                                       __attribute__((always_inline)) { sum[at] = positive_part(sum[at]); });
  }
  Unroll<0, Rows * Vectors>::run([&](std::size_t at) __attribute__((always_inline)) {
    T* const target = out + out_base[at / Vectors] + at % Vectors * kLane;
    if (at % Vectors == Vectors - 1 && cut) {
      store_first(target, sum[at], panel.last_columns);
    } else {
      store(target, sum[at]);
    }
  });
}

/// The rows that are left when Rows at a time no longer fit.
template <class T, std::size_t Rows, std::size_t Vectors>
void last_tile(const Panel<T>& panel, std::size_t first_row, std::size_t rows) noexcept {
  if constexpr (Rows > 0) {
    if (rows == Rows) return tile<T, Rows, Vectors>(panel, first_row);
    last_tile<T, Rows - 1, Vectors>(panel, first_row, rows);
  }
}

/// Lines of v that the next panel will read, fetched meanwhile: they are short pieces far apart, too short
/// for the processor to foresee.
template <class T>
struct Ahead {
  const T* source = nullptr;
  std::size_t stride = 0;
  std::size_t pieces = 0;
  std::size_t registers = 0;  ///< of a piece
  GRADGRAM_INLINE void fetch(std::size_t count) {
    for (; count > 0 && pieces > 0; --count, --pieces, source += stride) {
      for (std::size_t r = 0; r < registers; ++r) __builtin_prefetch(source + r * kLanes<T>, 0, 2);
    }
  }
};

template <class T, std::size_t Vectors>
void panel_rows(const Panel<T>& panel, std::size_t rows, Ahead<T> ahead) noexcept {
  constexpr std::size_t kStep = kRows<Vectors>;
  const std::size_t pieces = ahead.pieces / (rows / kStep + 1) + 1;
  std::size_t row = 0;
  for (; row + kStep <= rows; row += kStep) {
    ahead.fetch(pieces);
    tile<T, kStep, Vectors>(panel, row);
  }
  last_tile<T, kStep - 1, Vectors>(panel, row, rows - row);
}

/// Copies `depth` rows of v from `done` on, `columns` from first_column on, scaled, into rows of Vectors
/// registers.
template <class T, std::size_t Vectors>
void pack_panel(const GatherProduct<T>& job, std::size_t done, std::size_t depth, std::size_t first_column,
                std::size_t columns, T* packed) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  const T* const v = job.v + done * job.v_stride + first_column;
  const Batch<T> scale = broadcast(job.v_scale);
  const std::size_t last = columns - (Vectors - 1) * kLane;
  for (std::size_t i = 0; i < depth; ++i) {
    Unroll<0, Vectors>::run([&](std::size_t vector) __attribute__((always_inline)) {
      const T* const source = v + i * job.v_stride + vector * kLane;
      const bool cut = vector == Vectors - 1 && last != kLane;
      store(packed + (i * Vectors + vector) * kLane,
            Batch<T>(scale * (cut ? load_first(source, last) : load(source))));
    });
  }
}

/// The same for a matrix that lies transposed, a square of registers at a time.
template <class T, std::size_t Vectors>
void pack_transposed_panel(const GatherProduct<T>& job, std::size_t done, std::size_t depth,
                           std::size_t first_column, std::size_t columns, T* packed) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  constexpr std::size_t kWidth = Vectors * kLane;
  const T* const v = job.v + first_column * job.v_stride;
  const std::ptrdiff_t* const offset = job.v_offset + done;
  const Batch<T> scale = broadcast(job.v_scale);
  for (std::size_t i = 0; i < depth;) {
    std::size_t run = 1;
    while (run < kLane && i + run < depth &&
           offset[i + run] == offset[i] + static_cast<std::ptrdiff_t>(run)) {
      ++run;
    }
    T* const target = packed + i * kWidth;
    std::size_t column = 0;
    if (run == kLane) {
      for (; column + kLane <= columns; column += kLane) {
        const T* const source = v + offset[i] + static_cast<std::ptrdiff_t>(column * job.v_stride);
        Batch<T> x[kLane];
        Unroll<0, kLane>::run([&](std::size_t r)
                                  __attribute__((always_inline)) { x[r] = load(source + r * job.v_stride); });
        transpose<T, kLane>(x);
        Unroll<0, kLane>::run([&](std::size_t r) __attribute__((always_inline)) {
          store(target + r * kWidth + column, Batch<T>(scale * x[r]));
        });
      }
    }
    for (; column < kWidth; ++column) {
      for (std::size_t r = 0; r < run; ++r) {
        target[r * kWidth + column] =
            column < columns
                ? job.v_scale * v[offset[i + r] + static_cast<std::ptrdiff_t>(column * job.v_stride)]
                : T(0);
      }
    }
    i += run;
  }
}

/// What packing `depth` rows of v from `done` on will read.
template <class T, std::size_t Vectors>
Ahead<T> panel_ahead(const GatherProduct<T>& job, std::size_t done, std::size_t depth,
                     std::size_t first_column) noexcept {
  constexpr std::size_t kWidth = Vectors * kLanes<T>;
  if (done >= job.depth) {
    done = 0;
    first_column += kWidth;
  }
  if (first_column >= job.columns) return {};
  if (depth > job.depth - done) depth = job.depth - done;
  const std::size_t columns = job.columns - first_column < kWidth ? job.columns - first_column : kWidth;
  if (job.v_offset == nullptr) {
    return {job.v + done * job.v_stride + first_column, job.v_stride, depth, Vectors};
  }
  return {job.v + job.v_offset[done] + static_cast<std::ptrdiff_t>(first_column * job.v_stride), job.v_stride,
          columns, (depth + kLanes<T> - 1) / kLanes<T>};
}

template <class T, std::size_t Vectors>
void panel_product(const GatherProduct<T>& job, std::size_t first_column) noexcept {
  constexpr std::size_t kWidth = Vectors * kLanes<T>;
  constexpr std::size_t kDepth = kPanelElements<T> / kWidth;
  alignas(64) T packed[kDepth * kWidth];
  alignas(64) T start[kWidth];
  const std::size_t columns = job.columns - first_column < kWidth ? job.columns - first_column : kWidth;
  for (std::size_t c = 0; c < kWidth; ++c) {
    start[c] = job.start != nullptr && c < columns ? job.start_scale * job.start[first_column + c] : T(0);
  }
  // Copying pays when many rows read the panel; then its lines are consecutive and cannot evict each other.
  const bool transposed = job.v_offset != nullptr;
  const bool pack = transposed || columns != kWidth || job.v_scale != T(1) ||
                    (job.v_stride != kWidth && job.rows >= 8 * kRows<Vectors>);
  std::size_t done = 0;
  do {
    const std::size_t depth = job.depth - done < kDepth ? job.depth - done : kDepth;
    if (transposed) {
      pack_transposed_panel<T, Vectors>(job, done, depth, first_column, columns, packed);
    } else if (pack) {
      pack_panel<T, Vectors>(job, done, depth, first_column, columns, packed);
    }
    // A later block of the depth goes on from the stored sums: the same chain of additions, whatever the
    // blocking.
    const Panel<T> panel{.x = job.x,
                         .x_base = job.x_base,
                         .x_offset = job.x_offset + done,
                         .v = pack ? packed : job.v + done * job.v_stride + first_column,
                         .v_stride = pack ? kWidth : job.v_stride,
                         .out = job.out + first_column,
                         .out_base = job.out_base,
                         .depth = depth,
                         .last_columns = columns - (Vectors - 1) * kLanes<T>,
                         .start = job.accumulate || done > 0 ? nullptr : start,
                         .rectify = job.rectify && done + depth == job.depth};
    panel_rows<T, Vectors>(
        panel, job.rows,
        pack ? panel_ahead<T, Vectors>(job, done + depth, kDepth, first_column) : Ahead<T>{});
    done += depth;
  } while (done < job.depth);
}

template <class T, std::size_t Vectors>
void narrow_panel(const GatherProduct<T>& job, std::size_t first_column, std::size_t vectors) noexcept {
  if constexpr (Vectors > 0) {
    if (vectors == Vectors) return panel_product<T, Vectors>(job, first_column);
    narrow_panel<T, Vectors - 1>(job, first_column, vectors);
  }
}

template <class T>
void gather_product(const GatherProduct<T>& job) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  if (job.rows == 0) return;
  std::size_t left = (job.columns + kLane - 1) / kLane;
  for (std::size_t column = 0; left > 0;) {
    // 5 vectors are 3 + 2 rather than 4 + 1: a single vector is bound by its broadcasts.
    std::size_t vectors = left < kPanelVectors ? left : kPanelVectors;
    if (kPanelVectors == 4 && left == 5) vectors = 3;
    narrow_panel<T, kPanelVectors>(job, column, vectors);
    column += vectors * kLane;
    left -= vectors;
  }
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
