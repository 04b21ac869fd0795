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

  /// A part of the weight gradient [taps, c_in, c_out]: `outer` times `inner` runs of `length` elements that
  /// stand at first + o * outer_step + i * inner_step; in what form_part() gives at o * formed_step + i *
  /// length.
  struct Part {
    std::size_t first, outer, outer_step, inner, inner_step, length, formed_step;
  };
  /// Parts as large as stays in the second-level cache for some images: their numbers, and a part.
  std::size_t parts() const;
  Part part(std::size_t number) const;
  /// The most elements that form_part() gives.
  std::size_t part_size() const;
  /// Whether the gradient of this cotangent can be formed in parts: not one that skips zeros.
  bool in_parts(const T* cotangent) const { return !sparse(cotangent, false); }
  /// Elements of an image as form_part() takes it, and the image so.
  std::size_t framed_size() const;
  void frame(const T* image, T* framed) const;
  /// A part, with the bits of the whole.
  void form_part(std::size_t number, const T* framed, const T* cotangent, T* gradient) const;

 private:
  /// Whether skipping the zeros of this cotangent is worth its trouble.
  bool sparse(const T* cotangent, bool accumulate) const;
  /// A target of some input and output channels of all taps.
  struct Block {
    std::size_t first_in, inputs, first_out, outputs;
    T* gradient;
    std::size_t row, tap;  ///< elements from an input channel to the next, and from a tap
    std::size_t pixel;     ///< and from pixel to pixel of the image
    bool same_windows;     ///< as in the call before, image and input channels alike
  };
  /// Parts have at most so many taps, rows of each and output channels.
  struct PartSize {
    std::size_t taps, rows, outputs;
  };
  PartSize most_of_part() const;
  /// By Winograd's transforms; `image` framed, at most panel_columns outputs.
  void transformed(const T* image, const T* cotangent, bool accumulate, const Block& block) const;
  /// Rows [first, first + count) of the gradient's patch x c_out, directly; `image` framed.
  void direct(const T* image, const T* cotangent, bool accumulate, std::size_t first, std::size_t count,
              T* gradient) const;

  ConvGeometry geometry_;
  T scale_;
  T bias_scale_;
  T* padded_image_ = nullptr;  ///< null: the image itself serves
  std::ptrdiff_t* taps_;       ///< [patch]
  std::ptrdiff_t* pixels_;     ///< [out_pixels]
  std::ptrdiff_t* rows_;       ///< [patch]
  // Of parts, whose images have their pixels further apart.
  std::size_t pixel_;            ///< elements from pixel to pixel
  std::ptrdiff_t* part_taps_;    ///< [patch]
  std::ptrdiff_t* part_pixels_;  ///< [out_pixels]
  std::ptrdiff_t* part_rows_;    ///< [patch]
  std::ptrdiff_t* zeros_;        ///< [out_pixels]
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
