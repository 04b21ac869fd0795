#include "ntk/learnability.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <string>
#include <vector>

#include "engine/error.hpp"
#include "engine/random.hpp"
#include "ntk/statistics.hpp"

namespace gradgram::ntk {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::Not;
using Values = std::vector<double>;

datasets::Dataset empty_set(std::size_t n, std::size_t features, std::size_t classes) {
  datasets::Dataset data;
  data.inputs = Tensor<double>(Shape{n, features});
  data.labels.assign(n, 0);
  for (std::size_t c = 0; c < classes; ++c) data.class_names.push_back("class " + std::to_string(c));
  for (std::size_t i = 0; i < n; ++i) data.rows.push_back(i);
  data.source = "test";
  return data;
}

/// Overlapping Gaussian clouds, one a class, around multiples of `apart` on the first axes.
datasets::Dataset clouds(std::size_t n, std::size_t classes, std::uint64_t seed, double apart = 1) {
  datasets::Dataset data = empty_set(n, 6, classes);
  Random random(seed);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t label = i % classes;
    data.labels[i] = static_cast<std::int32_t>(label);
    for (std::size_t j = 0; j < 6; ++j) data.inputs(i, j) = random.normal() + (j == label ? apart : 0);
  }
  return data;
}

template <class T>
models::Network<T> network_of(const std::string& text, std::size_t features, std::uint64_t seed = 1) {
  models::NetworkOptions options;
  options.parameterization = models::Parameterization::Ntk;
  options.weight_variance = 1.5;
  options.bias_variance = 0.1;
  options.seed = seed;
  return {models::parse(text, Shape{features}), options};
}

LearnabilityOptions options_of(std::size_t epochs, std::size_t batch, double learning_rate) {
  LearnabilityOptions options;
  options.training.epochs = epochs;
  options.training.batch = batch;
  options.training.learning_rate = learning_rate;
  options.training.seed = 3;
  return options;
}

const Score& score(const Learnability& study, const std::string& name) {
  for (const Score& candidate : study.scores) {
    if (candidate.name == name) return candidate;
  }
  throw ArgumentError("no score " + name);
}

const Correlation& correlation_of(const Learnability& study, const std::string& name) {
  for (const Correlation& candidate : study.correlations) {
    if (candidate.score == name) return candidate;
  }
  throw ArgumentError("no correlation " + name);
}

bool has_score(const Learnability& study, const std::string& name) {
  return std::any_of(study.scores.begin(), study.scores.end(),
                     [&](const Score& s) { return s.name == name; });
}

/// What must hold of any study, recomputed from `correct` and the kernel. Empty when all does.
std::string inconsistency(const Learnability& study, const datasets::Dataset& data) {
  const std::size_t n = study.n;
  const std::size_t moments = study.epochs + 1;
  const auto near = [](double a, double b) { return std::abs(a - b) <= 1e-12; };
  if (study.correct.shape() != Shape({moments, n})) return "shape of correct";
  for (std::size_t i = 0; i < n; ++i) {
    std::size_t learned = moments;
    for (std::size_t e = moments; e-- > 0;) {
      if (study.correct(e, i) != 1) break;
      learned = e;
    }
    if (study.epoch_learned[i] != learned) return "epoch learned of " + std::to_string(i);
    double squared = 0;
    for (std::size_t j = 0; j < data.example_shape().size(); ++j) squared += std::pow(data.inputs(i, j), 2);
    if (!near(study.squared_norms[i], squared)) return "squared norm of " + std::to_string(i);
    if (study.scores.front().values[i] != study.kernel(i, i)) return "first score is not the diagonal";
  }
  for (std::size_t e = 0; e < moments; ++e) {
    double right = 0;
    for (std::size_t i = 0; i < n; ++i) right += study.correct(e, i);
    if (!near(study.accuracy[e], right / static_cast<double>(n))) return "accuracy at " + std::to_string(e);
  }
  if (study.curves.size() != study.scores.size() || study.correlations.size() != study.scores.size())
    return "counts";
  for (std::size_t s = 0; s < study.scores.size(); ++s) {
    const std::vector<Group> groups = group_by(study.scores[s].values);
    if (s == 0 && groups != study.groups) return "groups are not those of the first score";
    double size[3] = {};
    double low[3] = {INFINITY, INFINITY, INFINITY};
    double high[3] = {-INFINITY, -INFINITY, -INFINITY};
    for (std::size_t i = 0; i < n; ++i) {
      const auto g = static_cast<std::size_t>(groups[i]);
      ++size[g];
      low[g] = std::min(low[g], study.scores[s].values[i]);
      high[g] = std::max(high[g], study.scores[s].values[i]);
    }
    if (size[0] != std::round(static_cast<double>(n) / 10) || size[2] != size[0]) return "sizes of groups";
    if (!(low[0] >= high[1] && low[1] >= high[2])) return "groups overlap in " + study.scores[s].name;
    for (std::size_t e = 0; e < moments; ++e) {
      double accuracy = 0;
      double loss = 0;
      for (std::size_t g = 0; g < 3; ++g) {
        accuracy += size[g] / static_cast<double>(n) * study.curves[s].accuracy[g][e];
        loss += size[g] / static_cast<double>(n) * study.curves[s].loss[g][e];
      }
      if (!near(accuracy, study.accuracy[e])) return "group accuracies at " + std::to_string(e);
      if (!(std::abs(loss - study.loss[e]) <= 1e-12 * study.loss[e]))
        return "group losses at " + std::to_string(e);
    }
    const Values learned(study.epoch_learned.begin(), study.epoch_learned.end());
    const Correlation& c = study.correlations[s];
    if (c.score != study.scores[s].name) return "names of correlations";
    if (!near(c.with_epoch_learned, spearman(study.scores[s].values, learned)))
      return "correlation of " + c.score;
    for (const double rho :
         {c.with_epoch_learned, c.with_epoch_learned_given_norm, c.with_epoch_learned_within_class,
          c.with_accuracy_area, c.with_loss_integral, c.with_squared_norm, c.with_class}) {
      if (!(rho >= -1 && rho <= 1)) return "range of a correlation of " + c.score;
    }
  }
  double energy = 0;
  for (const double share : study.label_energy) energy += share;
  if (!(std::abs(energy - 1) <= 1e-10)) return "label energy";
  const double dimension = study.spectrum.effective_dimension(study.leverage_ridge);
  double leverage = 0;
  for (const double value : score(study, "leverage").values) leverage += value;
  if (!(std::abs(leverage - dimension) <= 1e-9 * dimension))
    return "leverages do not sum to the effective dimension";
  if (study.verdict.correlation != study.correlations.front().with_epoch_learned)
    return "correlation of the verdict";
  double area = 0;
  double tops = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (study.groups[i] != Group::Top) continue;
    ++tops;
    for (std::size_t e = 0; e < moments; ++e) area += study.correct(e, i) / static_cast<double>(moments);
  }
  if (!near(study.verdict.top_area, area / tops)) return "area of the verdict";
  return "";
}

TEST(GroupBy, CutsTenthsOffEitherEnd) {
  Values values(20);
  for (std::size_t i = 0; i < 20; ++i) values[i] = static_cast<double>((i * 7) % 20);
  const std::vector<Group> groups = group_by(values);
  for (std::size_t i = 0; i < 20; ++i) {
    const Group expected = values[i] >= 18 ? Group::Top : values[i] <= 1 ? Group::Bottom : Group::Middle;
    EXPECT_EQ(groups[i], expected) << i;
  }
  EXPECT_THAT(group_by(Values{5, 5, 5}), testing::ElementsAre(Group::Top, Group::Middle, Group::Bottom));
  const std::vector<Group> tied = group_by(Values(25, 1.0));
  EXPECT_EQ(std::count(tied.begin(), tied.end(), Group::Top), 3);  // 2.5, rounded up
  EXPECT_EQ(std::count(tied.begin(), tied.end(), Group::Bottom), 3);
  EXPECT_THROW(group_by(Values{1, 2}), ArgumentError);
  EXPECT_THROW(group_by(Values{1, 2, std::nan("")}), ArgumentError);
}

TEST(Learnability, ABinaryRunIsConsistent) {
  const datasets::Dataset data = clouds(83, 2, 1);
  auto network = network_of<float>("dense(64) relu dense(1)", 6);
  LearnabilityOptions options = options_of(6, 16, 0.05);
  options.score_epochs = {4, 2, 4, 0};
  std::vector<std::string> phases;
  options.progress = [&](const std::string& phase, std::size_t done, std::size_t total) {
    EXPECT_LE(done, total);
    if (phases.empty() || phases.back() != phase) phases.push_back(phase);
  };
  Learnability study = learnability(network, data, options, Workers(2));
  EXPECT_EQ(inconsistency(study, data), "");
  EXPECT_THAT(phases,
              testing::ElementsAre("kernel", "spectrum", "linearized dynamics", "training", "statistics"));
  EXPECT_GT(study.accuracy.back(), 0.6);
  EXPECT_LT(study.loss.back(), study.loss.front());
  EXPECT_EQ(study.linearized_time.size(), 7U);
  EXPECT_EQ(study.linearization_gap.size(), 7U);
  EXPECT_LE(study.linearization_gap.front(), 1e-5);
  EXPECT_GT(study.diagonal_drift, 0);
  EXPECT_GT(study.entry_error, 0);
  EXPECT_TRUE(has_score(study, "k_ii at epoch 2"));
  EXPECT_TRUE(has_score(study, "k_ii / ||x||^2 at epoch 4"));
  EXPECT_FALSE(has_score(study, "true-class k_ii"));
  EXPECT_EQ(score(study, "k_ii at epoch 2").epoch, 2U);
  EXPECT_NE(score(study, "k_ii at epoch 2").values, score(study, "k_ii at epoch 4").values);
  EXPECT_EQ(correlation_of(study, "||x||^2").with_squared_norm, 1);
  // The parameters are those of the trained network.
  const Tensor<float> outputs = evaluate<float>(network, data.inputs_as<float>(), Workers(1));
  for (std::size_t i = 0; i < data.size(); ++i) {
    EXPECT_EQ((outputs(i, 0) > 0) == (data.labels[i] == 1), study.correct(6, i) == 1);
  }

  // The checker must be able to fail.
  study.epoch_learned[7] += 1;
  EXPECT_NE(inconsistency(study, data), "");
  study.epoch_learned[7] -= 1;
  study.correct(3, 5) = 1 - study.correct(3, 5);
  EXPECT_NE(inconsistency(study, data), "");
}

TEST(Learnability, SeveralClassesWithEitherLoss) {
  const datasets::Dataset data = clouds(60, 3, 2, 2);
  for (const Loss loss : {Loss::MeanSquaredError, Loss::CrossEntropy}) {
    auto network = network_of<double>("dense(48) tanh dense(3)", 6);
    LearnabilityOptions options = options_of(15, 20, 0.3);
    options.training.loss = loss;
    const Learnability study = learnability(network, data, options, Workers(2));
    EXPECT_EQ(inconsistency(study, data), "");
    EXPECT_TRUE(has_score(study, "true-class k_ii"));
    EXPECT_GT(study.accuracy.back(), 0.6);
    EXPECT_GT(study.linearized_accuracy.back(), 0.6);
    EXPECT_LT(study.linearized_loss.back(), study.linearized_loss.front());
    EXPECT_NEAR(study.linearized_loss.front(), study.loss.front(), 1e-9);
    // 3 steps an epoch; cross-entropy: lr / n a step, mean squared error over 3 outputs: 2 / 3 of it.
    const double per_epoch = (loss == Loss::CrossEntropy ? 1 : 2.0 / 3) * 0.3 * 3 / 60;
    EXPECT_NEAR(study.linearized_time[1], per_epoch, 1e-15);
    EXPECT_NEAR(study.linearized_time[15], 15 * per_epoch, 1e-14);
    EXPECT_THAT(study.notes, Contains(HasSubstr("mean over the 3 outputs")));
  }
}

TEST(Learnability, TimeFollowsMomentumAndSchedule) {
  const datasets::Dataset data = clouds(40, 2, 3);
  LearnabilityOptions options = options_of(4, 10, 0.01);
  options.training.optimizer = Optimizer::Momentum;
  options.training.momentum = 0.75;
  options.training.schedule = LearningRateSchedule::Cosine;
  auto network = network_of<double>("dense(16) tanh dense(1)", 6);
  const Learnability study = learnability(network, data, options, Workers(1));
  double time = 0;
  for (std::size_t step = 0; step < 16; ++step) {
    // A step with batch mean of 2 r J^T at rate lr, summed over its 10 examples of 40; momentum multiplies
    // by 4.
    time += 4 * 2 * 0.01 / 40 * 0.5 * (1 + std::cos(std::numbers::pi * static_cast<double>(step) / 16));
    if (step % 4 == 3) {
      EXPECT_NEAR(study.linearized_time[step / 4 + 1], time, 1e-14) << step;
    }
  }
  options.training.optimizer = Optimizer::Adam;
  auto other = network_of<double>("dense(16) tanh dense(1)", 6);
  EXPECT_THAT(learnability(other, data, options, Workers(1)).notes,
              Contains(HasSubstr("Adam has no linearized")));
}

// A linear network is its own linearization: just below the limit that the notes name it must settle, just
// above it must not.
TEST(Learnability, TheStableStepOfEveryOptimizerIsTheOneThatTrainingObeys) {
  const datasets::Dataset data = clouds(40, 2, 5);
  const std::size_t epochs = 60;
  for (const Optimizer optimizer : {Optimizer::Sgd, Optimizer::Momentum, Optimizer::Nesterov}) {
    const auto run = [&](double learning_rate) {
      LearnabilityOptions options = options_of(epochs, 0, learning_rate);
      options.training.optimizer = optimizer;
      options.training.momentum = 0.8;
      auto network = network_of<double>("dense(1)", 6);
      return learnability(network, data, options, Workers(1));
    };
    const auto warned = Contains(HasSubstr("limit of stable descent"));
    const Learnability slow = run(1e-3);
    EXPECT_THAT(slow.notes, Not(warned));
    const double step = slow.linearized_time[1] * slow.spectrum.values.front();  // of a rate of 1e-3
    const double m = 0.8;
    const double limit = optimizer == Optimizer::Sgd        ? 2
                         : optimizer == Optimizer::Momentum ? 2 * (1 + m) / (1 - m)
                                                            : 2 * (1 + m) / (1 + 2 * m) / (1 - m);
    const Learnability below = run(0.9e-3 * limit / step);
    EXPECT_THAT(below.notes, Not(warned));
    EXPECT_LE(below.loss.back(), below.loss.front());
    const Learnability above = run(1.1e-3 * limit / step);
    EXPECT_THAT(above.notes, warned);
    EXPECT_GT(above.loss.back(), 100 * above.loss.front());
  }
}

// A wide network trained in small steps is lazy: what K says beforehand must be what happens.
TEST(Learnability, OnAWideNetworkTheLinearizedScoresComeTrue) {
  const datasets::Dataset data = clouds(60, 2, 4, 0.7);
  auto network = network_of<double>("dense(2048) tanh dense(1)", 6);
  // Half of the stable step, in full batches: the kernel's scale is about that of the inputs' squared norm.
  const Learnability study = learnability(network, data, options_of(40, 0, 0.1), Workers(2));
  EXPECT_EQ(inconsistency(study, data), "");
  EXPECT_LE(study.linearization_gap.back(), 0.05 * std::sqrt(study.loss.front()));
  EXPECT_LE(study.diagonal_drift, 0.1);
  for (std::size_t e = 0; e <= 40; ++e) {
    EXPECT_LE(std::abs(study.linearized_accuracy[e] - study.accuracy[e]), 0.06) << e;
    EXPECT_LE(std::abs(study.linearized_loss[e] - study.loss[e]), 0.05 * study.loss.front()) << e;
  }
  EXPECT_GE(correlation_of(study, "linearized epoch learned").with_epoch_learned, 0.9);
  EXPECT_GE(correlation_of(study, "linearized loss").with_loss_integral, 0.98);
  // The diagonal alone does not know as much.
  EXPECT_LE(std::abs(correlation_of(study, "k_ii at init").with_loss_integral), 0.9);
}

/// Labels by a line through the origin; norms from `near` to 4 times as much, and labels flipped by `flip`.
template <class Flip>
datasets::Dataset rays(std::size_t n, Flip flip) {
  datasets::Dataset data = empty_set(n, 2, 2);
  Random random(12);
  for (std::size_t i = 0; i < n; ++i) {
    const double angle = 2 * std::numbers::pi * random.uniform();
    const double radius = 0.25 + 1.75 * static_cast<double>(i) / static_cast<double>(n);
    data.inputs(i, 0) = radius * std::cos(angle);
    data.inputs(i, 1) = radius * std::sin(angle);
    const bool right = std::cos(angle) > 0;
    data.labels[i] = right != flip(radius, random) ? 1 : 0;
  }
  return data;
}

Verdict verdict_of(const datasets::Dataset& data) {
  auto network = network_of<double>("dense(128) tanh dense(1)", 2, 8);
  const Learnability study = learnability(network, data, options_of(20, 32, 0.1), Workers(2));
  EXPECT_EQ(inconsistency(study, data), "");
  EXPECT_GT(study.verdict.squared_norm_correlation, 0.9);
  EXPECT_THAT(study.verdict.norm_sentence, HasSubstr("almost alike"));
  return study.verdict;
}

// Three worlds in which the answer is known: the far points are labelled wrongly, the near ones are, or all
// by chance.
TEST(Learnability, TheVerdictFollowsTheData) {
  const Verdict against = verdict_of(
      rays(300, [](double radius, Random& random) { return radius > 1.4 && random.uniform() < 0.5; }));
  EXPECT_EQ(against.finding, Finding::Contradicted)
      << against.correlation_sentence << against.groups_sentence;
  EXPECT_GT(against.correlation, 0);
  EXPECT_LT(against.area_difference, 0);
  EXPECT_THAT(against.answer, HasSubstr("Contradicted"));

  const Verdict in_favour = verdict_of(
      rays(300, [](double radius, Random& random) { return radius < 0.8 && random.uniform() < 0.5; }));
  EXPECT_EQ(in_favour.finding, Finding::Supported)
      << in_favour.correlation_sentence << in_favour.groups_sentence;
  EXPECT_LT(in_favour.correlation, 0);
  EXPECT_GT(in_favour.area_difference, 0);

  const Verdict chance = verdict_of(rays(300, [](double, Random& random) { return random.uniform() < 0.5; }));
  EXPECT_EQ(chance.finding, Finding::NotDistinguishable)
      << chance.correlation_sentence << chance.groups_sentence;
  EXPECT_EQ(finding_name(chance.finding), "not distinguishable");
}

TEST(Learnability, EqualNormsAreNoScore) {
  datasets::Dataset data = clouds(30, 2, 5);
  for (std::size_t i = 0; i < 30; ++i) {
    double squares = 0;
    for (std::size_t j = 0; j < 6; ++j) squares += data.inputs(i, j) * data.inputs(i, j);
    for (std::size_t j = 0; j < 6; ++j) data.inputs(i, j) /= std::sqrt(squares);
  }
  auto network = network_of<double>("dense(16) tanh dense(1)", 6);
  const Learnability study = learnability(network, data, options_of(2, 8, 0.05), Workers(1));
  EXPECT_FALSE(has_score(study, "k_ii / ||x||^2 at init"));
  EXPECT_FALSE(has_score(study, "||x||^2"));
  EXPECT_EQ(study.verdict.squared_norm_correlation, 0);
  EXPECT_EQ(study.verdict.correlation_given_norm, study.verdict.correlation);
  EXPECT_THAT(study.notes, Contains(HasSubstr("same norm")));
}

bool same_bits(std::span<const double> a, std::span<const double> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

TEST(Learnability, TheSameBitsForAnyNumberOfThreads) {
  const datasets::Dataset data = clouds(53, 3, 6);
  const auto run = [&](std::size_t threads) {
    auto network = network_of<float>("dense(33) relu dense(3)", 6);
    LearnabilityOptions options = options_of(4, 11, 0.1);
    options.score_epochs = {1};
    return learnability(network, data, options, Workers(threads));
  };
  const Learnability one = run(1);
  for (const std::size_t threads : {2UL, 5UL}) {
    const Learnability many = run(threads);
    EXPECT_TRUE(same_bits(one.kernel.span(), many.kernel.span()));
    EXPECT_TRUE(same_bits(one.spectrum.values, many.spectrum.values));
    EXPECT_TRUE(same_bits(one.correct.span(), many.correct.span()));
    EXPECT_TRUE(same_bits(one.loss, many.loss));
    EXPECT_TRUE(same_bits(one.linearization_gap, many.linearization_gap));
    ASSERT_EQ(one.scores.size(), many.scores.size());
    for (std::size_t s = 0; s < one.scores.size(); ++s) {
      EXPECT_TRUE(same_bits(one.scores[s].values, many.scores[s].values)) << one.scores[s].name;
      EXPECT_EQ(one.correlations[s].with_epoch_learned_error, many.correlations[s].with_epoch_learned_error);
    }
    EXPECT_EQ(one.verdict.answer, many.verdict.answer);
    EXPECT_EQ(one.notes, many.notes);
  }
}

TEST(Learnability, RefusesWhatItCannotStudy) {
  const Workers workers(1);
  const auto study = [&](datasets::Dataset data, const std::string& model, LearnabilityOptions options) {
    auto network = network_of<double>(model, 6);
    return learnability(network, data, options, workers);
  };
  const std::string model = "dense(8) tanh dense(1)";
  const LearnabilityOptions plain = options_of(2, 8, 0.05);
  EXPECT_THROW(study(clouds(9, 2, 1), model, plain), ArgumentError);
  datasets::Dataset unlabelled = clouds(20, 2, 1);
  unlabelled.labels.clear();
  EXPECT_THROW(study(std::move(unlabelled), model, plain), ArgumentError);
  datasets::Dataset one_class = clouds(20, 2, 1);
  one_class.labels.assign(20, 1);
  EXPECT_THROW(study(std::move(one_class), model, plain), ArgumentError);
  EXPECT_THROW(study(clouds(20, 3, 1), model, plain), ShapeError);
  EXPECT_THROW(study(clouds(20, 3, 1), "dense(2)", plain), ShapeError);
  auto narrow = network_of<double>("dense(1)", 5);
  EXPECT_THROW(learnability(narrow, clouds(20, 2, 1), plain, workers), ShapeError);
  LearnabilityOptions options = plain;
  options.training.loss = Loss::CrossEntropy;
  EXPECT_THROW(study(clouds(20, 2, 1), model, options), ArgumentError);
  options = plain;
  options.score_epochs = {3};
  EXPECT_THROW(study(clouds(20, 2, 1), model, options), ArgumentError);
  options = plain;
  options.training.epochs = 0;
  EXPECT_THROW(study(clouds(20, 2, 1), model, options), ArgumentError);
  options = plain;
  options.training.momentum = 1;
  EXPECT_THROW(study(clouds(20, 2, 1), model, options), ArgumentError);
  options = plain;
  options.memory = 20 * 20 * 4 * 8 - 1;
  EXPECT_THROW(study(clouds(20, 2, 1), model, options), BudgetError);
  options = plain;
  options.training.learning_rate = 1e12;
  options.training.epochs = 20;
  EXPECT_THROW(study(clouds(20, 2, 1), model, options), NumericError);
  std::stop_source stop;
  stop.request_stop();
  options = plain;
  options.stop = stop.get_token();
  EXPECT_THROW(study(clouds(20, 2, 1), model, options), Cancelled);
}

/// Of a linear network the linearized one is all there is.
template <class T>
void expect_the_told_rate_is_the_limit() {
  const datasets::Dataset data = clouds(20, 2, 1);
  const auto told = [&](Optimizer optimizer, double rate, std::size_t epochs) -> std::string {
    models::Network<T> network = network_of<T>("dense(1)", 6);
    LearnabilityOptions options = options_of(epochs, 0, rate);
    options.training.optimizer = optimizer;
    options.training.momentum = 0.5;
    try {
      learnability<T>(network, data, options, Workers(1));
    } catch (const NumericError& error) {
      return error.what();
    }
    return "";
  };
  for (const Optimizer optimizer : {Optimizer::Sgd, Optimizer::Momentum, Optimizer::Nesterov}) {
    const std::string message = told(optimizer, 1e20, 20);
    EXPECT_THAT(message, HasSubstr("learnability: the learning rate is too large: 1e+20, where descent"));
    const std::string before = "stable up to ";
    const std::size_t at = message.find(before);
    ASSERT_NE(at, std::string::npos) << message;
    const double limit = std::stod(message.substr(at + before.size()));
    EXPECT_EQ(told(optimizer, 0.99 * limit, 3000), "");
    EXPECT_THAT(told(optimizer, 1.05 * limit, 20000), HasSubstr("too large"));
  }
  const std::string adam = told(Optimizer::Adam, 1e200, 20);
  EXPECT_THAT(adam, HasSubstr("the learning rate is too large: 1e+200: "));
}
TEST(Learnability, TrainingThatDivergesTellsTheLargestStableRate) {
  expect_the_told_rate_is_the_limit<float>();
  expect_the_told_rate_is_the_limit<double>();
}

}  // namespace
}  // namespace gradgram::ntk
