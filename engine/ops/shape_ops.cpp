#include "engine/ops/common.hpp"

namespace gradgram::ops {
namespace {

template <class T>
class ReshapeNode final : public Node<T> {
 public:
  ReshapeNode(Var x, Var y) : x_(x), y_(y) {}

  void jvp(Tape<T>& tape) const override {
    if (tape.tangent(x_)) tape.share_tangent(x_, y_);
  }

  void vjp(Tape<T>& tape, Sink<T>&) const override {
    const auto cotangent = tape.cotangent(y_);
    if (!cotangent || !tape.depends(x_)) return;
    const auto target = tape.take_cotangent(y_, x_);
    if (!target.first) {
      kernels<T>().add(target.view.data(), cotangent.data(), target.view.data(), cotangent.size());
    }
  }

 private:
  Var x_;
  Var y_;
};

/// out [n, columns, rows] = (or +=) in [n, rows, columns], each example transposed.
template <class T>
void transpose(const T* in, T* out, std::size_t n, std::size_t rows, std::size_t columns, bool accumulate) {
  for (std::size_t i = 0; i < n; ++i, in += rows * columns, out += rows * columns) {
    for (std::size_t c = 0; c < columns; ++c) {
      for (std::size_t r = 0; r < rows; ++r) {
        T& target = out[c * rows + r];
        target = accumulate ? target + in[r * columns + c] : in[r * columns + c];
      }
    }
  }
}

template <class T>
class FlattenNode final : public Node<T> {
 public:
  FlattenNode(Var x, Var y, std::size_t pixels, std::size_t channels)
      : x_(x), y_(y), pixels_(pixels), channels_(channels) {}

  void jvp(Tape<T>& tape) const override {
    const auto x = tape.tangent(x_);
    if (x) transpose(x.data(), tape.make_tangent(y_).data(), tape.examples(y_), pixels_, channels_, false);
  }

  void vjp(Tape<T>& tape, Sink<T>&) const override {
    const auto cotangent = tape.cotangent(y_);
    if (!cotangent || !tape.depends(x_)) return;
    const auto target = tape.cotangent_target(x_);
    transpose(cotangent.data(), target.view.data(), tape.examples(y_), channels_, pixels_, !target.first);
  }

 private:
  Var x_;
  Var y_;
  std::size_t pixels_;
  std::size_t channels_;
};

}  // namespace

template <class T>
Var reshape(Tape<T>& tape, Var x, Shape shape) {
  const Shape target = shape.with_outer(tape.examples(x));
  if (tape.shape(x).inner().size() != shape.size()) {
    throw ShapeError("reshape: " + tape.shape(x).inner().to_string() + " and " + shape.to_string() +
                     " must hold equally many numbers");
  }
  const Var y = tape.emit_view(x, target);
  if (tape.depends(y)) tape.record(ReshapeNode<T>(x, y));
  return y;
}

template <class T>
Var flatten(Tape<T>& tape, Var x) {
  const Shape shape = tape.shape(x);
  if (shape.rank() == 2) return x;
  require_rank("flatten", shape, 4, "[examples, height, width, channels] or [examples, features]");
  const std::size_t pixels = shape[1] * shape[2];
  const std::size_t channels = shape[3];
  // With one channel or one pixel both orders are the same.
  if (pixels == 1 || channels == 1) return reshape(tape, x, Shape{pixels * channels});
  const Var y = tape.emit(Shape{shape[0], channels * pixels}, tape.depends(x));
  transpose(tape.value(x).data(), tape.mutable_value(y).data(), shape[0], pixels, channels, false);
  if (tape.depends(y)) tape.record(FlattenNode<T>(x, y, pixels, channels));
  return y;
}

template Var reshape(Tape<float>&, Var, Shape);
template Var reshape(Tape<double>&, Var, Shape);
template Var flatten(Tape<float>&, Var);
template Var flatten(Tape<double>&, Var);

}  // namespace gradgram::ops
