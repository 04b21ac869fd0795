#include "tests/reference/network_kernel.hpp"

#include <cmath>
#include <numbers>

namespace reference {
namespace {

struct Window {
  std::size_t out_h, out_w;
  std::ptrdiff_t top, left;
};

std::ptrdiff_t leading_zeros(std::size_t in, std::size_t out, std::size_t window, std::size_t stride) {
  const std::ptrdiff_t total =
      static_cast<std::ptrdiff_t>((out - 1) * stride + window) - static_cast<std::ptrdiff_t>(in);
  return total > 0 ? total / 2 : 0;
}

std::size_t window_w(const Layer& layer) {
  return layer.window_w == 0 ? layer.window : layer.window_w;
}
std::size_t stride_w(const Layer& layer) {
  return layer.stride_w == 0 ? layer.stride : layer.stride_w;
}

Window window_of(const Layer& layer, const Image& x) {
  const std::size_t across = stride_w(layer);
  if (layer.kind == Kind::Conv ? layer.same : layer.pool_same) {
    const std::size_t out_h = (x.h + layer.stride - 1) / layer.stride;
    const std::size_t out_w = (x.w + across - 1) / across;
    return {out_h, out_w, leading_zeros(x.h, out_h, layer.window, layer.stride),
            leading_zeros(x.w, out_w, window_w(layer), across)};
  }
  const auto pad = static_cast<std::ptrdiff_t>(layer.pad);
  return {(x.h + 2 * layer.pad - layer.window) / layer.stride + 1,
          (x.w + 2 * layer.pad - window_w(layer)) / across + 1, pad, pad};
}

/// visit(y, x, i, j, in_y, in_x) for every output pixel and tap that lies inside the input.
template <class Visit>
void for_taps(const Layer& layer, const Image& in, Visit visit) {
  const Window window = window_of(layer, in);
  for (std::size_t y = 0; y < window.out_h; ++y) {
    for (std::size_t x = 0; x < window.out_w; ++x) {
      for (std::size_t i = 0; i < layer.window; ++i) {
        for (std::size_t j = 0; j < window_w(layer); ++j) {
          const std::ptrdiff_t in_y = static_cast<std::ptrdiff_t>(y * layer.stride + i) - window.top;
          const std::ptrdiff_t in_x = static_cast<std::ptrdiff_t>(x * stride_w(layer) + j) - window.left;
          if (in_y < 0 || in_x < 0 || in_y >= static_cast<std::ptrdiff_t>(in.h) ||
              in_x >= static_cast<std::ptrdiff_t>(in.w)) {
            continue;
          }
          visit(y, x, i, j, static_cast<std::size_t>(in_y), static_cast<std::size_t>(in_x));
        }
      }
    }
  }
}

double value_of(const Layer& layer, double x) {
  switch (layer.function) {
    case Function::Relu:
      return x > 0 ? x : 0;
    case Function::LeakyRelu:
      return x > 0 ? x : layer.slope * x;
    case Function::Tanh:
      return std::tanh(x);
    case Function::Sigmoid:
      return 1 / (1 + std::exp(-x));
    case Function::Erf:
      return std::erf(x);
    case Function::Gelu:
      return x * 0.5 * std::erfc(-x / std::numbers::sqrt2);
    case Function::Softplus:
      return std::log1p(std::exp(x));
    case Function::Sin:
      return std::sin(x);
  }
  return NAN;
}

double derivative_of(const Layer& layer, double x) {
  switch (layer.function) {
    case Function::Relu:
      return x > 0 ? 1 : 0;
    case Function::LeakyRelu:
      return x > 0 ? 1 : layer.slope;
    case Function::Tanh:
      return 1 / (std::cosh(x) * std::cosh(x));
    case Function::Sigmoid:
      return 1 / (2 + std::exp(x) + std::exp(-x));
    case Function::Erf:
      return 2 * std::numbers::inv_sqrtpi * std::exp(-x * x);
    case Function::Gelu:
      return 0.5 * std::erfc(-x / std::numbers::sqrt2) +
             x * std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi);
    case Function::Softplus:
      return 1 / (1 + std::exp(-x));
    case Function::Sin:
      return std::cos(x);
  }
  return NAN;
}

Image zeros(std::size_t h, std::size_t w, std::size_t c) {
  return {h, w, c, std::vector<double>(h * w * c, 0.0)};
}

Image forward(const std::vector<Layer>& layers, const Parameters& parameters, Image x,
              std::vector<Image>* inputs);

Image forward_one(const Layer& layer, const Parameters& parameters, const Image& x) {
  switch (layer.kind) {
    case Kind::Dense: {
      Image y = zeros(1, 1, layer.features);
      for (std::size_t o = 0; o < layer.features; ++o) {
        double sum = 0;
        for (std::size_t i = 0; i < x.c; ++i) sum += parameters[layer.weight][o * x.c + i] * x.values[i];
        y.values[o] = layer.weight_scale * sum;
        if (layer.bias != kNone) y.values[o] += layer.bias_scale * parameters[layer.bias][o];
      }
      return y;
    }
    case Kind::Conv: {
      const Window window = window_of(layer, x);
      Image y = zeros(window.out_h, window.out_w, layer.features);
      for_taps(layer, x, [&](auto oy, auto ox, auto i, auto j, auto iy, auto ix) {
        for (std::size_t k = 0; k < x.c; ++k) {
          for (std::size_t o = 0; o < layer.features; ++o) {
            y.at(oy, ox, o) +=
                layer.weight_scale * x.at(iy, ix, k) *
                parameters[layer.weight][((i * window_w(layer) + j) * x.c + k) * layer.features + o];
          }
        }
      });
      if (layer.bias != kNone) {
        for (std::size_t p = 0; p < y.values.size(); ++p) {
          y.values[p] += layer.bias_scale * parameters[layer.bias][p % layer.features];
        }
      }
      return y;
    }
    case Kind::Activation: {
      Image y = x;
      for (double& value : y.values) value = value_of(layer, value);
      return y;
    }
    case Kind::MaxPool: {
      const Window window = window_of(layer, x);
      Image y = zeros(window.out_h, window.out_w, x.c);
      for (double& value : y.values) value = -INFINITY;
      for_taps(layer, x, [&](auto oy, auto ox, auto, auto, auto iy, auto ix) {
        for (std::size_t k = 0; k < x.c; ++k) y.at(oy, ox, k) = std::max(y.at(oy, ox, k), x.at(iy, ix, k));
      });
      return y;
    }
    case Kind::AveragePool: {
      const Window window = window_of(layer, x);
      Image y = zeros(window.out_h, window.out_w, x.c);
      const double share = 1.0 / static_cast<double>(layer.window * window_w(layer));
      for_taps(layer, x, [&](auto oy, auto ox, auto, auto, auto iy, auto ix) {
        for (std::size_t k = 0; k < x.c; ++k) y.at(oy, ox, k) += share * x.at(iy, ix, k);
      });
      return y;
    }
    case Kind::GlobalAveragePool: {
      Image y = zeros(1, 1, x.c);
      for (std::size_t p = 0; p < x.values.size(); ++p) {
        y.values[p % x.c] += x.values[p] / static_cast<double>(x.h * x.w);
      }
      return y;
    }
    case Kind::Flatten: {
      Image y = zeros(1, 1, x.values.size());
      std::size_t next = 0;
      for (std::size_t k = 0; k < x.c; ++k) {
        for (std::size_t iy = 0; iy < x.h; ++iy) {
          for (std::size_t ix = 0; ix < x.w; ++ix) y.values[next++] = x.at(iy, ix, k);
        }
      }
      return y;
    }
    case Kind::Residual: {
      Image y = forward(layer.body, parameters, x, nullptr);
      const Image skip = forward(layer.shortcut, parameters, x, nullptr);
      for (std::size_t i = 0; i < y.values.size(); ++i) y.values[i] += skip.values[i];
      return y;
    }
  }
  return {};
}

Image forward(const std::vector<Layer>& layers, const Parameters& parameters, Image x,
              std::vector<Image>* inputs) {
  for (const Layer& layer : layers) {
    if (inputs != nullptr) inputs->push_back(x);
    x = forward_one(layer, parameters, x);
  }
  return x;
}

Image backward(const std::vector<Layer>& layers, const Parameters& parameters, const Image& x,
               Image cotangent, Gradient& gradient);

/// The cotangent of x given that of y = layer(x); adds the parameters' gradients.
Image backward_one(const Layer& layer, const Parameters& parameters, const Image& x, const Image& dy,
                   Gradient& gradient) {
  Image dx = zeros(x.h, x.w, x.c);
  switch (layer.kind) {
    case Kind::Dense:
      for (std::size_t o = 0; o < layer.features; ++o) {
        for (std::size_t i = 0; i < x.c; ++i) {
          gradient[layer.weight][o * x.c + i] += layer.weight_scale * dy.values[o] * x.values[i];
          dx.values[i] += layer.weight_scale * dy.values[o] * parameters[layer.weight][o * x.c + i];
        }
        if (layer.bias != kNone) gradient[layer.bias][o] += layer.bias_scale * dy.values[o];
      }
      break;
    case Kind::Conv:
      for_taps(layer, x, [&](auto oy, auto ox, auto i, auto j, auto iy, auto ix) {
        for (std::size_t k = 0; k < x.c; ++k) {
          for (std::size_t o = 0; o < layer.features; ++o) {
            const std::size_t w = ((i * window_w(layer) + j) * x.c + k) * layer.features + o;
            gradient[layer.weight][w] += layer.weight_scale * dy.at(oy, ox, o) * x.at(iy, ix, k);
            dx.at(iy, ix, k) += layer.weight_scale * dy.at(oy, ox, o) * parameters[layer.weight][w];
          }
        }
      });
      if (layer.bias != kNone) {
        for (std::size_t p = 0; p < dy.values.size(); ++p) {
          gradient[layer.bias][p % layer.features] += layer.bias_scale * dy.values[p];
        }
      }
      break;
    case Kind::Activation:
      for (std::size_t i = 0; i < x.values.size(); ++i) {
        dx.values[i] = dy.values[i] * derivative_of(layer, x.values[i]);
      }
      break;
    case Kind::MaxPool: {
      const Image y = forward_one(layer, parameters, x);
      std::vector<bool> taken(y.values.size(), false);
      for_taps(layer, x, [&](auto oy, auto ox, auto, auto, auto iy, auto ix) {
        for (std::size_t k = 0; k < x.c; ++k) {
          const std::size_t out = (oy * y.w + ox) * y.c + k;
          if (taken[out] || x.at(iy, ix, k) != y.values[out]) continue;
          taken[out] = true;
          dx.at(iy, ix, k) += dy.values[out];
        }
      });
      break;
    }
    case Kind::AveragePool:
      for_taps(layer, x, [&](auto oy, auto ox, auto, auto, auto iy, auto ix) {
        for (std::size_t k = 0; k < x.c; ++k) {
          dx.at(iy, ix, k) += dy.at(oy, ox, k) / static_cast<double>(layer.window * window_w(layer));
        }
      });
      break;
    case Kind::GlobalAveragePool:
      for (std::size_t p = 0; p < x.values.size(); ++p) {
        dx.values[p] = dy.values[p % x.c] / static_cast<double>(x.h * x.w);
      }
      break;
    case Kind::Flatten: {
      std::size_t next = 0;
      for (std::size_t k = 0; k < x.c; ++k) {
        for (std::size_t iy = 0; iy < x.h; ++iy) {
          for (std::size_t ix = 0; ix < x.w; ++ix) dx.at(iy, ix, k) = dy.values[next++];
        }
      }
      break;
    }
    case Kind::Residual: {
      dx = backward(layer.body, parameters, x, dy, gradient);
      const Image skip = backward(layer.shortcut, parameters, x, dy, gradient);
      for (std::size_t i = 0; i < dx.values.size(); ++i) dx.values[i] += skip.values[i];
      break;
    }
  }
  return dx;
}

Image backward(const std::vector<Layer>& layers, const Parameters& parameters, const Image& x,
               Image cotangent, Gradient& gradient) {
  std::vector<Image> inputs;
  forward(layers, parameters, x, &inputs);
  for (std::size_t i = layers.size(); i-- > 0;) {
    cotangent = backward_one(layers[i], parameters, inputs[i], cotangent, gradient);
  }
  return cotangent;
}

}  // namespace

std::vector<double> outputs(const std::vector<Layer>& layers, const Parameters& parameters, const Image& x) {
  return forward(layers, parameters, x, nullptr).values;
}

Gradient gradient(const std::vector<Layer>& layers, const Parameters& parameters, const Image& x,
                  const std::vector<double>& seed) {
  Gradient result;
  for (const auto& parameter : parameters) result.emplace_back(parameter.size(), 0.0);
  backward(layers, parameters, x, {1, 1, seed.size(), seed}, result);
  return result;
}

std::vector<Gradient> jacobian(const std::vector<Layer>& layers, const Parameters& parameters,
                               const Image& x) {
  const std::size_t count = outputs(layers, parameters, x).size();
  std::vector<Gradient> result;
  for (std::size_t k = 0; k < count; ++k) {
    std::vector<double> seed(count, 0.0);
    seed[k] = 1;
    result.push_back(gradient(layers, parameters, x, seed));
  }
  return result;
}

Gradient true_class_gradient(const std::vector<Layer>& layers, const Parameters& parameters, const Image& x,
                             std::size_t label) {
  const std::vector<double> f = outputs(layers, parameters, x);
  double sum = 0;
  for (const double value : f) sum += std::exp(value);
  std::vector<double> seed(f.size());
  for (std::size_t k = 0; k < f.size(); ++k) {
    const double p = std::exp(f[k]) / sum;
    seed[k] = std::exp(f[label]) / sum * ((k == label ? 1.0 : 0.0) - p);
  }
  return gradient(layers, parameters, x, seed);
}

double dot(const Gradient& a, const Gradient& b, std::size_t parameter) {
  double sum = 0;
  for (std::size_t p = 0; p < a.size(); ++p) {
    if (parameter != kNone && p != parameter) continue;
    for (std::size_t i = 0; i < a[p].size(); ++i) sum += a[p][i] * b[p][i];
  }
  return sum;
}

}  // namespace reference
