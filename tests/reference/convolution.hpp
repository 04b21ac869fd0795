#pragma once

#include <cstddef>
#include <vector>

/// A convolution written as plainly as can be, in double: the oracle of the tests. Shares no code with the
/// engine.
namespace gradgram::reference {

struct Convolution {
  std::size_t in_h, in_w, c_in, c_out, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, out_h,
      out_w;

  /// f(output index, input index, weight index) for every product of one image.
  template <class F>
  void each_product(F&& f) const {
    for (std::size_t y = 0; y < out_h; ++y) {
      for (std::size_t x = 0; x < out_w; ++x) {
        for (std::size_t a = 0; a < kernel_h; ++a) {
          for (std::size_t b = 0; b < kernel_w; ++b) {
            const long row = static_cast<long>(y * stride_h + a) - static_cast<long>(pad_top);
            const long column = static_cast<long>(x * stride_w + b) - static_cast<long>(pad_left);
            if (row < 0 || column < 0 || row >= static_cast<long>(in_h) || column >= static_cast<long>(in_w))
              continue;
            for (std::size_t i = 0; i < c_in; ++i) {
              for (std::size_t o = 0; o < c_out; ++o) {
                f((y * out_w + x) * c_out + o,
                  (static_cast<std::size_t>(row) * in_w + static_cast<std::size_t>(column)) * c_in + i,
                  ((a * kernel_w + b) * c_in + i) * c_out + o);
              }
            }
          }
        }
      }
    }
  }

  std::vector<double> forward(const double* x, const double* weights) const {
    std::vector<double> y(out_h * out_w * c_out);
    each_product([&](std::size_t o, std::size_t i, std::size_t w) { y[o] += x[i] * weights[w]; });
    return y;
  }
  std::vector<double> input_cotangent(const double* cotangent, const double* weights) const {
    std::vector<double> x(in_h * in_w * c_in);
    each_product([&](std::size_t o, std::size_t i, std::size_t w) { x[i] += cotangent[o] * weights[w]; });
    return x;
  }
  std::vector<double> weight_gradient(const double* x, const double* cotangent) const {
    std::vector<double> g(kernel_h * kernel_w * c_in * c_out);
    each_product([&](std::size_t o, std::size_t i, std::size_t w) { g[w] += cotangent[o] * x[i]; });
    return g;
  }
};

}  // namespace gradgram::reference
