#include "cli/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>

#include "cli/text.hpp"

namespace gradgram::cli {

ProgressMeter::ProgressMeter(std::ostream& err, bool quiet)
    : err_(err), quiet_(quiet), terminal_(&err == &std::cerr && isatty(STDERR_FILENO) != 0) {}

ProgressMeter::~ProgressMeter() {
  close();
}

Progress ProgressMeter::phase(std::string name) {
  return [this, name = std::move(name)](std::size_t done, std::size_t total) { update(name, done, total); };
}

ntk::WorkProgress ProgressMeter::work(std::string name) {
  return [this, name = std::move(name), estimate = ntk::TimeLeft()](const ntk::KernelWork& work) mutable {
    if (quiet_) return;
    estimate.report(work, enter(name));
    const bool finished = std::equal(work.done.begin(), work.done.end(), work.total.begin(),
                                     [](double done, double total) { return done >= total; });
    show(name, finished, estimate.share(), estimate.left().value_or(-1));
  };
}

void ProgressMeter::update(const std::string& phase, std::size_t done, std::size_t total) {
  if (quiet_) return;
  const double elapsed = enter(phase);
  const double share = total == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total);
  show(phase, done >= total, share, done == 0 ? -1 : elapsed * (1 - share) / share);
}

double ProgressMeter::enter(const std::string& phase) {
  const Clock::time_point now = Clock::now();
  if (phase != phase_) {
    close();
    phase_ = phase;
    begin_ = shown_ = now;
    finished_ = false;
  }
  return std::chrono::duration<double>(now - begin_).count();
}

void ProgressMeter::show(const std::string& phase, bool finished, double share, double left) {
  if (finished_) return;
  const Clock::time_point now = Clock::now();
  const double elapsed = std::chrono::duration<double>(now - begin_).count();
  const double since = std::chrono::duration<double>(now - shown_).count();
  finished_ = finished;
  if (terminal_) {
    if (!finished_ && since < 0.1) return;
    draw(share, elapsed, left);
  } else if (finished_) {
    err_ << fmt::format("{}: {}\n", phase, seconds_text(elapsed)) << std::flush;
  } else if (since >= 10) {
    err_ << fmt::format("{}: {} in {}{}\n", phase, percent(share), seconds_text(elapsed),
                        left < 0 ? "" : ", " + seconds_text(left) + " left")
         << std::flush;
  } else {
    return;
  }
  shown_ = now;
}

void ProgressMeter::draw(double share, double elapsed, double left) {
  constexpr std::size_t kWidth = 30;
  const auto filled = static_cast<std::size_t>(share * kWidth);
  std::string bar;
  for (std::size_t i = 0; i < kWidth; ++i) bar += i < filled ? "━" : "·";
  std::string tail = seconds_text(elapsed);
  if (!finished_ && left >= 0 && elapsed > 0.2) tail += ", " + seconds_text(left) + " left";
  err_ << fmt::format("\r\033[K{:<20} {} {:>4} {}", phase_, bar, percent(share), tail);
  if (finished_) err_ << '\n';
  err_ << std::flush;
  drawn_ = !finished_;
}

void ProgressMeter::close() {
  if (drawn_) err_ << '\n' << std::flush;
  drawn_ = false;
}

}  // namespace gradgram::cli
