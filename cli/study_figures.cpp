#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/study.hpp"
#include "cli/text.hpp"
#include "engine/random.hpp"

namespace gradgram::cli {
namespace {

std::vector<double> epochs_axis(std::size_t epochs) {
  std::vector<double> x(epochs + 1);
  std::iota(x.begin(), x.end(), 0.0);
  return x;
}

/// The three groups by the first score.
std::vector<Series> group_series(const std::vector<double> (&curves)[3]) {
  using enum ntk::Group;
  const auto curve = [&](ntk::Group group) { return curves[static_cast<std::size_t>(group)]; };
  const std::vector<double> x = epochs_axis(curve(Top).size() - 1);
  return {{"middle 80 %", Colour::Grey, Mark::Line, x, curve(Middle)},
          {"largest 10 % of k(x,x)", Colour::Vermillion, Mark::Line, x, curve(Top)},
          {"smallest 10 %", Colour::Blue, Mark::Line, x, curve(Bottom)}};
}

/// Ticks of an axis of epochs that ends in `never`.
std::vector<std::pair<double, std::string>> epoch_ticks(std::size_t epochs) {
  const std::size_t step = epochs <= 6    ? 1
                           : epochs <= 12 ? 2
                           : epochs <= 30 ? 5
                           : epochs <= 60 ? 10
                                          : (epochs + 4) / 5;
  std::vector<std::pair<double, std::string>> ticks;
  for (std::size_t e = 0; e + step / 2 < epochs + 1; e += step) ticks.emplace_back(e, std::to_string(e));
  ticks.emplace_back(epochs + 1, "never");
  return ticks;
}

bool wants_logarithm(const std::vector<double>& values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return !values.empty() && *low > 0 && *high / *low > 20;
}

/// Points by class where two classes can be told apart by colour, else all alike.
std::vector<Series> class_points(const StudyRun& run, const std::vector<double>& x,
                                 const std::vector<double>& y) {
  std::vector<Series> series;
  if (run.data.classes() == 2) {
    series.push_back({run.data.class_names[0], Colour::Green, Mark::Points, {}, {}});
    series.push_back({run.data.class_names[1], Colour::Purple, Mark::Points, {}, {}});
  } else {
    series.push_back({"", Colour::Green, Mark::Points, {}, {}});
  }
  for (std::size_t i = 0; i < x.size(); ++i) {
    Series& own = series[series.size() == 2 ? static_cast<std::size_t>(run.data.labels[i] != 0) : 0];
    own.x.push_back(x[i]);
    own.y.push_back(y[i]);
  }
  return series;
}

/// A score against the epoch learned, the epochs spread a little so that points do not hide one another, with
/// the mean of each tenth of the examples.
Figure score_figure(const StudyRun& run, const ntk::Score& score, const std::string& name) {
  Figure figure;
  figure.name = name;
  figure.x.label = typeset(score.name);
  figure.x.logarithmic = wants_logarithm(score.values);
  figure.y.label = "epoch learned for good";
  const std::size_t n = score.values.size();
  std::vector<double> jittered(n);
  Random random(0x6a69);
  for (std::size_t i = 0; i < n; ++i) {
    jittered[i] = static_cast<double>(run.study.epoch_learned[i]) + 0.7 * (random.uniform() - 0.5);
  }
  figure.series = class_points(run, score.values, jittered);
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return score.values[a] < score.values[b]; });
  Series mean{"mean of each tenth", Colour::Ink, Mark::Line, {}, {}};
  for (std::size_t tenth = 0; tenth < 10; ++tenth) {
    const std::size_t begin = n * tenth / 10;
    const std::size_t end = n * (tenth + 1) / 10;
    double epoch = 0;
    for (std::size_t i = begin; i < end; ++i) epoch += static_cast<double>(run.study.epoch_learned[order[i]]);
    if (end == begin) continue;
    mean.x.push_back(score.values[order[begin + (end - begin) / 2]]);
    mean.y.push_back(epoch / static_cast<double>(end - begin));
  }
  figure.series.push_back(mean);
  // A score that is itself an epoch has steps; spread those as well.
  const bool whole =
      std::all_of(score.values.begin(), score.values.end(), [](double v) { return v == std::floor(v); });
  if (whole) {
    for (Series& series : figure.series) {
      if (series.mark != Mark::Points) continue;
      for (double& value : series.x) value += 0.7 * (random.uniform() - 0.5);
    }
    figure.x.logarithmic = false;
  }
  figure.y.low = -0.5;
  figure.y.high = static_cast<double>(run.study.epochs) + 1.6;
  figure.y.ticks = epoch_ticks(run.study.epochs);
  return figure;
}

}  // namespace

std::vector<Figure> StudyFigures::all() const {
  std::vector<Figure> figures = {group_accuracy, group_loss, accuracy, score};
  // The best score may be k(x,x) itself.
  if (!best_score.name.empty()) figures.push_back(best_score);
  figures.insert(figures.end(), {norm, eigenvalues, labels});
  return figures;
}

StudyFigures study_figures(const StudyRun& run) {
  const ntk::Learnability& study = run.study;
  StudyFigures figures;
  const ntk::GroupCurves& groups = study.curves.at(0);
  const ntk::Score& first = study.scores.at(0);

  Figure& accuracy = figures.group_accuracy;
  accuracy.name = "group-accuracy";
  accuracy.title = "Accuracy of three groups, cut by k(x,x) before training.";
  accuracy.caption =
      "If the kernel's diagonal told what is easy, the line of the largest tenth would rise first and that "
      "of the "
      "smallest last.";
  accuracy.x.label = "epoch";
  accuracy.y.label = "training accuracy";
  accuracy.y.percent = true;
  accuracy.y.high = 1.0;
  accuracy.series = group_series(groups.accuracy);

  Figure& loss = figures.group_loss;
  loss.name = "group-loss";
  loss.title = "Loss of the same groups.";
  loss.caption = "Mean over the examples of each group; the scale is logarithmic.";
  loss.x.label = "epoch";
  loss.y.label = run.options.loss == "mse" ? "mean squared error" : "cross-entropy";
  loss.y.logarithmic = true;
  loss.series = group_series(groups.loss);

  Figure& whole = figures.accuracy;
  whole.name = "trained-and-linearized";
  whole.title = "The trained network beside what its first kernel predicts.";
  whole.caption =
      "The dashed line solves the linearized network exactly from K before training. Where the two part, the "
      "kernel moved.";
  whole.x.label = "epoch";
  whole.y.label = "training accuracy, all";
  whole.y.percent = true;
  whole.y.high = 1.0;
  whole.series = {
      {"trained network", Colour::Blue, Mark::Line, epochs_axis(study.epochs), study.accuracy},
      {"linearized", Colour::Vermillion, Mark::Dashes, epochs_axis(study.epochs), study.linearized_accuracy}};

  figures.score = score_figure(run, first, "score-and-epoch");
  figures.score.title = "k(x,x) before training against the epoch learned.";
  figures.score.caption =
      "Every dot is one example. The claim expects the dark line to fall from left to right.";
  if (study.verdict.best_score != 0) {
    const ntk::Score& best = study.scores.at(study.verdict.best_score);
    figures.best_score = score_figure(run, best, "best-score-and-epoch");
    figures.best_score.title = fmt::format("The score that told most: {}.", typeset(best.name));
    figures.best_score.caption = typeset(best.meaning);
  }

  Figure& norm = figures.norm;
  norm.name = "score-and-norm";
  norm.title = run.images() ? "k(x,x) against the brightness of the image."
                            : "k(x,x) against the size of the example.";
  norm.caption = "When the dots lie along a line, the score mostly measures the length of the input.";
  norm.x.label = run.images() ? "sum of squared pixels, ‖x‖²" : "squared norm ‖x‖²";
  norm.y.label = typeset(first.name);
  norm.x.logarithmic = wants_logarithm(study.squared_norms);
  norm.y.logarithmic = wants_logarithm(first.values);
  norm.series = class_points(run, study.squared_norms, first.values);

  Figure& eigenvalues = figures.eigenvalues;
  eigenvalues.name = "eigenvalue-cdf";
  eigenvalues.title = "How the eigenvalues of the kernel are spread.";
  eigenvalues.caption = fmt::format(
      "Share of the {} eigenvalues that are not larger. Values left of the dashed line lie within the "
      "arithmetic's error "
      "bar and are not told apart from zero.",
      grouped(study.spectrum.values.size()));
  eigenvalues.x.label = "eigenvalue";
  eigenvalues.x.logarithmic = true;
  eigenvalues.y.label = "share of eigenvalues";
  eigenvalues.y.percent = true;
  eigenvalues.y.low = 0.0;
  eigenvalues.y.high = 1.0;
  eigenvalues.vertical_line = study.spectrum.error_bar;
  eigenvalues.vertical_line_label = "error bar";
  Series cdf{"", Colour::Blue, Mark::Steps, {}, {}};
  const std::vector<double>& values = study.spectrum.values;
  const auto count = static_cast<double>(values.size());
  for (std::size_t i = values.size(); i-- > 0;) {
    // What lies far below the error bar is noise whose logarithm says nothing.
    if (values[i] < study.spectrum.error_bar / 10) continue;
    cdf.x.push_back(values[i]);
    cdf.y.push_back((count - static_cast<double>(i)) / count);
  }
  eigenvalues.series = {cdf};

  Figure& labels = figures.labels;
  labels.name = "label-energy";
  labels.title = "Where the labels lie.";
  labels.caption =
      "Share of the labels' energy, and of the trace, within the first k eigenvectors. Labels that rise "
      "early are "
      "fitted early.";
  labels.x.label = "first k eigenvectors";
  labels.x.logarithmic = true;
  labels.y.label = "cumulative share";
  labels.y.percent = true;
  labels.y.low = 0.0;
  labels.y.high = 1.0;
  Series energy{"labels", Colour::Vermillion, Mark::Line, {}, {}};
  Series trace{"trace of K", Colour::Grey, Mark::Line, {}, {}};
  double energy_sum = 0;
  double trace_sum = 0;
  double next = 1;
  for (std::size_t i = 0; i < study.label_energy.size(); ++i) {
    energy_sum += study.label_energy[i];
    trace_sum += values[i] / study.spectrum.trace;
    if (static_cast<double>(i + 1) < next && i + 1 != study.label_energy.size()) continue;
    next = std::max(next + 1, next * 1.03);
    for (auto [series, sum] : {std::pair{&energy, energy_sum}, std::pair{&trace, trace_sum}}) {
      series->x.push_back(static_cast<double>(i + 1));
      series->y.push_back(std::min(sum, 1.0));
    }
  }
  labels.series = {trace, energy};
  return figures;
}

}  // namespace gradgram::cli
