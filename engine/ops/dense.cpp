#include "engine/matrix_product.hpp"
#include "engine/ops/common.hpp"

namespace gradgram::ops {
namespace {

template <class T>
class DenseNode final : public Node<T> {
 public:
  DenseNode(const Affine<T>& affine, Var x, Var y, std::size_t positions)
      : affine_(affine), x_(x), y_(y), positions_(positions) {}

  /// y = scale x W^T (+ y).
  static void multiply(const T* x, const T* weight, T scale, bool accumulate, T* y, std::size_t rows,
                       std::size_t d_in, std::size_t d_out, Arena& arena) {
    gradgram::multiply(true, rows, d_out, d_in, scale, x, d_in, weight, d_in, accumulate, y, d_out, arena);
  }

  void jvp(Tape<T>& tape) const override {
    const auto x = tape.tangent(x_);
    const auto weight = tape.parameter_tangent(affine_.weight);
    const auto bias = tape.parameter_tangent(affine_.bias);
    if (!x && !weight && !bias) return;
    const auto y = tape.make_tangent(y_);
    const std::size_t rows = tape.examples(y_) * positions_;
    bool accumulate = false;
    if (bias) {
      fill_rows(bias.data(), affine_.bias_scale, y.data(), rows, d_out());
      accumulate = true;
    }
    if (weight) {
      multiply(tape.value(x_).data(), weight.data(), affine_.weight_scale, accumulate, y.data(), rows, d_in(),
               d_out(), tape.arena());
      accumulate = true;
    }
    if (x) {
      multiply(x.data(), affine_.parameters.value(affine_.weight).data(), affine_.weight_scale, accumulate,
               y.data(), rows, d_in(), d_out(), tape.arena());
    }
  }

  void vjp(Tape<T>& tape, Sink<T>& sink) const override {
    const auto cotangent = tape.cotangent(y_);
    if (!cotangent) return;
    const std::size_t n = tape.examples(y_);
    {
      const ArenaScope scope(tape.arena());
      sink.use(DenseUse<T>{.weight = affine_.weight,
                           .bias = affine_.bias,
                           .weight_scale = affine_.weight_scale,
                           .bias_scale = affine_.bias_scale,
                           .inputs = tape.value(x_).reshaped({n, positions_, d_in()}),
                           .cotangents = cotangent.reshaped({n, positions_, d_out()})},
               tape.arena());
    }
    if (!tape.depends(x_)) return;
    const auto target = tape.cotangent_target(x_);
    gradgram::multiply(false, n * positions_, d_in(), d_out(), affine_.weight_scale, cotangent.data(),
                       d_out(), affine_.parameters.value(affine_.weight).data(), d_in(), !target.first,
                       target.view.data(), d_in(), tape.arena());
  }

 private:
  std::size_t d_out() const { return affine_.parameters.value(affine_.weight).shape()[0]; }
  std::size_t d_in() const { return affine_.parameters.value(affine_.weight).shape()[1]; }

  Affine<T> affine_;
  Var x_;
  Var y_;
  std::size_t positions_;
};

}  // namespace

template <class T>
Var dense(Tape<T>& tape, Var x, const Affine<T>& affine) {
  const Shape shape = tape.shape(x);
  if (shape.rank() != 2 && shape.rank() != 3) {
    throw ShapeError("dense: input must be [examples, features] or [examples, positions, features], found " +
                     shape.to_string());
  }
  if (affine.weight >= affine.parameters.count()) {
    mismatch("dense", "parameter index", affine.weight, "an index below the parameter count",
             affine.parameters.count());
  }
  const auto weight = affine.parameters.value(affine.weight);
  if (weight.shape().rank() != 2) {
    throw ShapeError("dense: parameter `" + affine.parameters.name(affine.weight) +
                     "` must be [d_out, d_in], found " + weight.shape().to_string());
  }
  const std::size_t d_out = weight.shape()[0];
  const std::size_t d_in = weight.shape()[1];
  const std::size_t features = shape[shape.rank() - 1];
  if (features != d_in) mismatch("dense", "inputs.features", features, "weights.d_in", d_in);
  if (affine.bias != kNoParameter) require_shape("dense", affine.parameters, affine.bias, Shape{d_out});

  const std::size_t positions = shape.rank() == 3 ? shape[1] : 1;
  const Var y =
      tape.emit(shape.rank() == 3 ? Shape{shape[0], positions, d_out} : Shape{shape[0], d_out}, true);
  T* const out = tape.mutable_value(y).data();
  const std::size_t rows = shape[0] * positions;
  const bool has_bias = affine.bias != kNoParameter;
  if (has_bias) fill_rows(affine.parameters.value(affine.bias).data(), affine.bias_scale, out, rows, d_out);
  DenseNode<T>::multiply(tape.value(x).data(), weight.data(), affine.weight_scale, has_bias, out, rows, d_in,
                         d_out, tape.scratch());
  tape.count_parameter_use(affine.weight);
  tape.count_parameter_use(affine.bias);
  tape.record(DenseNode<T>(affine, x, y, positions));
  return y;
}

template Var dense(Tape<float>&, Var, const Affine<float>&);
template Var dense(Tape<double>&, Var, const Affine<double>&);

}  // namespace gradgram::ops
