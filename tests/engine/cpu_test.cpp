#include "engine/cpu.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "engine/control_group.hpp"
#include "engine/error.hpp"
#include "engine/machine.hpp"

namespace gradgram {
namespace {

std::string message_of(const char* name) {
  try {
    parse_isa(name);
  } catch (const ArgumentError& error) {
    return error.what();
  }
  return "";
}

TEST(Cpu, ListsAvailableSetsWeakestFirst) {
  const auto isas = available_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.front(), Isa::Sse2);
  EXPECT_TRUE(std::is_sorted(isas.begin(), isas.end()));
  for (const Isa isa : isas) EXPECT_EQ(parse_isa(isa_name(isa)), isa);
}

TEST(Cpu, RefusesUnknownSetsAndNamesTheAvailable) {
  for (const char* name : {"mmx", "AVX2", "avx2 ", ""}) {
    const std::string message = message_of(name);
    EXPECT_NE(message.find("'" + std::string(name) + "'"), std::string::npos) << message;
    EXPECT_NE(message.find("available: sse2"), std::string::npos) << message;
  }
}

TEST(Cpu, TheActiveSetIsTheForcedOneOrTheStrongest) {
  const char* const forced = std::getenv("GRADGRAM_ISA");
  if (forced == nullptr) {
    EXPECT_EQ(active_isa(), available_isas().back());
  } else {
    const auto isas = available_isas();
    if (std::none_of(isas.begin(), isas.end(), [&](Isa isa) { return isa_name(isa) == forced; })) {
      GTEST_SKIP() << "GRADGRAM_ISA=" << forced << " does not run on this processor";
    }
    EXPECT_EQ(isa_name(active_isa()), forced);
  }
  EXPECT_EQ(kernels<float>().isa, isa_name(active_isa()));
  EXPECT_EQ(kernels<double>().isa, isa_name(active_isa()));
  EXPECT_EQ(&kernels<float>(), &kernels<float>(active_isa()));
}

TEST(Cpu, TheEnvironmentIsReadOnce) {
  const Isa before = active_isa();
  setenv("GRADGRAM_ISA", "sse2", 1);
  EXPECT_EQ(active_isa(), before);
}

// In a process of its own, because the choice is fixed by the first call.
TEST(CpuDeathTest, ForcingAnUnknownSetIsAnErrorThatNamesTheAvailable) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        setenv("GRADGRAM_ISA", "quantum", 1);
        try {
          active_isa();
        } catch (const ArgumentError& error) {
          std::fputs(error.what(), stderr);
          std::_Exit(3);
        }
        std::_Exit(0);
      },
      ::testing::ExitedWithCode(3), "GRADGRAM_ISA: unknown instruction set 'quantum'; available: sse2");
}

TEST(Cpu, DescribesTheMachine) {
  const CpuInfo info = cpu_info();
  EXPECT_FALSE(info.name.empty());
  EXPECT_GE(info.cores, 1U);
  EXPECT_GT(info.memory_bytes, std::size_t{1} << 24);
}

/// A folder that stands in for the root, with files in it.
class FakeRoot {
 public:
  /// Of this process alone: the same tests run beside each other, with one instruction set and another.
  explicit FakeRoot(const std::string& name)
      : path_(std::filesystem::path(testing::TempDir()) / (name + "-" + std::to_string(getpid()))) {
    std::filesystem::remove_all(path_);
  }
  ~FakeRoot() { std::filesystem::remove_all(path_); }
  FakeRoot(const FakeRoot&) = delete;
  FakeRoot& operator=(const FakeRoot&) = delete;
  void put(const char* file, const char* text) const {
    const std::filesystem::path path = path_ / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

TEST(Cpu, KeepsToTheQuotaOfControlGroupsOfVersion2) {
  EXPECT_EQ(control_group_processors("/nonexistent"), SIZE_MAX);
  const FakeRoot root("gradgram-cgroup2");
  root.put("proc/self/cgroup", "0::/jobs/mine\n");
  root.put("sys/fs/cgroup/jobs/mine/cpu.max", "max 100000\n");
  EXPECT_EQ(control_group_processors(root.path()), SIZE_MAX);
  // The parent's quota counts too; a part of a processor is one.
  root.put("sys/fs/cgroup/jobs/cpu.max", "100000 100000\n");
  EXPECT_EQ(control_group_processors(root.path()), 1U);
  root.put("sys/fs/cgroup/jobs/cpu.max", "100001 100000\n");
  EXPECT_EQ(control_group_processors(root.path()), 2U);
  root.put("sys/fs/cgroup/jobs/mine/cpu.max", "5000 100000\n");
  EXPECT_EQ(control_group_processors(root.path()), 1U);
  root.put("sys/fs/cgroup/jobs/mine/cpu.max", "nonsense\n");
  root.put("sys/fs/cgroup/jobs/cpu.max", "0 0\n");
  EXPECT_EQ(control_group_processors(root.path()), SIZE_MAX);
  root.put("sys/fs/cgroup/jobs/memory.max", "123456789\n");
  EXPECT_EQ(control_group_memory(root.path()), 123456789U);
}

TEST(Cpu, KeepsToTheQuotaOfControlGroupsOfVersion1) {
  const FakeRoot root("gradgram-cgroup1");
  root.put("proc/self/cgroup", "3:cpu,cpuacct:/docker/c0ffee\n5:memory:/docker/c0ffee\n");
  // Inside a container its own group is mounted as the root.
  root.put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  root.put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(control_group_processors(root.path()), SIZE_MAX);
  root.put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n");
  EXPECT_EQ(control_group_processors(root.path()), 1U);
  root.put("sys/fs/cgroup/memory/docker/c0ffee/memory.limit_in_bytes", "99999999\n");
  EXPECT_EQ(control_group_memory(root.path()), 99999999U);
}

TEST(Machine, RatesArePlausible) {
  const Workers workers(2);
  const MachineRates rates = measure_rates(workers);
  EXPECT_EQ(rates.threads, 2U);
  EXPECT_GT(rates.fma_f32, 1e8);
  EXPECT_GT(rates.fma_f64, 1e8);
  EXPECT_GT(rates.dgemm, 1e7);
  EXPECT_GT(rates.bandwidth, 1e7);
  // No product beats the multiply-adds that it consists of; the factor allows for a clock that changed
  // between.
  EXPECT_GT(rates.sgemm, 1e7);
  EXPECT_LT(rates.sgemm, 3 * rates.fma_f32);
  EXPECT_GT(rates.sgemm_all, 1e7);
}

}  // namespace
}  // namespace gradgram
