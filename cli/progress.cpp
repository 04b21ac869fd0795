#include "cli/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

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

void ProgressMeter::update(const std::string& phase, std::size_t done, std::size_t total) {
  if (quiet_) return;
  const Clock::time_point now = Clock::now();
  if (phase != phase_) {
    close();
    phase_ = phase;
    begin_ = shown_ = now;
    finished_ = false;
  }
  if (finished_) return;
  const double elapsed = std::chrono::duration<double>(now - begin_).count();
  const double since = std::chrono::duration<double>(now - shown_).count();
  finished_ = done >= total;
  if (terminal_) {
    if (!finished_ && since < 0.1) return;
    draw(done, total, elapsed);
  } else if (finished_) {
    err_ << fmt::format("{}: {}\n", phase, seconds_text(elapsed)) << std::flush;
  } else if (since >= 10) {
    const double left =
        done == 0 ? 0 : elapsed * static_cast<double>(total - done) / static_cast<double>(done);
    err_ << fmt::format("{}: {} of {}{}\n", phase, grouped(done), grouped(total),
                        done == 0 ? "" : ", " + seconds_text(left) + " left")
         << std::flush;
  } else {
    return;
  }
  shown_ = now;
}

void ProgressMeter::draw(std::size_t done, std::size_t total, double elapsed) {
  constexpr std::size_t kWidth = 30;
  const double share = total == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total);
  const auto filled = static_cast<std::size_t>(share * kWidth);
  std::string bar;
  for (std::size_t i = 0; i < kWidth; ++i) bar += i < filled ? "━" : "·";
  std::string tail;
  if (finished_) {
    tail = seconds_text(elapsed);
  } else if (done > 0 && elapsed > 0.2) {
    tail = fmt::format("{}/s, {} left", significant(static_cast<double>(done) / elapsed, 2),
                       seconds_text(elapsed * (1 - share) / share));
  }
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
