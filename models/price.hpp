#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "models/model.hpp"

namespace gradgram::models {

/// What one layer costs for one example: the model read as a list of prices.
struct LayerPrice {
  std::string name;  ///< path as in the parameters' names: `3`, `4.0`, `4.shortcut.0`
  std::string text;  ///< canonical text of the layer; `residual` alone for the addition that ends it
  LayerKind kind = LayerKind::Flatten;
  Shape in, out;  ///< of one example

  // Affine layers only (Dense, Conv); 0 for the others. The gradient of one example is sum over positions of
  // b a^T.
  std::size_t positions = 0;  ///< L: 1 for Dense, output pixels for Conv
  std::size_t d_in = 0;       ///< features, or patch = taps * input channels
  std::size_t d_out = 0;
  std::size_t taps = 0;        ///< kernel_h * kernel_w; 1 for Dense
  std::size_t parameters = 0;  ///< weights and biases

  /// Forward floating-point operations: 2 L d_in d_out (+ L d_out for a bias); an activation, addition or
  /// softmax counts one per number, pooling one per number read. A reverse pass costs about twice as much.
  double flop = 0;
};

/// All layers in the order of the forward pass; those inside residual(...) come before the residual itself.
std::vector<LayerPrice> price(const Model& model);

}  // namespace gradgram::models
