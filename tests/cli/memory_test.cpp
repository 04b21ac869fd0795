#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "engine/bf16.hpp"
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

  /// Runs `gradgram VERB` with two threads. The data segment is limited as well: memory that is taken and
  /// never touched does not show as resident, but address space that the libraries only reserve must pass.
  Child program(std::vector<std::string> words) const {
    words.insert(words.begin() + 1, {"--threads", "2", "--quiet"});
    words.insert(words.begin(), GRADGRAM_PROGRAM);
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

  Child kernel(std::vector<std::string> words) const {
    words.insert(words.begin(), {"kernel", "--out", (folder / "k.npy").string()});
    return program(std::move(words));
  }

  static std::vector<std::string> with_memory(std::vector<std::string> words, std::size_t budget) {
    words.insert(words.end(), {"--memory", std::to_string(budget)});
    return words;
  }

  /// The budget that a refusal names; 0 when it is none.
  static std::size_t least_of(const Child& child) {
    const std::string before = "the least that would do is ";
    const std::size_t at = child.err.find(before);
    return child.code == 1 && at != std::string::npos ? std::stoull(child.err.substr(at + before.size())) : 0;
  }

  /// A tiny budget is refused at once with the least; that does, and stays within it; a byte less is refused
  /// with the same number. `out`: what the command writes, inside `folder`.
  std::size_t expect_least(const std::vector<std::string>& words, const std::string& out = "k.npy") const {
    std::string line;
    for (const std::string& word : words) line += word + " ";
    const fs::path written = folder / out;
    const Child refused = program(with_memory(words, 1000));
    const std::size_t least = least_of(refused);
    EXPECT_NE(least, 0) << line << refused.err;
    EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
    EXPECT_FALSE(fs::exists(written)) << line;
    const Child below = program(with_memory(words, least - 1));
    EXPECT_EQ(least_of(below), least) << line << below.err;
    EXPECT_FALSE(fs::exists(written)) << line;
    const Child exact = program(with_memory(words, least));
    EXPECT_EQ(exact.code, 0) << line << exact.err;
    EXPECT_TRUE(fs::exists(written)) << line;
    EXPECT_LE(exact.peak, least + kAllowance) << line;
    std::printf("%zu MiB of %zu + %zu: %s\n", exact.peak / kMiB, least / kMiB, kAllowance / kMiB,
                line.c_str());
    fs::remove_all(written);
    return least;
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

TEST_F(Memory, SpilledFactorsAreNotTheProcesss) {
  fs::create_directories(folder / "scratch");
  const std::vector<std::string> words = {"--data",
                                          array("images.npy", {1500, 3, 16, 16}),
                                          "--model",
                                          "conv(32,3) relu maxpool(2) conv(96,3) relu gap dense(1)",
                                          "--rates",
                                          "built-in",
                                          "--explain",
                                          "--spill",
                                          "always",
                                          "--scratch",
                                          (folder / "scratch").string()};
  expect_within(96 * kMiB, words);
  std::ifstream stream(folder / "k.json");
  std::stringstream text;
  text << stream.rdbuf();
  EXPECT_NE(text.str().find("\"factors\": \"spilled\""), std::string::npos) << text.str();
  EXPECT_TRUE(fs::is_empty(folder / "scratch"));
  fs::remove(folder / "k.json");

  // A disk that is full in the middle: what it does not hold is computed again.
  std::vector<std::string> line = with_memory(words, 96 * kMiB);
  line.insert(line.begin(), {GRADGRAM_PROGRAM, "kernel", "--out", (folder / "k.npy").string(), "--quiet"});
  std::vector<char*> arguments;
  for (std::string& word : line) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const Child full = watch(folder / "log", [&] {
    setenv("XDG_CACHE_HOME", (folder / "cache").c_str(), 1);
    const rlimit size{32 * kMiB, 32 * kMiB};
    setrlimit(RLIMIT_FSIZE, &size);
    execv(GRADGRAM_PROGRAM, arguments.data());
  });
  EXPECT_EQ(full.code, 0) << full.err;
  EXPECT_NE(full.err.find("cannot reserve"), std::string::npos) << full.err;
  EXPECT_NE(full.err.find((folder / "scratch").string()), std::string::npos) << full.err;
  EXPECT_EQ(std::count(full.err.begin(), full.err.end(), '\n'), 1) << full.err;
  EXPECT_LE(full.peak, 96 * kMiB + kAllowance);
}

TEST_F(Memory, ABudgetThatIsTooSmallIsRefusedAtOnceAndTheStatedLeastDoes) {
  const std::string out = (folder / "k.npy").string();
  const std::string images = array("images.npy", {60, 3, 16, 16});
  const std::string others = array("others.npy", {31, 3, 16, 16});
  const std::string vectors = array("vectors.npy", {1500, 20});
  const std::string network = "conv(32,3) relu maxpool(2) conv(64,3) relu gap dense(1)";
  const auto kernel = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"kernel", "--out", out, "--data"});
    return words;
  };
  const std::size_t least = expect_least(kernel({images, "--model", network}));
  EXPECT_LT(least, 32 * kMiB);
  // A preview that nobody asked for is not counted.
  EXPECT_EQ(least, expect_least(kernel({images, "--model", network, "--no-preview"})));
  expect_least(kernel({images, "--model", network, "--preview"}));
  expect_least(kernel({images, "--model", network, "--versus", others}));
  if (bf16_kernels() != nullptr) {
    // The sample that tells the error is computed in f32 too, and by diagonals.
    expect_least(kernel({images, "--model", network, "--dtype", "bf16"}));
    expect_least(kernel({images, "--model", "conv(3,3) relu gap dense(3)", "--reduce", "trace-sum", "--dtype",
                         "bf16", "--versus", others}));
    expect_least(kernel({images, "--model", "conv(8,3) relu gap dense(3)", "--reduce", "full", "--dtype",
                         "bf16", "--limit", "20"}));
  }
  expect_least(kernel({images, "--model", network, "--diagonal"}));
  expect_least(kernel({vectors, "--model", "dense(64) relu dense(3)", "--per-parameter", "--reduce",
                       "trace-mean", "--limit", "300"}));
  expect_least(kernel({vectors, "--model", "dense(64) relu dense(3)", "--reduce", "full", "--dtype", "f64",
                       "--limit", "200"}));
  expect_least(kernel({vectors, "--approximate", "500", "--model", "dense(64) relu dense(1)"}));
  expect_least(kernel({images, "--approximate", "5000", "--model", network, "--dtype", "f64"}));
  expect_least(kernel({vectors, "--infinite", "--model", "dense(8) relu dense(1)"}));
  expect_least(kernel({images, "--infinite", "--model", "conv(8,3) relu gap dense(1)", "--limit", "20"}));
  // In f64 inside, with planes in f32.
  expect_least(kernel({images, "--infinite", "--model",
                       "conv(8,3) relu avgpool(2) conv(8,3) relu gap dense(1)", "--limit", "20"}));
  expect_least(kernel({images, "--infinite", "--model",
                       "conv(8,3) relu avgpool(2) flatten dense(4) relu dense(1)", "--limit", "20"}));
  expect_least(kernel({images, "--infinite", "--model", "conv(8,3) relu flatten dense(1)", "--versus", others,
                       "--get", "nngp"}));
  expect_least(kernel({vectors, "--monte-carlo", "2", "--model", "dense(8) relu dense(2)", "--reduce",
                       "trace-sum", "--limit", "600"}));
  expect_least(kernel({vectors, "--monte-carlo", "2", "--model", "dense(8) relu dense(2)", "--limit", "300",
                       "--reduce", "full"}));
  expect_least(
      kernel({images, "--monte-carlo", "2", "--model", network, "--versus", others, "--get", "nngp"}));
}

TEST_F(Memory, DrawingWeightsKeepsToTheBudget) {
  const std::string out = (folder / "w.npz").string();
  const auto init = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"init", "--out", out});
    return words;
  };
  expect_least(init({"--model", "dense(5000) relu dense(1)", "--input", "5000"}), "w.npz");
  expect_least(init({"--model", "dense(3000) relu dense(1)", "--input", "3000", "--dtype", "f64"}), "w.npz");
  expect_least(init({"--model", "conv(512,3) relu conv(512,3) relu gap dense(1)", "--data",
                     array("images.npy", {60, 3, 16, 16})}),
               "w.npz");
}

TEST_F(Memory, TheStatedLeastDoesForWhateverReadsAKernelOrMakesOne) {
  const std::string out = (folder / "k.npy").string();
  const std::string run = (folder / "run").string();
  const std::string images = array("images.npy", {300, 3, 16, 16});
  const std::string vectors = array("vectors.npy", {1500, 20});
  expect_least({"spectrum", "--matrix-free", "--data", images, "--model", "conv(32,3) relu gap dense(1)",
                "--limit", "80", "--out", run},
               "run");
  expect_least({"spectrum", "--matrix-free", "--data", vectors, "--model", "dense(64) relu dense(3)",
                "--reduce", "full", "--limit", "200", "--top", "3", "--out", run},
               "run");

  const std::vector<std::string> predict = {"predict", "--data", "moons:n=1500", "--out", out,
                                            "--train", "1200",   "--test",       "300"};
  const auto predicted = [&](std::vector<std::string> words) {
    words.insert(words.begin(), predict.begin(), predict.end());
    return words;
  };
  expect_least(predicted({"--model", "dense(64) relu dense(1)", "--ridge", "1"}));
  expect_least(predicted({"--model", "dense(64) relu dense(1)", "--time", "1", "--learning-rate", "0.1"}));
  expect_least({"predict", "--data", "fashion-mnist", "--out", out, "--train", "150", "--test", "40",
                "--model", "flatten dense(16) relu dense(10)", "--reduce", "full", "--ridge", "1"});
  expect_least(predicted({"--model", "dense(64) relu dense(1)", "--infinite", "--ridge", "0.1"}));
  expect_least(predicted({"--model", "dense(64) relu dense(1)", "--infinite", "--variance", "--ridge", "1"}));
  expect_least(predicted(
      {"--model", "dense(64) relu dense(1)", "--infinite", "--variance", "--get", "nngp", "--ridge", "1"}));

  expect_least({"learnability", "--data", "moons:n=900", "--model", "dense(32) relu dense(1)", "--epochs",
                "2", "--out", run},
               "run");
  expect_least({"learnability", "--data", "fashion-mnist", "--limit", "60", "--model",
                "conv(16,3) relu gap dense(10)", "--epochs", "1", "--standardize", "channel", "--out", run},
               "run");

  // A kernel from a file.
  const std::string file = (folder / "file.npy").string();
  ASSERT_EQ(program({"kernel", "--data", vectors, "--model", "dense(64) relu dense(1)", "--out", file}).code,
            0);
  const std::string csv = (folder / "s.csv").string();
  expect_least({"spectrum", file, "--out", csv}, "s.csv");
  expect_least({"spectrum", file, "--top", "5", "--out", csv}, "s.csv");
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
