#include "engine/memory_account.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "engine/error.hpp"

namespace gradgram {
namespace {

TEST(MemoryAccount, KnowsTheLeastOfAllPhases) {
  MemoryAccount account("study", 100);
  EXPECT_EQ(account.phase("reading", 90), 100);
  account.hold(30);
  EXPECT_EQ(account.phase("the kernel", 70), 70);
  account.hold(20);
  account.release(30);
  EXPECT_EQ(account.held(), 20);
  EXPECT_EQ(account.phase("the end", 10), 80);
  EXPECT_EQ(account.least(), 100);
  EXPECT_NO_THROW(account.check());
}

TEST(MemoryAccount, ARefusalNamesThePhaseAndTheLeastThatDoes) {
  const auto walk = [](std::size_t budget) {
    MemoryAccount account("study", budget);
    account.phase("reading", 90);
    account.hold(30);
    account.phase("the kernel", 71);
    account.check();
  };
  try {
    walk(100);
    ADD_FAILURE() << "100 bytes sufficed";
  } catch (const BudgetError& error) {
    EXPECT_EQ(
        std::string(error.what()),
        "study: the memory budget (100 bytes) cannot hold the kernel; the least that would do is 101 bytes, "
        "of which 30 are held beside it");
  }
  EXPECT_NO_THROW(walk(101));
}

TEST(MemoryAccount, APhaseIsNeverGivenLessThanItNeeds) {
  MemoryAccount account("study", 10);
  account.hold(30);
  EXPECT_EQ(account.phase("the kernel", 7), 7);
  EXPECT_EQ(account.least(), 37);
  EXPECT_THROW(account.check(), BudgetError);
}

TEST(MemoryAccount, SumsDoNotWrapAround) {
  MemoryAccount account("study", 10);
  account.hold(std::numeric_limits<std::size_t>::max() - 5);
  EXPECT_THROW(account.hold(6), ShapeError);
  EXPECT_THROW(account.phase("more", 6), ShapeError);
}

}  // namespace
}  // namespace gradgram
