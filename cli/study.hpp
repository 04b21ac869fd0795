#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cli/figure.hpp"
#include "cli/options.hpp"
#include "datasets/dataset.hpp"
#include "ntk/learnability.hpp"

/// A finished learnability study and how it is told: figures, tables, one page.
namespace gradgram::cli {

struct StudyRun {
  const Options& options;
  const datasets::Dataset& data;
  const datasets::Dataset& pictures;  ///< the same examples unscaled
  const ntk::Learnability& study;
  std::string model{};
  std::size_t parameters = 0;
  std::size_t outputs = 1;
  double learning_rate = 0;
  std::size_t threads = 1;
  double seconds = 0;
  std::string figures_note{};  ///< why figures/ holds no drawings, or empty

  bool images() const { return data.example_shape().rank() == 3; }
  /// `images` or `examples`.
  std::string noun() const { return images() ? "images" : "examples"; }
};

/// The charts, in the order in which the page shows them.
struct StudyFigures {
  Figure group_accuracy, group_loss, accuracy, score, best_score, norm, eigenvalues, labels;
  std::vector<Figure> all() const;
};
StudyFigures study_figures(const StudyRun& run);

/// One line per example.
std::string scores_csv(const StudyRun& run);
/// What summary.json says beside the description of the run.
nlohmann::ordered_json study_json(const StudyRun& run);
/// One HTML file without scripts and without anything to load.
std::string study_report(const StudyRun& run, const StudyFigures& figures);
/// What a correlation with the epoch learned says, in plain words: `large values are learned earlier
/// (strong)`.
std::string correlation_words(double correlation, double error);
/// The verdict and the correlations as text for a terminal.
std::string study_text(const StudyRun& run);

}  // namespace gradgram::cli
