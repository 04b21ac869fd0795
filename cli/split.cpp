#include "cli/split.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cli/inputs.hpp"
#include "engine/error.hpp"

namespace gradgram::cli {
namespace {

/// The first `limit` (0: all) examples of `data` whose rows of the source are not among `taken`.
datasets::Dataset without(const datasets::Dataset& data, const std::vector<std::size_t>& taken,
                          std::size_t limit) {
  const std::unordered_set<std::size_t> gone(taken.begin(), taken.end());
  std::vector<std::size_t> kept;
  for (std::size_t i = 0; i < data.size() && (limit == 0 || kept.size() < limit); ++i) {
    if (!gone.contains(data.rows[i])) kept.push_back(i);
  }
  datasets::Dataset result;
  result.class_names = data.class_names;
  result.source = data.source;
  const Shape example = data.example_shape();
  result.inputs = Tensor<double>(example.with_outer(kept.size()));
  const std::size_t columns = data.targets.size() == 0 ? 0 : data.targets.shape()[1];
  if (columns != 0) result.targets = Tensor<double>(Shape{kept.size(), columns});
  for (std::size_t i = 0; i < kept.size(); ++i) {
    std::copy_n(data.inputs.data() + kept[i] * example.size(), example.size(),
                result.inputs.data() + i * example.size());
    if (!data.labels.empty()) result.labels.push_back(data.labels[kept[i]]);
    if (columns != 0) {
      std::copy_n(data.targets.data() + kept[i] * columns, columns, result.targets.data() + i * columns);
    }
    result.rows.push_back(data.rows[kept[i]]);
  }
  return result;
}

/// Mean 0 and variance 1 of the columns of `train` (channels, or features); `test` shifted and scaled with
/// it.
void standardize(Tensor<double>& train, Tensor<double>& test, bool channels) {
  const Shape example = train.shape().inner();
  const std::size_t columns = channels ? train.shape()[train.shape().rank() - 1] : example.size();
  const std::size_t count = train.size() / columns;
  std::vector<double> mean(columns, 0);
  std::vector<double> deviation(columns, 0);
  for (std::size_t i = 0; i < train.size(); ++i) mean[i % columns] += train.data()[i];
  for (double& value : mean) value /= static_cast<double>(count);
  for (std::size_t i = 0; i < train.size(); ++i) {
    const double difference = train.data()[i] - mean[i % columns];
    deviation[i % columns] += difference * difference;
  }
  for (std::size_t k = 0; k < columns; ++k) {
    deviation[k] = std::sqrt(deviation[k] / static_cast<double>(count));
    // A constant column (to the rounding of its mean) has no scale.
    if (!(deviation[k] > 1e-13 * std::abs(mean[k]))) deviation[k] = 1;
    if (!std::isfinite(deviation[k])) {
      throw NumericError(fmt::format("--standardize: column {} leaves the range of double", k));
    }
  }
  for (Tensor<double>* tensor : {&train, &test}) {
    for (std::size_t i = 0; i < tensor->size(); ++i) {
      double& value = tensor->data()[i];
      value = (value - mean[i % columns]) / deviation[i % columns];
    }
  }
}

void scale_to_norm_one(datasets::Dataset& data) {
  const std::size_t columns = data.example_shape().size();
  for (std::size_t i = 0; i < data.size(); ++i) {
    double* const row = data.inputs.data() + i * columns;
    double squares = 0;
    for (std::size_t k = 0; k < columns; ++k) squares += row[k] * row[k];
    if (!(squares > 0) || !std::isfinite(squares)) {
      throw ArgumentError(
          fmt::format("--unit-norm: example {} of {} has norm {}", i, data.source, std::sqrt(squares)));
    }
    for (std::size_t k = 0; k < columns; ++k) row[k] /= std::sqrt(squares);
  }
}

}  // namespace

Split open_split(const Options& options) {
  Options raw = options;
  raw.standardize = "none";
  raw.unit_norm = false;
  Split split;
  split.train = open_data(raw);
  raw.label_noise = 0;
  if (!options.versus.empty()) {
    raw.data = options.versus;
    raw.limit = options.test_examples;
    split.test = open_data(raw, "--versus");
    split.test_words = "--versus";
  } else {
    raw.test = true;
    raw.limit = options.test_examples;
    std::string why;
    try {
      split.test = open_data(raw);
      split.test_words = "its test part";
    } catch (const ArgumentError& error) {
      why = error.what();
    } catch (const IoError& error) {
      why = error.what();
    }
    if (!why.empty()) {
      raw.test = false;
      raw.limit = 0;
      split.test = without(open_data(raw), split.train.rows, options.test_examples);
      split.test_words = "held out of the same set, which has no test part to be read";
      if (split.test.size() == 0) {
        throw ArgumentError(
            fmt::format("--train: {} leaves no examples to test on, and there is no test part ({}); give "
                        "fewer, or --versus",
                        options.limit == 0 ? "using all examples" : std::to_string(options.limit), why));
      }
    }
  }
  if (!(split.test.example_shape() == split.train.example_shape())) {
    throw ShapeError(fmt::format("--versus: examples of {} and of --data {} must have the same shape",
                                 split.test.example_shape().to_string(),
                                 split.train.example_shape().to_string()));
  }
  if (split.test.classes() != split.train.classes()) {
    throw ArgumentError(fmt::format("--versus: {} classes and those of --data ({}) must be the same",
                                    split.test.classes(), split.train.classes()));
  }
  if (options.standardize != "none") {
    standardize(split.train.inputs, split.test.inputs, options.standardize == "channel");
  }
  if (options.unit_norm) {
    scale_to_norm_one(split.train);
    scale_to_norm_one(split.test);
  }
  return split;
}

}  // namespace gradgram::cli
