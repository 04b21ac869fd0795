#pragma once

#include "engine/simd/gram.hpp"
#include "engine/simd/kernels.hpp"
#include "engine/simd/vector.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// kLanes rows into one vector of every column of a group. The next rows are fetched meanwhile, see
/// gram_pack_lanes.
template <class T>
void position_pack_lanes(const T* const* sources, std::size_t count, std::size_t depth, T* packed) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  const auto all = [&](std::size_t first) {
    bool there = count >= first + kLane;
    for (std::size_t i = 0; there && i < kLane; ++i) there = sources[first + i] != nullptr;
    return there;
  };
  const bool full = all(0);
  const bool more = all(kLane);
  std::size_t k = 0;
  if (full) {
    for (; k + kLane <= depth; k += kLane) {
      Batch<T> x[kLane];
      Unroll<0, kLane>::run([&](std::size_t i)
                                __attribute__((always_inline)) { x[i] = load(sources[i] + k); });
      if (more) {
        Unroll<0, kLane>::run([&](std::size_t i) __attribute__((always_inline)) {
          __builtin_prefetch(sources[kLane + i] + k);
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
    for (std::size_t i = 0; i < kLane; ++i) {
      target[i] = i < count && sources[i] != nullptr ? sources[i][k] : T(0);
    }
  }
}

template <class T>
void position_pack(const T* const* sources, std::size_t count, std::size_t depth, T* packed) noexcept {
  for (std::size_t first = 0; first < count; first += kGramGroup<T>) {
    for (std::size_t vector = 0; vector < kGramVectors; ++vector) {
      const std::size_t begin = first + vector * kLanes<T>;
      position_pack_lanes(sources + (begin < count ? begin : 0), begin < count ? count - begin : 0, depth,
                          packed + first * depth + vector * kLanes<T>);
    }
  }
}

/// The tile of a Gram product (engine/simd/gram.hpp), stored in T.
template <class T>
void position_tile(const T* row, const T* column, std::size_t depth, T* out, std::size_t stride,
                   bool accumulate, const T* ahead) noexcept {
  constexpr std::size_t kRows = kGramRows<T>;
  constexpr std::size_t kLane = kLanes<T>;
  Batch<T> part[kRows * kGramVectors];
  const auto fetch = [&]() __attribute__((always_inline)) {
    __builtin_prefetch(ahead, 0, 2);
    ahead += kGramLine<T>;
  };
  const auto wanted = [&](std::size_t r) __attribute__((always_inline)) {
    Unroll<0, kWantedRuns>::run([&](std::size_t) __attribute__((always_inline)) { fetch(); });
    Unroll<0, kGramVectors>::run([&](std::size_t vector) __attribute__((always_inline)) {
      __builtin_prefetch(out + r * stride + vector * kLane, 1);
    });
  };
  gram_sums<T, kGramVectors>(row, column, depth, depth, fetch, wanted, part);
  Unroll<0, kRows * kGramVectors>::run([&](std::size_t at) __attribute__((always_inline)) {
    T* const target = out + at / kGramVectors * stride + at % kGramVectors * kLane;
    store(target, accumulate ? Batch<T>(load(target) + part[at]) : part[at]);
  });
}

template <class T>
void position_product(const PositionProduct<T>& job) noexcept {
  constexpr std::size_t kGroup = kGramGroup<T>;
  const std::size_t share = job.depth / kAheadSteps * kGramLine<T>;
  for (std::size_t column = 0; column < job.column_count; column += kGroup) {
    const std::size_t end = job.upper && column + kGroup < job.row_count ? column + kGroup : job.row_count;
    const T* const columns = job.columns + column * job.depth;
    // The next group of columns stands behind this one, whichever product it belongs to.
    const T* ahead = columns + kGroup * job.depth;
    const T* const last = ahead + kGroup * job.depth;
    for (std::size_t row = 0; row < end; row += kGramRows<T>) {
      position_tile<T>(job.rows + row / kGroup * kGroup * job.depth + row % kGroup, columns, job.depth,
                       job.out + row * job.stride + column, job.stride, job.accumulate,
                       ahead < last ? ahead : columns);
      ahead += share;
    }
  }
}

/// Adds the sum of two registers of T to kLanes doubles.
GRADGRAM_INLINE void add_lanes(double* sum, const Batch<float>& a, const Batch<float>& b) {
  constexpr std::size_t kLane = kLanes<double>;
  const Widened left = widen(a);
  const Widened right = widen(b);
  store(sum, Batch<double>(load(sum) + (left.low + right.low)));
  store(sum + kLane, Batch<double>(load(sum + kLane) + (left.high + right.high)));
}
GRADGRAM_INLINE void add_lanes(double* sum, const Batch<double>& a, const Batch<double>& b) {
  store(sum, Batch<double>(load(sum) + (a + b)));
}

/// One distance between two pixels: of all pairs of pixels (u, u + d), the sum over taps, then over outputs.
/// The taps of a line first, into `lines`, then the lines of a window.
template <class T, std::size_t Vectors>
struct PositionPlane {
  static constexpr std::size_t kLane = kLanes<T>;
  /// Products that are added in T before they move to f64.
  static constexpr std::size_t kChain = 256;

  const PositionSums<T>& job;
  const T* products;  ///< of the first vector
  const T* outer;
  double *weight, *bias;

  /// The overlap of [0, count) with itself moved by -d.
  static std::ptrdiff_t begin(std::ptrdiff_t d) { return d < 0 ? -d : 0; }
  static std::ptrdiff_t end(std::ptrdiff_t count, std::ptrdiff_t d) { return d < 0 ? count : count - d; }

  struct Sums {
    Batch<T> weight[Vectors], bias[Vectors];
    GRADGRAM_INLINE void zero() {
      Unroll<0, Vectors>::run([&](std::size_t v)
                                  __attribute__((always_inline)) { weight[v] = bias[v] = broadcast(T(0)); });
    }
  };
  /// Sums of a distance with more products than a chain.
  struct Wide {
    alignas(64) double weight[Vectors * kLane] = {};
    alignas(64) double bias[Vectors * kLane] = {};
  };

  GRADGRAM_INLINE static void add(const Sums& a, const Sums& b, double* weight, double* bias) {
    Unroll<0, Vectors>::run([&](std::size_t v) __attribute__((always_inline)) {
      add_lanes(weight + v * kLane, a.weight[v], b.weight[v]);
      if (bias != nullptr) add_lanes(bias + v * kLane, a.bias[v], b.bias[v]);
    });
  }

  /// lines[y][x] = sum over the taps of a line, for every line y of inputs that the plane has.
  void sum_lines(std::ptrdiff_t dy, std::ptrdiff_t dx) const {
    const auto in_w = static_cast<std::ptrdiff_t>(job.in_w);
    const auto in_h = static_cast<std::ptrdiff_t>(job.in_h);
    const auto out_w = static_cast<std::ptrdiff_t>(job.out_w);
    const auto pad = static_cast<std::ptrdiff_t>(job.pad_left);
    const auto taps = static_cast<std::ptrdiff_t>(job.kernel_w);
    const std::ptrdiff_t first = begin(dx), last = end(in_w, dx);
    const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(job.product_stride + kLane);
    const std::ptrdiff_t shift = (dy * in_w + dx) * static_cast<std::ptrdiff_t>(kLane);
    for (std::ptrdiff_t y = begin(dy); y < end(in_h, dy); ++y) {
      const T* const line = products + y * in_w * step + shift;
      T* const target = job.lines + static_cast<std::size_t>(y * out_w) * Vectors * kLane;
      for (std::ptrdiff_t x = begin(dx); x < end(out_w, dx); ++x) {
        const std::ptrdiff_t from = x - pad > first ? x - pad : first;
        const std::ptrdiff_t to = x - pad + taps < last ? x - pad + taps : last;
        Batch<T> sum[Vectors];
        Unroll<0, Vectors>::run([&](std::size_t v)
                                    __attribute__((always_inline)) { sum[v] = broadcast(T(0)); });
        for (std::ptrdiff_t u = from; u < to; ++u) {
          Unroll<0, Vectors>::run([&](std::size_t v) __attribute__((always_inline)) {
            sum[v] += load(line + u * step + v * job.product_vector);
          });
        }
        Unroll<0, Vectors>::run([&](std::size_t v) __attribute__((always_inline)) {
          store(target + (static_cast<std::size_t>(x) * Vectors + v) * kLane, sum[v]);
        });
      }
    }
  }

  /// The sum over outputs; chains that are full go to `wide`.
  GRADGRAM_INLINE Sums sum_outputs(std::ptrdiff_t dy, std::ptrdiff_t dx, Wide* wide) const {
    const auto in_h = static_cast<std::ptrdiff_t>(job.in_h);
    const auto out_h = static_cast<std::ptrdiff_t>(job.out_h);
    const auto out_w = static_cast<std::ptrdiff_t>(job.out_w);
    const auto pad = static_cast<std::ptrdiff_t>(job.pad_top);
    const auto taps = static_cast<std::ptrdiff_t>(job.kernel_h);
    const std::ptrdiff_t first = begin(dy), last = end(in_h, dy);
    const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(job.outer_stride + kLane);
    const std::ptrdiff_t shift = (dy * out_w + dx) * static_cast<std::ptrdiff_t>(kLane);
    const std::size_t line = job.out_w * Vectors * kLane;
    Sums sums, none;
    sums.zero();
    none.zero();
    std::size_t chain = 0;
    for (std::ptrdiff_t y = begin(dy); y < end(out_h, dy); ++y) {
      const std::ptrdiff_t from = y - pad > first ? y - pad : first;
      const std::ptrdiff_t to = y - pad + taps < last ? y - pad + taps : last;
      const T* const c = outer + y * out_w * step + shift;
      const T* const lines = job.lines + (from < to ? static_cast<std::size_t>(from) * line : 0);
      const std::size_t count = from < to ? static_cast<std::size_t>(to - from) : 0;
      for (std::ptrdiff_t x = begin(dx); x < end(out_w, dx); ++x) {
        const T* const at = lines + static_cast<std::size_t>(x) * Vectors * kLane;
        Batch<T> sum[Vectors];
        Unroll<0, Vectors>::run([&](std::size_t v)
                                    __attribute__((always_inline)) { sum[v] = broadcast(T(0)); });
        for (std::size_t a = 0; a < count; ++a) {
          Unroll<0, Vectors>::run([&](std::size_t v) __attribute__((always_inline)) {
            sum[v] += load(at + a * line + v * kLane);
          });
        }
        Unroll<0, Vectors>::run([&](std::size_t v) __attribute__((always_inline)) {
          const Batch<T> cotangents = load(c + x * step + v * job.outer_vector);
          sums.weight[v] = multiply_add(cotangents, sum[v], sums.weight[v]);
          sums.bias[v] += cotangents;
        });
      }
      chain += job.out_w;
      if (wide != nullptr && chain >= kChain) {
        add(sums, none, wide->weight, wide->bias);
        sums.zero();
        chain = 0;
      }
    }
    return sums;
  }

  GRADGRAM_INLINE Sums plane(std::ptrdiff_t dy, std::ptrdiff_t dx, Wide* wide = nullptr) const {
    sum_lines(dy, dx);
    return sum_outputs(dy, dx, wide);
  }

  /// Exchanging the two examples of a pair exchanges a distance and its opposite, the two terms of a sum.
  GRADGRAM_INLINE void both(std::ptrdiff_t dy, std::ptrdiff_t dx) const {
    if (job.out_h * job.out_w <= kChain) {
      const Sums forth = plane(dy, dx);
      return add(forth, plane(-dy, -dx), weight, bias);
    }
    Sums none;
    none.zero();
    Wide forth, back;
    add(plane(dy, dx, &forth), none, forth.weight, forth.bias);
    add(plane(-dy, -dx, &back), none, back.weight, back.bias);
    for (std::size_t i = 0; i < Vectors * kLane; ++i) {
      weight[i] += forth.weight[i] + back.weight[i];
      if (bias != nullptr) bias[i] += forth.bias[i] + back.bias[i];
    }
  }

  void run() const {
    const auto out_h = static_cast<std::ptrdiff_t>(job.out_h);
    const auto out_w = static_cast<std::ptrdiff_t>(job.out_w);
    Sums none;
    none.zero();
    Wide wide;
    add(plane(0, 0, &wide), none, wide.weight, wide.bias);
    for (std::size_t i = 0; i < Vectors * kLane; ++i) {
      weight[i] += wide.weight[i];
      if (bias != nullptr) bias[i] += wide.bias[i];
    }
    for (std::ptrdiff_t dy = 0; dy < out_h; ++dy) {
      for (std::ptrdiff_t dx = dy == 0 ? 1 : 1 - out_w; dx < out_w; ++dx) both(dy, dx);
    }
  }
};

template <class T, std::size_t Vectors>
void position_vectors(const PositionSums<T>& job, std::size_t first) noexcept {
  const std::size_t lane = first * kLanes<T>;
  PositionPlane<T, Vectors>{job, job.products + first * job.product_vector,
                            job.outer + first * job.outer_vector, job.weight + lane,
                            job.bias == nullptr ? nullptr : job.bias + lane}
      .run();
}

template <class T>
void position_sums(const PositionSums<T>& job) noexcept {
  std::size_t first = 0;
  for (; first + 3 <= job.vectors; first += 3) position_vectors<T, 3>(job, first);
  if (job.vectors - first == 2) return position_vectors<T, 2>(job, first);
  if (job.vectors - first == 1) return position_vectors<T, 1>(job, first);
}

GRADGRAM_INLINE void add_lanes(Batch<double>* sum, const Batch<float>& a) {
  const Widened wide = widen(a);
  sum[0] += wide.low;
  sum[1] += wide.high;
}
GRADGRAM_INLINE void add_lanes(Batch<double>* sum, const Batch<double>& a) {
  sum[0] += a;
}

/// Registers hold consecutive q; X and C are symmetric, so q >= p is enough.
template <class T>
double position_norm(const PositionNorm<T>& job) noexcept {
  constexpr std::size_t kLane = kLanes<T>;
  const auto height = static_cast<std::ptrdiff_t>(job.height);
  const auto width = static_cast<std::ptrdiff_t>(job.width);
  const std::size_t pixels = job.height * job.width;
  Batch<double> sum[2] = {broadcast(0.0), broadcast(0.0)};
  double diagonal = 0;
  const T* x[kNormTaps];
  const T* inside[kNormTaps];
  std::size_t p = 0;
  for (std::ptrdiff_t y = 0; y < height; ++y) {
    for (std::ptrdiff_t column = 0; column < width; ++column, ++p) {
      std::size_t taps = 0;
      for (std::size_t tap = 0; tap < job.kernel_h * job.kernel_w; ++tap) {
        const std::ptrdiff_t dy =
            static_cast<std::ptrdiff_t>(tap / job.kernel_w) - static_cast<std::ptrdiff_t>(job.pad_top);
        const std::ptrdiff_t dx =
            static_cast<std::ptrdiff_t>(tap % job.kernel_w) - static_cast<std::ptrdiff_t>(job.pad_left);
        if (y + dy < 0 || y + dy >= height || column + dx < 0 || column + dx >= width) continue;
        const std::ptrdiff_t shift = dy * width + dx;
        const std::size_t u = static_cast<std::size_t>(static_cast<std::ptrdiff_t>(p) + shift);
        // From q = p on, so that the pointer stays inside.
        x[taps] = job.products + u * job.product_stride + u;
        inside[taps++] = job.inside + tap * job.inside_stride + p;
      }
      if (taps == 0) continue;
      const T* const c = job.outer + p * job.outer_stride + p;
      Batch<T> row = broadcast(T(0));
      Batch<T> first = row;
      for (std::size_t q = 0; q < pixels - p; q += kLane) {
        Batch<T> value = load(x[0] + q) * load(inside[0] + q);
        for (std::size_t tap = 1; tap < taps; ++tap) {
          value = multiply_add(load(x[tap] + q), load(inside[tap] + q), value);
        }
        value = value * load(c + q);
        if (q == 0) first = value;
        row += value;
      }
      add_lanes(sum, row);
      alignas(64) T lanes[kLane];
      store(lanes, first);
      diagonal += static_cast<double>(lanes[0]);
    }
  }
  alignas(64) double lanes[kLanes<double>];
  store(lanes, Batch<double>(sum[0] + sum[1]));
  double total = 0;
  for (const double lane : lanes) total += lane;
  return 2 * total - diagonal;
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
