#include "engine/ops/common.hpp"

namespace gradgram::ops {
namespace {

template <class T>
class ActivationNode final : public Node<T> {
 public:
  ActivationNode(simd::Activation kind, T slope, Var x, Var y) : kind_(kind), slope_(slope), x_(x), y_(y) {}

  void jvp(Tape<T>& tape) const override {
    const auto tangent = tape.tangent(x_);
    if (tangent) chain(tape, tangent.data(), tape.make_tangent(y_).data());
  }

  void vjp(Tape<T>& tape, Sink<T>&) const override {
    const auto cotangent = tape.cotangent(y_);
    if (!cotangent || !tape.depends(x_)) return;
    const auto target = tape.take_cotangent(y_, x_);
    if (target.first) {
      chain(tape, cotangent.data(), target.view.data());
      return;
    }
    const ArenaScope scope(tape.arena());
    const auto product = tape.arena().template tensor<T>(cotangent.shape());
    chain(tape, cotangent.data(), product.data());
    kernels<T>().add(target.view.data(), product.data(), target.view.data(), product.size());
  }

 private:
  void chain(Tape<T>& tape, const T* t, T* out) const {
    const auto y = tape.value(y_);
    kernels<T>().activation_chain(kind_, slope_, tape.value(x_).data(), y.data(), t, out, y.size());
  }

  simd::Activation kind_;
  T slope_;
  Var x_;
  Var y_;
};

}  // namespace

template <class T>
Var activation(Tape<T>& tape, Var x, simd::Activation kind, T slope) {
  const Var y = tape.emit(tape.shape(x), tape.depends(x));
  const auto out = tape.mutable_value(y);
  kernels<T>().activate(kind, slope, tape.value(x).data(), out.data(), out.size());
  if (tape.depends(y)) tape.record(ActivationNode<T>(kind, slope, x, y));
  return y;
}

template Var activation(Tape<float>&, Var, simd::Activation, float);
template Var activation(Tape<double>&, Var, simd::Activation, double);

}  // namespace gradgram::ops
