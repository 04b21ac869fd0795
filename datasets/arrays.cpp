#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "datasets/formats.hpp"
#include "engine/error.hpp"

namespace gradgram::datasets {
namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
  throw FormatError(fmt::format("array: {}: {}", name, why));
}

void check_finite(const NpyArray& array, const char* what, const std::string& name) {
  if (array.type != NpyType::F4 && array.type != NpyType::F8) return;
  for (std::size_t i = 0; i < array.size(); ++i) {
    if (!std::isfinite(array.at(i))) {
      const std::size_t per_row = array.size() / array.shape[0];
      refuse(name,
             fmt::format("{} holds {} at element {} of row {} (byte {} of the numbers)", what, array.at(i),
                         i % per_row, i / per_row, i * (array.bytes.size() / array.size())));
    }
  }
}

/// Whole numbers as classes: 0, 1, ... as they are when small, otherwise the different values in rising
/// order.
void set_classes(Examples& examples, const NpyArray& y, const std::string& name) {
  std::vector<std::int32_t> values;
  try {
    values = y.to_labels();
  } catch (const FormatError& error) {
    refuse(name, fmt::format("y: {}", error.what()));
  }
  constexpr std::int32_t kMostClasses = 1000;
  constexpr std::size_t kMostDistinct = 100;
  const auto [least, most] = std::ranges::minmax(values);
  if (least >= 0 && most < kMostClasses) {
    for (std::int32_t value = 0; value <= most; ++value)
      examples.class_names.push_back(std::to_string(value));
    examples.labels = std::move(values);
    return;
  }
  const std::set<std::int32_t> distinct(values.begin(), values.end());
  if (distinct.size() > kMostDistinct) {
    refuse(name,
           fmt::format(
               "y holds {} different whole numbers from {} to {}, too many for classes (at most {}); real "
               "targets must be f4 or f8",
               distinct.size(), least, most, kMostDistinct));
  }
  for (const std::int32_t value : distinct) examples.class_names.push_back(std::to_string(value));
  for (const std::int32_t value : values) {
    examples.labels.push_back(
        static_cast<std::int32_t>(std::distance(distinct.begin(), distinct.find(value))));
  }
}

}  // namespace

Examples array_examples(NpyArray x, const std::optional<NpyArray>& y, const std::string& name) {
  const std::size_t rank = x.shape.size();
  if (rank < 2 || rank > 4) {
    refuse(name, fmt::format(
                     "inputs must be [n, features], [n, height, width] or [n, channels, height, width], but "
                     "have shape ({})",
                     fmt::join(x.shape, ", ")));
  }
  if (x.size() == 0)
    refuse(name, fmt::format("inputs of shape ({}) hold no numbers", fmt::join(x.shape, ", ")));
  check_finite(x, "the input", name);
  Examples examples;
  examples.channels_first = rank == 4;
  examples.pixels = rank > 2 && x.type == NpyType::U1;
  if (y) {
    const bool real = y->type == NpyType::F4 || y->type == NpyType::F8;
    const bool column =
        y->shape.size() == 1 || (y->shape.size() == 2 && (real ? y->shape[1] >= 1 : y->shape[1] == 1));
    if (!column || y->shape[0] != x.shape[0]) {
      refuse(name,
             fmt::format("y must be ({0},) or ({0}, {3}) for x of shape ({1}), but has shape ({2})",
                         x.shape[0], fmt::join(x.shape, ", "), fmt::join(y->shape, ", "), real ? "C" : "1"));
    }
    if (real) {
      check_finite(*y, "the target", name);
      examples.targets.resize(y->size());
      for (std::size_t i = 0; i < y->size(); ++i) examples.targets[i] = y->at(i);
    } else {
      set_classes(examples, *y, name);
    }
  }
  examples.values = std::move(x);
  return examples;
}

Examples npz_examples(std::map<std::string, NpyArray> arrays, const std::string& name) {
  std::vector<std::string> names;
  for (const auto& entry : arrays) names.push_back(entry.first);
  const auto x = arrays.find("x");
  if (x == arrays.end()) {
    refuse(name, fmt::format("expected an array x (and optionally y), found {}",
                             names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "))));
  }
  const auto y = arrays.find("y");
  return array_examples(std::move(x->second),
                        y == arrays.end() ? std::nullopt : std::optional<NpyArray>(std::move(y->second)),
                        name);
}

}  // namespace gradgram::datasets
