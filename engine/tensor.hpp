#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "engine/error.hpp"
#include "engine/shape.hpp"

namespace gradgram {

/// Every tensor and every arena allocation starts on a cache line, which is also the widest SIMD register.
inline constexpr std::size_t kAlignment = 64;

/// A row-major block of numbers that somebody else owns. T may be const. Copying copies the reference.
/// Images are channels-last: [examples, height, width, channels].
template <class T>
class TensorView {
 public:
  TensorView() = default;
  TensorView(T* data, Shape shape) : data_(data), shape_(shape) {}
  /// A view of mutable numbers serves where a view of const numbers is asked for.
  template <class U>
  requires(std::is_const_v<T>&& std::is_same_v<U, std::remove_const_t<T>>) TensorView(TensorView<U> other)
      : data_(other.data()), shape_(other.shape()) {}

  T* data() const noexcept { return data_; }
  const Shape& shape() const noexcept { return shape_; }
  std::size_t size() const noexcept { return shape_.size(); }
  std::span<T> span() const noexcept { return {data_, shape_.size()}; }
  /// Whether the view refers to anything at all.
  explicit operator bool() const noexcept { return data_ != nullptr; }

  /// Element by full index. Throws ShapeError when the rank differs or an index is out of range.
  template <class... Index>
  T& operator()(Index... index) const {
    return data_[offset({static_cast<std::size_t>(index)...})];
  }
  /// The i-th slice along the first axis. Throws ShapeError when out of range.
  TensorView slice(std::size_t i) const { return slice(i, i + 1).reshaped(shape_.inner()); }
  /// Slices [begin, end) along the first axis. Throws ShapeError when out of range.
  TensorView slice(std::size_t begin, std::size_t end) const {
    if (shape_.rank() == 0 || begin > end || end > shape_[0]) {
      throw ShapeError("tensor: slice [" + std::to_string(begin) + ", " + std::to_string(end) +
                       ") is outside the first axis of " + shape_.to_string());
    }
    const Shape inner = shape_.inner();
    return TensorView(data_ + begin * inner.size(), inner.with_outer(end - begin));
  }
  /// The same numbers in another shape of the same size. Throws ShapeError when the sizes differ.
  TensorView reshaped(Shape shape) const {
    if (shape.size() != shape_.size()) {
      throw ShapeError("tensor: cannot reshape " + shape_.to_string() + " to " + shape.to_string());
    }
    return TensorView(data_, shape);
  }

 private:
  std::size_t offset(std::initializer_list<std::size_t> index) const {
    if (index.size() != shape_.rank()) {
      throw ShapeError("tensor: " + std::to_string(index.size()) + " indices for " + shape_.to_string());
    }
    std::size_t result = 0;
    std::size_t axis = 0;
    for (const std::size_t i : index) {
      if (i >= shape_[axis]) {
        throw ShapeError("tensor: index " + std::to_string(i) + " on axis " + std::to_string(axis) +
                         " is outside " + shape_.to_string());
      }
      result = result * shape_[axis] + i;
      ++axis;
    }
    return result;
  }

  T* data_ = nullptr;
  Shape shape_;
};

/// An owned, zero-initialized, 64-byte aligned, row-major block of float or double. Move-only; clone()
/// copies.
template <class T>
class Tensor {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);

 public:
  Tensor() = default;
  /// Throws std::bad_alloc when memory does not suffice.
  explicit Tensor(Shape shape) : shape_(shape) {
    const std::size_t bytes = checked_multiply(shape.size(), sizeof(T), "tensor");
    // Zero extents still get an address, so that data() is never null for a constructed tensor.
    data_.reset(
        static_cast<T*>(::operator new (bytes == 0 ? kAlignment : bytes, std::align_val_t{kAlignment})));
    std::memset(data_.get(), 0, bytes);
  }
  /// Copies `values`; throws ShapeError when their number is not shape.size().
  Tensor(Shape shape, std::span<const T> values) : Tensor(shape) {
    if (values.size() != shape.size()) {
      throw ShapeError("tensor: " + std::to_string(values.size()) + " values for " + shape.to_string());
    }
    if (!values.empty()) std::memcpy(data_.get(), values.data(), values.size_bytes());
  }

  Tensor clone() const { return data_ ? Tensor(shape_, span()) : Tensor(); }

  T* data() noexcept { return data_.get(); }
  const T* data() const noexcept { return data_.get(); }
  const Shape& shape() const noexcept { return shape_; }
  std::size_t size() const noexcept { return data_ ? shape_.size() : 0; }
  std::span<T> span() noexcept { return {data(), size()}; }
  std::span<const T> span() const noexcept { return {data(), size()}; }
  TensorView<T> view() noexcept { return {data(), shape_}; }
  TensorView<const T> view() const noexcept { return {data(), shape_}; }
  operator TensorView<T>() noexcept { return view(); }
  operator TensorView<const T>() const noexcept { return view(); }
  template <class... Index>
  T& operator()(Index... index) {
    return view()(index...);
  }
  template <class... Index>
  const T& operator()(Index... index) const {
    return view()(index...);
  }

 private:
  struct Free {
    void operator()(T* pointer) const noexcept { ::operator delete (pointer, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<T, Free> data_;
  Shape shape_;
};

}  // namespace gradgram
