#include "engine/scratch_file.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <system_error>
#include <vector>

#include "engine/error.hpp"

namespace gradgram {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kLeastLeft = std::size_t{1} << 30;
constexpr std::size_t kLeftPart = 20;

std::string reason(int error) {
  return std::generic_category().message(error);
}

/// A file of the caller's own, whose name is gone as soon as it is there.
int open_unnamed(const fs::path& folder) {
  const int unnamed = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (unnamed >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return unnamed;
  // Not every file system has such files.
  std::random_device device;
  fs::path path;
  int named = -1;
  do {
    const std::uint64_t number = (std::uint64_t{device()} << 32) | device();
    path = folder / (".gradgram-" + std::to_string(number) + ".scratch");
    named = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  } while (named < 0 && errno == EEXIST);
  if (named >= 0) ::unlink(path.c_str());
  return named;
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

fs::path default_scratch_folder() {
  const char* const given = std::getenv("TMPDIR");
  const fs::path path = given == nullptr ? "" : given;
  return path.is_absolute() ? path : fs::path("/var/tmp");
}

ScratchSpace scratch_space(const fs::path& folder) {
  ScratchSpace space;
  space.folder = folder;
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    space.problem = fs::exists(folder, error) ? "it is not a folder" : "there is no such folder";
    return space;
  }
  struct statvfs room {};
  struct statfs kind {};
  if (::access(folder.c_str(), W_OK | X_OK) != 0 || ::statvfs(folder.c_str(), &room) != 0 ||
      ::statfs(folder.c_str(), &kind) != 0) {
    space.problem = reason(errno);
    return space;
  }
  space.free_bytes = std::size_t{room.f_bavail} * room.f_frsize;
  space.left_bytes = std::max(kLeastLeft, std::size_t{room.f_blocks} * room.f_frsize / kLeftPart);
  space.in_memory = kind.f_type == TMPFS_MAGIC || kind.f_type == RAMFS_MAGIC;
  return space;
}

ScratchFile::ScratchFile(const fs::path& folder, std::size_t bytes)
    : folder_(folder), descriptor_(open_unnamed(folder)) {
  if (descriptor_ < 0) {
    throw IoError("scratch file: cannot create a file in " + folder.string() + ": " + reason(errno));
  }
  int error = 0;
  do {
    error = bytes == 0 || ::fallocate(descriptor_, 0, 0, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  } while (error == EINTR);
  // posix_fallocate() would write every block where the file system cannot reserve.
  if (error == 0 || error == EOPNOTSUPP || error == ENOSYS) return;
  ::close(descriptor_);
  throw IoError("scratch file: cannot reserve " + std::to_string(bytes) + " bytes in " + folder.string() +
                " (" + std::to_string(scratch_space(folder).free_bytes) +
                " bytes are free): " + reason(error));
}

ScratchFile::~ScratchFile() {
  ::close(descriptor_);
}

void ScratchFile::write(std::span<const std::byte> data, std::size_t offset) const {
  const std::size_t bytes = data.size();
  while (!data.empty()) {
    const ssize_t written = ::pwrite(descriptor_, data.data(), data.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      const int error = written < 0 ? errno : ENOSPC;
      throw IoError("scratch file: cannot write " + std::to_string(bytes) + " bytes behind " +
                    std::to_string(offset) + " others in " + folder_.string() + " (" +
                    std::to_string(scratch_space(folder_).free_bytes) + " bytes are free): " + reason(error));
    }
    data = data.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::size_t>(written);
  }
}

void ScratchFile::read(std::span<std::byte> data, std::size_t offset) const {
  while (!data.empty()) {
    const ssize_t got = ::pread(descriptor_, data.data(), data.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw IoError("scratch file: cannot read " + std::to_string(data.size()) + " bytes at " +
                    std::to_string(offset) + " of the file in " + folder_.string() + ": " +
                    (got < 0 ? reason(errno) : "it ends before"));
    }
    data = data.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::size_t>(got);
  }
}

void ScratchFile::fetch(std::size_t offset, std::size_t bytes) const noexcept {
  ::posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_WILLNEED);
}

void ScratchFile::flush() const {
  if (::fdatasync(descriptor_) != 0) {
    throw IoError("scratch file: cannot write to " + folder_.string() + ": " + reason(errno));
  }
}

void ScratchFile::forget() const noexcept {
  ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);
}

ScratchRates measure_scratch(const fs::path& folder) {
  constexpr std::size_t kPart = std::size_t{16} << 20;
  constexpr std::size_t kMost = 8;
  constexpr double kSeconds = 0.25;
  using Clock = std::chrono::steady_clock;
  std::vector<std::byte> data(kPart);
  // No zeros, which a disk may compress.
  std::uint64_t state = 1;
  for (std::byte& byte : data) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    byte = static_cast<std::byte>(state >> 56);
  }
  const ScratchFile file(folder, kPart * kMost);
  std::size_t parts = 0;
  const auto begin = Clock::now();
  double writing = 0;
  do {
    file.write(data, parts++ * kPart);
    file.flush();
    writing = seconds_since(begin);
  } while (parts < kMost && writing < kSeconds);
  file.forget();
  const auto again = Clock::now();
  for (std::size_t part = 0; part < parts; ++part) file.read(data, part * kPart);
  const double bytes = static_cast<double>(parts * kPart);
  return {bytes / writing, bytes / seconds_since(again)};
}

}  // namespace gradgram
