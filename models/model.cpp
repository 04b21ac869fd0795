#include "models/model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "engine/error.hpp"
#include "models/layers.hpp"

namespace gradgram::models {
namespace {

std::string_view activation_name(simd::Activation activation) {
  switch (activation) {
    case simd::Activation::Relu:
      return "relu";
    case simd::Activation::LeakyRelu:
      return "leakyrelu";
    case simd::Activation::Tanh:
      return "tanh";
    case simd::Activation::Sigmoid:
      return "sigmoid";
    case simd::Activation::Erf:
      return "erf";
    case simd::Activation::Gelu:
      return "gelu";
    case simd::Activation::Softplus:
      return "softplus";
    case simd::Activation::Sin:
      return "sin";
  }
  throw ArgumentError(fmt::format("model: {} is not an activation", static_cast<int>(activation)));
}

/// The shortest text that reads back as the same number.
std::string number_text(double value) {
  char buffer[32];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, value);
  return std::string(buffer, end);
}

std::string pair_text(std::size_t a, std::size_t b) {
  return a == b ? std::to_string(a) : fmt::format("{}x{}", a, b);
}

void append_padding(std::string& text, const Padding& padding, Padding::Kind unsaid) {
  if (padding.kind == Padding::Kind::Explicit) {
    text += fmt::format(",pad={}", padding.amount);
  } else if (padding.kind != unsaid) {
    text += padding.kind == Padding::Kind::Same ? ",pad=same" : ",pad=valid";
  }
}

std::string affine_text(const Layer& layer) {
  std::string text = layer.bias ? "" : ",bias=false";
  if (layer.weight_scale) text += ",sigma_w=" + number_text(*layer.weight_scale);
  if (layer.bias_scale) text += ",sigma_b=" + number_text(*layer.bias_scale);
  return text;
}

std::string shape_kind(const Shape& shape) {
  return (shape.rank() == 3 ? "the image " : "the vector ") + shape.to_string();
}

bool has_window(LayerKind kind) {
  return kind == LayerKind::Conv || kind == LayerKind::MaxPool || kind == LayerKind::AveragePool;
}

/// Walks layers from shape to shape, knowing where it is for the sake of messages.
class Checker {
 public:
  explicit Checker(std::string_view text) : text_(text) {}

  Shape list(std::span<const Layer> layers, Shape shape, const std::string& parent, bool shortcut,
             std::size_t nesting, std::vector<Shape>* shapes) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      shape = one(layers[i], shape, detail::child_path(parent, shortcut, i), nesting);
      if (shapes != nullptr) shapes->push_back(shape);
    }
    return shape;
  }

  Shape one(const Layer& layer, const Shape& in, const std::string& path, std::size_t nesting) {
    if (++layers_ > kMaxLayers) {
      throw ArgumentError(
          fmt::format("model: found more than {} layers, expected at most that many", kMaxLayers));
    }
    if (nesting > kMaxNesting) {
      throw ArgumentError(fmt::format("model: found residual inside residual {} deep, expected at most {}",
                                      nesting, kMaxNesting));
    }
    check_options(layer, path);
    try {
      return shape_after(layer, in, path, nesting);
    } catch (const Located&) {
      throw;
    } catch (const ShapeError& error) {
      fail(layer, path, error.what());
    }
  }

  std::size_t parameters() const noexcept { return parameters_; }

 private:
  /// A ShapeError which already says where.
  struct Located : ShapeError {
    using ShapeError::ShapeError;
  };

  std::string where(const Layer& layer, const std::string& path) const {
    constexpr std::size_t kShown = 60;
    std::string text = to_text(layer);
    if (text.size() > kShown) text = text.substr(0, kShown) + "...";
    return fmt::format("model: layer {}{}{}{}", path, path.empty() ? "" : " ", "'" + text + "'",
                       layer.position == 0 ? "" : " at " + detail::location(text_, layer.position));
  }

  [[noreturn]] void fail(const Layer& layer, const std::string& path, const std::string& what) const {
    throw Located(where(layer, path) + ": " + what);
  }

  void need(bool fine, const Layer& layer, const std::string& path, const char* expected) const {
    if (!fine) throw ArgumentError(where(layer, path) + ": expected " + expected);
  }

  void check_options(const Layer& layer, const std::string& path) const {
    const auto extent = [](std::size_t value) { return value >= 1 && value <= kMaxExtent; };
    if (layer.kind == LayerKind::Dense || layer.kind == LayerKind::Conv) {
      need(extent(layer.features), layer, path, "1 to 2147483647 output features");
    }
    if (has_window(layer.kind)) {
      need(extent(layer.kernel_h) && extent(layer.kernel_w), layer, path,
           "a window of 1 to 2147483647 on each side");
      need(extent(layer.stride_h) && extent(layer.stride_w), layer, path, "strides from 1 to 2147483647");
      need(layer.padding.kind != Padding::Kind::Explicit || layer.padding.amount <= kMaxExtent, layer, path,
           "padding of at most 2147483647");
    }
    if (layer.kind == LayerKind::Activation)
      need(detail::is_slope(layer.slope), layer, path, "a finite slope that fits into f32");
    if (layer.kind == LayerKind::Dense || layer.kind == LayerKind::Conv) {
      const double weight = layer.weight_scale.value_or(1);
      const double bias = layer.bias_scale.value_or(1);
      need(std::isfinite(weight) && weight > 0, layer, path, "a finite sigma_w above 0");
      need(std::isfinite(bias) && bias >= 0, layer, path, "a finite sigma_b of at least 0");
    }
    if (layer.kind == LayerKind::Monomial) {
      need(layer.degree >= 1 && layer.degree <= kMaxDegree, layer, path, "a degree from 1 to 16");
    }
    if (layer.kind == LayerKind::Dropout) {
      need(layer.rate >= 0 && layer.rate < 1, layer, path, "a rate of at least 0 and below 1");
    }
    if (layer.kind == LayerKind::Residual)
      need(!layer.body.empty(), layer, path, "at least one layer inside");
  }

  static void need_image(const Shape& in) {
    if (in.rank() != 3) {
      throw ShapeError("found " + shape_kind(in) + " as input, expected an image [height, width, channels]");
    }
  }
  static void need_vector(const Shape& in) {
    if (in.rank() != 1) {
      throw ShapeError("found " + shape_kind(in) +
                       " as input, expected a vector [features]; put flatten or gap before this layer");
    }
  }

  void count(std::size_t d_in, std::size_t d_out, bool bias) {
    const char* what = "number of parameters";
    const std::size_t weights = checked_multiply(d_in, d_out, what);
    parameters_ = checked_add(parameters_, checked_add(weights, bias ? d_out : 0, what), what);
    checked_multiply(parameters_, sizeof(double), "bytes of parameters");
  }

  Shape shape_after(const Layer& layer, const Shape& in, const std::string& path, std::size_t nesting) {
    switch (layer.kind) {
      case LayerKind::Dense:
        need_vector(in);
        count(in[0], layer.features, layer.bias);
        return {layer.features};
      case LayerKind::Conv: {
        const ConvGeometry g = layer_geometry(layer, in);
        const std::size_t taps = checked_multiply(g.kernel_h, g.kernel_w, "number of parameters");
        count(checked_multiply(taps, g.c_in, "number of parameters"), g.c_out, layer.bias);
        return {g.out_h, g.out_w, g.c_out};
      }
      case LayerKind::MaxPool:
      case LayerKind::AveragePool: {
        const ConvGeometry g = layer_geometry(layer, in);
        return {g.out_h, g.out_w, g.c_out};
      }
      case LayerKind::GlobalAveragePool:
        need_image(in);
        return {in[2]};
      case LayerKind::Flatten:
        return {in.size()};
      case LayerKind::Activation:
      case LayerKind::LayerNorm:
      case LayerKind::Dropout:
      case LayerKind::Cos:
      case LayerKind::Sign:
      case LayerKind::Monomial:
        return in;
      case LayerKind::Softmax:
      case LayerKind::LogSoftmax:
        need_vector(in);
        return in;
      case LayerKind::Residual: {
        const Shape body = list(layer.body, in, path, false, nesting + 1, nullptr);
        const Shape shortcut = list(layer.shortcut, in, path, true, nesting + 1, nullptr);
        if (!(body == shortcut)) {
          throw ShapeError(fmt::format("found {} from the body and {} from the {}, expected equal shapes{}",
                                       shape_kind(body), shape_kind(shortcut),
                                       layer.shortcut.empty() ? "identity shortcut" : "shortcut",
                                       layer.shortcut.empty() ? "; give a shortcut after '|'" : ""));
        }
        return body;
      }
    }
    throw ShapeError("unknown kind of layer");
  }

  std::string_view text_;
  std::size_t layers_ = 0;
  std::size_t parameters_ = 0;
};

}  // namespace

namespace detail {

bool is_slope(double slope) noexcept {
  return std::abs(slope) <= std::numeric_limits<float>::max();
}

std::string location(std::string_view text, std::size_t position) {
  const std::string_view before = text.substr(0, std::min(text.size(), position - 1));
  const auto lines = static_cast<std::size_t>(std::ranges::count(before, '\n'));
  if (text.find('\n') == std::string_view::npos) return fmt::format("column {}", position);
  const std::size_t start = lines == 0 ? 0 : before.rfind('\n') + 1;
  return fmt::format("line {}, column {}", lines + 1, position - start);
}

std::string child_path(std::string_view parent, bool shortcut, std::size_t index) {
  if (parent.empty()) return std::to_string(index);
  return fmt::format("{}.{}{}", parent, shortcut ? "shortcut." : "", index);
}

Checked check(std::span<const Layer> layers, const Shape& input, std::string_view text) {
  if (input.rank() != 1 && input.rank() != 3) {
    throw ShapeError("model: found input shape " + input.to_string() +
                     ", expected [features] or [height, width, channels]");
  }
  if (input.size() == 0) {
    throw ShapeError("model: found input shape " + input.to_string() + ", expected extents of at least 1");
  }
  if (layers.empty()) throw ArgumentError("model: found no layer, expected at least one");
  Checked result;
  result.shapes.reserve(std::min(layers.size(), kMaxLayers));
  Checker checker(text);
  const Shape last = checker.list(layers, input, {}, false, 0, &result.shapes);
  if (last.rank() != 1) {
    throw ShapeError("model: the last layer gives " + shape_kind(last) +
                     ", expected a vector [outputs]; end with flatten or gap and dense(outputs)");
  }
  result.parameters = checker.parameters();
  return result;
}

}  // namespace detail

bool operator==(const Layer& a, const Layer& b) {
  if (a.kind != b.kind) return false;
  const auto same_window = [&] {
    return a.kernel_h == b.kernel_h && a.kernel_w == b.kernel_w && a.stride_h == b.stride_h &&
           a.stride_w == b.stride_w && a.padding.kind == b.padding.kind &&
           (a.padding.kind != Padding::Kind::Explicit || a.padding.amount == b.padding.amount);
  };
  const auto same_affine = [&] {
    return a.features == b.features && a.bias == b.bias && a.weight_scale == b.weight_scale &&
           a.bias_scale == b.bias_scale;
  };
  switch (a.kind) {
    case LayerKind::Dense:
      return same_affine();
    case LayerKind::Conv:
      return same_affine() && same_window();
    case LayerKind::MaxPool:
    case LayerKind::AveragePool:
      return same_window();
    case LayerKind::Activation:
      return a.activation == b.activation &&
             (a.activation != simd::Activation::LeakyRelu || a.slope == b.slope);
    case LayerKind::Residual:
      return a.body == b.body && a.shortcut == b.shortcut;
    case LayerKind::GlobalAveragePool:
    case LayerKind::Flatten:
    case LayerKind::Softmax:
    case LayerKind::LogSoftmax:
    case LayerKind::LayerNorm:
    case LayerKind::Cos:
    case LayerKind::Sign:
      return true;
    case LayerKind::Dropout:
      return a.rate == b.rate;
    case LayerKind::Monomial:
      return a.degree == b.degree;
  }
  return false;
}

bool operator==(const Model& a, const Model& b) {
  return a.input_ == b.input_ && a.layers_ == b.layers_;
}

Model::Model(std::vector<Layer> layers, Shape input) : layers_(std::move(layers)), input_(input) {
  detail::Checked checked = detail::check(layers_, input_, {});
  shapes_ = std::move(checked.shapes);
  outputs_ = shapes_.back()[0];
  parameter_count_ = checked.parameters;
}

std::string Model::to_text() const {
  return models::to_text(layers_);
}

std::string to_text(const Layer& layer) {
  switch (layer.kind) {
    case LayerKind::Dense:
      return fmt::format("dense({}{})", layer.features, affine_text(layer));
    case LayerKind::Conv: {
      std::string text = fmt::format("conv({},{}", layer.features, pair_text(layer.kernel_h, layer.kernel_w));
      if (layer.stride_h != 1 || layer.stride_w != 1) {
        text += ",stride=" + pair_text(layer.stride_h, layer.stride_w);
      }
      append_padding(text, layer.padding, Padding::Kind::Same);
      return text + affine_text(layer) + ")";
    }
    case LayerKind::MaxPool:
    case LayerKind::AveragePool: {
      std::string text = layer.kind == LayerKind::MaxPool ? "maxpool(" : "avgpool(";
      text += pair_text(layer.kernel_h, layer.kernel_w);
      if (layer.stride_h != layer.kernel_h || layer.stride_w != layer.kernel_w) {
        text += ",stride=" + pair_text(layer.stride_h, layer.stride_w);
      }
      append_padding(text, layer.padding, Padding::Kind::Valid);
      return text + ")";
    }
    case LayerKind::GlobalAveragePool:
      return "gap";
    case LayerKind::Flatten:
      return "flatten";
    case LayerKind::Softmax:
      return "softmax";
    case LayerKind::LogSoftmax:
      return "logsoftmax";
    case LayerKind::LayerNorm:
      return "layernorm";
    case LayerKind::Dropout:
      return "dropout(" + number_text(layer.rate) + ")";
    case LayerKind::Cos:
      return "cos";
    case LayerKind::Sign:
      return "sign";
    case LayerKind::Monomial:
      return fmt::format("monomial({})", layer.degree);
    case LayerKind::Activation: {
      if (layer.activation == simd::Activation::LeakyRelu && layer.slope == -1) return "abs";
      if (layer.activation == simd::Activation::LeakyRelu && layer.slope == 1) return "identity";
      std::string text(activation_name(layer.activation));
      if (layer.activation == simd::Activation::LeakyRelu) text += "(" + number_text(layer.slope) + ")";
      return text;
    }
    case LayerKind::Residual: {
      std::string text = "residual(" + to_text(layer.body);
      if (!layer.shortcut.empty()) text += " | " + to_text(layer.shortcut);
      return text + ")";
    }
  }
  throw ArgumentError(fmt::format("model: {} is not a kind of layer", static_cast<int>(layer.kind)));
}

std::string to_text(std::span<const Layer> layers) {
  std::string text;
  for (const Layer& layer : layers) {
    if (!text.empty()) text += ' ';
    text += to_text(layer);
  }
  return text;
}

Shape output_shape(const Layer& layer, const Shape& input) {
  return Checker({}).one(layer, input, {}, 0);
}

ConvGeometry layer_geometry(const Layer& layer, const Shape& input) {
  if (input.rank() != 3) {
    throw ShapeError("found " + shape_kind(input) + " as input, expected an image [height, width, channels]");
  }
  const bool conv = layer.kind == LayerKind::Conv;
  if (!conv && layer.padding.kind == Padding::Kind::Explicit &&
      layer.padding.amount > std::min(layer.kernel_h, layer.kernel_w) / 2) {
    // PyTorch's rule: beyond half a window some windows would hold nothing but padding.
    throw ShapeError(fmt::format("found padding {} for a window of {}, expected at most half the window",
                                 layer.padding.amount, pair_text(layer.kernel_h, layer.kernel_w)));
  }
  return conv_geometry(input[0], input[1], input[2], conv ? layer.features : input[2], layer.kernel_h,
                       layer.kernel_w, layer.stride_h, layer.stride_w, layer.padding);
}

}  // namespace gradgram::models
