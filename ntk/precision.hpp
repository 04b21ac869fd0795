#pragma once

#include <cstddef>

#include "engine/module.hpp"
#include "engine/parallel.hpp"
#include "engine/simd/kernels.hpp"
#include "engine/tensor.hpp"

namespace gradgram::ntk {

struct KernelOptions;
struct ModuleProfile;

/// Columns of a product that are summed in T, at the most, before the sum moves to f64.
template <class T>
inline constexpr std::size_t kPanelColumns = simd::kGramDepth<T>;

/// What the error of a kernel entry in precision T stays below, in units of sqrt(k_ii k_jj): measured against
/// f64 on networks of up to kShallow weights, with a margin, not proven (docs/precision.md). It covers
/// rounding; it does not cover an input so close to a kink (ReLU, max pooling) that rounding decides which
/// side it is on.
template <class T>
double entry_error();

/// Roundings gather with depth, fastest where a layer amplifies small differences (tanh at weight variance
/// 2): beyond this many weights the error is taken to grow with the square of their number.
inline constexpr std::size_t kShallow = 8;
/// The same for the kernel of `module`, by the number of its weights (parameters that are not vectors).
template <class T>
double entry_error(const Module<T>& module);

/// What rounding to bfloat16 adds at the most (KernelOptions::bf16), in the same units. A factor is off by
/// u = 2^-8 of its length, a product of rows by 2 u + u^2, an entry of the outer way, the product of two
/// such, by (1 + u)^4 - 1 of the product of the gradients' lengths; layers add up to no more by Cauchy and
/// Schwarz.
double bf16_entry_error();

/// Differences of entries in units of sqrt(k_ii k_jj).
struct EntryErrors {
  std::size_t entries = 0;
  double worst = 0;
  double root_mean_square = 0;
};
/// Of a kernel with KernelOptions::bf16 against one without, on at most 32 x 32 evenly spaced examples of x
/// [n, ...] and, unless null, x'. Computes both parts, within KernelOptions::memory, which pays for the
/// weights and the examples chosen, not for the others. Throws as kernel() does.
template <class T>
EntryErrors sampled_bf16_errors(const Module<T>& module, TensorView<const T> x,
                                const TensorView<const T>* versus, const KernelOptions& options,
                                const Workers& workers);
/// The least KernelOptions::memory that it does with, of `rows` examples against `columns` others or, for 0,
/// with themselves.
template <class T>
std::size_t least_sampled_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t rows,
                                std::size_t columns, const KernelOptions& options, std::size_t workers);

}  // namespace gradgram::ntk
