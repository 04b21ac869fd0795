#include "models/price.hpp"

#include <span>
#include <utility>

#include "models/layers.hpp"

namespace gradgram::models {
namespace {

void append(std::vector<LayerPrice>& prices, std::span<const Layer> layers, Shape shape,
            const std::string& parent, bool shortcut) {
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    LayerPrice price;
    price.name = detail::child_path(parent, shortcut, i);
    price.kind = layer.kind;
    price.in = shape;
    price.out = output_shape(layer, shape);
    shape = price.out;
    const auto inputs = static_cast<double>(price.in.size());
    const auto outputs = static_cast<double>(price.out.size());
    if (layer.kind == LayerKind::Residual) {
      append(prices, layer.body, price.in, price.name, false);
      append(prices, layer.shortcut, price.in, price.name, true);
      price.text = "residual";
    } else {
      price.text = to_text(layer);
    }
    switch (layer.kind) {
      case LayerKind::Dense:
        price.positions = price.taps = 1;
        price.d_in = price.in[0];
        price.d_out = layer.features;
        break;
      case LayerKind::Conv: {
        const ConvGeometry g = layer_geometry(layer, price.in);
        price.positions = g.out_pixels();
        price.taps = g.kernel_h * g.kernel_w;
        price.d_in = g.patch();
        price.d_out = g.c_out;
        break;
      }
      case LayerKind::MaxPool:
      case LayerKind::AveragePool:
        price.flop = outputs * static_cast<double>(layer.kernel_h) * static_cast<double>(layer.kernel_w);
        break;
      case LayerKind::GlobalAveragePool:
      case LayerKind::Softmax:
      case LayerKind::LogSoftmax:
        price.flop = inputs;
        break;
      case LayerKind::Activation:
      case LayerKind::LayerNorm:
      case LayerKind::Dropout:
      case LayerKind::Cos:
      case LayerKind::Sign:
      case LayerKind::Monomial:
      case LayerKind::Residual:
        price.flop = outputs;
        break;
      case LayerKind::Flatten:
        break;
    }
    if (price.positions != 0) {
      price.parameters = price.d_in * price.d_out + (layer.bias ? price.d_out : 0);
      price.flop = 2 * outputs * static_cast<double>(price.d_in) + (layer.bias ? outputs : 0);
    }
    prices.push_back(std::move(price));
  }
}

}  // namespace

std::vector<LayerPrice> price(const Model& model) {
  std::vector<LayerPrice> prices;
  append(prices, model.layers(), model.input(), {}, false);
  return prices;
}

}  // namespace gradgram::models
