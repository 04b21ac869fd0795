#pragma once

#include <chrono>
#include <cstddef>
#include <iosfwd>
#include <string>

#include "engine/parallel.hpp"

namespace gradgram::cli {

/// Shows how far long work is: a bar with rate and time left on a terminal; elsewhere one line as each phase
/// ends and one every ten seconds on the way. Silent when quiet. Used from one thread at a time.
class ProgressMeter {
 public:
  ProgressMeter(std::ostream& err, bool quiet);
  ~ProgressMeter();
  ProgressMeter(const ProgressMeter&) = delete;
  ProgressMeter& operator=(const ProgressMeter&) = delete;

  void update(const std::string& phase, std::size_t done, std::size_t total);
  /// A callback for one phase; refers to this meter.
  Progress phase(std::string name);
  /// Ends the line of an unfinished bar, so that other text may follow.
  void close();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(std::size_t done, std::size_t total, double elapsed);

  std::ostream& err_;
  bool quiet_;
  bool terminal_;
  bool drawn_ = false;
  bool finished_ = false;
  std::string phase_;
  Clock::time_point begin_;
  Clock::time_point shown_;
};

}  // namespace gradgram::cli
