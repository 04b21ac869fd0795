#include "ntk/time_left.hpp"

#include <algorithm>
#include <cmath>

namespace gradgram::ntk {

void TimeLeft::report(const KernelWork& work, double now) {
  for (std::size_t k = 0; k < kinds_.size(); ++k) {
    Kind& kind = kinds_[k];
    const double units = std::max(0.0, work.done[k] - kind.done);
    kind.done = std::max(kind.done, work.done[k]);
    kind.total = work.total[k];
    if (k != static_cast<std::size_t>(work.kind)) continue;
    kind.waiting += std::max(0.0, now - now_);
    if (units <= 0) continue;
    const double fade = kind.total > 0 ? std::exp(-3 * units / kind.total) : 1;
    kind.units = fade * kind.units + units;
    kind.seconds = fade * kind.seconds + kind.waiting;
    kind.waiting = 0;
    ++kind.pieces;
  }
  now_ = std::max(now_, now);
}

std::optional<double> TimeLeft::left() const {
  Kind all;
  for (const Kind& kind : kinds_) {
    all.units += kind.units;
    all.seconds += kind.seconds;
    all.pieces += kind.pieces;
  }
  if (all.pieces == 0) return std::nullopt;
  double left = 0;
  for (std::size_t k = 0; k < kinds_.size(); ++k) {
    const Kind& kind = kinds_[k];
    // What the processor does tells of the processor, and what the disk does of the disk.
    Kind other = kinds_[k ^ 1];
    if (other.pieces == 0) {
      other = {.units = all.units - kind.units,
               .seconds = all.seconds - kind.seconds,
               .pieces = all.pieces - kind.pieces};
    }
    // The first pieces of a kind say little, so the other one's pace counts as well, but soon no longer.
    const double trust = kind.pieces == 0    ? 0
                         : other.pieces == 0 ? 1
                                             : 1 - std::exp(-static_cast<double>(kind.pieces) / 3);
    const double pace = (trust > 0 ? trust * kind.seconds / kind.units : 0) +
                        (trust < 1 ? (1 - trust) * other.seconds / other.units : 0);
    left += std::max(0.0, kind.total - kind.done) * pace;
  }
  return left;
}

double TimeLeft::share() const {
  const std::optional<double> rest = left();
  if (!rest) return 0;
  return now_ + *rest > 0 ? now_ / (now_ + *rest) : 1;
}

}  // namespace gradgram::ntk
