#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "datasets/formats.hpp"
#include "engine/error.hpp"
#include "tests/datasets/bytes.hpp"

namespace gradgram::datasets {
namespace {

using testing_files::expect_holds;
using testing_files::message;
using Labels = std::vector<std::int32_t>;
using Rows = std::vector<std::size_t>;

template <class T>
NpyArray stored(NpyType type, const std::vector<std::size_t>& shape, const std::vector<T>& values) {
  NpyArray array{type, shape, std::vector<std::byte>(values.size() * sizeof(T))};
  if (!values.empty()) std::memcpy(array.bytes.data(), values.data(), array.bytes.size());
  return array;
}

/// Row i holds the single number i.
Examples labelled(const Labels& labels, std::size_t classes) {
  Examples examples;
  std::vector<double> values(labels.size());
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);
  examples.values = stored(NpyType::F8, {labels.size(), 1}, values);
  examples.labels = labels;
  for (std::size_t label = 0; label < classes; ++label) {
    examples.class_names.push_back(std::string(1, static_cast<char>('a' + label)));
  }
  return examples;
}

TEST(Prepare, ClassesAreKeptRelabelledAndNamedInTheOrderAsked) {
  const Examples examples = labelled({0, 1, 2, 1, 0, 2}, 3);
  const Dataset data = prepare(examples, {.classes = {2, 0}}, "here");
  EXPECT_EQ(data.rows, (Rows{0, 2, 4, 5}));
  EXPECT_EQ(data.labels, (Labels{1, 0, 1, 0}));
  EXPECT_EQ(data.class_names, (std::vector<std::string>{"c", "a"}));
  EXPECT_EQ(data.inputs(3, 0), 5.0);
  EXPECT_EQ(data.source, "here");
  expect_holds(message<ArgumentError>([&] { prepare(examples, {.classes = {3}}, ""); }),
               {"class 3", "0 to 2"});
  expect_holds(message<ArgumentError>([&] { prepare(examples, {.classes = {-1}}, ""); }), {"class -1"});
  expect_holds(message<ArgumentError>([&] { prepare(examples, {.classes = {1, 1}}, ""); }), {"twice"});
  expect_holds(message<ArgumentError>([] { prepare(labelled({0}, 2), {.classes = {1}}, ""); }),
               {"no example"});
  Examples numbers = labelled({}, 0);
  numbers.values = stored<double>(NpyType::F8, {1, 1}, {1});
  expect_holds(message<ArgumentError>([&] { prepare(numbers, {.classes = {0}}, ""); }), {"has none"});
}

TEST(Prepare, LimitIsBalancedAndFirstComeFirst) {
  //                               0  1  2  3  4  5  6  7  8  9
  const Examples examples = labelled({0, 0, 0, 0, 0, 1, 1, 2, 1, 1}, 3);
  EXPECT_EQ(prepare(examples, {.limit = 3}, "").rows, (Rows{0, 5, 7}));
  EXPECT_EQ(prepare(examples, {.limit = 4}, "").rows, (Rows{0, 1, 5, 7}));
  // Class 2 has one example only: the others fill up.
  EXPECT_EQ(prepare(examples, {.limit = 6}, "").rows, (Rows{0, 1, 2, 5, 6, 7}));
  EXPECT_EQ(prepare(examples, {.limit = 9}, "").rows, (Rows{0, 1, 2, 3, 5, 6, 7, 8, 9}));
  EXPECT_EQ(prepare(examples, {.limit = 10}, "").size(), 10U);
  EXPECT_EQ(prepare(examples, {.limit = 1000}, "").size(), 10U);
  EXPECT_EQ(prepare(examples, {.limit = 1}, "").rows, (Rows{0}));
  EXPECT_EQ(prepare(examples, {.classes = {1, 0}, .limit = 3}, "").rows, (Rows{0, 5, 6}));
  Examples numbers = examples;
  numbers.labels.clear();
  numbers.class_names.clear();
  numbers.targets.assign(10, 0.5);
  numbers.targets[1] = 7;
  const Dataset data = prepare(numbers, {.limit = 2}, "");
  EXPECT_EQ(data.rows, (Rows{0, 1}));
  EXPECT_EQ(data.targets.shape(), (Shape{2, 1}));
  EXPECT_EQ(data.targets(1, 0), 7.0);
}

TEST(Prepare, LabelNoiseReplacesExactlyTheShareByOtherClasses) {
  const std::size_t n = 1001;
  Labels labels(n);
  for (std::size_t i = 0; i < n; ++i) labels[i] = static_cast<std::int32_t>(i % 4);
  const Examples examples = labelled(labels, 4);
  const Dataset data = prepare(examples, {.label_noise = 0.3, .seed = 5}, "");
  EXPECT_EQ(data.clean_labels, labels);
  std::size_t changed = 0;
  std::vector<int> shifts(4, 0);
  for (std::size_t i = 0; i < n; ++i) {
    ASSERT_GE(data.labels[i], 0);
    ASSERT_LT(data.labels[i], 4);
    if (data.labels[i] != labels[i]) ++changed;
    ++shifts[static_cast<std::size_t>(data.labels[i] - labels[i] + 4) % 4];
  }
  EXPECT_EQ(changed, 300U);
  // Each other class is equally likely: 100 +- 8 of 300.
  for (std::size_t shift = 1; shift < 4; ++shift) EXPECT_NEAR(shifts[shift], 100, 40);
  EXPECT_EQ(prepare(examples, {.label_noise = 0.3, .seed = 5}, "").labels, data.labels);
  EXPECT_NE(prepare(examples, {.label_noise = 0.3, .seed = 6}, "").labels, data.labels);
  EXPECT_TRUE(prepare(examples, {}, "").clean_labels.empty());
  const Dataset all = prepare(examples, {.label_noise = 1}, "");
  for (std::size_t i = 0; i < n; ++i) ASSERT_NE(all.labels[i], labels[i]);
  for (const double bad : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THROW(prepare(examples, {.label_noise = bad}, ""), ArgumentError);
  }
  EXPECT_THROW(prepare(examples, {.classes = {0}, .label_noise = 0.5}, ""), ArgumentError);
}

TEST(Prepare, ImagesTurnFromChannelsFirstToLast) {
  // Two images of 3 channels, 2 rows, 5 columns; the number encodes its place.
  std::vector<std::int64_t> values;
  for (int n = 0; n < 2; ++n) {
    for (int c = 0; c < 3; ++c) {
      for (int h = 0; h < 2; ++h) {
        for (int w = 0; w < 5; ++w) values.push_back(1000 * n + 100 * c + 10 * h + w);
      }
    }
  }
  const Dataset data =
      prepare(array_examples(stored(NpyType::I8, {2, 3, 2, 5}, values), std::nullopt, "x"), {}, "");
  ASSERT_EQ(data.inputs.shape(), (Shape{2, 2, 5, 3}));
  EXPECT_EQ(data.example_shape(), (Shape{2, 5, 3}));
  for (int n = 0; n < 2; ++n) {
    for (int c = 0; c < 3; ++c) {
      for (int h = 0; h < 2; ++h) {
        for (int w = 0; w < 5; ++w) EXPECT_EQ(data.inputs(n, h, w, c), 1000 * n + 100 * c + 10 * h + w);
      }
    }
  }
}

TEST(Prepare, BytesArePixelsInImagesAndNumbersInTables) {
  const std::vector<std::uint8_t> bytes = {0, 51, 255, 102};
  const auto read = [&](const std::vector<std::size_t>& shape) {
    return prepare(array_examples(stored(NpyType::U1, shape, bytes), std::nullopt, "x"), {}, "");
  };
  EXPECT_EQ(read({2, 1, 2}).inputs.shape(), (Shape{2, 1, 2, 1}));
  EXPECT_EQ(read({2, 1, 2}).inputs(0, 0, 1, 0), 0.2);
  EXPECT_EQ(read({2, 1, 2}).inputs(1, 0, 0, 0), 1.0);
  EXPECT_EQ(read({2, 2}).inputs(0, 1), 51.0);
}

TEST(Prepare, StandardizesPerFeatureAndPerChannel) {
  const std::vector<double> values = {1, 7, -3, 2, 7, 5, 3, 7, -1, 6, 7, 0};
  const NpyArray table = stored(NpyType::F8, {4, 3}, values);
  const Dataset features =
      prepare(array_examples(table, std::nullopt, "x"), {.standardize = Standardize::Feature}, "");
  for (const std::size_t column : {0UL, 2UL}) {
    double sum = 0;
    double square = 0;
    for (std::size_t row = 0; row < 4; ++row) {
      sum += features.inputs(row, column);
      square += features.inputs(row, column) * features.inputs(row, column);
    }
    EXPECT_NEAR(sum, 0, 1e-14);
    EXPECT_NEAR(square, 4, 1e-13);
  }
  for (std::size_t row = 0; row < 4; ++row) EXPECT_EQ(features.inputs(row, 1), 0.0);
  // (1, 2, 3, 6): mean 3, variance 14 / 4.
  EXPECT_NEAR(features.inputs(3, 0), 3 / std::sqrt(3.5), 1e-15);

  // One image batch [2, 2 channels, 1, 3]: all six numbers of a channel share a mean.
  const NpyArray images = stored(NpyType::F8, {2, 2, 1, 3}, values);
  const Dataset channels =
      prepare(array_examples(images, std::nullopt, "x"), {.standardize = Standardize::Channel}, "");
  const double mean = (1 + 7 - 3 + 3 + 7 - 1) / 6.0;
  double variance = 0;
  for (const double value : {1, 7, -3, 3, 7, -1}) variance += (value - mean) * (value - mean) / 6;
  EXPECT_NEAR(channels.inputs(1, 0, 1, 0), (7 - mean) / std::sqrt(variance), 1e-14);
  EXPECT_THROW(
      prepare(array_examples(stored<double>(NpyType::F8, {2, 1}, {1e308, -1e308}), std::nullopt, "x"),
              {.standardize = Standardize::Feature}, ""),
      NumericError);
}

TEST(Prepare, StandardizesOverTheKeptExamplesOnly) {
  const Dataset data =
      prepare(labelled({0, 1, 0, 1}, 2), {.classes = {1}, .standardize = Standardize::Feature}, "");
  EXPECT_EQ(data.inputs(0, 0), -1.0);
  EXPECT_EQ(data.inputs(1, 0), 1.0);
}

TEST(Prepare, UnitNormAtAnyScale) {
  const NpyArray table = stored<double>(NpyType::F8, {3, 2}, {3, 4, 3e300, -4e300, 3e-320, 0});
  const Dataset data = prepare(array_examples(table, std::nullopt, "x"), {.unit_norm = true}, "");
  EXPECT_NEAR(data.inputs(0, 0), 0.6, 1e-15);
  EXPECT_NEAR(data.inputs(1, 1), -0.8, 1e-15);
  EXPECT_EQ(data.inputs(2, 0), 1.0);
  const NpyArray zero = stored<double>(NpyType::F8, {2, 2}, {3, 4, 0, 0});
  expect_holds(message<ArgumentError>(
                   [&] { prepare(array_examples(zero, std::nullopt, "x"), {.unit_norm = true}, ""); }),
               {"row 1", "zero"});
}

TEST(Dataset, InputsInSinglePrecisionAreCheckedForRange) {
  Dataset data;
  EXPECT_EQ(data.inputs_as<float>().size(), 0U);
  data.inputs = Tensor<double>(Shape{1, 2}, std::vector<double>{1.0 / 3, 2});
  EXPECT_EQ(data.inputs_as<float>()(0, 0), static_cast<float>(1.0 / 3));
  EXPECT_EQ(data.inputs_as<double>()(0, 0), 1.0 / 3);
  data.source = "x.npy";
  data.inputs(0, 1) = 1e39;
  expect_holds(message<NumericError>([&] { (void)data.inputs_as<float>(); }),
               {"1e+39", "example 0 of x.npy", "f32"});
}

}  // namespace
}  // namespace gradgram::datasets
