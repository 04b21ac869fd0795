#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/study.hpp"
#include "cli/text.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + "\"";
}

constexpr const char* kGroupNames[] = {"top", "middle", "bottom"};

}  // namespace

std::string scores_csv(const StudyRun& run) {
  const ntk::Learnability& study = run.study;
  std::string text = "example,source_row,label,class,squared_norm,group,epoch_learned,mean_correct";
  for (const ntk::Score& score : study.scores) text += "," + csv_field(score.name);
  text += '\n';
  for (std::size_t i = 0; i < study.n; ++i) {
    double correct = 0;
    for (std::size_t e = 0; e <= study.epochs; ++e) correct += study.correct(e, i);
    const std::int32_t label = run.data.labels[i];
    text += fmt::format("{},{},{},{},{:.9g},{},{},{:.6g}", i, run.data.rows.empty() ? i : run.data.rows[i],
                        label, csv_field(run.data.class_names.at(static_cast<std::size_t>(label))),
                        study.squared_norms[i], kGroupNames[static_cast<std::size_t>(study.groups[i])],
                        study.epoch_learned[i], correct / static_cast<double>(study.epochs + 1));
    for (const ntk::Score& score : study.scores) text += fmt::format(",{:.9g}", score.values[i]);
    text += '\n';
  }
  return text;
}

ordered_json study_json(const StudyRun& run) {
  const ntk::Learnability& study = run.study;
  const ntk::Verdict& verdict = study.verdict;
  ordered_json json;
  json["training"] = {{"optimizer", run.options.optimizer},
                      {"learning_rate", run.learning_rate},
                      {"momentum", run.options.momentum},
                      {"schedule", run.options.schedule},
                      {"loss", run.options.loss},
                      {"epochs", study.epochs},
                      {"batch", run.options.batch},
                      {"l1", run.options.l1},
                      {"l2", run.options.l2},
                      {"order_seed", run.options.seed}};
  json["verdict"] = {{"claim", "larger k(x,x) at initialization means learned earlier"},
                     {"finding", std::string(ntk::finding_name(verdict.finding))},
                     {"answer", verdict.answer},
                     {"by_correlation", std::string(ntk::finding_name(verdict.by_correlation))},
                     {"correlation", verdict.correlation},
                     {"correlation_standard_error", verdict.correlation_error},
                     {"by_groups", std::string(ntk::finding_name(verdict.by_groups))},
                     {"top_mean_accuracy", verdict.top_area},
                     {"bottom_mean_accuracy", verdict.bottom_area},
                     {"accuracy_difference", verdict.area_difference},
                     {"accuracy_difference_standard_error", verdict.area_difference_error},
                     {"correlation_with_squared_norm", verdict.squared_norm_correlation},
                     {"correlation_given_squared_norm", verdict.correlation_given_norm},
                     {"best_score", study.scores.at(verdict.best_score).name},
                     {"sentences",
                      {verdict.correlation_sentence, verdict.groups_sentence, verdict.norm_sentence,
                       verdict.best_sentence}}};
  json["scores"] = ordered_json::array();
  for (std::size_t i = 0; i < study.scores.size(); ++i) {
    const ntk::Score& score = study.scores[i];
    const ntk::Correlation& c = study.correlations[i];
    json["scores"].push_back({{"name", score.name},
                              {"meaning", score.meaning},
                              {"taken_after_epoch", score.epoch},
                              {"large_means_early", score.large_means_early},
                              {"spearman_with_epoch_learned", c.with_epoch_learned},
                              {"standard_error", c.with_epoch_learned_error},
                              {"given_squared_norm", c.with_epoch_learned_given_norm},
                              {"within_class", c.with_epoch_learned_within_class},
                              {"if_wrong_at_start", c.with_epoch_learned_if_wrong_at_start},
                              {"with_mean_accuracy", c.with_accuracy_area},
                              {"with_mean_loss", c.with_loss_integral},
                              {"with_squared_norm", c.with_squared_norm},
                              {"share_explained_by_class", c.with_class}});
  }
  json["accuracy"] = study.accuracy;
  json["loss"] = study.loss;
  json["groups"] = ordered_json::object();
  for (std::size_t g = 0; g < 3; ++g) {
    json["groups"][kGroupNames[g]] = {{"accuracy", study.curves.at(0).accuracy[g]},
                                      {"loss", study.curves.at(0).loss[g]}};
  }
  json["share_never_learned"] = study.share_never_learned;
  json["share_right_from_start"] = study.share_right_from_start;
  const double condition = study.spectrum.condition();
  json["spectrum"] = {
      {"trace", study.spectrum.trace},
      {"lambda_max", study.spectrum.values.front()},
      {"lambda_min", study.spectrum.values.back()},
      {"error_bar", study.spectrum.error_bar},
      {"resolved", study.spectrum.resolved()},
      {"condition", std::isfinite(condition) ? ordered_json(condition) : ordered_json(nullptr)},
      {"effective_rank", study.spectrum.effective_rank()},
      {"alignment", study.alignment},
      {"centred_alignment", study.centred_alignment}};
  json["linearized"] = {{"time", study.linearized_time},
                        {"accuracy", study.linearized_accuracy},
                        {"loss", study.linearized_loss},
                        {"gap", study.linearization_gap}};
  json["leverage_ridge"] = study.leverage_ridge;
  json["diagonal_drift"] = study.diagonal_drift;
  json["notes"] = study.notes;
  return json;
}

std::string correlation_words(double correlation, double error) {
  if (!std::isfinite(correlation) || !(std::abs(correlation) > 2 * error)) {
    return "tells nothing that this run can resolve";
  }
  const double size = std::abs(correlation);
  const char* strength = size >= 0.6 ? "strong" : size >= 0.3 ? "clear" : size >= 0.1 ? "weak" : "faint";
  return fmt::format("large values were learned {} ({})", correlation < 0 ? "earlier" : "later", strength);
}

std::string study_text(const StudyRun& run) {
  const ntk::Learnability& study = run.study;
  std::string text = study.verdict.answer + "\n";
  for (const std::string& sentence : {study.verdict.correlation_sentence, study.verdict.groups_sentence,
                                      study.verdict.norm_sentence, study.verdict.best_sentence}) {
    if (!sentence.empty()) text += "  " + sentence + "\n";
  }
  text += "\nRank correlation with the epoch learned\n";
  std::vector<std::vector<std::string>> rows = {
      {"score", "rho", "±", "||x||^2 removed", "with ||x||^2", "in words"}};
  for (std::size_t i = 0; i < study.scores.size(); ++i) {
    const ntk::Correlation& c = study.correlations[i];
    rows.push_back({study.scores[i].name, correlation(c.with_epoch_learned),
                    fmt::format("{:.2f}", c.with_epoch_learned_error),
                    correlation(c.with_epoch_learned_given_norm), correlation(c.with_squared_norm),
                    correlation_words(c.with_epoch_learned, c.with_epoch_learned_error)});
  }
  text += table(rows, {false, true, true, true, true, false});
  if (!study.notes.empty()) text += "\nNotes\n";
  for (const std::string& note : study.notes) text += "  - " + note + "\n";
  return text;
}

}  // namespace gradgram::cli
