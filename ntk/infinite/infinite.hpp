#pragma once

#include <cstddef>
#include <memory>
#include <stop_token>

#include "engine/error.hpp"
#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "models/model.hpp"
#include "models/network.hpp"

namespace gradgram::ntk {

/// A model has no infinite-width limit that is known here; the message names the layer and why. A network of
/// the model may exist all the same.
class NoInfiniteLimit : public ArgumentError {
 public:
  using ArgumentError::ArgumentError;
};

struct InfiniteOptions {
  bool nngp = false;       ///< the covariance of one output feature: the Gaussian process at initialization
  bool ntk = true;         ///< the tangent kernel of one output feature (any two features: zero)
  std::size_t memory = 0;  ///< bytes that everything may take; 0 = half of the machine's
  Progress progress;
  std::stop_token stop;
};

/// What an entry of infinite_kernel() is good to, relative to sqrt(k_ii k_jj): docs/infinite.md tells what it
/// was measured on.
template <class T>
constexpr double infinite_entry_error() {
  return sizeof(T) == sizeof(float) ? 1e-5 : 1e-10;
}

/// Those asked for; the other is empty.
template <class T>
struct InfiniteKernels {
  Tensor<T> nngp;  ///< [n, n']
  Tensor<T> ntk;   ///< [n, n']
};

/// The kernels that `model` tends to as all its widths grow, in the NTK parameterization with the variances
/// of `options` (weight_variance, bias_variance; the parameterization and seed named there are not read) or
/// those that a layer gives itself. x: [n, ...input]. Symmetric bit for bit; zero inputs give zeros
/// where there are no biases. The same bits for any number of workers.
///
/// Cost per pair: one entry per layer (vectors), per layer and pixel (images whose head is flatten) or per
/// layer and pair of pixels (images with average pooling). Precision: f64 1e-10, f32 1e-5 relative to
/// sqrt(k_ii k_jj) (docs/infinite.md names the exceptions); f32 models that pool between nonlinearities, have
/// one of erf, gelu, sin and cos, a normalization, any smooth one before one with a kink, a monomial of
/// degree 2 or more, or tanh, sigmoid or softplus of large variances run in f64 inside, and so do pairs of
/// images of which many pixels are parallel or opposite. Throws NoInfiniteLimit
/// naming the layer that has no such limit and why, ArgumentError for weights and biases of a layer out of
/// range, ShapeError, BudgetError, NumericError when an input, variance or entry is not finite, when an input
/// is too small to be squared, when a steep function behind another one, or between pixels, sees variances
/// that leave nothing of its derivative, or when variances of two examples are so far apart that their entry
/// has not that precision (never in networks of rectifiers without biases), Cancelled.
template <class T>
InfiniteKernels<T> infinite_kernel(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, const InfiniteOptions& what,
                                   const Workers& workers);
/// The rectangular block between x and x'.
template <class T>
InfiniteKernels<T> infinite_kernel(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, TensorView<const T> versus,
                                   const InfiniteOptions& what, const Workers& workers);

/// What infinite_kernel() takes: of `rows` examples and `columns` others, or, for 0, with themselves; the
/// matrices counted, x and x' not. With `matrices` false, what InfiniteKernel takes. Throws ArgumentError as
/// infinite_kernel() does.
template <class T>
std::size_t infinite_kernel_bytes(const models::Model& model, const models::NetworkOptions& options,
                                  std::size_t rows, std::size_t columns, const InfiniteOptions& what,
                                  std::size_t workers, bool matrices = true);

struct IndexRange {
  std::size_t begin = 0, end = 0;
  bool holds(std::size_t i) const noexcept { return i >= begin && i < end; }
};

/// Where a block of entries goes; null for a kernel that was not asked for.
template <class T>
struct InfiniteBlock {
  T* nngp = nullptr;
  T* ntk = nullptr;
  std::size_t stride = 0;  ///< between rows, in elements; at least the number of columns asked for
};

/// The same kernels, block by block: what belongs to one example is computed once, here, and any block of
/// entries follows from it.
///
///     InfiniteKernel<float> kernel(model, options, x, what, workers);         // or (model, options, x, x',
///     ...) kernel.block({0, 512}, {1024, 1536}, {.ntk = tile, .stride = 512});
///
/// An entry has the same bits in whatever block it is asked for, and the bits that infinite_kernel gives it;
/// of a symmetric matrix, entries (i, j) and (j, i) are one. Vectors are computed in tiles of 256 x 256,
/// images with flatten of 8 x 32: blocks on that grid compute nothing twice. InfiniteOptions::memory bounds
/// what is held here, without the matrix; its progress is not read. `workers` must outlive the object; x may
/// go. The same exceptions as infinite_kernel: those of the inputs at construction.
template <class T>
class InfiniteKernel {
 public:
  InfiniteKernel(const models::Model& model, const models::NetworkOptions& options, TensorView<const T> x,
                 const InfiniteOptions& what, const Workers& workers);
  InfiniteKernel(const models::Model& model, const models::NetworkOptions& options, TensorView<const T> x,
                 TensorView<const T> versus, const InfiniteOptions& what, const Workers& workers);
  InfiniteKernel(InfiniteKernel&&) noexcept;
  InfiniteKernel& operator=(InfiniteKernel&&) noexcept;
  ~InfiniteKernel();

  std::size_t rows() const noexcept;
  std::size_t columns() const noexcept;
  /// Whether both sides are the same examples.
  bool symmetric() const noexcept;
  /// Fills entries [rows) x [columns) with all workers; one call at a time. Throws ArgumentError for a range
  /// beyond the matrix, NumericError for an entry that is not finite, Cancelled.
  void block(IndexRange rows, IndexRange columns, const InfiniteBlock<T>& out, const Progress& progress = {});

  struct Implementation;

 private:
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace gradgram::ntk
