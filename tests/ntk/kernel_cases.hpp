#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/module.hpp"
#include "engine/ops.hpp"
#include "engine/random.hpp"
#include "models/network.hpp"
#include "tests/reference/network_kernel.hpp"

/// Networks of the kernel tests, each in two readings: the library's module and the plain reference's layers.
namespace kernel_cases {

using namespace gradgram;

/// A convolution and a dense layer that are each used twice, written from ops.
template <class T>
class SharedWeights final : public Module<T> {
 public:
  SharedWeights() {
    Random random(11);
    const auto draw = [&](Shape shape) {
      Tensor<T> values(shape);
      for (T& value : values.span()) value = static_cast<T>(0.4 * random.normal());
      return values;
    };
    conv_ = parameters_.add("conv.weight", draw({3, 3, 2, 2}));
    conv_bias_ = parameters_.add("conv.bias", draw({2}));
    dense_ = parameters_.add("dense.weight", draw({50, 50}));
    dense_bias_ = parameters_.add("dense.bias", draw({50}));
    head_ = parameters_.add("head.weight", draw({3, 50}));
  }

  Var forward(Tape<T>& tape, Var x) const override {
    const ConvGeometry geometry = conv_geometry(5, 5, 2, 2, 3, 3, 1, 1, {});
    const ops::Affine<T> first{parameters_, conv_, conv_bias_, T(0.5), T(0.25)};
    // The second use goes without the bias and with another scale.
    const ops::Affine<T> second{parameters_, conv_, kNoParameter, T(0.75), T(1)};
    x = ops::conv2d(tape, x, geometry, first);
    x = ops::activation(tape, x, simd::Activation::Tanh);
    x = ops::conv2d(tape, x, geometry, second);
    x = ops::flatten(tape, x);
    const ops::Affine<T> dense{parameters_, dense_, dense_bias_, T(0.5), T(1)};
    x = ops::dense(tape, x, dense);
    x = ops::activation(tape, x, simd::Activation::Sin);
    x = ops::dense(tape, x, dense);
    return ops::dense(tape, x, {parameters_, head_});
  }
  Shape input_shape() const override { return {5, 5, 2}; }
  std::size_t outputs() const override { return 3; }
  const ParameterSet<T>& parameters() const override { return parameters_; }
  ParameterSet<T>& parameters() override { return parameters_; }

  static std::vector<reference::Layer> layers() {
    using reference::Function;
    using reference::Kind;
    return {{.kind = Kind::Conv,
             .features = 2,
             .window = 3,
             .weight = 0,
             .bias = 1,
             .weight_scale = 0.5,
             .bias_scale = 0.25},
            {.kind = Kind::Activation, .function = Function::Tanh},
            {.kind = Kind::Conv, .features = 2, .window = 3, .weight = 0, .weight_scale = 0.75},
            {.kind = Kind::Flatten},
            {.kind = Kind::Dense, .features = 50, .weight = 2, .bias = 3, .weight_scale = 0.5},
            {.kind = Kind::Activation, .function = Function::Sin},
            {.kind = Kind::Dense, .features = 50, .weight = 2, .bias = 3, .weight_scale = 0.5},
            {.kind = Kind::Dense, .features = 3, .weight = 4}};
  }

 private:
  ParameterSet<T> parameters_;
  std::size_t conv_, conv_bias_, dense_, dense_bias_, head_;
};

/// A dense layer applied at several positions (the pixels of an image), then a mean over them.
template <class T>
class PositionDense final : public Module<T> {
 public:
  PositionDense() {
    Random random(12);
    const auto draw = [&](Shape shape) {
      Tensor<T> values(shape);
      for (T& value : values.span()) value = static_cast<T>(0.6 * random.normal());
      return values;
    };
    parameters_.add("pixel.weight", draw({7, 3}));
    parameters_.add("pixel.bias", draw({7}));
    parameters_.add("head.weight", draw({2, 7}));
    parameters_.add("head.bias", draw({2}));
  }

  Var forward(Tape<T>& tape, Var x) const override {
    x = ops::reshape(tape, x, {20, 3});
    x = ops::dense(tape, x, {parameters_, 0, 1, T(0.5), T(2)});
    x = ops::activation(tape, x, simd::Activation::Softplus);
    x = ops::reshape(tape, x, {4, 5, 7});
    x = ops::global_average_pool(tape, x);
    return ops::dense(tape, x, {parameters_, 2, 3});
  }
  Shape input_shape() const override { return {4, 5, 3}; }
  std::size_t outputs() const override { return 2; }
  const ParameterSet<T>& parameters() const override { return parameters_; }
  ParameterSet<T>& parameters() override { return parameters_; }

  /// A dense layer at every pixel is a convolution with a 1 x 1 window whose weights are transposed.
  static std::vector<reference::Layer> layers() {
    using reference::Function;
    using reference::Kind;
    return {{.kind = Kind::Conv, .features = 7, .weight = 0, .bias = 1, .weight_scale = 0.5, .bias_scale = 2},
            {.kind = Kind::Activation, .function = Function::Softplus},
            {.kind = Kind::GlobalAveragePool},
            {.kind = Kind::Dense, .features = 2, .weight = 2, .bias = 3}};
  }

 private:
  ParameterSet<T> parameters_;
};

struct Case {
  std::string name;
  std::string text;  ///< of models::parse; empty: `shared` or `positions`
  Shape input;
  models::Parameterization parameterization = models::Parameterization::Standard;
  std::vector<reference::Layer> layers;
};

inline std::vector<Case> all() {
  using reference::Function;
  using reference::Kind;
  using reference::Layer;
  const auto standard = models::Parameterization::Standard;
  const auto ntk = models::Parameterization::Ntk;
  const auto act = [](Function function) { return Layer{.kind = Kind::Activation, .function = function}; };
  const auto scale = [](double fan_in) { return std::sqrt(2.0 / fan_in); };
  const double beta = std::sqrt(0.3);
  return {
      {"mlp relu",
       "dense(17) relu dense(11) relu dense(1)",
       {7},
       standard,
       {{.kind = Kind::Dense, .features = 17, .weight = 0, .bias = 1},
        act(Function::Relu),
        {.kind = Kind::Dense, .features = 11, .weight = 2, .bias = 3},
        act(Function::Relu),
        {.kind = Kind::Dense, .features = 1, .weight = 4, .bias = 5}}},
      {"mlp ntk",
       "dense(19) tanh dense(13) erf dense(3)",
       {5},
       ntk,
       {{.kind = Kind::Dense,
         .features = 19,
         .weight = 0,
         .bias = 1,
         .weight_scale = scale(5),
         .bias_scale = beta},
        act(Function::Tanh),
        {.kind = Kind::Dense,
         .features = 13,
         .weight = 2,
         .bias = 3,
         .weight_scale = scale(19),
         .bias_scale = beta},
        act(Function::Erf),
        {.kind = Kind::Dense,
         .features = 3,
         .weight = 4,
         .bias = 5,
         .weight_scale = scale(13),
         .bias_scale = beta}}},
      {"cnn pools",
       "conv(5,3) relu maxpool(2) conv(4,3,stride=2) gelu avgpool(2) flatten dense(3)",
       {9, 8, 3},
       standard,
       {{.kind = Kind::Conv, .features = 5, .window = 3, .weight = 0, .bias = 1},
        act(Function::Relu),
        {.kind = Kind::MaxPool, .window = 2, .stride = 2},
        {.kind = Kind::Conv, .features = 4, .window = 3, .stride = 2, .weight = 2, .bias = 3},
        act(Function::Gelu),
        {.kind = Kind::AveragePool, .window = 2, .stride = 2},
        {.kind = Kind::Flatten},
        {.kind = Kind::Dense, .features = 3, .weight = 4, .bias = 5}}},
      {"cnn ntk gap",
       "conv(6,3,pad=valid) sigmoid conv(3,3) leakyrelu gap dense(2)",
       {7, 6, 2},
       ntk,
       {{.kind = Kind::Conv,
         .features = 6,
         .window = 3,
         .same = false,
         .weight = 0,
         .bias = 1,
         .weight_scale = scale(18),
         .bias_scale = beta},
        act(Function::Sigmoid),
        {.kind = Kind::Conv,
         .features = 3,
         .window = 3,
         .weight = 2,
         .bias = 3,
         .weight_scale = scale(54),
         .bias_scale = beta},
        act(Function::LeakyRelu),
        {.kind = Kind::GlobalAveragePool},
        {.kind = Kind::Dense,
         .features = 2,
         .weight = 4,
         .bias = 5,
         .weight_scale = scale(3),
         .bias_scale = beta}}},
      {"residual",
       "conv(4,3) sin residual(conv(4,3) softplus conv(4,3)) residual(conv(5,1) | conv(5,3)) gap dense(2)",
       {6, 6, 1},
       standard,
       {{.kind = Kind::Conv, .features = 4, .window = 3, .weight = 0, .bias = 1},
        act(Function::Sin),
        {.kind = Kind::Residual,
         .body = {{.kind = Kind::Conv, .features = 4, .window = 3, .weight = 2, .bias = 3},
                  act(Function::Softplus),
                  {.kind = Kind::Conv, .features = 4, .window = 3, .weight = 4, .bias = 5}}},
        {.kind = Kind::Residual,
         .body = {{.kind = Kind::Conv, .features = 5, .window = 1, .weight = 6, .bias = 7}},
         .shortcut = {{.kind = Kind::Conv, .features = 5, .window = 3, .weight = 8, .bias = 9}}},
        {.kind = Kind::GlobalAveragePool},
        {.kind = Kind::Dense, .features = 2, .weight = 10, .bias = 11}}},
      {"shared weights", "", {5, 5, 2}, standard, SharedWeights<double>::layers()},
      {"dense at positions", "", {4, 5, 3}, standard, PositionDense<double>::layers()},
  };
}

template <class T>
std::unique_ptr<Module<T>> module_of(const Case& c) {
  if (c.name == "shared weights") return std::make_unique<SharedWeights<T>>();
  if (c.name == "dense at positions") return std::make_unique<PositionDense<T>>();
  models::NetworkOptions options;
  options.parameterization = c.parameterization;
  options.bias_variance = 0.3;
  options.seed = 5;
  return std::make_unique<models::Network<T>>(models::parse(c.text, c.input), options);
}

template <class T>
Tensor<T> inputs_of(const Shape& example, std::size_t n, std::uint64_t seed) {
  Random random(seed);
  Tensor<T> x(example.with_outer(n));
  for (T& value : x.span()) value = static_cast<T>(random.normal());
  return x;
}

inline std::vector<std::int32_t> labels_of(std::size_t n, std::size_t outputs, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::int32_t> labels(n);
  for (auto& label : labels) label = static_cast<std::int32_t>(random.below(outputs));
  return labels;
}

template <class T>
reference::Parameters reference_parameters(const Case& c, const Module<T>& module) {
  reference::Parameters result;
  for (std::size_t p = 0; p < module.parameters().count(); ++p) {
    const auto value = module.parameters().value(p);
    result.emplace_back(value.span().begin(), value.span().end());
  }
  if (c.name == "dense at positions") {  // [out, in] -> [1, 1, in, out]
    std::vector<double> transposed(21);
    for (std::size_t o = 0; o < 7; ++o) {
      for (std::size_t i = 0; i < 3; ++i) transposed[i * 7 + o] = result[0][o * 3 + i];
    }
    result[0] = transposed;
  }
  return result;
}

template <class T>
reference::Image reference_image(const Shape& example, TensorView<const T> x, std::size_t i) {
  reference::Image image;
  if (example.rank() == 1) {
    image.c = example[0];
  } else {
    image.h = example[0];
    image.w = example[1];
    image.c = example[2];
  }
  const auto values = x.slice(i).span();
  image.values.assign(values.begin(), values.end());
  return image;
}

}  // namespace kernel_cases
