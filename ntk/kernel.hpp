#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/module.hpp"
#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "ntk/spill.hpp"
#include "ntk/way.hpp"

namespace gradgram::ntk {

/// What becomes of the O x O block J(x) J(x')^T. Never chosen silently: every result names it.
enum class Reduce {
  Full,       ///< (n, n', O, O)
  TraceMean,  ///< (1/O) sum_k K_kk (neural-tangents' default)
  TraceSum,   ///< sum_k K_kk
  Output,     ///< K_kk of one output k
  TrueClass,  ///< gradient of softmax_y(f), y the example's label: one scalar per example
};
std::string reduce_name(Reduce reduce,
                        std::size_t output);  // `full`, `trace-mean`, `trace-sum`, `output 3`, `true-class`

struct KernelRates;
struct Plan;

/// What a run of kernel() took, in seconds: measured against what its plan said (ntk/cost.hpp).
struct KernelTimings {
  double passes = 0;  ///< of all workers together: forward and reverse passes, forming gradients included
  double contraction = 0;  ///< of all workers together: tiles
  double writing = 0;      ///< spilled factors, from begin to end
  double reading = 0;      ///< the same, all times together: waiting for them, after what was fetched ahead
  std::size_t spilled_bytes = 0;
  double wall = 0;  ///< from the first pass to the last tile
};

struct KernelOptions {
  Reduce reduce = Reduce::TraceMean;
  std::size_t output = 0;                       ///< of Reduce::Output
  std::span<const std::int32_t> labels;         ///< of Reduce::TrueClass, for x
  std::span<const std::int32_t> versus_labels;  ///< of Reduce::TrueClass, for x'
  bool per_parameter = false;                   ///< also one kernel for each parameter tensor
  /// f32 alone: the factors of products of rows (materialized gradients, inputs and cotangents of outer uses)
  /// are rounded to bfloat16, their products summed in f32 over at most 2048 and in f64 beyond; position
  /// Grams stay in f32. The entry error grows by bf16_entry_error() (ntk/precision.hpp). ArgumentError on
  /// processors without such products. diagonal() has no such products and is the same without.
  bool bf16 = false;
  /// Ways to contract that are not left to the plan's prices: name of a weight tensor and its way. Throws
  /// ArgumentError where one cannot be. Not for diagonal().
  std::vector<std::pair<std::string, Way>> ways;
  const KernelRates* rates = nullptr;  ///< that the plan reckons with; null: the built-in ones
  KernelTimings* timings = nullptr;    ///< filled when given
  /// Sees the plan (ntk/plan.hpp) before the work; what it throws ends the call.
  std::function<void(const Plan&)> planned;
  std::size_t memory =
      0;  ///< bytes that data, weights, result and working memory may take; 0 = half of the machine's
  /// Whether gradients that do not fit may wait in a scratch file instead of being computed again; the bits
  /// are the same. The file has no name and is gone when the call ends. The program says Auto; a library
  /// touches no disk that it was not told of. Not for diagonal().
  Spill spill = Spill::Never;
  std::filesystem::path scratch;  ///< folder of that file; empty: default_scratch_folder()
  /// Hears, in a sentence, when the disk failed or was full: what it does not hold is computed again.
  std::function<void(const std::string&)> notice;
  /// Told once the scratch file is open, after every block of factors that goes there or comes back, and when
  /// the disk refuses one, between the pieces of `progress`.
  std::function<void(const SpillWork&)> spilling;
  Progress progress;
  std::stop_token stop;
};

/// A kernel and what it takes to name it. Symmetric bit for bit when x' = x.
template <class T>
struct KernelMatrix {
  Tensor<T> values;                          ///< [n, n'], or [n, n', O, O] for Reduce::Full
  std::vector<std::string> parameter_names;  ///< with per_parameter
  std::vector<Tensor<T>> per_parameter;      ///< each like `values`
  std::size_t block_examples = 0;            ///< examples whose gradients were held at once
  std::size_t planned_bytes = 0;             ///< what the plan takes, inputs, weights and result included
  /// How each weight was contracted: KernelOptions::ways that give the same bits within any budget.
  std::vector<std::pair<std::string, Way>> ways;
};

/// The empirical NTK of `module` on x [n, ...]: K(x_i, x_j) = J(x_i) J(x_j)^T, reduced.
/// Dense uses are contracted as (A A^T) o (B B^T), convolutions from per-example gradients, both in blocks of
/// examples so that memory stays within the budget; products in T, summed in f64 across panels of at most
/// 384 and across layers. Error of one entry: entry_error<T>() (ntk/precision.hpp) relative to sqrt(k_ii
/// k_jj); docs/precision.md. Throws ShapeError, ArgumentError, BudgetError (with the least budget that would
/// do), NumericError when an entry is not finite, Cancelled. Same bits for any number of workers.
template <class T>
KernelMatrix<T> kernel(const Module<T>& module, TensorView<const T> x, const KernelOptions& options,
                       const Workers& workers);
/// The rectangular block K(x, x').
template <class T>
KernelMatrix<T> kernel(const Module<T>& module, TensorView<const T> x, TensorView<const T> versus,
                       const KernelOptions& options, const Workers& workers);

/// diag K alone, [n] (for Full: [n, O, O]), without the matrix: about one forward and one reverse pass per
/// output.
template <class T>
Tensor<double> diagonal(const Module<T>& module, TensorView<const T> x, const KernelOptions& options,
                        const Workers& workers);

}  // namespace gradgram::ntk
