#pragma once

#include <cstddef>
#include <limits>
#include <optional>

#include "ntk/infinite/program.hpp"
#include "ntk/infinite/propagator.hpp"
#include "ntk/infinite/sides.hpp"
#include "ntk/infinite/tiles.hpp"

/// Pairs of vectors so nearly parallel or opposite that their angle is followed apart from all others, in
/// f64.
namespace gradgram::ntk::infinite {

/// Columns of a row that are followed apart together.
constexpr std::size_t kApartColumns = 32;

/// Whether T is not enough for pairs of nearly parallel vectors, which are then followed in f64.
template <class T>
bool widens_vectors(const Program& program);

/// The step that angles between the inputs reach through affine maps alone, so that they can be followed to
/// it exactly, and what it reads of them.
struct FirstNonlinearity {
  std::size_t step = 0;
  bool angles = false;  ///< the angle itself, which a kink or a normalization passes on
  double weight = 1;    ///< product of the weight variances before
};

/// None where a step before it is not an affine map, or where it is a monomial.
std::optional<FirstNonlinearity> first_nonlinearity(const Program& program);

/// Finds the pairs of a tile of vectors whose angles delta in T does not hold (kAngleDigits), or, given the
/// weight variance before a smooth nonlinearity, whose angles it would miss (kSmoothDigits). In f32 also
/// those of an input that is zero with one that is not: their covariance comes from the biases alone, and
/// delta is the rounded half of the other's variance.
template <class T>
class NearlyParallel {
 public:
  /// `weight`: 0 where angles themselves are read.
  NearlyParallel(const Sides<double>& left, const Sides<double>& right, const Tile& tile, double weight);

  /// Row r of those followed together is example i; products and deltas with the tile's columns.
  void mark(std::size_t r, std::size_t i, const T* product, const T* delta, std::size_t columns);
  bool any(std::size_t r) const { return any_[r]; }
  const unsigned char* marks(std::size_t r) const { return marks_[r]; }  ///< of each column

 private:
  bool any_candidate(double root, const T* product, std::size_t columns) const;

  const Sides<double>& left_;
  double weight_;
  double root_[kVectorTile], fourth_root_[kVectorTile];
  T narrow_root_[kVectorTile];
  double least_ = std::numeric_limits<double>::infinity(), most_ = 0;
  bool zeros_ = false;  ///< whether a column is one of a zero input whose biases count, in f32
  bool any_[kVectorRows];
  unsigned char marks_[kVectorRows][kVectorTile];
};

/// |a - b|^2 / 2n: delta of two inputs.
template <class T>
double half_squared_distance(const T* a, const T* b, std::size_t n);

/// sin^2 of the angle between two inputs, from what one is beside its projection on the other; 1 when one is
/// zero.
template <class T>
double squared_sine(const T* a, const T* b, std::size_t n);

/// The same before the first nonlinearity, from that and the delta of the inputs. An affine map takes the
/// determinant D = q q' - c^2 = q q' sin^2 to w^2 D + 2 w b delta, of which only the share of q q' is held:
/// products of variances may be no numbers.
double sine_square(const Program& program, const Scales& scales, const FirstNonlinearity& first, double sine,
                   double delta, const BlockPlace<double>& pair);

}  // namespace gradgram::ntk::infinite
