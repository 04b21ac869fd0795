#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/convolution.hpp"
#include "engine/shape.hpp"
#include "engine/simd/kernels.hpp"

namespace gradgram::models {

enum class LayerKind {
  Dense,
  Conv,
  Activation,
  MaxPool,
  AveragePool,
  GlobalAveragePool,
  Flatten,
  Residual,  ///< y = body(x) + shortcut(x); an empty shortcut is the identity
  Softmax,
  LogSoftmax,
  // Read at infinite width only; Network refuses them.
  LayerNorm,  ///< over the channels of each pixel, without learned scale and shift
  Dropout,
  Cos,
  Sign,
  Monomial,  ///< x^degree
};

/// One line of a model description. Only the fields of its kind mean something.
struct Layer {
  LayerKind kind = LayerKind::Flatten;
  std::size_t features = 0;  ///< Dense, Conv: output features (channels)
  std::size_t kernel_h = 0, kernel_w = 0;
  std::size_t stride_h = 1, stride_w = 1;
  Padding padding;
  bool bias = true;
  /// Dense, Conv: sigma_w and sigma_b of this layer alone, instead of the network's.
  std::optional<double> weight_scale, bias_scale;
  simd::Activation activation = simd::Activation::Relu;
  double slope = 0.01;     ///< LeakyRelu; must fit into f32; -1 is the absolute value, 1 the identity
  std::size_t degree = 2;  ///< Monomial
  double rate = 0.5;       ///< Dropout: the probability of being dropped
  std::vector<Layer> body;
  std::vector<Layer> shortcut;
  std::size_t position =
      0;  ///< of the name in the text, in bytes from 1; 0 = not from a text. For messages only.

  /// Equal in all that matters: positions are not compared.
  friend bool operator==(const Layer& a, const Layer& b);
};

/// What no model may exceed, so that hostile text costs neither the stack nor the memory.
inline constexpr std::size_t kMaxLayers = 10'000;         ///< counting those inside residual(...)
inline constexpr std::size_t kMaxNesting = 32;            ///< residual(...) inside residual(...)
inline constexpr std::size_t kMaxDegree = 16;             ///< of a monomial
inline constexpr std::size_t kMaxExtent = 2'147'483'647;  ///< features, kernel, stride, padding: 2^31 - 1

/// What presets fill in that their text does not say.
struct ParseOptions {
  std::size_t outputs = 1;
};

/// A network as a checked list of layers on a given input: read by Network as a finite network, and by
/// price() as a list of shapes. Immutable, cheap to copy.
class Model {
 public:
  /// `input`: {features} or {height, width, channels}. Throws ShapeError naming the layer, its text, its
  /// position, what was found and what was expected; ArgumentError for a layer list that is empty or beyond
  /// the limits above.
  Model(std::vector<Layer> layers, Shape input);

  const std::vector<Layer>& layers() const noexcept { return layers_; }
  const Shape& input() const noexcept { return input_; }
  /// Shape of one example after top-level layer i. Throws std::out_of_range.
  const Shape& output(std::size_t layer) const { return shapes_.at(layer); }
  /// O: the features of the last layer, whose output must be a vector.
  std::size_t outputs() const noexcept { return outputs_; }
  /// Weights and biases as described, before a parameterization drops biases that it does not have.
  std::size_t parameter_count() const noexcept { return parameter_count_; }
  /// The canonical text: parse(to_text(), input()) gives an equal model. Presets appear expanded.
  std::string to_text() const;

  friend bool operator==(const Model& a, const Model& b);

 private:
  std::vector<Layer> layers_;
  Shape input_;
  std::vector<Shape> shapes_;
  std::size_t outputs_ = 0;
  std::size_t parameter_count_ = 0;
};

/// Canonical text of one layer, without the defaults: `conv(32,3,stride=2)`.
std::string to_text(const Layer& layer);
std::string to_text(std::span<const Layer> layers);

/// Shape of one example after `layer` on `input`; throws as Model does.
Shape output_shape(const Layer& layer, const Shape& input);

/// The window of a Conv, MaxPool or AveragePool on an image {height, width, channels}. Throws ShapeError.
ConvGeometry layer_geometry(const Layer& layer, const Shape& input);

/// Reads a model text (docs/models.md holds the grammar):
///   conv(32,3) relu maxpool(2) conv(32,3,stride=2,pad=valid) tanh flatten dense(10)
///   residual(conv(64,3) relu conv(64,3) | conv(64,1,stride=2))        presets: mlp:width=512,depth=3
///   cnn3:channels=32
/// Throws ArgumentError with the position, what was found and what was expected; ShapeError as Model does.
Model parse(std::string_view text, const Shape& input, const ParseOptions& options = {});

}  // namespace gradgram::models
