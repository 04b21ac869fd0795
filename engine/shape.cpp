#include "engine/shape.hpp"

#include <algorithm>
#include <limits>

#include "engine/error.hpp"

namespace gradgram {

std::size_t checked_multiply(std::size_t a, std::size_t b, const char* what) {
  if (b != 0 && a > std::numeric_limits<std::size_t>::max() / b) {
    throw ShapeError(std::string(what) + ": " + std::to_string(a) + " times " + std::to_string(b) +
                     " overflows the address space");
  }
  return a * b;
}

std::size_t checked_add(std::size_t a, std::size_t b, const char* what) {
  if (a > std::numeric_limits<std::size_t>::max() - b) {
    throw ShapeError(std::string(what) + ": " + std::to_string(a) + " plus " + std::to_string(b) +
                     " overflows the address space");
  }
  return a + b;
}

Shape::Shape(std::initializer_list<std::size_t> extents)
    : Shape(std::span<const std::size_t>(extents.begin(), extents.size())) {}

Shape::Shape(std::span<const std::size_t> extents) {
  if (extents.size() > kMaxRank) {
    throw ShapeError("shape: rank (" + std::to_string(extents.size()) + ") must be at most " +
                     std::to_string(kMaxRank));
  }
  rank_ = extents.size();
  std::copy(extents.begin(), extents.end(), extents_.begin());
  for (const std::size_t extent : extents) size_ = checked_multiply(size_, extent, "shape");
}

std::size_t Shape::operator[](std::size_t axis) const {
  if (axis >= rank_) {
    throw ShapeError("shape: axis (" + std::to_string(axis) + ") must be below the rank of " + to_string());
  }
  return extents_[axis];
}

Shape Shape::inner() const {
  if (rank_ == 0) throw ShapeError("shape: a scalar has no inner shape");
  return Shape(extents().subspan(1));
}

Shape Shape::with_outer(std::size_t extent) const {
  if (rank_ == kMaxRank) throw ShapeError("shape: rank of " + to_string() + " is already the largest");
  std::array<std::size_t, kMaxRank> extents{};
  extents[0] = extent;
  std::copy_n(extents_.begin(), rank_, extents.begin() + 1);
  return Shape(std::span<const std::size_t>(extents.data(), rank_ + 1));
}

std::string Shape::to_string() const {
  std::string text = "[";
  for (std::size_t axis = 0; axis < rank_; ++axis) {
    if (axis != 0) text += ", ";
    text += std::to_string(extents_[axis]);
  }
  return text + "]";
}

bool operator==(const Shape& a, const Shape& b) noexcept {
  return std::ranges::equal(a.extents(), b.extents());
}

}  // namespace gradgram
