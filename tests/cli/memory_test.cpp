#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "engine/npy.hpp"
#include "engine/random.hpp"

/// The program itself, as a process: its peak resident memory against --memory.
namespace gradgram {
namespace {

namespace fs = std::filesystem;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

constexpr std::size_t kMiB = std::size_t{1} << 20;
/// What the program and its libraries take beside the budget: docs/planning.md and --help.
constexpr std::size_t kAllowance = 256 * kMiB;

struct Child {
  int code = -1;  ///< -1 when a signal ended it
  std::size_t peak = 0;
  std::string err;
};

template <class Body>
Child watch(const fs::path& log, Body body) {
  const pid_t pid = fork();
  if (pid == 0) {
    const int file = open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(file, 2);
    const int nothing = open("/dev/null", O_WRONLY);
    dup2(nothing, 1);
    body();
    _exit(127);
  }
  int status = 0;
  struct rusage usage {};
  EXPECT_EQ(wait4(pid, &status, 0, &usage), pid);
  std::ifstream stream(log);
  std::stringstream text;
  text << stream.rdbuf();
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, static_cast<std::size_t>(usage.ru_maxrss) * 1024,
          text.str()};
}

class Memory : public testing::Test {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "a sanitizer's own memory would be measured";
    folder = fs::path(testing::TempDir()) / (std::string("gradgram-memory-") +
                                             testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder);
    fs::create_directories(folder);
  }
  void TearDown() override { fs::remove_all(folder); }

  std::string array(const char* name, Shape shape) const {
    Tensor<float> values(shape);
    Random random(shape[0]);
    for (float& value : values.span()) value = static_cast<float>(random.uniform() - 0.5);
    write_npy<float>(folder / name, values.view());
    return (folder / name).string();
  }

  /// Runs `gradgram kernel` with two threads. The data segment is limited as well: memory that is taken and
  /// never touched does not show as resident, but address space that the libraries only reserve must pass.
  Child kernel(std::vector<std::string> words) const {
    words.insert(words.begin(), {GRADGRAM_PROGRAM, "kernel", "--threads", "2", "--quiet", "--out",
                                 (folder / "k.npy").string()});
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    const std::string cache = (folder / "cache").string();
    return watch(folder / "log", [&] {
      setenv("XDG_CACHE_HOME", cache.c_str(), 1);
      const rlimit data{std::size_t{4} << 30, std::size_t{4} << 30};
      setrlimit(RLIMIT_DATA, &data);
      execv(GRADGRAM_PROGRAM, arguments.data());
    });
  }

  void expect_within(std::size_t budget, std::vector<std::string> words) const {
    std::string line;
    for (const std::string& word : words) line += word + " ";
    words.insert(words.end(), {"--memory", std::to_string(budget)});
    const Child child = kernel(words);
    EXPECT_EQ(child.code, 0) << line << child.err;
    EXPECT_LE(child.peak, budget + kAllowance) << line;
    std::printf("%zu MiB of %zu + %zu: %s\n", child.peak / kMiB, budget / kMiB, kAllowance / kMiB,
                line.c_str());
    fs::remove(folder / "k.npy");
  }

  fs::path folder;
};

TEST_F(Memory, ThePeakIsWithinTheBudgetAndTheAllowance) {
  // Of the first the factors alone are 450 MB.
  const std::string images = array("images.npy", {4000, 3, 16, 16});
  const std::string vectors = array("vectors.npy", {4000, 20});
  expect_within(96 * kMiB,
                {"--data", images, "--model", "conv(32,3) relu maxpool(2) conv(96,3) relu gap dense(1)"});
  expect_within(64 * kMiB, {"--data", vectors, "--model", "dense(64) relu dense(1)", "--dtype", "f64"});
  expect_within(64 * kMiB, {"--data", vectors, "--model", "dense(64) relu dense(10)", "--reduce", "full",
                            "--limit", "500"});
  expect_within(160 * kMiB, {"--data", vectors, "--model", "dense(32) relu dense(1)", "--per-parameter",
                             "--limit", "2000"});
  expect_within(48 * kMiB, {"--data", images, "--model", "conv(16,3) relu gap dense(1)", "--limit", "500",
                            "--versus", images});
  expect_within(48 * kMiB, {"--data", images, "--model", "conv(32,3) relu conv(32,3) relu gap dense(1)",
                            "--diagonal", "--limit", "1000"});
  expect_within(64 * kMiB, {"--data", vectors, "--model", "dense(10) relu dense(10) relu dense(1)",
                            "--infinite", "--parameterization", "ntk", "--limit", "2000"});
}

TEST_F(Memory, ABudgetThatIsTooSmallIsRefusedAtOnceAndTheStatedLeastDoes) {
  const std::string images = array("images.npy", {60, 3, 16, 16});
  const std::vector<std::string> job = {"--data", images, "--model",
                                        "conv(32,3) relu maxpool(2) conv(64,3) relu gap dense(1)"};
  std::vector<std::string> words = job;
  words.insert(words.end(), {"--memory", "1MiB"});
  const Child refused = kernel(words);
  EXPECT_EQ(refused.code, 1);
  const std::string before = "the least that would do is ";
  const std::size_t at = refused.err.find(before);
  ASSERT_NE(at, std::string::npos) << refused.err;
  EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
  EXPECT_FALSE(fs::exists(folder / "k.npy"));
  const std::size_t least = std::stoull(refused.err.substr(at + before.size()));
  EXPECT_LT(least, 32 * kMiB);
  words = job;
  words.insert(words.end(), {"--limit", "20", "--memory"});
  words.push_back(std::to_string(least));
  EXPECT_EQ(kernel(words).code, 0);
  fs::remove(folder / "k.npy");
  expect_within(least, job);
  words = job;
  words.insert(words.end(), {"--memory", std::to_string(least - 1)});
  EXPECT_EQ(kernel(words).code, 1);
}

/// Negative control: a process that takes more than it should is seen.
TEST_F(Memory, TheMeasurementSeesWhatIsTaken) {
  constexpr std::size_t kBytes = 48 * kMiB + kAllowance + 16 * kMiB;
  const Child child = watch(folder / "log", [] {
    void* const taken = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (taken == MAP_FAILED) _exit(1);
    std::memset(taken, 1, kBytes);
    _exit(0);
  });
  EXPECT_EQ(child.code, 0);
  EXPECT_GT(child.peak, 48 * kMiB + kAllowance);
}

}  // namespace
}  // namespace gradgram
