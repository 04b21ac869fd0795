#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace gradgram {

/// What a job takes, counted before any of it starts: what stays in memory from one phase to the next, and
/// the least that each phase needs beside it. Whoever runs the job walks through its phases once on paper, in
/// their order, and check() then knows the least budget for the whole.
///
///     MemoryAccount account("study", budget);
///     const std::size_t room = account.phase("the kernel", least_kernel_bytes(...));  // what it may take
///     account.hold(kernel_bytes);
///     account.phase("the spectrum", spectrum_bytes(...));
///     account.check();
class MemoryAccount {
 public:
  /// `call` begins the error's sentence.
  MemoryAccount(std::string call, std::size_t budget);

  /// Bytes that are in memory from here on, until they are released. Sums that overflow throw as
  /// checked_add() does.
  void hold(std::size_t bytes);
  void release(std::size_t bytes);
  /// A phase that takes at least `least` bytes beside what is held. Returns what the budget leaves it, never
  /// less than `least`: what check() lets pass.
  std::size_t phase(std::string_view name, std::size_t least);

  std::size_t held() const noexcept { return held_; }
  /// The least budget that holds every phase so far.
  std::size_t least() const noexcept { return least_; }
  /// Throws BudgetError naming the phase that takes most, and least().
  void check() const;

 private:
  std::string call_;
  std::size_t budget_;
  std::size_t held_ = 0;
  std::size_t least_ = 0;
  std::string largest_;
  std::size_t beside_ = 0;  ///< held in that phase
};

}  // namespace gradgram
