#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <thread>

#include "engine/parallel.hpp"
#include "engine/scratch_file.hpp"
#include "ntk/factors.hpp"
#include "ntk/kernel.hpp"

namespace gradgram::ntk {

/// Blocks of factors on disk: written once, read as often as they are needed, in the bytes that they have in
/// memory. Whatever the disk refuses is told once (KernelOptions::notice) and not held: whoever needs it
/// computes it. All workers read and write at once; Cancelled passes.
template <class T>
class SpilledFactors {
 public:
  /// Room for `blocks` blocks, each as large as the Factors that go through write() and read(), in the
  /// scratch folder of the plan. Refers to everything.
  SpilledFactors(const Plan& plan, const KernelOptions& options, const Workers& workers, std::size_t blocks);

  /// Whether there is a file at all.
  bool open() const { return file_.has_value(); }
  /// By the first example of the block.
  bool holds(std::size_t begin) const { return places_.contains(begin); }
  /// All of `block`.
  void write(std::size_t begin, const Factors<T>& block);
  /// Examples [first, first + count) of `from`, which are moved into `block` on their way.
  void write(std::size_t begin, const Factors<T>& from, std::size_t first, std::size_t count,
             const Factors<T>& block);
  /// Into all of `block`. Returns whether it worked; if not, the block is not held any more.
  bool read(std::size_t begin, const Factors<T>& block);
  /// Has the system read a block ahead, beside whatever follows.
  void fetch(std::size_t begin);

  std::size_t block_bytes() const { return block_bytes_; }
  /// Seconds from begin to end, and bytes, so far.
  double writing() const { return writing_; }
  double reading() const { return reading_; }
  std::size_t written_bytes() const { return written_bytes_; }

 private:
  void give_up(const std::string& what);

  const KernelOptions& options_;
  const Workers& workers_;
  std::size_t block_bytes_;
  std::optional<ScratchFile> file_;
  std::map<std::size_t, std::size_t> places_;  ///< first example and offset in the file
  std::size_t end_ = 0;
  bool given_up_ = false;  ///< nothing more is written
  double writing_ = 0, reading_ = 0;
  std::size_t written_bytes_ = 0;
  std::jthread fetching_;  ///< ends before the file does
};

}  // namespace gradgram::ntk
