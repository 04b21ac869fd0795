#include "engine/arena.hpp"

#include <algorithm>
#include <new>

namespace gradgram {

struct Arena::Chunk {
  struct Free {
    void operator()(std::byte* pointer) const noexcept {
      ::operator delete (pointer, std::align_val_t{kAlignment});
    }
  };
  std::unique_ptr<std::byte, Free> bytes;
  std::size_t capacity = 0;
  std::size_t used = 0;
};

Arena::Arena(std::size_t chunk_bytes) : chunk_bytes_(chunk_bytes) {}
Arena::~Arena() = default;

void* Arena::allocate(std::size_t bytes) {
  bytes = checked_add(bytes, kAlignment - 1, "arena") / kAlignment * kAlignment;
  for (; current_ < chunks_.size(); ++current_) {
    Chunk& chunk = chunks_[current_];
    if (chunk.capacity - chunk.used >= bytes) {
      void* result = chunk.bytes.get() + chunk.used;
      chunk.used += bytes;
      return result;
    }
    if (current_ + 1 == chunks_.size()) break;
    chunks_[current_ + 1].used = 0;
  }
  Chunk chunk;
  chunk.capacity = std::max(bytes, chunk_bytes_);
  chunk.bytes.reset(static_cast<std::byte*>(::operator new (chunk.capacity, std::align_val_t{kAlignment})));
  chunk.used = bytes;
  chunks_.push_back(std::move(chunk));
  current_ = chunks_.size() - 1;
  return chunks_.back().bytes.get();
}

Arena::Mark Arena::mark() const noexcept {
  return chunks_.empty() ? Mark{} : Mark{current_, chunks_[current_].used};
}

void Arena::rewind(Mark mark) noexcept {
  if (chunks_.empty()) return;
  current_ = mark.chunk;
  chunks_[current_].used = mark.used;
}

std::size_t Arena::capacity() const noexcept {
  std::size_t total = 0;
  for (const Chunk& chunk : chunks_) total += chunk.capacity;
  return total;
}

}  // namespace gradgram
