#pragma once

#include <cmath>

#include "engine/module.hpp"
#include "engine/ops.hpp"
#include "engine/parallel.hpp"
#include "tests/engine/op_check.hpp"

namespace gradgram::testing {

/// x [n, d] -> tanh(0.5 V x + 0.7 b), twice with the same V and b, then a dense layer of its own.
template <class T>
class SharedNet final : public Module<T> {
 public:
  SharedNet(std::size_t features, std::size_t outputs) : features_(features), outputs_(outputs) {
    parameters_.add("shared.weight", random_tensor<T>(Shape{features, features}, 1));
    parameters_.add("shared.bias", random_tensor<T>(Shape{features}, 2));
    parameters_.add("last.weight", random_tensor<T>(Shape{outputs, features}, 3));
    parameters_.add("last.bias", random_tensor<T>(Shape{outputs}, 4));
  }
  Var forward(Tape<T>& tape, Var x) const override {
    const ops::Affine<T> shared{parameters_, 0, 1, static_cast<T>(0.5), static_cast<T>(0.7)};
    const Var once = ops::activation(tape, ops::dense(tape, x, shared), simd::Activation::Tanh);
    const Var twice = ops::activation(tape, ops::dense(tape, once, shared), simd::Activation::Tanh);
    return ops::dense(tape, twice, ops::Affine<T>{parameters_, 2, 3, 1, 1});
  }
  Shape input_shape() const override { return {features_}; }
  std::size_t outputs() const override { return outputs_; }
  const ParameterSet<T>& parameters() const override { return parameters_; }
  ParameterSet<T>& parameters() override { return parameters_; }

 private:
  std::size_t features_;
  std::size_t outputs_;
  ParameterSet<T> parameters_;
};

/// The same with a convolution [3, 3, c, c] used twice, then flatten and dense.
template <class T>
class SharedConvNet final : public Module<T> {
 public:
  SharedConvNet(std::size_t side, std::size_t channels, std::size_t outputs)
      : geometry_(conv_geometry(side, side, channels, channels, 3, 3, 1, 1, {})), outputs_(outputs) {
    parameters_.add("shared.weight", random_tensor<T>(Shape{3, 3, channels, channels}, 1));
    parameters_.add("shared.bias", random_tensor<T>(Shape{channels}, 2));
    parameters_.add("last.weight", random_tensor<T>(Shape{outputs, side * side * channels}, 3));
  }
  Var forward(Tape<T>& tape, Var x) const override {
    const ops::Affine<T> shared{parameters_, 0, 1, static_cast<T>(0.3), static_cast<T>(0.7)};
    const Var once = ops::activation(tape, ops::conv2d(tape, x, geometry_, shared), simd::Activation::Tanh);
    const Var twice =
        ops::activation(tape, ops::conv2d(tape, once, geometry_, shared), simd::Activation::Sigmoid);
    return ops::dense(tape, ops::flatten(tape, twice), ops::Affine<T>{parameters_, 2, kNoParameter, 1, 1});
  }
  Shape input_shape() const override { return {geometry_.in_h, geometry_.in_w, geometry_.c_in}; }
  std::size_t outputs() const override { return outputs_; }
  const ParameterSet<T>& parameters() const override { return parameters_; }
  ParameterSet<T>& parameters() override { return parameters_; }

 private:
  ConvGeometry geometry_;
  std::size_t outputs_;
  ParameterSet<T> parameters_;
};

}  // namespace gradgram::testing
