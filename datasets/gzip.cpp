#include "datasets/gzip.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <limits>
#include <new>

#include "engine/error.hpp"

namespace gradgram::datasets {

struct Gunzip::State {
  std::span<const std::byte> packed;
  const std::string& name;
  z_stream stream{};
  std::size_t taken = 0;     // packed bytes handed to the stream
  std::size_t unpacked = 0;  // bytes produced
  bool ended = false;
};

Gunzip::Gunzip(std::span<const std::byte> packed, const std::string& name)
    : state_(new State{.packed = packed, .name = name}) {
  constexpr int kLargestWindow = 15;
  constexpr int kGzipHeader = 16;
  if (inflateInit2(&state_->stream, kLargestWindow + kGzipHeader) != Z_OK) throw std::bad_alloc();
}

Gunzip::~Gunzip() {
  inflateEnd(&state_->stream);
}

bool Gunzip::recognizes(std::span<const std::byte> bytes) noexcept {
  return bytes.size() >= 2 && bytes[0] == std::byte{0x1F} && bytes[1] == std::byte{0x8B};
}

void Gunzip::append(std::vector<std::byte>& bytes, std::size_t count) {
  constexpr std::size_t kChunk = std::size_t{1} << 20;
  constexpr std::size_t kLongest = std::numeric_limits<uInt>::max();
  State& state = *state_;
  z_stream& stream = state.stream;
  const auto refuse = [&](const std::string& why) {
    return FormatError(
        fmt::format("gzip: {}: byte {} of the unpacked data: {}", state.name, state.unpacked, why));
  };
  while (count != 0 && !state.ended) {
    if (stream.avail_in == 0) {
      const std::size_t more = std::min(state.packed.size() - state.taken, kLongest);
      if (more == 0) throw refuse("the file ends inside the packed data");
      // zlib reads through the pointer only, but its structure wants it mutable.
      stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(state.packed.data() + state.taken));
      stream.avail_in = static_cast<uInt>(more);
      state.taken += more;
    }
    const std::size_t filled = bytes.size();
    const std::size_t room = std::min({count, std::max(filled, kChunk), kLongest});
    bytes.resize(filled + room);
    stream.next_out = reinterpret_cast<Bytef*>(bytes.data() + filled);
    stream.avail_out = static_cast<uInt>(room);
    const int result = inflate(&stream, Z_NO_FLUSH);
    const std::size_t got = room - stream.avail_out;
    bytes.resize(filled + got);
    state.unpacked += got;
    count -= got;
    if (result == Z_STREAM_END) {
      state.ended = true;
      const std::size_t left = stream.avail_in + (state.packed.size() - state.taken);
      if (left != 0) throw refuse(fmt::format("{} bytes follow the end of the packed data", left));
    } else if (result == Z_MEM_ERROR) {
      throw std::bad_alloc();
    } else if (result != Z_OK && result != Z_BUF_ERROR) {
      throw refuse(
          fmt::format("the packed data is damaged: {}", stream.msg != nullptr ? stream.msg : "no reason"));
    }
  }
}

}  // namespace gradgram::datasets
