#include "engine/tape.hpp"

#include <cstring>
#include <string>

namespace gradgram {

template <class T>
Tape<T>::Tape(Arena& arena, bool recording)
    : recorded_(arena), arena_(&arena), scratch_(&arena), begin_(arena.mark()), recording_(recording) {}

template <class T>
Tape<T>::Tape(Arena& arena, Arena& scratch) : Tape(arena) {
  scratch_ = &scratch;
}

template <class T>
Tape<T>::~Tape() {
  recorded_.rewind(begin_);
}

template <class T>
void Tape<T>::replay_in(Arena& arena) noexcept {
  arena_ = scratch_ = &arena;
  replayed_ = false;
}

template <class T>
std::size_t Tape<T>::list_bytes() const noexcept {
  return slots_.capacity() * sizeof(Slot) + nodes_.capacity() * sizeof(nodes_[0]) +
         parameter_uses_.capacity() * sizeof(parameter_uses_[0]);
}

template <class T>
Var Tape<T>::input(TensorView<const T> value, bool differentiable) {
  if (value.shape().rank() == 0) throw ShapeError("tape: an input needs an example axis, found shape []");
  Slot slot;
  slot.value = {const_cast<T*>(value.data()), value.shape()};
  slot.differentiable = differentiable;
  slots_.push_back(slot);
  return {static_cast<std::uint32_t>(slots_.size() - 1)};
}

template <class T>
Var Tape<T>::emit(Shape shape, bool differentiable) {
  Slot slot;
  slot.value = arena_->tensor<T>(shape);
  slot.differentiable = differentiable;
  slots_.push_back(slot);
  return {static_cast<std::uint32_t>(slots_.size() - 1)};
}

template <class T>
Var Tape<T>::emit_view(Var source, Shape shape) {
  Slot slot;
  slot.value = slots_[source.index].value.reshaped(shape);
  slot.differentiable = slots_[source.index].differentiable;
  slots_.push_back(slot);
  return {static_cast<std::uint32_t>(slots_.size() - 1)};
}

template <class T>
TensorView<T> Tape<T>::mutable_value(Var var) {
  return slots_[var.index].value;
}

template <class T>
void Tape<T>::count_parameter_use(std::size_t parameter) {
  if (parameter == kNoParameter) return;
  if (parameter >= parameter_uses_.size()) parameter_uses_.resize(parameter + 1);
  ++parameter_uses_[parameter];
}

template <class T>
void Tape<T>::begin_replay(const char* call) {
  if (!recording_) {
    throw ArgumentError(std::string("tape: ") + call +
                        " needs a tape that records, this one keeps values only");
  }
  for (Slot& slot : slots_) {
    slot.cotangent = {};
    slot.tangent = {};
  }
  const Arena::Mark now = arena_->mark();
  // Reuse the memory of the last replay, unless somebody allocated after it: his numbers (a seed, say) stay.
  if (replayed_ && now.chunk == end_of_replay_.chunk && now.used == end_of_replay_.used) {
    arena_->rewind(end_of_forward_);
  } else {
    end_of_forward_ = now;
  }
  replayed_ = true;
}

template <class T>
void Tape<T>::reverse(Var output, TensorView<const T> seed, Sink<T>& sink) {
  if (seed.shape() != shape(output)) {
    throw ShapeError("tape: seed " + seed.shape().to_string() + " and output " + shape(output).to_string() +
                     " must match");
  }
  begin_replay("reverse()");
  if (depends(output)) {
    const TensorView<T> cotangent = add_cotangent(output);
    if (seed.size() != 0) std::memcpy(cotangent.data(), seed.data(), seed.size() * sizeof(T));
    for (auto node = nodes_.rbegin(); node != nodes_.rend(); ++node) (*node)->vjp(*this, sink);
  }
  end_of_replay_ = arena_->mark();
}

template <class T>
TensorView<const T> Tape<T>::tangents(Var output, const ParameterSet<T>* parameters, Var input,
                                      TensorView<const T> input_tangent) {
  if (input_tangent) {
    if (input_tangent.shape() != shape(input)) {
      throw ShapeError("tape: tangent " + input_tangent.shape().to_string() + " and input " +
                       shape(input).to_string() + " must match");
    }
    if (!depends(input))
      throw ArgumentError("tape: a tangent was given for an input that is not differentiable");
  }
  begin_replay("tangents()");
  parameter_tangents_ = parameters;
  if (input_tangent) {
    slots_[input.index].tangent = {const_cast<T*>(input_tangent.data()), input_tangent.shape()};
  }
  for (const Node<T>* node : nodes_) node->jvp(*this);
  parameter_tangents_ = nullptr;
  if (!slots_[output.index].tangent) {
    const TensorView<T> zero = make_tangent(output);
    if (zero.size() != 0) std::memset(zero.data(), 0, zero.size() * sizeof(T));
  }
  end_of_replay_ = arena_->mark();
  return slots_[output.index].tangent;
}

template <class T>
TensorView<T> Tape<T>::add_cotangent(Var var) {
  const Target target = cotangent_target(var);
  if (target.first && target.view.size() != 0) {
    std::memset(target.view.data(), 0, target.view.size() * sizeof(T));
  }
  return target.view;
}

template <class T>
typename Tape<T>::Target Tape<T>::cotangent_target(Var var) {
  Slot& slot = slots_[var.index];
  if (slot.cotangent) return {slot.cotangent, false};
  slot.cotangent = arena_->tensor<T>(slot.value.shape());
  return {slot.cotangent, true};
}

template <class T>
typename Tape<T>::Target Tape<T>::take_cotangent(Var result, Var source) {
  Slot& slot = slots_[source.index];
  if (slot.cotangent) return {slot.cotangent, false};
  slot.cotangent = slots_[result.index].cotangent.reshaped(slot.value.shape());
  return {slot.cotangent, true};
}

template <class T>
TensorView<const T> Tape<T>::parameter_tangent(std::size_t parameter) const {
  if (parameter_tangents_ == nullptr || parameter == kNoParameter) return {};
  return parameter_tangents_->value(parameter);
}

template <class T>
TensorView<T> Tape<T>::make_tangent(Var var) {
  Slot& slot = slots_[var.index];
  slot.tangent = arena_->tensor<T>(slot.value.shape());
  return slot.tangent;
}

template <class T>
void Tape<T>::share_tangent(Var source, Var result) {
  slots_[result.index].tangent = slots_[source.index].tangent.reshaped(slots_[result.index].value.shape());
}

template class Tape<float>;
template class Tape<double>;

}  // namespace gradgram
