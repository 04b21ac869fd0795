#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "datasets/formats.hpp"
#include "datasets/gzip.hpp"
#include "engine/error.hpp"

namespace gradgram::datasets {
namespace {

struct Kind {
  std::uint8_t code;
  std::size_t width;  // bytes of an element in the file
  NpyType type;       // how it comes out
};

constexpr std::array<Kind, 6> kKinds = {{{0x08, 1, NpyType::U1},
                                         {0x09, 1, NpyType::I4},
                                         {0x0B, 2, NpyType::I4},
                                         {0x0C, 4, NpyType::I4},
                                         {0x0D, 4, NpyType::F4},
                                         {0x0E, 8, NpyType::F8}}};

[[noreturn]] void refuse(const std::string& name, std::size_t offset, const std::string& why) {
  throw FormatError(fmt::format("idx: {}: byte {}: {}", name, offset, why));
}

struct Header {
  Kind kind{};
  std::vector<std::size_t> shape;
  std::size_t begin = 0;
  std::size_t bytes = 0;  // of the elements
};

/// How long the whole header is, from its first four bytes.
std::size_t header_length(std::span<const std::byte> bytes, const std::string& name) {
  if (bytes.size() < 4) refuse(name, bytes.size(), "the file ends inside the 4 bytes of the magic number");
  const std::size_t rank = std::to_integer<std::size_t>(bytes[3]);
  if (bytes[0] != std::byte{0} || bytes[1] != std::byte{0}) {
    refuse(
        name, 0,
        fmt::format("expected the magic number of an IDX file (00 00 type rank), found {:02x} {:02x} {:02x} "
                    "{:02x}",
                    std::to_integer<int>(bytes[0]), std::to_integer<int>(bytes[1]),
                    std::to_integer<int>(bytes[2]), rank));
  }
  if (rank < 1 || rank > Shape::kMaxRank) {
    refuse(name, 3, fmt::format("rank {} is not 1 to {}", rank, Shape::kMaxRank));
  }
  return 4 + 4 * rank;
}

Header parse_header(std::span<const std::byte> bytes, const std::string& name) {
  Header header;
  header.begin = header_length(bytes, name);
  const auto code = std::to_integer<std::uint8_t>(bytes[2]);
  const auto kind = std::ranges::find(kKinds, code, &Kind::code);
  if (kind == kKinds.end()) {
    refuse(name, 2,
           fmt::format("element type {:#04x} is not 0x08 (u8), 0x09, 0x0b, 0x0c (i8, i16, i32), 0x0d or 0x0e "
                       "(f32, f64)",
                       code));
  }
  header.kind = *kind;
  if (bytes.size() < header.begin)
    refuse(name, bytes.size(), "the file ends inside the extents of the header");
  header.bytes = kind->width;
  for (std::size_t at = 4; at < header.begin; at += 4) {
    std::size_t extent = 0;
    for (std::size_t i = 0; i < 4; ++i) extent = extent << 8 | std::to_integer<std::size_t>(bytes[at + i]);
    if (extent != 0 && header.bytes > std::numeric_limits<std::size_t>::max() / 4 / extent) {
      refuse(name, at, "the extents overflow the address space");
    }
    header.bytes *= extent;
    header.shape.push_back(extent);
  }
  return header;
}

void check_size(const Header& header, std::size_t there, bool more, const std::string& name) {
  if (header.bytes == there && !more) return;
  refuse(name, header.begin,
         fmt::format("extents ({}) need {} bytes, but {}{} follow the header", fmt::join(header.shape, ", "),
                     header.bytes, more ? "more than " : "", there));
}

/// Big-endian elements of the file in the native type that `Stored` widens to.
template <class Bits, class Stored, class Out>
std::vector<std::byte> convert(std::span<const std::byte> source) {
  const std::size_t count = source.size() / sizeof(Bits);
  std::vector<std::byte> result(count * sizeof(Out));
  for (std::size_t i = 0; i < count; ++i) {
    Bits bits = 0;
    for (std::size_t k = 0; k < sizeof(Bits); ++k) {
      bits = static_cast<Bits>((std::uint64_t{bits} << 8) |
                               std::to_integer<std::uint8_t>(source[i * sizeof(Bits) + k]));
    }
    const Out value = static_cast<Out>(std::bit_cast<Stored>(bits));
    std::memcpy(result.data() + i * sizeof(Out), &value, sizeof(Out));
  }
  return result;
}

NpyArray assemble(const Header& header, std::vector<std::byte> elements) {
  NpyArray array;
  array.type = header.kind.type;
  array.shape = header.shape;
  switch (header.kind.code) {
    case 0x08:
      array.bytes = std::move(elements);
      break;
    case 0x09:
      array.bytes = convert<std::uint8_t, std::int8_t, std::int32_t>(elements);
      break;
    case 0x0B:
      array.bytes = convert<std::uint16_t, std::int16_t, std::int32_t>(elements);
      break;
    case 0x0C:
      array.bytes = convert<std::uint32_t, std::int32_t, std::int32_t>(elements);
      break;
    case 0x0D:
      array.bytes = convert<std::uint32_t, float, float>(elements);
      break;
    default:
      array.bytes = convert<std::uint64_t, double, double>(elements);
      break;
  }
  return array;
}

}  // namespace

NpyArray parse_idx(std::span<const std::byte> bytes, const std::string& name) {
  if (!Gunzip::recognizes(bytes)) {
    const Header header = parse_header(bytes, name);
    const auto elements = bytes.subspan(header.begin);
    check_size(header, elements.size(), false, name);
    return assemble(header, {elements.begin(), elements.end()});
  }
  Gunzip gunzip(bytes, name);
  std::vector<std::byte> head;
  gunzip.append(head, 4);
  gunzip.append(head, header_length(head, name) - head.size());
  const Header header = parse_header(head, name);
  std::vector<std::byte> elements;
  gunzip.append(elements, header.bytes);
  check_size(header, elements.size(), false, name);
  // One byte more than declared: there must be none, and asking makes zlib compare the checksum.
  std::vector<std::byte> beyond;
  gunzip.append(beyond, 1);
  check_size(header, elements.size(), !beyond.empty(), name);
  return assemble(header, std::move(elements));
}

Examples idx_examples(NpyArray images, const NpyArray& labels, std::vector<std::string> class_names,
                      const std::string& images_name, const std::string& labels_name) {
  if (labels.shape.size() != 1) {
    refuse(labels_name, 3, fmt::format("labels must have rank 1, not {}", labels.shape.size()));
  }
  Examples examples = array_examples(std::move(images), std::nullopt, images_name);
  if (labels.shape[0] != examples.size()) {
    refuse(labels_name, 4,
           fmt::format("{} labels for the {} images of {}", labels.shape[0], examples.size(), images_name));
  }
  const bool named = !class_names.empty();
  constexpr std::int32_t kMostClasses = 1000;
  const std::int32_t bound = named ? static_cast<std::int32_t>(class_names.size()) : kMostClasses;
  std::int32_t largest = 0;
  examples.labels.reserve(labels.size());
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const double label = labels.at(i);
    if (!(label >= 0 && label < bound && label == std::floor(label))) {
      refuse(labels_name, 8 + i * (labels.bytes.size() / labels.size()),
             fmt::format("label {} of example {} is not a whole number below {}", label, i, bound));
    }
    examples.labels.push_back(static_cast<std::int32_t>(label));
    largest = std::max(largest, examples.labels.back());
  }
  if (!named) {
    for (std::int32_t label = 0; label <= largest; ++label) class_names.push_back(std::to_string(label));
  }
  examples.class_names = std::move(class_names);
  return examples;
}

}  // namespace gradgram::datasets
