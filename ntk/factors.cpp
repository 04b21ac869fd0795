#include "ntk/factors.hpp"

#include <algorithm>
#include <cstring>

#include "engine/blas.hpp"
#include "engine/cpu.hpp"
#include "engine/ops/conv2d.hpp"

namespace gradgram::ntk {
namespace {

template <class T>
FactorMatrix<T> make_rows(Arena& memory, std::size_t examples, std::size_t rows_per_example,
                          std::size_t seeds_per_row, std::size_t width) {
  FactorMatrix<T> matrix;
  matrix.width = width;
  matrix.rows_per_example = rows_per_example;
  matrix.seeds_per_row = seeds_per_row;
  matrix.stride = padded_stride(checked_multiply(seeds_per_row, width, "kernel: factors"), sizeof(T));
  const std::size_t rows = checked_multiply(examples, rows_per_example, "kernel: factors");
  matrix.data = memory.tensor<T>({rows, matrix.stride}).data();
  return matrix;
}

/// The same for products over `panels`, packed or as rows.
template <class T>
FactorMatrix<T> make_matrix(Arena& memory, bool packed, std::size_t examples, std::size_t rows_per_example,
                            std::size_t seeds_per_row, std::size_t width, std::vector<Panel> panels) {
  FactorMatrix<T> matrix;
  if (packed) {
    const std::size_t rows = checked_multiply(examples, rows_per_example, "kernel: factors");
    const std::size_t columns = checked_multiply(seeds_per_row, width, "kernel: factors");
    matrix.width = width;
    matrix.rows_per_example = rows_per_example;
    matrix.seeds_per_row = seeds_per_row;
    matrix.packed_rows = gram_padded(rows, sizeof(T));
    matrix.data = memory.tensor<T>({matrix.packed_rows, columns}).data();
  } else {
    matrix = make_rows<T>(memory, examples, rows_per_example, seeds_per_row, width);
  }
  matrix.panels = std::move(panels);
  return matrix;
}

/// The panels of materialized rows: seed by seed, and parameter by parameter when each has its own kernel.
std::vector<Panel> row_panels(const Plan& plan) {
  std::vector<Panel> panels;
  const auto append = [&](std::size_t begin, std::size_t width) {
    const std::vector<Panel> more = panels_of(begin, width, plan.element_bytes);
    panels.insert(panels.end(), more.begin(), more.end());
  };
  for (std::size_t seed = 0; seed < plan.round_seeds; ++seed) {
    const std::size_t begin = seed * plan.row_width;
    if (!plan.request.per_parameter) {
      append(begin, plan.row_width);
      continue;
    }
    for (std::size_t parameter = 0; parameter < plan.columns.size(); ++parameter) {
      if (plan.columns[parameter] == kNoParameter) continue;
      append(begin + plan.columns[parameter], plan.parameter_sizes[parameter]);
    }
  }
  std::sort(panels.begin(), panels.end(), [](const Panel& a, const Panel& b) { return a.begin < b.begin; });
  return panels;
}

/// sums[c] (+)= scale * sum over positions of b[p, c].
template <class T>
void sum_positions(const T* b, std::size_t positions, std::size_t columns, T scale, bool accumulate,
                   T* sums) {
  for (std::size_t c = 0; c < columns; ++c) {
    double sum = 0;
    for (std::size_t p = 0; p < positions; ++p) sum += static_cast<double>(b[p * columns + c]);
    const T value = static_cast<T>(static_cast<double>(scale) * sum);
    sums[c] = accumulate ? sums[c] + value : value;
  }
}

}  // namespace

template <class T>
void FactorMatrix<T>::pack(const T* source, std::size_t source_stride, std::size_t rows, std::size_t column,
                           std::size_t count, std::size_t first, std::size_t step, std::size_t* hint) const {
  const std::size_t end = column + count;
  auto panel = panels.begin();
  if (hint != nullptr && *hint < panels.size() && panels[*hint].begin <= column) {
    panel += static_cast<std::ptrdiff_t>(*hint);
    while (panel + 1 != panels.end() && (panel + 1)->begin <= column) ++panel;
  } else {
    panel = std::upper_bound(panels.begin(), panels.end(), column,
                             [](std::size_t at, const Panel& p) { return at < p.begin; });
    if (panel != panels.begin()) --panel;
  }
  for (; panel != panels.end() && panel->begin < end; ++panel) {
    if (hint != nullptr) *hint = static_cast<std::size_t>(panel - panels.begin());
    const std::size_t low = std::max(column, panel->begin);
    const std::size_t high = std::min(end, panel->begin + panel->depth);
    if (low >= high) continue;
    kernels<T>().gram_pack_rows({.source = source + (low - column),
                                 .stride = source_stride,
                                 .rows = rows,
                                 .columns = high - low,
                                 .packed = packed(*panel, 0),
                                 .depth = panel->depth,
                                 .column = low - panel->begin,
                                 .first = first,
                                 .step = step});
  }
}

template <class T>
void FactorMatrix<T>::pad(std::size_t examples) const {
  if (packed_rows == 0) return;
  for (const Panel& panel : panels) pad(panel, examples);
}

template <class T>
void FactorMatrix<T>::pad(const Panel& panel, std::size_t examples) const {
  const std::size_t rows = examples * rows_per_example;
  const std::size_t length = kernels<T>().vector_length;
  if (rows % length == 0) return;
  const std::size_t group = length * simd::kGramGroupVectors;
  T* const first = packed(panel, rows / group * group) + rows % group;
  for (std::size_t k = 0; k < panel.depth; ++k) std::fill_n(first + k * group, length - rows % length, T(0));
}

template <class T>
void FactorMatrix<T>::copy(const FactorMatrix& from, std::size_t begin, std::size_t end, std::size_t first,
                           std::size_t count) const {
  if (packed_rows == 0) {
    if (begin >= count) return;
    const std::size_t examples = std::min(end, count) - begin;
    std::copy_n(from.row(first + begin), examples * rows_per_example * stride, row(begin));
    return;
  }
  const std::size_t group = kernels<T>().vector_length * simd::kGramGroupVectors;
  const std::size_t rows = count * rows_per_example;
  for (std::size_t number = begin; number < end; ++number) {
    const Panel& panel = panels[number];
    // Runs of rows that lie in one group here and there: the groups of a block need not begin where its
    // examples do.
    for (std::size_t row = 0; row < rows;) {
      const std::size_t source = first * rows_per_example + row;
      const std::size_t run = std::min({rows - row, group - row % group, group - source % group});
      const T* const there = from.packed(panel, source / group * group) + source % group;
      T* const here = packed(panel, row / group * group) + row % group;
      for (std::size_t k = 0; k < panel.depth; ++k) std::copy_n(there + k * group, run, here + k * group);
      row += run;
    }
    pad(panel, count);
  }
}

template <class T>
void Factors<T>::pad(std::size_t examples) const {
  for (const Outer& outer : outer_) {
    outer.inputs.pad(examples);
    outer.cotangents.pad(examples);
  }
  rows_.pad(examples);
}

template <class T>
const FactorMatrix<T>& Factors<T>::matrix(std::size_t number) const {
  if (number == 2 * outer_.size()) return rows_;
  return number % 2 == 0 ? outer_[number / 2].inputs : outer_[number / 2].cotangents;
}

template <class T>
std::vector<typename Factors<T>::Strip> Factors<T>::strips() const {
  // Long enough for a disk, short enough for all workers to have some.
  constexpr std::size_t kStripBytes = std::size_t{1} << 20;
  std::vector<Strip> strips;
  std::size_t offset = 0;
  for (std::size_t number = 0; number < matrices(); ++number) {
    const FactorMatrix<T>& matrix = this->matrix(number);
    if (matrix.data == nullptr) continue;
    const bool packed = matrix.packed_rows != 0;
    const std::size_t units = packed ? matrix.panels.size() : capacity_;
    // Where a panel, or an example, begins.
    const auto at = [&](std::size_t unit) -> T* {
      if (!packed) return matrix.row(unit);
      if (unit < units) return matrix.packed(matrix.panels[unit], 0);
      const Panel& last = matrix.panels.back();
      return matrix.packed(last, 0) + matrix.packed_rows * last.depth;
    };
    for (std::size_t begin = 0; begin < units;) {
      std::size_t end = begin + 1;
      const auto bytes = [&] { return static_cast<std::size_t>(at(end) - at(begin)) * sizeof(T); };
      while (end < units && bytes() < kStripBytes) ++end;
      strips.push_back(
          {&matrix, begin, end, offset, std::as_writable_bytes(std::span<T>(at(begin), at(end)))});
      offset += bytes();
      begin = end;
    }
  }
  return strips;
}

template <class T>
void Factors<T>::copy(const Strip& strip, const Factors& from, std::size_t first, std::size_t count) const {
  for (std::size_t number = 0; number < matrices(); ++number) {
    if (&matrix(number) == strip.matrix) {
      strip.matrix->copy(from.matrix(number), strip.begin, strip.end, first, count);
    }
  }
}

template <class T>
Factors<T>::Factors(const Plan& plan, std::size_t capacity) : capacity_(capacity), memory_(kAlignment) {
  const std::size_t rows = plan.rows_per_example();
  const std::size_t seeds = plan.seeds_per_row();
  outer_.resize(plan.uses.size());
  for (std::size_t u = 0; u < plan.uses.size(); ++u) {
    const PlannedUse& use = plan.uses[u];
    if (use.way == Way::Materialize) continue;
    const std::size_t inputs = use.input_size();
    const std::size_t cotangents = use.cotangent_size();
    if (use.way == Way::PositionGram) {
      outer_[u].inputs = make_rows<T>(memory_, capacity, 1, 1, inputs);
      outer_[u].cotangents = make_rows<T>(memory_, capacity, rows, seeds, cotangents);
      continue;
    }
    outer_[u].inputs =
        make_matrix<T>(memory_, plan.packed, capacity, 1, 1, inputs, panels_of(0, inputs, sizeof(T)));
    outer_[u].cotangents = make_matrix<T>(memory_, plan.packed, capacity, rows, seeds, cotangents,
                                          panels_of(0, seeds * cotangents, sizeof(T)));
  }
  if (plan.row_width != 0) {
    rows_ = make_matrix<T>(memory_, plan.packed, capacity, rows, plan.round_seeds, plan.row_width,
                           row_panels(plan));
  }
}

template <class T>
FactorMatrix<T> scratch_rows(const Plan& plan, Arena& arena) {
  if (!plan.packed || plan.scratch_width == 0) return {};
  return make_rows<T>(arena, plan.tape_block, plan.rows_per_example(), 1, plan.scratch_width);
}

template <class T>
FactorSink<T>::FactorSink(const Plan& plan, const Factors<T>& factors, std::size_t first, std::size_t seed,
                          const FactorMatrix<T>& scratch)
    : plan_(plan),
      factors_(factors),
      first_(first),
      seed_(seed),
      rows_(plan.packed ? scratch : factors.rows()),
      first_row_(plan.packed ? 0 : first),
      row_seed_(plan.request.full ? seed
                : plan.packed     ? 0
                                  : seed % plan.round_seeds) {}

template <class T>
const PlannedUse& FactorSink<T>::next(bool convolution, std::size_t weight, std::size_t bias,
                                      std::size_t d_out) {
  if (ordinal_ < plan_.uses.size()) {
    const PlannedUse& use = plan_.uses[ordinal_];
    if (use.convolution == convolution && use.weight == weight && use.bias == bias && use.d_out == d_out) {
      ++ordinal_;
      return use;
    }
  }
  throw Error("kernel: parameter use number " + std::to_string(ordinal_) + " (weight " +
              std::to_string(weight) +
              ") differs from the one recorded for the first example; the module must "
              "use its parameters in the same way for every example");
}

template <class T>
void FactorSink<T>::begin(std::size_t examples) const {
  if (plan_.row_width == 0) return;
  for (std::size_t parameter = 0; parameter < plan_.columns.size(); ++parameter) {
    const std::size_t column = plan_.columns[parameter];
    if (column == kNoParameter || (plan_.packed && column >= plan_.scratch_width)) continue;
    const std::size_t end = column + plan_.parameter_sizes[parameter];
    const std::size_t line = kAlignment / sizeof(T);
    const std::size_t padded = (end + line - 1) / line * line;
    for (std::size_t e = 0; e < examples; ++e) {
      std::fill(row(e) + end, row(e) + padded, T(0));
    }
  }
}

template <class T>
void FactorSink<T>::finish(std::size_t examples) const {
  if (ordinal_ != plan_.uses.size()) {
    throw Error("kernel: " + std::to_string(ordinal_) + " parameter uses reported, " +
                std::to_string(plan_.uses.size()) +
                " for the first example; the module must use its "
                "parameters in the same way for every example");
  }
  if (!plan_.packed) return;
  if (plan_.scratch_width != 0) {
    if (!plan_.request.full) {
      factors_.rows().pack(rows_.data, rows_.stride, examples, seed_ % plan_.round_seeds * plan_.row_width,
                           plan_.scratch_width, first_, 1);
    } else if (seed_ + 1 == plan_.request.seeds) {
      // The seeds of an example are neighbours.
      factors_.rows().pack(rows_.data, rows_.stride, examples * plan_.request.seeds, 0, plan_.row_width,
                           first_ * plan_.request.seeds, 1);
    }
  }
  kernels<T>().fence_packing();
}

template <class T>
void FactorSink<T>::keep(std::size_t number, std::size_t examples, const T* inputs, const T* cotangents) {
  const auto& outer = factors_.outer(number);
  const std::size_t input_size = plan_.uses[number].input_size();
  const std::size_t cotangent_size = plan_.uses[number].cotangent_size();
  if (outer.inputs.packed_rows != 0) {
    if (seed_ == 0) outer.inputs.pack(inputs, input_size, examples, 0, input_size, first_, 1);
    const std::size_t group = plan_.rows_per_example();
    outer.cotangents.pack(cotangents, cotangent_size, examples, group == 1 ? seed_ * cotangent_size : 0,
                          cotangent_size, first_ * group + (group == 1 ? 0 : seed_), group);
    return;
  }
  for (std::size_t e = 0; e < examples; ++e) {
    // The inputs do not depend on the seed.
    if (seed_ == 0) {
      std::memcpy(outer.inputs.row(first_ + e), inputs + e * input_size, input_size * sizeof(T));
    }
    std::memcpy(outer.cotangents.at(first_ + e, seed_), cotangents + e * cotangent_size,
                cotangent_size * sizeof(T));
  }
}

template <class T>
void FactorSink<T>::pack_columns(std::size_t parameter, std::size_t first, std::size_t count, const T* source,
                                 std::size_t stride, std::size_t example, std::size_t rows,
                                 std::size_t* hint) const {
  const std::size_t column = seed_ % plan_.round_seeds * plan_.row_width + plan_.columns[parameter] + first;
  factors_.rows().pack(source, stride, rows, column, count, first_ + example, 1, hint);
}

template <class T>
void FactorSink<T>::pack_padding(std::size_t parameter, std::size_t example, std::size_t rows) const {
  constexpr std::size_t kLine = kAlignment / sizeof(T);
  constexpr T kZeros[kLine] = {};
  const std::size_t size = plan_.parameter_sizes[parameter];
  if (size % kLine != 0) {
    pack_columns(parameter, size, kLine - size % kLine, kZeros, 0, example, rows, nullptr);
  }
}

template <class T>
void FactorSink<T>::pack_dense(const DenseUse<T>& use, Arena& scratch) const {
  const std::size_t examples = use.inputs.shape()[0];
  const std::size_t positions = use.inputs.shape()[1];
  const std::size_t d_in = use.inputs.shape()[2];
  const std::size_t d_out = use.cotangents.shape()[2];
  const ArenaScope scope(scratch);
  const std::size_t stride = padded_stride(d_in * d_out, sizeof(T));
  T* const gradients = scratch.tensor<T>({kGroup, stride}).data();
  T* const biases = scratch.tensor<T>({kGroup, d_out}).data();
  for (std::size_t first = 0; first < examples; first += kGroup) {
    const std::size_t count = std::min(kGroup, examples - first);
    for (std::size_t e = 0; e < count; ++e) {
      const T* const a = use.inputs.data() + (first + e) * positions * d_in;
      const T* const b = use.cotangents.data() + (first + e) * positions * d_out;
      blas::gemm(blas::Transpose::Yes, blas::Transpose::No, d_out, d_in, positions, use.weight_scale, b,
                 d_out, a, d_in, T(0), gradients + e * stride, d_in);
      if (use.bias != kNoParameter) {
        sum_positions(b, positions, d_out, use.bias_scale, false, biases + e * d_out);
      }
    }
    pack_columns(use.weight, 0, d_in * d_out, gradients, stride, first, count, nullptr);
    pack_padding(use.weight, first, count);
    if (use.bias == kNoParameter) continue;
    pack_columns(use.bias, 0, d_out, biases, d_out, first, count, nullptr);
    pack_padding(use.bias, first, count);
  }
}

/// A part of the gradients of a few examples is packed while it is in the cache.
template <class T>
void FactorSink<T>::pack_convolution(const ConvUse<T>& use, Arena& scratch) const {
  const ConvGeometry& g = use.geometry;
  const std::size_t examples = use.inputs.shape()[0];
  const std::size_t image_size = g.in_pixels() * g.c_in;
  const std::size_t cotangent_size = g.out_pixels() * g.c_out;
  const ArenaScope scope(scratch);
  const ops::ConvWeightGradient<T> form(g, use.weight_scale, use.bias_scale, scratch);
  const std::size_t stride = padded_stride(g.weights(), sizeof(T));
  const std::size_t part_stride = padded_stride(form.part_size(), sizeof(T));
  const std::size_t framed_size = padded_stride(form.framed_size(), sizeof(T));
  T* const gradients = scratch.tensor<T>({kGroup, std::max(stride, part_stride)}).data();
  T* const biases = scratch.tensor<T>({kGroup, g.c_out}).data();
  T* const framed = scratch.tensor<T>({kGroup, framed_size}).data();
  for (std::size_t first = 0; first < examples; first += kGroup) {
    const std::size_t count = std::min(kGroup, examples - first);
    const auto image = [&](std::size_t e) { return use.inputs.data() + (first + e) * image_size; };
    const auto cotangent = [&](std::size_t e) {
      return use.cotangents.data() + (first + e) * cotangent_size;
    };
    bool in_parts = true;
    for (std::size_t e = 0; e < count && in_parts; ++e) in_parts = form.in_parts(cotangent(e));
    if (in_parts) {
      for (std::size_t e = 0; e < count; ++e) form.frame(image(e), framed + e * framed_size);
      std::size_t hint = 0;
      for (std::size_t p = 0; p < form.parts(); ++p) {
        for (std::size_t e = 0; e < count; ++e) {
          form.form_part(p, framed + e * framed_size, cotangent(e), gradients + e * part_stride);
        }
        const auto part = form.part(p);
        for (std::size_t o = 0; o < part.outer; ++o) {
          const T* source = gradients + o * part.formed_step;
          for (std::size_t i = 0; i < part.inner; ++i, source += part.length) {
            pack_columns(use.weight, part.first + o * part.outer_step + i * part.inner_step, part.length,
                         source, part_stride, first, count, &hint);
          }
        }
      }
    } else {
      for (std::size_t e = 0; e < count; ++e) {
        form(image(e), cotangent(e), false, gradients + e * stride, nullptr);
      }
      pack_columns(use.weight, 0, g.weights(), gradients, stride, first, count, nullptr);
    }
    pack_padding(use.weight, first, count);
    if (use.bias == kNoParameter) continue;
    for (std::size_t e = 0; e < count; ++e)
      form(image(e), cotangent(e), false, nullptr, biases + e * g.c_out);
    pack_columns(use.bias, 0, g.c_out, biases, g.c_out, first, count, nullptr);
    pack_padding(use.bias, first, count);
  }
}

template <class T>
void FactorSink<T>::use(const DenseUse<T>& use, Arena& scratch) {
  const std::size_t number = ordinal_;
  const std::size_t examples = use.inputs.shape()[0];
  const std::size_t positions = use.inputs.shape()[1];
  const std::size_t d_in = use.inputs.shape()[2];
  const std::size_t d_out = use.cotangents.shape()[2];
  const PlannedUse& planned = next(false, use.weight, use.bias, d_out);
  if (planned.way != Way::Materialize) {
    keep(number, examples, use.inputs.data(), use.cotangents.data());
    return;
  }
  if (at_once(planned)) return pack_dense(use, scratch);
  for (std::size_t e = 0; e < examples; ++e) {
    T* const row = this->row(e);
    const T* a = use.inputs.data() + e * positions * d_in;
    const T* b = use.cotangents.data() + e * positions * d_out;
    blas::gemm(blas::Transpose::Yes, blas::Transpose::No, d_out, d_in, positions, use.weight_scale, b, d_out,
               a, d_in, planned.weight_first ? T(0) : T(1), row + plan_.columns[use.weight], d_in);
    if (use.bias != kNoParameter) {
      sum_positions(b, positions, d_out, use.bias_scale, !planned.bias_first, row + plan_.columns[use.bias]);
    }
  }
}

template <class T>
void FactorSink<T>::use(const ConvUse<T>& use, Arena& scratch) {
  const ConvGeometry& geometry = use.geometry;
  const std::size_t number = ordinal_;
  const PlannedUse& planned = next(true, use.weight, use.bias, geometry.c_out);
  const std::size_t examples = use.inputs.shape()[0];
  if (planned.way != Way::Materialize) {
    keep(number, examples, use.inputs.data(), use.cotangents.data());
    return;
  }
  if (at_once(planned)) return pack_convolution(use, scratch);
  const std::size_t image = geometry.in_pixels() * geometry.c_in;
  const std::size_t cotangent = geometry.out_pixels() * geometry.c_out;
  const bool has_bias = use.bias != kNoParameter;
  // Weight and bias share one accumulate flag below: when they differ, the fresh one starts from zero.
  const bool accumulate = !planned.weight_first || (has_bias && !planned.bias_first);
  const ArenaScope scope(scratch);
  const ops::ConvWeightGradient<T> form(geometry, use.weight_scale, use.bias_scale, scratch);
  for (std::size_t e = 0; e < examples; ++e) {
    T* const row = this->row(e);
    T* weight = row + plan_.columns[use.weight];
    T* bias = has_bias ? row + plan_.columns[use.bias] : nullptr;
    if (accumulate && planned.weight_first) std::fill_n(weight, geometry.weights(), T(0));
    if (accumulate && has_bias && planned.bias_first) std::fill_n(bias, geometry.c_out, T(0));
    form(use.inputs.data() + e * image, use.cotangents.data() + e * cotangent, accumulate, weight, bias);
  }
}

template struct FactorMatrix<float>;
template struct FactorMatrix<double>;
template FactorMatrix<float> scratch_rows(const Plan&, Arena&);
template FactorMatrix<double> scratch_rows(const Plan&, Arena&);
template class Factors<float>;
template class Factors<double>;
template class FactorSink<float>;
template class FactorSink<double>;

}  // namespace gradgram::ntk
