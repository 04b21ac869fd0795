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

/// Which examples does a network learn first, and does the kernel tell beforehand? (papers: "Learnability in
/// the Context of Neural Tangent Kernels"; its claim: large k(x, x) means learned early.) The study never
/// assumes the claim.
namespace gradgram::ntk {

/// A number per example that might predict when it is learned.
struct Score {
  std::string name;     ///< `k_ii at init`, `k_ii / ||x||^2 at init`, `linearized loss`, ...
  std::string meaning;  ///< one plain sentence; says whether large means early
  bool large_means_early = true;
  std::size_t epoch = 0;  ///< after which it was taken; 0 = before training, the only scores that predict
  std::vector<double> values;  ///< [n]
};

/// The three groups of the paper, by the value of a score: the largest 10 %, the middle 80 %, the smallest 10
/// %.
enum class Group : std::uint8_t { Top, Middle, Bottom };
/// Cuts examples into the three groups: round(n / 10) at either end, at least one; ties go by index. Needs n
/// >= 3 and finite values (ArgumentError otherwise).
std::vector<Group> group_by(std::span<const double> values);

struct GroupCurves {
  std::vector<double> accuracy[3];  ///< by Group, then epoch (0 = before training)
  std::vector<double> loss[3];
};

/// How one score went together with what training then did. All but the last are Spearman's rank correlations
/// over examples, ties averaged; 0 when either side does not vary.
struct Correlation {
  std::string score;
  double with_epoch_learned =
      0;  ///< expected negative when large means early; never learned counts as epochs + 1
  double with_epoch_learned_error = 0;         ///< standard error by bootstrap over examples
  double with_epoch_learned_given_norm = 0;    ///< the same, with the rank of ||x||^2 partialled out
  double with_epoch_learned_within_class = 0;  ///< the same inside each class, averaged by the classes' sizes
  /// The same among the examples that the untrained network gets wrong: 0 for fewer than 3. Who is right
  /// before training owes it to the draw of the weights, not to learning.
  double with_epoch_learned_if_wrong_at_start = 0;
  double with_accuracy_area = 0;  ///< with the example's mean correctness over the epochs 0 to the last
  double with_loss_integral = 0;  ///< with the example's mean loss over the epochs 0 to the last
  double with_squared_norm = 0;   ///< ||x||^2
  double with_class = 0;  ///< correlation ratio eta^2: share of the score rank's variance between classes
};

/// What a run says about a claim; two standard errors decide.
enum class Finding : std::uint8_t { Supported, Contradicted, NotDistinguishable };
/// `supported`, `contradicted`, `not distinguishable`.
std::string_view finding_name(Finding finding) noexcept;

/// "Larger k_ii at initialization means learned earlier": does it hold in this run? Two tests: the rank
/// correlation of k_ii with the epoch learned, and the accuracy of the top group minus that of the bottom
/// group, averaged over the epochs. `finding` is Supported or Contradicted only when both tests say so.
/// Standard errors are over the examples of this one run; another seed of weights may differ by more.
struct Verdict {
  Finding finding = Finding::NotDistinguishable;
  Finding by_correlation = Finding::NotDistinguishable;
  double correlation = 0,
         correlation_error = 0;  ///< Spearman(k_ii, epoch learned); the claim expects negative
  Finding by_groups = Finding::NotDistinguishable;
  double top_area = 0, bottom_area = 0;  ///< mean accuracy over the epochs 0 to the last, of the two groups
  double area_difference = 0, area_difference_error = 0;  ///< top - bottom; the claim expects positive
  double squared_norm_correlation = 0;                    ///< Spearman(k_ii, ||x||^2)
  double correlation_given_norm = 0;  ///< of k_ii with the epoch learned, ||x||^2 partialled out
  std::size_t best_score = 0;  ///< index of the score whose correlation with the epoch learned is largest in
                               ///< size, of those known before training
  std::string answer;          ///< one plain sentence each
  std::string correlation_sentence;
  std::string groups_sentence;
  std::string norm_sentence;
  std::string best_sentence;
};

struct LearnabilityOptions {
  TrainingOptions training;
  std::vector<std::size_t> score_epochs;  ///< besides 0, epochs after which k_ii is taken
  /// Bytes that everything may take, data and weights included; 0 = the kernel's default, all else unlimited.
  std::size_t memory = 0;
  /// Phases in order: `kernel`, `spectrum`, `linearized dynamics`, `training` (epochs), `statistics`.
  std::function<void(const std::string& phase, std::size_t done, std::size_t total)> progress;
  std::stop_token stop;
};

struct Learnability {
  std::size_t n = 0;
  std::size_t epochs = 0;
  std::vector<double> squared_norms;  ///< ||x_i||^2
  Tensor<double> kernel;              ///< [n, n], trace-mean, at initialization
  Spectrum spectrum;
  std::vector<double> label_energy;
  double alignment = 0, centred_alignment = 0;
  double entry_error = 0;  ///< relative error of the kernel's entries, as given to the spectrum
  std::vector<Score> scores;
  std::vector<Group> groups;           ///< by the first score, k_ii at initialization
  std::vector<GroupCurves> curves;     ///< per score, in the order of `scores`
  std::vector<double> accuracy, loss;  ///< of all examples, per epoch, 0 = before
  Tensor<double> correct;              ///< [epochs + 1, n], 0 or 1
  /// First epoch from which the example is classified rightly to the end; epochs + 1 when never.
  std::vector<std::size_t> epoch_learned;
  std::vector<Correlation> correlations;  ///< per score
  Verdict verdict;                        ///< on the first score
  double share_never_learned = 0;         ///< of the examples
  double share_right_from_start = 0;      ///< right before training and at every epoch since
  /// Time of the linearized dynamics reached after each epoch, eta * t for the flow dr/dt = -eta K r; [epochs
  /// + 1]. One epoch moves it by c lr ceil(n / batch) / n / (1 - momentum), c = 2 / O for the mean squared
  /// error and 1 for cross-entropy, times the schedule.
  std::vector<double> linearized_time;
  std::vector<double> linearized_accuracy,
      linearized_loss;  ///< of all examples, per epoch, as predicted from K
  /// Mean over examples and outputs of |trained - linearized| network output at each epoch: how lazy the
  /// training was.
  std::vector<double> linearization_gap;
  double leverage_ridge = 0;       ///< lambda of the leverage score
  double diagonal_drift = 0;       ///< ||diag K_end - diag K_0|| / ||diag K_0||
  std::vector<std::string> notes;  ///< what a reader must know: caveats of this run
};

/// The least LearnabilityOptions::memory that learnability() does with. Throws as it does for arguments.
template <class T>
std::size_t least_learnability_bytes(const models::Network<T>& network, const datasets::Dataset& data,
                                     const LearnabilityOptions& options, const Workers& workers);

/// Runs the study: kernel and scores at initialization, training with the state of every example after every
/// epoch, scores at chosen epochs, the exact linearized dynamics, groups and correlations. `network` ends
/// trained. Two classes and one output: y = -1 (class 0) / +1, right when the sign is. Otherwise one output a
/// class, y one-hot, right when the class's output is strictly the largest; mean squared error or
/// cross-entropy (the latter needs one output a class). Same bits for any number of workers. Throws
/// ShapeError and ArgumentError (fewer than 10 examples, no labels, one class only, outputs that do not fit
/// the classes, a score epoch beyond the last), BudgetError, NumericError when training diverges (with the
/// largest rate that the linearized network is stable at, unless the optimizer is Adam), Cancelled.
template <class T>
Learnability learnability(models::Network<T>& network, const datasets::Dataset& data,
                          const LearnabilityOptions& options, const Workers& workers);

}  // namespace gradgram::ntk
