#include "ntk/learnability.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "engine/error.hpp"
#include "engine/evaluation.hpp"
#include "engine/memory_account.hpp"
#include "ntk/dynamics.hpp"
#include "ntk/kernel.hpp"
#include "ntk/planned_kernel.hpp"
#include "ntk/precision.hpp"
#include "ntk/statistics.hpp"

namespace gradgram::ntk {
namespace {

/// How many steps of Heun's method the linearized cross-entropy may take: about a minute for 2,000 examples
/// of 10 classes.
constexpr std::size_t kMostSteps = 20000;
/// Norms that agree to this are equal: their ranks would be rounding noise.
constexpr double kEqualNorms = 1e-9;

using Values = std::vector<double>;

double percent(double share) {
  return 100 * share;
}

double mean_of(std::span<const double> values) {
  return values.empty()
             ? 0
             : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// What is right and what is lost for outputs [n, O] of one moment. One output: targets -1 and +1. A tie is
/// not right.
struct Judge {
  std::size_t n, outputs;
  Loss loss;
  std::span<const std::int32_t> labels;
  TensorView<const double> targets;  ///< [n, O]

  template <class T>
  bool right(const T* f, std::size_t i) const {
    if (outputs == 1) return labels[i] == 1 ? f[0] > 0 : f[0] < 0;
    const std::size_t label = static_cast<std::size_t>(labels[i]);
    for (std::size_t k = 0; k < outputs; ++k) {
      if (k != label && !(f[label] > f[k])) return false;
    }
    return true;
  }

  template <class T>
  double lost(const T* f, std::size_t i) const {
    if (loss == Loss::CrossEntropy) {
      const double largest = static_cast<double>(*std::max_element(f, f + outputs));
      double sum = 0;
      for (std::size_t k = 0; k < outputs; ++k) sum += std::exp(static_cast<double>(f[k]) - largest);
      return std::log(sum) - (static_cast<double>(f[labels[i]]) - largest);
    }
    double sum = 0;
    for (std::size_t k = 0; k < outputs; ++k) {
      const double residual = static_cast<double>(f[k]) - targets.data()[i * outputs + k];
      sum += residual * residual;
    }
    return sum / static_cast<double>(outputs);
  }
};

/// What became of every example over the epochs, of the training or of its prediction.
struct History {
  History(const Judge& the_judge, std::size_t epochs)
      : judge(the_judge),
        correct(Shape{epochs + 1, the_judge.n}),
        lost(Shape{epochs + 1, the_judge.n}),
        accuracy(epochs + 1),
        loss(epochs + 1) {}

  template <class T>
  void record(std::size_t epoch, const T* outputs) {
    const std::size_t n = judge.n;
    for (std::size_t i = 0; i < n; ++i) {
      correct.data()[epoch * n + i] = judge.right(outputs + i * judge.outputs, i) ? 1 : 0;
      lost.data()[epoch * n + i] = judge.lost(outputs + i * judge.outputs, i);
    }
    accuracy[epoch] = mean_of(correct.span().subspan(epoch * n, n));
    loss[epoch] = mean_of(lost.span().subspan(epoch * n, n));
    if (!std::isfinite(loss[epoch])) {
      throw NumericError(fmt::format("learnability: the loss is {} at epoch {}", loss[epoch], epoch));
    }
  }

  /// First epoch from which the example is right to the end; epochs + 1 when it is wrong at the end.
  std::vector<std::size_t> epoch_learned() const {
    const std::size_t n = judge.n;
    const std::size_t moments = accuracy.size();
    std::vector<std::size_t> result(n);
    for (std::size_t i = 0; i < n; ++i) {
      std::size_t first = moments;
      while (first > 0 && correct.data()[(first - 1) * n + i] == 1) --first;
      result[i] = first;
    }
    return result;
  }

  static Values mean_over_epochs(const Tensor<double>& values) {
    const std::size_t moments = values.shape()[0];
    const std::size_t n = values.shape()[1];
    Values result(n);
    for (std::size_t e = 0; e < moments; ++e) {
      for (std::size_t i = 0; i < n; ++i)
        result[i] += values.data()[e * n + i] / static_cast<double>(moments);
    }
    return result;
  }

  const Judge& judge;
  Tensor<double> correct;  ///< [epochs + 1, n]
  Tensor<double> lost;
  Values accuracy, loss;
};

Values pick(const Values& values, const std::vector<std::size_t>& indices) {
  Values result;
  for (const std::size_t i : indices) result.push_back(values[i]);
  return result;
}

Values as_doubles(const std::vector<std::size_t>& values) {
  return {values.begin(), values.end()};
}

/// Mean of the learning rate over the steps of epoch `epoch` (from 0), as a share of the initial one: the
/// trainer's cosine falls step by step.
double schedule_share(const TrainingOptions& training, std::size_t epoch, std::size_t steps) {
  if (training.schedule == LearningRateSchedule::Constant) return 1;
  const double total = static_cast<double>(training.epochs * steps);
  double sum = 0;
  for (std::size_t s = epoch * steps; s < (epoch + 1) * steps; ++s) {
    sum += (1 + std::cos(std::numbers::pi * static_cast<double>(s) / total)) / 2;
  }
  return sum / static_cast<double>(steps);
}

std::size_t steps_per_epoch(const TrainingOptions& training, std::size_t n) {
  const std::size_t batch = training.batch == 0 ? n : std::min(training.batch, n);
  return (n + batch - 1) / batch;
}

/// eta * t of the flow dr/dt = -eta K r after each epoch. A step moves the weights by lr times the mean over
/// its batch of J^T times (2/O) r for the mean squared error, (softmax - onehot) for cross-entropy; an epoch
/// visits each example once, so it moves them by c lr (steps / n) sum J^T r, whatever the batch.
Values linearized_times(const TrainingOptions& training, std::size_t n, std::size_t outputs,
                        double lambda_max) {
  const std::size_t whole_steps = steps_per_epoch(training, n);
  const double steps = static_cast<double>(whole_steps);
  double per_epoch = training.learning_rate * steps / static_cast<double>(n);
  if (training.loss == Loss::MeanSquaredError) per_epoch *= 2 / static_cast<double>(outputs);
  switch (training.optimizer) {
    case Optimizer::Sgd:
      break;
    case Optimizer::Momentum:
    case Optimizer::Nesterov:
      per_epoch /= 1 - training.momentum;
      break;
    case Optimizer::Adam:
      // Adam divides by the gradient's own size: no time scale. As many steps of plain descent, each at half
      // its limit.
      per_epoch = steps / lambda_max;
      break;
  }
  Values result(training.epochs + 1);
  for (std::size_t e = 0; e < training.epochs; ++e) {
    result[e + 1] = result[e] + per_epoch * schedule_share(training, e, whole_steps);
  }
  return result;
}

/// How long a step of the linearized clock, times lambda_max, may be for a stable descent: 2 without momentum
/// m. Heavy ball: lr lambda < 2 (1 + m); Nesterov: lr lambda < 2 (1 + m) / (1 + 2 m); the clock counts lr /
/// (1 - m).
double stable_step(const TrainingOptions& training) {
  const double m = training.momentum;
  if (training.optimizer == Optimizer::Momentum) return 2 * (1 + m) / (1 - m);
  if (training.optimizer == Optimizer::Nesterov) return 2 * (1 + m) / (1 + 2 * m) / (1 - m);
  return 2;
}

/// The largest learning rate of a stable descent on the linearized network; none is known of Adam.
std::optional<double> stable_rate(const TrainingOptions& training, std::size_t n, std::size_t outputs,
                                  double lambda_max) {
  if (training.optimizer == Optimizer::Adam) return std::nullopt;
  TrainingOptions one = training;
  one.learning_rate = 1;
  one.schedule = LearningRateSchedule::Constant;
  one.epochs = 1;
  const double step = linearized_times(one, n, outputs, lambda_max).back() /
                      static_cast<double>(steps_per_epoch(training, n));
  return stable_step(training) / (step * lambda_max);
}

/// [K (K + ridge I)^{-1}]_ii.
Values leverage(const Spectrum& spectrum, double ridge) {
  const std::size_t n = spectrum.n;
  Values result(n);
  for (std::size_t m = 0; m < n; ++m) {
    const double value = std::max(0.0, spectrum.values[m]);
    const double share = value / (value + ridge);
    for (std::size_t i = 0; i < n; ++i) {
      const double component = spectrum.vectors.data()[m * n + i];
      result[i] += share * component * component;
    }
  }
  return result;
}

GroupCurves curves_of(const std::vector<Group>& groups, const History& history) {
  GroupCurves result;
  const std::size_t n = groups.size();
  for (std::size_t g = 0; g < 3; ++g) {
    const std::size_t moments = history.accuracy.size();
    result.accuracy[g].resize(moments);
    result.loss[g].resize(moments);
    const double size = static_cast<double>(std::count(groups.begin(), groups.end(), static_cast<Group>(g)));
    for (std::size_t e = 0; e < moments; ++e) {
      for (std::size_t i = 0; i < n; ++i) {
        if (groups[i] != static_cast<Group>(g)) continue;
        result.accuracy[g][e] += history.correct.data()[e * n + i] / size;
        result.loss[g][e] += history.lost.data()[e * n + i] / size;
      }
    }
  }
  return result;
}

Finding decide(double in_favour, double error) {
  if (in_favour > 2 * error) return Finding::Supported;
  if (in_favour < -2 * error) return Finding::Contradicted;
  return Finding::NotDistinguishable;
}

const char* strength(double correlation) {
  const double size = std::abs(correlation);
  return size < 0.1 ? "next to nothing" : size < 0.3 ? "weak" : size < 0.6 ? "moderate" : "strong";
}

Verdict judge_claim(const Learnability& study, std::span<const double> area) {
  Verdict verdict;
  const Correlation& first = study.correlations.front();
  verdict.correlation = first.with_epoch_learned;
  verdict.correlation_error = first.with_epoch_learned_error;
  verdict.by_correlation = decide(-verdict.correlation, verdict.correlation_error);

  Values of_group[3];
  for (std::size_t i = 0; i < study.n; ++i)
    of_group[static_cast<std::size_t>(study.groups[i])].push_back(area[i]);
  const auto mean_variance = [](const Values& values) {
    const double mean = mean_of(values);
    double squares = 0;
    for (const double value : values) squares += (value - mean) * (value - mean);
    const double count = static_cast<double>(values.size());
    return std::pair(mean, count > 1 ? squares / (count - 1) / count : 0.0);
  };
  const auto [top, top_variance] = mean_variance(of_group[static_cast<std::size_t>(Group::Top)]);
  const auto [bottom, bottom_variance] = mean_variance(of_group[static_cast<std::size_t>(Group::Bottom)]);
  verdict.top_area = top;
  verdict.bottom_area = bottom;
  verdict.area_difference = top - bottom;
  verdict.area_difference_error = std::sqrt(top_variance + bottom_variance);
  verdict.by_groups = decide(verdict.area_difference, verdict.area_difference_error);
  if (verdict.by_correlation == verdict.by_groups) verdict.finding = verdict.by_correlation;

  verdict.squared_norm_correlation = first.with_squared_norm;
  verdict.correlation_given_norm = first.with_epoch_learned_given_norm;
  for (std::size_t s = 0; s < study.scores.size(); ++s) {
    if (study.scores[s].epoch == 0 &&
        std::abs(study.correlations[s].with_epoch_learned) >
            std::abs(study.correlations[verdict.best_score].with_epoch_learned)) {
      verdict.best_score = s;
    }
  }

  switch (verdict.finding) {
    case Finding::Supported:
      verdict.answer =
          "Supported: in this run examples with larger k_ii at initialization were learned earlier.";
      break;
    case Finding::Contradicted:
      verdict.answer =
          "Contradicted: in this run examples with larger k_ii at initialization were learned later.";
      break;
    case Finding::NotDistinguishable:
      if (verdict.by_correlation != Finding::NotDistinguishable &&
          verdict.by_groups != Finding::NotDistinguishable) {
        verdict.answer =
            "Not distinguishable: the rank correlation over all examples and the comparison of the top and "
            "bottom 10 % "
            "point in opposite directions.";
      } else if (verdict.by_correlation == verdict.by_groups) {
        verdict.answer =
            "Not distinguishable: in this run k_ii at initialization says nothing beyond chance about which "
            "examples are "
            "learned earlier.";
      } else {
        const bool ranks = verdict.by_correlation != Finding::NotDistinguishable;
        verdict.answer = fmt::format(
            "Not distinguishable: {} {} the claim, but {} does not differ from chance.",
            ranks ? "the rank correlation over all examples" : "the comparison of the top and bottom 10 %",
            (ranks ? verdict.by_correlation : verdict.by_groups) == Finding::Supported ? "supports"
                                                                                       : "contradicts",
            ranks ? "the comparison of the top and bottom 10 %" : "the rank correlation over all examples");
      }
      break;
  }
  verdict.correlation_sentence = fmt::format(
      "Rank correlation of k_ii at initialization with the epoch learned: {:+.2f} +- {:.2f} ({}); the claim "
      "expects a "
      "negative one.",
      verdict.correlation, verdict.correlation_error, strength(verdict.correlation));
  verdict.groups_sentence = fmt::format(
      "Averaged over the epochs, {:.1f} % of the tenth with the largest k_ii were right and {:.1f} % of the "
      "tenth with "
      "the smallest: a difference of {:+.1f} +- {:.1f} points; the claim expects a positive one.",
      percent(verdict.top_area), percent(verdict.bottom_area), percent(verdict.area_difference),
      percent(verdict.area_difference_error));
  const double norm = std::abs(verdict.squared_norm_correlation);
  verdict.norm_sentence = fmt::format(
      "k_ii and ||x||^2 order the examples {} (rank correlation {:+.2f}); with ||x||^2 held fixed, the "
      "correlation of "
      "k_ii with the epoch learned is {:+.2f}.",
      norm > 0.9   ? "almost alike"
      : norm > 0.6 ? "much alike"
      : norm > 0.3 ? "somewhat alike"
                   : "differently",
      verdict.squared_norm_correlation, verdict.correlation_given_norm);
  const Correlation& best = study.correlations[verdict.best_score];
  const bool as_meant = (best.with_epoch_learned < 0) == study.scores[verdict.best_score].large_means_early;
  verdict.best_sentence = fmt::format(
      "Of the scores known before training, `{}` goes most closely with the epoch learned: rank correlation "
      "{:+.2f} +- "
      "{:.2f} ({}, {}).",
      best.score, best.with_epoch_learned, best.with_epoch_learned_error, strength(best.with_epoch_learned),
      as_meant ? "in the expected direction" : "against the expected direction");
  return verdict;
}

/// Everything is checked before anything is computed.
template <class T>
void check(const models::Network<T>& network, const datasets::Dataset& data,
           const LearnabilityOptions& options) {
  const std::size_t n = data.size();
  const std::size_t outputs = network.outputs();
  const TrainingOptions& training = options.training;
  if (n < 10) throw ArgumentError(fmt::format("learnability: needs at least 10 examples, found {}", n));
  if (data.labels.size() != n) {
    throw ArgumentError(fmt::format("learnability: needs a class label for each of the {} examples, found {}",
                                    n, data.labels.size()));
  }
  if (data.example_shape() != network.input_shape()) {
    throw ShapeError(fmt::format("learnability: examples {} and the network's input {} must match",
                                 data.example_shape().to_string(), network.input_shape().to_string()));
  }
  const auto [least, most] = std::minmax_element(data.labels.begin(), data.labels.end());
  if (*least == *most) throw ArgumentError("learnability: needs examples of two classes, all are of one");
  const std::size_t classes = std::max<std::size_t>(2, outputs);
  if (*least < 0 || static_cast<std::size_t>(*most) >= classes || data.classes() > classes) {
    throw ShapeError(
        fmt::format("learnability: a network with {} output{} tells {} classes apart, the data have {}",
                    outputs, outputs == 1 ? "" : "s", classes,
                    std::max<std::size_t>(data.classes(), static_cast<std::size_t>(*most) + 1)));
  }
  if (outputs == 1 && training.loss == Loss::CrossEntropy) {
    throw ArgumentError("learnability: cross-entropy needs one output a class, the network has 1 output");
  }
  // What the trainer would refuse too, but only after the kernel.
  if (!(training.learning_rate >= 0) || !std::isfinite(training.learning_rate)) {
    throw ArgumentError(
        fmt::format("learnability: the learning rate must be >= 0, found {}", training.learning_rate));
  }
  if (!(training.momentum >= 0 && training.momentum < 1)) {
    throw ArgumentError(
        fmt::format("learnability: momentum must lie in [0, 1), found {}", training.momentum));
  }
  if (training.epochs == 0) throw ArgumentError("learnability: needs at least 1 epoch, found 0");
  for (const std::size_t epoch : options.score_epochs) {
    if (epoch > training.epochs) {
      throw ArgumentError(
          fmt::format("learnability: score epoch {} lies beyond the last, {}", epoch, training.epochs));
    }
  }
}

/// What kernels and diagonals may take.
struct Rooms {
  std::size_t kernel = 0, diagonal = 0;
};

/// The study on paper, phase by phase.
template <class T>
Rooms count_memory(const models::Network<T>& network, const datasets::Dataset& data,
                   const LearnabilityOptions& options, const Workers& workers, MemoryAccount& account) {
  const auto bytes = [](std::size_t a, std::size_t b) { return checked_multiply(a, b, "learnability"); };
  const std::size_t n = data.size();
  const std::size_t outputs = bytes(n, network.outputs());
  const std::size_t epochs = options.training.epochs + 1;
  const std::size_t square = bytes(n, n);
  const ModuleProfile module_profile = profile_of_first<T>(network, data.inputs);
  const std::size_t threads = workers.count();
  const std::size_t evaluation = evaluation_bytes<T>(network, module_profile, n, threads);
  // What kernel() and diagonal() count themselves.
  const std::size_t inputs = bytes(n, module_profile.input_bytes) + module_profile.weight_bytes;
  const auto phase = [&](const char* name, std::size_t least) {
    return account.phase(name, least - inputs) + inputs;
  };
  Rooms rooms;
  account.hold(bytes(data.inputs.size(), sizeof(double)));
  account.hold(inputs);
  // Targets twice, outputs, whether right and what is lost of every example after every epoch, scores.
  account.hold(bytes(outputs, 2 * sizeof(double) + 2 * sizeof(T)));
  account.hold(bytes(bytes(n, epochs), 2 * sizeof(double)));
  account.hold(bytes(n, (16 + 2 * options.score_epochs.size()) * sizeof(double)));
  account.phase("the outputs", evaluation);
  rooms.kernel =
      phase("the kernel", least_kernel_bytes<T>(network, module_profile, n, 0, KernelOptions{}, threads));
  account.hold(bytes(square, sizeof(double)));
  account.phase("the kernel in f64", bytes(square, sizeof(T)));
  account.phase("the kernel's spectrum", spectrum_bytes(n, {}));
  account.hold(bytes(square, sizeof(double)));
  account.hold(bytes(outputs, epochs * sizeof(double)));
  account.phase("the linearized dynamics",
                bytes(outputs, 6 * sizeof(double)) + bytes(bytes(n, epochs), 2 * sizeof(double)));
  KernelOptions diagonals;
  rooms.diagonal =
      phase("the diagonal", least_diagonal_bytes<T>(network, module_profile, n, diagonals, threads));
  if (network.outputs() > 1) {
    diagonals.reduce = Reduce::TrueClass;
    phase("the diagonal", least_diagonal_bytes<T>(network, module_profile, n, diagonals, threads));
  }
  account.hold(Trainer<T>::held_bytes(network, n, options.training));
  // Tapes of the trainer stay beside those of others; a loss is recorded as well.
  const std::size_t block = std::min(n, evaluation_block(network));
  account.hold(bytes(threads, module_profile.tape_of(block) + bytes(block, 4 * module_profile.input_bytes)));
  account.phase("the training", evaluation);
  rooms.diagonal = std::min(
      rooms.diagonal, phase("the diagonal after training",
                            least_diagonal_bytes<T>(network, module_profile, n, KernelOptions{}, threads)));
  return rooms;
}

/// One run, in the order of its phases.
template <class T>
class Study {
 public:
  Study(models::Network<T>& network, const datasets::Dataset& data, const LearnabilityOptions& options,
        const Rooms& rooms, const Workers& workers)
      : network_(network),
        data_(data),
        options_(options),
        rooms_(rooms),
        workers_(workers),
        n_(data.size()),
        outputs_(network.outputs()),
        epochs_(options.training.epochs),
        inputs_(data.template inputs_as<T>()),
        targets_(Shape{n_, outputs_}),
        judge_{n_, outputs_, options.training.loss, data.labels, targets_},
        history_(judge_, epochs_) {
    for (std::size_t i = 0; i < n_; ++i) {
      if (outputs_ == 1) {
        targets_(i, 0) = data.labels[i] == 1 ? 1 : -1;
      } else {
        targets_(i, static_cast<std::size_t>(data.labels[i])) = 1;
      }
    }
    result_.n = n_;
    result_.epochs = epochs_;
  }

  Learnability run() {
    measure_inputs();
    read_kernel();
    predict();
    score_before_training();
    train();
    relate();
    return std::move(result_);
  }

 private:
  void announce(const std::string& phase, std::size_t done, std::size_t total) const {
    if (options_.stop.stop_requested()) throw Cancelled("learnability: stopped before " + phase);
    if (options_.progress) options_.progress(phase, done, total);
  }

  template <class... Arguments>
  void note(fmt::format_string<Arguments...> text, Arguments&&... arguments) {
    result_.notes.push_back(fmt::format(text, std::forward<Arguments>(arguments)...));
  }

  void measure_inputs() {
    const std::size_t features = data_.example_shape().size();
    Values norms(n_);
    for (std::size_t i = 0; i < n_; ++i) {
      for (std::size_t j = 0; j < features; ++j) {
        const double value = data_.inputs.data()[i * features + j];
        norms[i] += value * value;
      }
    }
    const auto [least, most] = std::minmax_element(norms.begin(), norms.end());
    equal_norms_ = *most - *least <= kEqualNorms * *most;
    some_norm_is_zero_ = *least == 0;
    rank_norms_ = equal_norms_ ? Values(n_, *most) : norms;
    result_.squared_norms = std::move(norms);
    initial_ = evaluate<T>(network_, inputs_, workers_);
    history_.record(0, initial_.data());
  }

  KernelOptions kernel_options(std::size_t memory) const {
    KernelOptions result;
    result.reduce = Reduce::TraceMean;
    result.memory = memory;
    result.stop = options_.stop;
    return result;
  }

  void read_kernel() {
    announce("kernel", 0, 1);
    KernelOptions kernel_options = this->kernel_options(rooms_.kernel);
    if (options_.progress) {
      kernel_options.progress = [this](std::size_t done, std::size_t total) {
        options_.progress("kernel", done, total);
      };
    }
    {
      const KernelMatrix<T> computed = kernel<T>(network_, inputs_, kernel_options, workers_);
      result_.kernel = Tensor<double>(Shape{n_, n_});
      std::copy(computed.values.span().begin(), computed.values.span().end(), result_.kernel.data());
    }
    result_.entry_error = entry_error<T>(network_);
    announce("spectrum", 0, 1);
    SpectrumOptions spectrum_options;
    spectrum_options.entry_error = result_.entry_error;
    result_.spectrum = spectrum(result_.kernel, spectrum_options);
    if (!(result_.spectrum.trace > 0)) {
      throw NumericError("learnability: the kernel is zero; no output depends on any weight");
    }
    result_.label_energy = label_energy(result_.spectrum, targets_);
    result_.alignment = kernel_target_alignment(result_.kernel, targets_, false);
    result_.centred_alignment = kernel_target_alignment(result_.kernel, targets_, true);
    announce("spectrum", 1, 1);
  }

  /// The linearized network at the end of every epoch: what K at initialization alone says will happen.
  void predict() {
    announce("linearized dynamics", 0, 1);
    const Spectrum& pairs = result_.spectrum;
    result_.linearized_time = linearized_times(options_.training, n_, outputs_, pairs.values.front());
    const std::span<const double> times = result_.linearized_time;
    Tensor<double> start(Shape{n_, outputs_});
    std::copy(initial_.span().begin(), initial_.span().end(), start.data());
    if (options_.training.loss == Loss::CrossEntropy) {
      // Steps short enough for accuracy where there is time for them; 3 is still stable.
      const double length = times.back() * pairs.values.front();
      const double step = std::clamp(length / 2000, 0.5, 3.0);
      const double steps = length / step + static_cast<double>(epochs_);
      if (steps > static_cast<double>(kMostSteps)) {
        note(
            "The linearized prediction was left out: the training covers {:.3g} / lambda_max of time, more "
            "than {} steps.",
            length, kMostSteps);
        announce("linearized dynamics", 1, 1);
        return;
      }
      predicted_ = linearized_cross_entropy(result_.kernel, pairs.values.front(), start, data_.labels, times,
                                            step, kMostSteps + epochs_);
    } else {
      for (std::size_t i = 0; i < start.size(); ++i) start.data()[i] -= targets_.data()[i];
      predicted_ = linearized_residuals(pairs, start, times);
      for (std::size_t e = 0; e <= epochs_; ++e) {
        for (std::size_t i = 0; i < start.size(); ++i)
          predicted_.data()[e * start.size() + i] += targets_.data()[i];
      }
    }
    History future(judge_, epochs_);
    for (std::size_t e = 0; e <= epochs_; ++e) future.record(e, predicted_.data() + e * n_ * outputs_);
    result_.linearized_accuracy = future.accuracy;
    result_.linearized_loss = future.loss;
    predicted_epoch_ = as_doubles(future.epoch_learned());
    predicted_loss_ = History::mean_over_epochs(future.lost);
    announce("linearized dynamics", 1, 1);
  }

  void add_score(std::string name, std::string meaning, bool large_means_early, std::size_t epoch,
                 Values values) {
    result_.scores.push_back(
        {std::move(name), std::move(meaning), large_means_early, epoch, std::move(values)});
  }

  void add_diagonal(const Values& diagonal, std::size_t epoch) {
    const std::string when = epoch == 0 ? "at init" : fmt::format("at epoch {}", epoch);
    add_score("k_ii " + when,
              "Squared length of the example's gradient (mean over outputs); the claim under test: large "
              "means early.",
              true, epoch, diagonal);
    if (equal_norms_ || some_norm_is_zero_) return;
    Values normalized(n_);
    for (std::size_t i = 0; i < n_; ++i) normalized[i] = diagonal[i] / result_.squared_norms[i];
    add_score("k_ii / ||x||^2 " + when,
              "The same divided by the example's squared norm, so that brightness does not count; large "
              "means early.",
              true, epoch, std::move(normalized));
  }

  void score_before_training() {
    diagonal_.resize(n_);
    for (std::size_t i = 0; i < n_; ++i) diagonal_[i] = result_.kernel.data()[i * n_ + i];
    add_diagonal(diagonal_, 0);
    if (equal_norms_) {
      note("All examples have the same norm: k_ii / ||x||^2 would repeat k_ii and is left out.");
    } else if (some_norm_is_zero_) {
      note("Some example is all zeros: k_ii / ||x||^2 is left out.");
    }
    if (predicted_.size() != 0) {
      add_score("linearized loss",
                "Mean loss over the epochs that K predicts for the example with all others at work, exp(-eta "
                "K t) r_0; "
                "large means late.",
                false, 0, predicted_loss_);
      add_score("linearized epoch learned",
                "Epoch from which K predicts the example to stay right; large means late.", false, 0,
                predicted_epoch_);
    }
    Values influence(n_);
    for (std::size_t i = 0; i < n_; ++i) {
      for (std::size_t k = 0; k < outputs_; ++k) {
        const double residual = residual_at_start(i, k);
        influence[i] += diagonal_[i] * residual * residual;
      }
    }
    add_score("self-influence",
              "k_ii r_i^2: how fast a step on the example alone lowers its own loss; large means early.",
              true, 0, std::move(influence));
    // Flow until time s fits about what ridge regression with 1/s fits.
    result_.leverage_ridge = 1 / result_.linearized_time.back();
    if (!std::isfinite(result_.leverage_ridge))
      result_.leverage_ridge = result_.spectrum.trace / static_cast<double>(n_);
    add_score(
        "leverage",
        fmt::format(
            "[K (K + lambda I)^-1]_ii with lambda = 1 / (eta t) at the end of training ({:.3g}): how much "
            "the example must be fitted by itself, unlike the others; large means late.",
            result_.leverage_ridge),
        false, 0, leverage(result_.spectrum, result_.leverage_ridge));
    if (outputs_ > 1) {
      KernelOptions options = kernel_options(rooms_.diagonal);
      options.reduce = Reduce::TrueClass;
      options.labels = data_.labels;
      const Tensor<double> values = diagonal<T>(network_, inputs_, options, workers_);
      add_score("true-class k_ii",
                "Squared length of the gradient of the softmax probability of the example's own class; large "
                "means early.",
                true, 0, Values(values.span().begin(), values.span().end()));
    }
    add_score(
        "loss at init",
        "What the untrained network loses on the example; a baseline without any kernel; large means late.",
        false, 0, Values(history_.lost.data(), history_.lost.data() + n_));
    if (!equal_norms_) {
      add_score(
          "||x||^2",
          "Squared norm of the input; a baseline without any network; the claim read through brightness: "
          "large means early.",
          true, 0, result_.squared_norms);
    }
  }

  /// f - y for the mean squared error, softmax - onehot for cross-entropy.
  double residual_at_start(std::size_t i, std::size_t k) const {
    const T* const f = initial_.data() + i * outputs_;
    if (options_.training.loss == Loss::MeanSquaredError) {
      return static_cast<double>(f[k]) - targets_.data()[i * outputs_ + k];
    }
    const double largest = static_cast<double>(*std::max_element(f, f + outputs_));
    double sum = 0;
    for (std::size_t c = 0; c < outputs_; ++c) sum += std::exp(static_cast<double>(f[c]) - largest);
    return std::exp(static_cast<double>(f[k]) - largest) / sum - targets_.data()[i * outputs_ + k];
  }

  void record_gap(std::size_t epoch, const T* outputs) {
    if (predicted_.size() == 0) return;
    double sum = 0;
    const std::size_t size = n_ * outputs_;
    for (std::size_t i = 0; i < size; ++i) {
      sum += std::abs(static_cast<double>(outputs[i]) - predicted_.data()[epoch * size + i]);
    }
    result_.linearization_gap.push_back(sum / static_cast<double>(size));
  }

  void train() {
    const std::set<std::size_t> score_epochs(options_.score_epochs.begin(), options_.score_epochs.end());
    Tensor<T> targets(Shape{n_, outputs_});
    std::copy(targets_.span().begin(), targets_.span().end(), targets.data());
    Targets<T> learn_from;
    if (options_.training.loss == Loss::CrossEntropy) {
      learn_from.labels = data_.labels;
    } else {
      learn_from.values = targets;
    }
    record_gap(0, initial_.data());
    Trainer<T> trainer(network_, inputs_, learn_from, options_.training, workers_);
    announce("training", 0, epochs_);
    for (std::size_t epoch = 1; epoch <= epochs_; ++epoch) {
      try {
        trainer.epoch(options_.stop);
        const Tensor<T> outputs = evaluate<T>(network_, inputs_, workers_);
        history_.record(epoch, outputs.data());
        record_gap(epoch, outputs.data());
        const bool scored = score_epochs.contains(epoch);
        if (scored || epoch == epochs_) {
          const Tensor<double> now =
              diagonal<T>(network_, inputs_, kernel_options(rooms_.diagonal), workers_);
          if (scored) add_diagonal(Values(now.span().begin(), now.span().end()), epoch);
          if (epoch == epochs_) record_drift(now);
        }
      } catch (const NumericError& error) {
        throw NumericError(diverged(error.what()));
      }
      announce("training", epoch, epochs_);
    }
  }

  /// What training drove beyond the numbers, which were finite before it: its step size did, or that beside a
  /// penalty.
  std::string diverged(std::string_view what) const {
    const TrainingOptions& training = options_.training;
    const auto stable = stable_rate(training, n_, outputs_, result_.spectrum.values.front());
    const bool penalized = training.l1 != 0 || training.l2 != 0;
    const bool slow = stable && training.learning_rate <= *stable;
    // What was found, without the name of the call that found it.
    const std::size_t colon = what.find(": ");
    const std::string_view found = colon == std::string_view::npos ? what : what.substr(colon + 2);
    if (penalized && (!stable || slow)) {
      return fmt::format(
          "learnability: the penalties are too large for the learning rate {:g}: l1 {:g}, l2 {:g}: {}",
          training.learning_rate, training.l1, training.l2, found);
    }
    if (slow) {
      return fmt::format(
          "learnability: training left the numbers at {:g}, though descent of the linearized network is "
          "stable up to {:.3g}: {}",
          training.learning_rate, *stable, found);
    }
    return fmt::format(
        "learnability: the learning rate is too large: {:g}{}: {}", training.learning_rate,
        stable ? fmt::format(", where descent of the linearized network is stable up to {:.3g}", *stable)
               : "",
        found);
  }

  void record_drift(const Tensor<double>& now) {
    double moved = 0;
    double size = 0;
    for (std::size_t i = 0; i < n_; ++i) {
      moved += (now.data()[i] - diagonal_[i]) * (now.data()[i] - diagonal_[i]);
      size += diagonal_[i] * diagonal_[i];
    }
    result_.diagonal_drift = std::sqrt(moved / size);
  }

  void relate() {
    result_.accuracy = history_.accuracy;
    result_.loss = history_.loss;
    result_.epoch_learned = history_.epoch_learned();
    result_.groups = group_by(result_.scores.front().values);
    const Values learned = as_doubles(result_.epoch_learned);
    const Values area = History::mean_over_epochs(history_.correct);
    const Values loss_integral = History::mean_over_epochs(history_.lost);
    std::vector<std::size_t> wrong_at_start;
    for (std::size_t i = 0; i < n_; ++i) {
      if (history_.correct.data()[i] == 0) wrong_at_start.push_back(i);
    }
    const std::size_t scores = result_.scores.size();
    result_.curves.resize(scores);
    result_.correlations.resize(scores);
    announce("statistics", 0, scores);
    workers_.run(
        scores,
        [&](std::size_t s, std::size_t) {
          const Values& values = result_.scores[s].values;
          result_.curves[s] = curves_of(group_by(values), history_);
          Correlation& c = result_.correlations[s];
          c.score = result_.scores[s].name;
          c.with_epoch_learned = spearman(values, learned);
          c.with_epoch_learned_error = spearman_standard_error(values, learned);
          c.with_epoch_learned_given_norm = partial_spearman(values, learned, rank_norms_);
          c.with_epoch_learned_within_class = spearman_within(values, learned, data_.labels);
          c.with_epoch_learned_if_wrong_at_start =
              wrong_at_start.size() < 3
                  ? 0
                  : spearman(pick(values, wrong_at_start), pick(learned, wrong_at_start));
          c.with_accuracy_area = spearman(values, area);
          c.with_loss_integral = spearman(values, loss_integral);
          c.with_squared_norm = spearman(values, rank_norms_);
          c.with_class = correlation_ratio(average_ranks(values), data_.labels);
        },
        [&](std::size_t done, std::size_t total) {
          if (options_.progress) options_.progress("statistics", done, total);
        },
        options_.stop);
    const auto share = [&](std::size_t epoch) {
      return static_cast<double>(
                 std::count(result_.epoch_learned.begin(), result_.epoch_learned.end(), epoch)) /
             static_cast<double>(n_);
    };
    result_.share_right_from_start = share(0);
    result_.share_never_learned = share(epochs_ + 1);
    result_.correct = std::move(history_.correct);
    result_.verdict = judge_claim(result_, area);
    add_notes(learned);
  }

  void add_notes(const Values& learned) {
    const TrainingOptions& training = options_.training;
    note(
        "{:.1f} % of the examples were right before training and stayed so; {:.1f} % were not right at the "
        "end and count "
        "as learned at epoch {}.",
        percent(result_.share_right_from_start), percent(result_.share_never_learned), epochs_ + 1);
    if (result_.share_right_from_start > 0.3) {
      note(
          "Who is right before training owes it to the draw of the weights; the correlations among those "
          "wrong at the "
          "start leave them out.");
    }
    double commonest = 0;
    double when = 0;
    for (std::size_t e = 0; e <= epochs_ + 1; ++e) {
      const double share =
          static_cast<double>(std::count(learned.begin(), learned.end(), static_cast<double>(e))) /
          static_cast<double>(n_);
      if (share > commonest) {
        commonest = share;
        when = static_cast<double>(e);
      }
    }
    if (commonest > 0.5) {
      note(
          "{:.0f} % of the examples share one epoch learned ({:.0f}): the rank correlations with it rest on "
          "the others.",
          percent(commonest), when);
    }
    note(
        "Standard errors are over the examples of this one run; another seed of weights may differ by more.");
    const double of_norms = correlation_ratio(average_ranks(rank_norms_), data_.labels);
    if (of_norms > 0.1) {
      note(
          "The classes differ in ||x||^2 ({:.0f} % of the variance of its ranks lies between them): a score "
          "that follows "
          "the norm also follows the class; look at the correlation within classes.",
          percent(of_norms));
    }
    std::vector<std::size_t> sizes(std::max<std::size_t>(2, outputs_));
    for (const std::int32_t label : data_.labels) ++sizes[static_cast<std::size_t>(label)];
    const double largest =
        static_cast<double>(*std::max_element(sizes.begin(), sizes.end())) / static_cast<double>(n_);
    if (largest > 1.5 / static_cast<double>(sizes.size())) {
      note("The classes are uneven: always naming the commonest would be right for {:.0f} % of the examples.",
           percent(largest));
    }
    note(
        "The kernel's diagonal moved by {:.0f} % during training (||diag K_end - diag K_0|| / ||diag K_0||): "
        "the further, the "
        "less scores at initialization can know.",
        percent(result_.diagonal_drift));
    if (!result_.linearization_gap.empty()) {
      note("The outputs ended {:.3g} from the linearized prediction, on average; targets lie {} apart.",
           result_.linearization_gap.back(), outputs_ == 1 ? 2 : 1);
    }
    if (outputs_ > 1) {
      note(
          "The kernel is the mean over the {} outputs, and the linearized prediction uses it for each of "
          "them; coupling "
          "between outputs is left out.",
          outputs_);
    }
    if (training.optimizer == Optimizer::Adam) {
      note(
          "Adam has no linearized time scale; the prediction takes as many steps of plain descent of size 1 "
          "/ lambda_max.");
    } else {
      const double step = result_.linearized_time[1] * result_.spectrum.values.front() /
                          static_cast<double>(steps_per_epoch(training, n_));
      const double limit = stable_step(training);
      if (step > limit) {
        note(
            "A step is {:.1f} / lambda_max long, beyond {:.3g}, the limit of stable descent on the "
            "linearized "
            "network: training "
            "cannot have followed the linearized flow.",
            step, limit);
      }
    }
    if (training.l1 != 0 || training.l2 != 0)
      note("The L1 and L2 penalties are not part of the linearized prediction.");
    if (!result_.spectrum.smallest_is_resolved()) {
      note("The smallest {} of {} eigenvalues lie within the error bar of the kernel's precision ({:.2g}).",
           n_ - result_.spectrum.resolved(), n_, result_.spectrum.error_bar);
    }
    if (!options_.score_epochs.empty()) {
      note(
          "Scores taken after an epoch know what was learned until then; they describe rather than predict.");
    }
  }

  models::Network<T>& network_;
  const datasets::Dataset& data_;
  const LearnabilityOptions& options_;
  const Rooms rooms_;
  const Workers& workers_;
  std::size_t n_, outputs_, epochs_;
  Tensor<T> inputs_;
  Tensor<double> targets_;  ///< [n, O]
  Judge judge_;
  History history_;
  Learnability result_;
  bool equal_norms_ = false;
  bool some_norm_is_zero_ = false;
  Values rank_norms_;         ///< squared norms, all the same when they are equal to rounding
  Tensor<T> initial_;         ///< [n, O] outputs before training
  Values diagonal_;           ///< of the kernel at initialization
  Tensor<double> predicted_;  ///< [epochs + 1, n, O] outputs of the linearized network; empty when left out
  Values predicted_epoch_, predicted_loss_;
};

}  // namespace

std::string_view finding_name(Finding finding) noexcept {
  switch (finding) {
    case Finding::Supported:
      return "supported";
    case Finding::Contradicted:
      return "contradicted";
    case Finding::NotDistinguishable:
      break;
  }
  return "not distinguishable";
}

std::vector<Group> group_by(std::span<const double> values) {
  const std::size_t n = values.size();
  if (n < 3) throw ArgumentError(fmt::format("group_by: needs at least 3 values, found {}", n));
  for (const double value : values) {
    if (!std::isfinite(value))
      throw ArgumentError(fmt::format("group_by: values must be finite, found {}", value));
  }
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
  const std::size_t tenth = std::max<std::size_t>(1, (n + 5) / 10);
  std::vector<Group> groups(n, Group::Middle);
  for (std::size_t i = 0; i < tenth; ++i) {
    groups[order[i]] = Group::Top;
    groups[order[n - 1 - i]] = Group::Bottom;
  }
  return groups;
}

template <class T>
std::size_t least_learnability_bytes(const models::Network<T>& network, const datasets::Dataset& data,
                                     const LearnabilityOptions& options, const Workers& workers) {
  check(network, data, options);
  MemoryAccount account("learnability", 0);
  count_memory(network, data, options, workers, account);
  return account.least();
}

template std::size_t least_learnability_bytes(const models::Network<float>&, const datasets::Dataset&,
                                              const LearnabilityOptions&, const Workers&);
template std::size_t least_learnability_bytes(const models::Network<double>&, const datasets::Dataset&,
                                              const LearnabilityOptions&, const Workers&);

template <class T>
Learnability learnability(models::Network<T>& network, const datasets::Dataset& data,
                          const LearnabilityOptions& options, const Workers& workers) {
  check(network, data, options);
  Rooms rooms;
  if (options.memory != 0) {
    MemoryAccount account("learnability", options.memory);
    rooms = count_memory(network, data, options, workers, account);
    account.check();
  }
  return Study<T>(network, data, options, rooms, workers).run();
}

template Learnability learnability(models::Network<float>&, const datasets::Dataset&,
                                   const LearnabilityOptions&, const Workers&);
template Learnability learnability(models::Network<double>&, const datasets::Dataset&,
                                   const LearnabilityOptions&, const Workers&);

}  // namespace gradgram::ntk
