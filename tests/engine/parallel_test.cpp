#include "engine/parallel.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <stdexcept>
#include <thread>
#include <vector>

#include "engine/error.hpp"

namespace gradgram {
namespace {

constexpr std::size_t kThreadCounts[] = {1, 2, 3, 8};

TEST(Workers, RunsEveryPieceOnce) {
  for (const std::size_t threads : kThreadCounts) {
    const Workers workers(threads);
    EXPECT_EQ(workers.count(), threads);
    for (const std::size_t pieces : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> ran(pieces);
      workers.run(pieces, [&](std::size_t index, std::size_t) { ++ran[index]; });
      for (std::size_t i = 0; i < pieces; ++i) ASSERT_EQ(ran[i].load(), 1) << i;
    }
  }
}

TEST(Workers, UsesEveryProcessorByDefault) {
  EXPECT_GE(Workers().count(), 1U);
}

TEST(Workers, RefusesMoreThreadsThanItCanCount) {
  EXPECT_EQ(Workers(Workers::kMostThreads).count(), Workers::kMostThreads);
  for (const std::size_t threads :
       {Workers::kMostThreads + 1, std::size_t{1} << 31, (std::size_t{1} << 32) + 2}) {
    EXPECT_THROW(Workers{threads}, ArgumentError) << threads;
  }
}

TEST(Workers, NoTwoRunningPiecesShareAWorkerNumber) {
  for (const std::size_t threads : kThreadCounts) {
    const Workers workers(threads);
    std::vector<std::atomic<bool>> busy(threads);
    std::atomic<int> shared{0};
    std::atomic<int> out_of_range{0};
    workers.run(300, [&](std::size_t, std::size_t worker) {
      if (worker >= threads) {
        ++out_of_range;
        return;
      }
      if (busy[worker].exchange(true)) ++shared;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      busy[worker].store(false);
    });
    EXPECT_EQ(shared.load(), 0);
    EXPECT_EQ(out_of_range.load(), 0);
  }
}

TEST(Workers, GroupsAliveTogetherDoNotLimitEachOther) {
  const Workers one(1);
  const Workers four(4);
  // Every piece waits until all four have started, which they only do on four threads.
  std::atomic<int> started{0};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  four.run(4, [&](std::size_t, std::size_t) {
    ++started;
    while (started.load() < 4 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    EXPECT_EQ(started.load(), 4);
  });
}

TEST(Workers, NestedRunsKeepWorkerNumbersApart) {
  // A piece that runs pieces of its own must not start a second piece of the outer group on its worker
  // meanwhile.
  const Workers outer(3);
  const Workers inner(2);
  std::vector<std::atomic<bool>> busy(3);
  std::atomic<int> shared{0};
  std::atomic<int> done{0};
  outer.run(20, [&](std::size_t, std::size_t worker) {
    if (busy[worker].exchange(true)) ++shared;
    inner.run(5, [&](std::size_t, std::size_t) { ++done; });
    busy[worker].store(false);
  });
  EXPECT_EQ(shared.load(), 0);
  EXPECT_EQ(done.load(), 100);
}

TEST(Workers, AnExceptionArrivesAndTheNextRunWorks) {
  for (const std::size_t threads : kThreadCounts) {
    const Workers workers(threads);
    for (const int failing : {0, 1, 5, 49}) {
      std::atomic<int> started{0};
      std::atomic<int> running{0};
      const auto piece = [&](std::size_t, std::size_t) {
        ++running;
        const int mine = started++;
        if (mine == failing) {
          --running;
          throw std::runtime_error("piece failed");
        }
        // Those behind it are slow: however late the failing thread gets to run again, some are left.
        if (mine > failing) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        --running;
      };
      constexpr int kPieces = 50000;
      try {
        workers.run(kPieces, piece);
        FAIL() << "no exception";
      } catch (const std::runtime_error& error) {
        EXPECT_STREQ(error.what(), "piece failed");
      }
      EXPECT_EQ(running.load(), 0) << "a piece still ran when run() returned";
      EXPECT_LT(started.load(), kPieces) << "the rest must not start";
      std::atomic<int> again{0};
      workers.run(50, [&](std::size_t, std::size_t) { ++again; });
      EXPECT_EQ(again.load(), 50);
    }
  }
}

TEST(Workers, ProgressCountsEveryPieceOnceAndOneAtATime) {
  for (const std::size_t threads : kThreadCounts) {
    const Workers workers(threads);
    std::vector<std::size_t> reported;
    std::atomic<int> inside{0};
    std::atomic<int> overlapping{0};
    workers.run(
        64, [](std::size_t, std::size_t) {},
        [&](std::size_t done, std::size_t total) {
          if (++inside != 1) ++overlapping;
          EXPECT_EQ(total, 64U);
          reported.push_back(done);
          --inside;
        });
    ASSERT_EQ(reported.size(), 64U);
    for (std::size_t i = 0; i < reported.size(); ++i) EXPECT_EQ(reported[i], i + 1);
    EXPECT_EQ(overlapping.load(), 0);
  }
}

TEST(Workers, AnExceptionFromProgressArrives) {
  const Workers workers(2);
  const auto run = [&] {
    workers.run(
        100, [](std::size_t, std::size_t) {},
        [](std::size_t done, std::size_t) {
          if (done == 3) throw std::runtime_error("no terminal");
        });
  };
  EXPECT_THROW(run(), std::runtime_error);
}

TEST(Workers, AStopRequestEndsTheRunEarly) {
  for (const std::size_t threads : kThreadCounts) {
    const Workers workers(threads);
    std::stop_source source;
    std::atomic<int> started{0};
    const auto run = [&] {
      workers.run(
          1000,
          [&](std::size_t, std::size_t) {
            if (++started == 10) source.request_stop();
          },
          {}, source.get_token());
    };
    EXPECT_THROW(run(), Cancelled);
    EXPECT_GE(started.load(), 10);
    EXPECT_LE(started.load(), 10 + static_cast<int>(threads));
    EXPECT_THROW(run(), Cancelled) << "a token that is already stopped starts nothing";
    std::atomic<int> again{0};
    workers.run(20, [&](std::size_t, std::size_t) { ++again; });
    EXPECT_EQ(again.load(), 20);
  }
}

TEST(Workers, MoreThreadsThanProcessorsGiveTheSameBits) {
  const auto sums = [](std::size_t threads) {
    std::vector<double> sum(37);
    Workers(threads).run(sum.size(), [&](std::size_t index, std::size_t) {
      for (int i = 1; i < 2000; ++i) sum[index] += 1.0 / static_cast<double>(i * (index + 1));
    });
    return sum;
  };
  const auto expected = sums(1);
  EXPECT_EQ(sums(4), expected);
  EXPECT_EQ(sums(64), expected);
}

}  // namespace
}  // namespace gradgram
