#include "engine/scratch_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/error.hpp"
#include "engine/parallel.hpp"

/// A file system that has no files without names.
namespace {
bool only_names = false;
}  // namespace

/// In the place of the system's.
extern "C" int open(const char* path, int flags, ...) {
  if (only_names && (flags & O_TMPFILE) == O_TMPFILE) {
    errno = EOPNOTSUPP;
    return -1;
  }
  va_list more;
  va_start(more, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(more, mode_t) : 0;
  va_end(more);
  return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

namespace gradgram {
namespace {

namespace fs = std::filesystem;

std::vector<std::byte> bytes(std::size_t count, unsigned first) {
  std::vector<std::byte> result(count);
  for (std::size_t i = 0; i < count; ++i) result[i] = static_cast<std::byte>(first + i * i % 251);
  return result;
}

std::ptrdiff_t entries(const fs::path& folder) {
  return std::distance(fs::directory_iterator(folder), fs::directory_iterator());
}

class ScratchFileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "gradgram-scratch-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    descriptors = entries("/proc/self/fd");
  }
  void TearDown() override {
    only_names = false;
    EXPECT_EQ(entries("/proc/self/fd"), descriptors);
    EXPECT_EQ(entries(folder), 0);
    fs::remove_all(folder);
  }
  template <class Call>
  static std::string message(const Call& call) {
    try {
      call();
    } catch (const IoError& error) {
      return error.what();
    }
    return "";
  }

  fs::path folder;
  std::ptrdiff_t descriptors = 0;
};

/// Larger files than `bytes` cannot be written while this lives.
class FileLimit {
 public:
  explicit FileLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  FileLimit(const FileLimit&) = delete;
  FileLimit& operator=(const FileLimit&) = delete;
  ~FileLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

TEST_F(ScratchFileTest, GivesBackWhatWasWritten) {
  for (const bool named : {false, true}) {
    only_names = named;
    const ScratchFile file(folder, 0);
    // Nobody else sees it.
    EXPECT_EQ(entries(folder), 0);
    const auto first = bytes(100'001, 1);
    const auto second = bytes(7, 200);
    file.write(second, 100'001);
    file.write(first, 0);
    file.fetch(0, 100'008);
    std::vector<std::byte> whole(100'008);
    file.read(whole, 0);
    EXPECT_TRUE(std::equal(first.begin(), first.end(), whole.begin()));
    EXPECT_TRUE(std::equal(second.begin(), second.end(), whole.begin() + 100'001));
    file.flush();
    file.forget();
    std::vector<std::byte> part(10);
    file.read(part, 99'998);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 99'998));
  }
}

TEST_F(ScratchFileTest, SeveralThreadsAtOnce) {
  constexpr std::size_t kPart = 10'007;
  const ScratchFile file(folder, 64 * kPart);
  const Workers workers(7);
  std::atomic<std::size_t> wrong{0};
  workers.run(
      64, [&](std::size_t i, std::size_t) { file.write(bytes(kPart, static_cast<unsigned>(i)), i * kPart); });
  workers.run(64, [&](std::size_t i, std::size_t) {
    std::vector<std::byte> part(kPart);
    file.read(part, (63 - i) * kPart);
    if (part != bytes(kPart, static_cast<unsigned>(63 - i))) ++wrong;
  });
  EXPECT_EQ(wrong, 0U);
}

TEST_F(ScratchFileTest, TellsFolderBytesAndReason) {
  {
    const ScratchFile file(folder, 0);
    file.write(bytes(100, 1), 0);
    std::vector<std::byte> more(50);
    const std::string text = message([&] { file.read(more, 60); });
    EXPECT_NE(text.find(folder.string()), std::string::npos) << text;
    EXPECT_NE(text.find("10 bytes at 100"), std::string::npos) << text;
    EXPECT_NE(text.find("it ends before"), std::string::npos) << text;
  }
  const std::string absent = message([&] { const ScratchFile file(folder / "absent", 10); });
  EXPECT_NE(absent.find((folder / "absent").string()), std::string::npos) << absent;

  const FileLimit limit(100'000);
  const std::string reserve = message([&] { const ScratchFile file(folder, 100'001); });
  for (const std::string& part : {std::string("100001 bytes"), folder.string(), std::string("are free")}) {
    EXPECT_NE(reserve.find(part), std::string::npos) << reserve;
  }
  const ScratchFile file(folder, 100'000);
  const auto data = bytes(60'000, 1);
  file.write(data, 0);
  const std::string full = message([&] { file.write(data, 60'000); });
  for (const std::string& part : {std::string("60000 bytes"), folder.string(), std::string("are free")}) {
    EXPECT_NE(full.find(part), std::string::npos) << full;
  }
  std::vector<std::byte> again(60'000);
  file.read(again, 0);
  EXPECT_EQ(again, data);
}

TEST_F(ScratchFileTest, KnowsWhatAFolderHasToGive) {
  const ScratchSpace space = scratch_space(folder);
  EXPECT_EQ(space.problem, "");
  EXPECT_EQ(space.folder, folder);
  EXPECT_GT(space.free_bytes, 0U);
  EXPECT_GE(space.left_bytes, std::size_t{1} << 30);
  EXPECT_LE(space.usable_bytes(), space.free_bytes);
  ScratchSpace small = space;
  small.free_bytes = 1000;
  EXPECT_EQ(small.usable_bytes(), 0U);
  small.left_bytes = 300;
  EXPECT_EQ(small.usable_bytes(), 700U);
  EXPECT_NE(scratch_space(folder / "absent").problem, "");
  EXPECT_EQ(scratch_space(folder / "absent").usable_bytes(), 0U);
  std::ofstream(folder / "file") << "no folder";
  EXPECT_NE(scratch_space(folder / "file").problem, "");
  fs::remove(folder / "file");
  EXPECT_TRUE(scratch_space("/proc").problem != "" || scratch_space("/proc").usable_bytes() == 0);
  if (fs::is_directory("/dev/shm")) {
    EXPECT_TRUE(scratch_space("/dev/shm").in_memory);
  }
}

TEST_F(ScratchFileTest, TheFolderIsThatOfTheEnvironment) {
  const char* const given = std::getenv("TMPDIR");
  const std::string before = given == nullptr ? "" : given;
  ::setenv("TMPDIR", folder.c_str(), 1);
  EXPECT_EQ(default_scratch_folder(), folder);
  ::setenv("TMPDIR", "relative", 1);
  EXPECT_EQ(default_scratch_folder(), "/var/tmp");
  ::unsetenv("TMPDIR");
  EXPECT_EQ(default_scratch_folder(), "/var/tmp");
  if (given != nullptr) ::setenv("TMPDIR", before.c_str(), 1);
}

TEST_F(ScratchFileTest, MeasuresItsDisk) {
  const ScratchRates rates = measure_scratch(folder);
  EXPECT_GT(rates.write, 1e6);
  EXPECT_GT(rates.read, 1e6);
  EXPECT_NE(message([&] { measure_scratch(folder / "absent"); }), "");
}

}  // namespace
}  // namespace gradgram
