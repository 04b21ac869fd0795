#include "ntk/kernel_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "engine/npy.hpp"
#include "engine/random.hpp"
#include "ntk/packed.hpp"
#include "ntk/planned_kernel.hpp"
#include "tests/file_bytes.hpp"
#include "tests/ntk/kernel_cases.hpp"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

/// Faults on order: the call of that number from now on fails, 0 for none. Memory is short once; a disk stays
/// full.
namespace {
std::atomic<long> failing_allocation{0};
std::atomic<long> failing_write{0};
std::atomic<bool> disk_full{false};
std::atomic<bool> torn_write{false};  ///< the failing write writes half of its bytes first
std::atomic<std::size_t> largest_allocation{0};

bool counts_down_to_zero(std::atomic<long>& counter) {
  if (counter.load(std::memory_order_relaxed) == 0) return false;
  return counter.fetch_sub(1) == 1;
}

void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  if (counts_down_to_zero(failing_allocation)) return nullptr;
  bytes = std::max<std::size_t>(bytes, 1);
  std::size_t largest = largest_allocation.load(std::memory_order_relaxed);
  while (bytes > largest && !largest_allocation.compare_exchange_weak(largest, bytes)) {
  }
  if (alignment == 0) return std::malloc(bytes);
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  void* const pointer = allocate(bytes, alignment);
  if (pointer == nullptr) throw std::bad_alloc();
  return pointer;
}

/// What is left of `bytes` for the disk; -1 for an error.
ssize_t room_for(std::size_t bytes) {
  if (disk_full) return -1;
  if (!counts_down_to_zero(failing_write)) return static_cast<ssize_t>(bytes);
  disk_full = true;
  return torn_write && bytes > 1 ? static_cast<ssize_t>(bytes / 2) : -1;
}
}  // namespace

[[gnu::noinline]] void* operator new(std::size_t bytes) {
  return allocate_or_throw(bytes, 0);
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate_or_throw(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return allocate(bytes, 0);
}
[[gnu::noinline]] void operator delete(void* pointer) noexcept {
  std::free(pointer);
}
[[gnu::noinline]] void operator delete(void* pointer, std::size_t) noexcept {
  std::free(pointer);
}
[[gnu::noinline]] void operator delete(void* pointer, std::align_val_t) noexcept {
  std::free(pointer);
}
[[gnu::noinline]] void operator delete(void* pointer, std::size_t, std::align_val_t) noexcept {
  std::free(pointer);
}

/// In the place of the system's.
extern "C" ssize_t pwrite(int descriptor, const void* data, std::size_t bytes, off_t offset) {
  const ssize_t room = room_for(bytes);
  if (room < 0) {
    errno = ENOSPC;
    return -1;
  }
  return syscall(SYS_pwrite64, descriptor, data, static_cast<std::size_t>(room), offset);
}
extern "C" int fsync(int) {
  // Hundreds of runs would wait for the disk.
  if (room_for(1) > 0) return 0;
  errno = EIO;
  return -1;
}
extern "C" ssize_t write(int descriptor, const void* data, std::size_t bytes) {
  const ssize_t room = room_for(bytes);
  if (room < 0) {
    errno = ENOSPC;
    return -1;
  }
  return syscall(SYS_write, descriptor, data, static_cast<std::size_t>(room));
}

namespace gradgram::ntk {
namespace {

namespace fs = std::filesystem;

/// A small network, its inputs and what is asked of them.
struct Job {
  std::string text = "conv(4,3) relu maxpool(2) flatten dense(9) tanh dense(3)";
  Shape input{6, 6, 2};
  std::size_t n = 331;  // a prime
  std::uint64_t seed = 5;
  std::uint64_t data_seed = 1;
  KernelOptions options;
  KernelDestination destination;
  std::size_t workers = 2;
  std::vector<std::int32_t> labels;

  models::Network<float> network() const {
    models::NetworkOptions chosen;
    chosen.parameterization = models::Parameterization::Standard;
    chosen.seed = seed;
    return models::Network<float>(models::parse(text, input), chosen);
  }
  Tensor<float> x() const { return kernel_cases::inputs_of<float>(input, n, data_seed); }
  KernelFile run() const {
    const auto network_ = network();
    const auto inputs = x();
    return kernel_to_file<float>(network_, inputs.view(), options, destination, Workers(workers));
  }
  /// The file of an uninterrupted kernel in memory.
  void reference(const fs::path& path) const {
    const auto network_ = network();
    const auto inputs = x();
    KernelOptions quiet = options;
    quiet.progress = {};
    const Tensor<float> square = kernel<float>(network_, inputs.view(), quiet, Workers(1)).values;
    write_npy<float>(path, destination.packed ? lower_triangle(square) : square.clone());
  }

  /// Row by row: what numpy's k[numpy.tril_indices(n)] gives.
  template <class T>
  static Tensor<T> lower_triangle(const Tensor<T>& square) {
    const Shape& shape = square.shape();
    const std::size_t n = shape[0];
    std::vector<T> entries;
    const std::size_t block = shape.rank() == 4 ? shape[2] * shape[3] : 1;
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t e = i * n * block; e < (i * n + i + 1) * block; ++e)
        entries.push_back(square.span()[e]);
    }
    const std::size_t pairs = n * (n + 1) / 2;
    return Tensor<T>(shape.rank() == 4 ? Shape{pairs, shape[2], shape[3]} : Shape{pairs}, entries);
  }
};

/// A network and data so small that hundreds of runs take a second; six tiles.
Job tiny_job() {
  Job job;
  job.text = "dense(5) tanh dense(2)";
  job.input = {3};
  job.n = 130;
  return job;
}

std::uintmax_t size_or_zero(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : size;
}

/// Nothing of the library's.
struct Interruption {};

/// What a call throws, `Type: text`.
template <class F>
std::string thrown(F call) {
  try {
    call();
  } catch (const StoppedResumable& error) {
    return std::string("StoppedResumable: ") + error.what();
  } catch (const Cancelled& error) {
    return std::string("Cancelled: ") + error.what();
  } catch (const ArgumentError& error) {
    return std::string("ArgumentError: ") + error.what();
  } catch (const IoError& error) {
    return std::string("IoError: ") + error.what();
  } catch (const BudgetError& error) {
    return std::string("BudgetError: ") + error.what();
  } catch (const FormatError& error) {
    return std::string("FormatError: ") + error.what();
  } catch (const NumericError& error) {
    return std::string("NumericError: ") + error.what();
  } catch (const std::bad_alloc&) {
    return "bad_alloc";
  } catch (const Interruption&) {
    return "Interruption";
  }
  return "nothing";
}

class KernelFileTest : public testing::Test {
 protected:
  void SetUp() override {
    folder = fs::path(testing::TempDir()) / ("gradgram-file-" + std::to_string(getpid()) + "-" +
                                             testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder);
    fs::create_directories(folder);
    job.destination.path = path();
    job.options.reduce = Reduce::Full;
  }
  void TearDown() override { fs::remove_all(folder); }
  fs::path path() const { return folder / "k.npy"; }
  fs::path partial() const { return folder / "k.npy.partial"; }
  fs::path journal() const { return folder / "k.npy.journal"; }

  /// Leaves an unfinished pair with at least `tiles` tiles.
  void interrupt(std::size_t tiles) {
    fs::remove(path());
    Job stopped = job;
    std::stop_source source;
    stopped.options.stop = source.get_token();
    std::uintmax_t empty = 0;
    stopped.options.progress = [&](std::size_t, std::size_t) {
      if (empty == 0) empty = size_or_zero(journal()) / 16;
      if (size_or_zero(journal()) / 16 >= empty + tiles) source.request_stop();
    };
    const std::string text = thrown([&] { stopped.run(); });
    ASSERT_TRUE(text.starts_with("StoppedResumable: stopped; ")) << text;
    ASSERT_NE(text.find("the same call goes on from there"), std::string::npos) << text;
    ASSERT_TRUE(fs::exists(partial()) && fs::exists(journal()) && !fs::exists(path()));
  }

  void expect_finished_like_reference() const {
    job.reference(folder / "reference.npy");
    EXPECT_TRUE(bytes_of(path()) == bytes_of(folder / "reference.npy"));
    EXPECT_FALSE(fs::exists(partial()));
    EXPECT_FALSE(fs::exists(journal()));
  }

  fs::path folder;
  Job job;
};

/// This program again, running one disabled test below on k.npy in `folder`.
pid_t child(const fs::path& folder, const std::string& test) {
  const std::string filter = "--gtest_filter=KernelFileChild.DISABLED_" + test;
  std::string program = fs::read_symlink("/proc/self/exe").string();
  std::vector<std::string> words = {program, filter, "--gtest_also_run_disabled_tests", "--gtest_brief=1"};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  std::vector<std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, "GTEST_", 6) != 0) variables.emplace_back(*entry);
  }
  variables.push_back("GRADGRAM_KERNEL_FILE_CHILD=" + folder.string());
  std::vector<char*> environment;
  for (std::string& variable : variables) environment.push_back(variable.data());
  environment.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, (folder / "child.log").c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                   0666);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  pid_t pid = -1;
  EXPECT_EQ(posix_spawn(&pid, program.c_str(), &actions, nullptr, arguments.data(), environment.data()), 0);
  posix_spawn_file_actions_destroy(&actions);
  return pid;
}

fs::path child_folder() {
  const char* const folder = std::getenv("GRADGRAM_KERNEL_FILE_CHILD");
  return folder == nullptr ? "" : folder;
}

/// Exit code, or -signal.
int wait_for(pid_t pid) {
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

Job child_job(const fs::path& folder) {
  Job job;
  job.options.reduce = Reduce::Full;
  job.destination.path = folder / "k.npy";
  job.destination.packed = fs::exists(folder / "packed");
  return job;
}

TEST(KernelFileChild, DISABLED_Write) {
  if (child_folder().empty()) GTEST_SKIP() << "run by other tests only";
  Job job = child_job(child_folder());
  // Slow enough to be killed in the middle.
  job.options.progress = [](std::size_t, std::size_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  };
  job.run();
}

TEST_F(KernelFileTest, EqualsTheKernelInMemoryForAllReductionsAndBudgets) {
  for (const Reduce reduce :
       {Reduce::Full, Reduce::TraceMean, Reduce::TraceSum, Reduce::Output, Reduce::TrueClass}) {
    job.options.reduce = reduce;
    job.labels = kernel_cases::labels_of(job.n, 3, 7);
    if (reduce == Reduce::TrueClass) job.options.labels = job.labels;
    job.options.memory = 0;
    const std::size_t roomy = job.run().planned_bytes;
    expect_finished_like_reference();
    for (const std::size_t memory : {roomy - (roomy - (std::size_t{17} << 20)) / 2, std::size_t{18} << 20}) {
      job.options.memory = memory;
      const KernelFile file = job.run();
      EXPECT_LE(file.planned_bytes, memory);
      EXPECT_EQ(file.found + file.damaged, 0u);
      job.options.memory = 0;
      expect_finished_like_reference();
    }
  }
}

TEST_F(KernelFileTest, RectangularAndDouble) {
  const auto network = job.network();
  const auto x = job.x();
  const auto versus = kernel_cases::inputs_of<float>(job.input, 97, 9);
  for (const Reduce reduce : {Reduce::Full, Reduce::TraceMean}) {
    job.options.reduce = reduce;
    kernel_to_file<float>(network, x.view(), versus.view(), job.options, job.destination, Workers(2));
    write_npy<float>(folder / "r.npy",
                     kernel<float>(network, x.view(), versus.view(), job.options, Workers(1)).values);
    EXPECT_TRUE(bytes_of(path()) == bytes_of(folder / "r.npy"));
  }
  const kernel_cases::Case c{"cnn", job.text, job.input, models::Parameterization::Ntk, {}};
  const auto module = kernel_cases::module_of<double>(c);
  const auto wide = kernel_cases::inputs_of<double>(job.input, 101, 3);
  kernel_to_file<double>(*module, wide.view(), job.options, job.destination, Workers(2));
  write_npy<double>(folder / "r.npy", kernel<double>(*module, wide.view(), job.options, Workers(1)).values);
  EXPECT_TRUE(bytes_of(path()) == bytes_of(folder / "r.npy"));
}

TEST_F(KernelFileTest, PackedIsTheLowerTriangleRowByRow) {
  job.destination.packed = true;
  for (const Reduce reduce : {Reduce::Full, Reduce::TraceMean}) {
    job.options.reduce = reduce;
    for (const std::size_t n : {std::size_t{1}, std::size_t{2}, std::size_t{113}, std::size_t{331}}) {
      job.n = n;
      for (const std::size_t memory : {std::size_t{0}, std::size_t{18} << 20}) {
        job.options.memory = memory;
        const KernelFile file = job.run();
        const std::size_t pairs = n * (n + 1) / 2;
        EXPECT_EQ(file.shape, reduce == Reduce::Full ? Shape({pairs, 3, 3}) : Shape({pairs}));
        job.options.memory = 0;
        expect_finished_like_reference();
      }
    }
    // And back again.
    const auto network = job.network();
    const auto x = job.x();
    const Tensor<float> square = kernel<float>(network, x.view(), job.options, Workers(1)).values;
    const Tensor<double> unpacked = unpack(read_npy(path()));
    ASSERT_EQ(unpacked.shape(), square.shape());
    EXPECT_TRUE(std::equal(square.span().begin(), square.span().end(), unpacked.span().begin()));
  }
  const kernel_cases::Case c{"cnn", job.text, job.input, models::Parameterization::Ntk, {}};
  const auto module = kernel_cases::module_of<double>(c);
  const auto wide = kernel_cases::inputs_of<double>(job.input, 101, 3);
  kernel_to_file<double>(*module, wide.view(), job.options, job.destination, Workers(2));
  write_npy<double>(
      folder / "r.npy",
      Job::lower_triangle(kernel<double>(*module, wide.view(), job.options, Workers(1)).values));
  EXPECT_TRUE(bytes_of(path()) == bytes_of(folder / "r.npy"));
}

TEST_F(KernelFileTest, PackedGoesOnAndFindsDamage) {
  job.destination.packed = true;
  interrupt(5);
  job.workers = 3;
  EXPECT_GE(job.run().found, 5u);
  expect_finished_like_reference();
  interrupt(5);
  {
    std::fstream stream(partial(), std::ios::in | std::ios::out | std::ios::binary);
    for (std::uintmax_t at = 128; at < fs::file_size(partial()); at += 61) {
      stream.seekp(static_cast<std::streamoff>(at));
      stream.put('\x2a');
    }
  }
  const KernelFile file = job.run();
  EXPECT_EQ(file.found, 0u);
  EXPECT_GE(file.damaged, 5u);
  expect_finished_like_reference();
}

TEST_F(KernelFileTest, PackedNeedsSymmetry) {
  job.destination.packed = true;
  const auto network = job.network();
  const auto x = job.x();
  const std::string text = thrown(
      [&] { kernel_to_file<float>(network, x.view(), x.view(), job.options, job.destination, Workers(1)); });
  EXPECT_TRUE(text.starts_with("ArgumentError: kernel_to_file: packed ")) << text;
  EXPECT_TRUE(fs::is_empty(folder));
}

TEST(PackedKernel, SideOfSoManyEntries) {
  EXPECT_EQ(packed_side(0), 0u);
  EXPECT_EQ(packed_side(1), 1u);
  for (std::size_t n = 2; n < 300; ++n) {
    EXPECT_EQ(packed_side(n * (n + 1) / 2), n);
    EXPECT_EQ(packed_side(n * (n + 1) / 2 + 1), std::nullopt) << n;
    EXPECT_EQ(packed_side(n * (n + 1) / 2 - 1), std::nullopt) << n;
  }
  for (const std::size_t n : {60000u, 94906267u, 3000000000u}) {
    EXPECT_EQ(packed_side(packed_size(n)), n);
    EXPECT_EQ(packed_side(packed_size(n) - 1), std::nullopt);
  }
  for (const std::vector<std::size_t>& shape :
       std::vector<std::vector<std::size_t>>{{5}, {2, 2}, {}, {3, 2, 3}, {5, 2, 2}, {3, 1, 1, 1}}) {
    NpyArray array;
    array.shape = shape;
    array.bytes.resize(array.size() * 8);
    EXPECT_THROW(unpack(array), ShapeError);
  }
}

TEST_F(KernelFileTest, NoExamples) {
  job.n = 0;
  job.run();
  EXPECT_EQ(read_npy(path()).shape, (std::vector<std::size_t>{0, 0, 3, 3}));
  job.destination.packed = true;
  job.run();
  EXPECT_EQ(read_npy(path()).shape, (std::vector<std::size_t>{0, 3, 3}));
}

TEST_F(KernelFileTest, KilledAgainAndAgain) {
  Random random(20240607);
  std::size_t killed = 0;
  std::size_t killed_with_tiles = 0;
  for (;; ++killed) {
    ASSERT_LT(killed, 200u);
    const auto before = size_or_zero(journal());
    const pid_t pid = child(folder, "Write");
    // Until it has written one to seven more tiles.
    const auto enough = before + 16 * (1 + random.below(7));
    int status = 0;
    bool ended = false;
    while (!ended && size_or_zero(journal()) < enough) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      ended = waitpid(pid, &status, WNOHANG) == pid;
    }
    if (!ended) {
      std::this_thread::sleep_for(std::chrono::microseconds(random.below(4000)));
      kill(pid, SIGKILL);
      ASSERT_EQ(waitpid(pid, &status, 0), pid);
    }
    if (WIFEXITED(status)) {
      ASSERT_EQ(WEXITSTATUS(status), 0) << bytes_of(folder / "child.log");
      break;
    }
    if (size_or_zero(journal()) > before) ++killed_with_tiles;
  }
  EXPECT_GE(killed_with_tiles, 2u);
  expect_finished_like_reference();
  // Negative control: the comparison sees one byte.
  std::fstream stream(path(), std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(5000);
  stream.put('\x55');
  stream.close();
  EXPECT_FALSE(bytes_of(path()) == bytes_of(folder / "reference.npy"));
}

TEST_F(KernelFileTest, KilledAtRandomMoments) {
  Random random(20240608);
  for (const bool packed : {false, true}) {
    job.destination.packed = packed;
    if (packed) std::ofstream(folder / "packed") << "yes";
    const auto begin = std::chrono::steady_clock::now();
    ASSERT_EQ(wait_for(child(folder, "Write")), 0) << bytes_of(folder / "child.log");
    const auto whole =
        std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin);
    expect_finished_like_reference();
    fs::remove(path());
    std::size_t killed = 0;
    for (int round = 0; killed < 12; ++round) {
      ASSERT_LT(round, 100);
      const pid_t pid = child(folder, "Write");
      std::this_thread::sleep_for(
          std::chrono::microseconds(random.below(static_cast<std::uint64_t>(whole.count()))));
      kill(pid, SIGKILL);
      const int code = wait_for(pid);
      ASSERT_TRUE(code == 0 || code == -SIGKILL) << code << bytes_of(folder / "child.log");
      if (code != 0) {
        ++killed;
        continue;
      }
      expect_finished_like_reference();
      fs::remove(path());
    }
    job.run();
    expect_finished_like_reference();
    fs::remove(path());
  }
}

TEST_F(KernelFileTest, ReportsWorkByItsKind) {
  const auto follow = [&](const Job& followed) {
    KernelWork last;
    std::size_t reports = 0;
    Job watched = followed;
    watched.destination.work = [&](const KernelWork& work) {
      if (reports++ == 0) {
        EXPECT_EQ(work.done, (std::array<double, kWorkKinds>{}));
      } else {
        EXPECT_GT(work.total[0], 0);
        EXPECT_EQ(work.total[1], last.total[1]);
      }
      for (const std::size_t kind : {0, 1}) {
        EXPECT_GE(work.done[kind], last.done[kind]);
        EXPECT_TRUE(reports == 1 || work.done[kind] <= work.total[kind] * (1 + 1e-12));
      }
      last = work;
    };
    watched.run();
    EXPECT_GT(reports, 10u);
    EXPECT_EQ(last.done, last.total);
    EXPECT_EQ(last.kind, WorkKind::Tiles);
    return last;
  };
  const KernelWork whole = follow(job);
  for (const std::size_t memory : {std::size_t{0}, std::size_t{18} << 20}) {
    job.options.memory = memory;
    interrupt(6);
    const KernelWork rest = follow(job);
    // Only what is left.
    EXPECT_TRUE(memory != 0 || rest.total[1] < whole.total[1]);
    job.options.memory = 0;
    expect_finished_like_reference();
  }
}

/// All tiles are finished in the last round: what was stopped before begins anew, and later goes on.
TEST_F(KernelFileTest, RoundsOverTheOutputs) {
  job.text = "conv(24,3) relu conv(24,3) relu gap dense(6)";
  job.input = {8, 8, 4};
  job.n = 331;
  job.options.reduce = Reduce::TraceMean;
  job.options.ways = {{"0.weight", Way::Materialize}, {"2.weight", Way::Materialize}};
  const auto network = job.network();
  const auto x = job.x();
  const auto plan = [&](std::size_t memory) {
    job.options.memory = memory;
    return kernel_file_plan<float>(network, x.view(), nullptr, job.options, job.workers);
  };
  const Plan roomy = plan(std::size_t{1} << 30);
  ASSERT_EQ(roomy.rounds(), 1u);
  const Plan tight = plan(roomy.total_bytes() * 3 / 4);
  EXPECT_EQ(tight.rounds(), 6u);
  EXPECT_TRUE(tight.keeps_passes);
  EXPECT_EQ(tight.resident, job.n);
  EXPECT_LE(tight.total_bytes(), job.options.memory);
  KernelWork last;
  job.destination.work = [&](const KernelWork& work) {
    for (const std::size_t kind : {0, 1}) EXPECT_GE(work.done[kind], last.done[kind]);
    last = work;
  };
  Job stopped = job;
  std::stop_source source;
  stopped.options.stop = source.get_token();
  stopped.options.progress = [&](std::size_t done, std::size_t total) {
    if (done > total / 2) source.request_stop();
  };
  thrown([&] { stopped.run(); });
  last = {};
  EXPECT_EQ(job.run().found, 0u);
  EXPECT_EQ(last.done, last.total);
  last = {};
  interrupt(2);
  last = {};
  EXPECT_GE(job.run().found, 2u);
  EXPECT_EQ(last.done, last.total);
  job.destination.work = {};
  job.options.memory = 0;
  expect_finished_like_reference();
}

TEST_F(KernelFileTest, GoesOnWithOtherThreadsAndBudget) {
  interrupt(4);
  job.workers = 7;
  job.options.memory = std::size_t{80} << 20;
  const KernelFile file = job.run();
  EXPECT_GE(file.found, 4u);
  EXPECT_LT(file.found, file.tiles);
  EXPECT_EQ(file.damaged, 0u);
  job.options.memory = 0;
  expect_finished_like_reference();
}

/// A tile is noted once it is whole: blocks that pass by must not be narrower than tiles, which would be
/// finished in parts. From the budget that just holds everything down to the least.
TEST_F(KernelFileTest, NoBudgetCutsATile) {
  job.workers = 1;
  const auto network = job.network();
  for (const Reduce reduce : {Reduce::Full, Reduce::TraceMean}) {
    for (const std::size_t n : {67u, 101u, 157u, 331u}) {
      job.n = n;
      job.options.reduce = reduce;
      const auto x = job.x();
      job.options.ways.clear();
      std::size_t cut_most = 0, streams = 0;
      std::vector<std::pair<std::string, Way>> ways;
      for (std::size_t memory = std::size_t{1} << 24; memory > 1 << 16; memory -= 1 << 12) {
        job.options.memory = memory;
        Plan plan;
        try {
          plan = kernel_file_plan<float>(network, x.view(), nullptr, job.options, job.workers);
        } catch (const BudgetError&) {
          break;
        }
        if (plan.resident == n) continue;
        if (streams++ == 0) {
          cut_most = memory;
          ways = plan.ways();
        }
        EXPECT_EQ(plan.resident % plan.tile, 0u) << n << ' ' << memory;
        EXPECT_EQ(plan.streamed, plan.tile) << n << ' ' << memory;
      }
      EXPECT_TRUE(streams > 0 || n < 331) << n;
      if (cut_most == 0) continue;
      job.options.memory = cut_most;
      job.options.ways = ways;  // those of plenty may be others, with other bits
      interrupt(2);
      const KernelFile file = job.run();
      EXPECT_EQ(file.damaged, 0u);
      EXPECT_GE(file.found, 2u);
      EXPECT_LT(file.found, file.tiles);
      job.options.memory = 0;
      expect_finished_like_reference();
    }
  }
}

/// Whatever budget is too small for the tiles that are there, the same least is named, and it does.
TEST_F(KernelFileTest, TheLeastForTilesThatAreThereIsTheSameForAnyBudgetBelow) {
  job.text = "conv(32,3) relu conv(32,3) relu gap dense(3)";
  job.input = {8, 8, 3};
  job.n = 500;
  job.options.reduce = Reduce::TraceMean;
  job.options.ways = {{"0.weight", Way::Materialize}, {"2.weight", Way::Materialize}};
  job.options.memory = 0;
  interrupt(2);
  std::size_t least = 0, refused = 0;
  const auto try_with = [&](std::size_t memory) {
    job.options.memory = memory;
    const std::string text = thrown([&] { job.run(); });
    if (text.find("cannot hold tiles") == std::string::npos) return;
    const std::string word = "would do is ";
    const std::size_t named = std::stoul(text.substr(text.find(word) + word.size()));
    if (least == 0) least = named;
    EXPECT_EQ(named, least) << memory;
    ++refused;
  };
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  for (std::size_t memory = 16 * kMiB; memory < 30 * kMiB; memory += 2 * kMiB) try_with(memory);
  ASSERT_GE(refused, 3U);
  try_with(least - 1);
  EXPECT_FALSE(fs::exists(path()));
  job.options.memory = least;
  EXPECT_GE(job.run().found, 2u);
  job.options.memory = 0;
  expect_finished_like_reference();
}

TEST_F(KernelFileTest, KeepsTheTilesOfTheFirstCallUnderAnotherBudget) {
  // A budget so small that tiles shrink, then plenty; and the other way round, which may be refused.
  job.options.memory = 0;
  std::size_t least = 0;
  job.options.memory = 1;
  const std::string refusal = thrown([&] { job.run(); });
  ASSERT_TRUE(refusal.starts_with("BudgetError")) << refusal;
  EXPECT_TRUE(fs::is_empty(folder));
  const std::string word = "would do is ";
  least = std::stoul(refusal.substr(refusal.find(word) + word.size()));
  job.options.memory = least + 20000;
  interrupt(3);
  job.options.memory = 0;
  const KernelFile file = job.run();
  EXPECT_GE(file.found, 3u);
  expect_finished_like_reference();

  interrupt(3);
  job.options.memory = least + 20000;
  const std::string text = thrown([&] { job.run(); });
  EXPECT_TRUE(text.starts_with("BudgetError")) << text;
  EXPECT_TRUE(fs::exists(partial()) && fs::exists(journal()));
  job.options.memory = 0;
  EXPECT_GE(job.run().found, 3u);
}

TEST_F(KernelFileTest, KeepsTheWaysOfTheFirstCall) {
  // As when another budget would choose other ways.
  const Job plain = job;
  job.options.ways = {{"0.weight", Way::PositionGram}};
  interrupt(3);
  EXPECT_GE(plain.run().found, 3u);
  expect_finished_like_reference();
  plain.reference(folder / "plain.npy");
  EXPECT_FALSE(bytes_of(path()) == bytes_of(folder / "plain.npy"));
  // What is asked for in so many words counts.
  interrupt(3);
  Job forced = plain;
  forced.options.ways = {{"0.weight", Way::Materialize}};
  const std::string text = thrown([&] { forced.run(); });
  EXPECT_NE(text.find("0.weight=position-gram"), std::string::npos) << text;
  EXPECT_NE(text.find("and is now 0.weight=materialize"), std::string::npos) << text;
}

TEST_F(KernelFileTest, RefusesWhatDiffers) {
  interrupt(3);
  const auto refused = [&](const Job& changed, const std::string& name) {
    const std::string before = bytes_of(partial()) + bytes_of(journal());
    const std::string text = thrown([&] { changed.run(); });
    EXPECT_TRUE(text.starts_with("ArgumentError")) << text;
    EXPECT_NE(text.find(name), std::string::npos) << text;
    EXPECT_NE(text.find(" was "), std::string::npos) << text;
    EXPECT_TRUE(bytes_of(partial()) + bytes_of(journal()) == before);
    return text;
  };
  Job changed = job;
  changed.seed = 6;
  refused(changed, "weights (checksum)");
  changed = job;
  changed.data_seed = 2;
  refused(changed, "inputs (checksum)");
  changed = job;
  changed.n = 330;
  refused(changed, "inputs (checksum)");
  changed = job;
  changed.options.reduce = Reduce::TraceSum;
  EXPECT_NE(refused(changed, "reduction").find("was full and is now trace-sum"), std::string::npos);
  changed = job;
  changed.text = "conv(4,3) relu maxpool(2) flatten dense(9) erf dense(3)";  // the same weights
  refused(changed, "outputs of the first examples");
  changed = job;
  changed.destination.packed = true;
  EXPECT_NE(refused(changed, "storage").find("storage was square and is now packed"), std::string::npos);
  changed = job;
  changed.options.ways = {{"4.weight", Way::Materialize}};
  refused(changed, "ways to contract");
  {
    const std::string before = bytes_of(partial()) + bytes_of(journal());
    const auto network = job.network();
    const auto x = job.x();
    std::string text = thrown([&] {
      kernel_to_file<float>(network, x.view(), x.view(), job.options, job.destination, Workers(2));
    });
    EXPECT_NE(text.find("kernel was of the inputs with themselves and is now of two sets"), std::string::npos)
        << text;
    const models::Network<double> wide(models::parse(job.text, job.input), {});
    text = thrown([&] {
      kernel_to_file<double>(wide, kernel_cases::inputs_of<double>(job.input, job.n, 1).view(), job.options,
                             job.destination, Workers(2));
    });
    EXPECT_NE(text.find("precision was f32 and is now f64"), std::string::npos) << text;
    EXPECT_TRUE(bytes_of(partial()) + bytes_of(journal()) == before);
  }
  changed = job;
  changed.destination.provenance = {{"model", "cnn"}};
  EXPECT_NE(refused(changed, "model").find("model was not given and is now cnn"), std::string::npos);
  // Not a difference: the same again. And beginning anew with another option when asked to.
  EXPECT_GE(job.run().found, 3u);
  expect_finished_like_reference();
  interrupt(3);
  job.data_seed = 2;
  job.destination.restart = true;
  EXPECT_EQ(job.run().found, 0u);
  expect_finished_like_reference();
}

TEST_F(KernelFileTest, RefusesOtherOutputsLabelsAndSecondInputs) {
  const auto difference = [&](Job begun, const Job& changed) {
    begun.destination = changed.destination;
    fs::remove(partial());
    fs::remove(journal());
    job = begun;
    interrupt(2);
    return thrown([&] { changed.run(); });
  };
  Job one = job;
  one.options.reduce = Reduce::Output;
  Job other = one;
  other.options.output = 2;
  std::string text = difference(one, other);
  EXPECT_NE(text.find("reduction was output 0 and is now output 2"), std::string::npos) << text;
  EXPECT_NE(text.find("; begin anew (restart) or choose another file"), std::string::npos) << text;
  one = other = job;
  one.options.reduce = other.options.reduce = Reduce::TrueClass;
  one.labels = kernel_cases::labels_of(one.n, 3, 7);
  other.labels = kernel_cases::labels_of(one.n, 3, 8);
  one.options.labels = one.labels;
  other.options.labels = other.labels;
  text = difference(one, other);
  EXPECT_NE(text.find("labels (checksum) was "), std::string::npos) << text;
  // Two sets: the second one changes.
  fs::remove(partial());
  fs::remove(journal());
  const auto network = job.network();
  const auto x = job.x();
  KernelOptions options;
  options.reduce = Reduce::Full;
  std::size_t pieces = 0;
  options.progress = [&](std::size_t done, std::size_t total) {
    pieces = done;
    if (done + 1 == total) throw Interruption();
  };
  const auto run = [&](std::uint64_t seed) {
    return thrown([&] {
      kernel_to_file<float>(network, x.view(), kernel_cases::inputs_of<float>(job.input, 97, seed).view(),
                            options, job.destination, Workers(1));
    });
  };
  EXPECT_EQ(run(3), "Interruption");
  EXPECT_GT(pieces, 2u);
  text = run(4);
  EXPECT_NE(text.find("second inputs (checksum) was "), std::string::npos) << text;
}

TEST_F(KernelFileTest, DamagedTilesAndTornRecordsAreComputedAgain) {
  interrupt(6);
  const auto file_size = fs::file_size(partial());
  {
    std::fstream stream(partial(), std::ios::in | std::ios::out | std::ios::binary);
    // Everything: whatever is finished is damaged, mirror images included.
    std::string noise(1, '\x2a');
    for (std::uintmax_t at = 128; at < file_size; at += 61) {
      stream.seekp(static_cast<std::streamoff>(at));
      stream.write(noise.data(), 1);
    }
  }
  {
    std::ofstream stream(journal(), std::ios::app | std::ios::binary);
    stream << "torn rec";
  }
  KernelFile file = job.run();
  EXPECT_EQ(file.found, 0u);
  EXPECT_GE(file.damaged, 6u);
  expect_finished_like_reference();

  // One byte of one mirror image, one record, and a cut file.
  interrupt(6);
  const std::string records = bytes_of(journal());
  {
    // The last record's tile: its last mirrored element is at row `column`, column `row` of the grid.
    std::uint32_t numbers[4];
    std::memcpy(numbers, records.data() + records.size() - 16, 16);
    const auto network = job.network();
    const auto x = job.x();
    const std::size_t tile = plan_for<float>(network, x.view(), nullptr, job.options, job.workers, true).tile;
    const std::size_t entry = (numbers[1] * tile * job.n + numbers[0] * tile) * 9;
    std::fstream stream(partial(), std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(128 + entry * 4);
    stream.seekg(at);
    const char old = static_cast<char>(stream.get());
    stream.seekp(at);
    stream.put(static_cast<char>(old ^ 1));
  }
  {
    std::fstream stream(journal(), std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(static_cast<std::streamoff>(records.size() - 32));
    stream.write("\xff\xff\xff", 3);
  }
  file = job.run();
  EXPECT_EQ(file.damaged, 1u);
  EXPECT_GE(file.found, 4u);
  expect_finished_like_reference();

  interrupt(6);
  fs::resize_file(partial(), 1000);
  EXPECT_EQ(job.run().found, 0u);
  expect_finished_like_reference();
}

/// Tiles of one entry each, entry (i, j) being i * columns + j; `most` of them, then the source stops.
class Entries final : public TileSource {
 public:
  Entries(std::size_t rows, std::size_t columns, bool symmetric) : grid_{rows, columns, symmetric, 0, 1} {}
  TileGrid grid() const override { return grid_; }
  Facts facts() const override { return {{"entries", "of a test"}}; }
  void follow(std::size_t tile) override { EXPECT_EQ(tile, 1u); }
  void produce(TileStore& store) override {
    put = 0;
    for (std::size_t i = 0; i < grid_.rows; ++i) {
      for (std::size_t j = 0; j < (grid_.symmetric ? i + 1 : grid_.columns); ++j) {
        // A row of a rectangle not in order.
        const std::size_t column = grid_.symmetric ? j : (3 * j + i) % grid_.columns;
        const TilePlace place{i, 1, column, 1, grid_.symmetric && i == column};
        if (store.has(place)) continue;
        if (put++ == most) throw Cancelled("enough");
        const double value = static_cast<double>(i * grid_.columns + column);
        store.put({kAllParameters, place, 1, 1, Tile{&value, 1, 1, 1}}, 0);
      }
    }
  }
  std::size_t most = std::numeric_limits<std::size_t>::max(), put = 0;

 private:
  TileGrid grid_;
};

/// The journal of tiles of single examples is larger than what the least budgets leave for it.
TEST_F(KernelFileTest, AJournalOfManyTilesIsNeverInMemory) {
  const Workers workers(2);
  KernelDestination destination;
  destination.path = path();
  for (const bool symmetric : {true, false}) {
    Entries source(symmetric ? 400 : 200, symmetric ? 400 : 250, symmetric);
    const TileGrid grid = source.grid();
    source.most = 45001;
    EXPECT_TRUE(thrown([&] {
                  tiles_to_file<float>(source, destination, workers, {});
                }).starts_with("StoppedResumable"));
    const std::uintmax_t journal_bytes = size_or_zero(journal());
    ASSERT_GT(journal_bytes, 45001u * 16);
    {
      // Entry (7, 5) is damaged, and the record after it.
      std::fstream stream(partial(), std::ios::in | std::ios::out | std::ios::binary);
      stream.seekp(static_cast<std::streamoff>(128 + (7 * grid.columns + 5) * 4));
      stream.write("noise", 4);
    }
    source.most = std::numeric_limits<std::size_t>::max();
    std::size_t reports = 0, last = 0;
    destination.verify_progress = [&](std::size_t done, std::size_t total) {
      EXPECT_EQ(total, 45001u);
      EXPECT_GE(done, last);
      last = done;
      ++reports;
    };
    largest_allocation = 0;
    const KernelFile file = tiles_to_file<float>(source, destination, workers, {});
    EXPECT_LT(largest_allocation, journal_bytes / 4);
    EXPECT_EQ(last, 45001u);
    EXPECT_EQ(file.damaged, 1u);
    EXPECT_EQ(file.found, 45000u);
    EXPECT_EQ(source.put, file.tiles - 45000);
    const Tensor<float> values = read_npy(path()).to_tensor<float>();
    for (std::size_t i = 0; i < grid.rows; ++i) {
      for (std::size_t j = 0; j < grid.columns; ++j) {
        const std::size_t entry = symmetric && j > i ? j * grid.columns + i : i * grid.columns + j;
        ASSERT_EQ(values.data()[i * grid.columns + j], static_cast<float>(entry)) << i << ' ' << j;
      }
    }
    destination.verify_progress = {};
  }
}

TEST_F(KernelFileTest, BrokenJournalIsRefusedAndRestartHelps) {
  interrupt(3);
  {
    std::fstream stream(journal(), std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(40);
    stream.write("\xff\xff\xff", 3);
  }
  const std::string text = thrown([&] { job.run(); });
  EXPECT_TRUE(text.starts_with("FormatError")) << text;
  EXPECT_NE(text.find(journal().string()), std::string::npos) << text;
  job.destination.restart = true;
  job.run();
  expect_finished_like_reference();
}

TEST_F(KernelFileTest, DiedBeforeTheJournalWasRemoved) {
  interrupt(3);
  fs::copy_file(journal(), folder / "early");
  job.run();
  // A journal without tiles beside a finished file: every tile is computed again or, with a full journal,
  // found.
  fs::copy_file(folder / "early", journal());
  const KernelFile file = job.run();
  EXPECT_GE(file.found, 3u);
  expect_finished_like_reference();
}

TEST_F(KernelFileTest, OneProcessAtATime) {
  bool tried = false;
  job.options.progress = [&](std::size_t, std::size_t) {
    if (tried) return;
    tried = true;
    EXPECT_NE(wait_for(child(folder, "Write")), 0);
  };
  job.run();
  EXPECT_TRUE(tried);
  const std::string log = bytes_of(folder / "child.log");
  EXPECT_NE(log.find("another process is writing " + path().string()), std::string::npos) << log;
  job.options.progress = {};
  expect_finished_like_reference();
}

/// Runs the tiny job again and again, each time with the fault one step later, until it no longer strikes.
/// Each time what is left must go on to the same bits, in the same process.
class FaultTest : public KernelFileTest {
 protected:
  /// `arm(k)` orders the fault, `disarm()` takes it back; returns whether it struck. Returns how often it
  /// did.
  template <class Arm, class Disarm>
  std::size_t strike(const Arm& arm, const Disarm& disarm, std::size_t step, bool packed = false) {
    job = tiny_job();
    job.destination.path = path();
    job.destination.packed = packed;
    job.options.reduce = Reduce::Full;
    job.reference(folder / "reference.npy");
    const std::string reference = bytes_of(folder / "reference.npy");
    const auto network = job.network();
    const auto inputs = job.x();
    const Workers workers(2);
    std::size_t strikes = 0;
    std::size_t resumed = 0;
    for (std::size_t k = 1;; k += step) {
      EXPECT_LT(k, 20000u);
      KernelOptions options = job.options;
      arm(k, options);
      const std::string text =
          thrown([&] { kernel_to_file<float>(network, inputs.view(), options, job.destination, workers); });
      const bool struck = disarm();
      if (!struck) {
        EXPECT_EQ(text, "nothing");
        EXPECT_TRUE(bytes_of(path()) == reference);
        break;
      }
      ++strikes;
      // A fault after the last tile may have been harmless.
      if (text != "nothing") {
        EXPECT_FALSE(fs::exists(path())) << k << text;
        EXPECT_EQ(fs::exists(partial()), fs::exists(journal())) << k << text;
        if (fs::exists(partial())) ++resumed;
        const KernelFile file =
            kernel_to_file<float>(network, inputs.view(), job.options, job.destination, workers);
        EXPECT_EQ(file.damaged, 0u);
      }
      EXPECT_TRUE(bytes_of(path()) == reference) << k;
      EXPECT_FALSE(fs::exists(partial()) || fs::exists(journal())) << k;
      fs::remove(path());
      if (HasFailure()) break;
    }
    EXPECT_GE(resumed, 1u);
    fs::remove(path());
    return strikes;
  }
};

TEST_F(FaultTest, AnExceptionAtAnyPiece) {
  std::atomic<bool> struck{false};
  const std::size_t strikes = strike(
      [&](std::size_t k, KernelOptions& options) {
        struck = false;
        options.progress = [&struck, calls = std::size_t{0}, k](std::size_t, std::size_t) mutable {
          if (++calls != k) return;
          struck = true;
          throw Interruption();
        };
      },
      [&] { return struck.load(); }, 1);
  EXPECT_GE(strikes, 7u);
}

TEST_F(FaultTest, NoMemoryAtAnyAllocation) {
  const std::size_t strikes =
      strike([](std::size_t k, KernelOptions&) { failing_allocation = static_cast<long>(k); },
             [] { return failing_allocation.exchange(0) <= 0; }, kSanitized ? 7 : 1);
  EXPECT_GE(strikes, 20u);
}

TEST_F(FaultTest, ADiskThatIsFullAtAnyWrite) {
  for (const bool packed : {false, true}) {
    for (const bool torn : {false, true}) {
      torn_write = torn;
      const std::size_t strikes =
          strike([](std::size_t k, KernelOptions&) { failing_write = static_cast<long>(k); },
                 [] {
                   disk_full = false;
                   return failing_write.exchange(0) <= 0;
                 },
                 kSanitized ? 17 : 7, packed);
      EXPECT_GE(strikes, kSanitized ? 12u : 30u);
    }
  }
  torn_write = false;
}

/// An unfinished tiny job with half of its tiles, whose files are then spoilt in every way.
class SpoiltTest : public KernelFileTest {
 protected:
  void begin(bool packed) {
    job = tiny_job();
    job.destination.path = path();
    job.destination.packed = packed;
    job.options.reduce = Reduce::Full;
    job.workers = 1;
    job.reference(folder / "reference.npy");
    reference = bytes_of(folder / "reference.npy");
    interrupt(3);
    whole_journal = bytes_of(journal());
    whole_partial = bytes_of(partial());
    network = std::make_unique<models::Network<float>>(job.network());
    inputs = job.x();
  }
  static void put(const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }
  /// Whether the job was finished, with the right bits, rather than refused, with its files as they were.
  bool goes_on(const std::string& spoilt_journal, const std::string& spoilt_partial) {
    fs::remove(path());
    put(journal(), spoilt_journal);
    put(partial(), spoilt_partial);
    const std::string text = thrown(
        [&] { kernel_to_file<float>(*network, inputs.view(), job.options, job.destination, workers); });
    if (text == "nothing") {
      EXPECT_TRUE(bytes_of(path()) == reference);
      EXPECT_FALSE(fs::exists(partial()) || fs::exists(journal()));
      return true;
    }
    EXPECT_TRUE(text.starts_with("FormatError: ") || text.starts_with("ArgumentError: ")) << text;
    EXPECT_FALSE(fs::exists(path()));
    EXPECT_TRUE(bytes_of(partial()) == spoilt_partial);
    EXPECT_TRUE(bytes_of(journal()) == spoilt_journal);
    return false;
  }

  std::string reference, whole_journal, whole_partial;
  std::unique_ptr<models::Network<float>> network;
  Tensor<float> inputs;
  Workers workers{1};
};

TEST_F(SpoiltTest, AJournalCutAnywhere) {
  for (const bool packed : {false, true}) {
    begin(packed);
    std::size_t finished = 0;
    for (std::size_t bytes = 0; bytes <= whole_journal.size() && !HasFailure(); ++bytes) {
      if (goes_on(whole_journal.substr(0, bytes), whole_partial)) ++finished;
    }
    // At its records, which are three or more, and when nothing is left of it.
    EXPECT_GE(finished, 3 * 16u + 1);
    EXPECT_LT(finished, whole_journal.size());
  }
}

TEST_F(SpoiltTest, AJournalWithAnyByteChanged) {
  begin(false);
  Random random(5);
  std::size_t finished = 0;
  for (std::size_t at = 0; at < whole_journal.size() && !HasFailure(); ++at) {
    std::string spoilt = whole_journal;
    spoilt[at] = static_cast<char>(spoilt[at] ^ static_cast<char>(1 + random.below(255)));
    if (goes_on(spoilt, whole_partial)) ++finished;
  }
  EXPECT_GE(finished, 3 * 16u);
  EXPECT_LT(finished, whole_journal.size());
}

TEST_F(SpoiltTest, AnUnfinishedFileWithAnyByteChangedOrCut) {
  for (const bool packed : {false, true}) {
    begin(packed);
    Random random(6);
    // Every byte of the head, then a ragged walk.
    for (std::size_t at = 0; at < whole_partial.size() && !HasFailure(); at += at < 140 ? 1 : 1009) {
      std::string spoilt = whole_partial;
      spoilt[at] = static_cast<char>(spoilt[at] ^ static_cast<char>(1 + random.below(255)));
      EXPECT_TRUE(goes_on(whole_journal, spoilt)) << at;
      if (at % 5 != 0) continue;
      EXPECT_TRUE(goes_on(whole_journal, whole_partial.substr(0, at))) << at;
    }
  }
}

TEST_F(KernelFileTest, NotANumberIsRefusedAndTheRestIsKept) {
  const auto network = job.network();
  auto x = job.x();
  x.view().slice(330).data()[0] = std::numeric_limits<float>::infinity();
  const std::string text =
      thrown([&] { kernel_to_file<float>(network, x.view(), job.options, job.destination, Workers(2)); });
  EXPECT_TRUE(text.starts_with("NumericError")) << text;
  EXPECT_FALSE(fs::exists(path()));
  // The data have changed since: refused.
  EXPECT_TRUE(thrown([&] { job.run(); }).starts_with("ArgumentError"));
}

TEST(KernelFileChild, DISABLED_DiskFull) {
  if (child_folder().empty()) GTEST_SKIP() << "run by other tests only";
  signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{1000000, 1000000};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  // A file that is there already has its size: then the first tile beyond the limit meets it.
  const bool there = fs::exists(child_folder() / "k.npy.partial");
  const std::string text = thrown([&] { child_job(child_folder()).run(); });
  EXPECT_TRUE(text.starts_with(there ? "IoError: kernel_to_file: cannot write "
                                     : "IoError: kernel_to_file: cannot reserve "))
      << text;
}

TEST_F(KernelFileTest, ADiskThatCannotHoldItIsToldAtOnce) {
  EXPECT_EQ(wait_for(child(folder, "DiskFull")), 0) << bytes_of(folder / "child.log");
  EXPECT_FALSE(fs::exists(partial()) || fs::exists(journal()) || fs::exists(path()));
  // An unfinished pair stays.
  interrupt(3);
  EXPECT_EQ(wait_for(child(folder, "DiskFull")), 0) << bytes_of(folder / "child.log");
  EXPECT_GE(job.run().found, 3u);
  expect_finished_like_reference();
}

/// Its journal is larger than its kernel.
Job wordy_job(const fs::path& folder) {
  Job job = child_job(folder);
  job.options.reduce = Reduce::TraceMean;
  job.destination.provenance = {{"note", std::string(900000, 'x')}};
  return job;
}

TEST(KernelFileChild, DISABLED_JournalFull) {
  if (child_folder().empty()) GTEST_SKIP() << "run by other tests only";
  signal(SIGXFSZ, SIG_IGN);
  // Only the journal meets the limit, inside a record.
  const auto size = fs::file_size(child_folder() / "k.npy.journal");
  const rlimit limit{size + 7, size + 7};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const std::string text = thrown([&] { wordy_job(child_folder()).run(); });
  EXPECT_TRUE(text.starts_with("IoError: kernel_to_file: cannot write ")) << text;
  EXPECT_NE(text.find("k.npy.journal: "), std::string::npos) << text;
  EXPECT_NE(text.find("the same call goes on from there"), std::string::npos) << text;
  EXPECT_EQ(fs::file_size(child_folder() / "k.npy.journal"), size);
}

TEST_F(KernelFileTest, ADiskThatFillsUpLeavesAResumableFile) {
  job = wordy_job(folder);
  interrupt(1);
  EXPECT_EQ(wait_for(child(folder, "JournalFull")), 0) << bytes_of(folder / "child.log");
  EXPECT_GE(job.run().found, 1u);
  expect_finished_like_reference();
}

std::size_t status_bytes(const char* name) {
  std::ifstream stream("/proc/self/status");
  for (std::string line; std::getline(stream, line);) {
    if (line.starts_with(name)) return std::stoul(line.substr(line.find_first_of("0123456789"))) << 10;
  }
  return 0;
}

TEST(KernelFileChild, DISABLED_Resident) {
  if (child_folder().empty()) GTEST_SKIP() << "run by other tests only";
  Job job = child_job(child_folder());
  job.options.reduce = Reduce::Output;
  job.text = "dense(16) relu dense(1)";
  job.input = {8};
  job.n = 5000;
  job.options.memory = std::size_t{32} << 20;
  const std::size_t before = status_bytes("VmRSS");
  const KernelFile file = job.run();
  const std::size_t peak = status_bytes("VmHWM");
  ASSERT_GT(before, 0u);
  EXPECT_LE(file.planned_bytes, job.options.memory);
  // What BLIS and the allocator keep for themselves comes and goes with the threads' luck: the 100 MB of the
  // result would show all the same.
  const std::size_t libraries = std::size_t{32} << 20;
  EXPECT_LE(peak, before + job.options.memory + libraries);
  EXPECT_EQ(fs::file_size(job.destination.path), 128 + 5000u * 5000u * 4u);
}

TEST_F(KernelFileTest, ResidentMemoryStaysWithinTheBudget) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer's own memory would be measured";
  EXPECT_EQ(wait_for(child(folder, "Resident")), 0) << bytes_of(folder / "child.log");
}

TEST_F(KernelFileTest, KeepsWhatIsThereUntilTheNewOneIsWhole) {
  std::ofstream(path()) << "old";
  Job stopped = job;
  std::stop_source source;
  source.request_stop();
  stopped.options.stop = source.get_token();
  // Before the first tile nothing is worth keeping.
  EXPECT_TRUE(thrown([&] { stopped.run(); }).starts_with("Cancelled"));
  EXPECT_EQ(bytes_of(path()), "old");
  EXPECT_FALSE(fs::exists(partial()) || fs::exists(journal()));
  job.run();
  expect_finished_like_reference();
  job.options.per_parameter = true;
  EXPECT_TRUE(thrown([&] { job.run(); }).starts_with("ArgumentError"));
  job.options.per_parameter = false;
  job.destination.path = folder;
  EXPECT_TRUE(thrown([&] { job.run(); }).starts_with("IoError"));
  job.destination.path = folder / "missing" / "k.npy";
  EXPECT_TRUE(thrown([&] { job.run(); }).starts_with("IoError"));
}

}  // namespace
}  // namespace gradgram::ntk
