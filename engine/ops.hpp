#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/convolution.hpp"
#include "engine/parameters.hpp"
#include "engine/simd/kernels.hpp"
#include "engine/tape.hpp"

/// The differentiable operations. Each records value, jvp and vjp; those with parameters hand their factors
/// to the sink. All act on a block of examples [n, ...]; each example's result depends on that example alone
/// and has the same bits whatever block it is in. All throw ShapeError on extents that do not match.
namespace gradgram::ops {

/// How an affine op uses its parameters: indices into a ParameterSet and the factors in front of them.
template <class T>
struct Affine {
  const ParameterSet<T>& parameters;
  std::size_t weight;
  std::size_t bias = kNoParameter;
  T weight_scale = 1;
  T bias_scale = 1;
};

/// y = weight_scale x W^T + bias_scale b; x [n, d_in] (or [n, positions, d_in]), W [d_out, d_in].
/// 2 n positions d_in d_out FLOP.
template <class T>
Var dense(Tape<T>& tape, Var x, const Affine<T>& affine);

/// x [n, in_h, in_w, c_in] -> [n, out_h, out_w, c_out]; W [kernel_h, kernel_w, c_in, c_out];
/// cross-correlation, as in every deep-learning library. Direct, no im2col: 2 n out_pixels patch c_out FLOP;
/// 3 x 3 windows of stride 1 on whole registers of channels by Winograd's F(2x2, 3x3), 4/9 of that, where an
/// infinity or NaN reaches all outputs of its 2 x 2 tile.
template <class T>
Var conv2d(Tape<T>& tape, Var x, const ConvGeometry& geometry, const Affine<T>& affine);

/// Relu(conv2d(x)) or, with `pool`, max_pool(relu(conv2d(x)), *pool): the same bits as the ops one after the
/// other, without keeping or reading again what stands between them.
template <class T>
Var conv2d_relu(Tape<T>& tape, Var x, const ConvGeometry& geometry, const Affine<T>& affine,
                const ConvGeometry* pool = nullptr);

/// Elementwise nonlinearity. Erf is erf(x); Gelu is x Phi(x) (exact, not the tanh form); Relu'(0) = 0.
template <class T>
Var activation(Tape<T>& tape, Var x, simd::Activation kind, T slope = T(0.01));

/// Windows over [n, h, w, c]. Max: padding never wins, ties go to the first in row order. Average: divides by
/// the full window, padding zeros counted (PyTorch's count_include_pad).
template <class T>
Var max_pool(Tape<T>& tape, Var x, const ConvGeometry& geometry);
template <class T>
Var average_pool(Tape<T>& tape, Var x, const ConvGeometry& geometry);
/// [n, h, w, c] -> [n, c]: the mean over pixels.
template <class T>
Var global_average_pool(Tape<T>& tape, Var x);

/// [n, h, w, c] -> [n, c h w] in the order channel, row, column (PyTorch's); [n, d] passes through.
template <class T>
Var flatten(Tape<T>& tape, Var x);
/// The same numbers in another shape; `shape` without the example axis.
template <class T>
Var reshape(Tape<T>& tape, Var x, Shape shape);
/// a + b of equal shapes.
template <class T>
Var add(Tape<T>& tape, Var a, Var b);

/// Over the last axis of [n, O]; shifted by the maximum, so that no finite input overflows.
template <class T>
Var softmax(Tape<T>& tape, Var x);
template <class T>
Var log_softmax(Tape<T>& tape, Var x);

/// Per-example losses [n]. Mean squared error: (1/O) sum_k (x_k - target_k)^2, targets [n, O].
/// Cross-entropy: -log softmax(x)_label, labels in [0, O); ArgumentError otherwise. Targets must outlive the
/// tape.
template <class T>
Var mean_squared_error(Tape<T>& tape, Var x, TensorView<const T> targets);
template <class T>
Var cross_entropy(Tape<T>& tape, Var x, std::span<const std::int32_t> labels);

/// weight_gradient [kernel_h, kernel_w, c_in, c_out] (= or, with accumulate, +=) scale * sum over output
/// pixels of patch x cotangent, for one image; bias_gradient [c_out] (may be null) the same with bias_scale.
/// The one place that forms a convolution's per-example gradient.
template <class T>
void conv_weight_gradient(const ConvGeometry& geometry, const T* image, const T* cotangent, T scale,
                          T bias_scale, bool accumulate, T* weight_gradient, T* bias_gradient,
                          Arena& scratch);

}  // namespace gradgram::ops
