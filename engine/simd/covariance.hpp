#pragma once

#include <cstddef>
#include <cstdint>

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
  /// sin^2 of the angle between the pre-activations, laid out as delta, or null: it follows from delta then,
  /// of whose digits little is left where examples of different norm are parallel, or examples opposite.
  const T* sine_squares = nullptr;
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

/// Steps and ramps that normal noise of several standard deviations has smoothed: with independent z, z' and
/// weights of sum 1,
///     step: offset + factor * sum_jk weights[j] weights[k] 2 pi (E[1(a > 0) 1(b > 0)] - 1 / 4),
///     ramp: sum_jk weights[j] weights[k] E[relu(a) relu(b)],    factor = 1 / (2 pi), offset = 1 / 4,
/// where a = u + sqrt(squares[j]) z, b = v + sqrt(squares[k]) z'.
template <class T>
struct CovarianceMixture {
  std::size_t count = 0;
  const T* squares = nullptr;
  const T* weights = nullptr;
  T offset = 0, factor = 0;
  bool rectified = false;  ///< ramp
};

/// Where a cell of a line of planes stands, in elements.
struct PlaneCell {
  /// In the sums of a line, of 2 registers: radius_cells + cell, and 2 radius_cells more behind the turn at
  /// cells - cell_offset.
  std::uint32_t entry = 0;
  std::uint32_t partner = 0;  ///< in a line of the right image
};

/// Pairs of pixels of two images for a few offsets, or of equal pixels of one image and a few, through one
/// layer. A register is a cell: one pixel of the left image (line and cell) and as many right ones as there
/// are lanes. From one cell, and one line, to the next both pixels of every pair move by one, so that windows
/// are sums of whole registers:
///     planes: lane j holds the right pixel at line (line + line_offset + j) mod lines, cell (cell +
///     cell_offset) mod cells. Where a line or cell of the right image has gone around, its neighbour before
///     is outside; of a pair with one pixel outside delta is half the other's variance, and theta is 0.
///
///     equal pixels: lane j is another right image. `outside` is null and offsets are 0.
///
/// Units are registers of T below, elements elsewhere.
///
/// Deltas and tangents are held times a factor U that the caller chose, roots times sqrt(U / 2):
///     left_root = l, left_inverse = v / l, right_root = 2 r, right_inverse = 1 / (2 r), 0 where the root is,
///     v = 1 where `obtuse`, ratio^2 otherwise: the sine then comes out times the ratio, as it is needed.
/// The layer sums each window of 2 radius + 1 cells and lines, and applies the nonlinearity, divided by its
/// scale. In place.
template <class T>
struct PlaneRun {
  std::size_t lines = 0, cells = 0;
  std::size_t radius_lines = 0, radius_cells = 0;
  /// [radius_lines + lines + 2 radius_lines][cells][2 registers: delta, theta], at line 0. The lines outside
  /// are set here. Beyond them, and three cells beyond the end of each line, it is readable and means
  /// nothing.
  T* state = nullptr;
  std::size_t pitch = 0;  ///< from line to line, with room for one more cell
  /// Scratch: plane_scratch.
  T* sums = nullptr;
  /// Of each cell, and three more: their entry is cells + 4 radius_cells, and their partner exists.
  const PlaneCell* places = nullptr;
  /// [lines][masks][lanes]: 1 where the right line moved by -radius, .., -1, 1, .., radius is outside, else
  /// 0.
  const T* outside = nullptr;
  std::size_t masks = 0;
  const unsigned char* seams = nullptr;  ///< [lines]: whether any of its masks is not zero; null as `outside`
  std::size_t line_offset = 0, cell_offset = 0;
  /// The tangents before this layer are zero. theta holds what delta would be, were one image negated: what
  /// cosines near -1 follow from, of which delta keeps half of the digits.
  bool first = false;
  const T* left_root = nullptr;  ///< [lines][cells], three more readable, and so all of the left
  const T* left_inverse = nullptr;
  const T* left_square = nullptr;  ///< of the layer before: delta beside a zero; zero in radius_lines around
  const T* left_window = nullptr;  ///< sums of squares over the window of lines
  const T* right_root = nullptr;
  const T* right_inverse = nullptr;
  const T* right_square = nullptr;
  const T* right_window = nullptr;
  std::size_t right_line = 0, right_cell = 0;  ///< from line to line and from cell to cell
  T factor = 1;                                ///< multiplies what came in
  T bias = 0;                                  ///< of the first layer: the variance it adds, times U
  T ratio = 0;                                 ///< turn / scale of arc_cosine
  bool obtuse = false;                         ///< whether cosines below zero may occur
  /// Whether, where none does, rounding may take 1 - cosine far above one, where it is then cut off. Of
  /// windows of 3 x 3 only: others are to be called obtuse.
  bool far_apart = false;
};

/// Elements of PlaneRun::sums.
inline std::size_t plane_scratch(std::size_t cells, std::size_t radius_lines, std::size_t radius_cells,
                                 std::size_t lanes) {
  const std::size_t sums = (radius_lines + 1) * (cells + 4 * radius_cells + 2) * 2 + 2 * radius_cells;
  const std::size_t halfway = 8 + 5 * (cells + 1);
  return (sums > halfway ? sums : halfway) * lanes;
}

/// The state before the first layer: delta = sum_c (left[c] - right[c])^2, theta the same of the sums of
/// both. Channels are laid out as the roots, `left_stride` and `right_stride` from one to the next.
template <class T>
struct PlaneInput {
  const T* left = nullptr;
  std::size_t left_stride = 0;
  const T* right = nullptr;
  std::size_t right_stride = 0;
  std::size_t channels = 1;
};

/// Where a plane is summed over windows of cells: its first `split` cells of a window meet a right window,
/// the others the next one. Sums are [lines][windows of cells][delta, theta][pitch].
template <class T>
struct PlaneWindows {
  std::size_t window_cells = 1, split = 1;
  T* here = nullptr;
  T* beyond = nullptr;
  bool here_begins = false, beyond_begins = false;  ///< what stands there is not added to
  std::size_t pitch = 0;
};

/// Sums over windows of cells, of all offsets of lines, to sums over windows of lines as well. Entry i of a
/// row of `sums` has the right line (line + i) mod lines, of `folded` the right window (window + i) mod
/// windows.
template <class T>
struct PlaneFold {
  std::size_t lines = 0, cells = 0;  ///< cells: windows of them
  std::size_t window_lines = 1;
  const T* sums = nullptr;  ///< [lines][cells][delta, theta][pitch]
  std::size_t pitch = 0;
  T* ring = nullptr;         ///< scratch: lines
  double* folded = nullptr;  ///< [lines / window_lines][cells][delta, theta][folded_pitch]
  std::size_t folded_pitch = 0;
};

/// Sums over windows as the state of planes: delta = scale sum + left + right, theta = scale sum.
template <class T>
struct PlanePooled {
  const T* sums = nullptr;  ///< [lines][cells][delta, theta][pitch]
  std::size_t pitch = 0;
  T scale = 1;
  const T* left = nullptr;  ///< laid out as the roots, and those of variances
  const T* left_root = nullptr;
  const T* right = nullptr;
  const T* right_root = nullptr;
  const T* live = nullptr;  ///< [lanes]: 1, or 0 for offsets that are none
  T versine = 0;
};

/// The dense layers before one rectifier, and it: see CosineRun.
template <class T>
struct CosineLayer {
  T affines = 1;        ///< how many layers
  T ratio = 0;          ///< turn / scale of arc_cosine
  bool obtuse = false;  ///< whether cosines below zero may occur
  /// What near_cosines needs of a rectifier x for x > 0, slope x otherwise: 2 slope / (1 + slope^2), which is
  /// minus the cosine of what opposite inputs become, and one less and one more it, (1 -+ slope)^2 /
  /// (1 + slope^2), which are not to be differences.
  T mirror = 0, one_less = 1, one_more = 1;
  T weights[20] = {};  ///< set by cosine_layer
};

/// Pairs of vectors through all dense layers without biases and rectifiers. Such a network is homogeneous, so
/// that its kernels are the product of two norms and a function of the cosine alone. A layer takes
///     u = 1 - cosine    to u - ratio (sin a - a cos a),
///     theta             to (theta + affines cos a) (1 - ratio a),
/// where theta is the tangent kernel divided by the norms, zero at first.
template <class T>
struct CosineRun {
  std::size_t rows = 0;
  std::size_t columns = 0;
  /// Cosines. Rows are readable up to `columns` rounded up to kColumnPadding<T>.
  const T* entries = nullptr;
  std::size_t stride = 0;
  const CosineLayer<T>* layers = nullptr;
  std::size_t layer_count = 0;
  T affines_after = 0;  ///< dense layers after the last rectifier
  const T* left_root = nullptr;
  const T* right_root = nullptr;  ///< readable as a row of entries
  T* covariance = nullptr;        ///< or null; exactly `columns` of a row are written, and so of the next
  T* tangent = nullptr;           ///< or null
  std::size_t out_stride = 0;
};

/// Pairs of one left vector and some of many right ones, both [channels] of mean square 1, whose cosine is
/// near 1 or -1. A product leaves too little of their angle, differences and sums of components do not.
template <class T>
struct NearRows {
  const T* left = nullptr;
  const T* rights = nullptr;  ///< [..][channels]
  std::size_t channels = 0;
  std::size_t count = 0;
  const std::size_t* columns = nullptr;  ///< [count]: which of the right ones
  const double* signs = nullptr;         ///< [count]: of the cosines, 1 or -1
  double* versines = nullptr;            ///< [count], result: 1 - |cosine|
};

/// The same through all layers, as CosineRun, in f64: 1 - |cosine| and the sign are carried, so that nothing
/// is a small difference at either end. All arrays are [count], readable and writable up to `count` rounded
/// up to kColumnPadding<double>.
struct NearCosines {
  std::size_t count = 0;
  const double* versines = nullptr;
  const double* signs = nullptr;
  const CosineLayer<double>* layers = nullptr;
  std::size_t layer_count = 0;
  double affines_after = 0;
  double left_root = 0;
  const double* right_root = nullptr;
  double* covariance = nullptr;  ///< or null
  double* tangent = nullptr;     ///< or null
};

/// Projections of a pixel's pre-activation that tell whether two of them are parallel or opposite.
inline constexpr std::size_t kParallelDirections = 3;

/// How much of the angles between pixels of two images delta does not hold, of those that are nearly parallel
/// or opposite. Arrays are [1 + kParallelDirections][stride]: roots of variances, and of random linear
/// functions of variance one (the pre-activation of a feature, divided by the root) the values: of two pixels
/// at an angle x they differ by about x, up to the sign. Right ones are readable up to `columns` rounded up
/// to kColumnPadding<T>, and left ones where `equal`; roots are zero there.
template <class T>
struct ParallelPixels {
  std::size_t rows = 0, row_step = 1;  ///< every row_step-th left pixel
  std::size_t columns = 0;
  const T* left = nullptr;
  std::size_t left_stride = 0;
  const T* right = nullptr;
  std::size_t right_stride = 0;
  bool equal = false;  ///< each pixel with the one in its place alone
  T reach = 0;         ///< differences from there on are too large to matter
  T rounding = 0;      ///< relative error of deltas and variances
  T opposite = 0;      ///< 1 where 1 + cosine comes from 1 - cosine, else 0
  double enough = 0;   ///< sums beyond need not go on
};

/// The kernels of one instruction set and precision. Callers validate. In place: delta and theta become those
/// of the post-activations, covariance E[phi(u) phi(v)] and theta * E[phi'(u) phi'(v)].
template <class T>
struct CovarianceTable {
  const char* isa;
  std::size_t lanes;  ///< of a register
  /// delta *= weight; theta = theta_weight * theta + covariance_weight * covariance after, where left_moment
  /// and right_moment hold the variances after.
  void (*affine)(const CovarianceBlock<T>&, T weight, T theta_weight, T covariance_weight) noexcept;
  /// phi(x) = x for x > 0, slope x otherwise: factor = sqrt(q), inverse = 1 / sqrt(q) or 0;
  /// scale = (1 + slope^2) / 2, turn = (1 - slope)^2 / (2 pi) (both moments are not read).
  void (*arc_cosine)(const CovarianceBlock<T>&, T scale, T turn) noexcept;
  /// factor = sqrt(q), inverse = 1 / sqrt(1 + 2 q).
  void (*erf)(const CovarianceBlock<T>&) noexcept;
  /// x Phi(x): factor = sqrt(q), inverse = 1 / sqrt(1 + q).
  void (*gelu)(const CovarianceBlock<T>&) noexcept;
  /// factor = sqrt(q).
  void (*sin)(const CovarianceBlock<T>&) noexcept;
  void (*cos)(const CovarianceBlock<T>&) noexcept;
  /// Covariance only. factor, inverse as for arc_cosine.
  void (*sign)(const CovarianceBlock<T>&) noexcept;
  /// x^degree: factor = sqrt(q), inverse as for arc_cosine; the entry is (r_l r_r)^degree sum_j value[j] c^j
  /// and (r_l r_r)^(degree-1) sum_j slope[j] c^j, j <= degree.
  void (*monomial)(const CovarianceBlock<T>&, std::size_t degree, const T* value, const T* slope) noexcept;
  /// Any other; factor, inverse as for arc_cosine.
  void (*series)(const CovarianceBlock<T>&, const CovarianceSeries<T>&) noexcept;
  /// factor = sqrt(q). Every sum is of positive terms, for variances of any size below the root of the
  /// largest number.
  void (*mixture)(const CovarianceBlock<T>&, const CovarianceMixture<T>&) noexcept;
  /// u / sqrt(mean u^2): factor, inverse as for arc_cosine. Variances become 1, or 0 where they were.
  void (*normalize)(const CovarianceBlock<T>&) noexcept;
  /// out[i] = scale * sum_k in[k][i], i < n. Up to `count` inputs; reads no further than n.
  void (*scaled_sum)(const T* const* in, std::size_t count, T scale, T* out, std::size_t n) noexcept;
  /// out[i] = scale * sum_c (left[c] - right[c * stride + i])^2, i < n rounded up to kColumnPadding<T>.
  void (*squared_differences)(const T* left, const T* right, std::size_t stride, std::size_t channels,
                              T scale, T* out, std::size_t n) noexcept;
  /// Sets what follows from the rest of a layer.
  void (*cosine_layer)(CosineLayer<T>&) noexcept;
  /// outermost[r] = the largest |entry| of row r.
  void (*cosine_run)(const CosineRun<T>&, T* outermost) noexcept;
  void (*near_versines)(const NearRows<T>&) noexcept;
  void (*near_cosines)(const NearCosines&) noexcept;
  /// Sum over pairs of pixels of the product of their roots times the error of the angle: with g the
  /// difference of the roots, m^2 their product and e = rounding (g (m + g) + opposite m^2), the angle x is
  /// off by min(sqrt(2 e) / m, e / (m^2 x)).
  double (*parallel_pixels)(const ParallelPixels<T>&) noexcept;
  /// In place. `input`: what the state is before, or null where it is there. `windows`: where the state
  /// behind is added as well, or null.
  void (*plane_layer)(const PlaneRun<T>&, const PlaneInput<T>* input,
                      const PlaneWindows<T>* windows) noexcept;
  /// Adds to deltas[j] and thetas[j] the sums over all cells of lane j.
  void (*plane_sums)(const PlaneRun<T>&, double* deltas, double* thetas) noexcept;
  void (*plane_fold)(const PlaneFold<T>&) noexcept;
  /// Whether 1 - cosine of any pair is below `versine`.
  bool (*plane_pooled)(const PlaneRun<T>&, const PlanePooled<T>&) noexcept;
};

}  // namespace gradgram::simd
