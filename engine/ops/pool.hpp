#pragma once

#include <cstddef>

#include "engine/convolution.hpp"
#include "engine/shape.hpp"

/// What ops with a maximum over windows share. Not part of the library's interface. `chosen` [n, out_h,
/// out_w, c] is what KernelTable::max_pool leaves.
namespace gradgram::ops {

/// Throws ShapeError unless images of this shape [n, h, w, c] can be pooled.
template <class T>
void check_max_pool(const Shape& x, const ConvGeometry& geometry);
/// in [n, in_h, in_w, c] (= or, with accumulate, +=) the cotangents of n images' maxima.
template <class T>
void max_pool_cotangent(const ConvGeometry& geometry, const T* cotangent, const T* chosen, std::size_t n,
                        bool accumulate, T* in);
/// out = the tangents of the maxima.
template <class T>
void max_pool_tangent(const ConvGeometry& geometry, const T* tangent, const T* chosen, std::size_t n, T* out);

}  // namespace gradgram::ops
