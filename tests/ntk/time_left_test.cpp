#include "ntk/time_left.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "engine/random.hpp"

namespace gradgram::ntk {
namespace {

struct Piece {
  WorkKind kind = WorkKind::Passes;
  double units = 0;
  double seconds = 0;  ///< until the report of this piece
};

/// The schedule of a blocked kernel: a resident block of gradients and its own tiles, then strips of streamed
/// gradients and their tiles. `pass` and `tile`: seconds of one unit; every piece takes up to `ragged` more
/// or less.
std::vector<Piece> pieces(std::size_t blocks, std::size_t strips, double pass, double tile, double ragged,
                          std::uint64_t seed) {
  Random random(seed);
  std::vector<Piece> result;
  const auto add = [&](WorkKind kind, double units, double pace) {
    const double noise = 1 + ragged * (2 * random.uniform() - 1);
    result.push_back({kind, units, units * pace * noise});
  };
  for (std::size_t block = 0; block < blocks; ++block) {
    for (int i = 0; i < 40; ++i) add(WorkKind::Passes, 1, pass);
    for (int i = 0; i < 60; ++i) add(WorkKind::Tiles, i < 50 ? 2 : 1, tile);
    for (std::size_t strip = 0; strip < block * strips; ++strip) {
      for (int i = 0; i < 8; ++i) add(WorkKind::Passes, 1, pass);
      for (int i = 0; i < 20; ++i) add(WorkKind::Tiles, 2, tile);
    }
  }
  return result;
}

/// The schedule of a spilled kernel: every resident block is passed and written once, and read for each later
/// one. `disk`: seconds of one unit either way.
std::vector<Piece> spilled_pieces(std::size_t blocks, double pass, double disk, std::uint64_t seed) {
  Random random(seed);
  std::vector<Piece> result;
  const auto add = [&](WorkKind kind, double units, double pace) {
    result.push_back({kind, units, units * pace * (0.8 + 0.4 * random.uniform())});
  };
  for (std::size_t block = 0; block < blocks; ++block) {
    for (int i = 0; i < 40; ++i) add(WorkKind::Passes, 1, pass);
    for (int i = 0; i < 8; ++i) add(WorkKind::Writing, 4, disk);
    for (int i = 0; i < 60; ++i) add(WorkKind::Tiles, 1, 1);
    for (std::size_t strip = 0; strip < 4 * block; ++strip) {
      add(WorkKind::Reading, 16, disk);
      for (int i = 0; i < 20; ++i) add(WorkKind::Tiles, 1, 1);
    }
  }
  return result;
}

/// Time at the disk as if it were part of what follows it.
std::vector<Piece> without_disk(const std::vector<Piece>& pieces) {
  std::vector<Piece> result;
  double waited = 0;
  for (Piece piece : pieces) {
    if (piece.kind == WorkKind::Writing || piece.kind == WorkKind::Reading) {
      waited += piece.seconds;
      continue;
    }
    piece.seconds += std::exchange(waited, 0.0);
    result.push_back(piece);
  }
  return result;
}

/// The largest error of left(), relative to what is left, from `from` of the time on until 90 %; and that of
/// the piece count's estimate.
struct Errors {
  double learned = 0, counted = 0;
};
Errors worst(const std::vector<Piece>& pieces, double from) {
  KernelWork work;
  double whole = 0;
  for (const Piece& piece : pieces) {
    work.total[static_cast<std::size_t>(piece.kind)] += piece.units;
    whole += piece.seconds;
  }
  TimeLeft estimate;
  Errors errors;
  double now = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    now += pieces[i].seconds;
    work.kind = pieces[i].kind;
    work.done[static_cast<std::size_t>(pieces[i].kind)] += pieces[i].units;
    estimate.report(work, now);
    if (now < from * whole || now > 0.9 * whole) continue;
    const double left = whole - now;
    errors.learned = std::max(errors.learned, std::abs(estimate.left().value() - left) / left);
    const double done = static_cast<double>(i + 1);
    const double counted = now * (static_cast<double>(pieces.size()) - done) / done;
    errors.counted = std::max(errors.counted, std::abs(counted - left) / left);
    EXPECT_NEAR(estimate.share(), now / whole, 0.15);
  }
  return errors;
}

TEST(TimeLeft, WithinFifteenPercentAfterAFifthWhateverTheRates) {
  bool counting_fails = false;
  for (const double pass : {0.01, 1.0, 20.0}) {
    for (const std::size_t blocks : {4u, 7u, 12u}) {
      for (const std::size_t strips : {1u, 3u}) {
        for (std::uint64_t seed = 0; seed < 5; ++seed) {
          const Errors errors = worst(pieces(blocks, strips, pass, 1, 0.3, seed), 0.2);
          EXPECT_LE(errors.learned, 0.15) << pass << " " << blocks << " " << strips << " " << seed;
          counting_fails = counting_fails || !(errors.counted <= 0.15);
        }
      }
    }
  }
  // The check sees what it is about: pieces that count alike are told apart from the truth.
  EXPECT_TRUE(counting_fails);
}

TEST(TimeLeft, CountsWhatIsSpilled) {
  double neglected = 0;
  for (const double disk : {0.1, 1.0, 10.0}) {
    for (const double pass : {0.5, 5.0}) {
      for (std::uint64_t seed = 0; seed < 5; ++seed) {
        const std::vector<Piece> work = spilled_pieces(4, pass, disk, seed);
        EXPECT_LE(worst(work, 0.2).learned, 0.15) << disk << " " << pass << " " << seed;
        neglected = std::max(neglected, worst(without_disk(work), 0.2).learned);
      }
    }
  }
  EXPECT_GT(neglected, 0.3);
}

TEST(TimeLeft, OneBlockRestsOnTheUnitsUntilTilesAreMet) {
  // Units that are right to a tenth; passes are less than half of the work and come first.
  for (const double pace : {0.9, 1.0, 1.1}) {
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      EXPECT_LE(worst(pieces(1, 0, pace, 1, 0.15, seed), 0.2).learned, 0.15) << pace;
    }
  }
}

TEST(TimeLeft, FollowsAMachineThatSlowsDown) {
  std::vector<Piece> work = pieces(6, 2, 1, 1, 0.2, 1);
  const std::size_t slow = work.size() / 10;
  for (std::size_t i = slow; i < work.size(); ++i) work[i].seconds *= 3;
  EXPECT_LE(worst(work, 0.6).learned, 0.15);
}

TEST(TimeLeft, BeforeAnythingIsDoneAndAtTheEnd) {
  TimeLeft estimate;
  EXPECT_EQ(estimate.left(), std::nullopt);
  EXPECT_EQ(estimate.share(), 0);
  KernelWork work;
  work.total = {10, 30};
  estimate.report(work, 1);
  EXPECT_EQ(estimate.left(), std::nullopt);
  work.done = {5, 0};
  estimate.report(work, 6);
  // Six seconds for five units, and 35 of them are left.
  EXPECT_DOUBLE_EQ(estimate.left().value(), 35 * 6.0 / 5);
  work.done = {10, 30};
  work.kind = WorkKind::Tiles;
  estimate.report(work, 50);
  EXPECT_EQ(estimate.left(), 0.0);
  EXPECT_EQ(estimate.share(), 1.0);
}

}  // namespace
}  // namespace gradgram::ntk
