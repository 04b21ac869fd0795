#include "engine/ops/softmax.hpp"

#include "engine/ops/common.hpp"

namespace gradgram::ops {
namespace {

template <class T>
class SoftmaxNode final : public Node<T> {
 public:
  SoftmaxNode(Var x, Var y, bool logarithm) : x_(x), y_(y), logarithm_(logarithm) {}

  void jvp(Tape<T>& tape) const override {
    const auto x = tape.tangent(x_);
    if (!x) return;
    const auto out = tape.make_tangent(y_);
    each_row(tape, [&](std::size_t at, const T* y, std::size_t outputs) {
      const T* t = x.data() + at;
      double mean = 0;
      for (std::size_t k = 0; k < outputs; ++k) mean += probability(y[k]) * static_cast<double>(t[k]);
      for (std::size_t k = 0; k < outputs; ++k) {
        const double centred = static_cast<double>(t[k]) - mean;
        out.data()[at + k] = static_cast<T>(logarithm_ ? centred : probability(y[k]) * centred);
      }
    });
  }

  void vjp(Tape<T>& tape, Sink<T>&) const override {
    const auto cotangent = tape.cotangent(y_);
    if (!cotangent || !tape.depends(x_)) return;
    const auto target = tape.cotangent_target(x_);
    each_row(tape, [&](std::size_t at, const T* y, std::size_t outputs) {
      const T* b = cotangent.data() + at;
      double sum = 0;
      for (std::size_t k = 0; k < outputs; ++k) {
        sum += logarithm_ ? static_cast<double>(b[k]) : probability(y[k]) * static_cast<double>(b[k]);
      }
      for (std::size_t k = 0; k < outputs; ++k) {
        const double p = probability(y[k]);
        const double own = static_cast<double>(b[k]);
        const T value = static_cast<T>(logarithm_ ? own - p * sum : p * (own - sum));
        T& out = target.view.data()[at + k];
        out = target.first ? value : out + value;
      }
    });
  }

 private:
  double probability(T y) const {
    return logarithm_ ? std::exp(static_cast<double>(y)) : static_cast<double>(y);
  }
  template <class F>
  void each_row(Tape<T>& tape, F&& f) const {
    const auto y = tape.value(y_);
    const std::size_t outputs = y.shape()[1];
    for (std::size_t i = 0; i < y.shape()[0]; ++i) f(i * outputs, y.data() + i * outputs, outputs);
  }

  Var x_;
  Var y_;
  bool logarithm_;
};

template <class T>
Var record_softmax(Tape<T>& tape, Var x, bool logarithm) {
  const Shape shape = tape.shape(x);
  require_rank(logarithm ? "log_softmax" : "softmax", shape, 2, "[examples, outputs]");
  const Var y = tape.emit(shape, tape.depends(x));
  const std::size_t outputs = shape[1];
  const T* in = tape.value(x).data();
  T* out = tape.mutable_value(y).data();
  for (std::size_t i = 0; i < shape[0]; ++i, in += outputs, out += outputs) {
    const LogNormalizer normalizer = log_normalizer(in, outputs);
    for (std::size_t k = 0; k < outputs; ++k) {
      const double log_probability = normalizer.log_probability(in[k]);
      out[k] = static_cast<T>(logarithm ? log_probability : std::exp(log_probability));
    }
  }
  if (tape.depends(y)) tape.record(SoftmaxNode<T>(x, y, logarithm));
  return y;
}

}  // namespace

template <class T>
Var softmax(Tape<T>& tape, Var x) {
  return record_softmax(tape, x, false);
}

template <class T>
Var log_softmax(Tape<T>& tape, Var x) {
  return record_softmax(tape, x, true);
}

template Var softmax(Tape<float>&, Var);
template Var softmax(Tape<double>&, Var);
template Var log_softmax(Tape<float>&, Var);
template Var log_softmax(Tape<double>&, Var);

}  // namespace gradgram::ops
