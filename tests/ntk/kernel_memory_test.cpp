#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <new>
#include <vector>

#include "ntk/planned_kernel.hpp"
#include "tests/ntk/kernel_cases.hpp"

/// Every allocation of this program is counted, so that a plan can be held against what its execution takes.
namespace {

std::atomic<std::size_t> live{0};
std::atomic<std::size_t> peak{0};

void* counted(std::size_t bytes, std::size_t alignment) {
  void* const pointer = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (pointer == nullptr) throw std::bad_alloc();
  const std::size_t now = live += malloc_usable_size(pointer);
  std::size_t before = peak;
  while (now > before && !peak.compare_exchange_weak(before, now)) {
  }
  return pointer;
}

void release(void* pointer) noexcept {
  if (pointer != nullptr) live -= malloc_usable_size(pointer);
  std::free(pointer);
}

}  // namespace

void* operator new(std::size_t bytes) {
  return counted(std::max<std::size_t>(bytes, 16), 16);
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(std::max<std::size_t>(bytes, 16), static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  try {
    return counted(std::max<std::size_t>(bytes, 16), 16);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* pointer) noexcept {
  release(pointer);
}
void operator delete(void* pointer, std::size_t) noexcept {
  release(pointer);
}
void operator delete(void* pointer, std::align_val_t) noexcept {
  release(pointer);
}
void operator delete(void* pointer, std::size_t, std::align_val_t) noexcept {
  release(pointer);
}

namespace gradgram::ntk {
namespace {

TEST(KernelMemory, ThePlanBoundsWhatIsTaken) {
  const kernel_cases::Case c{"cnn",
                             "conv(16,3) relu maxpool(2) conv(24,3) relu gap dense(40) tanh dense(2)",
                             {12, 12, 3},
                             models::Parameterization::Standard,
                             {}};
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 150, 1);
  const Workers workers(2);
  // What the plan counts for BLAS is not allocated through operator new, inputs and weights are there
  // already.
  const std::size_t elsewhere = workers.count() * (std::size_t{8} << 20) + x.size() * sizeof(float) +
                                module->parameters().size() * sizeof(float);
  KernelOptions options;
  KernelTimings timings;
  options.timings = &timings;
  for (const Reduce reduce : {Reduce::TraceMean, Reduce::Full}) {
    options.reduce = reduce;
    options.memory = 0;
    const std::size_t roomy = kernel<float>(*module, x, options, workers).planned_bytes;
    for (const std::size_t cut : {0, 1, 3, 4}) {
      // Spilled factors are the disk's.
      options.spill = cut == 4 ? Spill::Always : Spill::Never;
      options.scratch = testing::TempDir();
      options.memory = roomy - std::min<std::size_t>(cut, 3) * (roomy - elsewhere) / 4;
      const std::size_t before = live;
      peak = before;
      const auto k = kernel<float>(*module, x, options, workers);
      const std::size_t taken = peak - before;
      if (cut >= 3) {
        EXPECT_LT(k.block_examples, 150u);
      }
      EXPECT_EQ(timings.spilled_bytes != 0, cut == 4);
      // Bookkeeping (names, schedules, tasks) is not in the plan: 256 KiB.
      EXPECT_LE(taken + elsewhere, k.planned_bytes + (std::size_t{1} << 18))
          << reduce_name(reduce, 0) << " " << cut;
      // Negative control: the count sees the factors, most of what the plan is about.
      EXPECT_GT(taken, k.values.size() * sizeof(float) + k.block_examples * 4000 * sizeof(float));
    }
  }
}

/// Kept forward passes of small images: their pieces are smaller than cache lines, their lists are not.
TEST(KernelMemory, KeptPassesTakeNoMoreThanTheyHold) {
  const kernel_cases::Case c{"small",
                             "conv(8,3) relu maxpool(4) flatten dense(10)",
                             {6, 6, 1},
                             models::Parameterization::Standard,
                             {}};
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 20000, 1);
  const TensorView<const float> versus = x.view().slice(0, 2);
  const Workers workers(2);
  KernelOptions options;
  Plan plan = plan_for<float>(*module, x.view(), &versus, options, 2);
  plan.packed = true;
  plan.resident = 20000;
  plan.streamed = 2;
  plan.round_seeds = 1;
  for (const std::size_t block : {16, 64}) {
    plan.tape_block = block;
    std::size_t taken[2], counted[2];
    for (const bool keeps : {false, true}) {
      plan.keeps_passes = keeps;
      counted[keeps ? 1 : 0] = plan.total_bytes();
      const std::size_t before = live;
      peak = before;
      planned_kernel<float>(*module, x.view(), &versus, options, plan, workers);
      taken[keeps ? 1 : 0] = peak - before;
    }
    const std::size_t passes = counted[1] - counted[0];
    EXPECT_LE(taken[1] - taken[0], passes + (std::size_t{1} << 18)) << block;
    EXPECT_GT(taken[1] - taken[0], passes - passes / 10) << block;
  }
}

std::size_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::size_t pages = 0;
  file >> pages >> pages;
  return pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

/// Has all tiles, or all but one, and sees what the system has given when that is put.
class Store final : public TileStore {
 public:
  explicit Store(bool has_most) : has_most_(has_most) {}
  bool has(const TilePlace& place) const override {
    return has_most_ && (place.row != 560 || place.column != 80);
  }
  void put(const PlacedTile& tile, std::size_t) override {
    ++tiles;
    if (tile.place.row != 560 || tile.place.column != 80) return;
    resident = resident_bytes();
    tile.each_entry<float>(
        [&](std::size_t, std::size_t, std::size_t, std::size_t, float value) { entries.push_back(value); });
  }
  std::size_t tiles = 0, resident = 0;
  std::vector<float> entries;  ///< of that one

 private:
  bool has_most_;
};

/// A kernel in a file that goes on with a few missing tiles.
TEST(KernelMemory, MemoryComesForWhatMissingTilesNeed) {
  const kernel_cases::Case c{
      "cnn", "conv(64,3) gap dense(1)", {4, 4, 64}, models::Parameterization::Standard, {}};
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 600, 1);
  const Workers workers(1);
  KernelOptions options;
  options.memory = std::size_t{1} << 30;
  options.ways = {{"0.weight", Way::Materialize}};
  Plan plan = plan_for<float>(*module, x.view(), nullptr, options, 1);
  plan.tile = 40;
  plan.tape_block = 8;
  for (const bool packed : {true, false}) {
    // All examples at once, and blocks that a stream meets.
    for (const std::size_t resident : {600, 480}) {
      plan.packed = packed;
      plan.resident = resident;
      plan.streamed = resident == 600 ? 0 : 120;
      const std::size_t factors = plan.factor_bytes(resident);
      Store one(true);
      const std::size_t before = resident_bytes();
      planned_tiles<float>(*module, x.view(), nullptr, options, plan, workers, one);
      EXPECT_EQ(one.tiles, 1u);
      EXPECT_LT(one.resident, before + factors / 2) << packed << " " << resident;
      Store all(false);
      const std::size_t again = resident_bytes();
      planned_tiles<float>(*module, x.view(), nullptr, options, plan, workers, all);
      // Negative control, as much as is not still there from before.
      EXPECT_GT(all.resident, again + factors * 3 / 4) << packed << " " << resident;
      EXPECT_EQ(one.entries, all.entries);
      EXPECT_EQ(one.entries.size(), 1600u);
    }
  }
}

/// A list of the steps between all pairs of blocks would take 3 MB here.
TEST(KernelMemory, BlocksOfSingleExamplesTakeNoMoreThanTheyHold) {
  const kernel_cases::Case c{"mlp", "dense(3) tanh dense(1)", {5}, models::Parameterization::Standard, {}};
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 400, 1);
  const Workers workers(1);
  KernelOptions options;
  const auto expected = kernel<float>(*module, x, options, workers);
  Plan plan = plan_for<float>(*module, x.view(), nullptr, options, 1);
  plan.resident = plan.streamed = plan.tile = plan.tape_block = 1;
  const std::size_t elsewhere = kBlasBytes + plan.fixed_bytes;
  const std::size_t before = live;
  peak = before;
  const auto k = planned_kernel<float>(*module, x.view(), nullptr, options, plan, workers);
  EXPECT_LE(peak - before + elsewhere, k.planned_bytes + (std::size_t{1} << 18));
  EXPECT_TRUE(std::equal(k.values.span().begin(), k.values.span().end(), expected.values.span().begin()));
}

}  // namespace
}  // namespace gradgram::ntk
