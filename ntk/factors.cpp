#include "ntk/factors.hpp"

#include <algorithm>
#include <cstring>

#include "engine/blas.hpp"
#include "engine/ops/conv2d.hpp"

namespace gradgram::ntk {
namespace {

template <class T>
FactorMatrix<T> make_matrix(Arena& memory, std::size_t examples, std::size_t rows_per_example,
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
Factors<T>::Factors(const Plan& plan, std::size_t capacity) : memory_(kAlignment) {
  const std::size_t rows = plan.rows_per_example();
  const std::size_t seeds = plan.seeds_per_row();
  outer_.resize(plan.uses.size());
  for (std::size_t u = 0; u < plan.uses.size(); ++u) {
    const PlannedUse& use = plan.uses[u];
    if (use.way == Way::Materialize) continue;
    outer_[u].inputs = make_matrix<T>(memory_, capacity, 1, 1, use.input_size());
    outer_[u].cotangents = make_matrix<T>(memory_, capacity, rows, seeds, use.cotangent_size());
  }
  if (plan.row_width != 0) rows_ = make_matrix<T>(memory_, capacity, rows, seeds, plan.row_width);
}

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
  const FactorMatrix<T>& rows = factors_.rows();
  for (std::size_t parameter = 0; parameter < plan_.columns.size(); ++parameter) {
    const std::size_t column = plan_.columns[parameter];
    if (column == kNoParameter) continue;
    const std::size_t end = column + plan_.parameter_sizes[parameter];
    const std::size_t line = kAlignment / sizeof(T);
    const std::size_t padded = (end + line - 1) / line * line;
    for (std::size_t e = 0; e < examples; ++e) {
      T* row = rows.at(first_ + e, seed_);
      std::fill(row + end, row + padded, T(0));
    }
  }
}

template <class T>
void FactorSink<T>::finish() const {
  if (ordinal_ != plan_.uses.size()) {
    throw Error("kernel: " + std::to_string(ordinal_) + " parameter uses reported, " +
                std::to_string(plan_.uses.size()) +
                " for the first example; the module must use its "
                "parameters in the same way for every example");
  }
}

template <class T>
void FactorSink<T>::keep(std::size_t number, std::size_t examples, const T* inputs, const T* cotangents) {
  const auto& outer = factors_.outer(number);
  const std::size_t input_size = plan_.uses[number].input_size();
  const std::size_t cotangent_size = plan_.uses[number].cotangent_size();
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
void FactorSink<T>::use(const DenseUse<T>& use, Arena&) {
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
  for (std::size_t e = 0; e < examples; ++e) {
    T* row = factors_.rows().at(first_ + e, seed_);
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
  const std::size_t image = geometry.in_pixels() * geometry.c_in;
  const std::size_t cotangent = geometry.out_pixels() * geometry.c_out;
  const bool has_bias = use.bias != kNoParameter;
  // Weight and bias share one accumulate flag below: when they differ, the fresh one starts from zero.
  const bool accumulate = !planned.weight_first || (has_bias && !planned.bias_first);
  const ArenaScope scope(scratch);
  const ops::ConvWeightGradient<T> form(geometry, use.weight_scale, use.bias_scale, scratch);
  for (std::size_t e = 0; e < examples; ++e) {
    T* row = factors_.rows().at(first_ + e, seed_);
    T* weight = row + plan_.columns[use.weight];
    T* bias = has_bias ? row + plan_.columns[use.bias] : nullptr;
    if (accumulate && planned.weight_first) std::fill_n(weight, geometry.weights(), T(0));
    if (accumulate && has_bias && planned.bias_first) std::fill_n(bias, geometry.c_out, T(0));
    form(use.inputs.data() + e * image, use.cotangents.data() + e * cotangent, accumulate, weight, bias);
  }
}

template class Factors<float>;
template class Factors<double>;
template class FactorSink<float>;
template class FactorSink<double>;

}  // namespace gradgram::ntk
