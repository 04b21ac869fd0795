#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "engine/module.hpp"
#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "ntk/kernel.hpp"
#include "ntk/plan.hpp"

/// An approximate kernel from random projections of the per-example gradients (docs/matrix-free.md).
namespace gradgram::ntk {

struct ProjectionOptions {
  std::size_t dimension = 4096;  ///< d
  std::uint64_t seed = 0;
  Reduce reduce = Reduce::TraceMean;  ///< not Full
  std::size_t output = 0;
  std::span<const std::int32_t> labels = {};
  std::size_t memory = 0;  ///< bytes for inputs, weights, features and work; 0 = half of the machine's
  Progress progress = {};
  std::stop_token stop = {};
};

/// Gradients as short vectors whose inner products approximate the kernel.
template <class T>
struct ProjectedGradients {
  Tensor<T> features;  ///< [n, d]
  std::uint64_t seed = 0;
  std::string reduce;  ///< as reduce_name()

  /// Standard deviation of an entry over seeds, at most this times sqrt(k_ii k_jj): sqrt(2 / d).
  double standard_distortion() const;
  /// Beyond this times sqrt(k_ii k_jj) one entry strays with probability at most 5 % (Chebyshev).
  double distortion_95() const;
  /// `approximate: gradients projected to 4096 dimensions (CountSketch, seed 0), entry error at most
  /// 0.0221 sqrt(k_ii k_jj) (one standard deviation)`. Goes with every number made from the features.
  std::string label() const;
};

/// CountSketch (Charikar, Chen, Farach-Colton 2002): every component of a gradient, of every output, is added
/// with a random sign to one of d sums. Unbiased: the mean over seeds of <features_i, features_j> is k_ij;
/// its variance is at most (k_ii k_jj + k_ij^2) / d. Signs and places are a hash of (seed, output,
/// component): nothing is stored. Cost: one gradient row for each example and output; memory: at most 16 such
/// rows of P numbers for each worker, and n d. Summed in f64. Same bits for any number of workers and any
/// budget. Throws ShapeError, ArgumentError, BudgetError (with the least that would do), NumericError naming
/// the first example whose gradient is not finite, Cancelled.
template <class T>
ProjectedGradients<T> project_gradients(const Module<T>& module, TensorView<const T> x,
                                        const ProjectionOptions& options, const Workers& workers);

/// The least ProjectionOptions::memory that project_gradients() of so many examples does with.
template <class T>
std::size_t projection_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t examples,
                             const ProjectionOptions& options, std::size_t workers);

/// <features_i, features_j>, [n, n]: the approximate kernel, symmetric bit for bit. Of rank d at most, so its
/// eigenvalues beyond the d-th are zero whatever the kernel's are. Same bits for any number of workers.
/// Throws NumericError naming an entry that is not finite in T.
template <class T>
Tensor<T> approximate_kernel(const ProjectedGradients<T>& projected, const Workers& workers);
/// What it takes beside the features, its result counted.
template <class T>
std::size_t approximate_kernel_bytes(std::size_t examples, std::size_t workers);

}  // namespace gradgram::ntk
