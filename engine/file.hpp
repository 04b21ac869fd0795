#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <vector>

namespace gradgram {

/// The whole file. Throws IoError (path and reason) when it cannot be read or is larger than `limit` bytes.
std::vector<std::byte> read_file(const std::filesystem::path& path, std::size_t limit = std::size_t{1} << 36);

/// Creates `path` whole or not at all: `write` fills a stream on a temporary file beside it, which is renamed after a
/// successful flush and removed otherwise. Throws IoError.
void write_file(const std::filesystem::path& path, const std::function<void(std::ostream&)>& write);

}  // namespace gradgram
