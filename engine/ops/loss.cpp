#include "engine/ops/common.hpp"
#include "engine/ops/softmax.hpp"

namespace gradgram::ops {
namespace {

/// A loss per example whose gradient with respect to the example's outputs was kept by the forward pass.
template <class T>
class LossNode final : public Node<T> {
 public:
  LossNode(Var x, Var y, const T* gradient) : x_(x), y_(y), gradient_(gradient) {}

  void jvp(Tape<T>& tape) const override {
    const auto x = tape.tangent(x_);
    if (!x) return;
    const auto y = tape.make_tangent(y_);
    const std::size_t outputs = tape.shape(x_)[1];
    for (std::size_t i = 0; i < y.size(); ++i) {
      y.data()[i] =
          static_cast<T>(kernels<T>().dot(gradient_ + i * outputs, x.data() + i * outputs, outputs));
    }
  }

  void vjp(Tape<T>& tape, Sink<T>&) const override {
    const auto cotangent = tape.cotangent(y_);
    if (!cotangent || !tape.depends(x_)) return;
    const auto target = tape.cotangent_target(x_);
    const std::size_t outputs = tape.shape(x_)[1];
    for (std::size_t i = 0; i < cotangent.size(); ++i) {
      for (std::size_t k = 0; k < outputs; ++k) {
        const std::size_t at = i * outputs + k;
        const T value = cotangent.data()[i] * gradient_[at];
        target.view.data()[at] = target.first ? value : target.view.data()[at] + value;
      }
    }
  }

 private:
  Var x_;
  Var y_;
  const T* gradient_;
};

}  // namespace

template <class T>
Var mean_squared_error(Tape<T>& tape, Var x, TensorView<const T> targets) {
  const Shape shape = tape.shape(x);
  require_rank("mean_squared_error", shape, 2, "[examples, outputs]");
  if (targets.shape() != shape) {
    throw ShapeError("mean_squared_error: outputs " + shape.to_string() + " and targets " +
                     targets.shape().to_string() + " must match");
  }
  const std::size_t outputs = shape[1];
  const Var y = tape.emit(Shape{shape[0]}, tape.depends(x));
  const auto gradient = tape.arena().template tensor<T>(shape);
  const double weight = 1.0 / static_cast<double>(outputs);
  for (std::size_t i = 0; i < shape[0]; ++i) {
    double sum = 0;
    for (std::size_t k = 0; k < outputs; ++k) {
      const std::size_t at = i * outputs + k;
      const double residual =
          static_cast<double>(tape.value(x).data()[at]) - static_cast<double>(targets.data()[at]);
      sum += residual * residual;
      gradient.data()[at] = static_cast<T>(2 * weight * residual);
    }
    tape.mutable_value(y).data()[i] = static_cast<T>(weight * sum);
  }
  if (tape.depends(y)) tape.record(LossNode<T>(x, y, gradient.data()));
  return y;
}

template <class T>
Var cross_entropy(Tape<T>& tape, Var x, std::span<const std::int32_t> labels) {
  const Shape shape = tape.shape(x);
  require_rank("cross_entropy", shape, 2, "[examples, outputs]");
  if (labels.size() != shape[0]) mismatch("cross_entropy", "examples", shape[0], "labels", labels.size());
  const std::size_t outputs = shape[1];
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < 0 || static_cast<std::size_t>(labels[i]) >= outputs) {
      throw ArgumentError("cross_entropy: label " + std::to_string(labels[i]) + " of example " +
                          std::to_string(i) + " must lie in [0, " + std::to_string(outputs) + ")");
    }
  }
  const Var y = tape.emit(Shape{shape[0]}, tape.depends(x));
  const auto gradient = tape.arena().template tensor<T>(shape);
  for (std::size_t i = 0; i < shape[0]; ++i) {
    const T* row = tape.value(x).data() + i * outputs;
    const auto label = static_cast<std::size_t>(labels[i]);
    const LogNormalizer normalizer = log_normalizer(row, outputs);
    for (std::size_t k = 0; k < outputs; ++k) {
      const double probability = std::exp(normalizer.log_probability(row[k]));
      gradient.data()[i * outputs + k] = static_cast<T>(k == label ? probability - 1 : probability);
    }
    tape.mutable_value(y).data()[i] = static_cast<T>(-normalizer.log_probability(row[label]));
  }
  if (tape.depends(y)) tape.record(LossNode<T>(x, y, gradient.data()));
  return y;
}

template Var mean_squared_error(Tape<float>&, Var, TensorView<const float>);
template Var mean_squared_error(Tape<double>&, Var, TensorView<const double>);
template Var cross_entropy(Tape<float>&, Var, std::span<const std::int32_t>);
template Var cross_entropy(Tape<double>&, Var, std::span<const std::int32_t>);

}  // namespace gradgram::ops
