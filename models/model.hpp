#pragma once

#include <cstddef>
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
};

/// One line of a model description. Only the fields of its kind mean something.
struct Layer {
  LayerKind kind = LayerKind::Flatten;
  std::size_t features = 0;  ///< Dense, Conv: output features (channels)
  std::size_t kernel_h = 0, kernel_w = 0;
  std::size_t stride_h = 1, stride_w = 1;
  Padding padding;
  bool bias = true;
  simd::Activation activation = simd::Activation::Relu;
  double slope = 0.01;  ///< LeakyRelu
  std::vector<Layer> body;
  std::vector<Layer> shortcut;
  std::size_t position = 0;  ///< of the layer's name in the text, for messages
};

/// What presets fill in that their text does not say.
struct ParseOptions {
  std::size_t outputs = 1;
};

/// A network as a checked list of layers on a given input: read by Network as a finite network, and by whoever prices
/// it as a list of shapes. Immutable, cheap to copy.
class Model {
 public:
  /// `input`: {features} or {height, width, channels}. Throws ShapeError naming the layer, its position in the text,
  /// what was found and what was expected.
  Model(std::vector<Layer> layers, Shape input);

  const std::vector<Layer>& layers() const noexcept { return layers_; }
  const Shape& input() const noexcept { return input_; }
  /// Shape of one example after top-level layer i.
  const Shape& output(std::size_t layer) const { return shapes_.at(layer); }
  /// O: the features of the last layer, whose output must be a vector.
  std::size_t outputs() const noexcept { return outputs_; }
  /// The canonical text: parse(to_text(), input()) gives an equal model. Presets appear expanded.
  std::string to_text() const;

 private:
  std::vector<Layer> layers_;
  Shape input_;
  std::vector<Shape> shapes_;
  std::size_t outputs_ = 0;
};

/// Shape of one example after `layer` on `input`; throws as Model does.
Shape output_shape(const Layer& layer, const Shape& input);

/// Reads a model text (docs/models.md holds the grammar):
///   conv(32,3) relu maxpool(2) conv(32,3,stride=2,pad=valid) tanh flatten dense(10)
///   residual(conv(64,3) relu conv(64,3) | conv(64,1,stride=2))        presets: mlp:width=512,depth=3  cnn3:channels=32
/// Throws ArgumentError with the position, what was found and what was expected.
Model parse(std::string_view text, const Shape& input, const ParseOptions& options = {});

}  // namespace gradgram::models
