#pragma once

#include <cstddef>
#include <vector>

#include "engine/arena.hpp"
#include "engine/convolution.hpp"

namespace gradgram::ntk {

/// Uses of a weight at many positions, against each other without their gradients: with X_ij(u, v) the
/// product of pixel u of input i and pixel v of input j over the channels, and C_ij(p, q) that of the output
/// cotangents,
///     K_ij = sum_{p, q} C_ij(p, q) (w^2 sum_t X_ij(s p + t, s q + t) + b^2),
/// t over the window's taps, s the stride. With a stride only pixels whose distance is a multiple of it ever
/// meet: the input falls into residue classes, each with its own taps and stride 1, and X is formed within
/// the classes alone. Per pair sum over classes of L_class^2 c_in, plus L_out^2 c_out for every seed,
/// multiply-adds, and some (2 + kernel_h + kernel_w) L_out^2 additions of registers for every class. Products
/// and sums over taps in T, sums over distances q - p in f64 (simd::PositionSums).
template <class T>
class PositionGram {
 public:
  /// `geometry` of the use; a dense layer at L positions is a 1 x 1 convolution of 1 x L pixels. `group` rows
  /// stand for an example, `seeds` cotangents side by side are summed over.
  PositionGram(const ConvGeometry& geometry, std::size_t group, std::size_t seeds);

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

  /// Every entry has the same bits wherever it stands in a tile, and K_ij those of K_ji. With `lower` only
  /// the columns of an example up to the row's own are wanted.
  void contract(const Side& rows, const Side& columns, bool lower, const Result& result,
                Arena& scratch) const;

  /// What contract() takes from the arena.
  std::size_t scratch_bytes() const;
  /// Multiply-adds of one pair of examples.
  double multiply_adds() const;
  /// Additions over taps and outputs of one pair.
  double additions() const;

 private:
  /// The pixels of one residue class, a grid on which the window has stride 1.
  struct Class {
    std::size_t h, w;                              ///< of the grid
    std::size_t kernel_h, kernel_w;                ///< taps of this class
    std::size_t pad_top, pad_left;                 ///< in grid pixels
    std::size_t first_y, first_x, step_y, step_x;  ///< where the grid lies in the input
    std::size_t pixels() const { return h * w; }
    /// Number of the grid's pixel in the input.
    std::size_t pixel(std::size_t i, std::size_t in_w) const {
      return (first_y + i / w * step_y) * in_w + first_x + i % w * step_x;
    }
  };

  ConvGeometry geometry_;
  std::size_t group_, seeds_;
  std::vector<Class> classes_;
  std::size_t block_;  ///< examples of the columns that are packed at once
  std::size_t rows_;   ///< examples of the rows
};

}  // namespace gradgram::ntk
