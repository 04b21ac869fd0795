#include "ntk/spill.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "engine/bf16.hpp"
#include "engine/error.hpp"
#include "ntk/cost.hpp"
#include "ntk/factors.hpp"
#include "ntk/kernel_file.hpp"
#include "ntk/planned_kernel.hpp"
#include "tests/file_bytes.hpp"
#include "tests/ntk/kernel_cases.hpp"

/// A disk that fails on order: the call of that number from now on, 0 for none.
namespace {
std::atomic<long> failing_write{0}, failing_read{0};
std::atomic<bool> ends_early{false};  ///< the failing read finds the end of the file
std::atomic<bool> cannot_reserve{false};
std::atomic<std::size_t> written{0}, read_back{0};

bool strikes(std::atomic<long>& counter) {
  if (counter.load(std::memory_order_relaxed) == 0) return false;
  return counter.fetch_sub(1) == 1;
}
}  // namespace

/// In the place of the system's.
extern "C" ssize_t pwrite(int descriptor, const void* data, std::size_t bytes, off_t offset) {
  if (strikes(failing_write)) {
    errno = ENOSPC;
    return -1;
  }
  written += bytes;
  return syscall(SYS_pwrite64, descriptor, data, bytes, offset);
}
extern "C" ssize_t pread(int descriptor, void* data, std::size_t bytes, off_t offset) {
  if (strikes(failing_read)) {
    if (ends_early) return 0;
    errno = EIO;
    return -1;
  }
  read_back += bytes;
  return syscall(SYS_pread64, descriptor, data, bytes, offset);
}
extern "C" int fallocate(int descriptor, int mode, off_t offset, off_t bytes) {
  if (cannot_reserve) {
    errno = ENOSPC;
    return -1;
  }
  return static_cast<int>(syscall(SYS_fallocate, descriptor, mode, offset, bytes));
}

namespace gradgram::ntk {
namespace {

namespace fs = std::filesystem;
using kernel_cases::Case;

std::ptrdiff_t open_files() {
  return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
}

template <class T>
bool same_bits(const Tensor<T>& a, const Tensor<T>& b) {
  return a.shape() == b.shape() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// Passes the module on and counts how often each example goes through it (by its first number).
class Counted final : public Module<float> {
 public:
  explicit Counted(const Module<float>& module) : module_(module) {}
  Var forward(Tape<float>& tape, Var x) const override {
    const TensorView<const float> values = tape.value(x);
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < values.shape()[0]; ++i) ++passed[values.slice(i).data()[0]];
    return module_.forward(tape, x);
  }
  Shape input_shape() const override { return module_.input_shape(); }
  std::size_t outputs() const override { return module_.outputs(); }
  const ParameterSet<float>& parameters() const override { return module_.parameters(); }
  ParameterSet<float>& parameters() override { throw Error("not here"); }
  std::size_t passes() const {
    std::size_t sum = 0;
    for (const auto& [example, times] : passed) sum += times;
    return sum;
  }
  mutable std::map<float, std::size_t> passed;

 private:
  const Module<float>& module_;
  mutable std::mutex mutex_;
};

class SpillTest : public testing::Test {
 protected:
  void SetUp() override {
    folder = fs::path(testing::TempDir()) / ("gradgram-spill-" + std::to_string(getpid()) + "-" +
                                             testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder);
    fs::create_directories(folder);
    files = open_files();
  }
  void TearDown() override {
    failing_write = failing_read = 0;
    ends_early = cannot_reserve = false;
    EXPECT_EQ(open_files(), files);
    fs::remove_all(folder);
  }
  bool scratch_is_empty() const { return fs::is_empty(folder); }

  fs::path folder;
  std::ptrdiff_t files = 0;
};

struct Sizes {
  std::size_t resident, streamed, tape_block, tile;
};

template <class T>
void same_bits_spilled(const fs::path& folder, const Case& c, KernelOptions options, std::size_t n,
                       std::optional<Way> way = std::nullopt) {
  SCOPED_TRACE(c.name + " " + reduce_name(options.reduce, options.output) + " n = " + std::to_string(n));
  const auto module = kernel_cases::module_of<T>(c);
  const auto x = kernel_cases::inputs_of<T>(c.input, n, 1);
  const auto versus = kernel_cases::inputs_of<T>(c.input, 19, 2);
  const auto labels = kernel_cases::labels_of(n, module->outputs(), 3);
  const auto versus_labels = kernel_cases::labels_of(19, module->outputs(), 4);
  options.labels = labels;
  options.versus_labels = versus_labels;
  options.memory = std::size_t{1} << 30;
  options.scratch = folder;
  if (way) {
    const Plan plan = plan_for<T>(*module, x.view(), nullptr, options, 1);
    const std::vector<bool> shared = shared_uses(plan.uses, plan.parameter_sizes.size());
    for (std::size_t u = 0; u < plan.uses.size(); ++u) {
      const std::vector<Way> possible = possible_ways(plan.uses[u], shared[u]);
      if (std::find(possible.begin(), possible.end(), *way) == possible.end()) continue;
      options.ways.emplace_back(plan.parameter_names[plan.uses[u].weight], *way);
    }
  }
  bool noticed = false;
  options.notice = [&](const std::string&) { noticed = true; };
  KernelTimings timings;
  options.timings = &timings;
  const TensorView<const T> other = versus.view();
  for (const TensorView<const T>* second : {static_cast<const TensorView<const T>*>(nullptr), &other}) {
    const Plan easy = [&] {
      KernelOptions spilling = options;
      spilling.spill = Spill::Always;
      return plan_for<T>(*module, x.view(), second, spilling, 2);
    }();
    ASSERT_EQ(easy.reuse(), Reuse::Kept);
    const auto kept = planned_kernel<T>(*module, x.view(), second, options, easy, Workers(1));
    for (const Sizes& sizes :
         {Sizes{7, 3, 5, 2}, {13, 61, 4, 31}, {1, 1, 1, 1}, {11, 4, 64, 64}, {50, 25, 8, 16}}) {
      if (sizes.resident == 1 && n > 13) continue;  // thousands of blocks
      for (const bool packed : {true, false}) {
        if (packed && options.bf16) continue;
        Plan plan = easy;
        plan.resident = sizes.resident;
        plan.streamed = sizes.streamed;
        plan.tape_block = sizes.tape_block;
        plan.tile = sizes.tile;
        plan.packed = packed;
        plan.spilled = true;
        if (plan.blocks() == 1) continue;
        ASSERT_EQ(plan.reuse(), Reuse::Spilled);
        for (const std::size_t threads : {1, 2, 7}) {
          if (threads != 2 && sizes.tile != 2) continue;
          written = read_back = 0;
          const auto spilled = planned_kernel<T>(*module, x.view(), second, options, plan, Workers(threads));
          EXPECT_TRUE(same_bits<T>(kept.values, spilled.values))
              << sizes.resident << " " << sizes.tile << " " << packed << " " << threads;
          for (std::size_t p = 0; p < kept.per_parameter.size(); ++p) {
            EXPECT_TRUE(same_bits<T>(kept.per_parameter[p], spilled.per_parameter[p])) << p;
          }
          // The plan knows every byte.
          if (!options.per_parameter) {
            EXPECT_EQ(written, plan.spilled_bytes());
            EXPECT_EQ(read_back, plan.spilled_reads() * plan.factor_bytes(plan.streamed));
          }
          EXPECT_LE(written, plan.spilled_bytes());
          EXPECT_EQ(timings.spilled_bytes, plan.spilled_bytes());
          EXPECT_GT(plan.spilled_bytes(), 0U);
        }
      }
    }
  }
  EXPECT_FALSE(noticed);
}

TEST_F(SpillTest, SameBitsForAnyBlocksThreadsAndLayouts) {
  KernelOptions options;
  for (const Case& c : kernel_cases::all()) {
    options.reduce = Reduce::TraceMean;
    same_bits_spilled<float>(folder, c, options, 61);
    same_bits_spilled<double>(folder, c, options, 13);
    // Rows of several outputs: blocks begin within groups of packed ones.
    options.reduce = Reduce::Full;
    same_bits_spilled<float>(folder, c, options, 29);
  }
  options.reduce = Reduce::TraceMean;
  same_bits_spilled<float>(folder, kernel_cases::all()[0], options, 293);
  for (const Way way : {Way::Materialize, Way::PositionGram}) {
    for (const std::size_t which : {1, 2, 6}) {
      options.reduce = Reduce::Full;
      same_bits_spilled<float>(folder, kernel_cases::all()[which], options, 29, way);
      options.reduce = Reduce::TraceSum;
      same_bits_spilled<double>(folder, kernel_cases::all()[which], options, 31, way);
    }
  }
  options.reduce = Reduce::TrueClass;
  same_bits_spilled<float>(folder, kernel_cases::all()[2], options, 53);
  options.reduce = Reduce::TraceMean;
  options.per_parameter = true;
  same_bits_spilled<float>(folder, kernel_cases::all()[2], options, 31);
  same_bits_spilled<double>(folder, kernel_cases::all()[4], options, 17);
  options.per_parameter = false;
  if (bf16_kernels() != nullptr) {
    options.bf16 = true;
    same_bits_spilled<float>(folder, kernel_cases::all()[2], options, 53);
  }
  EXPECT_TRUE(scratch_is_empty());
}

/// A network with many examples in few bytes.
struct Small {
  std::unique_ptr<Module<float>> module = kernel_cases::module_of<float>(kernel_cases::all()[2]);
  Tensor<float> x = kernel_cases::inputs_of<float>(kernel_cases::all()[2].input, 47, 1);
  Tensor<float> versus = kernel_cases::inputs_of<float>(kernel_cases::all()[2].input, 23, 2);
  KernelOptions options;
  Workers workers{2};

  explicit Small(const fs::path& folder) {
    options.spill = Spill::Always;
    options.scratch = folder;
  }
  Plan plan(const TensorView<const float>* second = nullptr) const {
    Plan plan = plan_for<float>(*module, x.view(), second, options, 2);
    plan.resident = 12;
    plan.streamed = 5;
    plan.tile = 3;
    plan.tape_block = 4;
    plan.spilled = true;
    return plan;
  }
  Tensor<float> run(const Plan& plan, const TensorView<const float>* second = nullptr) const {
    return planned_kernel<float>(*module, x.view(), second, options, plan, workers).values;
  }
};

TEST_F(SpillTest, EveryExampleIsPassedOnceAndThePriceKnowsIt) {
  Small small(folder);
  const Counted counted(*small.module);
  const TensorView<const float> other = small.versus.view();
  for (const TensorView<const float>* second :
       {static_cast<const TensorView<const float>*>(nullptr), &other}) {
    Plan plan = small.plan(second);
    for (const bool spilled : {true, false}) {
      plan.spilled = spilled;
      counted.passed.clear();
      std::vector<SpillWork> told;
      small.options.spilling = [&](const SpillWork& work) { told.push_back(work); };
      planned_kernel<float>(counted, small.x.view(), second, small.options, plan, small.workers);
      const PlanCost cost = plan_cost(plan);
      EXPECT_EQ(told.size(), spilled ? 1 + plan.spilled_blocks() + plan.spilled_reads() : 0);
      for (std::size_t i = 0; i < told.size(); ++i) {
        EXPECT_EQ(told[i].to_write, plan.spilled_bytes());
        EXPECT_EQ(told[i].to_read, plan.spilled_reads() * plan.factor_bytes(5));
        EXPECT_EQ(told[i].written + told[i].read, i * plan.factor_bytes(5));
      }
      if (spilled) {
        EXPECT_EQ(told.back().written, told.back().to_write);
        EXPECT_EQ(told.back().read, told.back().to_read);
      }
      const double examples = second == nullptr ? 47 : 47 + 23;
      EXPECT_NEAR(cost.passed * examples, static_cast<double>(counted.passes()), 1e-6);
      if (spilled) {
        EXPECT_EQ(cost.passed, 1);
        EXPECT_EQ(counted.passed.size(), counted.passes());
        EXPECT_DOUBLE_EQ(cost.writing,
                         static_cast<double>(plan.spilled_bytes()) / KernelRates().scratch.write);
        EXPECT_DOUBLE_EQ(cost.reading, static_cast<double>(plan.spilled_reads() * plan.factor_bytes(5)) /
                                           KernelRates().scratch.read);
      } else {
        EXPECT_GT(cost.passed, 1.5);
        EXPECT_EQ(cost.writing + cost.reading, 0);
        EXPECT_EQ(plan.spilled_bytes(), 0U);
      }
    }
  }
}

TEST_F(SpillTest, ThePriceKnowsTheTiles) {
  class Store final : public TileStore {
   public:
    void put(const PlacedTile&, std::size_t) override { ++tiles; }
    std::atomic<std::size_t> tiles{0};
  };
  const Small small(folder);
  const TensorView<const float> other = small.versus.view();
  for (const TensorView<const float>* second :
       {static_cast<const TensorView<const float>*>(nullptr), &other}) {
    for (const Sizes& sizes : {Sizes{12, 5, 4, 3}, {10, 5, 4, 5}, {7, 50, 4, 20}, {46, 1, 4, 2}}) {
      Plan plan = small.plan(second);
      plan.resident = sizes.resident;
      plan.streamed = sizes.streamed;
      plan.tile = sizes.tile;
      Store store;
      planned_tiles<float>(*small.module, small.x.view(), second, small.options, plan, small.workers, store);
      EXPECT_EQ(plan_cost(plan).tiles, store.tiles) << sizes.resident;
    }
  }
}

TEST_F(SpillTest, ADiskThatFailsAnywhereCostsTimeAlone) {
  Small small(folder);
  const TensorView<const float> other = small.versus.view();
  for (const TensorView<const float>* second :
       {static_cast<const TensorView<const float>*>(nullptr), &other}) {
    const Plan plan = small.plan(second);
    Plan again = plan;
    again.spilled = false;
    const Tensor<float> expected = small.run(again, second);
    std::vector<std::string> notices;
    small.options.notice = [&](const std::string& text) { notices.push_back(text); };
    std::size_t last = 0, total = 0;
    small.options.progress = [&](std::size_t done, std::size_t of) {
      last = done;
      total = of;
    };
    SpillWork work;
    small.options.spilling = [&](const SpillWork& now) {
      EXPECT_GE(now.written, work.written);
      EXPECT_GE(now.read, work.read);
      EXPECT_LE(now.written, now.to_write);
      EXPECT_LE(now.read, now.to_read);
      work = now;
    };
    const auto expect_told = [&](const char* reason) {
      EXPECT_EQ(work.written, work.to_write);
      EXPECT_EQ(work.read, work.to_read);
      work = {};
      ASSERT_EQ(notices.size(), 1U);
      for (const std::string& part : {folder.string(), std::string(reason), std::string("computed again")}) {
        EXPECT_NE(notices[0].find(part), std::string::npos) << notices[0];
      }
      EXPECT_EQ(last, total);
      notices.clear();
    };
    for (auto* const counter : {&failing_write, &failing_read}) {
      for (const bool ends : {false, true}) {
        if (ends && counter == &failing_write) continue;
        ends_early = ends;
        std::size_t struck = 0;
        for (long k = 1;; ++k) {
          ASSERT_LT(k, 1000);
          *counter = k;
          const Tensor<float> values = small.run(plan, second);
          ASSERT_TRUE(same_bits(expected, values)) << k;
          if (counter->exchange(0) > 0) break;
          ++struck;
          expect_told(counter == &failing_write ? "No space left"
                      : ends                    ? "ends before"
                                                : "Input/output error");
        }
        EXPECT_GE(struck, 3U);
        EXPECT_TRUE(notices.empty());
        EXPECT_EQ(work.to_read, plan.spilled_reads() * plan.factor_bytes(5));
        work = {};
      }
    }
    cannot_reserve = true;
    EXPECT_TRUE(same_bits(expected, small.run(plan, second)));
    cannot_reserve = false;
    expect_told("cannot reserve");
    // Without anybody to tell.
    small.options.notice = {};
    small.options.progress = {};
    failing_write = 2;
    EXPECT_TRUE(same_bits(expected, small.run(plan, second)));
    failing_write = 0;
  }
  EXPECT_TRUE(scratch_is_empty());
}

TEST_F(SpillTest, StopsAndExceptionsLeaveNothing) {
  Small small(folder);
  const Plan plan = small.plan();
  const Tensor<float> expected = small.run(plan);
  std::size_t total = 0;
  bool rising = true;
  std::size_t last = 0;
  small.options.progress = [&](std::size_t done, std::size_t of) {
    rising = rising && done == last + 1 && (total == 0 || total == of);
    last = done;
    total = of;
  };
  small.run(plan);
  EXPECT_TRUE(rising);
  EXPECT_EQ(last, total);
  for (std::size_t k = 1; k < total; k += 3) {
    std::stop_source source;
    small.options.stop = source.get_token();
    small.options.progress = [&](std::size_t done, std::size_t) {
      if (done == k) source.request_stop();
    };
    EXPECT_THROW(small.run(plan), Cancelled) << k;
    small.options.stop = {};
    small.options.progress = [&](std::size_t done, std::size_t) {
      if (done == k) throw std::runtime_error("here");
    };
    EXPECT_THROW(small.run(plan), std::runtime_error) << k;
    ASSERT_EQ(open_files(), files) << k;
  }
  small.options.progress = {};
  // An entry that is no number, behind the first blocks.
  const float before = small.x.data()[40 * small.x.size() / 47];
  small.x.data()[40 * small.x.size() / 47] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(small.run(plan), NumericError);
  small.x.data()[40 * small.x.size() / 47] = before;
  EXPECT_TRUE(same_bits(expected, small.run(plan)));
  EXPECT_TRUE(scratch_is_empty());
}

/// A kernel in a file, of a network whose factors the budget holds a part of.
struct InFile {
  models::Network<float> network{models::parse("conv(16,3) tanh conv(16,3) tanh gap dense(2)", {8, 8, 3}),
                                 {.seed = 1}};
  Tensor<float> x = kernel_cases::inputs_of<float>({8, 8, 3}, 500, 1);
  KernelOptions options;
  KernelDestination destination;
  Workers workers{2};

  explicit InFile(const fs::path& folder) {
    destination.path = folder / "k.npy";
    options.scratch = folder / "scratch";
    fs::create_directories(options.scratch);
    options.spill = Spill::Always;
    options.reduce = Reduce::Full;
    options.ways = {{"0.weight", Way::Materialize}, {"2.weight", Way::Materialize}};
    const Plan roomy = kernel_file_plan<float>(network, x.view(), nullptr, options, 2);
    options.memory = roomy.total_bytes() - roomy.factor_bytes(roomy.resident) * 3 / 4;
  }
  KernelFile run(const Module<float>& module) const {
    return kernel_to_file<float>(module, x.view(), options, destination, workers);
  }
};

TEST_F(SpillTest, AFileGoesOnWithWhateverTilesAreMissing) {
  InFile job(folder);
  const Plan plan = kernel_file_plan<float>(job.network, job.x.view(), nullptr, job.options, 2);
  ASSERT_EQ(plan.reuse(), Reuse::Spilled);
  EXPECT_GE(plan.blocks(), 3U);
  EXPECT_EQ(plan.resident % plan.tile, 0U);
  EXPECT_LE(plan.total_bytes(), job.options.memory);
  job.options.spill = Spill::Never;
  job.run(job.network);
  const std::string expected = bytes_of(job.destination.path);
  job.options.spill = Spill::Always;
  fs::remove(job.destination.path);
  job.run(job.network);
  EXPECT_TRUE(bytes_of(job.destination.path) == expected);
  fs::remove(job.destination.path);
  // Stopped after every so many pieces; spilled in the first call, the second, or both.
  std::size_t stops = 0;
  for (std::size_t k = 15; k < 5000; k += 23) {
    const Spill first = k % 2 == 0 ? Spill::Always : Spill::Never;
    job.options.spill = first;
    std::stop_source source;
    job.options.stop = source.get_token();
    job.options.progress = [&](std::size_t done, std::size_t) {
      if (done == k) source.request_stop();
    };
    bool stopped = false;
    try {
      job.run(job.network);
    } catch (const Cancelled&) {
      stopped = true;
    }
    job.options.stop = {};
    job.options.progress = {};
    if (stopped) {
      ++stops;
      job.options.spill = k % 3 == 0 ? Spill::Never : Spill::Always;
      job.run(job.network);
    }
    ASSERT_TRUE(bytes_of(job.destination.path) == expected) << k;
    fs::remove(job.destination.path);
    if (!stopped) break;
  }
  EXPECT_GE(stops, 3U);
  EXPECT_TRUE(fs::is_empty(job.options.scratch));
}

TEST_F(SpillTest, TheTimeLeftCountsTheDisk) {
  InFile job(folder);
  const auto follow = [&] {
    KernelWork last;
    std::array<std::size_t, kWorkKinds> reports{};
    job.destination.work = [&](const KernelWork& work) {
      for (std::size_t kind = 0; kind < kWorkKinds; ++kind) {
        EXPECT_GE(work.done[kind], last.done[kind]);
        if (work.done[kind] == last.done[kind]) continue;
        ++reports[kind];
        EXPECT_EQ(static_cast<std::size_t>(work.kind) == kind, kind >= 2 || work.kind < WorkKind::Writing);
      }
      last = work;
    };
    job.run(job.network);
    EXPECT_EQ(last.done, last.total);
    for (std::size_t kind = 0; kind < kWorkKinds; ++kind)
      EXPECT_EQ(reports[kind] != 0, last.total[kind] != 0);
    return last;
  };
  const Plan plan = kernel_file_plan<float>(job.network, job.x.view(), nullptr, job.options, 2);
  const PlanCost cost = plan_cost(plan);
  const KernelWork whole = follow();
  // Seconds of two workers, who all wait for the disk.
  EXPECT_NEAR(whole.total[2], 2 * cost.writing, 1e-12 * cost.writing);
  EXPECT_NEAR(whole.total[3], 2 * cost.reading, 1e-12 * cost.reading);
  fs::remove(job.destination.path);
  // Of a file that goes on, what missing tiles need.
  std::stop_source source;
  job.options.stop = source.get_token();
  job.options.progress = [&](std::size_t done, std::size_t total) {
    if (done > 3 * total / 4) source.request_stop();
  };
  job.destination.work = {};
  EXPECT_THROW(job.run(job.network), Cancelled);
  job.options.stop = {};
  job.options.progress = {};
  const KernelWork rest = follow();
  EXPECT_GT(rest.total[3], 0);
  EXPECT_LT(rest.total[3], whole.total[3]);
  fs::remove(job.destination.path);
  job.options.spill = Spill::Never;
  const KernelWork never = follow();
  EXPECT_EQ(never.total[2] + never.total[3], 0);
}

/// A store that has all tiles but some.
class Missing final : public TileStore {
 public:
  explicit Missing(std::vector<std::pair<std::size_t, std::size_t>> missing) : missing_(std::move(missing)) {}
  bool has(const TilePlace& place) const override {
    return std::find(missing_.begin(), missing_.end(), std::pair(place.row, place.column)) == missing_.end();
  }
  void put(const PlacedTile& tile, std::size_t) override {
    std::vector<float> values;
    tile.each_entry<float>(
        [&](std::size_t, std::size_t, std::size_t, std::size_t, float value) { values.push_back(value); });
    const std::lock_guard lock(mutex_);
    tiles[{tile.place.row, tile.place.column}] = values;
  }
  std::map<std::pair<std::size_t, std::size_t>, std::vector<float>> tiles;

 private:
  std::vector<std::pair<std::size_t, std::size_t>> missing_;
  std::mutex mutex_;
};

TEST_F(SpillTest, WhatNoMissingTileNeedsIsNeitherPassedNorWritten) {
  const Small small(folder);
  const Counted counted(*small.module);
  const TensorView<const float> other = small.versus.view();
  for (const TensorView<const float>* second :
       {static_cast<const TensorView<const float>*>(nullptr), &other}) {
    Plan plan = small.plan(second);
    plan.tile = plan.streamed = 4;
    plan.resident = 12;
    Plan again = plan;
    again.spilled = false;
    struct Wanted {
      std::vector<std::pair<std::size_t, std::size_t>> tiles;
      std::size_t blocks_symmetric, blocks_rectangle;  ///< written
    };
    for (const Wanted& wanted : {Wanted{{}, 0, 0},
                                 {{{8, 8}}, 0, 0},
                                 {{{44, 4}}, 1, 0},
                                 {{{16, 4}, {32, 4}, {40, 4}}, 1, 1},
                                 {{{24, 0}, {28, 16}, {44, 16}}, 2, 1}}) {
      Missing spilled(wanted.tiles);
      Missing passed(wanted.tiles);
      counted.passed.clear();
      written = 0;
      planned_tiles<float>(counted, small.x.view(), second, small.options, plan, small.workers, spilled);
      for (const auto& [example, times] : counted.passed) EXPECT_EQ(times, 1U);
      const std::size_t blocks = second == nullptr ? wanted.blocks_symmetric : wanted.blocks_rectangle;
      EXPECT_EQ(written, blocks * plan.factor_bytes(4));
      const std::size_t passes = counted.passes();
      counted.passed.clear();
      planned_tiles<float>(counted, small.x.view(), second, small.options, again, small.workers, passed);
      EXPECT_LE(passes, counted.passes());
      EXPECT_EQ(spilled.tiles, passed.tiles);
      EXPECT_EQ(spilled.tiles.size(), wanted.tiles.size());
    }
  }
}

/// Plans of a deep network whose passes are dear, and of a wide one whose gradients are quickly had again.
struct Planner {
  explicit Planner(const char* text, Shape input, std::size_t outputs, std::size_t n, double missing = 0.75) {
    const models::Network<float> network(models::parse(text, input, {.outputs = outputs}), {.seed = 1});
    profile = ntk::profile<float>(network, kernel_cases::inputs_of<float>(input, 1, 1).view());
    request.rows = request.columns = n;
    request.seeds = outputs;
    request.per_parameter = true;  // without rounds
    request.workers = 2;
    request.rates.scratch = {1e9, 1.4e9};
    request.scratch = {.folder = "somewhere",
                       .free_bytes = std::size_t{1} << 42,
                       .left_bytes = 1,
                       .in_memory = false,
                       .problem = ""};
    request.spill = Spill::Auto;
    request.memory = std::size_t{1} << 40;
    const Plan roomy = plan_kernel(profile, request);
    EXPECT_EQ(roomy.reuse(), Reuse::Kept);
    request.memory =
        roomy.total_bytes() - static_cast<std::size_t>(missing * static_cast<double>(roomy.factor_bytes(n)));
    for (const auto& [weight, way] : roomy.ways()) request.ways.emplace_back(weight, way);
  }
  Plan plan() const { return plan_kernel(profile, request); }
  ModuleProfile profile;
  PlanRequest request;
};

constexpr const char* kDeep =
    "conv(64,3) relu conv(64,3) relu conv(64,3) relu conv(64,3) relu conv(64,3) relu conv(64,3) relu gap "
    "dense(10)";

TEST_F(SpillTest, ItPaysForDearPassesAndNotForCheapOnes) {
  Planner deep(kDeep, {32, 32, 3}, 10, 512);
  const Plan spilled = deep.plan();
  EXPECT_EQ(spilled.reuse(), Reuse::Spilled);
  EXPECT_EQ(spilled.resident % spilled.streamed, 0U);
  EXPECT_LE(spilled.total_bytes(), deep.request.memory);
  Plan again = spilled;
  again.spilled = false;
  EXPECT_LT(plan_cost(spilled).wall, 0.9 * plan_cost(again).wall);
  EXPECT_GE(plan_cost(spilled).wall, plan_cost(spilled).writing + plan_cost(spilled).reading);
  deep.request.spill = Spill::Never;
  const Plan never = deep.plan();
  EXPECT_EQ(never.reuse(), Reuse::Recomputed);
  EXPECT_EQ(never.ways(), spilled.ways());
  // Rates decide.
  deep.request.spill = Spill::Auto;
  deep.request.rates.scratch = {2e7, 2e7};
  EXPECT_EQ(deep.plan().reuse(), Reuse::Recomputed);
  deep.request.spill = Spill::Always;
  EXPECT_EQ(deep.plan().reuse(), Reuse::Spilled);

  Planner wide("dense(2048) relu dense(2048) relu dense(1)", {64}, 1, 4000);
  for (const auto& [weight, way] : wide.request.ways) EXPECT_EQ(way, Way::Outer) << weight;
  wide.request.ways.clear();
  for (const char* weight : {"0.weight", "2.weight", "4.weight"}) {
    wide.request.ways.emplace_back(weight, Way::Materialize);
  }
  wide.request.memory = std::size_t{4} << 30;
  EXPECT_EQ(wide.plan().reuse(), Reuse::Recomputed);
  wide.request.spill = Spill::Always;
  const Plan forced = wide.plan();
  EXPECT_EQ(forced.reuse(), Reuse::Spilled);
  EXPECT_LE(forced.total_bytes(), wide.request.memory);
}

/// Whether the disk is quick or full must not show in the bits.
TEST_F(SpillTest, TheWaysDoNotDependOnTheDisk) {
  Planner deep(kDeep, {32, 32, 3}, 10, 512);
  deep.request.ways.clear();
  for (const std::size_t part : {1, 2, 4, 8}) {
    Planner one = deep;
    one.request.memory = deep.request.memory / part;
    one.request.spill = Spill::Never;
    const Plan never = one.plan();
    for (const Spill spill : {Spill::Auto, Spill::Always}) {
      for (const double rate : {1e6, 1e9, 1e12}) {
        one.request.spill = spill;
        one.request.rates.scratch = {rate, rate};
        EXPECT_EQ(one.plan().ways(), never.ways());
      }
    }
  }
}

TEST_F(SpillTest, ADiskWithoutRoomIsLeftAloneOrRefused) {
  Planner deep(kDeep, {32, 32, 3}, 10, 512);
  const std::size_t needed = deep.plan().spilled_bytes();
  ASSERT_GT(needed, 0U);
  ScratchSpace& scratch = deep.request.scratch;
  scratch.left_bytes = 1000;
  scratch.free_bytes = needed + 1000;
  EXPECT_EQ(deep.plan().reuse(), Reuse::Spilled);
  scratch.free_bytes = needed + 999;
  EXPECT_EQ(deep.plan().reuse(), Reuse::Recomputed);
  const auto refused = [&] {
    try {
      deep.plan();
    } catch (const ArgumentError& error) {
      const std::string text = error.what();
      return text.find("somewhere") != std::string::npos &&
             text.find(std::to_string(needed)) != std::string::npos &&
             text.find(std::to_string(needed + 999)) != std::string::npos;
    }
    return false;
  };
  deep.request.scratch_named = true;
  EXPECT_TRUE(refused());
  deep.request.scratch_named = false;
  deep.request.spill = Spill::Always;
  EXPECT_TRUE(refused());
  // A folder in memory is no disk, unless it is meant.
  scratch.free_bytes = needed + 1000;
  scratch.in_memory = true;
  EXPECT_EQ(deep.plan().reuse(), Reuse::Spilled);
  deep.request.spill = Spill::Auto;
  EXPECT_EQ(deep.plan().reuse(), Reuse::Recomputed);
  deep.request.scratch_named = true;
  EXPECT_EQ(deep.plan().reuse(), Reuse::Spilled);
}

TEST_F(SpillTest, ItReplacesRoundsWhereThatIsForced) {
  Planner deep(kDeep, {32, 32, 3}, 10, 256, 0.5);
  deep.request.per_parameter = false;
  deep.request.spill = Spill::Never;
  const Plan rounds = deep.plan();
  ASSERT_GT(rounds.rounds(), 1U);
  deep.request.spill = Spill::Always;
  const Plan spilled = deep.plan();
  EXPECT_EQ(spilled.rounds(), 1U);
  EXPECT_EQ(spilled.reuse(), Reuse::Spilled);
  EXPECT_EQ(spilled.resident % spilled.streamed, 0U);
  EXPECT_LE(spilled.total_bytes(), deep.request.memory);
  // Only forward passes are repeated in rounds.
  deep.request.spill = Spill::Auto;
  EXPECT_EQ(deep.plan().rounds(), rounds.rounds());
}

TEST_F(SpillTest, AFolderThatCannotBeUsedIsRefusedWhereItIsMeant) {
  Small small(folder / "absent");
  for (const Spill spill : {Spill::Auto, Spill::Always}) {
    small.options.spill = spill;
    try {
      kernel<float>(*small.module, small.x, small.options, small.workers);
      ADD_FAILURE();
    } catch (const ArgumentError& error) {
      EXPECT_NE(std::string(error.what()).find((folder / "absent").string()), std::string::npos)
          << error.what();
    }
  }
  small.options.spill = Spill::Never;
  EXPECT_NO_THROW(kernel<float>(*small.module, small.x, small.options, small.workers));
}

}  // namespace
}  // namespace gradgram::ntk
