#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "datasets/dataset.hpp"
#include "engine/parallel.hpp"
#include "engine/training.hpp"
#include "models/network.hpp"
#include "ntk/spectrum.hpp"

/// Which examples does a network learn first, and does the kernel tell beforehand? (papers: "Learnability in the Context
/// of Neural Tangent Kernels"; its claim: large k(x, x) means learned early.) The study never assumes the claim.
namespace gradgram::ntk {

/// A number per example that might predict when it is learned.
struct Score {
  std::string name;           ///< `k_ii at init`, `k_ii / ||x||^2 at init`, `linearized loss`, ...
  std::string meaning;        ///< one plain sentence; says whether large means early
  bool large_means_early = true;
  std::vector<double> values; ///< [n]
};

/// The three groups of the paper, by a score: top 10 %, middle 80 %, bottom 10 %.
enum class Group : std::uint8_t { Top, Middle, Bottom };

struct GroupCurves {
  std::vector<double> accuracy[3];  ///< by Group, then epoch (0 = before training)
  std::vector<double> loss[3];
};

struct Correlation {
  std::string score;
  double with_epoch_learned = 0;  ///< Spearman; expected negative when large means early
  double with_epoch_learned_error = 0;  ///< standard error by bootstrap over examples
  double with_accuracy_area = 0;  ///< with the mean accuracy over the epochs
  double with_loss_integral = 0;
  double with_squared_norm = 0;   ///< ||x||^2
  double with_class = 0;          ///< correlation ratio eta^2 of the score's rank explained by the class
};

struct LearnabilityOptions {
  TrainingOptions training;
  std::vector<std::size_t> score_epochs;  ///< besides 0, epochs after which k_ii is taken
  std::size_t memory = 0;                 ///< of the kernel
  std::function<void(const std::string& phase, std::size_t done, std::size_t total)> progress;
  std::stop_token stop;
};

struct Learnability {
  std::size_t n = 0;
  std::vector<double> squared_norms;      ///< ||x_i||^2
  Tensor<double> kernel;                  ///< [n, n], trace-mean, at initialization
  Spectrum spectrum;
  std::vector<double> label_energy;
  double alignment = 0, centred_alignment = 0;
  double entry_error = 0;
  std::vector<Score> scores;
  std::vector<Group> groups;              ///< by the first score, k_ii at initialization
  std::vector<GroupCurves> curves;        ///< per score, in the order of `scores`
  std::vector<double> accuracy, loss;     ///< of all examples, per epoch, 0 = before
  Tensor<double> correct;                 ///< [epochs + 1, n], 0 or 1
  /// First epoch from which the example is classified rightly to the end; epochs + 1 when never.
  std::vector<std::size_t> epoch_learned;
  std::vector<Correlation> correlations;  ///< per score
  /// Mean over examples of |trained - linearized| residual at each epoch: how lazy the training was.
  std::vector<double> linearization_gap;
  std::vector<std::string> notes;         ///< what a reader must know: caveats of this run
};

/// Runs the study: kernel and scores at initialization, training with the state of every example after every epoch,
/// scores at chosen epochs, the exact linearized dynamics, groups and correlations. `network` ends trained.
/// Binary with one output: y = -1 / +1. Otherwise one-hot.
template <class T>
Learnability learnability(models::Network<T>& network, const datasets::Dataset& data,
                          const LearnabilityOptions& options, const Workers& workers);

}  // namespace gradgram::ntk
