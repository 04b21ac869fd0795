#include "engine/training.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "engine/ops.hpp"
#include "engine/parameter_ranges.hpp"
#include "engine/random.hpp"
#include "engine/sinks.hpp"

namespace gradgram {
namespace {

// Sizes of work that depend on shapes alone, never on the number of threads: they fix the order of every sum.
constexpr std::size_t kBlockOfImages = 4;  // activations of a few images stay in the caches; 8 are 5 % slower
constexpr std::size_t kBlockOfVectors = 32;  // rows enough for a matrix product
constexpr std::size_t kMaxGradients = 64;
constexpr std::size_t kMinGradients = 4;
constexpr std::size_t kGradientBytes = std::size_t{1} << 28;

void require(bool condition, const std::string& message) {
  if (!condition) throw ArgumentError("training: " + message);
}

void check_options(const TrainingOptions& options) {
  const auto in_range = [](const char* name, double value, double low, double high) {
    require(value >= low && value < high, std::string(name) + " (" + fmt::to_string(value) +
                                              ") must lie in [" + fmt::to_string(low) + ", " +
                                              fmt::to_string(high) + ")");
  };
  in_range("learning_rate", options.learning_rate, 0, INFINITY);
  in_range("momentum", options.momentum, 0, 1);
  in_range("beta1", options.beta1, 0, 1);
  in_range("beta2", options.beta2, 0, 1);
  in_range("l1", options.l1, 0, INFINITY);
  in_range("l2", options.l2, 0, INFINITY);
  require(options.epsilon > 0 && options.epsilon < INFINITY,
          "epsilon (" + fmt::to_string(options.epsilon) + ") must be positive");
  require(options.epochs > 0, "epochs (0) must be positive");
}

std::size_t block_of(const Shape& input) {
  return input.rank() == 3 ? kBlockOfImages : kBlockOfVectors;
}

/// How many gradients are summed apart.
std::size_t group_count(std::size_t parameter_bytes, std::size_t batch, std::size_t block) {
  return std::min(
      (batch + block - 1) / block,
      std::clamp(kGradientBytes / std::max<std::size_t>(1, parameter_bytes), kMinGradients, kMaxGradients));
}

}  // namespace

template <class T>
struct Trainer<T>::State {
  Module<T>& module;
  TensorView<const T> inputs;
  Targets<T> targets;
  TrainingOptions options;
  const Workers& workers;

  std::size_t n = 0;
  std::size_t batch = 0;
  std::size_t block = 0;
  std::size_t groups = 0;   // gradients summed apart, then together
  std::size_t done = 0;     // epochs
  std::uint64_t steps = 0;  // finished, of all epochs
  std::vector<ParameterSet<T>> gradients;
  ParameterSet<T> first;   // momentum, or Adam's first moment
  ParameterSet<T> second;  // Adam's second moment
  std::vector<ParameterRange> ranges;
  std::vector<std::size_t> order;
  std::vector<Arena> arenas;

  State(Module<T>& module_, TensorView<const T> inputs_, Targets<T> targets_, const TrainingOptions& options_,
        const Workers& workers_)
      : module(module_),
        inputs(inputs_),
        targets(targets_),
        options(options_),
        workers(workers_),
        arenas(workers_.count()) {
    check_options(options);
    const Shape input = module.input_shape();
    if (inputs.shape().rank() == 0 || inputs.shape().inner() != input) {
      throw ShapeError("training: inputs " + inputs.shape().to_string() + " must be [examples] of " +
                       input.to_string());
    }
    n = inputs.shape()[0];
    require(n > 0, "the number of examples (0) must be positive");
    check_targets();
    batch = options.batch == 0 ? n : std::min(options.batch, n);
    block = block_of(input);
    const ParameterSet<T>& parameters = module.parameters();
    groups = group_count(parameters.size() * sizeof(T), batch, block);
    for (std::size_t group = 0; group < groups; ++group) gradients.push_back(parameters.zeros());
    if (options.optimizer != Optimizer::Sgd) first = parameters.zeros();
    if (options.optimizer == Optimizer::Adam) second = parameters.zeros();
    ranges = parameter_ranges(parameters);
    order.resize(n);
  }

  void check_targets() const {
    const std::size_t outputs = module.outputs();
    if (options.loss == Loss::MeanSquaredError) {
      const Shape expected{n, outputs};
      if (targets.values.shape() != expected) {
        throw ShapeError("training: target values " + targets.values.shape().to_string() + " must be " +
                         expected.to_string());
      }
      return;
    }
    if (targets.labels.size() != n) {
      throw ShapeError("training: labels (" + std::to_string(targets.labels.size()) + ") and examples (" +
                       std::to_string(n) + ") must match");
    }
    for (std::size_t i = 0; i < n; ++i) {
      const std::int32_t label = targets.labels[i];
      require(label >= 0 && static_cast<std::size_t>(label) < outputs,
              "label " + std::to_string(label) + " of example " + std::to_string(i) + " must lie in [0, " +
                  std::to_string(outputs) + ")");
    }
  }

  void shuffle() {
    std::iota(order.begin(), order.end(), std::size_t{0});
    if (batch == n) return;
    Random random(options.seed, done);
    for (std::size_t i = n; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  }

  double rate() const {
    if (options.schedule == LearningRateSchedule::Constant) return options.learning_rate;
    const double total = static_cast<double>(options.epochs) * static_cast<double>((n + batch - 1) / batch);
    const double progress = std::min(1.0, static_cast<double>(steps) / total);
    return 0.5 * options.learning_rate * (1 + std::cos(std::numbers::pi * progress));
  }

  /// Adds the loss gradient of examples order[begin, end), divided by `count`, to `gradient`; returns the sum
  /// of losses.
  double block_gradient(std::size_t begin, std::size_t end, std::size_t count, ParameterSet<T>& gradient,
                        Arena& arena) {
    const ArenaScope scope(arena);
    const std::size_t size = end - begin;
    const auto gather = [&](TensorView<const T> source) {
      const std::size_t row = source.shape().inner().size();
      const auto rows = arena.tensor<T>(source.shape().inner().with_outer(size));
      for (std::size_t i = 0; i < size; ++i) {
        std::copy_n(source.data() + order[begin + i] * row, row, rows.data() + i * row);
      }
      return rows;
    };
    const TensorView<const T> x = gather(inputs);
    const TensorView<T> seed = arena.tensor<T>(Shape{size});
    std::fill_n(seed.data(), size, static_cast<T>(1.0 / static_cast<double>(count)));
    Tape<T> tape(arena);
    const Var outputs = module.forward(tape, tape.input(x));
    const Shape expected{size, module.outputs()};
    if (tape.shape(outputs) != expected) {
      throw ShapeError("training: the module's outputs " + tape.shape(outputs).to_string() + " must be " +
                       expected.to_string());
    }
    Var loss;
    if (options.loss == Loss::MeanSquaredError) {
      loss = ops::mean_squared_error(tape, outputs, TensorView<const T>(gather(targets.values)));
    } else {
      auto* const labels = static_cast<std::int32_t*>(arena.allocate(size * sizeof(std::int32_t)));
      for (std::size_t i = 0; i < size; ++i) labels[i] = targets.labels[order[begin + i]];
      loss = ops::cross_entropy(tape, outputs, std::span<const std::int32_t>(labels, size));
    }
    double sum = 0;
    for (const T value : tape.value(loss).span()) sum += static_cast<double>(value);
    SummedGradientSink<T> sink(gradient);
    tape.reverse(loss, seed, sink);
    return sum;
  }

  /// One optimizer step on examples order[begin, end); returns the mean loss with penalties before it.
  double step(std::size_t begin, std::size_t end, std::stop_token stop) {
    const std::size_t count = end - begin;
    const std::size_t blocks = (count + block - 1) / block;
    const std::size_t used = std::min(groups, blocks);
    std::vector<double> losses(used);
    workers.run(
        used,
        [&](std::size_t group, std::size_t worker) {
          gradients[group].fill_zero();
          for (std::size_t b = group * blocks / used; b < (group + 1) * blocks / used; ++b) {
            losses[group] += block_gradient(begin + b * block, std::min(end, begin + (b + 1) * block), count,
                                            gradients[group], arenas[worker]);
          }
        },
        {}, stop);

    // The total gradient goes to gradients[0]. Nothing has changed the parameters yet, so a step that turns
    // out not to be finite can still be refused.
    std::vector<double> penalties(ranges.size());
    std::vector<char> finite(ranges.size());
    workers.run(ranges.size(),
                [&](std::size_t i, std::size_t) { reduce(ranges[i], used, penalties[i], finite[i]); });
    double loss = 0;
    for (const double value : losses) loss += value;
    loss /= static_cast<double>(count);
    for (const double value : penalties) loss += value;
    const bool all_finite = std::all_of(finite.begin(), finite.end(), [](char value) { return value != 0; });
    if (!std::isfinite(loss) || !all_finite) {
      throw NumericError("training: " +
                         (std::isfinite(loss) ? std::string("the gradient is not finite")
                                              : "the loss is " + fmt::to_string(loss)) +
                         " in epoch " + std::to_string(done + 1) + " at step " +
                         std::to_string(begin / batch + 1) + "; the parameters are those before this step");
    }
    const double step_rate = rate();
    const std::uint64_t number = steps + 1;
    workers.run(ranges.size(), [&](std::size_t i, std::size_t) { update(ranges[i], step_rate, number); });
    steps = number;
    return loss;
  }

  void reduce(const ParameterRange& range, std::size_t used, double& penalty, char& finite) {
    const T* const theta = std::as_const(module).parameters().value(range.parameter).data();
    T* const total = gradients[0].value(range.parameter).data();
    for (std::size_t group = 1; group < used; ++group) {
      const T* const part = gradients[group].value(range.parameter).data();
      for (std::size_t i = range.begin; i < range.end; ++i) total[i] += part[i];
    }
    double sum = 0;
    if (options.l1 != 0 || options.l2 != 0) {
      const T l1 = static_cast<T>(options.l1);
      const T l2 = static_cast<T>(options.l2);
      for (std::size_t i = range.begin; i < range.end; ++i) {
        const double value = static_cast<double>(theta[i]);
        sum += options.l1 * std::abs(value) + 0.5 * options.l2 * value * value;
        total[i] += l2 * theta[i] + (theta[i] > 0 ? l1 : theta[i] < 0 ? -l1 : T(0));
      }
    }
    penalty = sum;
    bool good = true;
    for (std::size_t i = range.begin; i < range.end; ++i) good = good && std::isfinite(total[i]);
    finite = good ? 1 : 0;
  }

  void update(const ParameterRange& range, double step_rate, std::uint64_t number) {
    T* const theta = module.parameters().value(range.parameter).data();
    const T* const gradient = gradients[0].value(range.parameter).data();
    const T learning_rate = static_cast<T>(step_rate);
    const T momentum = static_cast<T>(options.momentum);
    switch (options.optimizer) {
      case Optimizer::Sgd:
        for (std::size_t i = range.begin; i < range.end; ++i) theta[i] -= learning_rate * gradient[i];
        return;
      case Optimizer::Momentum:
      case Optimizer::Nesterov: {
        const bool ahead = options.optimizer == Optimizer::Nesterov;
        T* const velocity = first.value(range.parameter).data();
        for (std::size_t i = range.begin; i < range.end; ++i) {
          velocity[i] = momentum * velocity[i] + gradient[i];
          theta[i] -= learning_rate * (ahead ? gradient[i] + momentum * velocity[i] : velocity[i]);
        }
        return;
      }
      case Optimizer::Adam: {
        T* const mean = first.value(range.parameter).data();
        T* const square = second.value(range.parameter).data();
        const double t = static_cast<double>(number);
        const T size = static_cast<T>(step_rate / (1 - std::pow(options.beta1, t)));
        const T correction = static_cast<T>(1 / std::sqrt(1 - std::pow(options.beta2, t)));
        const T beta1 = static_cast<T>(options.beta1);
        const T beta2 = static_cast<T>(options.beta2);
        const T rest1 = static_cast<T>(1 - options.beta1);
        const T rest2 = static_cast<T>(1 - options.beta2);
        const T epsilon = static_cast<T>(options.epsilon);
        for (std::size_t i = range.begin; i < range.end; ++i) {
          mean[i] = beta1 * mean[i] + rest1 * gradient[i];
          square[i] = beta2 * square[i] + rest2 * gradient[i] * gradient[i];
          theta[i] -= size * mean[i] / (std::sqrt(square[i]) * correction + epsilon);
        }
        return;
      }
    }
  }
};

template <class T>
Trainer<T>::Trainer(Module<T>& module, TensorView<const T> inputs, Targets<T> targets,
                    const TrainingOptions& options, const Workers& workers)
    : state_(std::make_unique<State>(module, inputs, targets, options, workers)) {}

template <class T>
Trainer<T>::~Trainer() = default;

template <class T>
double Trainer<T>::epoch(std::stop_token stop) {
  State& state = *state_;
  state.shuffle();
  double sum = 0;
  for (std::size_t begin = 0; begin < state.n; begin += state.batch) {
    const std::size_t end = std::min(state.n, begin + state.batch);
    sum += state.step(begin, end, stop) * static_cast<double>(end - begin);
  }
  const ParameterSet<T>& parameters = std::as_const(state.module).parameters();
  for (std::size_t p = 0; p < parameters.count(); ++p) {
    for (const T value : parameters.value(p).span()) {
      if (!std::isfinite(value)) {
        throw NumericError("training: parameter `" + parameters.name(p) + "` is " + fmt::to_string(value) +
                           " after epoch " + std::to_string(state.done + 1));
      }
    }
  }
  ++state.done;
  return sum / static_cast<double>(state.n);
}

template <class T>
std::size_t Trainer<T>::held_bytes(const Module<T>& module, std::size_t examples,
                                   const TrainingOptions& options) {
  const std::size_t bytes = module.parameters().size() * sizeof(T);
  const std::size_t batch = options.batch == 0 ? examples : std::min(options.batch, examples);
  const std::size_t moments = options.optimizer == Optimizer::Sgd    ? 0
                              : options.optimizer == Optimizer::Adam ? 2
                                                                     : 1;
  return checked_multiply(group_count(bytes, batch, block_of(module.input_shape())) + moments, bytes,
                          "training");
}

template <class T>
std::size_t Trainer<T>::epochs() const noexcept {
  return state_->done;
}

template class Trainer<float>;
template class Trainer<double>;

}  // namespace gradgram
