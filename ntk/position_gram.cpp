#include "ntk/position_gram.hpp"

#include <algorithm>
#include <vector>

#include "engine/cpu.hpp"
#include "engine/error.hpp"
#include "engine/simd/kernels.hpp"

namespace gradgram::ntk {
namespace {

std::size_t multiply(std::size_t a, std::size_t b) {
  return checked_multiply(a, b, "kernel: position products");
}

template <class T>
std::size_t padded(std::size_t rows) {
  return (rows + simd::kGramPadding<T> - 1) / simd::kGramPadding<T> * simd::kGramPadding<T>;
}

/// Outputs o of one axis whose tap reaches inside: input o * stride + tap - pad in [0, in).
struct Reach {
  std::size_t begin, end;
};
Reach reach(std::size_t out, std::size_t in, std::size_t stride, std::size_t tap, std::size_t pad) {
  const std::size_t begin = tap >= pad ? 0 : (pad - tap + stride - 1) / stride;
  const std::size_t end = in + pad > tap ? std::min(out, (in + pad - tap - 1) / stride + 1) : 0;
  return {begin, std::max(begin, end)};
}

/// Packed panels of all channels, one behind the other.
template <class T>
struct Panels {
  Panels(std::size_t rows, std::size_t channels, Arena& arena)
      : rows(padded<T>(rows)), channels(channels), data(arena.tensor<T>({this->rows, channels}).data()) {}

  /// f(first channel, count, panel)
  template <class F>
  void each(F f) const {
    for (std::size_t begin = 0; begin < channels; begin += simd::kGramDepth<T>) {
      f(begin, std::min(simd::kGramDepth<T>, channels - begin), data + begin * rows);
    }
  }
  void pack(const T* source, std::size_t stride, std::size_t count, std::size_t first_row = 0) const {
    each([&](std::size_t begin, std::size_t depth, T* panel) {
      kernels<T>().gram_pack(source + begin, stride, count, depth, panel + first_row * depth);
    });
  }

  std::size_t rows, channels;
  T* data;
};

/// products[u][v * block + j] (+)= sum over channels.
template <class T>
void multiply_panels(const Panels<T>& a, std::size_t a_rows, const Panels<T>& b, std::size_t b_rows,
                     bool accumulate, double* products) {
  a.each([&](std::size_t begin, std::size_t depth, const T* panel) {
    kernels<T>().gram_product({.rows = panel,
                               .columns = b.data + begin * b.rows,
                               .depth = depth,
                               .row_count = a_rows,
                               .column_count = b_rows,
                               .sum = products,
                               .sum_stride = b.rows,
                               .lower = false,
                               .accumulate = accumulate || begin > 0});
  });
}

}  // namespace

template <class T>
std::size_t PositionGram<T>::scratch_bytes(const ConvGeometry& g, std::size_t group, std::size_t seeds) {
  constexpr std::size_t kBlock = kPositionColumns<T>;
  const std::size_t in = g.in_pixels();
  const std::size_t out = g.out_pixels();
  const std::size_t packed = multiply(padded<T>(in), g.c_in) + multiply(multiply(in, kBlock), g.c_in) +
                             multiply(seeds, multiply(padded<T>(out), g.c_out)) +
                             multiply(multiply(group, seeds), multiply(multiply(out, kBlock), g.c_out));
  const std::size_t products =
      multiply(multiply(padded<T>(in), in), kBlock) +
      multiply(multiply(multiply(g.out_h, g.in_w), multiply(g.out_h, g.in_w)), kBlock) +
      multiply(multiply(out, out), kBlock) + multiply(multiply(padded<T>(out), out), kBlock) + 2 * kBlock;
  const std::size_t arrays = 8 + 2 * multiply(group, seeds) + 2 * seeds;
  return multiply(packed, sizeof(T)) + multiply(products, sizeof(double)) + multiply(arrays, kAlignment);
}

template <class T>
void PositionGram<T>::sum_taps(const double* products, double* shifted, double* taps) const {
  constexpr std::size_t kBlock = kPositionColumns<T>;
  const ConvGeometry& g = geometry_;
  const simd::KernelTable<double>& table = kernels<double>();
  const std::size_t row = g.in_pixels() * kBlock;
  const std::size_t line = g.in_w * kBlock;
  // shifted[(oy, x)][(oy', x')] = sum_a products[(oy s + a, x)][(oy' s + a, x')]: whole lines of pixels.
  const std::size_t shifted_row = g.out_h * line;
  std::fill_n(shifted, g.out_h * g.in_w * shifted_row, 0.0);
  for (std::size_t a = 0; a < g.kernel_h; ++a) {
    const Reach valid = reach(g.out_h, g.in_h, g.stride_h, a, g.pad_top);
    for (std::size_t p = valid.begin; p < valid.end; ++p) {
      const std::size_t u = (p * g.stride_h + a - g.pad_top) * g.in_w;
      for (std::size_t x = 0; x < g.in_w; ++x) {
        const double* const from = products + (u + x) * row;
        double* const to = shifted + (p * g.in_w + x) * shifted_row;
        if (g.stride_h == 1) {
          const std::size_t v = valid.begin + a - g.pad_top;
          table.axpy(1.0, from + v * line, to + valid.begin * line, (valid.end - valid.begin) * line);
          continue;
        }
        for (std::size_t q = valid.begin; q < valid.end; ++q) {
          table.axpy(1.0, from + (q * g.stride_h + a - g.pad_top) * line, to + q * line, line);
        }
      }
    }
  }
  // taps[(oy, ox)][(oy', ox')] = sum_b shifted[(oy, ox s + b)][(oy', ox' s + b)].
  const std::size_t out_line = g.out_w * kBlock;
  const std::size_t taps_row = g.out_pixels() * kBlock;
  std::fill_n(taps, g.out_pixels() * taps_row, 0.0);
  for (std::size_t b = 0; b < g.kernel_w; ++b) {
    const Reach valid = reach(g.out_w, g.in_w, g.stride_w, b, g.pad_left);
    for (std::size_t p = 0; p < g.out_h; ++p) {
      for (std::size_t ox = valid.begin; ox < valid.end; ++ox) {
        const double* const from = shifted + (p * g.in_w + ox * g.stride_w + b - g.pad_left) * shifted_row;
        double* const to = taps + (p * g.out_w + ox) * taps_row;
        for (std::size_t q = 0; q < g.out_h; ++q) {
          if (g.stride_w == 1) {
            table.axpy(1.0, from + q * line + (valid.begin + b - g.pad_left) * kBlock,
                       to + q * out_line + valid.begin * kBlock, (valid.end - valid.begin) * kBlock);
            continue;
          }
          for (std::size_t x = valid.begin; x < valid.end; ++x) {
            table.axpy(1.0, from + q * line + (x * g.stride_w + b - g.pad_left) * kBlock,
                       to + q * out_line + x * kBlock, kBlock);
          }
        }
      }
    }
  }
}

template <class T>
void PositionGram<T>::contract(const Side& rows, const Side& columns, std::size_t group, std::size_t seeds,
                               bool lower, const Result& result, Arena& scratch) const {
  constexpr std::size_t kBlock = kPositionColumns<T>;
  const ConvGeometry& g = geometry_;
  const std::size_t in = g.in_pixels();
  const std::size_t out = g.out_pixels();
  const ArenaScope scope(scratch);
  const Panels<T> row_inputs(in, g.c_in, scratch);
  const Panels<T> column_inputs(in * kBlock, g.c_in, scratch);
  std::vector<Panels<T>> row_cotangents, column_cotangents;
  for (std::size_t s = 0; s < seeds; ++s) row_cotangents.emplace_back(out, g.c_out, scratch);
  for (std::size_t s = 0; s < group * seeds; ++s)
    column_cotangents.emplace_back(out * kBlock, g.c_out, scratch);
  const auto room = [&](std::size_t count) { return scratch.tensor<double>({count}).data(); };
  double* const products = room(padded<T>(in) * in * kBlock);
  double* const shifted = room(g.out_h * g.in_w * g.out_h * g.in_w * kBlock);
  double* const taps = room(out * out * kBlock);
  double* const outer = room(padded<T>(out) * out * kBlock);
  double* const weight = room(kBlock);
  double* const bias = room(kBlock);

  for (std::size_t first = 0; first < columns.examples; first += kBlock) {
    const std::size_t count = std::min(kBlock, columns.examples - first);
    // Pixel by pixel, the examples side by side: whatever is done to a pair of pixels is done to `count`
    // pairs of examples.
    for (std::size_t v = 0; v < in; ++v) {
      column_inputs.pack(columns.inputs + first * columns.input_stride + v * g.c_in, columns.input_stride,
                         count, v * kBlock);
    }
    for (std::size_t l = 0; l < group; ++l) {
      for (std::size_t s = 0; s < seeds; ++s) {
        const T* const source =
            columns.cotangents + (first * group + l) * columns.cotangent_stride + s * out * g.c_out;
        for (std::size_t q = 0; q < out; ++q) {
          column_cotangents[l * seeds + s].pack(source + q * g.c_out, group * columns.cotangent_stride, count,
                                                q * kBlock);
        }
      }
    }
    for (std::size_t i = lower ? first : 0; i < rows.examples; ++i) {
      row_inputs.pack(rows.inputs + i * rows.input_stride, g.c_in, in);
      multiply_panels(row_inputs, in, column_inputs, in * kBlock, false, products);
      sum_taps(products, shifted, taps);
      for (std::size_t k = 0; k < group; ++k) {
        for (std::size_t s = 0; s < seeds; ++s) {
          row_cotangents[s].pack(
              rows.cotangents + (i * group + k) * rows.cotangent_stride + s * out * g.c_out, g.c_out, out);
        }
        for (std::size_t l = 0; l < group; ++l) {
          for (std::size_t s = 0; s < seeds; ++s) {
            multiply_panels(row_cotangents[s], out, column_cotangents[l * seeds + s], out * kBlock, s > 0,
                            outer);
          }
          std::fill_n(weight, kBlock, 0.0);
          std::fill_n(bias, kBlock, 0.0);
          // (p, q) with (q, p), so that exchanging the two examples exchanges the two terms of a sum.
          for (std::size_t p = 0; p < out; ++p) {
            for (std::size_t q = 0; q <= p; ++q) {
              const double* const c = outer + (p * out + q) * kBlock;
              const double* const c_mirror = outer + (q * out + p) * kBlock;
              const double* const x = taps + (p * out + q) * kBlock;
              const double* const x_mirror = taps + (q * out + p) * kBlock;
              if (p == q) {
                for (std::size_t j = 0; j < kBlock; ++j) {
                  weight[j] += c[j] * x[j];
                  bias[j] += c[j];
                }
              } else {
                for (std::size_t j = 0; j < kBlock; ++j) {
                  weight[j] += c[j] * x[j] + c_mirror[j] * x_mirror[j];
                  bias[j] += c[j] + c_mirror[j];
                }
              }
            }
          }
          const std::size_t at = (i * group + k) * result.stride + first * group + l;
          for (std::size_t j = 0; j < count; ++j) {
            result.weight[at + j * group] += weight[j];
            if (result.bias != nullptr) result.bias[at + j * group] += bias[j];
          }
        }
      }
    }
  }
}

template class PositionGram<float>;
template class PositionGram<double>;

}  // namespace gradgram::ntk
