#include "engine/file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <ostream>
#include <stdexcept>
#include <string>

#include "engine/error.hpp"

namespace gradgram {
namespace {

namespace fs = std::filesystem;

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "gradgram-file-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string text_of(const fs::path& path) const {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  std::ptrdiff_t entries() const {
    return std::distance(fs::directory_iterator(folder_), fs::directory_iterator());
  }
  /// The message of the Expected that `call` throws.
  template <class Expected, class Call>
  std::string message(const Call& call) const {
    try {
      call();
    } catch (const Expected& error) {
      return error.what();
    }
    ADD_FAILURE() << "nothing of the expected type was thrown";
    return {};
  }

  fs::path folder_;
};

TEST_F(FileTest, RoundTripsAnySize) {
  // Around the 64 KiB buffer of the writer, through both its paths: character by character and in blocks.
  for (const std::size_t size : {0UL, 1UL, 65535UL, 65536UL, 65537UL, 200003UL}) {
    std::string content(size, '\0');
    for (std::size_t i = 0; i < size; ++i) content[i] = static_cast<char>(i * 31 + i / 256);
    const fs::path path = folder_ / "data";
    write_file(path, [&](std::ostream& stream) {
      const std::size_t half = size / 2;
      for (std::size_t i = 0; i < half; ++i) stream.put(content[i]);
      stream.write(content.data() + half, static_cast<std::streamsize>(size - half));
    });
    EXPECT_EQ(text_of(path), content);
    const auto bytes = read_file(path);
    ASSERT_EQ(bytes.size(), size);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), content.begin(),
                           [](std::byte byte, char c) { return static_cast<char>(byte) == c; }));
  }
  EXPECT_EQ(entries(), 1);
}

TEST_F(FileTest, FailedWriterLeavesTheOldFileAndNoOther) {
  const fs::path path = folder_ / "kept";
  write_file(path, [](std::ostream& stream) { stream << "old"; });
  EXPECT_THROW(write_file(path,
                          [](std::ostream& stream) {
                            stream << "new";
                            throw std::runtime_error("interrupted");
                          }),
               std::runtime_error);
  const std::string text = message<IoError>(
      [&] { write_file(path, [](std::ostream& stream) { stream.setstate(std::ios::failbit); }); });
  EXPECT_NE(text.find(path.string()), std::string::npos) << text;
  EXPECT_EQ(text_of(path), "old");
  EXPECT_EQ(entries(), 1);
}

TEST_F(FileTest, NamesWhatIsMissing) {
  const fs::path path = folder_ / "no" / "such" / "file";
  std::string text = message<IoError>([&] { write_file(path, [](std::ostream&) {}); });
  EXPECT_NE(text.find((folder_ / "no" / "such").string() + " does not exist"), std::string::npos) << text;
  text = message<IoError>([&] { write_file(folder_, [](std::ostream&) {}); });
  EXPECT_NE(text.find("directory"), std::string::npos) << text;
  text = message<IoError>([&] { read_file(path); });
  EXPECT_NE(text.find(path.string()), std::string::npos) << text;
  EXPECT_NE(text.find("No such file"), std::string::npos) << text;
  text = message<IoError>([&] { read_file(folder_); });
  EXPECT_NE(text.find("directory"), std::string::npos) << text;
  EXPECT_EQ(entries(), 0);
}

TEST_F(FileTest, LimitIsExact) {
  const fs::path path = folder_ / "ten";
  write_file(path, [](std::ostream& stream) { stream << "0123456789"; });
  EXPECT_EQ(read_file(path, 10).size(), 10U);
  const std::string text = message<IoError>([&] { read_file(path, 9); });
  EXPECT_NE(text.find("10 bytes"), std::string::npos) << text;
  EXPECT_NE(text.find("limit of 9"), std::string::npos) << text;
}

TEST_F(FileTest, FollowsLinksAndKeepsDevices) {
  const fs::path target = folder_ / "target";
  const fs::path link = folder_ / "link";
  write_file(target, [](std::ostream& stream) { stream << "old"; });
  fs::create_symlink(target, link);
  write_file(link, [](std::ostream& stream) { stream << "new"; });
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_EQ(text_of(target), "new");

  write_file("/dev/null", [](std::ostream& stream) { stream << "gone"; });
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST_F(FileTest, LinksAreFollowedFromWhereTheyAre) {
  fs::create_directories(folder_ / "there" / "inner");
  fs::create_directory_symlink(folder_ / "there" / "inner", folder_ / "inner");
  fs::create_symlink("../k.npy", folder_ / "inner" / "link.npy");
  std::ofstream(folder_ / "there" / "k.npy") << "there";
  std::ofstream(folder_ / "k.npy") << "beside the link to the folder";
  EXPECT_TRUE(fs::equivalent(behind_links(folder_ / "inner" / "link.npy"), folder_ / "there" / "k.npy"));
  EXPECT_EQ(behind_links(folder_ / "k.npy"), folder_ / "k.npy");
  fs::remove(folder_ / "there" / "k.npy");
  std::ofstream(behind_links(folder_ / "inner" / "link.npy")) << "new";
  EXPECT_EQ(text_of(folder_ / "there" / "k.npy"), "new");
}

TEST_F(FileTest, FullDiskIsReported) {
  if (!fs::is_character_file("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  const std::string text = message<IoError>(
      [&] { write_file("/dev/full", [](std::ostream& stream) { stream << std::string(100000, 'x'); }); });
  EXPECT_NE(text.find("/dev/full"), std::string::npos) << text;
  EXPECT_NE(text.find("No space left"), std::string::npos) << text;
}

TEST_F(FileTest, LimitHoldsForAPipeToo) {
  const fs::path path = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  // Opened for both directions the pipe has a writer, so that filling it first does not block.
  const int descriptor = ::open(path.c_str(), O_RDWR);
  ASSERT_GE(descriptor, 0);
  ASSERT_EQ(::write(descriptor, "through", 7), 7);
  EXPECT_THROW(read_file(path, 3), IoError);
  ::close(descriptor);
}

}  // namespace
}  // namespace gradgram
