#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "engine/arena.hpp"
#include "engine/parameters.hpp"
#include "engine/sink.hpp"
#include "engine/tensor.hpp"

namespace gradgram {

/// A value on a tape: the result of one op for a whole block of examples (first axis).
struct Var {
  std::uint32_t index = 0;
};

template <class T>
class Tape;

/// One recorded application of an op. Lives in the tape's arena and is never destroyed: trivially
/// destructible.
template <class T>
class Node {
 public:
  /// Reads the tangents of its inputs (absent means zero) and of its parameters; writes the tangent of its
  /// output, all of it.
  virtual void jvp(Tape<T>& tape) const = 0;
  /// Reads the cotangent of its output, adds to the cotangents of the inputs that want one, hands parameter
  /// uses to the sink.
  virtual void vjp(Tape<T>& tape, Sink<T>& sink) const = 0;

 protected:
  ~Node() = default;
};

/// Records a forward pass over one block of examples and replays it: backwards with cotangents, as often as
/// there are outputs to differentiate, or forwards with tangents. Single-threaded; one per worker; memory
/// comes from the arena and goes back when the tape ends.
template <class T>
class Tape {
 public:
  /// `recording` = false keeps values only (evaluation): reverse() and tangents() then throw.
  explicit Tape(Arena& arena, bool recording = true);
  /// A recording one that keeps in `arena` what replays need and nothing else: working memory of the forward
  /// pass comes from `scratch`, until replay_in().
  Tape(Arena& arena, Arena& scratch);
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  /// A block of examples [n, ...]; the numbers must outlive the tape. With `differentiable` the reverse pass
  /// also yields its cotangent and it may carry a tangent.
  Var input(TensorView<const T> value, bool differentiable = false);

  TensorView<const T> value(Var var) const { return slots_[var.index].value; }
  const Shape& shape(Var var) const { return slots_[var.index].value.shape(); }
  std::size_t examples(Var var) const { return shape(var)[0]; }

  /// Reverse mode from `output` with cotangent `seed` (shape of output; copied). Uses reach the sink;
  /// cotangents of differentiable inputs stay readable until the next reverse() or tangents(), which reuses
  /// their memory (unless something else was allocated from the arena in between: then that stays, and so do
  /// they until the tape ends). Throws ShapeError, and ArgumentError on a tape that does not record. Cost:
  /// about twice the forward pass.
  void reverse(Var output, TensorView<const T> seed, Sink<T>& sink);
  /// From now on replays take their memory from `arena`, which must outlive them: a recorded pass that is
  /// kept needs none of its own for cotangents, and another worker may replay it. What earlier replays left
  /// is gone.
  void replay_in(Arena& arena) noexcept;
  /// Of a differentiable input; empty when nothing reached it. (Those of other values are overwritten on the
  /// way.)
  TensorView<const T> cotangent(Var var) const { return slots_[var.index].cotangent; }

  /// Forward mode along tangents of the parameters and of at most one differentiable input (either may be
  /// absent). Returns the tangent of `output`, valid until the next reverse() or tangents().
  TensorView<const T> tangents(Var output, const ParameterSet<T>* parameters, Var input = {},
                               TensorView<const T> input_tangent = {});

  /// How often each parameter is used by the recorded ops; [parameter count or less].
  const std::vector<std::uint32_t>& parameter_uses() const noexcept { return parameter_uses_; }
  Arena& arena() noexcept { return *arena_; }
  /// For what an op needs while it computes a value; it rewinds it.
  Arena& scratch() noexcept { return *scratch_; }
  /// What the lists of values and nodes take outside the arena.
  std::size_t list_bytes() const noexcept;

  // For ops:

  /// A new value, uninitialized, in the arena. `differentiable` says whether it depends on a parameter or a
  /// differentiable input; take it from the inputs with depends().
  Var emit(Shape shape, bool differentiable);
  /// A new value which is `source` seen in another shape.
  Var emit_view(Var source, Shape shape);
  TensorView<T> mutable_value(Var var);
  bool depends(Var var) const { return slots_[var.index].differentiable; }
  bool recording() const noexcept { return recording_; }
  /// Copies a node (a trivially destructible subclass of Node<T>) into the arena; nothing happens unless
  /// recording.
  template <class N>
  void record(const N& node) {
    static_assert(std::is_trivially_destructible_v<N> && std::is_base_of_v<Node<T>, N>);
    if (recording_) nodes_.push_back(new (arena_->allocate(sizeof(N))) N(node));
  }
  void count_parameter_use(std::size_t parameter);
  /// The cotangent to which a vjp adds; zeroed on its first request. Must not be asked for when
  /// !depends(var).
  TensorView<T> add_cotangent(Var var);
  /// As add_cotangent, but tells instead of zeroing whether this is the first contribution: the vjp
  /// overwrites then.
  struct Target {
    TensorView<T> view;
    bool first;
  };
  Target cotangent_target(Var var);
  /// For ops whose vjp may work in place: when `source` has no cotangent yet it gets the memory of the
  /// cotangent of `result` (same size, holding that cotangent still), which nobody needs afterwards; first =
  /// true then.
  Target take_cotangent(Var result, Var source);
  /// The tangent of an input of the op, or an empty view for zero.
  TensorView<const T> tangent(Var var) const { return slots_[var.index].tangent; }
  /// The tangent of a parameter, or an empty view for zero.
  TensorView<const T> parameter_tangent(std::size_t parameter) const;
  /// The uninitialized tangent that a jvp writes.
  TensorView<T> make_tangent(Var var);
  /// The tangent of `result` is that of `source` (which must have one) in another shape.
  void share_tangent(Var source, Var result);

 private:
  struct Slot {
    TensorView<T> value;  ///< inputs are held through a const_cast and never written
    TensorView<T> cotangent;
    TensorView<T> tangent;
    bool differentiable = false;
  };
  void begin_replay(const char* call);

  Arena& recorded_;  ///< which holds the forward pass
  Arena* arena_;     ///< from which memory is taken now
  Arena* scratch_;   ///< the same, or another one for the working memory of the forward pass
  Arena::Mark begin_;
  Arena::Mark end_of_forward_;
  Arena::Mark end_of_replay_;
  bool replayed_ = false;
  bool recording_;
  std::vector<Slot> slots_;
  std::vector<const Node<T>*> nodes_;
  std::vector<std::uint32_t> parameter_uses_;
  const ParameterSet<T>* parameter_tangents_ = nullptr;
};

}  // namespace gradgram
