#include "ntk/contract.hpp"

#include <algorithm>
#include <cstdint>

#include "engine/bf16.hpp"
#include "engine/cpu.hpp"
#include "ntk/position_gram.hpp"

namespace gradgram::ntk {
namespace {

/// One side of a product: some rows of a factor matrix.
template <class T>
struct Side {
  const FactorMatrix<T>& matrix;
  std::size_t row;  ///< the first
};

/// Where the sides of a product are packed that are not yet, for all products of a tile in turn.
template <class T>
struct Packed {
  T* rows;
  T* columns;
  std::byte* scratch;  ///< KernelTable::gram_scratch_bytes()
};

/// Rows from the beginning of the group that holds the first: whatever is packed begins there.
struct Extent {
  std::size_t lead = 0;   ///< rows before the first that is wanted
  std::size_t count = 0;  ///< those included
};

template <class T>
Extent extent(const Plan& plan, std::size_t row, std::size_t count) {
  const std::size_t lead = plan.packed ? row % simd::kGramPadding<T> : 0;
  return {lead, lead + count};
}

/// The tiles of one shape: f64, every row padded, with room for padding rows.
template <class T>
class Contraction {
 public:
  /// `lower`: both sides are the same rows, and entries above the diagonal are not wanted.
  /// `bf16`: products of factors rounded to bfloat16, of rows that are not packed; or null.
  Contraction(Extent rows, Extent columns, bool lower, const simd::Bf16Kernels* bf16)
      : rows_(rows),
        columns_(columns),
        stride_(gram_padded(columns.count, sizeof(T))),
        lower_(lower),
        bf16_(bf16) {}

  /// Those of a product.
  std::size_t rows() const { return rows_.count; }
  std::size_t size() const { return gram_padded(rows_.count, sizeof(T)) * stride_; }
  std::size_t stride() const { return stride_; }
  /// What is wanted of it.
  Tile tile(const double* values) const {
    return {values + first(), rows_.count - rows_.lead, columns_.count - columns_.lead, stride_};
  }
  /// The first entry that is wanted.
  std::size_t first() const { return rows_.lead * stride_ + columns_.lead; }

  void zero(double* tile) const { std::fill_n(tile, size(), 0.0); }

  /// sum (+)= a b^T over the panels of columns [begin, begin + width).
  void multiply(const Side<T>& a, const Side<T>& b, std::size_t begin, std::size_t width, bool accumulate,
                const Packed<T>& packed, double* sum) const {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (bf16_ != nullptr) return multiply_rounded(a, b, begin, width, accumulate, packed, sum);
    }
    const simd::KernelTable<T>& table = kernels<T>();
    const auto side = [&](const Side<T>& from, const Panel& panel, const Extent& extent, T* room) {
      const FactorMatrix<T>& matrix = from.matrix;
      if (matrix.packed_rows != 0) return matrix.packed(panel, from.row - extent.lead);
      table.gram_pack(matrix.data + from.row * matrix.stride + panel.begin, matrix.stride, extent.count,
                      panel.depth, room);
      return room;
    };
    const std::vector<Panel>& panels = a.matrix.panels;
    const auto from = [&](std::size_t column) {
      return std::lower_bound(panels.begin(), panels.end(), column,
                              [](const Panel& panel, std::size_t at) { return panel.begin < at; });
    };
    const auto last = from(begin + width);
    const auto next = [&](const Side<T>& side, auto panel, const Extent& extent) -> const T* {
      if (side.matrix.packed_rows == 0 || panel == last) return nullptr;
      return side.matrix.packed(*panel, side.row - extent.lead);
    };
    for (auto panel = from(begin); panel != last; ++panel) {
      const T* const rows = side(a, *panel, rows_, packed.rows);
      table.gram_product({.rows = rows,
                          .columns = lower_ ? rows : side(b, *panel, columns_, packed.columns),
                          .depth = panel->depth,
                          .row_count = rows_.count,
                          .column_count = columns_.count,
                          .sum = sum,
                          .sum_stride = stride_,
                          .lower = lower_,
                          .accumulate = accumulate,
                          .next_rows = next(a, panel + 1, rows_),
                          .next_columns = lower_ ? nullptr : next(b, panel + 1, columns_),
                          .scratch = packed.scratch});
      accumulate = true;
    }
  }

  /// sum += scale * x.
  void add(const double* x, double scale, double* sum) const {
    each_row([&](std::size_t row, std::size_t columns) {
      const double* const from = x + first() + row * stride_;
      double* const to = sum + first() + row * stride_;
      for (std::size_t column = 0; column < columns; ++column) to[column] += scale * from[column];
    });
  }

  /// sum += x * (scale * y + offset), entry by entry; y has one row and column per example, x has `group` of
  /// them.
  void add_hadamard(const double* x, const Contraction& y_shape, const double* y, std::size_t group,
                    double scale, double offset, double* sum) const {
    each_row([&](std::size_t row, std::size_t columns) {
      const double* const p = x + first() + row * stride_;
      const double* const q = y + y_shape.first() + row / group * y_shape.stride_;
      double* const to = sum + first() + row * stride_;
      if (group == 1) {
        for (std::size_t column = 0; column < columns; ++column) {
          to[column] += p[column] * (scale * q[column] + offset);
        }
        return;
      }
      for (std::size_t first = 0; first < columns; first += group) {
        const double factor = scale * q[first / group] + offset;
        const std::size_t end = std::min(first + group, columns);
        for (std::size_t column = first; column < end; ++column) to[column] += p[column] * factor;
      }
    });
  }

 private:
  /// Panels of equal depth, cut by the width alone.
  void multiply_rounded(const Side<T>& a, const Side<T>& b, std::size_t begin, std::size_t width,
                        bool accumulate, const Packed<T>& packed, double* sum) const {
    auto* const rows = reinterpret_cast<std::uint16_t*>(packed.rows);
    auto* const columns = reinterpret_cast<std::uint16_t*>(packed.columns);
    const std::size_t panels = (width + simd::kBf16Depth - 1) / simd::kBf16Depth;
    const std::size_t even = (width + panels - 1) / panels;
    const std::size_t step = (even + simd::kBf16Block - 1) / simd::kBf16Block * simd::kBf16Block;
    const auto from = [&](const Side<T>& side) {
      return side.matrix.data + side.row * side.matrix.stride + begin;
    };
    for (std::size_t at = 0; at < width; at += step) {
      const std::size_t depth = std::min(step, width - at);
      bf16_->pack_rows(from(a) + at, a.matrix.stride, rows_.count, depth, rows);
      bf16_->pack_columns(from(b) + at, b.matrix.stride, columns_.count, depth, columns);
      bf16_->product({.rows = rows,
                      .columns = columns,
                      .depth = depth,
                      .row_count = rows_.count,
                      .column_count = columns_.count,
                      .sum = sum,
                      .sum_stride = stride_,
                      .lower = lower_,
                      .accumulate = accumulate || at > 0});
    }
  }

  /// f(row, columns of it), of those that are wanted.
  template <class F>
  void each_row(F f) const {
    const std::size_t columns = columns_.count - columns_.lead;
    for (std::size_t row = 0; row + rows_.lead < rows_.count; ++row) f(row, lower_ ? row + 1 : columns);
  }

  Extent rows_, columns_;
  std::size_t stride_;
  bool lower_;
  const simd::Bf16Kernels* bf16_;
};

template <class T>
Side<T> side(const FactorMatrix<T>& matrix, std::size_t example) {
  return {matrix, example * matrix.rows_per_example};
}

}  // namespace

template <class T>
std::size_t tile_sums(const Plan& plan, const TileRange& range) {
  const std::size_t group = plan.rows_per_example();
  return Contraction<T>(extent<T>(plan, range.row * group, range.rows * group),
                        extent<T>(plan, range.column * group, range.columns * group), range.diagonal, nullptr)
      .size();
}

template <class T>
void contract_tile(const Plan& plan, const Factors<T>& rows, const Factors<T>& columns,
                   const TileRange& range, Arena& scratch,
                   const std::function<void(std::size_t, const Tile&)>& emit, const TileRound& round) {
  const std::size_t group = plan.rows_per_example();
  const std::size_t seeds = plan.seeds_per_row();
  const simd::Bf16Kernels* const bf16 = plan.request.bf16 ? bf16_kernels() : nullptr;
  const Contraction<T> inputs(extent<T>(plan, range.row, range.rows),
                              extent<T>(plan, range.column, range.columns), range.diagonal && group == 1,
                              bf16);
  const Contraction<T> outputs(extent<T>(plan, range.row * group, range.rows * group),
                               extent<T>(plan, range.column * group, range.columns * group), range.diagonal,
                               bf16);

  const ArenaScope scope(scratch);
  const auto room = [&](const Contraction<T>& shape) {
    return scratch.tensor<double>({shape.size()}).data();
  };
  const bool factored = plan.has(Way::Outer) || plan.has(Way::PositionGram);
  const std::size_t rounds = plan.rounds();
  const std::size_t held = std::min(plan.round_seeds, seeds - round.number * plan.round_seeds);
  double* const total = round.sums != nullptr ? round.sums : room(outputs);
  double* const part = plan.request.per_parameter ? room(outputs) : nullptr;
  // Products of inputs and of cotangents; of a position Gram its sums with taps and without.
  double* const in = plan.has(Way::Outer) ? room(inputs) : nullptr;
  double* const out = factored ? room(outputs) : nullptr;
  double* const taps = plan.has(Way::PositionGram) ? room(outputs) : nullptr;
  const auto pack = [&](std::size_t examples) {
    const std::size_t depth = bf16 != nullptr ? simd::kBf16Depth / 2 : simd::kGramDepth<T>;
    return scratch.tensor<T>({gram_padded(examples * group, sizeof(T)), depth}).data();
  };
  const bool one_side = range.diagonal && group == 1 && bf16 == nullptr;
  const auto product_scratch = [&]() -> std::byte* {
    if (bf16 != nullptr) return nullptr;
    // Rows of inputs may begin later in their group than those of outputs in theirs.
    const std::size_t bytes = kernels<T>().gram_scratch_bytes(std::max(inputs.rows(), outputs.rows()));
    return bytes == 0 ? nullptr : static_cast<std::byte*>(scratch.allocate(bytes));
  };
  const Packed<T> packed{plan.packed ? nullptr : pack(range.rows),
                         plan.packed || one_side ? nullptr : pack(range.columns), product_scratch()};

  if (round.number == 0) outputs.zero(total);
  const auto finish_part = [&](std::size_t parameter) {
    emit(parameter, outputs.tile(part));
    outputs.add(part, 1.0, total);
  };

  // Materialized rows: one product over all parameters, or one per parameter and seed.
  if (!plan.request.per_parameter) {
    if (plan.row_width != 0) {
      outputs.multiply(side(rows.rows(), range.row), side(columns.rows(), range.column), 0,
                       held * plan.row_width, round.number > 0, packed, total);
    }
  } else {
    for (std::size_t parameter = 0; parameter < plan.columns.size(); ++parameter) {
      if (plan.columns[parameter] == kNoParameter) continue;
      for (std::size_t seed = 0; seed < seeds; ++seed) {
        const std::size_t column = seed * plan.row_width + plan.columns[parameter];
        outputs.multiply(side(rows.rows(), range.row), side(columns.rows(), range.column), column,
                         plan.parameter_sizes[parameter], seed > 0, packed, part);
      }
      finish_part(parameter);
    }
  }

  if (round.number + 1 < rounds) return;

  for (std::size_t u = 0; u < plan.uses.size(); ++u) {
    const PlannedUse& use = plan.uses[u];
    if (use.way == Way::Materialize) continue;
    const auto& a = rows.outer(u);
    const auto& b = columns.outer(u);
    const double weight = use.weight_scale * use.weight_scale;
    const double bias = use.bias == kNoParameter ? 0.0 : use.bias_scale * use.bias_scale;
    if (use.way == Way::PositionGram) {
      outputs.zero(taps);
      outputs.zero(out);
      const auto side_of = [](const auto& factors, std::size_t example, std::size_t count) {
        return
            typename PositionGram<T>::Side{factors.inputs.row(example), factors.inputs.stride,
                                           factors.cotangents.row(example), factors.cotangents.stride, count};
      };
      PositionGram<T>(use.position_geometry(), group, seeds)
          .contract(side_of(a, range.row, range.rows), side_of(b, range.column, range.columns),
                    range.diagonal, {taps + outputs.first(), out + outputs.first(), outputs.stride()},
                    scratch);
      if (!plan.request.per_parameter) {
        outputs.add(taps, weight, total);
        if (use.bias != kNoParameter) outputs.add(out, bias, total);
        continue;
      }
      outputs.zero(part);
      outputs.add(taps, weight, part);
      finish_part(use.weight);
      if (use.bias == kNoParameter) continue;
      outputs.zero(part);
      outputs.add(out, bias, part);
      finish_part(use.bias);
      continue;
    }
    inputs.multiply(side(a.inputs, range.row), side(b.inputs, range.column), 0, use.d_in, false, packed, in);
    outputs.multiply(side(a.cotangents, range.row), side(b.cotangents, range.column), 0, seeds * use.d_out,
                     false, packed, out);
    if (!plan.request.per_parameter) {
      outputs.add_hadamard(out, inputs, in, group, weight, bias, total);
      continue;
    }
    outputs.zero(part);
    outputs.add_hadamard(out, inputs, in, group, weight, 0.0, part);
    finish_part(use.weight);
    if (use.bias == kNoParameter) continue;
    outputs.zero(part);
    outputs.add(out, bias, part);
    finish_part(use.bias);
  }
  emit(kAllParameters, outputs.tile(total));
}

template std::size_t tile_sums<float>(const Plan&, const TileRange&);
template std::size_t tile_sums<double>(const Plan&, const TileRange&);
template void contract_tile(const Plan&, const Factors<float>&, const Factors<float>&, const TileRange&,
                            Arena&, const std::function<void(std::size_t, const Tile&)>&, const TileRound&);
template void contract_tile(const Plan&, const Factors<double>&, const Factors<double>&, const TileRange&,
                            Arena&, const std::function<void(std::size_t, const Tile&)>&, const TileRound&);

}  // namespace gradgram::ntk
