#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tensor.hpp"

namespace gradgram {

/// The trained tensors of a network, in order: [0, count()). A second ParameterSet of the same layout holds a
/// gradient, a tangent or an optimizer's moment. Move-only.
///
/// Layouts: dense weight [d_out, d_in]; convolution weight [kernel_h, kernel_w, c_in, c_out] (channels-last;
/// the .npz files use PyTorch's [c_out, c_in, kernel_h, kernel_w]); bias [d_out].
template <class T>
class ParameterSet {
 public:
  /// Appends a parameter and returns its index. Throws ArgumentError when the name is taken.
  std::size_t add(std::string name, Tensor<T> value);

  std::size_t count() const noexcept { return entries_.size(); }
  /// Numbers in all parameters together: P.
  std::size_t size() const noexcept { return size_; }
  const std::string& name(std::size_t index) const { return entries_.at(index).name; }
  TensorView<T> value(std::size_t index) { return entries_.at(index).value.view(); }
  TensorView<const T> value(std::size_t index) const { return entries_.at(index).value.view(); }
  /// Where parameter `index` starts in the concatenation of all: the column offset of its gradient in a
  /// Jacobian row.
  std::size_t offset(std::size_t index) const { return entries_.at(index).offset; }
  /// Throws ArgumentError when there is no parameter of that name.
  std::size_t find(std::string_view name) const;

  ParameterSet clone() const;
  /// Same names and shapes, all zero.
  ParameterSet zeros() const;
  /// Same names, shapes and values in another precision.
  template <class U>
  ParameterSet<U> cast() const;
  void fill_zero();

 private:
  struct Entry {
    std::string name;
    Tensor<T> value;
    std::size_t offset;
  };
  std::vector<Entry> entries_;
  std::size_t size_ = 0;
};

}  // namespace gradgram
