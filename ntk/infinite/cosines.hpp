#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "engine/covariance.hpp"
#include "engine/tensor.hpp"
#include "ntk/infinite/program.hpp"
#include "ntk/infinite/tiles.hpp"

/// Dense networks of rectifiers without biases. They are homogeneous: both kernels of two inputs are the
/// product of their norms and a function of the cosine between them alone, which all layers are applied to
/// while it is in a register.
namespace gradgram::ntk::infinite {

/// Whether the program is such a network.
bool follows_cosines(const Program& program);

/// The examples of both sides, and the tiles between them.
template <class T>
class CosineVectors {
 public:
  /// Entry (row, column) of the tile's corner; null where not asked for.
  struct Output {
    T* nngp = nullptr;
    T* ntk = nullptr;
    std::size_t stride = 0;
  };

  /// Null when follows_cosines() does not hold, or entries might leave the numbers of T. `right` is null when
  /// both sides are the same; variances are the mean squares of the examples. `side` is a tile's at most.
  static std::unique_ptr<CosineVectors> make(const Program& program, TensorView<const T> left,
                                             const std::vector<double>& left_variances,
                                             const TensorView<const T>* right,
                                             const std::vector<double>& right_variances, std::size_t side,
                                             std::size_t workers);
  /// Bytes that so many examples and one worker more take.
  static std::size_t bytes_per_example(const Program& program);
  static std::size_t bytes_per_worker(std::size_t side);

  /// The entries of `part`, which lies in `tile`. Their bits depend on the tile, not on the part.
  void run(const Tile& tile, const Tile& part, std::size_t worker, const Output& out);

 private:
  struct Side {
    Tensor<T> rows;   ///< [examples, channels], each of mean square 1, or zero
    Tensor<T> roots;  ///< of the variance at the end
    std::vector<double> wide_roots;
  };
  struct Scratch {
    Tensor<T> products;
    /// Of the nearly parallel and nearly opposite pairs of a few rows, [kRows][side].
    std::vector<std::size_t> columns;
    std::vector<double> signs, versines;
    std::vector<double> roots, nngp, ntk;  ///< of one row
  };
  /// Rows that pass together: their products are still in the second-level cache, and their results in the
  /// first.
  static constexpr std::size_t kRows = 16;

  CosineVectors() = default;
  void multiply(const Tile& tile, Scratch& scratch) const;
  void follow_near(const Tile& tile, const Tile& rows, const bool* near, Scratch& scratch,
                   const Output& out) const;
  const Side& right() const noexcept { return same_ ? left_ : right_; }

  std::size_t channels_ = 0;
  bool same_ = false;
  std::size_t side_ = 0;
  Side left_, right_;
  std::vector<simd::CosineLayer<T>> layers_;
  std::vector<simd::CosineLayer<double>> wide_layers_;
  std::size_t affines_after_ = 0;
  std::vector<Scratch> scratch_;  ///< per worker
};

}  // namespace gradgram::ntk::infinite
