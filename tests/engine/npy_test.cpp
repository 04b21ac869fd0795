#include "engine/npy.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "engine/error.hpp"
#include "engine/file.hpp"
#include "tests/source_root.hpp"

namespace gradgram {
namespace {

namespace fs = std::filesystem;

fs::path golden(const std::string& name) {
  return source_root() / "tests" / "golden" / "npy" / name;
}

std::vector<std::byte> bytes_of(const std::string& text) {
  std::vector<std::byte> bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

/// A version 1.0 file with this header text and so many zero bytes behind it.
std::vector<std::byte> npy(const std::string& header, std::size_t data) {
  std::string text("\x93NUMPY\x01\x00", 8);
  text += static_cast<char>(header.size() & 0xFF);
  text += static_cast<char>(header.size() >> 8);
  return bytes_of(text + header + std::string(data, '\0'));
}

template <class Call>
std::string format_error(const Call& call) {
  try {
    call();
  } catch (const FormatError& error) {
    return error.what();
  }
  ADD_FAILURE() << "no FormatError was thrown";
  return {};
}

/// The refusal of these bytes as a file called `some.npy`, which its message must name.
std::string refusal(const std::vector<std::byte>& bytes) {
  const std::string text = format_error([&] { parse_npy(bytes, "some.npy"); });
  EXPECT_NE(text.find("some.npy: byte "), std::string::npos) << text;
  return text;
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (fs::temp_directory_path() / "gradgram-npy-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = pattern;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { fs::remove_all(path_); }
  fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

void expect_ramp(const NpyArray& array, const std::vector<std::size_t>& shape, const std::string& what) {
  EXPECT_EQ(array.shape, shape) << what;
  const double step = array.type == NpyType::F4 || array.type == NpyType::F8 ? 1.0 / 64 : 1;
  const double first = array.type == NpyType::U1 ? 0 : -3 * step;
  for (std::size_t i = 0; i < array.size(); ++i) {
    ASSERT_EQ(array.at(i), first + step * static_cast<double>(i)) << what << " element " << i;
  }
}

TEST(Npy, ReadsWhatNumPyWroteInEveryTypeAndOrder) {
  for (const char* type : {"f4", "f8", "u1", "i4", "i8"}) {
    for (const char* order : {"c_", "fortran_"}) {
      const std::string name = std::string(order) + type + ".npy";
      const NpyArray array = read_npy(golden(name));
      EXPECT_EQ(to_string(array.type).substr(1), type);
      ASSERT_EQ(array.size(), 30U);
      expect_ramp(array, {2, 3, 5}, name);
    }
  }
  expect_ramp(read_npy(golden("rank5_fortran.npy")), {2, 3, 1, 5, 2}, "rank5_fortran");
  expect_ramp(read_npy(golden("version2.npy")), {2, 3}, "version2");
  expect_ramp(read_npy(golden("version3.npy")), {2, 3}, "version3");
  expect_ramp(read_npy(golden("vector.npy")), {7}, "vector");
  const NpyArray scalar = read_npy(golden("scalar.npy"));
  EXPECT_TRUE(scalar.shape.empty());
  EXPECT_EQ(scalar.to_tensor<float>().span()[0], 0.25F);
  const NpyArray empty = read_npy(golden("empty.npy"));
  EXPECT_EQ(empty.shape, (std::vector<std::size_t>{0, 4}));
  EXPECT_EQ(empty.to_tensor<double>().size(), 0U);
}

TEST(Npy, ParsingBytesEqualsReadingTheFile) {
  const NpyArray parsed = parse_npy(read_file(golden("fortran_f4.npy")), "x");
  const NpyArray read = read_npy(golden("fortran_f4.npy"));
  EXPECT_EQ(parsed.bytes, read.bytes);
  EXPECT_EQ(parsed.shape, read.shape);
}

TEST(Npy, RefusesKindsThatAreNotRead) {
  const auto refused = [](const std::string& name) { return format_error([&] { read_npy(golden(name)); }); };
  EXPECT_NE(refused("big_endian.npy").find("'>f8'"), std::string::npos);
  EXPECT_NE(refused("complex.npy").find("'<c16'"), std::string::npos);
  EXPECT_NE(refused("boolean.npy").find("'|b1'"), std::string::npos);
  EXPECT_NE(refused("record.npy").find("records"), std::string::npos);
  EXPECT_NE(refused("rank6.npy").find("rank"), std::string::npos);
  EXPECT_NE(refused("rank6.npy").find("rank6.npy: byte "), std::string::npos);
}

TEST(Npy, RefusesEveryTruncationAndAnyTail) {
  for (const char* name : {"c_f4.npy", "version2.npy"}) {
    const std::vector<std::byte> whole = read_file(golden(name));
    for (std::size_t length = 0; length < whole.size(); ++length) {
      refusal({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length)});
    }
    std::vector<std::byte> longer = whole;
    longer.push_back(std::byte{0});
    EXPECT_NE(refusal(longer).find("follow the header"), std::string::npos);
  }
}

TEST(Npy, SurvivesEveryOneByteChange) {
  const std::vector<std::byte> whole = read_file(golden("fortran_u1.npy"));
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (int value = 0; value < 256; ++value) {
      std::vector<std::byte> changed = whole;
      changed[i] = static_cast<std::byte>(value);
      try {
        const NpyArray array = parse_npy(changed, "changed");
        std::size_t product = 1;
        for (const std::size_t extent : array.shape) product *= extent;
        ASSERT_EQ(product, array.size());
      } catch (const FormatError&) {
      }
    }
  }
}

TEST(Npy, RefusesSizesThatOverflowOrExceedTheFile) {
  const auto header = [](const std::string& shape) {
    return "{'descr': '<f8', 'fortran_order': False, 'shape': " + shape + ", }\n";
  };
  EXPECT_NE(refusal(npy(header("(18446744073709551616,)"), 8)).find("overflows"), std::string::npos);
  EXPECT_NE(refusal(npy(header("(4294967296, 4294967296)"), 8)).find("overflows"), std::string::npos);
  EXPECT_NE(refusal(npy(header("(2305843009213693952,)"), 8)).find("overflows"), std::string::npos);
  const std::string text = refusal(npy(header("(1099511627776,)"), 8));
  EXPECT_NE(text.find("needs 8796093022208 bytes, but 8 follow"), std::string::npos) << text;
  EXPECT_NE(refusal(npy(header("(1, 1, 1, 1, 1, 1)"), 8)).find("rank"), std::string::npos);
  // The same header with a size that fits is accepted: the refusals above are about the numbers.
  EXPECT_EQ(parse_npy(npy(header("(1, 1)"), 8), "x").size(), 1U);
}

TEST(Npy, HeaderIsReadStrictly) {
  const std::vector<std::string> broken = {
      "",
      "{",
      "{}",
      "[]",
      "{'descr': '<f8', 'fortran_order': False}",
      "{'descr': '<f8', 'descr': '<f8', 'fortran_order': False, 'shape': (1,)}",
      "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), 'more': 1}",
      "{'descr': '<f8', 'fortran_order': 0, 'shape': (1,)}",
      "{'descr': '<f8', 'fortran_order': False, 'shape': (1)}",
      "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
      "{'descr': '<f8', 'fortran_order': False, 'shape': (1.0,)}",
      "{'descr': '<f8', 'fortran_order': False, 'shape': 1}",
      "{'descr': '<f8', 'fortran_order': False, 'shape': (1 1)}",
      "{'descr': '<f8', 'fortran_order': False, 'shape': (1,) } x",
      "{'descr': '<f8' 'fortran_order': False, 'shape': (1,)}",
      "{'descr': f8, 'fortran_order': False, 'shape': (1,)}",
      "{'descr': '<f8\n', 'fortran_order': False, 'shape': (1,)}",
      "{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,)}",
  };
  for (const std::string& header : broken) {
    SCOPED_TRACE(header);
    refusal(npy(header, 8));
  }
  EXPECT_EQ(parse_npy(npy("{\"shape\":(1,),'fortran_order':True,'descr':'<f8'}", 8), "x").size(), 1U);
}

TEST(Npy, LabelsMustBeIntegers) {
  NpyArray array = parse_npy(read_file(golden("c_i8.npy")), "x");
  const auto labels = array.to_labels();
  EXPECT_EQ(labels.front(), -3);
  EXPECT_EQ(labels.back(), 26);
  const std::int64_t large = std::int64_t{1} << 31;
  std::memcpy(array.bytes.data() + 8, &large, 8);
  EXPECT_NE(format_error([&] { (void)array.to_labels(); }).find("label 1 is 2147483648"), std::string::npos);

  NpyArray real{NpyType::F8, {1}, std::vector<std::byte>(8)};
  for (const double bad : {0.5, std::numeric_limits<double>::quiet_NaN(), 2147483648.0, -2147483649.0}) {
    std::memcpy(real.bytes.data(), &bad, 8);
    EXPECT_THROW((void)real.to_labels(), FormatError) << bad;
  }
  const double good = -2147483648.0;
  std::memcpy(real.bytes.data(), &good, 8);
  EXPECT_EQ(real.to_labels()[0], std::numeric_limits<std::int32_t>::min());
}

TEST(Npy, WrittenFilesAreReadBackExactly) {
  const TemporaryFolder folder;
  Tensor<float> values(Shape{3, 1, 7});
  for (std::size_t i = 0; i < values.size(); ++i) values.data()[i] = static_cast<float>(i) / 3;
  values.data()[4] = std::numeric_limits<float>::infinity();
  write_npy(folder / "a.npy", values);
  const NpyArray array = read_npy(folder / "a.npy");
  EXPECT_EQ(array.type, NpyType::F4);
  EXPECT_EQ(array.shape, (std::vector<std::size_t>{3, 1, 7}));
  EXPECT_EQ(std::memcmp(array.bytes.data(), values.data(), 84), 0);
  // NumPy maps the elements: they start at a multiple of 64 bytes.
  EXPECT_EQ((read_file(folder / "a.npy").size() - 84) % 64, 0U);

  const std::vector<std::int32_t> labels = {3, -1, 7};
  write_npy(folder / "labels.npy", labels);
  EXPECT_EQ(read_npy(folder / "labels.npy").to_labels(), labels);

  const Tensor<double> scalar(Shape{}, std::vector<double>{0.125});
  write_npy(folder / "scalar.npy", scalar);
  EXPECT_EQ(read_npy(folder / "scalar.npy").to_tensor<double>().span()[0], 0.125);
  EXPECT_THROW(write_npy(folder / "none.npy", TensorView<const double>()), ArgumentError);
}

TEST(Npz, ReadsStoredAndCompressedArchives) {
  for (const char* name : {"stored.npz", "compressed.npz"}) {
    SCOPED_TRACE(name);
    const auto arrays = read_npz(golden(name));
    ASSERT_EQ(arrays.size(), 5U);
    expect_ramp(arrays.at("0.weight"), {4, 3}, "0.weight");
    expect_ramp(arrays.at("0.bias"), {4}, "0.bias");
    expect_ramp(arrays.at("order"), {3, 4}, "order");
    EXPECT_EQ(arrays.at("y").to_labels(), (std::vector<std::int32_t>{0, 1, 2, 3}));
    EXPECT_EQ(arrays.at("zeros").size(), 4096U);
  }
}

TEST(Npz, RefusesOtherArchives) {
  EXPECT_NE(format_error([] { read_npz(golden("bzip2.npz")); }).find("compression method 12"),
            std::string::npos);
  const std::string text = format_error([] { read_npz(golden("text.npz")); });
  EXPECT_NE(text.find("text.npz: readme.txt"), std::string::npos) << text;
  EXPECT_NE(format_error([] { read_npz(golden("c_f4.npy")); }).find("c_f4.npy"), std::string::npos);
  EXPECT_THROW(parse_npz({}, "empty"), FormatError);
}

TEST(Npz, RefusesTruncationAndDamage) {
  const std::vector<std::byte> whole = read_file(golden("compressed.npz"));
  for (std::size_t length = 0; length < whole.size(); ++length) {
    EXPECT_THROW(parse_npz(std::span(whole).first(length), "cut.npz"), FormatError) << length;
  }
  // Any change is either refused or does not matter; most of the packed bytes must matter, by the checksum.
  std::size_t refused = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    std::vector<std::byte> changed = whole;
    changed[i] ^= std::byte{0x55};
    try {
      parse_npz(changed, "changed.npz");
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, whole.size() / 2);
}

TEST(Npz, HeadersThatDeclareMoreThanCanUnpackAreRefusedBeforeAllocation) {
  std::vector<std::byte> whole = read_file(golden("stored.npz"));
  // 0.weight: (4, 3) of <f4 in a stored entry; the text is patched in place, the checksum is never reached.
  const std::string from = "(4, 3), }         ";
  const std::string to = "(4000000000000,), }";
  const auto found = std::search(whole.begin(), whole.end(), from.begin(), from.end(),
                                 [](std::byte byte, char c) { return static_cast<char>(byte) == c; });
  ASSERT_NE(found, whole.end());
  std::memcpy(&*found, to.data(), to.size());
  const std::string text = format_error([&] { parse_npz(whole, "bomb.npz"); });
  EXPECT_NE(text.find("bomb.npz: 0.weight.npy"), std::string::npos) << text;
  EXPECT_NE(text.find("cannot hold"), std::string::npos) << text;
}

TEST(Npz, WrittenArchivesAreReadBackAndTheirBytesDoNotDependOnTheClock) {
  const TemporaryFolder folder;
  Tensor<double> weight(Shape{2, 3}, std::vector<double>{1, 2, 3, 4, 5, 6});
  Tensor<double> bias(Shape{2}, std::vector<double>{-1, -2});
  Tensor<double> none(Shape{0, 3});
  const std::vector<NamedTensor<double>> arrays = {
      {"0.weight", weight.view()}, {"0.bias", bias.view()}, {"none", none.view()}};
  write_npz<double>(folder / "a.npz", arrays);
  write_npz<double>(folder / "b.npz", arrays);
  EXPECT_EQ(read_file(folder / "a.npz"), read_file(folder / "b.npz"));
  const auto read = read_npz(folder / "a.npz");
  ASSERT_EQ(read.size(), 3U);
  EXPECT_EQ(read.at("0.weight").shape, (std::vector<std::size_t>{2, 3}));
  EXPECT_EQ(std::memcmp(read.at("0.weight").bytes.data(), weight.data(), 48), 0);
  EXPECT_EQ(read.at("0.bias").at(1), -2);
  EXPECT_EQ(read.at("none").shape, (std::vector<std::size_t>{0, 3}));

  write_npz<float>(folder / "empty.npz", {});
  EXPECT_TRUE(read_npz(folder / "empty.npz").empty());
  EXPECT_THROW(write_npz<double>(folder / "c.npz", std::vector<NamedTensor<double>>{arrays[0], arrays[0]}),
               ArgumentError);
  EXPECT_FALSE(fs::exists(folder / "c.npz"));
}

}  // namespace
}  // namespace gradgram
