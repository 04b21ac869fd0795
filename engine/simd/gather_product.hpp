#pragma once

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

/// Elements of v (16 KiB) that stay in the first-level cache while all rows pass over them.
template <class T>
inline constexpr std::size_t kPanelElements = 16384 / sizeof(T);

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
  bool accumulate;
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
  if (panel.accumulate) {
    Unroll<0, Rows * Vectors>::run([&](std::size_t at) __attribute__((always_inline)) {
      const T* const source = out + out_base[at / Vectors] + at % Vectors * kLane;
      sum[at] = at % Vectors == Vectors - 1 && cut ? load_first(source, panel.last_columns) : load(source);
    });
  } else {
    Unroll<0, Rows * Vectors>::run([&](std::size_t at)
                                       __attribute__((always_inline)) { sum[at] = broadcast(T(0)); });
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

template <class T, std::size_t Vectors>
void panel_rows(const Panel<T>& panel, std::size_t rows) noexcept {
  constexpr std::size_t kStep = kRows<Vectors>;
  std::size_t row = 0;
  for (; row + kStep <= rows; row += kStep) tile<T, kStep, Vectors>(panel, row);
  last_tile<T, kStep - 1, Vectors>(panel, row, rows - row);
}

template <class T, std::size_t Vectors>
void panel_product(const GatherProduct<T>& job, std::size_t first_column) noexcept {
  constexpr std::size_t kWidth = Vectors * kLanes<T>;
  constexpr std::size_t kDepth = kPanelElements<T> / kWidth;
  alignas(64) T packed[kDepth * kWidth];
  const std::size_t columns = job.columns - first_column < kWidth ? job.columns - first_column : kWidth;
  // Copying pays when many rows read the panel; then its lines are consecutive and cannot evict each other.
  const bool pack = job.v_stride != kWidth && job.rows >= 8 * kRows<Vectors>;
  std::size_t done = 0;
  do {
    const std::size_t depth = job.depth - done < kDepth ? job.depth - done : kDepth;
    const T* const v = job.v + done * job.v_stride + first_column;
    if (pack) {
      for (std::size_t i = 0; i < depth; ++i) {
        Unroll<0, Vectors>::run([&](std::size_t vector) __attribute__((always_inline)) {
          store(packed + i * kWidth + vector * kLanes<T>, load(v + i * job.v_stride + vector * kLanes<T>));
        });
      }
    }
    // A later block of the depth goes on from the stored sums: the same chain of additions, whatever the
    // blocking.
    const Panel<T> panel{job.x,
                         job.x_base,
                         job.x_offset + done,
                         pack ? packed : v,
                         pack ? kWidth : job.v_stride,
                         job.out + first_column,
                         job.out_base,
                         depth,
                         columns - (Vectors - 1) * kLanes<T>,
                         job.accumulate || done > 0};
    panel_rows<T, Vectors>(panel, job.rows);
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
