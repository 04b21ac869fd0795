#pragma once

#include <cstddef>
#include <memory>
#include <stop_token>
#include <vector>

#include "engine/tensor.hpp"

namespace gradgram {

class Workers;

/// A bump allocator for everything that lives as long as one block of examples: activations, cotangents,
/// scratch. One arena per worker, never shared. Memory is reused after rewind() and returned only by the
/// destructor.
class Arena {
 public:
  /// `chunk_bytes` is the least that one request to the system takes.
  explicit Arena(std::size_t chunk_bytes = std::size_t{1} << 20);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Uninitialized, 64-byte aligned. Throws std::bad_alloc.
  void* allocate(std::size_t bytes);
  template <class T>
  TensorView<T> tensor(Shape shape) {
    return {static_cast<T*>(allocate(checked_multiply(shape.size(), sizeof(T), "arena"))), shape};
  }

  /// The bytes that were asked for, and in how many pieces: every one takes up to kAlignment - 1 bytes more.
  struct Use {
    std::size_t bytes = 0;
    std::size_t pieces = 0;
  };
  Use in_use() const noexcept { return use_; }
  /// From here on notes in `uses` what is in use after every allocation; nullptr ends that.
  void trace(std::vector<Use>* uses) noexcept { trace_ = uses; }

  /// A point to which rewind() returns; everything allocated since becomes invalid.
  struct Mark {
    std::size_t chunk = 0;
    std::size_t used = 0;
    Use use;
  };
  Mark mark() const noexcept;
  void rewind(Mark mark) noexcept;
  /// Has the system supply the memory in use so far, on all workers at once, before they write to it. Nothing
  /// that stands in it changes. Memory of some megabytes is asked for in huge pages; where these come slowly
  /// (a virtual machine whose host takes free memory back may need seconds for a gigabyte), the rest of it
  /// comes in small ones. Costs what the first write to every page would cost otherwise.
  /// Throws Cancelled when `stop` is requested.
  void commit(const Workers& workers, const std::stop_token& stop = {});
  /// Instead of commit(), for memory in use of which only scattered parts are going to be written: what has
  /// not been written yet comes in small pages, as it is written.
  void scatter() noexcept;
  /// Bytes held from the system.
  std::size_t capacity() const noexcept;

 private:
  struct Chunk;
  std::vector<Chunk> chunks_;
  std::size_t current_ = 0;
  std::size_t chunk_bytes_;
  Use use_;
  std::vector<Use>* trace_ = nullptr;
};

/// Rewinds an arena at the end of a scope.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace gradgram
