#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "engine/arena.hpp"
#include "engine/module.hpp"
#include "ntk/factors.hpp"
#include "ntk/kernel.hpp"

/// How a reduction becomes a forward and some reverse passes: shared by the kernel and its diagonal.
namespace gradgram::ntk {

/// Reverse passes per example: O for the reductions over all outputs, otherwise one.
std::size_t seed_count(Reduce reduce, std::size_t outputs);

/// Checks what a reduction needs. Throws ArgumentError / ShapeError naming `call`, the option and both
/// values.
void check_reduction(const char* call, const KernelOptions& options, std::size_t outputs, std::size_t n);
void check_labels(const char* call, const char* option, std::span<const std::int32_t> labels,
                  std::size_t outputs, std::size_t n);
/// Throws ShapeError when x is not [n, ...input].
void check_inputs(const char* call, const char* argument, const Shape& x, const Shape& input);

/// seed [examples, O]: the output cotangent of pass number `pass`. TrueClass: the gradient of softmax_y with
/// respect to the outputs, p_y (delta_ky - p_k), from `outputs` [examples, O]; labels then belong to these
/// examples.
template <class T>
void fill_seed(Reduce reduce, std::size_t output, std::size_t pass, TensorView<const T> outputs,
               std::span<const std::int32_t> labels, TensorView<T> seed);

/// Seeds [first, first + count).
struct SeedRange {
  std::size_t first = 0;
  std::size_t count = std::numeric_limits<std::size_t>::max();
};

/// One reverse pass per seed of the range through what `tape` has recorded; `seed` [examples, O] is working
/// memory. `pass` is called with a number and a function that runs this reverse pass into a sink.
template <class T, class Pass>
void reverse_passes(Tape<T>& tape, Var output, const KernelOptions& options,
                    std::span<const std::int32_t> labels, TensorView<T> seed, const SeedRange& range,
                    Pass pass) {
  const std::size_t seeds = seed_count(options.reduce, seed.shape()[1]);
  for (std::size_t s = range.first; s < seeds && s - range.first < range.count; ++s) {
    fill_seed<T>(options.reduce, options.output, s, tape.value(output), labels, seed);
    pass(s, [&](Sink<T>& sink) { tape.reverse(output, seed, sink); });
  }
}

/// The same behind a forward pass over the examples x [count, ...], on a tape in `arena`.
template <class T, class Pass>
void run_passes(const Module<T>& module, TensorView<const T> x, const KernelOptions& options,
                std::span<const std::int32_t> labels, Arena& arena, Pass pass, const SeedRange& range = {}) {
  const ArenaScope scope(arena);
  const auto seed = arena.tensor<T>({x.shape()[0], module.outputs()});
  Tape<T> tape(arena);
  const Var output = module.forward(tape, tape.input(x));
  reverse_passes<T>(tape, output, options, labels, seed, range, pass);
}

/// The forward pass of a block of examples, kept for the reverse passes of several rounds.
template <class T>
struct KeptPass {
  /// x must outlive it. `bytes`: Plan::kept_pass_bytes(). `scratch`: for this forward pass alone.
  KeptPass(const Module<T>& module, TensorView<const T> x, std::size_t bytes, Arena& scratch)
      : arena(bytes), tape(arena, scratch), output(module.forward(tape, tape.input(x))) {}
  Arena arena;
  Tape<T> tape;
  Var output;
};

/// The gradients of x [count, ...], of the seeds of one round, into examples [first, first + count) of
/// `factors`. `kept`: their forward pass, or null.
template <class T>
void record_factors(const Module<T>& module, const Plan& plan, TensorView<const T> x,
                    const KernelOptions& options, std::span<const std::int32_t> labels,
                    const Factors<T>& factors, std::size_t first, Arena& arena, std::size_t round = 0,
                    KeptPass<T>* kept = nullptr) {
  const ArenaScope scope(arena);
  const FactorMatrix<T> scratch = scratch_rows<T>(plan, arena);
  const auto pass = [&](std::size_t seed, const auto& reverse) {
    FactorSink<T> sink(plan, factors, first, seed, scratch);
    sink.begin(x.shape()[0]);
    reverse(sink);
    sink.finish(x.shape()[0]);
  };
  SeedRange range;
  if (plan.rounds() > 1) range = {round * plan.round_seeds, plan.round_seeds};
  if (kept == nullptr) {
    run_passes(module, x, options, labels, arena, pass, range);
  } else {
    const auto seed = arena.tensor<T>({x.shape()[0], module.outputs()});
    kept->tape.replay_in(arena);
    reverse_passes<T>(kept->tape, kept->output, options, labels, seed, range, pass);
  }
}

}  // namespace gradgram::ntk
