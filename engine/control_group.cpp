#include "engine/control_group.hpp"

#include <algorithm>
#include <cstdint>
#include <fstream>

namespace gradgram {
namespace {

/// A number in a one-line file; the greatest value when it is absent or says `max`.
std::size_t limit_in(const std::string& path) {
  std::ifstream file(path);
  std::size_t value = 0;
  return file >> value ? value : SIZE_MAX;
}

/// Microseconds of processor time in every period, as whole processors, rounded up; the greatest value when
/// there is no quota (`max`, or -1).
std::size_t processors_of(long long quota, long long period) {
  if (quota <= 0 || period <= 0) return SIZE_MAX;
  return static_cast<std::size_t>((quota - 1) / period + 1);
}

std::size_t quota_of_version2(const std::string& group) {
  std::ifstream file(group + "/cpu.max");
  long long quota = 0;
  long long period = 0;
  return file >> quota >> period ? processors_of(quota, period) : SIZE_MAX;
}

std::size_t quota_of_version1(const std::string& group) {
  std::ifstream quota_file(group + "/cpu.cfs_quota_us");
  std::ifstream period_file(group + "/cpu.cfs_period_us");
  long long quota = 0;
  long long period = 0;
  return quota_file >> quota && period_file >> period ? processors_of(quota, period) : SIZE_MAX;
}

/// The least limit of the control groups from this process's own up to the root, of version 2 and version 1
/// (there of one controller). limit(folder of a group, whether it is of version 2).
template <class Limit>
std::size_t control_group_limit(const std::string& root, const std::string& controller, Limit limit) {
  std::size_t least = SIZE_MAX;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    // hierarchy:controllers:path, with no controllers for version 2.
    const auto first = line.find(':');
    const auto second = line.find(':', first == std::string::npos ? first : first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::string controllers = line.substr(first, second - first);
    const bool version2 = controllers == ":";
    controllers.front() = ',';
    controllers.push_back(',');
    if (!version2 && controllers.find("," + controller + ",") == std::string::npos) continue;
    const std::string mount = root + (version2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controller);
    std::string path = line.substr(second + 1);
    for (;;) {
      if (path == "/") path.clear();
      least = std::min(least, limit(mount + path, version2));
      if (path.empty()) break;
      path.erase(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
  return least;
}

}  // namespace

std::size_t control_group_memory(const std::string& root) {
  return control_group_limit(root, "memory", [](const std::string& folder, bool version2) {
    return limit_in(folder + (version2 ? "/memory.max" : "/memory.limit_in_bytes"));
  });
}

std::size_t control_group_processors(const std::string& root) {
  return control_group_limit(root, "cpu", [](const std::string& folder, bool version2) {
    return version2 ? quota_of_version2(folder) : quota_of_version1(folder);
  });
}

}  // namespace gradgram
