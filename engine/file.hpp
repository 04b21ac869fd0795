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

/// Creates `path` whole or not at all: `write` fills a stream on a temporary file in the same folder, which
/// is flushed to the disk and renamed to `path`, or removed when anything fails; what `write` throws passes
/// through. A symbolic link is followed; a device or pipe is written directly, since it must not be replaced
/// by a file. Parent folders are not created. Throws IoError (path and reason).
void write_file(const std::filesystem::path& path, const std::function<void(std::ostream&)>& write);

}  // namespace gradgram
