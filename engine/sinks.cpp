#include "engine/sinks.hpp"

#include <algorithm>
#include <optional>
#include <string>

#include "engine/blas.hpp"
#include "engine/cpu.hpp"
#include "engine/ops/conv2d.hpp"

namespace gradgram {
namespace {

using blas::Transpose;

/// gradient += scale * B^T A for L positions: [d_out, d_in].
template <class T>
void add_dense_gradient(const T* a, const T* b, std::size_t positions, std::size_t d_in, std::size_t d_out,
                        T scale, T* gradient) {
  if (positions == 1) {
    for (std::size_t k = 0; k < d_out; ++k) kernels<T>().axpy(scale * b[k], a, gradient + k * d_in, d_in);
  } else {
    blas::gemm(Transpose::Yes, Transpose::No, d_out, d_in, positions, scale, b, d_out, a, d_in, T(1),
               gradient, d_in);
  }
}

template <class T>
void add_bias_gradient(const T* b, std::size_t positions, std::size_t d_out, T scale, T* gradient) {
  for (std::size_t p = 0; p < positions; ++p) kernels<T>().axpy(scale, b + p * d_out, gradient, d_out);
}

/// Pixels whose products with each other stay in the second-level cache.
constexpr std::size_t kNormPixels = 512;

/// Whether the norm of a gradient is cheaper from pairs of pixels than from the gradient: multiply-adds of
/// both, a tap counted with the loads that it waits for.
template <class T>
bool norm_by_positions(const ConvGeometry& g) {
  if (g.stride_h != 1 || g.stride_w != 1 || g.out_h != g.in_h || g.out_w != g.in_w) return false;
  const std::size_t taps = g.kernel_h * g.kernel_w;
  if (taps > simd::kNormTaps || g.in_pixels() > kNormPixels) return false;
  const auto pixels = static_cast<double>(g.in_pixels());
  const auto weights = static_cast<double>(g.weights());
  const double pair = 1.2 * static_cast<double>(g.c_in + g.c_out) + 2.5 * static_cast<double>(taps) + 4;
  return pixels * (pixels + 48) / 2 * pair < (pixels + 4) * weights * ops::conv_gradient_cost<T>(g);
}

/// Squared norms of the gradients of single examples from pairs of their pixels.
template <class T>
class PositionNorms {
 public:
  PositionNorms(const ConvGeometry& g, Arena& scratch)
      : g_(g),
        stride_(padded(g.in_pixels())),
        packed_(scratch.tensor<T>({stride_, std::max(g.c_in, g.c_out)}).data()),
        products_(zeros(scratch, product_size(g))),
        outer_(zeros(scratch, product_size(g))),
        inside_(zeros(scratch, inside_size(g))),
        rows_(static_cast<const T**>(scratch.allocate(g.in_pixels() * sizeof(const T*)))) {
    const auto within = [](std::size_t at, std::size_t tap, std::size_t pad, std::size_t count) {
      return at + tap >= pad && at + tap - pad < count;
    };
    for (std::size_t tap = 0; tap < g.kernel_h * g.kernel_w; ++tap) {
      for (std::size_t q = 0; q < g.in_pixels(); ++q) {
        const bool inside = within(q / g.in_w, tap / g.kernel_w, g.pad_top, g.in_h) &&
                            within(q % g.in_w, tap % g.kernel_w, g.pad_left, g.in_w);
        inside_[tap * inside_stride(g) + q] = inside ? T(1) : T(0);
      }
    }
  }

  double operator()(const T* image, const T* cotangent) const {
    multiply(image, g_.c_in, products_);
    multiply(cotangent, g_.c_out, outer_);
    return kernels<T>().position_norm({.height = g_.in_h,
                                       .width = g_.in_w,
                                       .kernel_h = g_.kernel_h,
                                       .kernel_w = g_.kernel_w,
                                       .pad_top = g_.pad_top,
                                       .pad_left = g_.pad_left,
                                       .products = products_,
                                       .product_stride = stride_,
                                       .outer = outer_,
                                       .outer_stride = stride_,
                                       .inside = inside_,
                                       .inside_stride = inside_stride(g_)});
  }

  static std::size_t scratch_bytes(const ConvGeometry& g) {
    return (padded(g.in_pixels()) * std::max(g.c_in, g.c_out) + 2 * product_size(g) + inside_size(g)) *
               sizeof(T) +
           g.in_pixels() * sizeof(const T*) + 8 * kAlignment;
  }

 private:
  static std::size_t padded(std::size_t rows) {
    return (rows + simd::kGramPadding<T> - 1) / simd::kGramPadding<T> * simd::kGramPadding<T>;
  }
  static std::size_t product_size(const ConvGeometry& g) {
    return (padded(g.in_pixels()) + 1) * padded(g.in_pixels()) + 2 * simd::kColumnPadding<T>;
  }
  static std::size_t inside_stride(const ConvGeometry& g) { return g.in_pixels() + simd::kColumnPadding<T>; }
  static std::size_t inside_size(const ConvGeometry& g) { return g.kernel_h * g.kernel_w * inside_stride(g); }
  static T* zeros(Arena& scratch, std::size_t count) {
    T* const values = scratch.tensor<T>({count}).data();
    std::fill_n(values, count, T(0));
    return values;
  }

  /// products[u][v] = sum over channels, v >= u.
  void multiply(const T* pixels, std::size_t channels, T* products) const {
    const std::size_t count = g_.in_pixels();
    for (std::size_t begin = 0; begin < channels; begin += simd::kGramDepth<T>) {
      const std::size_t depth = std::min(simd::kGramDepth<T>, channels - begin);
      for (std::size_t u = 0; u < count; ++u) rows_[u] = pixels + u * channels + begin;
      kernels<T>().position_pack(rows_, count, depth, packed_);
      kernels<T>().position_product({.rows = packed_,
                                     .columns = packed_,
                                     .depth = depth,
                                     .row_count = count,
                                     .column_count = count,
                                     .out = products,
                                     .stride = stride_,
                                     .upper = true,
                                     .accumulate = begin > 0});
    }
  }

  ConvGeometry g_;
  std::size_t stride_;
  T* packed_;
  T* products_;
  T* outer_;
  T* inside_;
  const T** rows_;
};

std::size_t offset_of(std::span<const std::size_t> offsets, std::size_t parameter) {
  return parameter == kNoParameter || parameter >= offsets.size() ? kNoParameter : offsets[parameter];
}

}  // namespace

template <class T>
void SummedGradientSink<T>::use(const DenseUse<T>& use, Arena&) {
  const std::size_t rows = use.inputs.shape()[0] * use.inputs.shape()[1];
  const std::size_t d_in = use.inputs.shape()[2];
  const std::size_t d_out = use.cotangents.shape()[2];
  blas::gemm(Transpose::Yes, Transpose::No, d_out, d_in, rows, use.weight_scale, use.cotangents.data(), d_out,
             use.inputs.data(), d_in, T(1), gradient_.value(use.weight).data(), d_in);
  if (use.bias != kNoParameter) {
    add_bias_gradient(use.cotangents.data(), rows, d_out, use.bias_scale, gradient_.value(use.bias).data());
  }
}

template <class T>
void SummedGradientSink<T>::use(const ConvUse<T>& use, Arena& scratch) {
  const ArenaScope scope(scratch);
  const ops::ConvWeightGradient<T> gradient(use.geometry, use.weight_scale, use.bias_scale, scratch);
  T* const weight = gradient_.value(use.weight).data();
  T* const bias = use.bias == kNoParameter ? nullptr : gradient_.value(use.bias).data();
  const std::size_t in = use.inputs.shape().inner().size();
  const std::size_t out = use.cotangents.shape().inner().size();
  for (std::size_t i = 0; i < use.inputs.shape()[0]; ++i) {
    gradient(use.inputs.data() + i * in, use.cotangents.data() + i * out, true, weight, bias);
  }
}

template <class T>
void JacobianSink<T>::use(const DenseUse<T>& use, Arena&) {
  const std::size_t positions = use.inputs.shape()[1];
  const std::size_t d_in = use.inputs.shape()[2];
  const std::size_t d_out = use.cotangents.shape()[2];
  const std::size_t weight = offset_of(offsets_, use.weight);
  const std::size_t bias = offset_of(offsets_, use.bias);
  for (std::size_t i = 0; i < use.inputs.shape()[0]; ++i) {
    T* const row = rows_ + i * row_stride_;
    const T* const a = use.inputs.data() + i * positions * d_in;
    const T* const b = use.cotangents.data() + i * positions * d_out;
    if (weight != kNoParameter) {
      add_dense_gradient(a, b, positions, d_in, d_out, use.weight_scale, row + weight);
    }
    if (bias != kNoParameter) add_bias_gradient(b, positions, d_out, use.bias_scale, row + bias);
  }
}

template <class T>
void JacobianSink<T>::use(const ConvUse<T>& use, Arena& scratch) {
  const std::size_t weight = offset_of(offsets_, use.weight);
  const std::size_t bias = offset_of(offsets_, use.bias);
  if (weight == kNoParameter && bias == kNoParameter) return;
  const ArenaScope scope(scratch);
  const ops::ConvWeightGradient<T> gradient(use.geometry, use.weight_scale, use.bias_scale, scratch);
  const std::size_t in = use.inputs.shape().inner().size();
  const std::size_t out = use.cotangents.shape().inner().size();
  for (std::size_t i = 0; i < use.inputs.shape()[0]; ++i) {
    T* const row = rows_ + i * row_stride_;
    gradient(use.inputs.data() + i * in, use.cotangents.data() + i * out, true,
             weight == kNoParameter ? nullptr : row + weight, bias == kNoParameter ? nullptr : row + bias);
  }
}

template <class T>
SquaredNormSink<T>::SquaredNormSink(std::span<double> norms, const ParameterSet<T>& parameters,
                                    std::span<const std::size_t> shared)
    : norms_(norms), offsets_(parameters.count(), kNoParameter) {
  for (const std::size_t parameter : shared) {
    if (parameter >= offsets_.size()) {
      throw ArgumentError("squared norm sink: shared parameter " + std::to_string(parameter) +
                          " must be below the parameter count (" + std::to_string(offsets_.size()) + ")");
    }
    if (offsets_[parameter] != kNoParameter) continue;
    offsets_[parameter] = row_stride_;
    row_stride_ += parameters.value(parameter).size();
  }
  if (row_stride_ != 0) gradients_ = Tensor<T>(Shape{norms.size(), row_stride_});
}

template <class T>
void SquaredNormSink<T>::use(const DenseUse<T>& use, Arena& scratch) {
  const bool shared_weight = offset_of(offsets_, use.weight) != kNoParameter;
  const bool shared_bias = offset_of(offsets_, use.bias) != kNoParameter;
  if (shared_weight || shared_bias)
    JacobianSink<T>(gradients_.data(), row_stride_, offsets_).use(use, scratch);
  const std::size_t positions = use.inputs.shape()[1];
  const std::size_t d_in = use.inputs.shape()[2];
  const std::size_t d_out = use.cotangents.shape()[2];
  const bool own_bias = use.bias != kNoParameter && !shared_bias;
  const double weight_scale = static_cast<double>(use.weight_scale);
  const double bias_scale = static_cast<double>(use.bias_scale);
  const auto& kernel = kernels<T>();
  const ArenaScope scope(scratch);
  T* gradient = nullptr;
  T* bias_gradient = nullptr;
  std::optional<PositionNorms<T>> pairs;
  if (positions != 1) {
    const ConvGeometry geometry = positions_geometry(positions, d_in, d_out);
    if (!shared_weight && norm_by_positions<T>(geometry)) {
      pairs.emplace(geometry, scratch);
    } else if (!shared_weight) {
      gradient = scratch.tensor<T>(Shape{d_out, d_in}).data();
    }
    if (own_bias) bias_gradient = scratch.tensor<T>(Shape{d_out}).data();
  }
  for (std::size_t i = 0; i < use.inputs.shape()[0]; ++i) {
    const T* const a = use.inputs.data() + i * positions * d_in;
    const T* const b = use.cotangents.data() + i * positions * d_out;
    if (positions == 1) {
      const double squared = kernel.dot(b, b, d_out);
      if (!shared_weight) norms_[i] += weight_scale * weight_scale * kernel.dot(a, a, d_in) * squared;
      if (own_bias) norms_[i] += bias_scale * bias_scale * squared;
      continue;
    }
    if (pairs) norms_[i] += weight_scale * weight_scale * (*pairs)(a, b);
    if (gradient != nullptr) {
      blas::gemm(Transpose::Yes, Transpose::No, d_out, d_in, positions, use.weight_scale, b, d_out, a, d_in,
                 T(0), gradient, d_in);
      norms_[i] += kernel.dot(gradient, gradient, d_out * d_in);
    }
    if (bias_gradient != nullptr) {
      std::fill_n(bias_gradient, d_out, T(0));
      add_bias_gradient(b, positions, d_out, use.bias_scale, bias_gradient);
      norms_[i] += kernel.dot(bias_gradient, bias_gradient, d_out);
    }
  }
}

template <class T>
void SquaredNormSink<T>::use(const ConvUse<T>& use, Arena& scratch) {
  const bool shared_weight = offset_of(offsets_, use.weight) != kNoParameter;
  const bool shared_bias = offset_of(offsets_, use.bias) != kNoParameter;
  if (shared_weight || shared_bias)
    JacobianSink<T>(gradients_.data(), row_stride_, offsets_).use(use, scratch);
  const bool own_bias = use.bias != kNoParameter && !shared_bias;
  if (shared_weight && !own_bias) return;
  const ArenaScope scope(scratch);
  const ConvGeometry& g = use.geometry;
  const double weight_scale = static_cast<double>(use.weight_scale);
  std::optional<PositionNorms<T>> pairs;
  std::optional<ops::ConvWeightGradient<T>> form;
  T* gradient = nullptr;
  if (!shared_weight && norm_by_positions<T>(g)) {
    pairs.emplace(g, scratch);
  } else if (!shared_weight) {
    form.emplace(g, use.weight_scale, use.bias_scale, scratch);
    gradient = scratch.tensor<T>(Shape{g.weights()}).data();
  }
  T* const bias_gradient = own_bias ? scratch.tensor<T>(Shape{g.c_out}).data() : nullptr;
  const std::size_t in = use.inputs.shape().inner().size();
  const std::size_t out = use.cotangents.shape().inner().size();
  const auto& kernel = kernels<T>();
  for (std::size_t i = 0; i < use.inputs.shape()[0]; ++i) {
    const T* const image = use.inputs.data() + i * in;
    const T* const cotangent = use.cotangents.data() + i * out;
    if (pairs) norms_[i] += weight_scale * weight_scale * (*pairs)(image, cotangent);
    if (form) {
      (*form)(image, cotangent, false, gradient, nullptr);
      norms_[i] += kernel.dot(gradient, gradient, g.weights());
    }
    if (bias_gradient != nullptr) {
      std::fill_n(bias_gradient, g.c_out, T(0));
      add_bias_gradient(cotangent, g.out_pixels(), g.c_out, use.bias_scale, bias_gradient);
      norms_[i] += kernel.dot(bias_gradient, bias_gradient, g.c_out);
    }
  }
}

template <class T>
std::size_t SquaredNormSink<T>::scratch_bytes(const ConvGeometry& geometry) {
  return norm_by_positions<T>(geometry) ? PositionNorms<T>::scratch_bytes(geometry) : 0;
}

template <class T>
void SquaredNormSink<T>::finish() {
  if (row_stride_ == 0) return;
  for (std::size_t i = 0; i < norms_.size(); ++i) {
    const T* const row = gradients_.data() + i * row_stride_;
    norms_[i] += kernels<T>().dot(row, row, row_stride_);
  }
}

template class SummedGradientSink<float>;
template class SummedGradientSink<double>;
template class JacobianSink<float>;
template class JacobianSink<double>;
template class SquaredNormSink<float>;
template class SquaredNormSink<double>;

}  // namespace gradgram
