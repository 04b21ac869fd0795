#include <algorithm>

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

template <class T>
class MaxPoolNode final : public Node<T> {
 public:
  MaxPoolNode(const ConvGeometry& geometry, Var x, Var y, const std::int32_t* chosen)
      : geometry_(geometry), x_(x), y_(y), chosen_(chosen) {}

  void jvp(Tape<T>& tape) const override {
    const auto x = tape.tangent(x_);
    if (!x) return;
    T* out = tape.make_tangent(y_).data();
    each_example(tape, [&](std::size_t i, const std::int32_t* chosen) {
      const T* in = x.data() + i * in_size();
      for (std::size_t at = 0; at < out_size(); ++at) {
        out[i * out_size() + at] = in[source(chosen, at)];
      }
    });
  }

  void vjp(Tape<T>& tape, Sink<T>&) const override {
    const auto cotangent = tape.cotangent(y_);
    if (!cotangent || !tape.depends(x_)) return;
    const ConvGeometry& g = geometry_;
    const bool apart = g.stride_h >= g.kernel_h && g.stride_w >= g.kernel_w && g.pad_top == 0 &&
                       g.pad_left == 0 && g.pad_bottom == 0 && g.pad_right == 0;
    const auto target = tape.cotangent_target(x_);
    const bool tiles = g.out_h * g.kernel_h == g.in_h && g.out_w * g.kernel_w == g.in_w;
    if (target.first && !(apart && tiles)) fill_zero(target.view.data(), target.view.size());
    each_example(tape, [&](std::size_t i, const std::int32_t* chosen) {
      const T* b = cotangent.data() + i * out_size();
      T* in = target.view.data() + i * in_size();
      if (apart && target.first) {
        select(b, chosen, in);
      } else {
        for (std::size_t at = 0; at < out_size(); ++at) in[source(chosen, at)] += b[at];
      }
    });
  }

 private:
  std::size_t in_size() const { return geometry_.in_pixels() * geometry_.c_in; }
  std::size_t out_size() const { return geometry_.out_pixels() * geometry_.c_in; }
  std::size_t source(const std::int32_t* chosen, std::size_t at) const {
    return static_cast<std::size_t>(chosen[at]) * geometry_.c_in + at % geometry_.c_in;
  }
  template <class F>
  void each_example(Tape<T>& tape, F&& f) const {
    for (std::size_t i = 0; i < tape.examples(y_); ++i) f(i, chosen_ + i * out_size());
  }

  /// Windows that do not overlap: every pixel of one is written once, which vectorizes where a scatter does
  /// not.
  void select(const T* b, const std::int32_t* chosen, T* in) const {
    const ConvGeometry& g = geometry_;
    const std::size_t channels = g.c_in;
    for (std::size_t y = 0; y < g.out_h; ++y) {
      for (std::size_t x = 0; x < g.out_w; ++x, b += channels, chosen += channels) {
        const Window w = window(g, y, x);
        for (std::size_t r = w.top; r < w.bottom; ++r) {
          for (std::size_t c = w.left; c < w.right; ++c) {
            const std::size_t pixel = r * g.in_w + c;
            const auto mine = static_cast<std::int32_t>(pixel);
            T* const out = in + pixel * channels;
            for (std::size_t k = 0; k < channels; ++k) out[k] = chosen[k] == mine ? b[k] : T(0);
          }
        }
      }
    }
  }

  ConvGeometry geometry_;
  Var x_;
  Var y_;
  const std::int32_t* chosen_;
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
Var max_pool(Tape<T>& tape, Var x, const ConvGeometry& geometry) {
  const ConvGeometry& g = geometry;
  check("max_pool", tape.shape(x), g);
  const auto require_pad = [](const char* axis, std::size_t pad, std::size_t kernel) {
    if (pad >= kernel) {
      throw ShapeError(std::string("max_pool: padding of the ") + axis + " (" + std::to_string(pad) +
                       ") must stay below the kernel's (" + std::to_string(kernel) +
                       "): a window would be empty");
    }
  };
  require_pad("height", std::max(g.pad_top, g.pad_bottom), g.kernel_h);
  require_pad("width", std::max(g.pad_left, g.pad_right), g.kernel_w);
  if (g.in_pixels() > static_cast<std::size_t>(INT32_MAX)) {
    mismatch("max_pool", "input pixels", g.in_pixels(), "what an int32 index can hold", INT32_MAX);
  }
  const std::size_t n = tape.examples(x);
  const std::size_t channels = g.c_in;
  const Var result = tape.emit(Shape{n, g.out_h, g.out_w, channels}, tape.depends(x));
  auto* const chosen = static_cast<std::int32_t*>(
      tape.arena().allocate(checked_multiply(tape.value(result).size(), sizeof(std::int32_t), "max_pool")));
  const auto& kernel = kernels<T>();
  const T* in = tape.value(x).data();
  T* out = tape.mutable_value(result).data();
  std::int32_t* index = chosen;
  for (std::size_t i = 0; i < n; ++i, in += g.in_pixels() * channels) {
    for (std::size_t y = 0; y < g.out_h; ++y) {
      for (std::size_t column = 0; column < g.out_w; ++column, out += channels, index += channels) {
        const Window w = window(g, y, column);
        const T* best = in + (w.top * g.in_w + w.left) * channels;
        std::fill_n(index, channels, static_cast<std::int32_t>(w.top * g.in_w + w.left));
        for (std::size_t r = w.top; r < w.bottom; ++r) {
          for (std::size_t c = w.left; c < w.right; ++c) {
            if (r == w.top && c == w.left) continue;
            const std::size_t pixel = r * g.in_w + c;
            kernel.max_step(best, in + pixel * channels, out, index, static_cast<std::int32_t>(pixel),
                            channels);
            best = out;
          }
        }
        if (best != out) copy(best, out, channels);
      }
    }
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

template Var max_pool(Tape<float>&, Var, const ConvGeometry&);
template Var max_pool(Tape<double>&, Var, const ConvGeometry&);
template Var average_pool(Tape<float>&, Var, const ConvGeometry&);
template Var average_pool(Tape<double>&, Var, const ConvGeometry&);
template Var global_average_pool(Tape<float>&, Var);
template Var global_average_pool(Tape<double>&, Var);

}  // namespace gradgram::ops
