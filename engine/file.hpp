#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <vector>

namespace gradgram {

/// The whole file (a pipe is read to its end). Throws IoError (path and reason) when it cannot be read, is a
/// directory or is larger than `limit` bytes.
std::vector<std::byte> read_file(const std::filesystem::path& path, std::size_t limit = std::size_t{1} << 36);

/// What a symbolic link leads to, there or not, through links to links; `path` itself when it is none. Throws
/// IoError when they lead in a circle.
std::filesystem::path behind_links(std::filesystem::path path);

/// A file that is whole on the disk and has not its name yet, so that several can get theirs together or
/// none: a temporary one in the same folder, removed unless it is committed. A symbolic link is followed; a
/// device or pipe is written directly, since it must not be replaced by a file.
class StagedFile {
 public:
  /// `write` fills a stream; what it throws passes through. Parent folders are not created. Throws IoError
  /// (path and reason).
  StagedFile(const std::filesystem::path& path, const std::function<void(std::ostream&)>& write);
  StagedFile(StagedFile&& other) noexcept;
  StagedFile(const StagedFile&) = delete;
  StagedFile& operator=(const StagedFile&) = delete;
  ~StagedFile();

  /// Gives it its name, in the place of a file that had it. Throws IoError.
  void commit();

 private:
  std::filesystem::path path_;       ///< as messages tell it
  std::filesystem::path target_;     ///< behind symbolic links
  std::filesystem::path temporary_;  ///< empty without one
};

/// Creates `path` whole or not at all: StagedFile, committed at once.
void write_file(const std::filesystem::path& path, const std::function<void(std::ostream&)>& write);

}  // namespace gradgram
