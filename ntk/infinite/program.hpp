#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "engine/convolution.hpp"
#include "models/model.hpp"
#include "models/network.hpp"
#include "ntk/infinite/moments.hpp"

/// A model read as a list of steps on covariances.
namespace gradgram::ntk::infinite {

enum class StepKind {
  Affine,       ///< dense, or a convolution over `geometry`
  Nonlinear,    ///< phi
  AveragePool,  ///< over `geometry`; global average pooling is the window of the whole image
  Flatten,      ///< mean over equal pixels
  Normalize,
  Dropout,
  Push,      ///< puts a copy aside
  Exchange,  ///< swaps with what was put aside
  Add,       ///< adds what was put aside, and forgets it
};

/// What is known at one place of the program: `slots` number the places.
struct Step {
  StepKind kind = StepKind::Flatten;
  std::size_t in = 0;     ///< slot before
  std::size_t other = 0;  ///< Add: slot that was put aside
  std::size_t out = 0;    ///< slot after
  double weight_variance = 1;
  double bias_variance = 0;
  bool convolution = false;
  ConvGeometry geometry;
  Nonlinearity phi;
  double keep = 1;   ///< Dropout
  std::string name;  ///< for messages: layer 3 'relu'

  bool is_rectifier() const noexcept {
    return kind == StepKind::Nonlinear && phi.kind == Nonlinearity::Kind::ArcCosine;
  }
};

/// Which pairs of pixels are followed.
enum class Reach {
  Vector,    ///< there are no pixels
  Diagonal,  ///< pixel p of one image with pixel p of the other: all that flatten needs
  Full,      ///< every pixel with every pixel: pooling needs them
};

struct Program {
  std::vector<Step> steps;
  std::vector<std::size_t> pixels;  ///< of each slot; slot 0 is the input
  Reach reach = Reach::Vector;
  Shape input;
  std::size_t channels = 0;  ///< of the input
  bool tangent = false;      ///< whether tangent kernels are asked for
  bool homogeneous = true;   ///< every nonlinearity keeps scales: variances may be held in any power of two
  /// Whether a nonlinearity after a pooling layer needs variances that only the pairs of an image with itself
  /// give. Otherwise variances behind the first pooling layer are unknown and held as zero, where
  /// delta = -covariance.
  bool pooled_variances = false;
  /// Whether f32 would cost near-duplicates half of its digits (their deltas are rounded differences behind
  /// pooling and behind smooth nonlinearities, and one with a kink comes later), or all pixels are parallel
  /// or opposite where one with a kink reads their angle (one channel, windows of one), there are powers, or
  /// closed forms of smooth nonlinearities or a normalization, which read covariances that delta in f32 does
  /// not hold where variances are far apart.
  bool fragile = false;
  /// Whether there is a monomial of degree 2 or more: variances move apart as powers of what they were, and a
  /// covariance between a large and a small one is a small difference of large numbers.
  bool powers = false;
  std::size_t depth = 1;  ///< states alive at once
};

/// Throws ArgumentError naming the first layer that has no infinite-width limit here, and why.
Program compile(const models::Model& model, const models::NetworkOptions& options, bool tangent);

}  // namespace gradgram::ntk::infinite
