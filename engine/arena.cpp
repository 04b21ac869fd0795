#include "engine/arena.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>

#include "engine/parallel.hpp"

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

#ifdef __linux__
/// What one piece of work commits: pages can turn slow or fast again anywhere in a large allocation.
constexpr std::size_t kCommitPiece = 16 * kHugePage;
/// A huge page that takes longer than this would come faster as 512 small ones. Clearing one takes 0.1 to 0.3
/// ms where the memory is at hand, and 3 to 10 ms where a host has to find it first.
constexpr std::chrono::microseconds kSlowHugePage{1500};
/// One slow page may be an interrupted thread.
constexpr int kSlowPages = 2;

void commit_piece(std::byte* memory, std::size_t bytes) {
  int slow = 0;
  for (std::size_t at = 0; at < bytes && slow < kSlowPages; at += kHugePage) {
    const auto start = std::chrono::steady_clock::now();
    std::atomic_ref(*reinterpret_cast<unsigned char*>(memory + at)).fetch_or(0, std::memory_order_relaxed);
    if (std::chrono::steady_clock::now() - start > kSlowHugePage) ++slow;
    const std::size_t rest = at + kHugePage;
    if (slow == kSlowPages && rest < bytes) madvise(memory + rest, bytes - rest, MADV_NOHUGEPAGE);
  }
}
#endif

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
  use_ = {use_.bytes + bytes, use_.pieces + 1};
  if (trace_ != nullptr) trace_->push_back(use_);
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
  return chunks_.empty() ? Mark{} : Mark{current_, chunks_[current_].used, use_};
}

void Arena::rewind(Mark mark) noexcept {
  use_ = mark.use;
  if (chunks_.empty()) return;
  current_ = mark.chunk;
  chunks_[current_].used = mark.used;
}

void Arena::commit(const Workers& workers, const std::stop_token& stop) {
#ifdef __linux__
  for (const Chunk& chunk : chunks_) {
    // Whole huge pages only: what follows the last may belong to somebody else.
    const std::size_t bytes = chunk.used / kHugePage * kHugePage;
    if (chunk.bytes.get_deleter().alignment != kHugePage || bytes == 0) continue;
    workers.run((bytes - 1) / kCommitPiece + 1,
                [&](std::size_t index, std::size_t) {
                  const std::size_t begin = index * kCommitPiece;
                  commit_piece(chunk.bytes.get() + begin, std::min(kCommitPiece, bytes - begin));
                },
                {}, stop);
  }
#else
  static_cast<void>(workers);
  static_cast<void>(stop);
#endif
}

void Arena::scatter() noexcept {
#ifdef __linux__
  for (const Chunk& chunk : chunks_) {
    if (chunk.bytes.get_deleter().alignment != kHugePage) continue;
    madvise(chunk.bytes.get(), chunk.used / kHugePage * kHugePage, MADV_NOHUGEPAGE);
  }
#endif
}

std::size_t Arena::capacity() const noexcept {
  std::size_t total = 0;
  for (const Chunk& chunk : chunks_) total += chunk.capacity;
  return total;
}

}  // namespace gradgram
