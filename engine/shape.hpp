#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>

namespace gradgram {

/// a * b and a + b, throwing ShapeError instead of wrapping around; `what` names the quantity in the message.
std::size_t checked_multiply(std::size_t a, std::size_t b, const char* what);
std::size_t checked_add(std::size_t a, std::size_t b, const char* what);

/// The extents of a tensor, outermost first; rank 0 (a scalar) to 5. Value type, no heap.
class Shape {
 public:
  static constexpr std::size_t kMaxRank = 5;

  constexpr Shape() = default;
  /// Throws ShapeError for more than kMaxRank extents or when their product overflows std::size_t.
  Shape(std::initializer_list<std::size_t> extents);
  explicit Shape(std::span<const std::size_t> extents);

  std::size_t rank() const noexcept { return rank_; }
  /// Throws ShapeError when axis >= rank().
  std::size_t operator[](std::size_t axis) const;
  /// Number of elements; 1 for a scalar.
  std::size_t size() const noexcept { return size_; }
  /// The shape without its first extent, and with one put in front.
  Shape inner() const;
  Shape with_outer(std::size_t extent) const;
  std::span<const std::size_t> extents() const noexcept { return {extents_.data(), rank_}; }
  /// `[2, 3, 32, 32]`.
  std::string to_string() const;

  friend bool operator==(const Shape& a, const Shape& b) noexcept;

 private:
  std::array<std::size_t, kMaxRank> extents_{};
  std::size_t rank_ = 0;
  std::size_t size_ = 1;
};

}  // namespace gradgram
