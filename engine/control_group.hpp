#pragma once

#include <cstddef>
#include <string>

/// What the control groups of this process, and those around them, leave it; of version 1 and 2. SIZE_MAX
/// where they set no limit. `root` stands in front of /proc and /sys.
namespace gradgram {

std::size_t control_group_memory(const std::string& root = {});  ///< bytes
/// The quota of processor time as whole processors, rounded up.
std::size_t control_group_processors(const std::string& root = {});

}  // namespace gradgram
