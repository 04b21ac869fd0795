#pragma once

#include <array>
#include <cstdint>

namespace gradgram {

/// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). Equal (seed, stream) give equal
/// numbers on every machine, compiler and thread count; streams are independent. Cheap to copy.
class Random {
 public:
  explicit Random(std::uint64_t seed, std::uint64_t stream = 0) noexcept : seed_(seed), stream_(stream) {}

  std::uint32_t bits() noexcept;
  std::uint64_t bits64() noexcept;
  /// Uniform on (0, 1), 53 bits, never 0 and never 1.
  double uniform() noexcept;
  /// Uniform integer in [0, bound), without bias; bound > 0.
  std::uint64_t below(std::uint64_t bound) noexcept;
  /// Standard normal by the inverse distribution function (Wichura, AS 241, 1e-16), in arithmetic that is
  /// exact to the bit on every IEEE machine: no library call whose rounding may differ.
  double normal() noexcept;

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t counter_ = 0;
  std::array<std::uint32_t, 4> block_{};
  unsigned left_ = 0;
};

/// Natural logarithm with the same bits on every IEEE machine; x > 0 and finite. Error below 2 ulp.
double portable_log(double x) noexcept;

}  // namespace gradgram
