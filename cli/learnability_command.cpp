#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/commands.hpp"
#include "cli/inputs.hpp"
#include "cli/memory.hpp"
#include "cli/progress.hpp"
#include "cli/result_folder.hpp"
#include "cli/spectrum_table.hpp"
#include "cli/study.hpp"
#include "cli/text.hpp"
#include "engine/error.hpp"
#include "engine/file.hpp"
#include "engine/npy.hpp"
#include "ntk/learnability.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

TrainingOptions training_options(const Options& options) {
  TrainingOptions training;
  training.optimizer = options.optimizer == "sgd"        ? Optimizer::Sgd
                       : options.optimizer == "momentum" ? Optimizer::Momentum
                       : options.optimizer == "nesterov" ? Optimizer::Nesterov
                                                         : Optimizer::Adam;
  training.learning_rate = options.learning_rate.value_or(training.optimizer == Optimizer::Sgd    ? 0.03
                                                          : training.optimizer == Optimizer::Adam ? 0.001
                                                                                                  : 0.003);
  training.momentum = options.momentum;
  training.schedule =
      options.schedule == "cosine" ? LearningRateSchedule::Cosine : LearningRateSchedule::Constant;
  training.epochs = options.epochs;
  training.batch = options.batch;
  training.l1 = options.l1;
  training.l2 = options.l2;
  training.loss = options.loss == "mse" ? Loss::MeanSquaredError : Loss::CrossEntropy;
  training.seed = options.seed;
  return training;
}

/// A cross-entropy needs one output a class, two classes included.
std::size_t study_outputs(const Options& options, const datasets::Dataset& data) {
  if (options.outputs > 0) return options.outputs;
  return data.classes() == 2 && options.loss == "mse" ? 1 : std::max<std::size_t>(data.classes(), 1);
}

void write_text(const std::filesystem::path& path, const std::string& text) {
  write_file(path, [&](std::ostream& stream) { stream << text; });
}

template <class T>
void write_kernel(const std::filesystem::path& path, const Tensor<double>& kernel) {
  Tensor<T> values(kernel.shape());
  std::transform(kernel.span().begin(), kernel.span().end(), values.data(),
                 [](double value) { return static_cast<T>(value); });
  write_npy<T>(path, values.view());
}

template <class T>
void run(const Context& context) {
  const Options& options = context.options;
  const auto begin = Clock::now();
  if (options.epochs == 0) throw ArgumentError("--epochs: 0 must be at least 1");
  ntk::LearnabilityOptions study_options;
  study_options.training = training_options(options);
  if (!options.score_epochs.empty()) {
    study_options.score_epochs = parse_numbers(options.score_epochs, "--score-epochs");
    for (const std::size_t epoch : study_options.score_epochs) {
      if (epoch < 1 || epoch > options.epochs) {
        throw ArgumentError(
            fmt::format("--score-epochs: {} must lie between 1 and --epochs ({})", epoch, options.epochs));
      }
    }
  }
  const std::size_t memory = memory_budget(options);
  study_options.stop = context.stop;
  ProgressMeter meter(context.err, options.quiet);
  study_options.progress = [&](const std::string& phase, std::size_t done, std::size_t total) {
    meter.update(phase, done, total);
  };
  ResultFolder folder(options.out, options.force);

  const Workers workers(options.threads);
  const datasets::Dataset data = open_data(options);
  if (data.labels.empty()) {
    throw ArgumentError(
        fmt::format("--data: {} has no class labels, and learnability asks when each example is "
                    "classified rightly",
                    data.source));
  }
  datasets::Dataset unscaled;
  const bool rescaled = options.standardize != "none" || options.unit_norm;
  if (rescaled) unscaled = open_data_unscaled(options);
  models::Network<T> network = open_network<T>(options, data.example_shape(), study_outputs(options, data));
  MemoryAccount account("--memory", memory);
  account.hold(input_bytes<double>(unscaled));
  study_options.memory =
      account.phase("the study", ntk::least_learnability_bytes<T>(network, data, study_options, workers));
  account.check();
  network.save_weights(folder.path() / "weights.npz");
  ordered_json summary = describe_run(options, workers.count(), memory);
  summary.update(describe(options, network));
  summary["data"] = describe(options, data);

  const ntk::Learnability study = ntk::learnability<T>(network, data, study_options, workers);
  meter.close();
  network.save_weights(folder.path() / "weights-trained.npz");

  StudyRun run{options, data, rescaled ? unscaled : data, study, network.model().to_text()};
  run.parameters = network.parameters().size();
  run.outputs = network.outputs();
  run.learning_rate = study_options.training.learning_rate;
  run.threads = workers.count();

  // The kernel with what made it; the summary says the same and more.
  ordered_json kernel_json = summary;
  kernel_json["reduction"] = "trace-mean";
  kernel_json["shape"] = {study.n, study.n};
  kernel_json["relative_entry_error"] = study.entry_error;
  write_kernel<T>(folder.path() / "kernel.npy", study.kernel);
  write_json(folder.path() / "kernel.json", kernel_json);
  write_spectrum_csv(folder.path() / "spectrum.csv", study.spectrum, study.label_energy);
  write_text(folder.path() / "scores.csv", scores_csv(run));

  const StudyFigures figures = study_figures(run);
  const std::filesystem::path figures_folder = folder.path() / "figures";
  std::filesystem::create_directory(figures_folder);
  meter.update("figures", 0, 1);
  run.figures_note = draw_with_gnuplot(figures.all(), figures_folder);
  meter.update("figures", 1, 1);
  meter.close();

  run.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  summary["reduction"] = "trace-mean";
  summary["relative_entry_error"] = study.entry_error;
  summary.update(study_json(run));
  summary["seconds"] = run.seconds;
  summary["figures_note"] = run.figures_note;
  summary["files"] = {{"report", "report.html"},
                      {"scores", "scores.csv"},
                      {"kernel", "kernel.npy"},
                      {"kernel_description", "kernel.json"},
                      {"spectrum", "spectrum.csv"},
                      {"initial_weights", "weights.npz"},
                      {"trained_weights", "weights-trained.npz"},
                      {"figures", "figures"}};
  write_text(folder.path() / "report.html", study_report(run, figures));
  write_json(folder.path() / "summary.json", summary);
  if (context.stop.stop_requested()) throw Cancelled("stopped");
  folder.commit();

  const std::filesystem::path report = std::filesystem::path(options.out) / "report.html";
  if (options.json) {
    context.out << summary.dump(2) << '\n';
    return;
  }
  fmt::print(context.out, "{} of {}\n", run.model, data.source);
  context.out << table(
      {{"data", fmt::format("{} {} ({}), {}", grouped(study.n), run.noun(), extents(data.example_shape()),
                            preparation_text(options))},
       {"classes", fmt::format("{}", fmt::join(data.class_names, ", "))},
       {"parameterization", parameterization_text(options)},
       {"training", fmt::format("{}, learning rate {:g}, {} epochs of batches of {}, {}", options.optimizer,
                                run.learning_rate, study.epochs, options.batch, options.loss)},
       {"kernel", fmt::format("trace-mean, {}", options.dtype)},
       {"time", seconds_text(run.seconds)}},
      {false, false});
  context.out << '\n' << study_text(run);
  if (!run.figures_note.empty()) context.out << "\n" << run.figures_note << '\n';
  fmt::print(context.out, "\nReport: {}\n", report.string());
}

}  // namespace

void run_learnability(const Context& context) {
  in_precision(context.options, [&]<class T>() { run<T>(context); });
}

}  // namespace gradgram::cli
