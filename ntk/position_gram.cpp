#include "ntk/position_gram.hpp"

#include <algorithm>

#include "engine/cpu.hpp"
#include "engine/error.hpp"
#include "engine/simd/kernels.hpp"
#include "ntk/plan.hpp"

namespace gradgram::ntk {
namespace {

/// Examples of the columns are packed by whole registers of every instruction set.
template <class T>
inline constexpr std::size_t kRegister = 64 / sizeof(T);
/// Registers of columns per block: a position's row of three is a whole group of the packed product; with
/// many positions one fills groups as well and takes a third of the memory.
constexpr std::size_t kWideBlock = 3;
constexpr std::size_t kManyPositions = 24;
/// Products of a block of rows stay in the second-level cache, inputs beside cotangents.
constexpr std::size_t kProductBytes = std::size_t{384} << 10;
/// Rows of a block beyond which the reading of packed columns no longer matters.
constexpr std::size_t kBlockRows = 256;

std::size_t multiply(std::size_t a, std::size_t b) {
  return checked_multiply(a, b, "kernel: position products");
}

template <class T>
std::size_t padded(std::size_t rows) {
  return (rows + simd::kGramPadding<T> - 1) / simd::kGramPadding<T> * simd::kGramPadding<T>;
}

/// One axis of a residue class of padded coordinates.
struct Axis {
  std::size_t taps, pad, first, count;
};
Axis axis(std::size_t in, std::size_t out, std::size_t kernel, std::size_t stride, std::size_t pad,
          std::size_t residue) {
  Axis result{};
  result.taps = (kernel - 1 - residue) / stride + 1;
  // Grid point m stands for input m * stride + residue - pad.
  result.pad = pad > residue ? (pad - residue + stride - 1) / stride : 0;
  const std::size_t reach = in + pad > residue ? (in + pad - residue - 1) / stride + 1 : 0;
  const std::size_t end = std::min(reach, out + result.taps - 1);
  result.count = end > result.pad ? end - result.pad : 0;
  result.first = result.pad * stride + residue - pad;
  return result;
}

/// Rows from anywhere in panels of channels, one panel behind the other.
template <class T>
struct Panels {
  Panels(std::size_t rows, std::size_t channels, Arena& arena)
      : channels(channels),
        step(gram_depth(channels, sizeof(T))),
        data(arena.tensor<T>({padded<T>(rows), channels}).data()) {}
  static std::size_t bytes(std::size_t rows, std::size_t channels) {
    return multiply(multiply(padded<T>(rows), channels), sizeof(T)) + kAlignment;
  }

  std::size_t depth(std::size_t begin) const { return std::min(step, channels - begin); }

  void pack(const T** sources, std::size_t count) {
    rows = padded<T>(count);
    for (std::size_t begin = 0; begin < channels; begin += step) {
      kernels<T>().position_pack(sources, count, depth(begin), data + begin * rows);
      for (std::size_t i = 0; i < count; ++i) {
        if (sources[i] != nullptr) sources[i] += depth(begin);
      }
    }
  }

  std::size_t channels;
  std::size_t step;  ///< channels of a panel
  T* data;
  std::size_t rows = 0;
};

/// out[i][j] (+)= sum over channels.
template <class T>
void multiply_panels(const Panels<T>& a, std::size_t row_count, const Panels<T>& b, std::size_t column_count,
                     bool accumulate, T* out, std::size_t stride) {
  for (std::size_t begin = 0; begin < a.channels; begin += a.step) {
    kernels<T>().position_product({.rows = a.data + begin * a.rows,
                                   .columns = b.data + begin * b.rows,
                                   .depth = a.depth(begin),
                                   .row_count = row_count,
                                   .column_count = column_count,
                                   .out = out,
                                   .stride = stride,
                                   .upper = false,
                                   .accumulate = accumulate || begin > 0});
  }
}

}  // namespace

template <class T>
PositionGram<T>::PositionGram(const ConvGeometry& g, std::size_t group, std::size_t seeds)
    : geometry_(g), group_(group), seeds_(seeds) {
  for (std::size_t y = 0; y < std::min(g.stride_h, g.kernel_h); ++y) {
    const Axis vertical = axis(g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_top, y);
    for (std::size_t x = 0; x < std::min(g.stride_w, g.kernel_w); ++x) {
      const Axis horizontal = axis(g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_left, x);
      if (vertical.count == 0 || horizontal.count == 0) continue;
      classes_.push_back({vertical.count, horizontal.count, vertical.taps, horizontal.taps, vertical.pad,
                          horizontal.pad, vertical.first, horizontal.first, g.stride_h, g.stride_w});
    }
  }
  // A window that sees padding alone: a bias may still have a kernel.
  if (classes_.empty()) classes_.push_back({0, 0, 1, 1, 0, 0, 0, 0, 1, 1});
  std::size_t most = g.out_pixels();
  for (const Class& c : classes_) most = std::max(most, c.pixels());
  block_ = kRegister<T> * (most < kManyPositions ? kWideBlock : 1);
  const std::size_t bytes = multiply(multiply(most, most), multiply(block_, sizeof(T)));
  const std::size_t limit = std::max<std::size_t>(1, std::min(kProductBytes / bytes, kBlockRows / most));
  // Rows are multiplied eight at a time: as few as possible for nothing.
  const auto waste = [&](std::size_t rows) {
    return static_cast<double>((rows * most + 7) / 8 * 8) / static_cast<double>(rows * most);
  };
  rows_ = limit;
  for (std::size_t rows = limit; rows > 0 && 2 * rows >= limit; --rows) {
    if (waste(rows) < waste(rows_)) rows_ = rows;
  }
}

template <class T>
std::size_t PositionGram<T>::scratch_bytes() const {
  const ConvGeometry& g = geometry_;
  const std::size_t out = g.out_pixels();
  const std::size_t cotangents = multiply(group_, seeds_);
  std::size_t bytes = multiply(cotangents, Panels<T>::bytes(multiply(rows_, out), g.c_out) +
                                               Panels<T>::bytes(multiply(block_, out), g.c_out));
  std::size_t most = out;
  std::size_t lines = 0;
  const auto products = [&](std::size_t pixels) {
    return multiply(multiply(padded<T>(multiply(rows_, pixels)), padded<T>(multiply(block_, pixels))),
                    sizeof(T));
  };
  bytes = checked_add(bytes, products(out), "kernel: position products");
  for (const Class& c : classes_) {
    bytes = checked_add(bytes, Panels<T>::bytes(rows_ * c.pixels(), g.c_in), "kernel: position products");
    bytes = checked_add(bytes, Panels<T>::bytes(block_ * c.pixels(), g.c_in), "kernel: position products");
    bytes = checked_add(bytes, products(c.pixels()) + kAlignment, "kernel: position products");
    most = std::max(most, c.pixels());
    lines = std::max(lines, c.h * g.out_w);
  }
  const std::size_t pointers = multiply(std::max(rows_, block_), most) * sizeof(const T*);
  return checked_add(bytes, pointers + multiply(lines, kWideBlock * kAlignment) + 2 * block_ * sizeof(double),
                     "kernel: position products") +
         8 * kAlignment;
}

template <class T>
double PositionGram<T>::multiply_adds() const {
  const auto square = [](std::size_t pixels) {
    return static_cast<double>(pixels) * static_cast<double>(pixels);
  };
  double products = square(geometry_.out_pixels()) * static_cast<double>(geometry_.c_out) *
                    static_cast<double>(group_) * static_cast<double>(group_) * static_cast<double>(seeds_);
  for (const Class& c : classes_) products += square(c.pixels()) * static_cast<double>(geometry_.c_in);
  return products;
}

template <class T>
double PositionGram<T>::additions() const {
  const auto out = static_cast<double>(geometry_.out_pixels());
  double taps = 0;
  for (const Class& c : classes_) taps += static_cast<double>(c.kernel_h + c.kernel_w + 2);
  return taps * out * out * static_cast<double>(group_) * static_cast<double>(group_);
}

template <class T>
void PositionGram<T>::contract(const Side& rows, const Side& columns, bool lower, const Result& result,
                               Arena& scratch) const {
  const ConvGeometry& g = geometry_;
  const simd::KernelTable<T>& table = kernels<T>();
  const std::size_t lanes = table.vector_length;
  const std::size_t out = g.out_pixels();
  const ArenaScope scope(scratch);
  std::size_t most = out;
  std::size_t line_count = 0;
  std::vector<Panels<T>> row_inputs, column_inputs, row_cotangents, column_cotangents;
  std::vector<T*> products;
  const auto room = [&](std::size_t pixels) {
    return scratch.tensor<T>({padded<T>(rows_ * pixels), padded<T>(block_ * pixels)}).data();
  };
  for (const Class& c : classes_) {
    row_inputs.emplace_back(rows_ * c.pixels(), g.c_in, scratch);
    column_inputs.emplace_back(block_ * c.pixels(), g.c_in, scratch);
    products.push_back(room(c.pixels()));
    most = std::max(most, c.pixels());
    line_count = std::max(line_count, c.h * g.out_w);
  }
  for (std::size_t s = 0; s < group_ * seeds_; ++s) {
    row_cotangents.emplace_back(rows_ * out, g.c_out, scratch);
    column_cotangents.emplace_back(block_ * out, g.c_out, scratch);
  }
  T* const outer = room(out);
  T* const lines = scratch.tensor<T>({line_count * kWideBlock * kRegister<T>}).data();
  double* const weight = scratch.tensor<double>({block_}).data();
  double* const bias = scratch.tensor<double>({block_}).data();
  const T** const sources =
      static_cast<const T**>(scratch.allocate(std::max(rows_, block_) * most * sizeof(const T*)));

  const auto input = [&](const Side& side, std::size_t example, const Class& c, std::size_t pixel) {
    return side.inputs + example * side.input_stride + c.pixel(pixel, g.in_w) * g.c_in;
  };
  const auto cotangent = [&](const Side& side, std::size_t example, std::size_t number, std::size_t pixel) {
    return side.cotangents + (example * group_ + number / seeds_) * side.cotangent_stride +
           (number % seeds_ * out + pixel) * g.c_out;
  };
  // Rows: example by example, pixel by pixel.
  const auto pack_rows = [&](std::size_t count, std::size_t pixels, Panels<T>& panels, auto source) {
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t u = 0; u < pixels; ++u) sources[i * pixels + u] = source(i, u);
    }
    panels.pack(sources, count * pixels);
  };
  // Columns: a register of examples at one pixel beside that of the next pixel, so that whatever is done to a
  // pair of pixels is done to a register of pairs of examples.
  const auto pack_columns = [&](std::size_t count, std::size_t pixels, Panels<T>& panels, auto source) {
    const T** to = sources;
    for (std::size_t first = 0; first < count; first += lanes) {
      for (std::size_t v = 0; v < pixels; ++v) {
        for (std::size_t j = first; j < first + lanes; ++j) *to++ = j < count ? source(j, v) : nullptr;
      }
    }
    panels.pack(sources, static_cast<std::size_t>(to - sources));
  };

  for (std::size_t first = 0; first < columns.examples; first += block_) {
    const std::size_t count = std::min(block_, columns.examples - first);
    for (std::size_t c = 0; c < classes_.size(); ++c) {
      pack_columns(count, classes_[c].pixels(), column_inputs[c],
                   [&](std::size_t j, std::size_t v) { return input(columns, first + j, classes_[c], v); });
    }
    for (std::size_t s = 0; s < group_ * seeds_; ++s) {
      pack_columns(count, out, column_cotangents[s],
                   [&](std::size_t j, std::size_t q) { return cotangent(columns, first + j, s, q); });
    }
    for (std::size_t top = lower ? first : 0; top < rows.examples; top += rows_) {
      const std::size_t height = std::min(rows_, rows.examples - top);
      // Registers that hold a column some row wants.
      const auto wanted = [&](std::size_t last_row) {
        const std::size_t end = lower ? std::min(count, last_row - first + 1) : count;
        return (end + lanes - 1) / lanes;
      };
      const std::size_t vectors = wanted(top + height - 1);
      for (std::size_t s = 0; s < group_ * seeds_; ++s) {
        pack_rows(height, out, row_cotangents[s],
                  [&](std::size_t i, std::size_t p) { return cotangent(rows, top + i, s, p); });
      }
      for (std::size_t c = 0; c < classes_.size(); ++c) {
        const std::size_t in = classes_[c].pixels();
        pack_rows(height, in, row_inputs[c],
                  [&](std::size_t i, std::size_t u) { return input(rows, top + i, classes_[c], u); });
        multiply_panels(row_inputs[c], height * in, column_inputs[c], vectors * in * lanes, false,
                        products[c], padded<T>(vectors * in * lanes));
      }
      const std::size_t outer_stride = padded<T>(vectors * out * lanes);
      for (std::size_t k = 0; k < group_; ++k) {
        for (std::size_t l = 0; l < group_; ++l) {
          for (std::size_t s = 0; s < seeds_; ++s) {
            multiply_panels(row_cotangents[k * seeds_ + s], height * out, column_cotangents[l * seeds_ + s],
                            vectors * out * lanes, s > 0, outer, outer_stride);
          }
          for (std::size_t i = 0; i < height; ++i) {
            const std::size_t row = top + i;
            const std::size_t registers = wanted(row);
            std::fill_n(weight, block_, 0.0);
            std::fill_n(bias, block_, 0.0);
            for (std::size_t c = 0; c < classes_.size(); ++c) {
              const Class& part = classes_[c];
              const std::size_t in = part.pixels();
              const std::size_t product_stride = padded<T>(vectors * in * lanes);
              table.position_sums({.in_h = part.h,
                                   .in_w = part.w,
                                   .out_h = g.out_h,
                                   .out_w = g.out_w,
                                   .kernel_h = part.kernel_h,
                                   .kernel_w = part.kernel_w,
                                   .pad_top = part.pad_top,
                                   .pad_left = part.pad_left,
                                   .vectors = registers,
                                   .products = products[c] + i * in * product_stride,
                                   .product_stride = product_stride,
                                   .product_vector = in * lanes,
                                   .outer = outer + i * out * outer_stride,
                                   .outer_stride = outer_stride,
                                   .outer_vector = out * lanes,
                                   .lines = lines,
                                   .weight = weight,
                                   .bias = c == 0 && result.bias != nullptr ? bias : nullptr});
            }
            const std::size_t at = (row * group_ + k) * result.stride + first * group_ + l;
            const std::size_t end = std::min(count, registers * lanes);
            for (std::size_t j = 0; j < end; ++j) {
              result.weight[at + j * group_] += weight[j];
              if (result.bias != nullptr) result.bias[at + j * group_] += bias[j];
            }
          }
        }
      }
    }
  }
}

template class PositionGram<float>;
template class PositionGram<double>;

}  // namespace gradgram::ntk
