#include "engine/ops/common.hpp"

namespace gradgram::ops {
namespace {

template <class T>
class AddNode final : public Node<T> {
 public:
  AddNode(Var a, Var b, Var y) : a_(a), b_(b), y_(y) {}

  void jvp(Tape<T>& tape) const override {
    const auto a = tape.tangent(a_);
    const auto b = tape.tangent(b_);
    if (a && b) {
      const auto y = tape.make_tangent(y_);
      kernels<T>().add(a.data(), b.data(), y.data(), y.size());
    } else if (a) {
      tape.share_tangent(a_, y_);
    } else if (b) {
      tape.share_tangent(b_, y_);
    }
  }

  void vjp(Tape<T>& tape, Sink<T>&) const override {
    const auto cotangent = tape.cotangent(y_);
    if (!cotangent) return;
    // b first, by copying: a may then take the memory, also when a and b are the same value.
    if (tape.depends(b_)) {
      const auto target = tape.cotangent_target(b_);
      if (target.first) {
        copy(cotangent.data(), target.view.data(), cotangent.size());
      } else {
        kernels<T>().add(target.view.data(), cotangent.data(), target.view.data(), cotangent.size());
      }
    }
    if (tape.depends(a_)) {
      const auto target = tape.take_cotangent(y_, a_);
      if (!target.first) {
        kernels<T>().add(target.view.data(), cotangent.data(), target.view.data(), cotangent.size());
      }
    }
  }

 private:
  Var a_;
  Var b_;
  Var y_;
};

}  // namespace

template <class T>
Var add(Tape<T>& tape, Var a, Var b) {
  if (tape.shape(a) != tape.shape(b)) {
    throw ShapeError("add: shapes " + tape.shape(a).to_string() + " and " + tape.shape(b).to_string() +
                     " must match");
  }
  const Var y = tape.emit(tape.shape(a), tape.depends(a) || tape.depends(b));
  const auto out = tape.mutable_value(y);
  kernels<T>().add(tape.value(a).data(), tape.value(b).data(), out.data(), out.size());
  if (tape.depends(y)) tape.record(AddNode<T>(a, b, y));
  return y;
}

template Var add(Tape<float>&, Var, Var);
template Var add(Tape<double>&, Var, Var);

}  // namespace gradgram::ops
