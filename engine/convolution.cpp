#include "engine/convolution.hpp"

#include <string>

#include "engine/error.hpp"
#include "engine/shape.hpp"

namespace gradgram {
namespace {

struct Axis {
  std::size_t out;
  std::size_t before;
  std::size_t after;
};

Axis axis_geometry(const char* name, std::size_t in, std::size_t kernel, std::size_t stride,
                   Padding padding) {
  const auto number = [](std::size_t value) { return std::to_string(value); };
  if (in == 0 || kernel == 0 || stride == 0) {
    throw ShapeError(std::string("convolution: ") + name + " of input (" + number(in) + "), kernel (" +
                     number(kernel) + ") and stride (" + number(stride) + ") must be positive");
  }
  Axis axis{};
  if (padding.kind == Padding::Kind::Same) {
    axis.out = in / stride + (in % stride != 0 ? 1 : 0);
    const std::size_t reach =
        checked_add(checked_multiply(axis.out - 1, stride, "convolution"), kernel, "convolution");
    const std::size_t total = reach > in ? reach - in : 0;
    axis.before = total / 2;
    axis.after = total - axis.before;
    return axis;
  }
  const std::size_t amount = padding.kind == Padding::Kind::Explicit ? padding.amount : 0;
  const std::size_t padded = checked_add(checked_add(in, amount, "convolution"), amount, "convolution");
  if (kernel > padded) {
    throw ShapeError(std::string("convolution: kernel ") + name + " (" + number(kernel) +
                     ") must not exceed the padded input " + name + " (" + number(padded) + ")");
  }
  axis.out = (padded - kernel) / stride + 1;
  axis.before = amount;
  axis.after = amount;
  return axis;
}

}  // namespace

ConvGeometry conv_geometry(std::size_t in_h, std::size_t in_w, std::size_t c_in, std::size_t c_out,
                           std::size_t kernel_h, std::size_t kernel_w, std::size_t stride_h,
                           std::size_t stride_w, Padding padding) {
  if (c_in == 0 || c_out == 0) {
    throw ShapeError("convolution: input channels (" + std::to_string(c_in) + ") and output channels (" +
                     std::to_string(c_out) + ") must be positive");
  }
  const Axis vertical = axis_geometry("height", in_h, kernel_h, stride_h, padding);
  const Axis horizontal = axis_geometry("width", in_w, kernel_w, stride_w, padding);
  // Whoever computes with a geometry multiplies these without checks.
  const auto volume = [](const char* what, std::size_t height, std::size_t width, std::size_t channels) {
    checked_multiply(checked_multiply(checked_multiply(height, width, what), channels, what), sizeof(double),
                     what);
  };
  volume("convolution: bytes of the padded input",
         checked_add(in_h, vertical.before + vertical.after, "convolution"),
         checked_add(in_w, horizontal.before + horizontal.after, "convolution"), c_in);
  volume("convolution: bytes of the output", vertical.out, horizontal.out, c_out);
  volume("convolution: bytes of the window", kernel_h, kernel_w, c_in);
  return {.in_h = in_h,
          .in_w = in_w,
          .c_in = c_in,
          .out_h = vertical.out,
          .out_w = horizontal.out,
          .c_out = c_out,
          .kernel_h = kernel_h,
          .kernel_w = kernel_w,
          .stride_h = stride_h,
          .stride_w = stride_w,
          .pad_top = vertical.before,
          .pad_left = horizontal.before,
          .pad_bottom = vertical.after,
          .pad_right = horizontal.after};
}

ConvGeometry positions_geometry(std::size_t positions, std::size_t d_in, std::size_t d_out) {
  ConvGeometry g;
  g.in_h = g.out_h = g.kernel_h = g.kernel_w = 1;
  g.in_w = g.out_w = positions;
  g.c_in = d_in;
  g.c_out = d_out;
  return g;
}

}  // namespace gradgram
