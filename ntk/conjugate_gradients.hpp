#pragma once

#include <cstddef>
#include <cstdint>
#include <stop_token>
#include <vector>

#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "ntk/kernel_operator.hpp"

/// Equations with a kernel whose f64 factor does not fit into memory (docs/predict.md).
namespace gradgram::ntk {

struct ConjugateGradientOptions {
  double shift = 0;         ///< solve (K + shift I) x = y, shift >= 0
  double tolerance = 1e-8;  ///< of ||y - (K + shift I) x|| / ||y||, each column
  std::size_t most_iterations = 2000;
  /// Columns of the Nystrom sketch, which costs as many products, all at once; 0: 256, or a quarter of n when
  /// that is less. 1 is the smallest.
  std::size_t rank = 0;
  std::uint64_t seed = 0;  ///< of the sketch
  Progress progress = {};  ///< iterations of the most
  std::stop_token stop = {};
};

struct ConjugateGradientResult {
  Tensor<double> solution;        ///< [n, C]
  std::vector<double> residuals;  ///< ||y - (K + shift I) x|| / ||y|| of each column, from a last product
  std::vector<std::size_t> iterations;  ///< of each column
  std::size_t rank = 0;                 ///< of the preconditioner
  std::size_t products = 0;             ///< of K with a vector, the sketch's included
  /// The largest eigenvalue of the sketch, below the largest of K.
  double largest_eigenvalue = 0;
};

/// x = (K + shift I)^-1 y, y [n, C], by conjugate gradients, preconditioned with a randomized Nystrom
/// approximation K ~ U D U^T (Frangella, Tropp, Udell 2021, algorithms 2.1 and 5.1):
/// P^-1 = (d_r + shift) U (D + shift)^-1 U^T + (I - U U^T). The columns share products, but have their own
/// step sizes. The residual is taken anew where the recursion's has converged, and the iteration goes on from
/// there when they differ.
///
/// Memory: (rank + 5 C) n numbers besides the operator. Time per iteration: a product, and 4 rank n
/// multiply-adds a column. Deterministic. Throws ShapeError, ArgumentError, NumericError when a direction
/// shows that K + shift I is not positive definite, or when most_iterations do not reach the tolerance
/// (naming the residual reached and the ridge that would help), Cancelled, and what the operator throws.
ConjugateGradientResult conjugate_gradients(SymmetricOperator& kernel, TensorView<const double> y,
                                            const ConjugateGradientOptions& options = {});

}  // namespace gradgram::ntk
