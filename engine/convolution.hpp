#pragma once

#include <cstddef>

namespace gradgram {

/// The shape of a two-dimensional convolution or pooling window, channels-last: input [in_h, in_w, c_in],
/// output [out_h, out_w, c_out]; output (y, x) reads input (y * stride_h + i - pad_top, x * stride_w + j -
/// pad_left).
struct ConvGeometry {
  std::size_t in_h = 0, in_w = 0, c_in = 0;
  std::size_t out_h = 0, out_w = 0, c_out = 0;
  std::size_t kernel_h = 0, kernel_w = 0;
  std::size_t stride_h = 1, stride_w = 1;
  std::size_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;

  std::size_t in_pixels() const noexcept { return in_h * in_w; }
  std::size_t out_pixels() const noexcept { return out_h * out_w; }
  std::size_t patch() const noexcept { return kernel_h * kernel_w * c_in; }
  std::size_t weights() const noexcept { return patch() * c_out; }
};

/// How a window treats the border.
struct Padding {
  enum class Kind { Valid, Same, Explicit };
  Kind kind = Kind::Same;
  std::size_t amount = 0;  ///< Explicit: zeros on each of the four sides (PyTorch's padding=amount)
};

/// Completes a geometry. Same: out = ceil(in / stride), the surplus zero on the bottom and right (the
/// convention of TensorFlow and JAX; PyTorch defines `same` for stride 1 only, where they agree). Throws
/// ShapeError when the window does not fit into the padded input, an extent or stride is zero, or the padded
/// input, the output or the window would overflow the address space.
ConvGeometry conv_geometry(std::size_t in_h, std::size_t in_w, std::size_t c_in, std::size_t c_out,
                           std::size_t kernel_h, std::size_t kernel_w, std::size_t stride_h,
                           std::size_t stride_w, Padding padding);

/// A dense layer at `positions` positions as a 1 x 1 convolution of 1 x `positions` pixels.
ConvGeometry positions_geometry(std::size_t positions, std::size_t d_in, std::size_t d_out);

}  // namespace gradgram
