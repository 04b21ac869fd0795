#pragma once

#include <cstddef>
#include <vector>

/// A plain network, its Jacobian and its kernel: one example, one number at a time, in f64. The oracle of the
/// kernel tests; shares nothing with the library.
namespace reference {

inline constexpr std::size_t kNone = static_cast<std::size_t>(-1);

struct Image {
  std::size_t h = 1, w = 1, c = 1;
  std::vector<double> values;  ///< [h, w, c]
  double& at(std::size_t y, std::size_t x, std::size_t k) { return values[(y * w + x) * c + k]; }
  double at(std::size_t y, std::size_t x, std::size_t k) const { return values[(y * w + x) * c + k]; }
};

enum class Kind { Dense, Conv, Activation, MaxPool, AveragePool, GlobalAveragePool, Flatten, Residual };
enum class Function { Relu, LeakyRelu, Tanh, Sigmoid, Erf, Gelu, Softplus, Sin };

struct Layer {
  Kind kind;
  std::size_t features = 0;  ///< Dense, Conv
  std::size_t window = 1, stride = 1;
  std::size_t window_w = 0, stride_w = 0;    ///< where they differ from the vertical ones
  bool same = true;                          ///< Conv: zero padding so that out = ceil(in / stride)
  bool pool_same = false;                    ///< the same for pools
  std::size_t pad = 0;                       ///< on each side, where nothing is `same`
  std::size_t weight = kNone, bias = kNone;  ///< which parameters; two layers may name the same
  double weight_scale = 1, bias_scale = 1;
  Function function = Function::Relu;
  double slope = 0.01;
  std::vector<Layer> body = {}, shortcut = {};  ///< Residual; an empty shortcut is the identity
};

/// Dense weights [out, in]; convolution weights [kernel_h, kernel_w, in, out]; biases [out].
using Parameters = std::vector<std::vector<double>>;
/// [parameter][element].
using Gradient = std::vector<std::vector<double>>;

std::vector<double> outputs(const std::vector<Layer>& layers, const Parameters& parameters, const Image& x);
/// Gradient of sum_k seed_k f_k(x).
Gradient gradient(const std::vector<Layer>& layers, const Parameters& parameters, const Image& x,
                  const std::vector<double>& seed);
/// One gradient per output.
std::vector<Gradient> jacobian(const std::vector<Layer>& layers, const Parameters& parameters,
                               const Image& x);
/// Gradient of softmax_label(f(x)).
Gradient true_class_gradient(const std::vector<Layer>& layers, const Parameters& parameters, const Image& x,
                             std::size_t label);
/// Inner product over all parameters, or over one.
double dot(const Gradient& a, const Gradient& b, std::size_t parameter = kNone);

}  // namespace reference
