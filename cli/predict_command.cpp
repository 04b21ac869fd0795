#include <fmt/format.h>
#include <fmt/ostream.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <set>
#include <string_view>
#include <type_traits>
#include <utility>

#include "cli/commands.hpp"
#include "cli/inputs.hpp"
#include "cli/kernel_input.hpp"
#include "cli/memory.hpp"
#include "cli/progress.hpp"
#include "cli/reduction.hpp"
#include "cli/result_files.hpp"
#include "cli/split.hpp"
#include "cli/text.hpp"
#include "cli/wording.hpp"
#include "engine/error.hpp"
#include "engine/npy.hpp"
#include "ntk/infinite/infinite.hpp"
#include "ntk/kernel.hpp"
#include "ntk/matrix_operator.hpp"
#include "ntk/planned_kernel.hpp"
#include "ntk/precision.hpp"
#include "ntk/predict.hpp"
#include "ntk/spectrum.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

/// Everything that a prediction is made of, from a model or from files.
template <class T>
struct Problem {
  TensorView<const T> kernel;              ///< [n, n]
  TensorView<const T> cross;               ///< [m, n]; empty without test points
  Tensor<double> nngp, nngp_cross, prior;  ///< of an ensemble's variance
  Tensor<double> initial, initial_test;    ///< of a finite network
  Tensor<double> y, y_test;                ///< [n, C]; y_test may be empty
  bool classes = false;                    ///< y holds classes, as -1/+1 or one column each
  bool posterior = false;                  ///< a Gaussian process: its variance is that of the posterior
  double entry_error = 0;
  std::size_t memory = 0;  ///< that solving may take beside all of this
};

std::size_t bytes_of(std::size_t a, std::size_t b, std::size_t each) {
  return checked_multiply(checked_multiply(a, b, "--train and --test"), each, "--train and --test");
}

/// Solving on paper: n examples, m test points, equations or eigenpairs. Returns what it may take.
std::size_t count_solving(MemoryAccount& account, std::size_t n, std::size_t m, std::size_t columns,
                          bool equations, bool variance, std::size_t workers) {
  const std::size_t square = bytes_of(n, n, sizeof(double));
  const std::size_t cross = bytes_of(m, n, sizeof(double));
  // Answers, targets and residuals, again and again.
  const std::size_t answers = bytes_of(n + m, columns + 1, 6 * sizeof(double));
  account.hold(answers);
  if (!equations) {
    account.hold(square);
    account.hold(cross);
    const std::size_t memory = account.phase("all eigenpairs", ntk::spectrum_bytes(n, {}));
    account.phase("predictions from eigenpairs", square + (variance ? 3 * cross : 0));
    return memory;
  }
  // Vectors of Lanczos, and the rows of the kernel that are multiplied at once.
  account.phase("the largest eigenvalue", bytes_of(n, 64 + workers * ntk::kProductRows, sizeof(double)));
  if (variance) return account.phase("a factor and the variances", square + 2 * cross);
  const std::size_t memory = account.phase("the equations", ntk::least_regression_bytes(n, columns, workers));
  account.phase("the predictions", bytes_of(n, workers * ntk::kProductRows, sizeof(double)));
  return memory;
}

struct Score {
  double accuracy = 0;
  double error = 0;  ///< mean squared, over examples and outputs
};

Score judge(const Tensor<double>& f, const Tensor<double>& y) {
  const std::size_t n = y.shape()[0];
  const std::size_t columns = y.shape()[1];
  Score score;
  for (std::size_t i = 0; i < n; ++i) {
    const double* const a = f.data() + i * columns;
    const double* const b = y.data() + i * columns;
    for (std::size_t c = 0; c < columns; ++c) score.error += (a[c] - b[c]) * (a[c] - b[c]);
    const bool right = columns == 1
                           ? (a[0] > 0) == (b[0] > 0)
                           : std::max_element(a, a + columns) - a == std::max_element(b, b + columns) - b;
    score.accuracy += right ? 1 : 0;
  }
  score.error /= static_cast<double>(n * columns);
  score.accuracy /= static_cast<double>(n);
  return score;
}

/// Two classes as -1 and +1 in one column, or one column for each.
Tensor<double> class_targets(const std::vector<std::int32_t>& labels, std::size_t columns) {
  Tensor<double> y(Shape{labels.size(), columns});
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (columns == 1) {
      y(i, 0) = labels[i] == 1 ? 1 : -1;
    } else {
      y(i, static_cast<std::size_t>(labels[i])) = 1;
    }
  }
  return y;
}

Tensor<double> targets_of(const datasets::Dataset& data, std::size_t outputs) {
  if (data.labels.empty()) {
    if (data.targets.size() == 0) throw ArgumentError("--data: has neither labels nor targets to learn");
    return data.targets.clone();
  }
  return class_targets(data.labels, outputs);
}

double parse_time(const std::string& text) {
  if (text == "inf") return ntk::kForever;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= 0)) {
    throw ArgumentError(fmt::format("--time: '{}' must be a number at least 0, or inf", text));
  }
  return value;
}

/// --time, --steps, --learning-rate, --momentum, --nesterov and --ridge; the rate is that of the mean squared
/// error, as the trainer's.
struct Asked {
  ntk::Learning learning;
  double rate = 0;  ///< as given
  std::string words;
};

Asked what_is_asked(const Options& options, std::size_t n, std::size_t columns) {
  Asked asked;
  const bool steps = !options.steps.empty();
  const double time = options.time.empty() ? ntk::kForever : parse_time(options.time);
  const bool timed = time != ntk::kForever;
  ntk::Learning& learning = asked.learning;
  learning.ridge = options.ridge;
  const double momentum = options.predict_momentum;
  if (!steps && !timed) {
    if (options.learning_rate) {
      throw ArgumentError(
          "--learning-rate: needs --steps or a finite --time; forever any stable rate ends the same");
    }
    asked.words = "forever (kernel regression)";
    return asked;
  }
  if (!options.learning_rate) {
    throw ArgumentError(fmt::format("{}: needs --learning-rate", steps ? "--steps" : "--time"));
  }
  asked.rate = *options.learning_rate;
  learning.rate = ntk::rate_of_half_sum(asked.rate, ntk::LossScale::Mean, n, columns);
  if (steps) {
    learning.descent = options.nesterov ? ntk::Descent::Nesterov
                       : momentum > 0   ? ntk::Descent::HeavyBall
                                        : ntk::Descent::Steps;
    learning.momentum = momentum;
    const std::vector<std::size_t> count = parse_numbers(options.steps, "--steps");
    if (count.size() != 1) {
      throw ArgumentError(fmt::format("--steps: '{}' must be one number", options.steps));
    }
    constexpr std::size_t kMostSteps = 1'000'000'000'000'000;
    if (count[0] > kMostSteps) {
      throw ArgumentError(fmt::format("--steps: {} must be at most {}", count[0], kMostSteps));
    }
    learning.time = static_cast<double>(count[0]);
    asked.words = fmt::format(
        "{} step{} of gradient descent, learning rate {:g}{}", grouped(count[0]), count[0] == 1 ? "" : "s",
        asked.rate,
        momentum == 0 ? "" : fmt::format(", {} {:g}", options.nesterov ? "Nesterov" : "momentum", momentum));
  } else {
    learning.time = time;
    asked.words = fmt::format("gradient flow to time {:g}, learning rate {:g}", learning.time, asked.rate);
  }
  return asked;
}

/// Whether one set of equations answers; otherwise all eigenpairs do.
bool by_one_system(const Asked& asked, bool variance, bool posterior) {
  return asked.learning.time == ntk::kForever && (!variance || posterior);
}

struct Answer {
  Tensor<double> train, test;
  Tensor<double> variance;  ///< [m], one for all outputs; empty unless asked for
  double largest_eigenvalue = 0;
  std::string solver;
  std::optional<double> residual;
};

template <class T>
Tensor<double> widened(TensorView<const T> values) {
  Tensor<double> result(values.shape());
  std::copy_n(values.data(), result.size(), result.data());
  return result;
}

/// All eigenpairs: any time, and the variance of ensembles.
template <class T>
Answer by_eigenpairs(const Problem<T>& problem, const Asked& asked, bool variance, const Workers& workers) {
  Answer answer;
  const Tensor<double> kernel = widened(problem.kernel);
  const Tensor<double> cross = widened(problem.cross);
  ntk::SpectrumOptions spectrum_options;
  spectrum_options.entry_error = problem.entry_error;
  spectrum_options.memory = problem.memory;
  const ntk::Spectrum pairs = ntk::spectrum(kernel, spectrum_options);
  answer.largest_eigenvalue = std::max(0.0, pairs.values.front());
  answer.solver =
      fmt::format("all {} eigenpairs, {} above their error bar", grouped(pairs.n), grouped(pairs.resolved()));
  answer.residual = pairs.values.front() == 0 ? 0 : pairs.residual / pairs.values.front();
  const double stable = ntk::largest_stable_rate(asked.learning.descent, answer.largest_eigenvalue,
                                                 asked.learning.momentum, asked.learning.ridge);
  try {
    answer.train = ntk::predict_train(pairs, asked.learning, problem.y, problem.initial);
    answer.test =
        ntk::predict(pairs, asked.learning, cross, problem.y, problem.initial, problem.initial_test);
    if (variance) {
      answer.variance = std::move(ntk::ensemble(pairs, asked.learning, cross, problem.nngp,
                                                problem.nngp_cross, problem.prior, problem.y, workers)
                                      .covariance);
    }
  } catch (const NumericError&) {
    if (!(asked.learning.rate > stable)) throw;
    // The library knows the loss 1/2 sum r^2 alone, in which nobody gave a rate.
    const std::size_t n = problem.y.shape()[0];
    const std::size_t columns = problem.y.shape()[1];
    throw NumericError(fmt::format(
        "--learning-rate: {:g} is above the largest stable rate, {:g}, and after {} the outputs are not "
        "finite (both of the mean squared error over examples and outputs; of half the sum of squares {:g} "
        "and {:g})",
        asked.rate, ntk::rate_under(ntk::LossScale::Mean, stable, n, columns), asked.words,
        asked.learning.rate, stable));
  }
  return answer;
}

/// What a matrix that is not positive definite asks for: a ridge above its negative eigenvalues, as far as
/// they were found, and above what the errors of its entries are likely to have moved them by; `given` is the
/// ridge that was not enough.
template <class T, class Solve>
auto or_ridge(const Problem<T>& problem, double given, const Solve& solve) {
  try {
    return solve();
  } catch (const ntk::NotPositiveDefinite& error) {
    const std::size_t n = problem.kernel.shape()[0];
    double largest = 0;
    double trace = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double entry = std::abs(static_cast<double>(problem.kernel.data()[i * n + i]));
      largest = std::max(largest, entry);
      trace += entry;
    }
    const double likely = 2 * problem.entry_error * std::sqrt(largest * trace);
    // The jitter is what the matrix with its ridge lacks.
    const double ridge = given + (likely > error.jitter() ? ntk::rounded_up(likely) : error.jitter());
    // The library's advice is a jitter, of which there is no option.
    const std::string_view text = error.what();
    throw NumericError(
        fmt::format("{}; --ridge {:g} would do{}", text.substr(0, text.find("; add a jitter")), ridge,
                    likely > error.jitter() ? ", which is above the errors of the kernel's entries" : ""));
  }
}

/// One set of equations: kernel regression, the posterior of a Gaussian process.
template <class T>
Answer by_equations(const Problem<T>& problem, const Asked& asked, bool variance, const Workers& workers,
                    const Progress& progress, const std::stop_token& stop) {
  Answer answer;
  // Once the equations are solved: they tell better what is wrong with a kernel.
  const auto largest = [&] {
    ntk::MatrixOperator<T> products(problem.kernel, workers, problem.entry_error);
    return std::max(0.0, ntk::largest_eigenvalue(products));
  };
  if (variance) {
    ntk::CholeskyOptions cholesky;
    cholesky.shift = asked.learning.ridge;
    cholesky.progress = progress;
    cholesky.stop = stop;
    const ntk::CholeskyFactor factor = or_ridge(problem, asked.learning.ridge, [&] {
      return ntk::CholeskyFactor(widened(problem.kernel), workers, cholesky);
    });
    ntk::GaussianOutputs law =
        ntk::gaussian_process(factor, widened(problem.cross), problem.prior, problem.y, workers);
    answer.test = std::move(law.mean);
    answer.variance = std::move(law.covariance);
    answer.residual = factor.residual(law.coefficients, problem.y, workers);
    answer.solver = "Cholesky";
    answer.largest_eigenvalue = largest();
    answer.train = problem.y.clone();
    for (std::size_t i = 0; i < answer.train.size(); ++i) {
      answer.train.data()[i] -= asked.learning.ridge * law.coefficients.data()[i];
    }
    return answer;
  }
  // y - f_0 is what has to be learned; what the ridge leaves of it is ridge * coefficients.
  Tensor<double> missing = problem.y.clone();
  for (std::size_t i = 0; i < problem.initial.size(); ++i) missing.data()[i] -= problem.initial.data()[i];
  ntk::RegressionOptions regression_options;
  regression_options.ridge = asked.learning.ridge;
  regression_options.memory = problem.memory;
  regression_options.progress = progress;
  regression_options.stop = stop;
  const ntk::Regression solved = or_ridge(problem, asked.learning.ridge, [&] {
    return ntk::kernel_regression<T>(problem.kernel, missing, regression_options, workers);
  });
  answer.residual = solved.residual;
  answer.largest_eigenvalue = largest();
  answer.solver = solved.factored
                      ? "Cholesky"
                      : fmt::format("conjugate gradients, {} iterations, Nystrom preconditioner of rank {}",
                                    solved.iterations, solved.rank);
  answer.test = ntk::apply_kernel<T>(problem.cross, solved.coefficients, workers);
  for (std::size_t i = 0; i < problem.initial_test.size(); ++i) {
    answer.test.data()[i] += problem.initial_test.data()[i];
  }
  answer.train = problem.y.clone();
  for (std::size_t i = 0; i < answer.train.size(); ++i) {
    answer.train.data()[i] -= asked.learning.ridge * solved.coefficients.data()[i];
  }
  return answer;
}

/// Solves, writes and tells. `rows` come first in the table, `json` first in the report.
template <class T>
void finish(const Context& context, const Problem<T>& problem, std::vector<std::vector<std::string>> rows,
            ordered_json json, const std::string& title, const Workers& workers, ProgressMeter& meter,
            std::chrono::steady_clock::time_point begin, std::size_t per_example) {
  const Options& options = context.options;
  const std::filesystem::path out = behind_links(options.out);
  const std::size_t memory = memory_budget(options);
  const std::size_t n = problem.y.shape()[0];
  const std::size_t columns = problem.y.shape()[1];
  const Asked asked = what_is_asked(options, n, columns);
  const bool forever = asked.learning.time == ntk::kForever;
  const bool equations = by_one_system(asked, options.variance, problem.posterior);
  const Answer answer = equations ? by_equations(problem, asked, options.variance, workers,
                                                 meter.phase("solving"), context.stop)
                                  : by_eigenpairs(problem, asked, options.variance, workers);
  meter.close();

  // The rates, in both usual measures.
  const double ridge = asked.learning.ridge;
  const double stable = ntk::largest_stable_rate(ntk::Descent::Steps, answer.largest_eigenvalue, 0, ridge);
  const double stable_mean = ntk::rate_under(ntk::LossScale::Mean, stable, n, columns);
  const double momentum = options.predict_momentum > 0 ? options.predict_momentum : 0.9;
  const auto with_momentum = [&](ntk::Descent descent) {
    return ntk::rate_under(ntk::LossScale::Mean,
                           ntk::largest_stable_rate(descent, answer.largest_eigenvalue, momentum, ridge), n,
                           columns);
  };
  const ntk::Learning& learning = asked.learning;
  const bool diverges = learning.rate > ntk::largest_stable_rate(learning.descent, answer.largest_eigenvalue,
                                                                 learning.momentum, ridge);
  double trace = 0;
  for (std::size_t i = 0; i < n; ++i) trace += static_cast<double>(problem.kernel.data()[i * n + i]);

  // Outputs of a full kernel stand in one column, example by example.
  const auto as_outputs = [&](const Tensor<double>& f) {
    return Tensor<double>(Shape{f.size() / (columns * per_example), columns * per_example}, f.span());
  };
  const Tensor<double> train = as_outputs(answer.train);
  const Tensor<double> test = as_outputs(answer.test);
  StagedFile file = stage_npy<double>(out, test.view());
  const std::filesystem::path variance_file = beside(out, ".variance.npy");
  std::vector<StagedFile> others;
  if (options.variance) others.push_back(stage_npy<double>(variance_file, answer.variance.view()));

  json["learned"] = asked.words;
  json["time"] = forever ? ordered_json("inf") : ordered_json(asked.learning.time);
  if (asked.rate != 0) {
    json["learning_rate"] = asked.rate;
    json["diverges"] = diverges;
  }
  if (asked.learning.momentum != 0) {
    json["momentum"] = asked.learning.momentum;
    json["nesterov"] = options.nesterov;
  }
  json["ridge"] = ridge;
  json["ridge_relative_to_mean_diagonal"] = trace > 0 ? ridge / (trace / static_cast<double>(n)) : 0;
  json["solver"] = answer.solver;
  if (answer.residual) json["relative_residual"] = *answer.residual;
  json["largest_eigenvalue"] = answer.largest_eigenvalue;
  const auto finite_or_null = [](double value) {
    return std::isfinite(value) ? ordered_json(value) : ordered_json(nullptr);
  };
  json["largest_stable_rate"] = {{"loss", "mean squared error over examples and outputs"},
                                 {"plain", finite_or_null(stable_mean)},
                                 {"momentum", momentum},
                                 {"heavy_ball", finite_or_null(with_momentum(ntk::Descent::HeavyBall))},
                                 {"nesterov", finite_or_null(with_momentum(ntk::Descent::Nesterov))},
                                 {"plain_of_half_sum", finite_or_null(stable)}};
  const auto to_json = [&](const Score& score) {
    ordered_json object;
    if (problem.classes) object["accuracy"] = score.accuracy;
    object["mean_squared_error"] = score.error;
    return object;
  };
  const auto text = [&](const Score& score) {
    const std::string error = "mean squared error " + significant(score.error, 4);
    return problem.classes ? fmt::format("accuracy {:.2f} %, {}", 100 * score.accuracy, error) : error;
  };
  const auto score_of = [&](const Tensor<double>& f, const Tensor<double>& y) {
    const Score score = judge(f, y);
    if (std::isfinite(score.error)) return score;
    const char* const cause = !forever                         ? "--learning-rate"
                              : options.predict_kernel.empty() ? "--data"
                                                               : "--targets";
    throw NumericError(
        fmt::format("{}: learned {}, the outputs are so far from the targets that the mean "
                    "squared error is {:g}",
                    cause, asked.words, score.error));
  };
  const Score train_score = score_of(train, as_outputs(problem.y));
  json["train_score"] = to_json(train_score);
  rows.push_back({"learned", asked.words + fmt::format(", ridge {:g}", ridge)});
  rows.push_back(
      {"solved by", answer.solver + (answer.residual ? fmt::format(", relative residual {}",
                                                                   significant(*answer.residual, 2))
                                                     : std::string())});
  rows.push_back(
      {"largest stable rate",
       fmt::format("{} of the mean squared error, {} with momentum {:g} (2 / lambda_max = {})",
                   significant(stable_mean, 4), significant(with_momentum(ntk::Descent::HeavyBall), 4),
                   momentum, significant(stable, 4))});
  if (diverges) rows.push_back({"", "the rate asked for is above it: the descent diverges"});
  rows.push_back({"on the training data", text(train_score)});
  if (problem.y_test.size() != 0) {
    const Score score = score_of(test, as_outputs(problem.y_test));
    json["test_score"] = to_json(score);
    rows.push_back({"on the test data", text(score)});
  }
  if (options.variance) {
    double sum = 0;
    for (const double value : answer.variance.span()) sum += value;
    const double mean = answer.variance.size() == 0 ? 0 : sum / static_cast<double>(answer.variance.size());
    json["variance"] = {{"file", variance_file.filename().string()},
                        {"of", problem.posterior && forever ? "posterior" : "ensemble"},
                        {"mean", mean}};
    rows.push_back(
        {"variance",
         fmt::format("{} on average, of {}", significant(mean, 4),
                     problem.posterior && forever ? "the posterior" : "an ensemble over initializations")});
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  json["shape"] = {test.shape()[0], test.shape()[1]};
  json["seconds"] = seconds;
  const std::filesystem::path sidecar = beside(out, ".json");
  publish(out, std::move(file), json, std::move(others));
  if (options.json) {
    context.out << json.dump(2) << '\n';
    return;
  }
  rows.push_back({"machine", machine_text(workers.count(), memory)});
  rows.push_back({"time", seconds_text(seconds)});
  fmt::print(context.out, "{}\n", title);
  context.out << table(rows, {false, false});
  fmt::print(context.out, "Wrote {} {}{} and {}\n", out.string(), test.shape().to_string(),
             options.variance ? " and " + variance_file.string() : "", sidecar.string());
}

ordered_json describe_part(const datasets::Dataset& data) {
  return {{"source", data.source}, {"examples", data.size()}, {"inputs_crc32", checksum(data.inputs.view())}};
}

template <class T>
void run_model(const Context& context) {
  const Options& options = context.options;
  const bool nngp = options.get == "nngp";
  const std::size_t memory = memory_budget(options);
  const Workers workers(options.threads);
  const auto begin = std::chrono::steady_clock::now();
  Split split = open_split(options);
  const std::size_t outputs = outputs_for(options, split.train);
  const std::size_t n = split.train.size();
  const std::size_t m = split.test.size();
  const Shape example_shape = split.train.example_shape();
  if (!split.train.labels.empty() && outputs != split.train.classes() &&
      !(outputs == 1 && split.train.classes() == 2)) {
    throw ArgumentError(fmt::format("--outputs: {} do not fit {} classes", outputs, split.train.classes()));
  }

  Problem<T> problem;
  problem.classes = !split.train.labels.empty();
  problem.y = targets_of(split.train, outputs);
  problem.y_test = targets_of(split.test, outputs);
  // Told before the work: what it would come to after it.
  const Asked asked = what_is_asked(options, n, problem.y.shape()[1]);
  ProgressMeter meter(context.err, options.quiet);
  ordered_json json = describe_run(options, workers.count(), memory);
  const ordered_json told = describe(options, split.train);
  const ordered_json told_test = describe_part(split.test);
  MemoryAccount account("--memory", memory);
  count_reading<T>(account, {&split.train, &split.test});
  const std::size_t square = bytes_of(n, n, sizeof(T));
  const std::size_t rectangle = bytes_of(m, n, sizeof(T));
  std::vector<std::vector<std::string>> rows;
  std::string title;
  Tensor<T> kernel;
  Tensor<T> cross;
  std::size_t per_example = 1;
  if (options.infinite) {
    const models::Model model = open_model(options, example_shape, outputs);
    const models::NetworkOptions variances = infinite_variances(options);
    const bool both = options.variance && !nngp;
    ntk::InfiniteOptions what;
    what.nngp = nngp || both;
    what.ntk = !nngp;
    what.stop = context.stop;
    constexpr std::size_t kFew = 64;  ///< test points of whose covariance the diagonal is taken
    ntk::InfiniteOptions alone = what;
    alone.nngp = true;
    alone.ntk = false;
    account.hold(input_bytes<T>(split.train));
    account.hold(input_bytes<T>(split.test));
    const std::size_t kernel_room = account.phase(
        "the kernel", ntk::infinite_kernel_bytes<T>(model, variances, n, 0, what, workers.count()));
    account.hold(square * (both ? 2 : 1));
    const std::size_t cross_room = account.phase(
        "the test kernel", ntk::infinite_kernel_bytes<T>(model, variances, m, n, what, workers.count()));
    account.hold(rectangle * (both ? 2 : 1));
    if (options.variance) {
      alone.memory = account.phase(
          "the variances",
          ntk::infinite_kernel_bytes<T>(model, variances, std::min(m, kFew), 0, alone, workers.count()));
      account.hold(bytes_of(n + m, n, sizeof(double)));
      if (both) {
        account.phase("the covariances in f64", 0);
        account.release(square + rectangle);
      }
    }
    account.release(input_bytes<T>(split.train) + input_bytes<T>(split.test));
    problem.memory =
        count_solving(account, n, m, problem.y.shape()[1], by_one_system(asked, options.variance, nngp),
                      options.variance, workers.count());
    account.check();
    const Tensor<T> x = take_inputs<T>(split.train);
    const Tensor<T> x_test = take_inputs<T>(split.test);
    what.memory = kernel_room;
    what.progress = meter.phase("kernel");
    ntk::InfiniteKernels<T> square_kernels =
        ntk::infinite_kernel<T>(model, variances, x.view(), what, workers);
    what.memory = cross_room;
    what.progress = meter.phase("test kernel");
    ntk::InfiniteKernels<T> beside =
        ntk::infinite_kernel<T>(model, variances, x_test.view(), x.view(), what, workers);
    if (options.variance) {
      // The diagonal of the test points' own covariance, from blocks of a few.
      problem.prior = Tensor<double>(Shape{m});
      for (std::size_t i = 0; i < m; i += kFew) {
        const std::size_t end = std::min(m, i + kFew);
        const Tensor<T> block = std::move(
            ntk::infinite_kernel<T>(model, variances, x_test.view().slice(i, end), alone, workers).nngp);
        for (std::size_t j = i; j < end; ++j) problem.prior(j) = static_cast<double>(block(j - i, j - i));
      }
    }
    if (both) {
      problem.nngp = widened<T>(square_kernels.nngp);
      problem.nngp_cross = widened<T>(beside.nngp);
    }
    kernel = std::move(nngp ? square_kernels.nngp : square_kernels.ntk);
    cross = std::move(nngp ? beside.nngp : beside.ntk);
    if (options.variance && nngp) {
      problem.nngp = widened<T>(kernel.view());
      problem.nngp_cross = widened<T>(cross.view());
    }
    problem.posterior = nngp;
    problem.entry_error = ntk::infinite_entry_error<T>();
    json["model"] = model.to_text();
    json["infinite"] = true;
    json["get"] = nngp ? "nngp" : "ntk";
    json["parameterization"] = "ntk";
    json["weight_variance"] = options.weight_variance;
    json["bias_variance"] = options.bias_variance;
    title = fmt::format("Predictions of infinitely wide {}{}", model.to_text(),
                        nngp ? ", as a Gaussian process (nngp)" : ", trained (ntk)");
    rows.push_back({"parameterization", fmt::format("ntk, weight variance {:g}, bias variance {:g}",
                                                    options.weight_variance, options.bias_variance)});
  } else {
    const models::Network<T> network = open_network<T>(options, example_shape, outputs);
    if (network.outputs() != problem.y.shape()[1]) {
      throw ArgumentError(fmt::format("--model: {} outputs do not fit targets of {} columns",
                                      network.outputs(), problem.y.shape()[1]));
    }
    ntk::KernelOptions kernel_options;
    std::string note;
    choose_reduction(options, network.outputs(), kernel_options, note);
    if (kernel_options.reduce != ntk::Reduce::Full && kernel_options.reduce != ntk::Reduce::TraceMean) {
      throw ArgumentError(
          fmt::format("--reduce: {} says nothing of how the outputs learn; choose full (exact) or trace-mean "
                      "(one kernel for "
                      "all outputs)",
                      options.reduce));
    }
    kernel_options.stop = context.stop;
    const bool full = kernel_options.reduce == ntk::Reduce::Full;
    per_example = full ? network.outputs() : 1;
    const std::size_t blocks = per_example * per_example;
    const ntk::ModuleProfile profile = ntk::profile_of_first<T>(network, split.train.inputs);
    const auto least = [&](std::size_t rows, std::size_t columns) {
      return ntk::least_kernel_bytes<T>(network, profile, rows, columns, kernel_options, workers.count());
    };
    // A kernel's budget pays for its own inputs and for the weights.
    account.hold(input_bytes<T>(split.test));
    const std::size_t kernel_room = account.phase("the kernel", least(n, 0));
    account.release(input_bytes<T>(split.test));
    account.hold(checked_multiply(square, blocks, "--train and --test"));
    const std::size_t cross_room = account.phase("the test kernel", least(m, n));
    account.hold(checked_multiply(rectangle, blocks, "--train and --test"));
    account.hold(input_bytes<T>(split.train) + input_bytes<T>(split.test) + profile.weight_bytes);
    for (const std::size_t count : {n, m}) {
      account.phase("the outputs", ntk::evaluation_bytes<T>(network, profile, count, workers.count()) +
                                       bytes_of(count, outputs, sizeof(double)));
    }
    account.hold(bytes_of(n + m, outputs, sizeof(double)));
    if (full) {
      for (const std::size_t rows : {n, m}) {
        account.phase(
            "the outputs' kernels as one",
            checked_multiply(bytes_of(rows, n, sizeof(double) + sizeof(T)), blocks, "--train and --test"));
      }
    }
    account.release(input_bytes<T>(split.train) + input_bytes<T>(split.test) + profile.weight_bytes);
    problem.memory =
        count_solving(account, n * per_example, m * per_example, full ? 1 : problem.y.shape()[1],
                      by_one_system(asked, options.variance, false), options.variance, workers.count());
    account.check();
    const Tensor<T> x = take_inputs<T>(split.train);
    const Tensor<T> x_test = take_inputs<T>(split.test);
    kernel_options.memory = kernel_room;
    kernel_options.progress = meter.phase("kernel");
    kernel = std::move(ntk::kernel<T>(network, x.view(), kernel_options, workers).values);
    kernel_options.memory = cross_room;
    kernel_options.progress = meter.phase("test kernel");
    cross = std::move(ntk::kernel<T>(network, x_test.view(), x.view(), kernel_options, workers).values);
    problem.initial = widened<T>(evaluate<T>(network, x.view(), workers));
    problem.initial_test = widened<T>(evaluate<T>(network, x_test.view(), workers));
    if (kernel.shape().rank() == 4) {
      const auto joined = [](const Tensor<T>& blocks) {
        const Tensor<double> one = ntk::join_outputs<T>(blocks.view());
        Tensor<T> result(one.shape());
        std::transform(one.span().begin(), one.span().end(), result.data(),
                       [](double value) { return static_cast<T>(value); });
        return result;
      };
      kernel = joined(kernel);
      cross = joined(cross);
      const auto column = [](Tensor<double>& values) {
        values = Tensor<double>(Shape{values.size(), 1}, values.span());
      };
      for (Tensor<double>* values : {&problem.y, &problem.y_test, &problem.initial, &problem.initial_test}) {
        column(*values);
      }
    }
    problem.entry_error = ntk::entry_error<T>(network);
    json.update(describe(options, network));
    json["infinite"] = false;
    json["reduction"] = ntk::reduce_name(kernel_options.reduce, kernel_options.output);
    title = fmt::format("Predictions of the linearized network {}", network.model().to_text());
    rows.push_back({"parameterization", parameterization_text(options)});
    rows.push_back({"reduction", json["reduction"].template get<std::string>() +
                                     (network.outputs() > 1 && per_example == 1
                                          ? " (one kernel for all outputs: an approximation)"
                                          : "")});
  }
  problem.kernel = kernel.view();
  problem.cross = cross.view();
  json["data"] = told;
  json["test"] = told_test;
  json["test"]["from"] = split.test_words;
  rows.insert(rows.begin(), {{"learns from", data_text(n, example_shape, split.train.source)},
                             {"judged by", fmt::format("{} examples, {}", grouped(m), split.test_words)},
                             {"prepared", preparation_text(options)}});
  rows.push_back({"precision", options.dtype + " kernels, f64 equations"});
  finish<T>(context, problem, std::move(rows), std::move(json), title, workers, meter, begin, per_example);
}

/// Targets from an .npy file: whole numbers stored as integers are classes, others as they are, [n] or [n,
/// C]. `names` are the classes of the training targets, filled when empty.
Tensor<double> read_targets(const Options& options, const std::string& path, std::size_t n,
                            const char* option, std::vector<std::int32_t>& names, bool& classes) {
  const NpyArray array = about(option, options, [&] { return read_npy(path); });
  if (array.shape.empty() || array.shape.size() > 2 || array.shape[0] != n) {
    throw ArgumentError(fmt::format("{}: {} has shape [{}], expected [{}] or [{}, C]", option, path,
                                    fmt::join(array.shape, ", "), n, n));
  }
  if (array.type == NpyType::F4 || array.type == NpyType::F8 || array.shape.size() == 2) {
    const Tensor<double> values = array.to_tensor<double>();
    for (const double value : values.span()) {
      if (!std::isfinite(value)) throw NumericError(fmt::format("{}: {} holds {}", option, path, value));
    }
    return Tensor<double>(Shape{n, n == 0 ? 1 : values.size() / n}, values.span());
  }
  classes = true;
  std::vector<std::int32_t> labels =
      about(fmt::format("{}: {}", option, path), options, [&] { return array.to_labels(); });
  if (names.empty()) {
    const std::set<std::int32_t> distinct(labels.begin(), labels.end());
    names.assign(distinct.begin(), distinct.end());
    if (names.size() < 2 || names.size() > 1000) {
      throw ArgumentError(
          fmt::format("{}: {} holds {} different labels, expected 2 to 1,000", option, path, names.size()));
    }
  }
  for (std::int32_t& label : labels) {
    const auto found = std::lower_bound(names.begin(), names.end(), label);
    if (found == names.end() || *found != label) {
      throw ArgumentError(fmt::format("{}: label {} is not one of --targets", option, label));
    }
    label = static_cast<std::int32_t>(found - names.begin());
  }
  return class_targets(labels, names.size() == 2 ? 1 : names.size());
}

template <class T>
void run_files(const Context& context, const KernelFacts& facts, const ntk::MappedNpy& kernel_file,
               const ntk::MappedNpy& cross_file) {
  const Options& options = context.options;
  const std::size_t memory = memory_budget(options);
  const Workers workers(options.threads);
  const auto begin = std::chrono::steady_clock::now();
  Problem<T> problem;
  const std::size_t n = about("--kernel", options, [&] {
    return kernel_side(options.predict_kernel, kernel_file.shape(), facts.packed);
  });
  const Shape& cross = cross_file.shape();
  const bool with_blocks = cross.rank() == 4 && cross[2] == 1 && cross[3] == 1;
  if ((cross.rank() != 2 && !with_blocks) || cross[0] == 0 || cross[1] != n) {
    throw ShapeError(
        fmt::format("--cross: {} has shape {}, expected [m, {}] with m > 0, as --kernel is of {} examples",
                    options.cross, cross.to_string(), n, n));
  }
  if constexpr (std::is_same_v<T, float>) {
    problem.cross = cross_file.f32().reshaped(Shape{cross[0], n});
  } else {
    problem.cross = cross_file.f64().reshaped(Shape{cross[0], n});
  }
  for (std::size_t i = 0; i < problem.cross.size(); ++i) {
    if (std::isfinite(problem.cross.data()[i])) continue;
    throw NumericError(fmt::format("--cross: {} holds {} in row {}, column {}", options.cross,
                                   problem.cross.data()[i], i / n, i % n));
  }
  std::vector<std::int32_t> names;
  problem.y = read_targets(options, options.targets, n, "--targets", names, problem.classes);
  if (!options.test_targets.empty()) {
    bool classes = false;
    problem.y_test = read_targets(options, options.test_targets, cross[0], "--test-targets", names, classes);
    if (classes != problem.classes || problem.y_test.shape()[1] != problem.y.shape()[1]) {
      throw ArgumentError("--test-targets: must be of the kind and columns of --targets");
    }
  }
  const Asked asked = what_is_asked(options, n, problem.y.shape()[1]);
  // Mapped files are the system's cache and no memory of the process; a packed kernel is unpacked.
  MemoryAccount account("--memory", memory);
  if (facts.packed) account.hold(bytes_of(n, n, sizeof(T)));
  problem.memory =
      count_solving(account, n, cross[0], problem.y.shape()[1], by_one_system(asked, options.variance, false),
                    options.variance, workers.count());
  account.check();
  const MappedKernel<T> kernel(options.predict_kernel, kernel_file, facts.packed);
  problem.kernel = kernel.view();
  problem.entry_error = facts.entry_error;
  ProgressMeter meter(context.err, options.quiet);
  ordered_json json = describe_run(options, workers.count(), memory);
  json["dtype"] = std::is_same_v<T, float> ? "f32" : "f64";
  json["kernel"] = options.predict_kernel;
  json["cross"] = options.cross;
  json["targets"] = options.targets;
  if (!facts.estimate.empty()) json[facts.estimate_name()] = facts.estimate;
  const std::vector<std::vector<std::string>> rows = {
      {"kernel", fmt::format("{} {}{}{}", options.predict_kernel, kernel.view().shape().to_string(),
                             facts.packed ? ", stored packed" : "",
                             facts.estimate.empty() ? "" : ", " + facts.estimate)},
      {"cross", fmt::format("{} {}", options.cross, cross.to_string())},
      {"targets", fmt::format("{}, {}", options.targets,
                              problem.classes ? fmt::format("{} classes", names.size())
                                              : fmt::format("{} column{} as they are", problem.y.shape()[1],
                                                            problem.y.shape()[1] == 1 ? "" : "s"))}};
  finish<T>(context, problem, rows, std::move(json), "Predictions of a kernel from a file", workers, meter,
            begin, 1);
}

}  // namespace

void run_predict(const Context& context) {
  const Options& options = context.options;
  whole_array_output(options);
  if (!options.predict_kernel.empty()) {
    const ntk::MappedNpy kernel =
        about("--kernel", options, [&] { return ntk::MappedNpy(options.predict_kernel); });
    const ntk::MappedNpy cross = about("--cross", options, [&] { return ntk::MappedNpy(options.cross); });
    const KernelFacts facts =
        about("--kernel", options, [&] { return read_kernel_facts(options.predict_kernel, kernel.type()); });
    if (kernel.type() != cross.type()) {
      throw ArgumentError(fmt::format("--cross: is stored as {} and --kernel as {}; both must be the same",
                                      to_string(cross.type()), to_string(kernel.type())));
    }
    if (kernel.type() == NpyType::F8) {
      run_files<double>(context, facts, kernel, cross);
    } else {
      run_files<float>(context, facts, kernel, cross);
    }
    return;
  }
  in_precision(options, [&]<class T>() { run_model<T>(context); });
}

}  // namespace gradgram::cli
