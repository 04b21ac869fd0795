#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace gradgram::cli {

/// An 8-bit image, [height, width, channels] with 1 (grey) or 3 (RGB) channels, as a PNG file. Throws Error.
std::vector<std::uint8_t> encode_png(std::span<const std::uint8_t> pixels, std::size_t width,
                                     std::size_t height, std::size_t channels);
std::string base64(std::span<const std::uint8_t> bytes);

}  // namespace gradgram::cli
