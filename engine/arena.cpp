#include "engine/arena.hpp"

#include <algorithm>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace gradgram {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

/// Large memory is asked for in huge pages: touching hundreds of megabytes for the first time costs as much
/// as several percent of a kernel otherwise, and packed panels lie far apart.
std::byte* take(std::size_t bytes, std::size_t alignment) {
  auto* const pointer = static_cast<std::byte*>(::operator new (bytes, std::align_val_t{alignment}));
#ifdef __linux__
  // A wish: where the kernel does not grant it, nothing changes.
  if (alignment == kHugePage) madvise(pointer, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return pointer;
}

struct Free {
  std::size_t alignment = kAlignment;
  void operator()(std::byte* pointer) const noexcept {
    ::operator delete (pointer, std::align_val_t{alignment});
  }
};

}  // namespace

struct Arena::Chunk {
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
  const std::size_t alignment = chunk.capacity >= 4 * kHugePage ? kHugePage : kAlignment;
  chunk.bytes = {take(chunk.capacity, alignment), Free{alignment}};
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
