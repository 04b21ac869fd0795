#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "engine/npy.hpp"
#include "engine/random.hpp"
#include "tests/cli/program.hpp"
#include "tests/file_bytes.hpp"

/// The names that are still to be changed before the process is killed in front of one; negative: never. In
/// the children alone, which run the program.
namespace {
long names_left = -1;

void one_more_name() {
  if (names_left == 0) raise(SIGKILL);
  if (names_left > 0) --names_left;
}
}  // namespace

// Every way in which the program gives or takes a name.
extern "C" int rename(const char* from, const char* to) noexcept {
  one_more_name();
  return static_cast<int>(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
extern "C" int unlink(const char* path) noexcept {
  one_more_name();
  return static_cast<int>(syscall(SYS_unlinkat, AT_FDCWD, path, 0));
}
extern "C" int remove(const char* path) noexcept {
  one_more_name();
  const int file = static_cast<int>(syscall(SYS_unlinkat, AT_FDCWD, path, 0));
  return file == 0 || errno != EISDIR ? file
                                      : static_cast<int>(syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR));
}
extern "C" int unlinkat(int folder, const char* path, int flags) noexcept {
  one_more_name();
  return static_cast<int>(syscall(SYS_unlinkat, folder, path, flags));
}

namespace gradgram::cli {
namespace {

namespace fs = std::filesystem;

class ResultFiles : public InFolder {
 protected:
  void SetUp() override {
    InFolder::SetUp();
    fs::create_directories(folder / "out");
    Tensor<double> x(Shape{6, 4});
    Random random(1);
    for (double& value : x.span()) value = random.normal();
    write_npy<double>(at("x.npy"), x.view());
  }

  /// Runs the program in a process of its own, killed in front of the change of a name that follows `names`
  /// others, and with files of at most `file_bytes` (0: of any size). Returns whether it was killed;
  /// otherwise its code and messages are in `code` and `err`.
  bool killed(const std::vector<std::string>& words, long names, std::size_t file_bytes = 0) {
    const pid_t pid = fork();
    if (pid == 0) {
      std::signal(SIGXFSZ, SIG_IGN);
      const int log = open(at("log").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      if (file_bytes != 0) {
        const rlimit limit{file_bytes, file_bytes};
        setrlimit(RLIMIT_FSIZE, &limit);
      }
      names_left = names;
      const Outcome outcome = run(words);
      names_left = -1;
      if (write(log, outcome.err.data(), outcome.err.size()) < 0) _exit(126);
      _exit(outcome.code);
    }
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    err = bytes_of(at("log"));
    code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  }

  std::vector<std::string> kernel(const std::vector<std::string>& more) const {
    std::vector<std::string> words = {"kernel", "--quiet",      "--threads", "1",
                                      "--data", at("x.npy"),    "--model",   "dense(3) relu dense(1)",
                                      "--out",  at("out/k.npy")};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  /// Names and bytes of a folder; of .json files what makes the result, without the time it took.
  std::map<std::string, std::string> contents(const fs::path& of) const {
    std::map<std::string, std::string> found;
    for (const auto& entry : fs::directory_iterator(of)) {
      std::string bytes = bytes_of(entry.path());
      if (entry.path().extension() == ".json") {
        auto json = nlohmann::json::parse(bytes);
        for (const char* name : {"seconds", "preview", "measured", "command"}) json.erase(name);
        bytes = json.dump();
      }
      found[entry.path().filename().string()] = bytes;
    }
    return found;
  }
  int code = -1;
  std::string err;
};

const std::set<std::string> kCompanions = {"k.diagonal.npy", "k.error.npy", "k.per-parameter.npz"};

/// One result takes the place of another, killed in front of every change of a name: whoever finds k.npy
/// finds the whole of one result and nothing of the other, and companions are never without a description
/// that names them.
TEST_F(ResultFiles, NobodyReadsATornResult) {
  const std::vector<std::vector<std::string>> kinds = {
      {"--monte-carlo", "3"}, {"--per-parameter"},          {"--preview"},
      {"--monte-carlo", "4"}, {"--preview", "--seed", "1"}, {"--diagonal"}};
  std::vector<std::map<std::string, std::string>> whole;
  for (const auto& kind : kinds) {
    fs::remove_all(folder / "out");
    fs::create_directories(folder / "out");
    ASSERT_FALSE(killed(kernel(kind), -1));
    ASSERT_EQ(code, kDone) << err;
    whole.push_back(contents(folder / "out"));
  }
  std::size_t kills = 0;
  std::size_t torn = 0;
  for (std::size_t from = 0; from < kinds.size(); ++from) {
    const std::size_t to = (from + 1) % kinds.size();
    for (long names = 0;; ++names) {
      ASSERT_LT(names, 100);
      fs::remove_all(folder / "out");
      fs::create_directories(folder / "out");
      ASSERT_FALSE(killed(kernel(kinds[from]), -1));
      const bool struck = killed(kernel(kinds[to]), names);
      kills += struck ? 1 : 0;
      std::map<std::string, std::string> found = contents(folder / "out");
      // What is under no name of the result: temporary files, the unfinished kernel and its preview.
      std::erase_if(found, [](const auto& file) {
        return file.first.starts_with(".gradgram-") || file.first.ends_with(".partial") ||
               file.first.ends_with(".journal") || file.first.ends_with(".preview");
      });
      if (found.contains("k.npy")) {
        EXPECT_TRUE(found == whole[from] || found == whole[to]) << from << " -> " << to << " at " << names;
      } else {
        ++torn;
      }
      for (const std::string& companion : kCompanions) {
        if (!found.contains(companion)) continue;
        const std::string description = bytes_of(folder / "out" / "k.json");
        EXPECT_NE(description.find('"' + companion + '"'), std::string::npos) << companion << " at " << names;
      }
      // The same command makes it whole, whatever was left.
      ASSERT_FALSE(killed(kernel(kinds[to]), -1));
      EXPECT_EQ(code, kDone) << err;
      found = contents(folder / "out");
      std::erase_if(found, [](const auto& file) { return file.first.starts_with(".gradgram-"); });
      EXPECT_TRUE(found.contains("k.npy") && found["k.npy"] == whole[to]["k.npy"]) << names;
      EXPECT_EQ(found.size(), whole[to].size()) << from << " -> " << to << " at " << names;
      if (!struck || HasFailure()) break;
    }
  }
  EXPECT_GE(kills, 20U);
  EXPECT_GE(torn, 10U);
}

/// By way of a link the result is that of the file: its description and companions, not some of the link's.
TEST_F(ResultFiles, ALinkLeadsToTheWholeResult) {
  fs::create_directories(folder / "disk");
  const auto at_link = [&](std::vector<std::string> more) {
    std::vector<std::string> words = kernel(more);
    words[words.size() - more.size() - 1] = at("out/link.npy");
    return words;
  };
  ASSERT_EQ(run(kernel({"--per-parameter", "--seed", "3"})).code, kDone);
  const auto expected = contents(folder / "out");
  for (const bool there : {true, false}) {
    fs::remove_all(folder / "disk");
    fs::remove_all(folder / "out");
    fs::create_directories(folder / "disk");
    fs::create_directories(folder / "out");
    if (there) {
      auto words = kernel({"--monte-carlo", "3"});
      words[words.size() - 3] = at("disk/k.npy");
      ASSERT_EQ(run(words).code, kDone);
    }
    // A link to a link, and a relative one.
    fs::create_symlink("../disk/second.npy", folder / "out" / "link.npy");
    fs::create_symlink(folder / "disk" / "k.npy", folder / "disk" / "second.npy");
    const Outcome outcome = run(at_link({"--per-parameter", "--seed", "3"}));
    ASSERT_EQ(outcome.code, kDone) << outcome.err;
    EXPECT_NE(outcome.out.find(at("disk/k.json")), std::string::npos) << outcome.out;
    EXPECT_TRUE(fs::is_symlink(folder / "out" / "link.npy"));
    fs::remove(folder / "disk" / "second.npy");
    EXPECT_TRUE(contents(folder / "disk") == expected);
    fs::create_symlink(folder / "disk" / "k.npy", folder / "disk" / "second.npy");
  }
  // A packed kernel is read by way of a link as its description says.
  ASSERT_EQ(run(at_link({"--packed"})).code, kDone);
  EXPECT_EQ(run({"spectrum", at("out/link.npy"), "--quiet"}).code, kDone);
  // What must not be overwritten must not be by way of a link, either.
  fs::create_symlink(folder / "x.npy", folder / "out" / "x-link.npy");
  auto words = kernel({});
  words.back() = at("out/x-link.npy");
  Outcome outcome = run(words);
  EXPECT_EQ(outcome.code, kWrongUsage);
  EXPECT_NE(outcome.err.find("would overwrite --data"), std::string::npos) << outcome.err;
  // A description beside the link would be wrong afterwards.
  std::ofstream(at("out/link.json")) << "{}";
  outcome = run(at_link({}));
  EXPECT_EQ(outcome.code, kWrongUsage);
  EXPECT_NE(outcome.err.find("--out: '" + at("out/link.npy") + "' is a link to"), std::string::npos)
      << outcome.err;
  EXPECT_EQ(bytes_of(at("out/link.json")), "{}");
  // Unless it is the same one.
  fs::remove(folder / "out" / "link.json");
  fs::create_symlink(folder / "disk" / "k.json", folder / "out" / "link.json");
  EXPECT_EQ(run(at_link({})).code, kDone);
  // Links that lead in a circle, and to what is no array.
  fs::create_symlink("b.npy", folder / "out" / "a.npy");
  fs::create_symlink("a.npy", folder / "out" / "b.npy");
  words.back() = at("out/a.npy");
  outcome = run(words);
  EXPECT_EQ(outcome.code, kFailed);
  EXPECT_NE(outcome.err.find("leads nowhere"), std::string::npos) << outcome.err;
  fs::create_symlink("notes.txt", folder / "out" / "c.npy");
  words.back() = at("out/c.npy");
  outcome = run(words);
  EXPECT_EQ(outcome.code, kWrongUsage);
  EXPECT_NE(outcome.err.find("is a link to it"), std::string::npos) << outcome.err;
}

/// The same for a folder: one with a summary.json is whole.
TEST_F(ResultFiles, AFolderWithASummaryIsWhole) {
  const auto spectrum = [&](const char* estimate) {
    return std::vector<std::string>{
        "spectrum", "--matrix-free",          "--quiet",    "--threads", "1",     "--data", at("x.npy"),
        "--model",  "dense(3) relu dense(1)", "--estimate", estimate,    "--out", at("run")};
  };
  const auto files = [&] {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder / "run"))
      names.insert(entry.path().filename().string());
    return names;
  };
  const std::set<std::string> whole_top = {"eigenvectors.npy", "spectrum.csv", "summary.json", "notes.txt"};
  const std::set<std::string> whole_density = {"density.csv", "summary.json", "notes.txt"};
  std::size_t torn = 0;
  for (long names = 0;; ++names) {
    ASSERT_LT(names, 100);
    fs::remove_all(folder / "run");
    ASSERT_FALSE(killed(spectrum("top"), -1));
    ASSERT_EQ(code, kDone) << err;
    std::ofstream(at("run/notes.txt")) << "mine";
    const bool struck = killed(spectrum("density"), names);
    std::set<std::string> found = files();
    EXPECT_EQ(bytes_of(at("run/notes.txt")), "mine");
    std::erase_if(found, [](const std::string& name) {
      return name.starts_with(".gradgram-") || name == "summary.json.partial";
    });
    if (found.contains("summary.json")) {
      EXPECT_TRUE(found == whole_top || found == whole_density) << names;
    } else {
      ++torn;
    }
    // No --force is needed to go on, and nothing of the first is left.
    ASSERT_FALSE(killed(spectrum("density"), -1));
    EXPECT_EQ(code, kDone) << err;
    found = files();
    std::erase_if(found, [](const std::string& name) { return name.starts_with(".gradgram-"); });
    EXPECT_EQ(found, whole_density) << names;
    if (!struck || HasFailure()) break;
  }
  EXPECT_GE(torn, 3U);
}

/// A companion that no description names is of somebody else or of a result that is gone: it does not stand
/// beside a new one.
TEST_F(ResultFiles, ACompanionOfUnknownOriginIsRefusedBeforeTheWork) {
  ASSERT_FALSE(killed(kernel({"--monte-carlo", "3"}), -1));
  fs::remove(at("out/k.json"));
  const std::string error = bytes_of(at("out/k.error.npy"));
  for (const auto& kind : std::vector<std::vector<std::string>>{{}, {"--diagonal"}, {"--monte-carlo", "3"}}) {
    ASSERT_FALSE(killed(kernel(kind), -1));
    EXPECT_EQ(code, kWrongUsage);
    EXPECT_NE(err.find("k.error.npy is there"), std::string::npos) << err;
    EXPECT_NE(err.find("k.json"), std::string::npos) << err;
    EXPECT_EQ(bytes_of(at("out/k.error.npy")), error);
  }
  fs::remove(at("out/k.error.npy"));
  ASSERT_FALSE(killed(kernel({}), -1));
  EXPECT_EQ(code, kDone) << err;
}

/// A disk that takes files of a limited size only stands for one that is full: one line, and nothing that
/// looks like a result.
TEST_F(ResultFiles, AFullDiskLeavesTheEarlierResultAndIsGoneOnFrom) {
  Tensor<double> many(Shape{400, 4});
  Random random(2);
  for (double& value : many.span()) value = random.normal();
  write_npy<double>(at("x.npy"), many.view());
  const std::vector<std::vector<std::string>> kinds = {{},
                                                       {"--infinite", "--parameterization", "ntk"},
                                                       {"--approximate", "16"},
                                                       {"--monte-carlo", "2"},
                                                       {"--per-parameter"},
                                                       {"--preview"}};
  ASSERT_FALSE(killed(kernel({"--diagonal"}), -1));
  ASSERT_EQ(code, kDone) << err;
  const auto before = contents(folder / "out");
  for (const auto& kind : kinds) {
    // 400 x 400 numbers are 640,000 bytes, a .json and the diagonal less than 20,000.
    ASSERT_FALSE(killed(kernel(kind), -1, 100000));
    EXPECT_EQ(code, kFailed) << err;
    EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
    EXPECT_NE(err.find("--out: cannot"), std::string::npos) << err;
    EXPECT_NE(err.find("File too large"), std::string::npos) << err;
    auto after = contents(folder / "out");
    after.erase("k.npy.preview");
    EXPECT_EQ(after.size(), before.size()) << err;
    EXPECT_TRUE(after == before) << err;
  }
  for (const auto& kind : kinds) {
    ASSERT_FALSE(killed(kernel(kind), -1));
    EXPECT_EQ(code, kDone) << err;
    EXPECT_FALSE(fs::exists(at("out/k.npy.preview")));
  }
}

/// A file system of its own that is full, where one may be mounted.
class FullDisk : public ResultFiles {
 protected:
  void SetUp() override {
    ResultFiles::SetUp();
    mounted = mount("tmpfs", at("out").c_str(), "tmpfs", 0, "size=512k") == 0;
    if (!mounted) GTEST_SKIP() << "skipped: no file system can be mounted";
  }
  void TearDown() override {
    if (mounted) {
      EXPECT_EQ(umount(at("out").c_str()), 0);
    }
    ResultFiles::TearDown();
  }
  bool mounted = false;
};

TEST_F(FullDisk, IsToldAndGoneOnFrom) {
  Tensor<double> many(Shape{400, 4});
  Random random(2);
  for (double& value : many.span()) value = random.normal();
  write_npy<double>(at("x.npy"), many.view());
  ASSERT_FALSE(killed(kernel({"--diagonal"}), -1));
  ASSERT_EQ(code, kDone) << err;
  const auto before = contents(folder / "out");
  for (const auto& kind :
       std::vector<std::vector<std::string>>{{}, {"--monte-carlo", "2"}, {"--per-parameter"}}) {
    ASSERT_FALSE(killed(kernel(kind), -1));
    EXPECT_EQ(code, kFailed) << err;
    EXPECT_NE(err.find("--out: cannot"), std::string::npos) << err;
    EXPECT_NE(err.find("No space left on device"), std::string::npos) << err;
    EXPECT_TRUE(contents(folder / "out") == before) << err;
  }
  ASSERT_EQ(mount("tmpfs", at("out").c_str(), "tmpfs", MS_REMOUNT, "size=4m"), 0);
  ASSERT_FALSE(killed(kernel({}), -1));
  EXPECT_EQ(code, kDone) << err;
}

TEST_F(FullDisk, InTheMiddleOfAKernelIsToldAndGoneOnFromToTheSameBytes) {
  constexpr std::size_t kExamples = 1200;
  constexpr std::size_t kPage = 4096;
  if (sysconf(_SC_PAGESIZE) != static_cast<long>(kPage)) GTEST_SKIP() << "skipped: pages of another size";
  Tensor<float> many(Shape{kExamples, 4});
  Random random(2);
  for (float& value : many.span()) value = static_cast<float>(random.normal());
  write_npy<float>(at("x.npy"), many.view());
  // The least budget has the smallest tiles, more of them than a page of the journal has records for.
  ASSERT_FALSE(killed(kernel({"--no-preview", "--memory", "1"}), -1));
  const std::string before = "the least that would do is ";
  ASSERT_NE(err.find(before), std::string::npos) << err;
  const std::size_t least = std::stoull(err.substr(err.find(before) + before.size()));
  const std::vector<std::string> words = kernel({"--no-preview", "--memory", std::to_string(least)});

  // Room for the matrix, which is reserved first, and for one page of the journal.
  const std::size_t matrix = (128 + kExamples * kExamples * sizeof(float) + kPage - 1) / kPage * kPage;
  const std::string size = "size=" + std::to_string(matrix + kPage);
  ASSERT_EQ(mount("tmpfs", at("out").c_str(), "tmpfs", MS_REMOUNT, size.c_str()), 0);
  ASSERT_FALSE(killed(words, -1));
  EXPECT_EQ(code, kFailed) << err;
  EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
  EXPECT_NE(err.find("--out: cannot write"), std::string::npos) << err;
  EXPECT_NE(err.find("No space left on device"), std::string::npos) << err;
  EXPECT_NE(err.find("goes on from there"), std::string::npos) << err;
  EXPECT_FALSE(fs::exists(at("out/k.npy")));
  ASSERT_TRUE(fs::exists(at("out/k.npy.partial")));
  const std::size_t records = fs::file_size(at("out/k.npy.journal"));
  EXPECT_GT(records, kPage - 32) << "the disk was full before any tile";
  // Still full: nothing is lost.
  ASSERT_FALSE(killed(words, -1));
  EXPECT_EQ(code, kFailed) << err;
  EXPECT_EQ(fs::file_size(at("out/k.npy.journal")), records);

  ASSERT_EQ(mount("tmpfs", at("out").c_str(), "tmpfs", MS_REMOUNT, "size=16m"), 0);
  ASSERT_FALSE(killed(words, -1));
  ASSERT_EQ(code, kDone) << err;
  const std::string resumed = bytes_of(at("out/k.npy"));
  fs::remove(at("out/k.npy"));
  ASSERT_FALSE(killed(words, -1));
  ASSERT_EQ(code, kDone) << err;
  EXPECT_TRUE(bytes_of(at("out/k.npy")) == resumed);
}

}  // namespace
}  // namespace gradgram::cli
