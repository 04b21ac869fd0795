#include "ntk/infinite/program.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>

#include "engine/error.hpp"
#include "ntk/infinite/infinite.hpp"

namespace gradgram::ntk::infinite {
namespace {

using models::Layer;
using models::LayerKind;

/// A place in the model while it is being compiled.
struct Place {
  std::size_t slot = 0;
  Shape shape;
  bool gaussian =
      false;           ///< features are independent, centred Gaussians given what feeds the last affine map
  bool fresh = false;  ///< in this branch: nothing but linear maps since an affine one
  bool mixed = false;  ///< Gaussians of several variances: those of the pixels that were flattened
  bool raw = true;     ///< features of the input, of which there are finitely many, have a share in these
};

/// Whether flatten may as well come after it: each feature for itself, by a function of it alone.
bool elementwise(const Layer& layer) {
  switch (layer.kind) {
    case LayerKind::Activation:
    case LayerKind::Cos:
    case LayerKind::Monomial:
    case LayerKind::Sign:
      return true;
    case LayerKind::Dropout:
      return layer.rate == 0;
    default:
      return false;
  }
}

class Compiler {
 public:
  Compiler(const models::NetworkOptions& options, bool tangent, Program& program)
      : options_(options), tangent_(tangent), program_(program) {}

  Place list(std::span<const Layer> layers, Place place, const std::string& parent, std::size_t alive) {
    program_.depth = std::max(program_.depth, alive);
    const auto follow = [&](std::size_t i) {
      const std::string path = parent.empty() ? std::to_string(i) : fmt::format("{}.{}", parent, i);
      place = one(layers[i], place, path, alive);
    };
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (layers[i].kind != LayerKind::Flatten) {
        follow(i);
        continue;
      }
      // Flattened features have the variances of many pixels: a nonlinearity is followed before, pixel by
      // pixel.
      const std::size_t flatten = i;
      while (i + 1 < layers.size() && elementwise(layers[i + 1])) follow(++i);
      follow(flatten);
    }
    return place;
  }

 private:
  static std::string name_of(const Layer& layer, const std::string& path) {
    std::string text = models::to_text(layer);
    if (text.size() > 60) text = text.substr(0, 60) + "...";
    return fmt::format("layer {} '{}'", path, text);
  }
  [[noreturn]] static void refuse(const Layer& layer, const std::string& path, const std::string& why) {
    throw NoInfiniteLimit(fmt::format("infinite_kernel: {} {}", name_of(layer, path), why));
  }

  std::size_t pixels(const Shape& shape) const { return shape.rank() == 3 ? shape[0] * shape[1] : 1; }

  Step& emit(StepKind kind, Place& place, const Shape& shape, const std::string& name) {
    Step step;
    step.kind = kind;
    step.in = place.slot;
    step.out = program_.pixels.size();
    step.name = name;
    program_.pixels.push_back(pixels(shape));
    place.slot = step.out;
    place.shape = shape;
    program_.steps.push_back(std::move(step));
    return program_.steps.back();
  }

  void nonlinear(const Layer& layer, Place& place, const std::string& path, const Nonlinearity& phi) {
    if (place.mixed) {
      refuse(layer, path,
             "has no closed infinite-width kernel after flatten: pixels of different variances stand side by "
             "side there; put the activation before flatten");
    }
    if (!place.gaussian) {
      refuse(layer, path,
             "has no closed infinite-width kernel: its inputs are not Gaussian there; put dense or conv "
             "before it");
    }
    emit(StepKind::Nonlinear, place, place.shape, name_of(layer, path)).phi = phi;
    place.gaussian = place.fresh = false;
    program_.homogeneous = program_.homogeneous && phi.kind == Nonlinearity::Kind::ArcCosine;
  }

  void affine(const Layer& layer, Place& place, const std::string& path, const Shape& out) {
    const ConvGeometry geometry =
        layer.kind == LayerKind::Conv ? models::layer_geometry(layer, place.shape) : ConvGeometry{};
    Step& step = emit(StepKind::Affine, place, out, name_of(layer, path));
    // Those of a layer's own are of one range with all others.
    const double weight = layer.weight_scale.value_or(0);
    const double bias = layer.bias_scale.value_or(0);
    const auto require = [&](const char* which, double scale) {
      const double square = scale * scale;
      if (scale == 0 || (square >= models::kLeastVariance && square <= models::kMostVariance)) return;
      throw ArgumentError(fmt::format("infinite_kernel: {}: {}: found {}, expected {:g} to {:g}", step.name,
                                      which, scale, std::sqrt(models::kLeastVariance),
                                      std::sqrt(models::kMostVariance)));
    };
    require("sigma_w", weight);
    require("sigma_b", bias);
    step.weight_variance = layer.weight_scale ? weight * weight : options_.weight_variance;
    step.bias_variance = !layer.bias ? 0 : layer.bias_scale ? bias * bias : options_.bias_variance;
    step.convolution = layer.kind == LayerKind::Conv;
    step.geometry = geometry;
    place.gaussian = place.fresh = true;
    place.mixed = place.raw = false;
  }

  Place one(const Layer& layer, Place place, const std::string& path, std::size_t alive) {
    const Shape in = place.shape;
    switch (layer.kind) {
      case LayerKind::Dense:
        affine(layer, place, path, {layer.features});
        return place;
      case LayerKind::Conv:
        affine(layer, place, path, models::output_shape(layer, in));
        return place;
      case LayerKind::Activation:
        activation(layer, place, path);
        return place;
      case LayerKind::Cos:
        nonlinear(layer, place, path, {.kind = Nonlinearity::Kind::Cos});
        return place;
      case LayerKind::Monomial:
        nonlinear(layer, place, path, {.kind = Nonlinearity::Kind::Monomial, .degree = layer.degree});
        return place;
      case LayerKind::Sign:
        if (tangent_) {
          refuse(
              layer, path,
              "has a covariance (nngp) but no tangent kernel: its derivative is zero almost everywhere, and "
              "the tangent kernels of smooth functions that tend to it grow without bound");
        }
        nonlinear(layer, place, path, {.kind = Nonlinearity::Kind::Sign});
        return place;
      case LayerKind::MaxPool:
        refuse(layer, path,
               "has no infinite-width kernel: the largest of several Gaussians has no closed covariance; "
               "avgpool has one");
      case LayerKind::Softmax:
      case LayerKind::LogSoftmax:
        refuse(layer, path, "has no infinite-width kernel: its outputs depend on each other; end with dense");
      case LayerKind::LayerNorm:
        if (!place.gaussian) {
          refuse(layer, path,
                 "has no closed infinite-width kernel: its inputs are not Gaussian there; put dense or conv "
                 "before it");
        }
        emit(StepKind::Normalize, place, in, name_of(layer, path));
        place.fresh = false;
        return place;
      case LayerKind::Dropout:
        if (layer.rate == 0) return place;
        if (place.raw) refuse(layer, path, "may not act on the input");
        emit(StepKind::Dropout, place, in, name_of(layer, path)).keep = 1 - layer.rate;
        place.gaussian = place.fresh = false;
        return place;
      case LayerKind::Flatten:
        if (in.rank() == 1) return place;
        emit(StepKind::Flatten, place, models::output_shape(layer, in), name_of(layer, path));
        place.mixed = pixels(in) > 1;
        return place;
      case LayerKind::GlobalAveragePool:
      case LayerKind::AveragePool: {
        const bool global = layer.kind == LayerKind::GlobalAveragePool;
        const ConvGeometry geometry =
            global ? conv_geometry(in[0], in[1], in[2], in[2], in[0], in[1], 1, 1, {Padding::Kind::Valid, 0})
                   : models::layer_geometry(layer, in);
        emit(StepKind::AveragePool, place, models::output_shape(layer, in), name_of(layer, path)).geometry =
            geometry;
        return place;
      }
      case LayerKind::Residual:
        return residual(layer, place, path, alive);
    }
    throw ArgumentError("infinite_kernel: unknown kind of layer");
  }

  void activation(const Layer& layer, Place& place, const std::string& path) {
    using simd::Activation;
    Nonlinearity phi;
    switch (layer.activation) {
      case Activation::Relu:
        break;
      case Activation::LeakyRelu:
        if (layer.slope == 1) return;  // the identity
        phi.slope = layer.slope;
        break;
      case Activation::Erf:
        phi.kind = Nonlinearity::Kind::Erf;
        break;
      case Activation::Gelu:
        phi.kind = Nonlinearity::Kind::Gelu;
        break;
      case Activation::Sin:
        phi.kind = Nonlinearity::Kind::Sin;
        break;
      case Activation::Tanh:
      case Activation::Sigmoid:
      case Activation::Softplus:
        phi.kind = Nonlinearity::Kind::Series;
        phi.function = layer.activation;
        break;
    }
    nonlinear(layer, place, path, phi);
  }

  Place residual(const Layer& layer, const Place& place, const std::string& path, std::size_t alive) {
    step_without_slot(StepKind::Push, place);
    Place inner = place;
    inner.fresh = false;
    const Place body = list(layer.body, inner, path, alive + 1);
    Place shortcut = inner;
    if (!layer.shortcut.empty()) {
      step_without_slot(StepKind::Exchange, body);
      shortcut = list(layer.shortcut, inner, path + ".shortcut", alive + 1);
    }
    if (!body.fresh && !shortcut.fresh) {
      refuse(
          layer, path,
          "has no closed infinite-width kernel: its two branches depend on each other; end one of them with "
          "dense or conv");
    }
    const Place& top = layer.shortcut.empty() ? body : shortcut;
    const Place& aside = layer.shortcut.empty() ? shortcut : body;
    Place result = top;
    emit(StepKind::Add, result, top.shape, name_of(layer, path)).other = aside.slot;
    result.gaussian = body.gaussian && shortcut.gaussian;
    result.fresh = body.fresh && shortcut.fresh;
    result.mixed = body.mixed || shortcut.mixed;
    result.raw = body.raw || shortcut.raw;
    return result;
  }

  void step_without_slot(StepKind kind, const Place& place) {
    Step step;
    step.kind = kind;
    step.in = step.out = place.slot;
    program_.steps.push_back(std::move(step));
  }

  const models::NetworkOptions& options_;
  bool tangent_;
  Program& program_;
};

/// Closed forms that need the covariance to a share of sqrt(q q'), and of variances of any size.
bool reads_covariance(Nonlinearity::Kind kind) {
  switch (kind) {
    case Nonlinearity::Kind::Erf:
    case Nonlinearity::Kind::Gelu:
    case Nonlinearity::Kind::Sin:
    case Nonlinearity::Kind::Cos:
      return true;
    default:
      return false;
  }
}

}  // namespace

Program compile(const models::Model& model, const models::NetworkOptions& options, bool tangent) {
  models::check_variances(options, "infinite_kernel: weight_variance", "infinite_kernel: bias_variance");
  Program program;
  program.tangent = tangent;
  program.input = model.input();
  const bool image = program.input.rank() == 3;
  program.channels = image ? program.input[2] : program.input[0];
  Place start;
  start.shape = program.input;
  program.pixels.push_back(image ? program.input[0] * program.input[1] : 1);
  Compiler(options, tangent, program).list(model.layers(), start, {}, 1);

  bool pooled = false;
  bool rounded = false;
  // Pixels that are one number each are all multiples of each other, and so is what a window of one sees.
  bool parallel = image && program.channels == 1;
  for (const Step& step : program.steps) {
    const bool nonlinear = step.kind == StepKind::Nonlinear;
    const bool kink = nonlinear && (step.phi.kind == Nonlinearity::Kind::ArcCosine ||
                                    step.phi.kind == Nonlinearity::Kind::Sign);
    if (step.kind == StepKind::AveragePool) pooled = rounded = true;
    if (pooled && (nonlinear || step.kind == StepKind::Normalize || step.kind == StepKind::Dropout)) {
      program.pooled_variances = true;
    }
    const std::size_t window = step.convolution ? step.geometry.kernel_h * step.geometry.kernel_w : 1;
    parallel = parallel && window == 1 && step.bias_variance == 0;
    if ((rounded || parallel) && kink) program.fragile = true;
    if (nonlinear && step.phi.kind == Nonlinearity::Kind::Monomial && step.phi.degree >= 2) {
      program.fragile = program.powers = true;
    }
    if (step.kind == StepKind::Normalize || (nonlinear && reads_covariance(step.phi.kind)))
      program.fragile = true;
    if (nonlinear && !kink) rounded = true;
  }
  program.reach = !image ? Reach::Vector : pooled ? Reach::Full : Reach::Diagonal;
  return program;
}

}  // namespace gradgram::ntk::infinite
