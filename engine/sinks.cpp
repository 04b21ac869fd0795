#include "engine/sinks.hpp"

#include <algorithm>
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
  if (positions != 1) {
    if (!shared_weight) gradient = scratch.tensor<T>(Shape{d_out, d_in}).data();
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
  const ops::ConvWeightGradient<T> form(use.geometry, use.weight_scale, use.bias_scale, scratch);
  const std::size_t weights = use.geometry.weights();
  const std::size_t channels = use.geometry.c_out;
  T* const gradient = shared_weight ? nullptr : scratch.tensor<T>(Shape{weights}).data();
  T* const bias_gradient = own_bias ? scratch.tensor<T>(Shape{channels}).data() : nullptr;
  const std::size_t in = use.inputs.shape().inner().size();
  const std::size_t out = use.cotangents.shape().inner().size();
  const auto& kernel = kernels<T>();
  for (std::size_t i = 0; i < use.inputs.shape()[0]; ++i) {
    form(use.inputs.data() + i * in, use.cotangents.data() + i * out, false, gradient, bias_gradient);
    if (gradient != nullptr) norms_[i] += kernel.dot(gradient, gradient, weights);
    if (bias_gradient != nullptr) norms_[i] += kernel.dot(bias_gradient, bias_gradient, channels);
  }
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
