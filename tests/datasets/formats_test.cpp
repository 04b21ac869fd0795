#include "datasets/formats.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "engine/error.hpp"
#include "tests/datasets/bytes.hpp"

namespace gradgram::datasets {
namespace {

using testing_files::big_endian;
using testing_files::bytes_of;
using testing_files::expect_holds;
using testing_files::gzip;
using testing_files::idx;
using testing_files::message;
using Labels = std::vector<std::int32_t>;
using Names = std::vector<std::string>;

std::string idx_refusal(const std::string& content) {
  const std::string text = message<FormatError>([&] { parse_idx(bytes_of(content), "some-idx"); });
  expect_holds(text, {"some-idx: byte "});
  return text;
}

TEST(Idx, ReadsEveryTypePlainAndPacked) {
  const auto check = [](int type, const std::string& elements, NpyType out,
                        const std::vector<double>& expected) {
    const std::string file = idx(type, {1, static_cast<std::uint32_t>(expected.size())}, elements);
    for (const std::string& content : {file, gzip(file)}) {
      const NpyArray array = parse_idx(bytes_of(content), "x");
      EXPECT_EQ(array.type, out);
      ASSERT_EQ(array.shape, (std::vector<std::size_t>{1, expected.size()}));
      for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(array.at(i), expected[i]) << type;
    }
  };
  check(0x08, "\x01\xFF", NpyType::U1, {1, 255});
  check(0x09, "\x01\xFF", NpyType::I4, {1, -1});
  check(0x0B, "\x01\x02\xFF\xFE", NpyType::I4, {258, -2});
  check(0x0C, big_endian(65538) + big_endian(0xFFFFFFFD), NpyType::I4, {65538, -3});
  check(0x0D, big_endian(0x3FA00000) + big_endian(0xC0000000), NpyType::F4, {1.25, -2});
  check(0x0E, big_endian(0x3FF40000) + big_endian(0), NpyType::F8, {1.25});
}

TEST(Idx, RefusesWhatIsBroken) {
  const std::string good = idx(0x08, {2, 3}, "abcdef");
  for (std::size_t length = 0; length < good.size(); ++length) idx_refusal(good.substr(0, length));
  const std::string packed = gzip(good);
  for (std::size_t length = 2; length < packed.size(); ++length) {
    const std::string text =
        message<FormatError>([&] { parse_idx(bytes_of(packed.substr(0, length)), "some.gz"); });
    expect_holds(text, {"some.gz", "byte "});
  }
  expect_holds(idx_refusal(""), {"byte 0"});
  expect_holds(idx_refusal("PK\x03\x04 and so on"), {"byte 0", "magic number", "50 4b"});
  expect_holds(idx_refusal(idx(0x07, {1}, "a")), {"byte 2", "0x07"});
  expect_holds(idx_refusal(idx(0x08, {}, "a")), {"byte 3", "rank 0"});
  expect_holds(idx_refusal(idx(0x08, {1, 1, 1, 1, 1, 1}, "a")), {"byte 3", "rank 6"});
  expect_holds(idx_refusal(good + "g"), {"byte 12", "need 6 bytes", "7 follow"});
  const std::uint32_t huge = 0xFFFFFFFF;
  expect_holds(idx_refusal(idx(0x08, {huge, huge, huge}, "a")), {"byte 8", "overflow"});
  expect_holds(idx_refusal(idx(0x0E, {huge, 100}, "a")), {"need 3435973836", "1 follow"});
}

TEST(Idx, PackedFilesAreNotBelieved) {
  // A bomb: a megabyte of zeros behind a header that declares 6 bytes; the rest is never unpacked.
  const std::string bomb = gzip(idx(0x08, {2, 3}, std::string(1 << 20, '\0')));
  expect_holds(message<FormatError>([&] { parse_idx(bytes_of(bomb), "bomb.gz"); }),
               {"bomb.gz: byte 12", "need 6 bytes", "more than 6"});
  // A header that declares four gigabytes over six bytes: refused when the data ends, with little memory.
  const std::string empty = gzip(idx(0x08, {0xFFFFFFFF}, "abcdef"));
  expect_holds(message<FormatError>([&] { parse_idx(bytes_of(empty), "empty.gz"); }),
               {"4294967295", "6 follow"});
  std::string damaged = gzip(idx(0x08, {2, 3}, "abcdef"));
  damaged[damaged.size() - 6] ^= 1;  // the checksum
  expect_holds(message<FormatError>([&] { parse_idx(bytes_of(damaged), "damaged.gz"); }),
               {"damaged.gz", "data check"});
  expect_holds(
      message<FormatError>([&] { parse_idx(bytes_of(gzip(idx(0x08, {1}, "a")) + "tail"), "tail.gz"); }),
      {"tail.gz", "4 bytes follow"});
}

TEST(Idx, LabelsMustFitTheImages) {
  const auto images = [] { return parse_idx(bytes_of(idx(0x08, {2, 1, 1}, "ab")), "images"); };
  const auto labels = [](const std::string& content) { return parse_idx(bytes_of(content), "labels"); };
  const auto pair = [&](const std::string& content, const Names& names) {
    return idx_examples(images(), labels(content), names, "images", "labels");
  };
  const Examples good = pair(idx(0x08, {2}, {0, 2}), {});
  EXPECT_EQ(good.labels, (Labels{0, 2}));
  EXPECT_EQ(good.class_names, (Names{"0", "1", "2"}));
  expect_holds(message<FormatError>([&] {
                 pair(idx(0x08, {3}, {0, 2, 1}), {});
               }),
               {"labels", "3 labels", "2 images"});
  expect_holds(message<FormatError>([&] { pair(idx(0x08, {2, 1}, {0, 2}), {}); }), {"labels", "rank 1"});
  expect_holds(message<FormatError>([&] {
                 pair(idx(0x08, {2}, {0, 2}), {"a", "b"});
               }),
               {"labels: byte 9", "label 2 of example 1"});
  expect_holds(
      message<FormatError>([&] { pair(idx(0x0D, {2}, big_endian(0x7FC00000) + big_endian(0)), {}); }),
      {"labels: byte 8"});
}

TEST(Cifar10, ReadsRecordsAndRefusesOthers) {
  std::string two(2 * 3073, '\x07');
  two[3073] = 9;
  const Examples examples = parse_cifar10(bytes_of(two), "batch");
  EXPECT_EQ(examples.labels, (Labels{7, 9}));
  EXPECT_EQ(examples.values.shape, (std::vector<std::size_t>{2, 3, 32, 32}));
  two[3073] = 10;
  expect_holds(message<FormatError>([&] { parse_cifar10(bytes_of(two), "batch"); }),
               {"batch: byte 3073", "label 10 of record 1"});
  expect_holds(message<FormatError>([&] { parse_cifar10(bytes_of(two + "x"), "batch"); }),
               {"batch: byte 6146", "6147"});
  expect_holds(message<FormatError>([] { parse_cifar10({}, "batch"); }), {"batch: byte 0"});
}

Examples csv(const std::string& content, const std::string& target = {}, TargetKind kind = TargetKind::Auto) {
  return parse_csv(bytes_of(content), "t.csv", target, kind);
}
std::string csv_refusal(const std::string& content, const std::string& target = {},
                        TargetKind kind = TargetKind::Auto) {
  const std::string text = message<FormatError>([&] { csv(content, target, kind); });
  expect_holds(text, {"t.csv"});
  return text;
}

TEST(Csv, ReadsNumbersQuotesAndSeparators) {
  for (const char* content : {
           "a,b,y\n1,-2.5,0.5\n+3e1,4,1.5\n",
           "\"a\",\"b\",\"y\"\n1,-2.5,0.5\n30,\"4\",1.5",
           "\xEF\xBB\xBF"
           "a;b;y\r\n1; -2.5 ;0.5\r\n\r\n30;4;1.5\r\n\r\n",
           "a\tb\ty\n1\t-2.5\t0.5\n30\t4\t1.5\n\n",
       }) {
    const Examples examples = csv(content);
    ASSERT_EQ(examples.values.shape, (std::vector<std::size_t>{2, 2})) << content;
    EXPECT_EQ(examples.values.at(0), 1);
    EXPECT_EQ(examples.values.at(1), -2.5);
    EXPECT_EQ(examples.values.at(2), 30);
    EXPECT_EQ(examples.values.at(3), 4);
    EXPECT_EQ(examples.targets, (std::vector<double>{0.5, 1.5})) << content;
    EXPECT_TRUE(examples.labels.empty());
  }
}

TEST(Csv, TargetColumnIsFoundByName) {
  const Examples examples =
      csv("a,\"the \"\"b\"\", quoted\",c\n1,2,3.5\n4,5,6.5\n", "the \"b\", quoted", TargetKind::Numbers);
  EXPECT_EQ(examples.targets, (std::vector<double>{2, 5}));
  EXPECT_EQ(examples.values.at(1), 3.5);
  expect_holds(message<ArgumentError>([] { csv("a,b\n1,2\n", "price"); }), {"t.csv", "'price'", "a, b"});
}

TEST(Csv, TextsAndFewWholeNumbersAreClasses) {
  const Examples texts = csv("x,kind\n1,dog\n2,\"a, cat\"\n3,dog\n");
  EXPECT_EQ(texts.class_names, (Names{"a, cat", "dog"}));
  EXPECT_EQ(texts.labels, (Labels{1, 0, 1}));
  const Examples numbers = csv("x,kind\n1,10\n2,-1\n3,9\n");
  EXPECT_EQ(numbers.class_names, (Names{"-1", "9", "10"}));
  EXPECT_EQ(numbers.labels, (Labels{2, 0, 1}));
  EXPECT_EQ(csv("x,kind\n1,10\n2,-1\n", {}, TargetKind::Numbers).targets, (std::vector<double>{10, -1}));
  EXPECT_EQ(csv("x,kind\n1,1.5\n2,0.5\n", {}, TargetKind::Classes).class_names, (Names{"0.5", "1.5"}));
  std::string many = "x,y\n";
  for (int i = 0; i < 101; ++i) many += "1," + std::to_string(i) + "\n";
  EXPECT_EQ(csv(many).targets.size(), 101U);
  expect_holds(csv_refusal(many, {}, TargetKind::Classes), {"101 different"});
  expect_holds(csv_refusal(many + "1,3.l\n"), {"line 103", "'3.l'"});
}

TEST(Csv, RefusalsNameLineAndColumn) {
  expect_holds(csv_refusal(""), {"line 1", "empty"});
  expect_holds(csv_refusal("\n\n"), {"line 1", "empty"});
  expect_holds(csv_refusal("a,b\n"), {"no rows"});
  expect_holds(csv_refusal("a\n1\n"), {"line 1", "one column"});
  expect_holds(csv_refusal("1,2\n3,4\n"), {"line 1", "header"});
  expect_holds(csv_refusal("a,a\n1,2\n"), {"line 1", "two columns are named 'a'"});
  expect_holds(csv_refusal("a,,b\n1,2,3\n"), {"line 1", "column 2 has no name"});
  expect_holds(csv_refusal("a,b,c\n1,2,3\n\n4,5\n"), {"line 4", "2 fields", "header has 3"});
  expect_holds(csv_refusal("a,b\n1,2\n3,4,\n"), {"line 3", "3 fields"});
  expect_holds(csv_refusal("a,b\n1,2\n3,4,"), {"line 3", "3 fields"});
  expect_holds(csv_refusal("a,b,c\n1,x,3\n"), {"line 2", "column 2 ('b')", "'x'"});
  expect_holds(csv_refusal("a,b,c\n\"1\n\",2,3\n"), {"line 2", "column 1 ('a')"});
  expect_holds(csv_refusal("a,\"b\n\",c\n1,2,3\n4,5,6\n7,x,8\n"), {"line 5", "column 2"});
  expect_holds(csv_refusal("a,b,c\n1,,3\n"), {"line 2", "column 2 ('b') is empty"});
  for (const char* bad : {"nan", "inf", "-inf", "NaN", "1e999", "0x10", "1 2", "1_0"}) {
    expect_holds(csv_refusal("a,b\n1,2.5\n" + std::string(bad) + ",3\n"), {"line 3", "column 1 ('a')", bad});
  }
  expect_holds(csv_refusal("a,b\n1,2.5\n2,nan\n"), {"line 3", "'b'", "nan"});
  expect_holds(csv_refusal(std::string(std::size_t{1} << 21, ',')), {"line 1", "more than 1048576 columns"});
  expect_holds(csv_refusal("a,b\n1,\"2\n"), {"line 2", "column 2", "does not end"});
  expect_holds(csv_refusal("a,b\n1,\"2\"x\n"), {"line 2", "column 2", "closing quote"});
  // Bytes of the file that a terminal might obey are not repeated.
  const std::string text = csv_refusal("a,b\n\x1B[31m,2\n");
  EXPECT_EQ(text.find('\x1B'), std::string::npos);
}

NpyArray numbers(const std::vector<std::size_t>& shape, const std::vector<double>& values) {
  NpyArray array{NpyType::F8, shape, std::vector<std::byte>(values.size() * 8)};
  if (!values.empty()) std::memcpy(array.bytes.data(), values.data(), array.bytes.size());
  return array;
}
NpyArray integers(const std::vector<std::size_t>& shape, const std::vector<std::int32_t>& values) {
  NpyArray array{NpyType::I4, shape, std::vector<std::byte>(values.size() * 4)};
  std::memcpy(array.bytes.data(), values.data(), array.bytes.size());
  return array;
}

TEST(Arrays, ShapesTargetsAndClasses) {
  const std::vector<double> four = {1, 2, 3, 4};
  const auto refused = [&](NpyArray x, const std::optional<NpyArray>& y = std::nullopt) {
    const std::string text = message<FormatError>([&] { array_examples(std::move(x), y, "a.npz"); });
    expect_holds(text, {"a.npz"});
    return text;
  };
  expect_holds(refused(numbers({4}, four)), {"(4)"});
  expect_holds(refused(numbers({1, 1, 1, 1, 4}, four)), {"(1, 1, 1, 1, 4)"});
  expect_holds(refused(numbers({0, 4}, {})), {"(0, 4)", "no numbers"});
  expect_holds(refused(numbers({2, 2}, {1, 2, NAN, 4})), {"nan", "element 0 of row 1", "byte 16"});
  expect_holds(refused(numbers({2, 2}, {1, INFINITY, 3, 4})), {"inf", "element 1 of row 0", "byte 8"});
  expect_holds(refused(numbers({2, 2}, four), numbers({3}, {1, 2, 3})), {"(2,) or (2, C)", "(3)"});
  expect_holds(refused(numbers({2, 2}, four), integers({2, 2}, {0, 1, 1, 0})), {"(2,) or (2, 1)", "(2, 2)"});
  EXPECT_EQ(array_examples(numbers({2, 2}, four), numbers({2, 3}, {1, 2, 3, 4, 5, 6}), "a").targets,
            (std::vector<double>{1, 2, 3, 4, 5, 6}));
  expect_holds(refused(numbers({2, 2}, four), numbers({2}, {1, NAN})), {"target", "nan"});

  EXPECT_EQ(array_examples(numbers({2, 2}, four), numbers({2, 1}, {5, 6}), "a").targets,
            (std::vector<double>{5, 6}));
  const Examples small = array_examples(numbers({2, 2}, four), integers({2}, {2, 0}), "a");
  EXPECT_EQ(small.labels, (Labels{2, 0}));
  EXPECT_EQ(small.class_names, (Names{"0", "1", "2"}));
  const Examples sides = array_examples(numbers({2, 2}, four), integers({2}, {1, -1}), "a");
  EXPECT_EQ(sides.labels, (Labels{1, 0}));
  EXPECT_EQ(sides.class_names, (Names{"-1", "1"}));
  std::vector<std::int32_t> many(101);
  for (std::size_t i = 0; i < many.size(); ++i) many[i] = -static_cast<std::int32_t>(i) - 1;
  expect_holds(refused(numbers({101, 1}, std::vector<double>(101, 1)), integers({101}, many)),
               {"101 different"});
}

TEST(Arrays, NpzNeedsX) {
  std::map<std::string, NpyArray> arrays;
  expect_holds(message<FormatError>([&] { npz_examples(arrays, "a.npz"); }), {"a.npz", "found none"});
  arrays.emplace("inputs", numbers({1, 1}, {1}));
  expect_holds(message<FormatError>([&] { npz_examples(arrays, "a.npz"); }), {"a.npz", "found inputs"});
  arrays.emplace("x", numbers({1, 1}, {1}));
  EXPECT_EQ(npz_examples(arrays, "a.npz").size(), 1U);
}

}  // namespace
}  // namespace gradgram::datasets
