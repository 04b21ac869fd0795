#include "models/network.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.hpp"
#include "engine/npy.hpp"
#include "engine/ops.hpp"
#include "engine/random.hpp"
#include "models/layers.hpp"

namespace gradgram::models {
namespace {

/// Streams of Random that belong to weights ("weight" in ASCII), so that noise or data drawn
/// with the same seed elsewhere is independent of them.
constexpr std::uint64_t kWeightStreams = 0x7765696768740000U;

double weight_variance(const Layer& layer, const NetworkOptions& options) {
  return layer.weight_scale ? *layer.weight_scale * *layer.weight_scale : options.weight_variance;
}
double bias_variance(const Layer& layer, const NetworkOptions& options) {
  return layer.bias_scale ? *layer.bias_scale * *layer.bias_scale : options.bias_variance;
}

/// Whether the layer's bias is a parameter (NetworkOptions::bias_variance).
bool has_bias(const Layer& layer, const NetworkOptions& options) {
  return layer.bias &&
         !(options.parameterization == Parameterization::Ntk && bias_variance(layer, options) == 0);
}

/// Engine layout [h, w, in, out] against PyTorch's [out, in, h, w]; other ranks are the same in both.
Shape torch_shape(const Shape& shape) {
  return shape.rank() == 4 ? Shape{shape[3], shape[2], shape[0], shape[1]} : shape;
}

/// Calls visit(engine offset) in PyTorch's element order.
template <class Visit>
void in_torch_order(const Shape& shape, Visit visit) {
  if (shape.rank() != 4) {
    for (std::size_t i = 0; i < shape.size(); ++i) visit(i);
    return;
  }
  const std::size_t taps = shape[0] * shape[1];
  const std::size_t in = shape[2];
  const std::size_t out = shape[3];
  for (std::size_t o = 0; o < out; ++o) {
    for (std::size_t i = 0; i < in; ++i) {
      for (std::size_t tap = 0; tap < taps; ++tap) visit((tap * in + i) * out + o);
    }
  }
}

template <class T>
Tensor<T> draw(Shape shape, double scale, std::uint64_t seed, std::uint64_t slot) {
  Tensor<T> values(shape);
  Random random(seed, kWeightStreams + slot);
  T* const data = values.data();
  in_torch_order(shape, [&](std::size_t at) { data[at] = static_cast<T>(scale * random.normal()); });
  return values;
}

/// Draws the parameters of a list of layers, in the order in which Forward takes them.
template <class T>
class Drawer {
 public:
  Drawer(const NetworkOptions& options, ParameterSet<T>& parameters)
      : options_(options), parameters_(parameters) {}

  void list(std::span<const Layer> layers, Shape shape, const std::string& parent, bool shortcut) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const std::string path = detail::child_path(parent, shortcut, i);
      one(layers[i], shape, path);
      shape = output_shape(layers[i], shape);
    }
  }

 private:
  void one(const Layer& layer, const Shape& in, const std::string& path) {
    switch (layer.kind) {
      case LayerKind::Dense:
        affine(layer, {layer.features, in[0]}, in[0], path);
        break;
      case LayerKind::Conv:
        affine(layer, {layer.kernel_h, layer.kernel_w, in[2], layer.features},
               layer.kernel_h * layer.kernel_w * in[2], path);
        break;
      case LayerKind::Residual:
        list(layer.body, in, path, false);
        list(layer.shortcut, in, path, true);
        break;
      case LayerKind::LayerNorm:
      case LayerKind::Dropout:
      case LayerKind::Cos:
      case LayerKind::Sign:
      case LayerKind::Monomial:
        throw ArgumentError(
            fmt::format("network: layer {} '{}' has no finite reading here, only the infinite-width one",
                        path, to_text(layer)));
      default:
        break;  // no parameters
    }
  }

  void affine(const Layer& layer, Shape weight, std::size_t fan_in, const std::string& path) {
    const bool standard = options_.parameterization == Parameterization::Standard;
    const double weight_scale =
        standard ? std::sqrt(weight_variance(layer, options_) / static_cast<double>(fan_in)) : 1.0;
    const double bias_scale = standard ? std::sqrt(bias_variance(layer, options_)) : 1.0;
    // Two slots per layer, taken or not: a bias more or less leaves the other draws alone.
    const std::uint64_t slot = 2 * affine_layers_++;
    parameters_.add(path + ".weight", draw<T>(weight, weight_scale, options_.seed, slot));
    if (!has_bias(layer, options_)) return;
    const Shape bias{layer.features};
    parameters_.add(path + ".bias",
                    bias_scale == 0 ? Tensor<T>(bias) : draw<T>(bias, bias_scale, options_.seed, slot + 1));
  }

  const NetworkOptions& options_;
  ParameterSet<T>& parameters_;
  std::uint64_t affine_layers_ = 0;
};

/// Records layers on a tape, taking parameters in order.
template <class T>
class Forward {
 public:
  Forward(Tape<T>& tape, const ParameterSet<T>& parameters, const NetworkOptions& options)
      : tape_(tape), parameters_(parameters), options_(options) {}

  Var list(std::span<const Layer> layers, Var x) {
    for (std::size_t i = 0; i < layers.size();) {
      const bool rectified = layers[i].kind == LayerKind::Conv && i + 1 < layers.size() &&
                             layers[i + 1].kind == LayerKind::Activation &&
                             layers[i + 1].activation == simd::Activation::Relu;
      if (!rectified) {
        x = one(layers[i++], x);
        continue;
      }
      // In one op: nobody else sees what stands between the layers.
      const ConvGeometry g = layer_geometry(layers[i], tape_.shape(x).inner());
      const auto weights = affine(layers[i], g.patch());
      i += 2;
      if (i < layers.size() && layers[i].kind == LayerKind::MaxPool) {
        const ConvGeometry pool = layer_geometry(layers[i++], Shape{g.out_h, g.out_w, g.c_out});
        x = ops::conv2d_relu(tape_, x, g, weights, &pool);
      } else {
        x = ops::conv2d_relu(tape_, x, g, weights);
      }
    }
    return x;
  }

 private:
  Var one(const Layer& layer, Var x) {
    switch (layer.kind) {
      case LayerKind::Dense:
        return ops::dense(tape_, x, affine(layer, tape_.shape(x)[1]));
      case LayerKind::Conv: {
        const ConvGeometry geometry = layer_geometry(layer, tape_.shape(x).inner());
        return ops::conv2d(tape_, x, geometry, affine(layer, geometry.patch()));
      }
      case LayerKind::Activation:
        return ops::activation(tape_, x, layer.activation, static_cast<T>(layer.slope));
      case LayerKind::MaxPool:
        return ops::max_pool(tape_, x, layer_geometry(layer, tape_.shape(x).inner()));
      case LayerKind::AveragePool:
        return ops::average_pool(tape_, x, layer_geometry(layer, tape_.shape(x).inner()));
      case LayerKind::GlobalAveragePool:
        return ops::global_average_pool(tape_, x);
      case LayerKind::Flatten:
        return ops::flatten(tape_, x);
      case LayerKind::Residual: {
        const Var body = list(layer.body, x);
        return ops::add(tape_, body, list(layer.shortcut, x));
      }
      case LayerKind::Softmax:
        return ops::softmax(tape_, x);
      case LayerKind::LogSoftmax:
        return ops::log_softmax(tape_, x);
      case LayerKind::LayerNorm:
      case LayerKind::Dropout:
      case LayerKind::Cos:
      case LayerKind::Sign:
      case LayerKind::Monomial:
        break;  // refused by the constructor
    }
    throw ArgumentError("network: unknown kind of layer");
  }

  ops::Affine<T> affine(const Layer& layer, std::size_t fan_in) {
    const bool standard = options_.parameterization == Parameterization::Standard;
    ops::Affine<T> result{parameters_, next_++};
    if (has_bias(layer, options_)) result.bias = next_++;
    if (!standard) {
      result.weight_scale =
          static_cast<T>(std::sqrt(weight_variance(layer, options_) / static_cast<double>(fan_in)));
      result.bias_scale = static_cast<T>(std::sqrt(bias_variance(layer, options_)));
    }
    return result;
  }

  Tape<T>& tape_;
  const ParameterSet<T>& parameters_;
  const NetworkOptions& options_;
  std::size_t next_ = 0;
};

/// The first few of a list of complaints, and how many more there are.
std::string some(const std::vector<std::string>& items) {
  constexpr std::size_t kShown = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(items.size(), kShown); ++i) text += (i == 0 ? "" : ", ") + items[i];
  if (items.size() > kShown) text += fmt::format(" and {} more", items.size() - kShown);
  return text;
}

std::string shape_text(std::span<const std::size_t> extents) {
  return fmt::format("[{}]", fmt::join(extents, ", "));
}

}  // namespace

std::string_view parameterization_name(Parameterization parameterization) noexcept {
  return parameterization == Parameterization::Ntk ? "ntk" : "standard";
}

Parameterization parse_parameterization(std::string_view name) {
  for (const Parameterization p : {Parameterization::Standard, Parameterization::Ntk}) {
    if (name == parameterization_name(p)) return p;
  }
  throw ArgumentError(fmt::format("parameterization: found '{}', expected standard or ntk", name));
}

void check_variances(const NetworkOptions& options, std::string_view weight, std::string_view bias) {
  // Beyond these the draws would leave the range of f32. The comparisons are false for NaN.
  const auto require = [&](std::string_view name, double value, bool zero) {
    if ((zero && value == 0) || (value >= kLeastVariance && value <= kMostVariance)) return;
    throw ArgumentError(fmt::format("{}: found {}, expected {}{} to {}", name, value, zero ? "0 or " : "",
                                    kLeastVariance, kMostVariance));
  };
  require(weight, options.weight_variance, false);
  require(bias, options.bias_variance, true);
}

template <class T>
Network<T>::Network(Model model, const NetworkOptions& options)
    : model_(std::move(model)), options_(options) {
  check_variances(options);
  Drawer<T>(options_, parameters_).list(model_.layers(), model_.input(), {}, false);
}

template <class T>
Network<T>::Network(Model model, const NetworkOptions& options, ParameterSet<T> parameters)
    : model_(std::move(model)), options_(options), parameters_(std::move(parameters)) {}

template <class T>
Network<T> Network<T>::clone() const {
  return Network(model_, options_, parameters_.clone());
}

template <class T>
Var Network<T>::forward(Tape<T>& tape, Var x) const {
  const Shape& shape = tape.shape(x);
  if (shape.rank() == 0 || !(shape.inner() == model_.input())) {
    throw ShapeError(fmt::format("network: forward: found inputs {}, expected [examples] followed by {}",
                                 shape.to_string(), model_.input().to_string()));
  }
  return Forward<T>(tape, parameters_, options_).list(model_.layers(), x);
}

template <class T>
void Network<T>::save_weights(const std::filesystem::path& path) const {
  std::vector<Tensor<T>> values;
  std::vector<NamedTensor<T>> arrays;
  values.reserve(parameters_.count());
  for (std::size_t i = 0; i < parameters_.count(); ++i) {
    const TensorView<const T> from = parameters_.value(i);
    Tensor<T>& to = values.emplace_back(torch_shape(from.shape()));
    T* out = to.data();
    in_torch_order(from.shape(), [&](std::size_t at) {
      if (!std::isfinite(from.data()[at])) {
        throw NumericError(fmt::format("save_weights: {}: {} holds {}, expected finite numbers",
                                       path.string(), parameters_.name(i), from.data()[at]));
      }
      *out++ = from.data()[at];
    });
    arrays.push_back({parameters_.name(i), std::as_const(to).view()});
  }
  write_npz<T>(path, arrays);
}

template <class T>
void Network<T>::load_weights(const std::filesystem::path& path) {
  const std::map<std::string, NpyArray> arrays = read_npz(path);
  std::vector<std::string> missing;
  std::vector<std::string> misshapen;
  std::vector<std::string> mistyped;
  std::vector<std::string> surplus;
  std::map<std::string, std::size_t> expected;
  for (std::size_t i = 0; i < parameters_.count(); ++i) {
    const std::string& name = parameters_.name(i);
    expected[name] = i;
    const auto found = arrays.find(name);
    if (found == arrays.end()) {
      missing.push_back(name);
      continue;
    }
    const Shape want = torch_shape(parameters_.value(i).shape());
    const NpyArray& array = found->second;
    if (!std::ranges::equal(array.shape, want.extents())) {
      misshapen.push_back(
          fmt::format("{} is {}, expected {}", name, shape_text(array.shape), want.to_string()));
    } else if (array.type != NpyType::F4 && array.type != NpyType::F8) {
      mistyped.push_back(name);
    }
  }
  bool surplus_bias = false;
  for (const auto& [name, array] : arrays) {
    if (expected.contains(name)) continue;
    surplus.push_back(name);
    surplus_bias = surplus_bias || name.ends_with(".bias");
  }
  std::string trouble;
  const auto complain = [&trouble](const char* what, const std::vector<std::string>& items) {
    if (!items.empty()) trouble += (trouble.empty() ? "" : "; ") + std::string(what) + ": " + some(items);
  };
  complain("missing", missing);
  complain("not in the model", surplus);
  complain("of another shape", misshapen);
  complain("not of type f4 or f8", mistyped);
  if (!trouble.empty()) {
    if (surplus_bias && options_.parameterization == Parameterization::Ntk && options_.bias_variance == 0) {
      trouble += "; the ntk parameterization with bias variance 0 has no biases";
    }
    throw FormatError(fmt::format("load_weights: {}: {}", path.string(), trouble));
  }

  ParameterSet<T> loaded = parameters_.zeros();
  for (const auto& [name, array] : arrays) {
    const std::size_t index = expected.at(name);
    const Tensor<T> values = array.template to_tensor<T>();
    const TensorView<T> to = loaded.value(index);
    std::size_t from = 0;
    in_torch_order(to.shape(), [&, &name = name](std::size_t at) {
      const T value = values.data()[from];
      if (!std::isfinite(value)) {
        throw FormatError(fmt::format("load_weights: {}: {} holds {} at element {}, expected finite numbers",
                                      path.string(), name, value, from));
      }
      to.data()[at] = value;
      ++from;
    });
  }
  parameters_ = std::move(loaded);
}

template class Network<float>;
template class Network<double>;

}  // namespace gradgram::models
