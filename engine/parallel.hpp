#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <stop_token>

namespace gradgram {

/// Called now and then while long work runs, from one thread at a time: `done` of `total` units.
using Progress = std::function<void(std::size_t done, std::size_t total)>;

/// A group of threads (oneTBB) on which independent pieces of work run. Results must not depend on how many
/// there are: a piece owns what it writes, and nothing is summed across pieces in arrival order.
class Workers {
 public:
  static constexpr std::size_t kMostThreads = 1024;
  /// threads = 0 means every processor that this process may use. Throws ArgumentError above kMostThreads.
  explicit Workers(std::size_t threads = 0);
  ~Workers();
  Workers(Workers&&) noexcept;
  Workers& operator=(Workers&&) noexcept;

  std::size_t count() const noexcept;
  /// Runs piece(index, worker) for every index in [0, pieces), worker in [0, count()): no two running pieces
  /// share a worker number, so scratch may be kept per worker. Starts pieces in ascending order, about. The
  /// first exception is rethrown after the running pieces ended; the rest do not start. Throws Cancelled when
  /// `stop` is requested.
  void run(std::size_t pieces, const std::function<void(std::size_t index, std::size_t worker)>& piece,
           const Progress& progress = {}, std::stop_token stop = {}) const;

 private:
  struct Arena;
  std::unique_ptr<Arena> arena_;
};

}  // namespace gradgram
