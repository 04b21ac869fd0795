#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "engine/module.hpp"
#include "models/model.hpp"

namespace gradgram::models {

/// Standard: W ~ N(0, sigma_w^2 / fan_in), y = W x + b. Ntk: W ~ N(0, 1), y = sigma_w / sqrt(fan_in) W x + sigma_b b.
/// Gradients, hence kernels, differ; every output names which. (SCIENCE: the papers' 1/sqrt(n_l) means the fan-in.)
enum class Parameterization { Standard, Ntk };
std::string_view parameterization_name(Parameterization parameterization) noexcept;  // `standard`, `ntk`
/// Throws ArgumentError.
Parameterization parse_parameterization(std::string_view name);

struct NetworkOptions {
  Parameterization parameterization = Parameterization::Standard;
  /// sigma_w^2 = weight_variance. Biases start as N(0, 1) * sigma_b in the NTK parameterization (stored as N(0,1)) and
  /// as N(0, sigma_b^2) in the standard one.
  double weight_variance = 2.0;
  double bias_variance = 0.0;
  std::uint64_t seed = 0;
};

/// A model with weights: the finite reading. Parameters are named as in torch.nn.Sequential: `0.weight`, `0.bias`,
/// `3.weight`; inside residual number 4: `4.0.weight` (body), `4.shortcut.0.weight`.
template <class T>
class Network final : public Module<T> {
 public:
  /// Draws the weights: equal options give equal bits on every machine (f32 weights are the rounded f64 ones).
  Network(Model model, const NetworkOptions& options);

  Var forward(Tape<T>& tape, Var x) const override;
  Shape input_shape() const override { return model_.input(); }
  std::size_t outputs() const override { return model_.outputs(); }
  const ParameterSet<T>& parameters() const override { return parameters_; }
  ParameterSet<T>& parameters() override { return parameters_; }

  const Model& model() const noexcept { return model_; }
  const NetworkOptions& options() const noexcept { return options_; }
  Network clone() const;

  /// Writes .npz with PyTorch's names and layouts (dense [out, in], conv [out, in, kh, kw], bias [out]); whole or not
  /// at all. Throws IoError.
  void save_weights(const std::filesystem::path& path) const;
  /// Reads such a file (f4 or f8); every parameter must be there in its shape and nothing else. Throws FormatError /
  /// ShapeError naming the file, the parameter, and both shapes.
  void load_weights(const std::filesystem::path& path);

 private:
  Network() = default;
  Model model_{{}, Shape{1}};
  NetworkOptions options_;
  ParameterSet<T> parameters_;
};

}  // namespace gradgram::models
