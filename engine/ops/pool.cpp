#include "engine/ops/pool.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/ops/common.hpp"

namespace gradgram::ops {
namespace {

/// The input pixels that one window sees, clipped to the image: [top, bottom) x [left, right).
struct Window {
  std::size_t top, bottom, left, right;
};

Window window(const ConvGeometry& g, std::size_t y, std::size_t x) {
  const auto clip = [](std::size_t start, std::size_t pad, std::size_t length, std::size_t limit,
                       std::size_t& begin, std::size_t& end) {
    begin = std::min(limit, start > pad ? start - pad : 0);
    end = std::min(limit, start + length > pad ? start + length - pad : 0);
  };
  Window w{};
  clip(y * g.stride_h, g.pad_top, g.kernel_h, g.in_h, w.top, w.bottom);
  clip(x * g.stride_w, g.pad_left, g.kernel_w, g.in_w, w.left, w.right);
  return w;
}

void check(const char* op, const Shape& shape, const ConvGeometry& g) {
  require_rank(op, shape, 4, "[examples, height, width, channels]");
  if (shape[1] != g.in_h) mismatch(op, "input height", shape[1], "geometry.in_h", g.in_h);
  if (shape[2] != g.in_w) mismatch(op, "input width", shape[2], "geometry.in_w", g.in_w);
  if (shape[3] != g.c_in) mismatch(op, "input channels", shape[3], "geometry.c_in", g.c_in);
  if (g.c_in != g.c_out) mismatch(op, "geometry.c_in", g.c_in, "geometry.c_out", g.c_out);
}

/// Offset of the pixel that a window chose; a NaN is taken from its first pixel in the image.
template <class T>
std::size_t chosen_pixel(const ConvGeometry& g, std::size_t y, std::size_t x, T chosen) {
  if (std::isnan(chosen)) {
    const Window w = window(g, y, x);
    return (w.top * g.in_w + w.left) * g.c_in;
  }
  const auto place = static_cast<std::size_t>(chosen);
  const std::size_t row = y * g.stride_h + place / g.kernel_w - g.pad_top;
  const std::size_t column = x * g.stride_w + place % g.kernel_w - g.pad_left;
  return (row * g.in_w + column) * g.c_in;
}

template <class T>
class MaxPoolNode final : public Node<T> {
 public:
  MaxPoolNode(const ConvGeometry& geometry, Var x, Var y, const T* chosen)
      : geometry_(geometry), x_(x), y_(y), chosen_(chosen) {}

  void jvp(Tape<T>& tape) const override {
    const auto x = tape.tangent(x_);
    if (!x) return;
    max_pool_tangent(geometry_, x.data(), chosen_, tape.examples(y_), tape.make_tangent(y_).data());
  }

  void vjp(Tape<T>& tape, Sink<T>&) const override {
    const auto cotangent = tape.cotangent(y_);
    if (!cotangent || !tape.depends(x_)) return;
    const auto target = tape.cotangent_target(x_);
    max_pool_cotangent(geometry_, cotangent.data(), chosen_, tape.examples(y_), !target.first,
                       target.view.data());
  }

 private:
  ConvGeometry geometry_;
  Var x_;
  Var y_;
  const T* chosen_;
};

/// out [n, out_h, out_w, c] = means over windows.
template <class T>
void average_forward(const ConvGeometry& g, const T* in, T* out, std::size_t n) {
  const T weight = T(1) / static_cast<T>(g.kernel_h * g.kernel_w);
  const auto& kernel = kernels<T>();
  for (std::size_t i = 0; i < n; ++i, in += g.in_pixels() * g.c_in) {
    for (std::size_t y = 0; y < g.out_h; ++y) {
      for (std::size_t x = 0; x < g.out_w; ++x, out += g.c_in) {
        const Window w = window(g, y, x);
        fill_zero(out, g.c_in);
        for (std::size_t r = w.top; r < w.bottom; ++r) {
          for (std::size_t c = w.left; c < w.right; ++c) {
            kernel.add(out, in + (r * g.in_w + c) * g.c_in, out, g.c_in);
          }
        }
        for (std::size_t k = 0; k < g.c_in; ++k) out[k] *= weight;
      }
    }
  }
}

template <class T>
class AveragePoolNode final : public Node<T> {
 public:
  AveragePoolNode(const ConvGeometry& geometry, Var x, Var y) : geometry_(geometry), x_(x), y_(y) {}

  void jvp(Tape<T>& tape) const override {
    const auto x = tape.tangent(x_);
    if (x) average_forward(geometry_, x.data(), tape.make_tangent(y_).data(), tape.examples(y_));
  }

  void vjp(Tape<T>& tape, Sink<T>&) const override {
    const auto cotangent = tape.cotangent(y_);
    if (!cotangent || !tape.depends(x_)) return;
    const ConvGeometry& g = geometry_;
    const T weight = T(1) / static_cast<T>(g.kernel_h * g.kernel_w);
    const auto& kernel = kernels<T>();
    const T* b = cotangent.data();
    T* in = tape.add_cotangent(x_).data();
    for (std::size_t i = 0; i < tape.examples(y_); ++i, in += g.in_pixels() * g.c_in) {
      for (std::size_t y = 0; y < g.out_h; ++y) {
        for (std::size_t x = 0; x < g.out_w; ++x, b += g.c_in) {
          const Window w = window(g, y, x);
          for (std::size_t r = w.top; r < w.bottom; ++r) {
            for (std::size_t c = w.left; c < w.right; ++c) {
              kernel.axpy(weight, b, in + (r * g.in_w + c) * g.c_in, g.c_in);
            }
          }
        }
      }
    }
  }

 private:
  ConvGeometry geometry_;
  Var x_;
  Var y_;
};

}  // namespace

template <class T>
void check_max_pool(const Shape& x, const ConvGeometry& g) {
  check("max_pool", x, g);
  const auto require_pad = [](const char* axis, std::size_t pad, std::size_t kernel) {
    if (pad >= kernel) {
      throw ShapeError(std::string("max_pool: padding of the ") + axis + " (" + std::to_string(pad) +
                       ") must stay below the kernel's (" + std::to_string(kernel) +
                       "): a window would be empty");
    }
  };
  require_pad("height", std::max(g.pad_top, g.pad_bottom), g.kernel_h);
  require_pad("width", std::max(g.pad_left, g.pad_right), g.kernel_w);
  // Places in a window are kept as T.
  const std::size_t most = std::size_t{1} << std::numeric_limits<T>::digits;
  if (g.kernel_h * g.kernel_w > most) {
    mismatch("max_pool", "pixels of a window", g.kernel_h * g.kernel_w, "what its number format can count",
             most);
  }
}

template <class T>
void max_pool_cotangent(const ConvGeometry& g, const T* cotangent, const T* chosen, std::size_t n,
                        bool accumulate, T* in) {
  const bool apart = g.stride_h >= g.kernel_h && g.stride_w >= g.kernel_w;
  const bool tiles = g.stride_h == g.kernel_h && g.stride_w == g.kernel_w && g.pad_top == 0 &&
                     g.pad_left == 0 && g.out_h * g.kernel_h == g.in_h && g.out_w * g.kernel_w == g.in_w;
  const std::size_t in_size = g.in_pixels() * g.c_in;
  const std::size_t out_size = g.out_pixels() * g.c_in;
  if (!accumulate && !tiles) fill_zero(in, n * in_size);
  for (std::size_t i = 0; i < n; ++i) {
    kernels<T>().max_pool_chain(g, cotangent + i * out_size, chosen + i * out_size, accumulate || !apart,
                                in + i * in_size);
  }
}

template <class T>
void max_pool_tangent(const ConvGeometry& g, const T* tangent, const T* chosen, std::size_t n, T* out) {
  for (std::size_t i = 0; i < n; ++i, tangent += g.in_pixels() * g.c_in) {
    for (std::size_t y = 0; y < g.out_h; ++y) {
      for (std::size_t x = 0; x < g.out_w; ++x) {
        for (std::size_t c = 0; c < g.c_in; ++c, ++chosen) {
          *out++ = *chosen < T(0) ? T(0) : tangent[chosen_pixel(g, y, x, *chosen) + c];
        }
      }
    }
  }
}

template <class T>
Var max_pool(Tape<T>& tape, Var x, const ConvGeometry& geometry) {
  const ConvGeometry& g = geometry;
  check_max_pool<T>(tape.shape(x), g);
  const std::size_t n = tape.examples(x);
  const Var result = tape.emit(Shape{n, g.out_h, g.out_w, g.c_in}, tape.depends(x));
  T* const chosen = tape.arena().template tensor<T>(tape.shape(result)).data();
  const std::size_t in = g.in_pixels() * g.c_in;
  const std::size_t out = g.out_pixels() * g.c_in;
  for (std::size_t i = 0; i < n; ++i) {
    kernels<T>().max_pool(g, false, tape.value(x).data() + i * in,
                          tape.mutable_value(result).data() + i * out, chosen + i * out);
  }
  if (tape.depends(result)) tape.record(MaxPoolNode<T>(geometry, x, result, chosen));
  return result;
}

template <class T>
Var average_pool(Tape<T>& tape, Var x, const ConvGeometry& geometry) {
  check("average_pool", tape.shape(x), geometry);
  const std::size_t n = tape.examples(x);
  const Var y = tape.emit(Shape{n, geometry.out_h, geometry.out_w, geometry.c_in}, tape.depends(x));
  average_forward(geometry, tape.value(x).data(), tape.mutable_value(y).data(), n);
  if (tape.depends(y)) tape.record(AveragePoolNode<T>(geometry, x, y));
  return y;
}

template <class T>
Var global_average_pool(Tape<T>& tape, Var x) {
  const Shape shape = tape.shape(x);
  require_rank("global_average_pool", shape, 4, "[examples, height, width, channels]");
  const ConvGeometry geometry = conv_geometry(shape[1], shape[2], shape[3], shape[3], shape[1], shape[2], 1,
                                              1, {.kind = Padding::Kind::Valid});
  return reshape(tape, average_pool(tape, x, geometry), Shape{shape[3]});
}

template void check_max_pool<float>(const Shape&, const ConvGeometry&);
template void check_max_pool<double>(const Shape&, const ConvGeometry&);
template void max_pool_cotangent(const ConvGeometry&, const float*, const float*, std::size_t, bool, float*);
template void max_pool_cotangent(const ConvGeometry&, const double*, const double*, std::size_t, bool,
                                 double*);
template void max_pool_tangent(const ConvGeometry&, const float*, const float*, std::size_t, float*);
template void max_pool_tangent(const ConvGeometry&, const double*, const double*, std::size_t, double*);
template Var max_pool(Tape<float>&, Var, const ConvGeometry&);
template Var max_pool(Tape<double>&, Var, const ConvGeometry&);
template Var average_pool(Tape<float>&, Var, const ConvGeometry&);
template Var average_pool(Tape<double>&, Var, const ConvGeometry&);
template Var global_average_pool(Tape<float>&, Var);
template Var global_average_pool(Tape<double>&, Var);

}  // namespace gradgram::ops
