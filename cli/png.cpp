#include "cli/png.hpp"

#include <png.h>

#include "engine/error.hpp"

namespace gradgram::cli {

std::vector<std::uint8_t> encode_png(std::span<const std::uint8_t> pixels, std::size_t width,
                                     std::size_t height, std::size_t channels) {
  if ((channels != 1 && channels != 3) || pixels.size() != width * height * channels || pixels.empty()) {
    throw ShapeError("png: " + std::to_string(pixels.size()) + " bytes are not an image of " +
                     std::to_string(width) + " x " + std::to_string(height) + " x " +
                     std::to_string(channels) + " (1 or 3 channels)");
  }
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(width);
  image.height = static_cast<png_uint_32>(height);
  image.format = channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  png_alloc_size_t size = 0;
  if (png_image_write_to_memory(&image, nullptr, &size, 0, pixels.data(), 0, nullptr) == 0) {
    throw Error(std::string("png: ") + image.message);
  }
  std::vector<std::uint8_t> bytes(size);
  if (png_image_write_to_memory(&image, bytes.data(), &size, 0, pixels.data(), 0, nullptr) == 0) {
    throw Error(std::string("png: ") + image.message);
  }
  bytes.resize(size);
  return bytes;
}

std::string base64(std::span<const std::uint8_t> bytes) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t left = bytes.size() - i;
    std::uint32_t word = std::uint32_t{bytes[i]} << 16U;
    if (left > 1) word |= std::uint32_t{bytes[i + 1]} << 8U;
    if (left > 2) word |= bytes[i + 2];
    text += kDigits[word >> 18U & 63U];
    text += kDigits[word >> 12U & 63U];
    text += left > 1 ? kDigits[word >> 6U & 63U] : '=';
    text += left > 2 ? kDigits[word & 63U] : '=';
  }
  return text;
}

}  // namespace gradgram::cli
