#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "engine/module.hpp"
#include "models/model.hpp"

namespace gradgram::models {

/// Standard: W ~ N(0, sigma_w^2 / fan_in), b ~ N(0, sigma_b^2), y = W x + b (PyTorch's scale).
/// Ntk: W, b ~ N(0, 1), y = sigma_w / sqrt(fan_in) W x + sigma_b b. (Where papers write 1/sqrt(n_l), the
/// fan-in is meant.) Both give the same function for weights that correspond, but not the same gradients,
/// hence kernels: every output names which one it was.
enum class Parameterization { Standard, Ntk };
std::string_view parameterization_name(Parameterization parameterization) noexcept;  // `standard`, `ntk`
/// Throws ArgumentError.
Parameterization parse_parameterization(std::string_view name);

struct NetworkOptions {
  Parameterization parameterization = Parameterization::Standard;
  double weight_variance = 2.0;  ///< sigma_w^2, 1e-30 to 1e30; 2 keeps the scale through ReLU layers
  /// sigma_b^2, 0 or 1e-30 to 1e30. With 0 the standard parameterization has biases that start at 0 and are
  /// trained; the NTK parameterization, where such biases could neither act nor learn, has none.
  double bias_variance = 0.0;
  std::uint64_t seed = 0;
};

/// The range of variances that are not 0.
inline constexpr double kLeastVariance = 1e-30;
inline constexpr double kMostVariance = 1e30;

/// Throws ArgumentError, calling them by these names, for variances outside their range: products over the
/// layers would leave the numbers.
void check_variances(const NetworkOptions& options, std::string_view weight = "network: weight_variance",
                     std::string_view bias = "network: bias_variance");

/// A model with weights: the finite reading. Parameters are named as in torch.nn.Sequential: `0.weight`,
/// `0.bias`, `3.weight`; inside residual number 4: `4.0.weight` (body), `4.shortcut.0.weight`. They stand in
/// the order of the layers, a residual's body before its shortcut.
template <class T>
class Network final : public Module<T> {
 public:
  /// Draws the weights in f64: equal options give equal bits on every machine (f32 weights are the rounded
  /// f64 ones), and both parameterizations the same draws. A layer's draws depend on its place among the
  /// layers that have weights, not on whether others have biases. Throws ArgumentError for variances outside
  /// their range.
  Network(Model model, const NetworkOptions& options);

  Var forward(Tape<T>& tape, Var x) const override;
  Shape input_shape() const override { return model_.input(); }
  std::size_t outputs() const override { return model_.outputs(); }
  const ParameterSet<T>& parameters() const override { return parameters_; }
  ParameterSet<T>& parameters() override { return parameters_; }

  const Model& model() const noexcept { return model_; }
  const NetworkOptions& options() const noexcept { return options_; }
  Network clone() const;

  /// Writes .npz with PyTorch's names and layouts (dense [out, in], conv [out, in, kh, kw], bias [out]);
  /// whole or not at all. Throws NumericError when a weight is not finite, IoError.
  void save_weights(const std::filesystem::path& path) const;
  /// Reads such a file (f4 or f8); every parameter must be there in its shape and nothing else. Throws
  /// FormatError naming the file and all that is missing, surplus or misshapen, or the first number that is
  /// not finite in T; the network is then unchanged.
  void load_weights(const std::filesystem::path& path);

 private:
  Network(Model model, const NetworkOptions& options, ParameterSet<T> parameters);
  Model model_;
  NetworkOptions options_;
  ParameterSet<T> parameters_;
};

}  // namespace gradgram::models
