#include "engine/arena.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <fstream>
#include <span>
#include <stop_token>
#include <string>

#include "engine/error.hpp"
#include "engine/parallel.hpp"

namespace gradgram {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

/// Of this process, in bytes; 0 where the system does not tell.
std::size_t resident() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != "VmRSS:") continue;
    std::size_t kib = 0;
    status >> kib;
    return kib << 10;
  }
  return 0;
}

TEST(Arena, CommittingChangesNothingThatStandsInIt) {
  const Workers workers(2);
  Arena arena(kMiB);
  arena.commit(workers);  // of nothing
  for (const std::size_t bytes : {std::size_t{1}, 3 * kMiB + 17, 9 * kMiB + 64, 67 * kMiB + 1}) {
    auto* const memory = static_cast<unsigned char*>(arena.allocate(bytes));
    const auto expected = [](std::size_t i) { return static_cast<unsigned char>(i * 2654435761U >> 13); };
    for (std::size_t i = 0; i < bytes; ++i) memory[i] = expected(i);
    arena.commit(workers);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < bytes; ++i) wrong += memory[i] != expected(i);
    EXPECT_EQ(wrong, 0U) << bytes << " bytes";
  }
}

TEST(Arena, CommittingSuppliesMemory) {
  constexpr std::size_t kUsed = 64 * kMiB;
  const std::size_t before = resident();
  if (before == 0) GTEST_SKIP() << "skipped: the system does not tell resident memory";
  Arena arena(kUsed);
  arena.allocate(kUsed);
  arena.commit(Workers(2));
  // Slow pages are left to their first use, so that less than all may have come.
  EXPECT_GE(resident(), before + kUsed / (2 * kMiB) * 4096);
}

TEST(Arena, CommittingStopsWhenItIsTold) {
  Arena arena(128 * kMiB);
  arena.allocate(128 * kMiB);
  std::stop_source source;
  source.request_stop();
  const std::size_t before = resident();
  EXPECT_THROW(arena.commit(Workers(2), source.get_token()), Cancelled);
  EXPECT_LT(resident(), before + 80 * kMiB);
}

}  // namespace
}  // namespace gradgram
