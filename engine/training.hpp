#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>

#include "engine/module.hpp"
#include "engine/parallel.hpp"

namespace gradgram {

enum class Optimizer { Sgd, Momentum, Nesterov, Adam };
enum class LearningRateSchedule { Constant, Cosine };
enum class Loss { MeanSquaredError, CrossEntropy };

struct TrainingOptions {
  Optimizer optimizer = Optimizer::Sgd;
  double learning_rate = 0.1;
  double momentum = 0.9;  ///< Momentum and Nesterov
  double beta1 = 0.9;     ///< Adam
  double beta2 = 0.999;
  double epsilon = 1e-8;
  LearningRateSchedule schedule = LearningRateSchedule::Constant;
  std::size_t epochs = 1;  ///< the length of a cosine schedule, in epochs
  std::size_t batch = 64;  ///< examples per step; 0 = all
  double l1 = 0;           ///< adds l1 sum |theta| to the loss (subgradient 0 at 0)
  double l2 = 0;           ///< adds l2/2 sum theta^2 to the loss (not decoupled, for Adam either)
  Loss loss = Loss::MeanSquaredError;
  std::uint64_t seed = 0;  ///< of the order of examples
};

/// What a training learns from: one of the two, by the loss.
template <class T>
struct Targets {
  TensorView<const T> values;            ///< [n, O], MeanSquaredError
  std::span<const std::int32_t> labels;  ///< [n], CrossEntropy
};

/// Trains a module in place, epoch by epoch. A step's gradient is the mean over its examples of the loss of
/// ops.hpp plus the penalties. The formulas are those of torch.optim (SGD with dampening 0, Adam with bias
/// correction); the cosine schedule is rate(t) = rate/2 (1 + cos(pi t / steps)) at step t of all steps, 0
/// beyond. Parallel over fixed sub-blocks of the batch, summed in fixed order: the same seed gives the same
/// bits at any thread count. Memory besides the module's: the optimizer's moments and at most 64 gradients
/// (at most 256 MiB, or 4 of them).
template <class T>
class Trainer {
 public:
  /// Everything referenced must outlive the trainer. Throws ShapeError / ArgumentError on mismatches.
  Trainer(Module<T>& module, TensorView<const T> inputs, Targets<T> targets, const TrainingOptions& options,
          const Workers& workers);
  ~Trainer();

  /// One pass over the examples in a fresh random order (in the given order when the batch is the whole set);
  /// returns the mean loss (with penalties) seen on the way. The last batch may be smaller and weighs less in
  /// that mean. Throws NumericError naming epoch and step when the loss or its gradient stops being finite,
  /// and Cancelled; the parameters are then those after the last finished step, and the epoch does not count.
  double epoch(std::stop_token stop = {});
  /// Epochs done.
  std::size_t epochs() const noexcept;
  /// What a trainer holds of the parameters' size: gradients and moments. Its tapes, one a worker, hold a few
  /// examples (evaluation_block()) each.
  static std::size_t held_bytes(const Module<T>& module, std::size_t examples,
                                const TrainingOptions& options);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gradgram
