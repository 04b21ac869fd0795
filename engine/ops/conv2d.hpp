#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/arena.hpp"
#include "engine/convolution.hpp"

namespace gradgram::ops {

/// Time of forming a gradient from a cotangent without zeros, against that of the products of every pixel and
/// tap.
template <class T>
double conv_gradient_cost(const ConvGeometry& geometry);

/// Forms the weight and bias gradients of single images (see conv_weight_gradient); what depends on the
/// geometry alone is prepared once, in memory from `scratch`, which must stay until this object is no longer
/// used.
template <class T>
class ConvWeightGradient {
 public:
  ConvWeightGradient(const ConvGeometry& geometry, T scale, T bias_scale, Arena& scratch);
  /// Either target may be null.
  void operator()(const T* image, const T* cotangent, bool accumulate, T* weight_gradient,
                  T* bias_gradient) const;

 private:
  /// Whether skipping the zeros of this cotangent is worth its trouble.
  bool sparse(const T* cotangent, bool accumulate) const;
  /// By Winograd's transforms; `image` framed.
  void transformed(const T* image, const T* cotangent, bool accumulate, T* weight_gradient) const;

  ConvGeometry geometry_;
  T scale_;
  T bias_scale_;
  T* padded_image_ = nullptr;  ///< null: the image itself serves
  std::ptrdiff_t* taps_;       ///< [patch]
  std::ptrdiff_t* pixels_;     ///< [out_pixels]
  std::ptrdiff_t* rows_;       ///< [patch]
  std::ptrdiff_t* zeros_;      ///< [out_pixels]
  // For cotangents with many zeros; null where that cannot pay.
  std::ptrdiff_t* tap_pixels_ = nullptr;     ///< [kernel_h * kernel_w]
  std::ptrdiff_t* window_pixels_ = nullptr;  ///< [out_pixels]
  T* blocks_ = nullptr;
  T* values_ = nullptr;
  std::int32_t* value_offsets_ = nullptr;
  // For Winograd's transforms; null where they cannot pay.
  T* windows_ = nullptr;          ///< [components][tiles, c_in]
  T* tile_cotangents_ = nullptr;  ///< [components][tiles, columns of a panel]
  T* products_ = nullptr;         ///< [components][c_in, columns of a panel]
  std::ptrdiff_t* tiles_ = nullptr;
  std::ptrdiff_t* channels_ = nullptr;
  std::ptrdiff_t* product_rows_ = nullptr;
};

}  // namespace gradgram::ops
