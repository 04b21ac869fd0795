#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "engine/file.hpp"
#include "tests/fuzz/readers.hpp"
#include "tests/source_root.hpp"

namespace gradgram::fuzz {
namespace {

namespace fs = std::filesystem;

/// Every file of the corpus through the function that the fuzzer calls: the files named good... must be
/// taken, those that a fuzzer found (crash-..., oom-...) need only end well, all others must be refused.
void replay(const std::string& format, bool (*read)(std::span<const std::byte>)) {
  const fs::path folder = source_root() / "tests" / "fuzz" / "corpus" / format;
  std::size_t good = 0;
  std::size_t broken = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const bool taken = read(read_file(entry.path()));
    if (name.starts_with("good")) {
      EXPECT_TRUE(taken) << entry.path();
      ++good;
    } else if (!name.starts_with("crash-") && !name.starts_with("oom-") && !name.starts_with("slow-")) {
      EXPECT_FALSE(taken) << entry.path();
      ++broken;
    }
  }
  EXPECT_GE(good, 2U);
  EXPECT_GE(broken, 4U);
}

TEST(Corpus, Idx) {
  replay("idx", idx);
}
TEST(Corpus, Cifar10) {
  replay("cifar10", cifar10);
}
TEST(Corpus, Csv) {
  replay("csv", csv);
}
TEST(Corpus, Npy) {
  replay("npy", npy);
}
TEST(Corpus, Npz) {
  replay("npz", npz);
}

}  // namespace
}  // namespace gradgram::fuzz
