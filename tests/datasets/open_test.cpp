#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "datasets/dataset.hpp"
#include "datasets/named.hpp"
#include "engine/error.hpp"
#include "tests/datasets/bytes.hpp"

namespace gradgram::datasets {
namespace {

using testing_files::bytes_of;
using testing_files::expect_holds;
using testing_files::Folder;
using testing_files::gzip;
using testing_files::idx;
using testing_files::message;

/// Four images of 2 x 3 pixels, of classes 1, 0, 2, 1.
std::string small_images() {
  std::string pixels(24, '\0');
  std::iota(pixels.begin(), pixels.end(), '\0');
  return idx(0x08, {4, 2, 3}, pixels);
}
std::string small_labels() {
  return idx(0x08, {4}, std::string{1, 0, 2, 1});
}

void put_idx(const Folder& folder, const std::string& below, bool packed) {
  const std::string suffix = packed ? ".gz" : "";
  for (const char* part : {"train", "t10k"}) {
    folder.put(below + part + "-images-idx3-ubyte" + suffix, packed ? gzip(small_images()) : small_images());
    folder.put(below + part + "-labels-idx1-ubyte" + suffix, packed ? gzip(small_labels()) : small_labels());
  }
}

TEST(OpenNamed, EmbeddedSampleHasTwoHundredImagesOfEachClass) {
  const Dataset data = open("fashion-mnist", {}, Places{});
  EXPECT_EQ(data.inputs.shape(), (Shape{2000, 28, 28, 1}));
  EXPECT_EQ(data.source, "fashion-mnist (embedded sample of 2,000 training images)");
  ASSERT_EQ(data.classes(), 10U);
  EXPECT_EQ(data.class_names[9], "Ankle boot");
  std::map<std::int32_t, int> counts;
  for (const std::int32_t label : data.labels) ++counts[label];
  ASSERT_EQ(counts.size(), 10U);
  for (const auto& [label, count] : counts) EXPECT_EQ(count, 200) << label;
  // The first training image of the set is an ankle boot, and its first labels are known.
  EXPECT_EQ(std::vector<std::int32_t>(data.labels.begin(), data.labels.begin() + 8),
            (std::vector<std::int32_t>{9, 0, 0, 3, 0, 2, 7, 2}));
  const auto [least, most] = std::ranges::minmax(data.inputs.span());
  EXPECT_EQ(least, 0.0);
  EXPECT_EQ(most, 1.0);
  const double mean = std::accumulate(data.inputs.span().begin(), data.inputs.span().end(), 0.0) /
                      static_cast<double>(data.inputs.size());
  EXPECT_NEAR(mean, 0.286, 0.01);  // the mean of the whole training part
}

TEST(OpenNamed, SampleHasNoTestPart) {
  const std::string text = message<ArgumentError>([] { open("fashion-mnist", {.test = true}, Places{}); });
  expect_holds(text, {"no test part", "dataset-fashion-mnist", "GRADGRAM_DATA"});
}

TEST(OpenNamed, LooksInTheDataFolderThenInThePackageThenInTheSample) {
  const Folder data;
  const Folder share;
  const Places places{data.path(), {share.path() / "none", share.path()}};
  EXPECT_EQ(open("fashion-mnist", {}, places).size(), 2000U);
  put_idx(share, "datasets/fashion-mnist/", true);
  Dataset set = open("fashion-mnist", {}, places);
  EXPECT_EQ(set.size(), 4U);
  expect_holds(set.source,
               {"system package", (share.path() / "datasets/fashion-mnist").string(), "training part"});
  put_idx(data, "fashion-mnist/", false);
  set = open("fashion-mnist", {.test = true}, places);
  expect_holds(set.source, {"GRADGRAM_DATA", (data.path() / "fashion-mnist").string(), "test part"});
  EXPECT_EQ(set.labels, (std::vector<std::int32_t>{1, 0, 2, 1}));
  EXPECT_EQ(set.inputs.shape(), (Shape{4, 2, 3, 1}));
  EXPECT_EQ(set.inputs(3, 1, 2, 0), 23.0 / 255);
}

TEST(OpenNamed, FilesRightInTheDataFolderServeUnlessItIsNamedLikeAnotherSet) {
  const Folder data;
  put_idx(data, "", true);
  put_idx(data, "mnist/", true);
  expect_holds(open("fashion-mnist", {}, Places{data.path(), {}}).source,
               {"GRADGRAM_DATA, " + data.path().string()});
  EXPECT_EQ(open("fashion-mnist", {}, Places{data.path() / "mnist", {}}).size(), 2000U);
  EXPECT_EQ(open("mnist", {}, Places{data.path() / "mnist", {}}).size(), 4U);
  EXPECT_EQ(open("mnist", {}, Places{data.path() / "mnist/", {}}).size(), 4U);
}

TEST(OpenNamed, AbsentSetsTellWhatToPutWhere) {
  expect_holds(message<ArgumentError>([] { open("mnist", {}, Places{}); }),
               {"mnist was not found", "GRADGRAM_DATA", "train-images-idx3-ubyte.gz"});
  expect_holds(message<ArgumentError>([] {
                 open("cifar10", {}, Places{"/nowhere", {}});
               }),
               {"cifar10 was not found", "/nowhere/cifar10", "data_batch_1.bin"});
}

TEST(OpenNamed, PartlyPresentSetsAreAnErrorNotAFallback) {
  const Folder data;
  data.put("fashion-mnist/train-images-idx3-ubyte.gz", gzip(small_images()));
  const Places places{data.path(), {}};
  expect_holds(message<IoError>([&] { open("fashion-mnist", {}, places); }), {"train-labels-idx1-ubyte"});
  expect_holds(message<IoError>([&] { open("fashion-mnist", {.test = true}, places); }),
               {"t10k-images-idx3-ubyte"});
}

TEST(OpenNamed, CifarBatchesAreJoinedInOrder) {
  const Folder data;
  for (int batch = 1; batch <= 2; ++batch) {
    std::string record(3073, static_cast<char>(10 * batch));
    record[0] = static_cast<char>(batch);
    record[1] = '\xFF';          // red at row 0, column 0
    record[1 + 1024 + 33] = 51;  // green at row 1, column 1
    data.put("cifar10/data_batch_" + std::to_string(batch) + ".bin", record);
  }
  const Dataset set = open("cifar10", {}, Places{data.path(), {}});
  EXPECT_EQ(set.inputs.shape(), (Shape{2, 32, 32, 3}));
  EXPECT_EQ(set.labels, (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(set.class_names[1], "automobile");
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(set.inputs(i, 0, 0, 0), 1.0);
    EXPECT_EQ(set.inputs(i, 1, 1, 1), 0.2);
    EXPECT_EQ(set.inputs(i, 31, 31, 2), static_cast<double>(10 * (i + 1)) / 255);
  }
  EXPECT_THROW(open("cifar10", {.test = true}, Places{data.path(), {}}), IoError);
}

TEST(OpenPath, FoldersAndFiles) {
  const Folder folder;
  put_idx(folder, "small/", false);
  put_idx(folder, "fashion-mnist/", false);
  EXPECT_EQ(open((folder.path() / "small").string()).class_names, (std::vector<std::string>{"0", "1", "2"}));
  EXPECT_EQ(open((folder.path() / "fashion-mnist/").string()).class_names.size(), 10U);
  const auto csv = folder.put("table.CSV", "a,b,kind\n1,2,x\n3,4,y\n");
  const Dataset table = open(csv.string());
  EXPECT_EQ(table.inputs.shape(), (Shape{2, 2}));
  EXPECT_EQ(table.class_names, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(class_names(csv.string()), table.class_names);
  expect_holds(message<ArgumentError>([&] { open(csv.string(), {.test = true}); }), {"no test part"});
  expect_holds(message<IoError>([&] { open((folder.path() / "absent.csv").string()); }),
               {"absent.csv", "No such file"});
  expect_holds(message<IoError>([&] { open(folder.path().string()); }), {folder.path().string(), "IDX"});
  expect_holds(message<ArgumentError>([] { open("fashion"); }), {"'fashion'", "fashion-mnist"});
  EXPECT_THROW(open(""), ArgumentError);
}

TEST(OpenPath, ADirectoryNamedLikeAFileIsReadAsAFolder) {
  const Folder folder;
  folder.put("table.csv/inside", "x");
  expect_holds(message<IoError>([&] { open((folder.path() / "table.csv").string()); }),
               {"table.csv", "neither"});
}

TEST(ParseClasses, NamesAndIndices) {
  const std::vector<std::string> names = named_classes("fashion-mnist");
  using Indices = std::vector<std::int32_t>;
  EXPECT_EQ(parse_classes("0,5", names), (Indices{0, 5}));
  EXPECT_EQ(parse_classes("sandal, boot", names), (Indices{5, 9}));
  EXPECT_EQ(parse_classes("shirt,T-SHIRT/top", names), (Indices{6, 0}));
  EXPECT_EQ(parse_classes("all", names), Indices{});
  EXPECT_EQ(parse_classes("3,1", named_classes("mnist")), (Indices{3, 1}));
  EXPECT_EQ(parse_classes("1", std::vector<std::string>{"-1", "1"}), Indices{1});
  EXPECT_EQ(parse_classes("-1", std::vector<std::string>{"-1", "1"}), Indices{0});
  expect_holds(message<ArgumentError>([&] { parse_classes("s", names); }), {"'s' fits several", "Sandal"});
  expect_holds(message<ArgumentError>([&] { parse_classes("hat", names); }),
               {"'hat' is no class", "Trouser"});
  expect_holds(message<ArgumentError>([&] { parse_classes("10", names); }), {"'10'"});
  expect_holds(message<ArgumentError>([&] { parse_classes("5,sandal", names); }), {"twice"});
  for (const char* broken : {"", ",", "0,", "0,,1"})
    EXPECT_THROW(parse_classes(broken, names), ArgumentError);
}

TEST(List, NamesTheSets) {
  const auto found = list();
  ASSERT_EQ(found.size(), 3U);
  EXPECT_EQ(found[0].name, "fashion-mnist");
  EXPECT_FALSE(found[0].where.empty());
}

TEST(Development, SetsInTheDataFolderOpen) {
  const char* folder = std::getenv("GRADGRAM_DATA");
  if (folder == nullptr) GTEST_SKIP() << "GRADGRAM_DATA is not set";
  const Places places{folder, {}};
  for (const char* name : {"mnist", "cifar10"}) {
    if (!locate(name, places)) continue;
    const Dataset data =
        open(name, {.classes = {0, 1}, .limit = 100, .standardize = Standardize::Channel}, places);
    EXPECT_EQ(data.size(), 100U) << name;
  }
}

}  // namespace
}  // namespace gradgram::datasets
