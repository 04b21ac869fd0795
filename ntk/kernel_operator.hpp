#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>

#include "engine/module.hpp"
#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "ntk/kernel.hpp"
#include "ntk/plan.hpp"

/// The kernel as a map, K v, without the matrix: what Lanczos and random probes need (docs/matrix-free.md).
namespace gradgram::ntk {

/// A symmetric matrix that is known by its products alone.
class SymmetricOperator {
 public:
  virtual ~SymmetricOperator() = default;
  /// n of an n x n matrix.
  virtual std::size_t size() const = 0;
  /// products = K vectors; row i of `vectors` [m, n] is one vector, row i of `products` [m, n] becomes its
  /// product. Deterministic. Not to be called from two threads at once.
  virtual void apply(TensorView<const double> vectors, TensorView<double> products) = 0;
  /// What rounding does to a product: ||error of K v|| is about this times ||K||_2 ||v||.
  virtual double relative_error() const = 0;
};

struct OperatorOptions {
  Reduce reduce = Reduce::TraceMean;
  std::size_t output = 0;                     ///< of Reduce::Output
  std::span<const std::int32_t> labels = {};  ///< of Reduce::TrueClass; must outlive the operator
  /// Bytes for inputs, weights, gradients, tapes and what is kept of them; 0 = half of the machine's. The
  /// vectors are the caller's.
  std::size_t memory = 0;
  /// Keep recorded forward passes from one product to the next in what `memory` leaves: a product then costs
  /// the reverse and the tangent passes alone, for the blocks that fit. The bits are the same.
  bool keep_passes = false;
  std::stop_token stop = {};
};

/// The least OperatorOptions::memory that a KernelOperator of so many examples does with.
template <class T>
std::size_t least_operator_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t examples,
                                 std::size_t workers);

/// K v = J (J^T v) of a module on x [n, ...]: one reverse pass that sums over the examples, one tangent pass.
///
/// size() is n, or n * O for Reduce::Full (index i * O + k: example i, output k). A product of one vector
/// costs two forward passes, one reverse and one tangent pass over the examples, about 8 n P multiply-adds of
/// a dense network; the trace reductions need a reverse and a tangent pass for each of the O outputs, because
/// sum_k J_k J_k^T v does not factor. Forward passes are shared by the vectors of one call.
///
/// Memory: gradients and tapes of a few blocks of examples, nothing of size n^2 (planned_bytes()).
/// Precision: passes in T; J^T v is summed in T over panels of at most 1,024 examples (64 images), in f64
/// across them. Same bits for any number of workers, any memory and with or without kept passes.
template <class T>
class KernelOperator final : public SymmetricOperator {
 public:
  /// Everything referenced must outlive the operator, and the parameters must not change meanwhile. Throws
  /// ShapeError, ArgumentError, BudgetError (with the least budget that would do).
  KernelOperator(const Module<T>& module, TensorView<const T> x, const OperatorOptions& options,
                 const Workers& workers);
  ~KernelOperator() override;

  std::size_t size() const override;
  /// Throws ShapeError, ArgumentError when a vector is not finite, NumericError naming the first example
  /// whose product is not, Cancelled.
  void apply(TensorView<const double> vectors, TensorView<double> products) override;
  double relative_error() const override;
  /// For one vector; both [size()].
  void apply(std::span<const double> vector, std::span<double> product);

  /// Estimate of what the operator takes, inputs and weights included.
  std::size_t planned_bytes() const;
  /// Blocks of examples whose forward pass is kept, of blocks().
  std::size_t kept_blocks() const;
  std::size_t blocks() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gradgram::ntk
