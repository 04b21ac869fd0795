#pragma once

#include <cstddef>

namespace gradgram::simd {

/// What a nonlinearity does to a block of covariances of infinitely wide layers. One entry belongs to a pair:
/// a row (the left example or pixel) and a column (the right one), with pre-activation variances q_l, q_r.
/// delta = (q_l + q_r) / 2 - covariance >= 0: half the mean squared difference of the two pre-activations.
/// Unlike the covariance it keeps its relative precision for near-duplicates, where the angle between the
/// two, hence the derivative kernels, would otherwise lose half of the digits.
/// theta: the tangent kernel below the nonlinearity, or null when only the covariance is asked for.
///
/// Every row of `delta` and `theta`, and every array of the right side, is readable and writable up to
/// `columns` rounded up to kColumnPadding<T>; what stands there means nothing.
template <class T>
struct CovarianceBlock {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::size_t stride = 0;  ///< between rows, in elements; a multiple of kColumnPadding<T>
  T* delta = nullptr;
  T* theta = nullptr;
  /// q, two factors whose meaning each kernel states, and E[phi^2] after the nonlinearity.
  const T* left_variance = nullptr;
  const T* left_factor = nullptr;
  const T* left_inverse = nullptr;
  const T* left_moment = nullptr;
  const T* right_variance = nullptr;
  const T* right_factor = nullptr;
  const T* right_inverse = nullptr;
  const T* right_moment = nullptr;
};

/// Hermite coefficients of phi and phi' at each variance: entry = sum_k left[k] right[k] c^k.
template <class T>
struct CovarianceSeries {
  std::size_t terms = 0;
  const T* left_value = nullptr;  ///< [rows][terms]
  const T* left_slope = nullptr;
  const T* right_value = nullptr;  ///< [terms][stride]
  const T* right_slope = nullptr;
  std::size_t stride = 0;
};

/// One layer of a run of rows of a plane: pairs (p, p + offset) of pixels of two images for one offset, as a
/// list of cells, `stride` a row, in which neighbours are neighbours. Where a row of either image begins or
/// ends there are frame cells, and above and below the run `frame_rows` frame rows, of whose pixels one lies
/// outside and is zero; there its root, both inverses and `live` are zero. Pointers point at the first cell
/// of the run; frame rows stand before and behind it.
///
/// Deltas and tangents are held times a factor U that the caller chose, roots times sqrt(U / 2):
///     left_root = l, left_inverse = 1 / l, right_root = 2 r, right_inverse = 1 / (2 r), 0 where the root is.
/// The layer sums each window of 2 radius + 1 cells and rows, times `factor`, and applies the nonlinearity,
/// divided by its scale. In place; frame cells and rows get their values as well, theta 0.
///
/// Readable, and holding finite numbers: everything up to 2 radius_rows rows and six registers past the run,
/// `*_sums` also radius_columns cells before it.
template <class T>
struct PlaneRun {
  std::size_t rows = 0, stride = 0, frame_rows = 0;
  std::size_t radius_rows = 0, radius_columns = 0;
  T* delta = nullptr;
  T* theta = nullptr;
  /// The tangents before this layer are zero. `theta` holds what delta would be, were one image negated: what
  /// cosines near -1 follow from, of which delta keeps half of the digits.
  bool first = false;
  T* delta_sums = nullptr;  ///< scratch
  T* theta_sums = nullptr;
  const T* left_root = nullptr;
  const T* left_inverse = nullptr;
  const T* right_root = nullptr;
  const T* right_inverse = nullptr;
  const T* live = nullptr;  ///< 1, or 0 in frame cells; the same in every row
  T factor = 1;
  T bias = 0;           ///< of the first layer: the variance it adds, times U
  T ratio = 0;          ///< turn / scale of arc_cosine
  bool obtuse = false;  ///< whether cosines below zero may occur
  double* sums =
      nullptr;  ///< the last layer: adds the sums of delta and theta over live cells, writes nothing
};

/// Two runs of columns of every row of an image, one behind the other: [first, first + first_columns) and
/// [second, second + second_columns). Columns outside the image are zeros.
struct PlaneLayout {
  std::size_t height = 0, width = 0;
  std::ptrdiff_t first = 0, second = 0;
  std::size_t first_columns = 0, second_columns = 0;
};

/// The kernels of one instruction set and precision. Callers validate. In place: delta and theta become those
/// of the post-activations, covariance E[phi(u) phi(v)] and theta * E[phi'(u) phi'(v)].
template <class T>
struct CovarianceTable {
  const char* isa;
  /// delta *= weight; theta = theta_weight * theta + covariance_weight * covariance after, where left_moment
  /// and right_moment hold the variances after.
  void (*affine)(const CovarianceBlock<T>&, T weight, T theta_weight, T covariance_weight) noexcept;
  /// phi(x) = x for x > 0, slope x otherwise: factor = sqrt(q), inverse = 1 / sqrt(q) or 0;
  /// scale = (1 + slope^2) / 2, turn = (1 - slope)^2 / (2 pi) (both moments are not read).
  void (*arc_cosine)(const CovarianceBlock<T>&, T scale, T turn) noexcept;
  /// factor = 1 / sqrt(1 + 2 q).
  void (*erf)(const CovarianceBlock<T>&) noexcept;
  /// x Phi(x): factor = 1 / sqrt(1 + q).
  void (*gelu)(const CovarianceBlock<T>&) noexcept;
  void (*sin)(const CovarianceBlock<T>&) noexcept;
  void (*cos)(const CovarianceBlock<T>&) noexcept;
  /// Covariance only. factor, inverse as for arc_cosine.
  void (*sign)(const CovarianceBlock<T>&) noexcept;
  /// x^degree: factor = sqrt(q), inverse as for arc_cosine; the entry is (r_l r_r)^degree sum_j value[j] c^j
  /// and (r_l r_r)^(degree-1) sum_j slope[j] c^j, j <= degree.
  void (*monomial)(const CovarianceBlock<T>&, std::size_t degree, const T* value, const T* slope) noexcept;
  /// Any other; factor, inverse as for arc_cosine.
  void (*series)(const CovarianceBlock<T>&, const CovarianceSeries<T>&) noexcept;
  /// u / sqrt(mean u^2): factor, inverse as for arc_cosine. Variances become 1, or 0 where they were.
  void (*normalize)(const CovarianceBlock<T>&) noexcept;
  /// out[i] = scale * sum_k in[k][i], i < n. Up to `count` inputs; reads no further than n.
  void (*scaled_sum)(const T* const* in, std::size_t count, T scale, T* out, std::size_t n) noexcept;
  /// out[i] = scale * sum_c (left[c] - right[c * stride + i])^2, i < n rounded up to kColumnPadding<T>.
  void (*squared_differences)(const T* left, const T* right, std::size_t stride, std::size_t channels,
                              T scale, T* out, std::size_t n) noexcept;
  void (*plane_layer)(const PlaneRun<T>&) noexcept;
  /// differences[i] = sum_c (left[c * left_stride + i] - right[c * right_stride + i])^2, and sums[i] the same
  /// of the sums of both; i < cells rounded up.
  void (*plane_input)(const T* left, std::size_t left_stride, const T* right, std::size_t right_stride,
                      std::size_t channels, T* differences, T* sums, std::size_t cells) noexcept;
  /// out = scale * the columns of `layout`, rows packed; writes up to a register further. `line` has room for
  /// the width, three registers and the columns outside.
  void (*plane_layout)(const T* image, T scale, const PlaneLayout& layout, T* line, T* out) noexcept;
};

}  // namespace gradgram::simd
