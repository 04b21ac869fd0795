#pragma once

#include <chrono>
#include <cstddef>
#include <iosfwd>
#include <string>

#include "engine/parallel.hpp"
#include "ntk/time_left.hpp"

namespace gradgram::cli {

/// Shows how far long work is: a bar with the time gone and left on a terminal; elsewhere one line as each
/// phase ends and one every ten seconds on the way. Silent when quiet. Used from one thread at a time.
class ProgressMeter {
 public:
  ProgressMeter(std::ostream& err, bool quiet);
  ~ProgressMeter();
  ProgressMeter(const ProgressMeter&) = delete;
  ProgressMeter& operator=(const ProgressMeter&) = delete;

  void update(const std::string& phase, std::size_t done, std::size_t total);
  /// A callback for one phase; refers to this meter.
  Progress phase(std::string name);
  /// The same for a kernel, whose time left is learned for each kind of its work.
  ntk::WorkProgress work(std::string name);
  /// Ends the line of an unfinished bar, so that other text may follow.
  void close();

 private:
  using Clock = std::chrono::steady_clock;
  /// `left`: seconds, below zero when not known yet.
  void show(const std::string& phase, bool finished, double share, double left);
  /// Turns to a phase and tells how long it has been running.
  double enter(const std::string& phase);
  void draw(double share, double elapsed, double left);

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
