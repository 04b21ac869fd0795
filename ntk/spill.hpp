#pragma once

#include <cstddef>
#include <string_view>

namespace gradgram::ntk {

/// Whether factors that the memory budget does not hold may wait on disk.
enum class Spill {
  Never,
  Auto,    ///< when that is predicted to be quicker than repeating passes, and the disk has room
  Always,  ///< whenever factors do not fit
};

/// How the factors of an example are had again that meets several blocks.
enum class Reuse {
  Kept,        ///< in memory: there is one block
  Recomputed,  ///< by passing the example again
  Spilled,     ///< from a scratch file
};
constexpr std::string_view reuse_name(Reuse reuse) {
  return reuse == Reuse::Kept ? "kept" : reuse == Reuse::Spilled ? "spilled" : "recomputed";
}

/// Bytes of spilled factors that a call has written to its scratch file and read from it, and that it will in
/// all; both totals sink when the disk refuses.
struct SpillWork {
  std::size_t written = 0, to_write = 0;
  std::size_t read = 0, to_read = 0;
};

}  // namespace gradgram::ntk
