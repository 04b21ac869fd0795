#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/random.hpp"
#include "models/model.hpp"

/// Random valid models, for any test that wants many of them. Log the seed: equal seeds give equal models.
namespace gradgram::models::testing {

struct RandomModel {
  Shape input;
  std::string text;           ///< one of the many ways to write `layers`
  std::vector<Layer> layers;  ///< what the text must be read as
};

struct RandomModelOptions {
  std::size_t layers = 6;    ///< at most that many in a list
  std::size_t channels = 6;  ///< features are 1 to that many
  std::size_t extent = 9;    ///< height and width of the input are 1 to that many
  std::size_t nesting = 3;   ///< of residual
  std::size_t outputs = 3;   ///< the last layer's features are 1 to that many
  bool softmax = true;       ///< a softmax or logsoftmax may end the model
  bool smooth = false;       ///< no relu, leakyrelu or maxpool: differentiable everywhere
};

class RandomModelMaker {
 public:
  explicit RandomModelMaker(std::uint64_t seed, RandomModelOptions options = {})
      : random_(seed, 0x6D6F64656C), options_(options) {}

  RandomModel next() {
    RandomModel model;
    model.input = coin() ? Shape{pick(options_.extent), pick(options_.extent), pick(3)} : Shape{pick(20)};
    Shape shape = model.input;
    const std::size_t count = random_.below(options_.layers + 1);
    for (std::size_t i = 0; i < count; ++i) add(model.layers, model.text, shape, options_.nesting);
    if (shape.rank() == 3)
      add(model.layers, model.text, shape, named(coin() ? LayerKind::Flatten : LayerKind::GlobalAveragePool));
    add(model.layers, model.text, shape, dense(pick(options_.outputs)));
    if (options_.softmax && random_.below(4) == 0) {
      add(model.layers, model.text, shape, named(coin() ? LayerKind::Softmax : LayerKind::LogSoftmax));
    }
    if (coin()) model.text = space() + model.text + space();
    return model;
  }

 private:
  using Written = std::pair<Layer, std::string>;

  bool coin() { return random_.below(2) == 0; }
  std::size_t pick(std::size_t most) { return 1 + random_.below(most); }
  std::string space() { return std::vector<std::string>{" ", "  ", "\n", "\t ", " \r\n"}[random_.below(5)]; }
  std::string gap() { return random_.below(5) == 0 ? " " : ""; }

  void add(std::vector<Layer>& layers, std::string& text, Shape& shape, std::size_t nesting) {
    add(layers, text, shape, any(shape, nesting));
  }
  void add(std::vector<Layer>& layers, std::string& text, Shape& shape, const Written& written) {
    if (!text.empty()) text += space();
    text += written.second;
    shape = output_shape(written.first, shape);
    layers.push_back(written.first);
  }

  Written any(const Shape& shape, std::size_t nesting) {
    const std::uint64_t choice = random_.below(10);
    if (choice < 3) return activation();
    if (choice == 3 && nesting > 0) return residual(shape, nesting - 1);
    if (shape.rank() == 1) return choice == 4 ? named(LayerKind::Flatten) : dense(pick(options_.channels));
    if (choice < 6)
      return window(coin() && !options_.smooth ? LayerKind::MaxPool : LayerKind::AveragePool, shape);
    if (choice == 6 && coin()) return named(coin() ? LayerKind::Flatten : LayerKind::GlobalAveragePool);
    return window(LayerKind::Conv, shape);
  }

  Written activation() {
    using simd::Activation;
    static const std::vector<std::pair<Activation, std::string>> kNames{
        {Activation::Tanh, "tanh"}, {Activation::Sigmoid, "sigmoid"},    {Activation::Erf, "erf"},
        {Activation::Gelu, "gelu"}, {Activation::Softplus, "softplus"},  {Activation::Sin, "sin"},
        {Activation::Relu, "relu"}, {Activation::LeakyRelu, "leakyrelu"}};
    const auto& [kind, name] = kNames[random_.below(options_.smooth ? 6 : 8)];
    Layer layer;
    layer.kind = LayerKind::Activation;
    layer.activation = kind;
    if (kind == Activation::LeakyRelu) {
      switch (random_.below(4)) {
        case 0:
          return {layer, name};
        case 1:
          layer.slope = 0.1;
          return {layer, name + "(0.1)"};
        case 2:
          layer.slope = -1.5e-3;
          return {layer, name + "(slope=-1.5e-3)"};
        default:
          layer.slope = 1;
          return {layer, name + "( 1 )"};
      }
    }
    return {layer, name + (random_.below(6) == 0 ? "()" : "")};
  }

  Written named(LayerKind kind) {
    Layer layer;
    layer.kind = kind;
    switch (kind) {
      case LayerKind::Flatten:
        return {layer, "flatten"};
      case LayerKind::Softmax:
        return {layer, "softmax"};
      case LayerKind::LogSoftmax:
        return {layer, "logsoftmax"};
      default:
        return {layer, coin() ? "gap" : "globalavgpool"};
    }
  }

  Written dense(std::size_t features) {
    Layer layer;
    layer.kind = LayerKind::Dense;
    layer.features = features;
    std::string text =
        "dense(" + gap() + (random_.below(4) == 0 ? "features=" : "") + std::to_string(features);
    bias(layer, text);
    return {layer, text + gap() + ")"};
  }

  void bias(Layer& layer, std::string& text) {
    const std::uint64_t choice = random_.below(3);
    if (choice == 0) return;
    layer.bias = choice == 1;
    text += "," + gap() + "bias" + gap() + "=" + gap() + (layer.bias ? "true" : "false");
  }

  std::string sides(std::size_t h, std::size_t w) {
    return h == w && coin() ? std::to_string(h) : std::to_string(h) + "x" + std::to_string(w);
  }

  Written window(LayerKind kind, const Shape& shape) {
    const bool conv = kind == LayerKind::Conv;
    Layer layer;
    layer.kind = kind;
    layer.kernel_h = pick(std::min<std::size_t>(shape[0], 4));
    layer.kernel_w = pick(std::min<std::size_t>(shape[1], 4));
    std::string text = conv ? "conv(" : kind == LayerKind::MaxPool ? "maxpool(" : "avgpool(";
    if (conv) {
      layer.features = pick(options_.channels);
      text += std::to_string(layer.features) + gap() + "," + gap();
    }
    text += sides(layer.kernel_h, layer.kernel_w) + gap();
    layer.stride_h = conv ? 1 : layer.kernel_h;
    layer.stride_w = conv ? 1 : layer.kernel_w;
    if (coin()) {
      layer.stride_h = pick(3);
      layer.stride_w = pick(3);
      text += "," + gap() + "stride=" + sides(layer.stride_h, layer.stride_w);
    }
    layer.padding.kind = conv ? Padding::Kind::Same : Padding::Kind::Valid;
    switch (random_.below(4)) {
      case 0:
        layer.padding = {Padding::Kind::Same, 0};
        text += ",pad=same";
        break;
      case 1:
        layer.padding = {Padding::Kind::Valid, 0};
        text += ",pad =valid";
        break;
      case 2: {
        const std::size_t most = conv ? 3 : std::min(layer.kernel_h, layer.kernel_w) / 2;
        layer.padding = {Padding::Kind::Explicit, random_.below(most + 1)};
        text += ",pad=" + std::to_string(layer.padding.amount);
        break;
      }
      default:
        break;
    }
    if (conv) bias(layer, text);
    return {layer, text + ")"};
  }

  /// A body of any layers, and a shortcut that comes to the same shape; the identity when the body keeps the
  /// shape.
  Written residual(const Shape& input, std::size_t nesting) {
    Layer layer;
    layer.kind = LayerKind::Residual;
    std::string body;
    Shape shape = input;
    const std::size_t count = pick(3);
    for (std::size_t i = 0; i < count; ++i) add(layer.body, body, shape, nesting);
    if (shape == input && coin()) return {layer, "residual(" + gap() + body + gap() + ")"};
    std::string shortcut;
    if (shape.rank() == 1) {
      Shape reached = input;
      if (input.rank() == 3) add(layer.shortcut, shortcut, reached, named(LayerKind::Flatten));
      add(layer.shortcut, shortcut, reached, dense(shape[0]));
    } else {
      // An image again: one convolution that reads as many pixels as it takes, with stride 1 and padding to
      // fit, cannot always be written; the body itself with other options can.
      layer.shortcut = layer.body;
      shortcut = to_text(layer.body);
    }
    return {layer, "residual(" + body + " |" + gap() + shortcut + gap() + ")"};
  }

  Random random_;
  RandomModelOptions options_;
};

}  // namespace gradgram::models::testing
