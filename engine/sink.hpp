#pragma once

#include <cstddef>
#include <limits>

#include "engine/arena.hpp"
#include "engine/convolution.hpp"
#include "engine/tensor.hpp"

namespace gradgram {

inline constexpr std::size_t kNoParameter = std::numeric_limits<std::size_t>::max();

/// What the reverse pass hands over at one use of a weight (and its bias) by an affine map at L positions:
/// the gradient of example i with respect to the weight is weight_scale * sum_p cotangents[i, p] inputs[i,
/// p]^T  ([d_out, d_in]), with respect to the bias bias_scale * sum_p cotangents[i, p].  It is not formed
/// here: the sink decides.
template <class T>
struct DenseUse {
  std::size_t weight;  ///< parameter index
  std::size_t bias;    ///< parameter index or kNoParameter
  T weight_scale;      ///< 1, or sigma_w / sqrt(fan_in) in the NTK parameterization
  T bias_scale;
  TensorView<const T> inputs;      ///< A [examples, positions, d_in]
  TensorView<const T> cotangents;  ///< B [examples, positions, d_out]
};

/// The same for a convolution: the positions are the output pixels, the inputs are the patches of the images,
/// which are not unfolded.
template <class T>
struct ConvUse {
  std::size_t weight;
  std::size_t bias;
  T weight_scale;
  T bias_scale;
  ConvGeometry geometry;
  TensorView<const T> inputs;      ///< [examples, in_h, in_w, c_in]
  TensorView<const T> cotangents;  ///< [examples, out_h, out_w, c_out]
};

/// Receives every parameter use of a reverse pass, in reverse order of the forward pass. The views are valid
/// during the call only. A parameter used several times arrives several times; the sum over its uses is its
/// gradient. `scratch` may be used freely within the call.
template <class T>
class Sink {
 public:
  Sink() = default;
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;
  virtual ~Sink() = default;
  virtual void use(const DenseUse<T>& use, Arena& scratch) = 0;
  virtual void use(const ConvUse<T>& use, Arena& scratch) = 0;
};

}  // namespace gradgram
