#include "engine/parallel.hpp"

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <string>

#include "engine/cpu.hpp"
#include "engine/error.hpp"

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace gradgram {

namespace {

/// What happens before a run happens before its pieces, and they before what follows: oneTBB sees to it, but
/// the packaged library is not instrumented, so the thread sanitizer has to be told. Nothing otherwise.
struct Handover {
#ifdef __SANITIZE_THREAD__
  static inline char token = 0;
  static void give() {
    __tsan_release(&token);
  }
  static void take() {
    __tsan_acquire(&token);
  }
#else
  static void give() {}
  static void take() {}
#endif
};

/// Takes over when a worker begins, gives back when it ends, by an exception too.
struct HandoverScope {
  HandoverScope() { Handover::take(); }
  ~HandoverScope() { Handover::give(); }
  HandoverScope(const HandoverScope&) = delete;
  HandoverScope& operator=(const HandoverScope&) = delete;
};

std::size_t checked_threads(std::size_t threads) {
  if (threads > Workers::kMostThreads) {
    throw ArgumentError("workers: threads (" + std::to_string(threads) + ") must be at most " +
                        std::to_string(Workers::kMostThreads));
  }
  return threads == 0 ? std::min(cpu_info().cores, Workers::kMostThreads) : threads;
}

}  // namespace

struct Workers::Arena {
  explicit Arena(std::size_t threads)
      : allow(tbb::global_control::max_allowed_parallelism, kMostThreads), arena(static_cast<int>(threads)) {}
  // More threads than processors are allowed on request: the results do not depend on their number. The least
  // of all live controls counts for the whole process, so each group allows the most and limits itself by its
  // own arena; threads are made only when an arena asks for them.
  tbb::global_control allow;
  mutable tbb::task_arena arena;
};

Workers::Workers(std::size_t threads) : arena_(std::make_unique<Arena>(checked_threads(threads))) {}
Workers::~Workers() = default;
Workers::Workers(Workers&&) noexcept = default;
Workers& Workers::operator=(Workers&&) noexcept = default;

std::size_t Workers::count() const noexcept {
  return static_cast<std::size_t>(arena_->arena.max_concurrency());
}

void Workers::run(std::size_t pieces, const std::function<void(std::size_t, std::size_t)>& piece,
                  const Progress& progress, std::stop_token stop) const {
  std::atomic<std::size_t> next{0};
  std::size_t done = 0;
  std::mutex reporting;
  // Each worker takes the next index until none is left, so pieces start in order and a long one holds up
  // nobody.
  const auto work = [&](std::size_t worker) {
    for (;;) {
      const std::size_t index = next.fetch_add(1);
      if (index >= pieces) return;
      if (stop.stop_requested()) {
        next.store(pieces);
        throw Cancelled("stopped after " + std::to_string(index) + " of " + std::to_string(pieces) +
                        " pieces");
      }
      try {
        piece(index, worker);
      } catch (...) {
        next.store(pieces);
        throw;
      }
      if (progress) {
        const std::lock_guard lock(reporting);
        progress(++done, pieces);
      }
    }
  };
  const auto body = [&](std::size_t worker) {
    const HandoverScope scope;
    tbb::this_task_arena::isolate([&] { work(worker); });
  };
  Handover::give();
  struct TakeBack {
    ~TakeBack() { Handover::take(); }
  } const take_back;
  arena_->arena.execute([&] { tbb::parallel_for(std::size_t{0}, count(), body, tbb::simple_partitioner()); });
}

}  // namespace gradgram
