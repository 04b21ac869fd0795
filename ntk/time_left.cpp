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
    const double fade = kind.total > 0 ? std::exp(-3 * units / kind.total) : 1;
    kind.units = fade * kind.units + units;
    kind.seconds = fade * kind.seconds + std::max(0.0, now - now_);
  }
  now_ = std::max(now_, now);
}

std::optional<double> TimeLeft::left() const {
  double units = 0;
  double seconds = 0;
  for (const Kind& kind : kinds_) {
    units += kind.units;
    seconds += kind.seconds;
  }
  if (units <= 0) return std::nullopt;
  double left = 0;
  for (const Kind& kind : kinds_) {
    const double pace = kind.units > 0 ? kind.seconds / kind.units : seconds / units;
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
