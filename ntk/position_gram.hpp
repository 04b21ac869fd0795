#pragma once

#include <cstddef>

#include "engine/arena.hpp"
#include "engine/convolution.hpp"

namespace gradgram::ntk {

/// Examples of the columns that are contracted at once: a position's row of them is a whole group of every
/// instruction set's packing.
template <class T>
inline constexpr std::size_t kPositionColumns = 192 / sizeof(T);

/// Uses of a weight at many positions, against each other without their gradients: with X_ij(u, v) the
/// product of pixel u of input i and pixel v of input j over the channels, and C_ij(p, q) that of the output
/// cotangents,
///     K_ij = sum_{p, q} C_ij(p, q) (w^2 sum_t X_ij(p + t, q + t) + b^2),
/// t over the window's taps. The sum over taps is separable: rows first, then columns.
/// L_in^2 c_in + L_out^2 c_out multiply-adds a pair, and some 2 (kernel_h + kernel_w) L_in^2 additions in
/// f64.
template <class T>
class PositionGram {
 public:
  /// `geometry` of the use; a dense layer at L positions is a 1 x 1 convolution of 1 x L pixels.
  explicit PositionGram(const ConvGeometry& geometry) : geometry_(geometry) {}

  /// One side: of every example (and seed) a block of [pixels, channels].
  struct Side {
    const T* inputs = nullptr;  ///< [examples][in_pixels, c_in], `input_stride` from example to example
    std::size_t input_stride = 0;
    const T* cotangents = nullptr;  ///< [examples * group][seeds][out_pixels, c_out]
    std::size_t cotangent_stride = 0;
    std::size_t examples = 0;
  };

  /// Where the result goes: with tap products and without, both of [rows * group, columns * group].
  struct Result {
    double* weight;  ///< += sum_{p, q} C(p, q) sum_t X(p + t, q + t)
    double* bias;    ///< += sum_{p, q} C(p, q); may be null
    std::size_t stride;
  };

  /// Every entry has the same bits wherever it stands in a tile, and K_ij those of K_ji. `group` rows stand
  /// for an example, `seeds` cotangents side by side are summed over. With `lower` only the columns of an
  /// example up to the row's own are wanted.
  void contract(const Side& rows, const Side& columns, std::size_t group, std::size_t seeds, bool lower,
                const Result& result, Arena& scratch) const;

  /// What contract() takes from the arena.
  static std::size_t scratch_bytes(const ConvGeometry& geometry, std::size_t group, std::size_t seeds);

 private:
  void sum_taps(const double* products, double* shifted, double* taps) const;

  ConvGeometry geometry_;
};

}  // namespace gradgram::ntk
