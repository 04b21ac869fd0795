#pragma once

#include "engine/parameters.hpp"
#include "engine/tape.hpp"

namespace gradgram {

class Workers;

/// A function of examples with trained parameters: what can be trained and what has a kernel. models::Network
/// is one; a program may write its own from ops (weights may be used twice).
template <class T>
class Module {
 public:
  virtual ~Module() = default;
  /// Records f(x) for a block x [n, ...input_shape()] and returns the outputs [n, outputs()].
  /// Must be safe to call from several threads with different tapes.
  virtual Var forward(Tape<T>& tape, Var x) const = 0;
  /// Shape of one example: {features} or {height, width, channels}.
  virtual Shape input_shape() const = 0;
  /// O.
  virtual std::size_t outputs() const = 0;
  virtual const ParameterSet<T>& parameters() const = 0;
  virtual ParameterSet<T>& parameters() = 0;
};

/// Outputs [n, O] for inputs [n, ...], in blocks; no derivative is recorded. The same bits for any number of
/// workers. Throws ShapeError, and NumericError naming the first example whose output is not finite.
template <class T>
Tensor<T> evaluate(const Module<T>& module, TensorView<const T> inputs, const Workers& workers);

}  // namespace gradgram
