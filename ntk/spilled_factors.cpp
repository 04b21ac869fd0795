#include "ntk/spilled_factors.hpp"

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>

#include "engine/error.hpp"

namespace gradgram::ntk {
namespace {

/// What is fetched with one request: the system cuts longer ones off, and the work may end in between.
constexpr std::size_t kFetchBytes = std::size_t{1} << 20;

/// Adds the seconds of its life to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds), begin_(Clock::now()) {}
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  double& seconds_;
  Clock::time_point begin_;
};

}  // namespace

template <class T>
SpilledFactors<T>::SpilledFactors(const Plan& plan, const KernelOptions& options, const Workers& workers,
                                  std::size_t blocks)
    : options_(options), workers_(workers), block_bytes_(plan.factor_bytes(plan.streamed)) {
  if (blocks == 0) return;
  try {
    file_.emplace(plan.request.scratch.folder,
                  checked_multiply(blocks, block_bytes_, "kernel: spilled bytes"));
  } catch (const IoError& error) {
    give_up(error.what());
  }
}

template <class T>
void SpilledFactors<T>::give_up(const std::string& what) {
  if (!given_up_ && options_.notice) {
    options_.notice(what + "; gradients that are not there are computed again instead");
  }
  given_up_ = true;
}

template <class T>
void SpilledFactors<T>::write(std::size_t begin, const Factors<T>& block) {
  write(begin, block, 0, 0, block);
}

template <class T>
void SpilledFactors<T>::write(std::size_t begin, const Factors<T>& from, std::size_t first, std::size_t count,
                              const Factors<T>& block) {
  if (!file_ || given_up_) return;
  const Stopwatch watch(writing_);
  const auto strips = block.strips();
  try {
    workers_.run(
        strips.size(),
        [&](std::size_t index, std::size_t) {
          const auto& strip = strips[index];
          if (&from != &block) block.copy(strip, from, first, count);
          file_->write(strip.bytes, end_ + strip.offset);
        },
        {}, options_.stop);
  } catch (const IoError& error) {
    give_up(error.what());
    return;
  }
  places_[begin] = end_;
  end_ += block_bytes_;
  written_bytes_ += block_bytes_;
}

template <class T>
bool SpilledFactors<T>::read(std::size_t begin, const Factors<T>& block) {
  const auto place = places_.find(begin);
  if (place == places_.end()) return false;
  const Stopwatch watch(reading_);
  const auto strips = block.strips();
  try {
    workers_.run(
        strips.size(),
        [&](std::size_t index, std::size_t) {
          file_->read(strips[index].bytes, place->second + strips[index].offset);
        },
        {}, options_.stop);
  } catch (const IoError& error) {
    places_.erase(place);
    give_up(error.what());
    return false;
  }
  return true;
}

template <class T>
void SpilledFactors<T>::fetch(std::size_t begin) {
  const auto place = places_.find(begin);
  if (place == places_.end()) return;
  const auto fetch = [&file = *file_, offset = place->second,
                      bytes = block_bytes_](const std::stop_token& stop) {
    for (std::size_t at = 0; at < bytes && !stop.stop_requested(); at += kFetchBytes) {
      file.fetch(offset + at, std::min(kFetchBytes, bytes - at));
    }
  };
  try {
    // In a thread of its own: once the disk's queue is full a request waits.
    fetching_ = std::jthread(fetch);
  } catch (const std::system_error&) {
    // Without another thread the block is read when it is needed.
  }
}

template class SpilledFactors<float>;
template class SpilledFactors<double>;

}  // namespace gradgram::ntk
