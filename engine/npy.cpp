#include "engine/npy.hpp"

#include <fmt/format.h>
#include <zip.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <ostream>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "engine/file.hpp"

namespace gradgram {
namespace {

static_assert(std::endian::native == std::endian::little,
              "arrays are copied in and out without swapping bytes");

constexpr std::string_view kMagic = "\x93NUMPY";
/// NumPy refuses longer headers too unless it is told to trust the file; ours never come near.
constexpr std::size_t kLongestHeader = std::size_t{1} << 16;
/// Deflate spends at least one bit on a match of 258 bytes; 1032 is the format's limit, and a tiny stream has
/// overhead.
constexpr std::size_t kDeflateRatio = 1032;

std::size_t item_size(NpyType type) {
  switch (type) {
    case NpyType::U1:
      return 1;
    case NpyType::F4:
    case NpyType::I4:
      return 4;
    case NpyType::F8:
    case NpyType::I8:
      return 8;
  }
  throw ArgumentError("npy: unknown element type");
}

struct Header {
  NpyType type = NpyType::F8;
  bool fortran = false;
  std::vector<std::size_t> shape;
  std::size_t begin = 0;  ///< offset of the first element
  std::size_t bytes = 0;  ///< bytes of all elements
};

/// Magic, version and header length: enough to know how far the header reaches.
struct Preamble {
  std::size_t text_begin = 0;
  std::size_t text_length = 0;
};

[[noreturn]] void refuse(const std::string& name, std::size_t offset, const std::string& why) {
  throw FormatError(fmt::format("npy: {}: byte {}: {}", name, offset, why));
}

Preamble parse_preamble(std::span<const std::byte> bytes, const std::string& name) {
  const auto byte = [&](std::size_t i) { return std::to_integer<std::size_t>(bytes[i]); };
  const std::size_t compared = std::min(bytes.size(), kMagic.size());
  for (std::size_t i = 0; i < compared; ++i) {
    if (byte(i) != static_cast<unsigned char>(kMagic[i])) {
      refuse(name, i, fmt::format("expected the magic \\x93NUMPY, found byte {:#04x}", byte(i)));
    }
  }
  if (bytes.size() < 10) refuse(name, bytes.size(), "the file ends inside the first 10 bytes of the header");
  const std::size_t major = byte(6);
  if (major < 1 || major > 3 || byte(7) != 0) {
    refuse(name, 6, fmt::format("format version {}.{} is not 1.0, 2.0 or 3.0", major, byte(7)));
  }
  Preamble preamble;
  if (major == 1) {
    preamble.text_begin = 10;
    preamble.text_length = byte(8) | byte(9) << 8;
  } else {
    if (bytes.size() < 12)
      refuse(name, bytes.size(), "the file ends inside the first 12 bytes of the header");
    preamble.text_begin = 12;
    preamble.text_length = byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24;
  }
  if (preamble.text_length > kLongestHeader) {
    refuse(name, 8,
           fmt::format("a header of {} bytes is longer than the {} allowed", preamble.text_length,
                       kLongestHeader));
  }
  return preamble;
}

/// Reads exactly the dict literal that NumPy writes: three keys, each once, in any order.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, std::size_t offset, const std::string& name)
      : text_(text), offset_(offset), name_(name) {}

  Header parse() {
    expect('{');
    std::optional<NpyType> type;
    std::optional<bool> fortran;
    std::optional<std::vector<std::size_t>> shape;
    while (!accept('}')) {
      const std::size_t key_begin = skip();
      const std::string_view key = quoted();
      expect(':');
      if (key == "descr" && !type) {
        type = parse_type();
      } else if (key == "fortran_order" && !fortran) {
        fortran = parse_bool();
      } else if (key == "shape" && !shape) {
        shape = parse_shape();
      } else {
        fail(key_begin,
             fmt::format("key '{}' is unknown or repeated; expected 'descr', 'fortran_order' and 'shape' "
                         "once each",
                         key));
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    const std::size_t end = skip();
    if (end != text_.size()) fail(end, "only padding may follow the header's closing brace");
    if (!type || !fortran || !shape) {
      fail(0, fmt::format("the header lacks '{}'", !type ? "descr" : !fortran ? "fortran_order" : "shape"));
    }
    Header header;
    header.type = *type;
    header.fortran = *fortran;
    header.shape = std::move(*shape);
    header.bytes = item_size(header.type);
    for (const std::size_t extent : header.shape) {
      if (extent != 0 && header.bytes > std::numeric_limits<std::size_t>::max() / extent) {
        fail(shape_begin_,
             fmt::format("the shape ({}) overflows the address space", fmt::join(header.shape, ", ")));
      }
      header.bytes *= extent;
    }
    return header;
  }

 private:
  [[noreturn]] void fail(std::size_t position, const std::string& why) const {
    refuse(name_, offset_ + position, why);
  }
  std::string found() const {
    if (position_ >= text_.size()) return "the end of the header";
    const char character = text_[position_];
    if (character < ' ' || character > '~')
      return fmt::format("byte {:#04x}", static_cast<unsigned char>(character));
    return fmt::format("'{}'", character);
  }
  std::size_t skip() {
    while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\n')) ++position_;
    return position_;
  }
  bool accept(char character) {
    skip();
    if (position_ >= text_.size() || text_[position_] != character) return false;
    ++position_;
    return true;
  }
  void expect(char character) {
    if (!accept(character)) fail(position_, fmt::format("expected '{}', found {}", character, found()));
  }
  std::string_view quoted() {
    skip();
    const char quote = position_ < text_.size() ? text_[position_] : '\0';
    if (quote != '\'' && quote != '"')
      fail(position_, fmt::format("expected a quoted text, found {}", found()));
    const std::size_t begin = position_ + 1;
    const std::size_t end = text_.find(quote, begin);
    if (end == std::string_view::npos) fail(position_, "a quoted text does not end");
    // Whatever is in the file goes into messages: keep to letters that a terminal shows as they are.
    for (std::size_t i = begin; i < end; ++i) {
      if (text_[i] < ' ' || text_[i] > '~' || text_[i] == '\\')
        fail(i, "a quoted text holds an unexpected byte");
    }
    position_ = end + 1;
    return text_.substr(begin, end - begin);
  }
  NpyType parse_type() {
    const std::size_t begin = skip();
    if (position_ < text_.size() && text_[position_] == '[') {
      fail(begin, "records are not read; expected one of <f4, <f8, |u1, <i4, <i8");
    }
    const std::string_view text = quoted();
    for (const NpyType type : {NpyType::F4, NpyType::F8, NpyType::U1, NpyType::I4, NpyType::I8}) {
      if (text == to_string(type)) return type;
    }
    if (text == "<u1") return NpyType::U1;
    fail(begin,
         fmt::format("elements of type '{}' are not read; expected one of <f4, <f8, |u1, <i4, <i8{}", text,
                     text.starts_with('>') ? " (big-endian numbers must be converted first)" : ""));
  }
  bool parse_bool() {
    const std::size_t begin = skip();
    for (const auto& [word, value] :
         {std::pair{std::string_view("True"), true}, {std::string_view("False"), false}}) {
      if (text_.substr(begin).starts_with(word)) {
        position_ += word.size();
        return value;
      }
    }
    fail(begin, fmt::format("expected True or False, found {}", found()));
  }
  std::vector<std::size_t> parse_shape() {
    shape_begin_ = skip();
    expect('(');
    std::vector<std::size_t> shape;
    bool comma = true;
    while (!accept(')')) {
      if (!comma) fail(position_, fmt::format("expected ',' or ')', found {}", found()));
      const std::size_t begin = skip();
      std::size_t extent = 0;
      while (position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9') {
        const auto digit = static_cast<std::size_t>(text_[position_] - '0');
        if (extent > (std::numeric_limits<std::size_t>::max() - digit) / 10) {
          fail(begin, "an extent of the shape overflows the address space");
        }
        extent = extent * 10 + digit;
        ++position_;
      }
      if (position_ == begin) fail(begin, fmt::format("expected an extent of the shape, found {}", found()));
      if (shape.size() == Shape::kMaxRank) {
        fail(shape_begin_, fmt::format("the rank is above the {} that are read", Shape::kMaxRank));
      }
      shape.push_back(extent);
      comma = accept(',');
    }
    if (shape.size() == 1 && !comma) fail(position_ - 1, "a shape of one extent needs a comma, as in (5,)");
    return shape;
  }

  std::string_view text_;
  std::size_t offset_;
  const std::string& name_;
  std::size_t position_ = 0;
  std::size_t shape_begin_ = 0;
};

/// `bytes` must reach at least to the end of the header text.
Header parse_header(std::span<const std::byte> bytes, const std::string& name) {
  const Preamble preamble = parse_preamble(bytes, name);
  if (bytes.size() - preamble.text_begin < preamble.text_length) {
    refuse(name, bytes.size(),
           fmt::format("the file ends inside the header, which declares {} bytes of text",
                       preamble.text_length));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + preamble.text_begin,
                              preamble.text_length);
  Header header = HeaderParser(text, preamble.text_begin, name).parse();
  header.begin = preamble.text_begin + preamble.text_length;
  return header;
}

void check_size(const Header& header, std::size_t there, const std::string& name) {
  if (header.bytes != there) {
    refuse(name, header.begin,
           fmt::format("shape ({}) of {} needs {} bytes, but {} follow the header",
                       fmt::join(header.shape, ", "), to_string(header.type), header.bytes, there));
  }
}

/// Fortran order to C order.
std::vector<std::byte> transposed(const std::vector<std::byte>& bytes, const Header& header) {
  const std::size_t item = item_size(header.type);
  const std::size_t rank = header.shape.size();
  std::vector<std::size_t> stride(rank);  // in the Fortran-ordered source
  std::size_t step = item;
  for (std::size_t axis = 0; axis < rank; ++axis) {
    stride[axis] = step;
    step *= header.shape[axis];
  }
  std::vector<std::byte> result(bytes.size());
  std::vector<std::size_t> index(rank);
  std::size_t source = 0;
  for (std::size_t target = 0; target < result.size(); target += item) {
    std::memcpy(result.data() + target, bytes.data() + source, item);
    for (std::size_t axis = rank; axis-- > 0;) {
      source += stride[axis];
      if (++index[axis] < header.shape[axis]) break;
      source -= stride[axis] * header.shape[axis];
      index[axis] = 0;
    }
  }
  return result;
}

/// The array of a header and its elements in file order.
NpyArray assemble(Header header, std::vector<std::byte> elements) {
  NpyArray array;
  array.type = header.type;
  array.bytes =
      header.fortran && header.shape.size() > 1 ? transposed(elements, header) : std::move(elements);
  array.shape = std::move(header.shape);
  return array;
}

template <class Item, class Visit>
void visit_items(const NpyArray& array, const Visit& visit) {
  const std::size_t count = array.bytes.size() / sizeof(Item);
  for (std::size_t i = 0; i < count; ++i) {
    Item item;
    std::memcpy(&item, array.bytes.data() + i * sizeof(Item), sizeof(Item));
    visit(i, item);
  }
}

/// Calls visit(index, number) with the stored type of every element, in row-major order.
template <class Visit>
void visit_all(const NpyArray& array, const Visit& visit) {
  switch (array.type) {
    case NpyType::F4:
      return visit_items<float>(array, visit);
    case NpyType::F8:
      return visit_items<double>(array, visit);
    case NpyType::U1:
      return visit_items<std::uint8_t>(array, visit);
    case NpyType::I4:
      return visit_items<std::int32_t>(array, visit);
    case NpyType::I8:
      return visit_items<std::int64_t>(array, visit);
  }
}

template <class T>
constexpr NpyType npy_type() {
  if constexpr (std::is_same_v<T, float>) return NpyType::F4;
  if constexpr (std::is_same_v<T, double>) return NpyType::F8;
  if constexpr (std::is_same_v<T, std::int32_t>) return NpyType::I4;
}

template <class T>
StagedFile stage_values(const std::filesystem::path& path, std::span<const std::size_t> shape,
                        std::span<const T> values) {
  if (values.data() == nullptr && !values.empty()) {
    throw ArgumentError("write_npy: the array for " + path.string() + " has no data");
  }
  const std::string header = npy_header(npy_type<T>(), shape);
  return StagedFile(path, [&](std::ostream& stream) {
    stream.write(header.data(), static_cast<std::streamsize>(header.size()));
    stream.write(reinterpret_cast<const char*>(values.data()),
                 static_cast<std::streamsize>(values.size_bytes()));
  });
}

class ZipError {
 public:
  ZipError() { zip_error_init(&error_); }
  ZipError(const ZipError&) = delete;
  ZipError& operator=(const ZipError&) = delete;
  ~ZipError() { zip_error_fini(&error_); }
  zip_error_t* get() noexcept { return &error_; }
  std::string text() { return zip_error_strerror(&error_); }

 private:
  zip_error_t error_{};
};

struct DiscardArchive {
  void operator()(zip_t* archive) const noexcept { zip_discard(archive); }
};
using Archive = std::unique_ptr<zip_t, DiscardArchive>;

struct CloseEntry {
  void operator()(zip_file_t* file) const noexcept { zip_fclose(file); }
};
using Entry = std::unique_ptr<zip_file_t, CloseEntry>;

/// An archive over bytes that outlive it.
Archive open_archive(std::span<const std::byte> bytes, const std::string& name) {
  // libzip would take nothing at all for an archive without entries.
  if (bytes.empty()) throw FormatError(fmt::format("npz: {}: byte 0: the file is empty", name));
  ZipError error;
  zip_source_t* source = zip_source_buffer_create(bytes.data(), bytes.size(), 0, error.get());
  if (source == nullptr) throw FormatError(fmt::format("npz: {}: {}", name, error.text()));
  Archive archive(zip_open_from_source(source, ZIP_RDONLY, error.get()));
  if (!archive) {
    zip_source_free(source);
    throw FormatError(fmt::format("npz: {}: byte 0: not a zip archive, or a damaged one, of {} bytes: {}",
                                  name, bytes.size(), error.text()));
  }
  return archive;
}

/// Reads `count` more bytes of an entry onto the end of `bytes`; memory grows with what has really been
/// unpacked. Returns false when the entry ends before.
bool read_more(zip_file_t* file, std::vector<std::byte>& bytes, std::size_t count, const std::string& name) {
  constexpr std::size_t kChunk = std::size_t{1} << 20;
  const std::size_t goal = bytes.size() + count;
  while (bytes.size() < goal) {
    const std::size_t filled = bytes.size();
    bytes.resize(std::min(goal, filled + std::max(filled, kChunk)));
    const zip_int64_t got = zip_fread(file, bytes.data() + filled, bytes.size() - filled);
    if (got < 0) {
      throw FormatError(fmt::format("npz: {}: byte {}: cannot unpack: {}", name, filled,
                                    zip_error_strerror(zip_file_get_error(file))));
    }
    bytes.resize(filled + static_cast<std::size_t>(got));
    if (got == 0) return false;
  }
  return true;
}

NpyArray read_entry(zip_t* archive, zip_uint64_t index, std::size_t packed_bytes, bool deflated,
                    const std::string& name) {
  const Entry file(zip_fopen_index(archive, index, 0));
  if (!file)
    throw FormatError(fmt::format("npz: {}: cannot open the entry: {}", name, zip_strerror(archive)));
  std::vector<std::byte> head;
  if (read_more(file.get(), head, 12, name)) {
    const Preamble preamble = parse_preamble(head, name);
    // A header too short to fill 12 bytes is refused by its parser, not here.
    const std::size_t reach = preamble.text_begin + preamble.text_length;
    if (reach > head.size()) read_more(file.get(), head, reach - head.size(), name);
  }
  Header header = parse_header(head, name);
  const std::size_t extra = head.size() - header.begin;
  // What a header declares is only believed as far as the packed bytes could unpack to it.
  const std::size_t ratio = deflated ? kDeflateRatio : 1;
  const std::size_t most = packed_bytes > std::numeric_limits<std::size_t>::max() / ratio
                               ? std::numeric_limits<std::size_t>::max()
                               : packed_bytes * ratio;
  if (header.bytes > most || header.bytes < extra) {
    refuse(name, header.begin,
           fmt::format("shape ({}) of {} needs {} bytes, but the entry of {} packed bytes cannot hold them",
                       fmt::join(header.shape, ", "), to_string(header.type), header.bytes, packed_bytes));
  }
  std::vector<std::byte> elements(head.end() - static_cast<std::ptrdiff_t>(extra), head.end());
  if (!read_more(file.get(), elements, header.bytes - extra, name)) check_size(header, elements.size(), name);
  // Reading to the end also makes libzip compare the checksum.
  std::vector<std::byte> beyond;
  if (read_more(file.get(), beyond, 1, name)) {
    refuse(name, header.begin + header.bytes,
           fmt::format("shape ({}) of {} needs {} bytes, but more follow the header",
                       fmt::join(header.shape, ", "), to_string(header.type), header.bytes));
  }
  return assemble(std::move(header), std::move(elements));
}

/// The name of an entry for messages: bytes that a terminal might obey are replaced.
std::string printable(std::string text) {
  for (char& character : text) {
    if (character < ' ' || character > '~') character = '?';
  }
  return text;
}

}  // namespace

std::string npy_header(NpyType type, std::span<const std::size_t> shape) {
  std::string dict = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}",
                                 to_string(type), fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  // Padded so that the elements start at a multiple of 64 bytes, as NumPy does for mapping; at most rank 5,
  // so that the length fits in version 1.0.
  const std::size_t used = kMagic.size() + 4 + dict.size() + 1;
  dict.append((64 - used % 64) % 64, ' ');
  dict += '\n';
  std::string text(kMagic);
  text += '\x01';
  text += '\x00';
  text += static_cast<char>(dict.size() & 0xFF);
  text += static_cast<char>(dict.size() >> 8);
  return text + dict;
}

std::string to_string(NpyType type) {
  switch (type) {
    case NpyType::F4:
      return "<f4";
    case NpyType::F8:
      return "<f8";
    case NpyType::U1:
      return "|u1";
    case NpyType::I4:
      return "<i4";
    case NpyType::I8:
      return "<i8";
  }
  throw ArgumentError("npy: unknown element type");
}

std::size_t NpyArray::size() const {
  return bytes.size() / item_size(type);
}

double NpyArray::at(std::size_t index) const {
  if (index >= size()) {
    throw ShapeError(fmt::format("npy: index {} is outside an array of {} elements", index, size()));
  }
  const auto read = [&]<class Item>(Item item) {
    std::memcpy(&item, bytes.data() + index * sizeof(Item), sizeof(Item));
    return static_cast<double>(item);
  };
  switch (type) {
    case NpyType::F4:
      return read(float{});
    case NpyType::F8:
      return read(double{});
    case NpyType::U1:
      return read(std::uint8_t{});
    case NpyType::I4:
      return read(std::int32_t{});
    case NpyType::I8:
      return read(std::int64_t{});
  }
  throw ArgumentError("npy: unknown element type");
}

template <class T>
Tensor<T> NpyArray::to_tensor() const {
  Tensor<T> tensor{Shape(std::span<const std::size_t>(shape))};
  if (tensor.size() != size()) {
    throw ShapeError(fmt::format("npy: {} elements for shape {}", size(), tensor.shape().to_string()));
  }
  visit_all(*this, [&](std::size_t i, auto value) { tensor.data()[i] = static_cast<T>(value); });
  return tensor;
}

std::vector<std::int32_t> NpyArray::to_labels() const {
  std::vector<std::int32_t> labels(size());
  visit_all(*this, [&](std::size_t i, auto value) {
    using Item = decltype(value);
    if constexpr (std::is_floating_point_v<Item>) {
      // Both bounds are exact in float and double, and the comparison is false for NaN.
      if (!(value >= Item(-2147483648.0) && value < Item(2147483648.0) && value == std::trunc(value))) {
        throw FormatError(fmt::format("npy: label {} is {}, not an integer of 32 bits", i, value));
      }
    } else if (!std::in_range<std::int32_t>(value)) {
      throw FormatError(fmt::format("npy: label {} is {}, not an integer of 32 bits", i, value));
    }
    labels[i] = static_cast<std::int32_t>(value);
  });
  return labels;
}

NpyArray parse_npy(std::span<const std::byte> bytes, const std::string& name) {
  Header header = parse_header(bytes, name);
  const std::span<const std::byte> elements = bytes.subspan(header.begin);
  check_size(header, elements.size(), name);
  return assemble(std::move(header), {elements.begin(), elements.end()});
}

NpyLayout read_npy_layout(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    throw IoError(fmt::format("{}: cannot open: {}", path.string(), std::generic_category().message(errno)));
  std::vector<std::byte> bytes(kLongestHeader + 12);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (file.bad())
    throw IoError(fmt::format("{}: cannot read: {}", path.string(), std::generic_category().message(errno)));
  bytes.resize(static_cast<std::size_t>(file.gcount()));
  Header header = parse_header(bytes, path.string());
  return {header.type, header.fortran, std::move(header.shape), header.begin};
}

NpyArray read_npy(const std::filesystem::path& path) {
  std::vector<std::byte> bytes = read_file(path);
  Header header = parse_header(bytes, path.string());
  check_size(header, bytes.size() - header.begin, path.string());
  // In place: a large array is not held twice.
  bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(header.begin));
  return assemble(std::move(header), std::move(bytes));
}

std::map<std::string, NpyArray> parse_npz(std::span<const std::byte> bytes, const std::string& name) {
  const Archive archive = open_archive(bytes, name);
  std::map<std::string, NpyArray> arrays;
  const auto count = static_cast<zip_uint64_t>(zip_get_num_entries(archive.get(), 0));
  std::size_t packed_total = 0;
  for (zip_uint64_t index = 0; index < count; ++index) {
    zip_stat_t entry;
    constexpr zip_uint64_t kNeeded =
        ZIP_STAT_NAME | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD;
    if (zip_stat_index(archive.get(), index, 0, &entry) != 0 || (entry.valid & kNeeded) != kNeeded) {
      throw FormatError(fmt::format("npz: {}: entry {} of {} cannot be read", name, index, count));
    }
    const std::string entry_name = entry.name;
    const std::string place = name + ": " + printable(entry_name);
    if (!entry_name.ends_with(".npy")) {
      throw FormatError(fmt::format("npz: {}: expected only entries that end in .npy", place));
    }
    if (entry.encryption_method != ZIP_EM_NONE) {
      throw FormatError(fmt::format("npz: {}: encrypted entries are not read", place));
    }
    if (entry.comp_method != ZIP_CM_STORE && entry.comp_method != ZIP_CM_DEFLATE) {
      throw FormatError(fmt::format("npz: {}: compression method {} is not 'stored' or 'deflated'", place,
                                    entry.comp_method));
    }
    // Entries that share packed bytes could unpack the same megabyte a thousand times.
    if (entry.comp_size > bytes.size() - packed_total) {
      throw FormatError(
          fmt::format("npz: {}: the entries up to here declare more packed bytes ({} + {}) than the "
                      "file has ({})",
                      place, packed_total, entry.comp_size, bytes.size()));
    }
    packed_total += entry.comp_size;
    std::string key = entry_name.substr(0, entry_name.size() - 4);
    if (arrays.contains(key)) throw FormatError(fmt::format("npz: {}: the entry appears twice", place));
    arrays.emplace(std::move(key), read_entry(archive.get(), index, entry.comp_size,
                                              entry.comp_method == ZIP_CM_DEFLATE, place));
  }
  return arrays;
}

std::map<std::string, NpyArray> read_npz(const std::filesystem::path& path) {
  return parse_npz(read_file(path), path.string());
}

template <class T>
StagedFile stage_npy(const std::filesystem::path& path, TensorView<const T> values) {
  return stage_values<T>(path, values.shape().extents(), values.span());
}

template <class T>
void write_npy(const std::filesystem::path& path, TensorView<const T> values) {
  stage_npy<T>(path, values).commit();
}

void write_npy(const std::filesystem::path& path, std::span<const std::int32_t> values) {
  const std::size_t extent = values.size();
  stage_values<std::int32_t>(path, {&extent, 1}, values).commit();
}

template <class T>
StagedFile stage_npz(const std::filesystem::path& path, std::span<const NamedTensor<T>> arrays) {
  std::set<std::string> names;
  for (const NamedTensor<T>& array : arrays) {
    if (array.name.empty()) throw ArgumentError("write_npz: an array for " + path.string() + " has no name");
    if (!array.values)
      throw ArgumentError("write_npz: array " + array.name + " for " + path.string() + " has no data");
    if (!names.insert(array.name).second) {
      throw ArgumentError("write_npz: two arrays for " + path.string() + " are named " + array.name);
    }
  }
  ZipError error;
  const auto refuse_archive = [&](const std::string& why) {
    return IoError(fmt::format("write_npz: cannot build {}: {}", path.string(), why));
  };
  struct FreeSource {
    void operator()(zip_source_t* source) const noexcept { zip_source_free(source); }
  };
  using Source = std::unique_ptr<zip_source_t, FreeSource>;
  const Source built(zip_source_buffer_create(nullptr, 0, 0, error.get()));
  if (!built) throw refuse_archive(error.text());
  Archive archive(zip_open_from_source(built.get(), ZIP_TRUNCATE, error.get()));
  if (!archive) throw refuse_archive(error.text());
  zip_source_keep(built.get());  // one reference belongs to the archive now

  std::vector<std::string> headers;
  headers.reserve(arrays.size());
  for (const NamedTensor<T>& array : arrays) {
    std::string& header = headers.emplace_back(npy_header(npy_type<T>(), array.values.shape().extents()));
    // libzip reads the fragments but its structure wants mutable pointers.
    std::array<zip_buffer_fragment_t, 2> fragments{};
    fragments[0] = {reinterpret_cast<zip_uint8_t*>(header.data()), header.size()};
    fragments[1] = {reinterpret_cast<zip_uint8_t*>(const_cast<T*>(array.values.data())),
                    array.values.span().size_bytes()};
    const std::size_t used = array.values.size() == 0 ? 1 : 2;
    Source entry(zip_source_buffer_fragment_create(fragments.data(), used, 0, error.get()));
    if (!entry) throw refuse_archive(error.text());
    const std::string entry_name = array.name + ".npy";
    const zip_int64_t index = zip_file_add(archive.get(), entry_name.c_str(), entry.get(), ZIP_FL_ENC_UTF_8);
    if (index < 0) throw refuse_archive(zip_strerror(archive.get()));
    entry.release();
    // The first day a zip file can name, as NumPy writes it: the bytes do not depend on the clock.
    constexpr zip_uint16_t kFirstDay = (1 << 5) | 1;
    const auto at = static_cast<zip_uint64_t>(index);
    if (zip_set_file_compression(archive.get(), at, ZIP_CM_STORE, 0) != 0 ||
        zip_file_set_dostime(archive.get(), at, 0, kFirstDay, 0) != 0) {
      throw refuse_archive(zip_strerror(archive.get()));
    }
  }
  if (arrays.empty()) {
    // libzip leaves an archive without entries unwritten; this is the end record of an empty one.
    return StagedFile(path, [](std::ostream& stream) {
      constexpr std::array<char, 22> kEmpty = {'P', 'K', '\x05', '\x06'};
      stream.write(kEmpty.data(), kEmpty.size());
    });
  }
  if (zip_close(archive.get()) != 0) throw refuse_archive(zip_strerror(archive.get()));
  archive.release();
  if (zip_source_open(built.get()) != 0)
    throw refuse_archive(zip_error_strerror(zip_source_error(built.get())));
  StagedFile staged(path, [&](std::ostream& stream) {
    std::vector<char> chunk(std::size_t{1} << 20);
    while (true) {
      const zip_int64_t got = zip_source_read(built.get(), chunk.data(), chunk.size());
      if (got < 0) throw refuse_archive(zip_error_strerror(zip_source_error(built.get())));
      if (got == 0) break;
      stream.write(chunk.data(), got);
    }
  });
  zip_source_close(built.get());
  return staged;
}

template <class T>
void write_npz(const std::filesystem::path& path, std::span<const NamedTensor<T>> arrays) {
  stage_npz<T>(path, arrays).commit();
}

template Tensor<float> NpyArray::to_tensor<float>() const;
template Tensor<double> NpyArray::to_tensor<double>() const;
template void write_npy<float>(const std::filesystem::path&, TensorView<const float>);
template void write_npy<double>(const std::filesystem::path&, TensorView<const double>);
template StagedFile stage_npy<float>(const std::filesystem::path&, TensorView<const float>);
template StagedFile stage_npy<double>(const std::filesystem::path&, TensorView<const double>);
template StagedFile stage_npz<float>(const std::filesystem::path&, std::span<const NamedTensor<float>>);
template StagedFile stage_npz<double>(const std::filesystem::path&, std::span<const NamedTensor<double>>);
template void write_npz<float>(const std::filesystem::path&, std::span<const NamedTensor<float>>);
template void write_npz<double>(const std::filesystem::path&, std::span<const NamedTensor<double>>);

}  // namespace gradgram
