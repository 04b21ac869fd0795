#include <fmt/format.h>

#include <cstring>

#include "datasets/formats.hpp"
#include "datasets/named.hpp"
#include "engine/error.hpp"

namespace gradgram::datasets {

Examples parse_cifar10(std::span<const std::byte> bytes, const std::string& name) {
  constexpr std::size_t kPixels = 3 * 32 * 32;
  constexpr std::size_t kRecord = 1 + kPixels;
  if (bytes.empty() || bytes.size() % kRecord != 0) {
    throw FormatError(
        fmt::format("cifar10: {}: byte {}: the file must hold whole records of {} bytes, but has {} bytes",
                    name, bytes.size() - bytes.size() % kRecord, kRecord, bytes.size()));
  }
  const std::size_t count = bytes.size() / kRecord;
  Examples examples;
  examples.class_names = named_classes("cifar10");
  examples.channels_first = true;
  examples.pixels = true;
  examples.values = {NpyType::U1, {count, 3, 32, 32}, std::vector<std::byte>(count * kPixels)};
  examples.labels.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto label = std::to_integer<std::int32_t>(bytes[i * kRecord]);
    if (label >= static_cast<std::int32_t>(examples.class_names.size())) {
      throw FormatError(fmt::format("cifar10: {}: byte {}: label {} of record {} is not 0 to 9", name,
                                    i * kRecord, label, i));
    }
    examples.labels.push_back(label);
    std::memcpy(examples.values.bytes.data() + i * kPixels, bytes.data() + i * kRecord + 1, kPixels);
  }
  return examples;
}

}  // namespace gradgram::datasets
