#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace gradgram::datasets {

/// Unpacks a gzip file in steps, so that the caller decides how much it believes. Memory grows with what has
/// really been unpacked, never with what a header declares.
class Gunzip {
 public:
  /// `packed` and `name` (for messages) must outlive the object.
  Gunzip(std::span<const std::byte> packed, const std::string& name);
  ~Gunzip();
  Gunzip(const Gunzip&) = delete;
  Gunzip& operator=(const Gunzip&) = delete;

  /// Whether the bytes begin like a gzip file.
  static bool recognizes(std::span<const std::byte> bytes) noexcept;

  /// Appends up to `count` more bytes; fewer when the data ends, which also verifies its checksum and that
  /// nothing follows. Throws FormatError (name and byte offset in the unpacked data) for damaged data.
  void append(std::vector<std::byte>& bytes, std::size_t count);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gradgram::datasets
