#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include "datasets/formats.hpp"
#include "engine/error.hpp"
#include "engine/random.hpp"

namespace gradgram::datasets {
namespace {

/// The rows that class selection keeps, in source order; `labels` becomes the new label of each.
std::vector<std::size_t> select_classes(const Examples& examples, const std::vector<std::int32_t>& classes,
                                        std::vector<std::int32_t>& labels, std::vector<std::string>& names) {
  std::vector<std::size_t> rows;
  if (classes.empty()) {
    rows.resize(examples.size());
    std::iota(rows.begin(), rows.end(), std::size_t{0});
    labels = examples.labels;
    names = examples.class_names;
    return rows;
  }
  const std::size_t count = examples.class_names.size();
  if (count == 0) throw ArgumentError("open: classes were chosen, but the data set has none");
  constexpr std::int32_t kDropped = -1;
  std::vector<std::int32_t> relabelled(count, kDropped);
  for (const std::int32_t label : classes) {
    if (label < 0 || static_cast<std::size_t>(label) >= count) {
      throw ArgumentError(
          fmt::format("open: class {} is not one of the data set's 0 to {}", label, count - 1));
    }
    std::int32_t& target = relabelled[static_cast<std::size_t>(label)];
    if (target != kDropped) throw ArgumentError(fmt::format("open: class {} is chosen twice", label));
    target = static_cast<std::int32_t>(names.size());
    names.push_back(examples.class_names[static_cast<std::size_t>(label)]);
  }
  for (std::size_t row = 0; row < examples.size(); ++row) {
    const std::int32_t label = relabelled[static_cast<std::size_t>(examples.labels[row])];
    if (label == kDropped) continue;
    rows.push_back(row);
    labels.push_back(label);
  }
  if (rows.empty()) throw ArgumentError("open: the data set has no example of the chosen classes");
  return rows;
}

/// How many of each class to keep: as equal as their sizes allow, `limit` together; earlier classes get the
/// remainder.
std::vector<std::size_t> quotas(const std::vector<std::size_t>& available, std::size_t limit) {
  std::vector<std::size_t> quota(available.size(), 0);
  std::vector<std::size_t> open;
  for (std::size_t label = 0; label < available.size(); ++label) {
    if (available[label] != 0) open.push_back(label);
  }
  while (limit != 0 && !open.empty()) {
    const std::size_t share = limit / open.size();
    std::size_t remainder = limit % open.size();
    std::vector<std::size_t> still;
    for (const std::size_t label : open) {
      const std::size_t wanted = share + (remainder != 0 ? 1 : 0);
      if (remainder != 0) --remainder;
      const std::size_t taken = std::min(wanted, available[label] - quota[label]);
      quota[label] += taken;
      limit -= taken;
      if (quota[label] < available[label]) still.push_back(label);
    }
    open = std::move(still);
  }
  return quota;
}

void apply_limit(std::size_t limit, std::vector<std::size_t>& rows, std::vector<std::int32_t>& labels,
                 std::size_t classes) {
  if (limit == 0 || limit >= rows.size()) return;
  if (labels.empty()) {
    rows.resize(limit);
    return;
  }
  std::vector<std::size_t> left(classes, 0);
  for (const std::int32_t label : labels) ++left[static_cast<std::size_t>(label)];
  left = quotas(left, limit);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::size_t& mine = left[static_cast<std::size_t>(labels[i])];
    if (mine == 0) continue;
    --mine;
    rows[kept] = rows[i];
    labels[kept] = labels[i];
    ++kept;
  }
  rows.resize(kept);
  labels.resize(kept);
}

void add_label_noise(const OpenOptions& options, Dataset& data) {
  if (!(options.label_noise >= 0 && options.label_noise <= 1)) {
    throw ArgumentError(fmt::format("open: label_noise ({}) must be from 0 to 1", options.label_noise));
  }
  if (options.label_noise == 0) return;
  const std::size_t classes = data.class_names.size();
  if (classes < 2) {
    throw ArgumentError(fmt::format("open: label_noise ({}) needs at least 2 classes, but there are {}",
                                    options.label_noise, classes));
  }
  data.clean_labels = data.labels;
  const std::size_t n = data.labels.size();
  const auto count = static_cast<std::size_t>(std::llround(options.label_noise * static_cast<double>(n)));
  // A partial Fisher-Yates shuffle chooses exactly `count` examples.
  constexpr std::uint64_t kStream = 0x6C6162656C73;
  Random random(options.seed, kStream);
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (std::size_t i = 0; i < count; ++i) {
    std::swap(order[i], order[i + random.below(n - i)]);
    std::int32_t& label = data.labels[order[i]];
    const auto other = static_cast<std::int32_t>(random.below(classes - 1));
    label = other < label ? other : other + 1;
  }
}

template <class Stored>
void convert(const Examples& examples, const std::vector<std::size_t>& rows, Tensor<double>& inputs) {
  const auto& shape = examples.values.shape;
  const std::size_t per_row = examples.values.size() / shape[0];
  const std::size_t channels = examples.channels_first && shape.size() == 4 ? shape[1] : 1;
  const std::size_t positions = per_row / channels;
  const double unit = examples.pixels ? 255.0 : 1.0;
  double* out = inputs.data();
  for (const std::size_t row : rows) {
    const std::byte* source = examples.values.bytes.data() + row * per_row * sizeof(Stored);
    for (std::size_t channel = 0; channel < channels; ++channel) {
      for (std::size_t position = 0; position < positions; ++position) {
        Stored value;
        std::memcpy(&value, source, sizeof(Stored));
        source += sizeof(Stored);
        out[position * channels + channel] = static_cast<double>(value) / unit;
      }
    }
    out += per_row;
  }
}

Shape input_shape(const Examples& examples, std::size_t n) {
  const auto& shape = examples.values.shape;
  if (shape.size() == 2) return {n, shape[1]};
  if (shape.size() == 3) return {n, shape[1], shape[2], 1};
  return examples.channels_first ? Shape{n, shape[2], shape[3], shape[1]}
                                 : Shape{n, shape[1], shape[2], shape[3]};
}

void standardize(Standardize kind, Tensor<double>& inputs) {
  if (kind == Standardize::None) return;
  const Shape& shape = inputs.shape();
  const std::size_t columns = kind == Standardize::Channel ? shape[shape.rank() - 1] : shape.inner().size();
  const std::size_t count = inputs.size() / columns;
  double* values = inputs.data();
  std::vector<double> mean(columns, 0);
  std::vector<double> square(columns, 0);
  std::vector<double> least(values, values + columns);
  std::vector<double> most = least;
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t k = 0; k < columns; ++k) {
      const double value = values[i * columns + k];
      mean[k] += value;
      least[k] = std::min(least[k], value);
      most[k] = std::max(most[k], value);
    }
  }
  for (double& value : mean) value /= static_cast<double>(count);
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t k = 0; k < columns; ++k) {
      const double difference = values[i * columns + k] - mean[k];
      square[k] += difference * difference;
    }
  }
  for (std::size_t k = 0; k < columns; ++k) {
    double deviation = std::sqrt(square[k] / static_cast<double>(count));
    if (least[k] == most[k]) {
      // Exactly zero, whatever the mean was rounded to.
      mean[k] = least[k];
      deviation = 1;
    }
    if (!std::isfinite(deviation) || !(deviation > 0)) {
      throw NumericError(
          fmt::format("open: standardizing {} {} with values from {} to {} leaves the range of double",
                      kind == Standardize::Channel ? "channel" : "feature", k, least[k], most[k]));
    }
    square[k] = deviation;
  }
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t k = 0; k < columns; ++k) {
      double& value = values[i * columns + k];
      value = (value - mean[k]) / square[k];
    }
  }
}

void normalize(Dataset& data) {
  const std::size_t columns = data.inputs.shape().inner().size();
  for (std::size_t i = 0; i < data.size(); ++i) {
    const std::span<double> row = data.inputs.span().subspan(i * columns, columns);
    // Dividing by the largest number first keeps the squares in range.
    double largest = 0;
    for (const double value : row) largest = std::max(largest, std::abs(value));
    if (!(largest > 0)) {
      throw ArgumentError(
          fmt::format("open: unit_norm: example {} (row {} of the source) is zero", i, data.rows[i]));
    }
    double sum = 0;
    for (const double value : row) sum += (value / largest) * (value / largest);
    const double norm = std::sqrt(sum);
    for (double& value : row) value = value / largest / norm;
  }
}

}  // namespace

Dataset prepare(const Examples& examples, const OpenOptions& options, std::string source) {
  Dataset data;
  data.source = std::move(source);
  data.rows = select_classes(examples, options.classes, data.labels, data.class_names);
  apply_limit(options.limit, data.rows, data.labels, data.class_names.size());
  add_label_noise(options, data);
  if (!examples.targets.empty()) {
    const std::size_t columns = examples.targets.size() / examples.size();
    data.targets = Tensor<double>(Shape{data.rows.size(), columns});
    for (std::size_t i = 0; i < data.rows.size(); ++i) {
      std::copy_n(examples.targets.data() + data.rows[i] * columns, columns,
                  data.targets.data() + i * columns);
    }
  }
  data.inputs = Tensor<double>(input_shape(examples, data.rows.size()));
  switch (examples.values.type) {
    case NpyType::F4:
      convert<float>(examples, data.rows, data.inputs);
      break;
    case NpyType::F8:
      convert<double>(examples, data.rows, data.inputs);
      break;
    case NpyType::U1:
      convert<std::uint8_t>(examples, data.rows, data.inputs);
      break;
    case NpyType::I4:
      convert<std::int32_t>(examples, data.rows, data.inputs);
      break;
    case NpyType::I8:
      convert<std::int64_t>(examples, data.rows, data.inputs);
      break;
  }
  standardize(options.standardize, data.inputs);
  if (options.unit_norm) normalize(data);
  return data;
}

template <class T>
Tensor<T> Dataset::inputs_as() const {
  if (inputs.data() == nullptr) return {};
  Tensor<T> result(inputs.shape());
  const std::size_t size = example_shape().size();
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    result.data()[i] = static_cast<T>(inputs.data()[i]);
    // Finite doubles beyond float's range would silently become infinite.
    if (!std::isfinite(result.data()[i])) {
      throw NumericError(fmt::format(
          "inputs_as: example {} of {} holds {:g}, which is beyond the range of f32; f64 holds it", i / size,
          source, inputs.data()[i]));
    }
  }
  if constexpr (std::is_same_v<T, double>) return result;
  // And those of an example that are all too small would become zeros, or lose their digits.
  const auto larger = [](auto a, auto b) { return std::abs(a) < std::abs(b); };
  for (std::size_t begin = 0; begin < inputs.size(); begin += size) {
    const double* const own = inputs.data() + begin;
    const double most = std::abs(*std::max_element(own, own + size, larger));
    if (most == 0 || most >= static_cast<double>(std::numeric_limits<T>::min())) continue;
    throw NumericError(
        fmt::format("inputs_as: example {} of {} holds at most {:g}, which is too small to keep its digits "
                    "in f32; f64 holds "
                    "it",
                    begin / size, source, most));
  }
  return result;
}

template Tensor<float> Dataset::inputs_as<float>() const;
template Tensor<double> Dataset::inputs_as<double>() const;

}  // namespace gradgram::datasets
