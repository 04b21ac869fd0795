#pragma once

#include <ctime>

namespace gradgram::ntk {

/// Processor time of this thread so far: what else the machine does is not in it.
inline double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace gradgram::ntk
