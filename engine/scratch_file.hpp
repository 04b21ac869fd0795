#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

/// Disk as room for what memory does not hold: of one process, for as long as it needs it.
namespace gradgram {

/// $TMPDIR or, where that names no absolute path, /var/tmp: unlike /tmp it is meant for what is large, and
/// mostly no memory.
std::filesystem::path default_scratch_folder();

/// What a folder has to give.
struct ScratchSpace {
  std::filesystem::path folder;
  std::size_t free_bytes = 0;  ///< that an ordinary user may take
  std::size_t left_bytes =
      0;                   ///< of these not for scratch: a twentieth of the file system, 1 GiB at the least
  bool in_memory = false;  ///< a file system that keeps its files in memory, such as tmpfs
  std::string problem;     ///< why there is nothing; empty when the folder can be used

  std::size_t usable_bytes() const { return free_bytes > left_bytes ? free_bytes - left_bytes : 0; }
};
/// Never throws for what the system says: see `problem`.
ScratchSpace scratch_space(const std::filesystem::path& folder);

/// A file without a name: nobody else sees it, and the system takes its bytes back when this process closes
/// it or ends, however it ends.
class ScratchFile {
 public:
  /// Reserves `bytes` where the file system can do that, so that a full disk is told now. Throws IoError with
  /// the folder, `bytes` and what is free.
  ScratchFile(const std::filesystem::path& folder, std::size_t bytes);
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  /// Several threads may write and read at once where their bytes differ. Throw IoError with the folder, the
  /// bytes and the system's reason; read() also when the file ends before.
  void write(std::span<const std::byte> data, std::size_t offset) const;
  void read(std::span<std::byte> data, std::size_t offset) const;
  /// Has the system fetch what is going to be read soon: of one request some MiB at the most. May wait for
  /// the disk, and never fails.
  void fetch(std::size_t offset, std::size_t bytes) const noexcept;
  /// Everything written so far to the disk.
  void flush() const;
  /// Puts what has been flushed out of the system's cache, where that can be done.
  void forget() const noexcept;

 private:
  std::filesystem::path folder_;
  int descriptor_ = -1;
};

/// In bytes/s.
struct ScratchRates {
  double write = 0, read = 0;
};
/// Writes, flushes and reads again 16 to 128 MiB, as much as the disk takes within a quarter of a second, in
/// one thread. What was written is put out of the system's cache before it is read; caches of the disk, or of
/// the machine that a virtual one runs on, still flatter. Throws IoError.
ScratchRates measure_scratch(const std::filesystem::path& folder);

}  // namespace gradgram
