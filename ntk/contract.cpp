#include "ntk/contract.hpp"

#include <algorithm>
#include <cstring>

#include "engine/blas.hpp"
#include "ntk/precision.hpp"

namespace gradgram::ntk {
namespace {

/// Rows of a diagonal tile that one product covers: what it computes above the diagonal is lost work.
constexpr std::size_t kStripRows = 128;

/// Rows [row, row + rows) of a tile need columns [0, columns).
struct Strip {
  std::size_t row, rows, columns;
};

std::vector<Strip> strips_of(std::size_t rows, std::size_t columns, bool diagonal) {
  if (!diagonal) return {{0, rows, columns}};
  std::vector<Strip> strips;
  for (std::size_t row = 0; row < rows; row += kStripRows) {
    const std::size_t count = std::min(kStripRows, rows - row);
    strips.push_back({row, count, row + count});
  }
  return strips;
}

/// One side of a product: `count` rows of a factor matrix.
template <class T>
struct Side {
  const T* data;
  std::size_t stride;
};

/// A product tile: in T when one panel held all columns, otherwise in f64.
template <class T>
struct Product {
  const T* narrow = nullptr;
  const double* wide = nullptr;
};

template <class T>
class Contraction {
 public:
  Contraction(std::size_t rows, std::size_t columns, bool diagonal)
      : rows_(rows), columns_(columns), strips_(strips_of(rows, columns, diagonal)) {}

  std::size_t size() const { return rows_ * columns_; }

  void zero(double* tile) const { std::fill_n(tile, size(), 0.0); }

  /// sum += a b^T over `width` columns, panel by panel through `panel`.
  void add_product(const Side<T>& a, const Side<T>& b, std::size_t width, T* panel, double* sum) const {
    for (std::size_t begin = 0; begin < width; begin += kPanelColumns) {
      multiply({a.data + begin, a.stride}, {b.data + begin, b.stride}, std::min(kPanelColumns, width - begin),
               panel);
      each([&](std::size_t i) { sum[i] += static_cast<double>(panel[i]); });
    }
  }

  /// a b^T in `narrow` when one panel holds it, otherwise in `wide`, with `narrow` as scratch.
  Product<T> product(const Side<T>& a, const Side<T>& b, std::size_t width, T* narrow, double* wide) const {
    if (width <= kPanelColumns) {
      multiply(a, b, width, narrow);
      return {narrow, nullptr};
    }
    zero(wide);
    add_product(a, b, width, narrow, wide);
    return {nullptr, wide};
  }

  /// sum += scale * x.
  void add(const Product<T>& x, double scale, double* sum) const {
    visit(x,
          [&](const auto* p) { each([&](std::size_t i) { sum[i] += scale * static_cast<double>(p[i]); }); });
  }

  /// sum += x * (scale * y + offset), entry by entry; y has one row and column per example, x has `group` of
  /// them.
  void add_hadamard(const Product<T>& x, const Product<T>& y, std::size_t group, double scale, double offset,
                    double* sum) const {
    visit(x, [&](const auto* p) {
      visit(y, [&](const auto* q) {
        if (group == 1) {
          each([&](std::size_t i) {
            sum[i] += static_cast<double>(p[i]) * (scale * static_cast<double>(q[i]) + offset);
          });
          return;
        }
        const std::size_t y_columns = columns_ / group;
        for (const Strip& strip : strips_) {
          for (std::size_t row = strip.row; row < strip.row + strip.rows; ++row) {
            const auto* y_row = q + row / group * y_columns;
            for (std::size_t column = 0; column < strip.columns; ++column) {
              const std::size_t i = row * columns_ + column;
              sum[i] +=
                  static_cast<double>(p[i]) * (scale * static_cast<double>(y_row[column / group]) + offset);
            }
          }
        }
      });
    });
  }

 private:
  void multiply(const Side<T>& a, const Side<T>& b, std::size_t width, T* out) const {
    for (const Strip& strip : strips_) {
      blas::gemm(blas::Transpose::No, blas::Transpose::Yes, strip.rows, strip.columns, width, T(1),
                 a.data + strip.row * a.stride, a.stride, b.data, b.stride, T(0), out + strip.row * columns_,
                 columns_);
    }
  }

  /// f(i) for every entry that the strips cover.
  template <class F>
  void each(F f) const {
    for (const Strip& strip : strips_) {
      for (std::size_t row = strip.row; row < strip.row + strip.rows; ++row) {
        const std::size_t end = row * columns_ + strip.columns;
        for (std::size_t i = row * columns_; i < end; ++i) f(i);
      }
    }
  }

  template <class F>
  static void visit(const Product<T>& product, F f) {
    if (product.narrow != nullptr) {
      f(product.narrow);
    } else {
      f(product.wide);
    }
  }

  std::size_t rows_, columns_;
  std::vector<Strip> strips_;
};

template <class T>
Side<T> side(const FactorMatrix<T>& matrix, std::size_t example, std::size_t column = 0) {
  return {matrix.row(example) + column, matrix.stride};
}

}  // namespace

template <class T>
void contract_tile(const Plan& plan, const Factors<T>& rows, const Factors<T>& columns,
                   const TileRange& range, Arena& scratch,
                   const std::function<void(std::size_t, const Tile&)>& emit) {
  const std::size_t group = plan.rows_per_example();
  const std::size_t seeds = plan.seeds_per_row();
  const Contraction<T> inputs(range.rows, range.columns, range.diagonal && group == 1);
  const Contraction<T> outputs(range.rows * group, range.columns * group, range.diagonal);

  const ArenaScope scope(scratch);
  double* const total = scratch.tensor<double>({outputs.size()}).data();
  double* const part = scratch.tensor<double>({outputs.size()}).data();
  double* const inputs_wide = scratch.tensor<double>({inputs.size()}).data();
  double* const outputs_wide = scratch.tensor<double>({outputs.size()}).data();
  T* const inputs_narrow = scratch.tensor<T>({inputs.size()}).data();
  T* const outputs_narrow = scratch.tensor<T>({outputs.size()}).data();
  const auto tile = [&](const double* values) {
    return Tile{values, range.rows * group, range.columns * group};
  };

  outputs.zero(total);
  const auto finish_part = [&](std::size_t parameter) {
    emit(parameter, tile(part));
    for (std::size_t i = 0; i < outputs.size(); ++i) total[i] += part[i];
  };

  // Materialized rows: one product over all parameters, or one per parameter and seed.
  if (!plan.request.per_parameter) {
    if (plan.row_width != 0) {
      outputs.add_product(side(rows.rows(), range.row), side(columns.rows(), range.column),
                          seeds * plan.row_width, outputs_narrow, total);
    }
  } else {
    for (std::size_t parameter = 0; parameter < plan.columns.size(); ++parameter) {
      if (plan.columns[parameter] == kNoParameter) continue;
      outputs.zero(part);
      for (std::size_t seed = 0; seed < seeds; ++seed) {
        const std::size_t column = seed * plan.row_width + plan.columns[parameter];
        outputs.add_product(side(rows.rows(), range.row, column), side(columns.rows(), range.column, column),
                            plan.parameter_sizes[parameter], outputs_narrow, part);
      }
      finish_part(parameter);
    }
  }

  for (std::size_t u = 0; u < plan.uses.size(); ++u) {
    const PlannedUse& use = plan.uses[u];
    if (use.way != Way::Outer) continue;
    const auto& a = rows.outer(u);
    const auto& b = columns.outer(u);
    const Product<T> in = inputs.product(side(a.inputs, range.row), side(b.inputs, range.column), use.d_in,
                                         inputs_narrow, inputs_wide);
    const Product<T> out = outputs.product(side(a.cotangents, range.row), side(b.cotangents, range.column),
                                           seeds * use.d_out, outputs_narrow, outputs_wide);
    const double weight = use.weight_scale * use.weight_scale;
    const double bias = use.bias == kNoParameter ? 0.0 : use.bias_scale * use.bias_scale;
    if (!plan.request.per_parameter) {
      outputs.add_hadamard(out, in, group, weight, bias, total);
      continue;
    }
    outputs.zero(part);
    outputs.add_hadamard(out, in, group, weight, 0.0, part);
    finish_part(use.weight);
    if (use.bias == kNoParameter) continue;
    outputs.zero(part);
    outputs.add(out, bias, part);
    finish_part(use.bias);
  }
  emit(kAllParameters, tile(total));
}

template void contract_tile(const Plan&, const Factors<float>&, const Factors<float>&, const TileRange&,
                            Arena&, const std::function<void(std::size_t, const Tile&)>&);
template void contract_tile(const Plan&, const Factors<double>&, const Factors<double>&, const TileRange&,
                            Arena&, const std::function<void(std::size_t, const Tile&)>&);

}  // namespace gradgram::ntk
