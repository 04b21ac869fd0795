#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/convolution.hpp"

namespace gradgram::simd {

/// Elementwise nonlinearities with a vectorized value and derivative.
enum class Activation : std::uint8_t { Relu, LeakyRelu, Tanh, Sigmoid, Erf, Gelu, Softplus, Sin };
inline constexpr std::size_t kActivationCount = 8;

/// out[out_base[j] + c] = start[c] + sum_{i < depth} x[x_base[j] + x_offset[i]] * v(i, c),  j < rows, c <
/// columns. The one product behind a direct convolution: forward (j = output pixels, i = taps x input
/// channels, v = weights), input cotangent (flipped weights; one call per stride phase) and weight gradient
/// (roles swapped: j = taps x input channels, i = pixels, v = output cotangents). The sum runs over i in
/// order, in T; the same bits whatever `rows`, `columns` and their blocking.
template <class T>
struct GatherProduct {
  const T* x;
  const std::ptrdiff_t* x_base;    ///< [rows]
  const std::ptrdiff_t* x_offset;  ///< [depth]
  const T* v;  ///< v(i, c) = v_scale * v[i * v_stride + c], unless v_offset says otherwise
  std::size_t v_stride;
  T* out;
  const std::ptrdiff_t* out_base;  ///< [rows]
  std::size_t rows;
  std::size_t depth;
  std::size_t columns;
  bool accumulate = false;   ///< the sums start from what stands in `out`; `start` does not count then
  const T* start = nullptr;  ///< [columns], times start_scale; null: 0
  T start_scale = 1;
  bool rectify = false;  ///< negative sums are stored as 0
  T v_scale = 1;
  /// [depth] or null: v(i, c) = v_scale * v[v_offset[i] + c * v_stride], for a matrix that lies transposed.
  /// Fast where offsets of successive i are consecutive.
  const std::ptrdiff_t* v_offset = nullptr;
};
/// gradient[tap, i, k] (+)= sum_p image[(tap_offset[tap] + pixel_offset[p]) * c_in + i] * cotangent[p, k]:
/// the weight gradient of a convolution whose cotangent is mostly zeros, as behind a rectifier or a maximum.
/// Zeros are skipped (0 * infinity counts as 0); the others are summed in order of p, in T, as gather_product
/// does.
template <class T>
struct SparseGradient {
  const T* image;  ///< [image_pixels, c_in]
  std::size_t image_pixels;
  std::size_t c_in;
  const T* cotangent;  ///< [pixels, c_out]
  std::size_t pixels;
  std::size_t c_out;
  std::size_t taps;
  const std::ptrdiff_t* tap_offset;    ///< [taps], in pixels
  const std::ptrdiff_t* pixel_offset;  ///< [pixels], in pixels; times kSparsePadding below 2^31
  bool accumulate;
  T* gradient;            ///< [taps, c_in, c_out]
  T* blocks;              ///< scratch: image_pixels * (c_in rounded up to kSparsePadding)
  T* values;              ///< scratch: kColumnPadding * (pixels + kColumnPadding)
  std::int32_t* offsets;  ///< scratch: the same
};
template <class T>
inline constexpr std::size_t kSparsePadding = 128 / sizeof(T);

/// Elements of T in the widest register of any instruction set.
template <class T>
inline constexpr std::size_t kColumnPadding = 64 / sizeof(T);

/// Winograd's F(2x2, 3x3): a convolution with 3 x 3 windows and stride 1 as 16 products over channels, one
/// for each component of transformed 4 x 4 windows of the input, 2 x 2 outputs each: 16 multiply-adds in the
/// place of 36. Channels are multiples of kColumnPadding. The same bits for a tile wherever it stands.
///
/// Tiles [first, first + count) of images of `down` x `across` of them, in row order.
struct WinogradGrid {
  std::size_t across, down;
  std::size_t first, count;
};
/// Elements from component to component of `rows` rows of `columns`: a cache line apart, or they would
/// compete for the same cache sets.
template <class T>
constexpr std::size_t winograd_component(std::size_t rows, std::size_t columns) {
  return rows * columns + 64 / sizeof(T);
}
/// out[component][count, channels] = the transformed windows. Every window lies in the padded plane.
template <class T>
struct WinogradInput {
  WinogradGrid grid;
  const T* plane;
  std::size_t row, image;  ///< elements from line to line and from image to image
  std::size_t channels;
  T* out;
  std::size_t component;         ///< winograd_component()
  std::size_t pixel = channels;  ///< elements from pixel to pixel of the plane
};
/// out[component][depth, columns] = `columns` columns from `first` on of the transformed weights [3, 3, c_in,
/// c_out] times scale: depth c_in, columns c_out, or `transposed`, of the transposed convolution, the kernel
/// turned around: depth c_out, columns c_in. Components are winograd_component(depth, columns) apart.
template <class T>
struct WinogradWeights {
  const T* weights;
  std::size_t c_in, c_out;
  bool transposed;
  T scale;
  std::size_t first, columns;
  T* out;
};
/// Pixels of out [images, out_h, out_w, pixel], of `columns` columns: what the products [component][count,
/// columns] stand for (+ start_scale * start, or + what is there).
template <class T>
struct WinogradOutput {
  WinogradGrid grid;
  const T* products;
  std::size_t component;
  std::size_t columns;
  T* out;
  std::size_t out_h, out_w, pixel;
  bool accumulate;
  const T* start;  ///< [columns], or null
  T start_scale;
  bool rectify;
};
/// The adjoint of WinogradOutput: out[component][count, columns] of a cotangent.
template <class T>
struct WinogradCotangent {
  WinogradGrid grid;
  const T* cotangent;  ///< [images, out_h, out_w, pixel]
  std::size_t out_h, out_w, pixel;
  std::size_t columns;
  T* out;
  std::size_t component;
};
/// The adjoint of WinogradWeights: gradient[tap, i, k] (+)= that of products [component][c_in, columns].
template <class T>
struct WinogradGradient {
  const T* products;
  std::size_t component;
  std::size_t c_in, columns;
  T* gradient;
  std::size_t c_out;  ///< elements from one i to the next
  bool accumulate;
  std::size_t tap = c_in * c_out;  ///< elements from one tap to the next
};

/// The products of all components over one block of tiles, and WinogradGradient of them a few rows at a time:
/// they stay in the first-level cache. gradient[tap, i, k] (+)= that of products[c][i, k] = sum_t
/// windows[c][t, i] * cotangents[c][t, k], summed in order of t.
template <class T>
struct WinogradProducts {
  const T* windows;  ///< [component][tiles, inputs]
  std::size_t window_component;
  const T* cotangents;  ///< [component][tiles, columns], at most KernelTable::panel_columns
  std::size_t cotangent_component;
  std::size_t tiles, inputs, columns;
  const std::ptrdiff_t* channel;  ///< [inputs]: 0, 1, ...
  const std::ptrdiff_t* tile;     ///< [tiles]: multiples of `inputs`
  T* gradient;
  std::size_t row, tap;  ///< elements from one i to the next and from one tap to the next
  bool accumulate;
};

/// sum[i * sum_stride + j] (+)= sum_{k < depth} rows[i, k] * columns[j, k], products and their sum in T in
/// order of k, then added in f64; AMX's (Isa::Amx) are exact sums of products of rounded rows
/// (engine/simd/gram_amx.cpp). Both sides are packed by gram_pack. The same bits whatever stands beside an
/// entry, and whichever of its two factors is the row.
template <class T>
struct GramProduct {
  const T* rows;
  const T* columns;
  std::size_t depth;
  std::size_t row_count, column_count;
  /// Writable for both counts rounded up to kGramPadding; what is beyond the counts is unspecified.
  double* sum;
  std::size_t sum_stride;
  bool lower;       ///< entries with j > i are not wanted: they are unspecified
  bool accumulate;  ///< add to `sum` instead of overwriting it
  /// What the next product reads, of about the same size: fetched into the second-level cache meanwhile. May
  /// be null.
  const T* next_rows = nullptr;
  const T* next_columns = nullptr;
  std::byte* scratch = nullptr;  ///< KernelTable::gram_scratch_bytes(), may be null when that is 0
};
/// Registers in a group of packed rows.
inline constexpr std::size_t kGramGroupVectors = 3;
/// Rows of a packed matrix are padded to a multiple of this many: the widest group of any instruction set.
template <class T>
inline constexpr std::size_t kGramPadding = 192 / sizeof(T);
/// The greatest depth of a Gram product that its callers use: a tile's packed rows stay in the second-level
/// cache beside its sums, the additions in f64 cost 2 %, and the error of a sum is that of 384 roundings.
template <class T>
inline constexpr std::size_t kGramDepth = 1536 / sizeof(T);

/// out[i * stride + j] (+)= sum_{k < depth} rows[i, k] * columns[j, k], in T throughout, products in order of
/// k. Both sides are packed by position_pack. The same bits whatever stands beside an entry, and whichever of
/// its two factors is the row.
template <class T>
struct PositionProduct {
  const T* rows;
  const T* columns;
  std::size_t depth;
  std::size_t row_count, column_count;
  T* out;  ///< writable for both counts rounded up to kGramPadding
  std::size_t stride;
  bool upper;       ///< entries with j < i are not wanted: they are unspecified
  bool accumulate;  ///< add to `out` instead of overwriting it
};

/// For registers of pairs of examples side by side, X(u, v) the products of pixels u and v of the inputs and
/// C(p, q) those of the output cotangents:
///     weight += sum_{p, q} C(p, q) sum_t X(p + t - pad, q + t - pad),   bias += sum_{p, q} C(p, q),
/// t over a window, stride 1, pixels outside of the input being zero. Taps are added line by line, then
/// lines; the sum over p runs in T for one distance q - p (moved to f64 after some 256 products), in f64 over
/// distances, where d and -d are added to each other first: exchanging the two examples of a pair exchanges
/// the factors and terms alone and gives the same bits.
template <class T>
struct PositionSums {
  std::size_t in_h, in_w, out_h, out_w, kernel_h, kernel_w, pad_top, pad_left;
  std::size_t vectors;  ///< registers of pairs
  const T* products;    ///< X(u, v) of register r at u * product_stride + v * lanes + r * product_vector
  std::size_t product_stride, product_vector;
  const T* outer;  ///< C(p, q), likewise
  std::size_t outer_stride, outer_vector;
  T* lines;        ///< working memory: in_h * out_w * 3 registers
  double* weight;  ///< [vectors * lanes]
  double* bias;    ///< the same, or null
};

/// sum_{p, q} C(p, q) sum_t X(p + t - pad, q + t - pad) of one example with itself, t over a window, stride
/// 1, as many outputs as inputs: the squared length of its gradient. Sums over taps in T, over q in T for
/// every lane of a register, over p in f64.
template <class T>
struct PositionNorm {
  std::size_t height, width, kernel_h, kernel_w, pad_top, pad_left;
  /// X(u, v) at u * product_stride + v for v >= u, finite numbers up to a stride and two registers beyond.
  const T* products;
  std::size_t product_stride;
  const T* outer;  ///< C(p, q), likewise
  std::size_t outer_stride;
  /// [kernel_h * kernel_w][inside_stride]: 1 for pixels q with q + t - pad inside, otherwise 0, as for the
  /// kColumnPadding pixels behind the last.
  const T* inside;
  std::size_t inside_stride;
};
/// Taps of a window that position_norm takes.
inline constexpr std::size_t kNormTaps = 49;

/// Rows of a matrix into a panel that gram_pack could have packed and that holds other rows and columns
/// beside them: row i of `rows`, source[i * stride + k] for k < columns, becomes row first + i * step of the
/// packed ones and column `column` + k of the panel's `depth`. Nothing else is written, so that threads may
/// pack different rows at once. Whole cache lines when step = 1 and first and rows are multiples of
/// kGramLine: otherwise element by element. Other threads see them after fence_packing().
template <class T>
struct GramPacking {
  const T* source;
  std::size_t stride;
  std::size_t rows;
  std::size_t columns;
  T* packed;
  std::size_t depth;
  std::size_t column;
  std::size_t first;
  std::size_t step;
};
/// Rows whose elements of a column share a cache line.
template <class T>
inline constexpr std::size_t kGramLine = 64 / sizeof(T);

/// One group of columns (kGramGroupVectors registers of them) that is packed for a product, as gram_pack does
/// it: column j at depth k is source[j * stride + k] when `transposed`, otherwise source[k * stride + j].
template <class T>
struct PanelPacking {
  const T* source = nullptr;
  std::size_t stride = 0;
  bool transposed = false;
  std::size_t columns = 0;  ///< at most a group
  std::size_t depth = 0;
  T* packed = nullptr;
};

/// out[i * stride + j] (+)= scale * sum_{k < depth} rows[i, k] * columns[j, k], in T. Both sides are packed
/// by gram_pack. Writes no other entries; the same bits whatever stands beside one.
template <class T>
struct PanelProduct {
  const T* rows;
  const T* columns;
  std::size_t depth;
  std::size_t row_count, column_count;
  T* out;
  std::size_t stride;
  T scale;
  bool accumulate;  ///< add to `out` instead of overwriting it
  /// Packed meanwhile, from memory that is fetched while products are computed.
  PanelPacking<T> next = {};
};

/// The kernels of one instruction set and precision. Plain pointers, no allocation, no exceptions: callers
/// validate.
template <class T>
struct KernelTable {
  const char* isa;            ///< `sse2`, `avx2`, `avx512`, `amx`
  std::size_t vector_length;  ///< elements of T per register
  std::size_t panel_columns;  ///< of a gather_product whose v is read as it is when they lie side by side
  void (*gather_product)(const GatherProduct<T>&) noexcept;
  void (*sparse_gradient)(const SparseGradient<T>&) noexcept;
  void (*winograd_input)(const WinogradInput<T>&) noexcept;
  void (*winograd_weights)(const WinogradWeights<T>&) noexcept;
  void (*winograd_output)(const WinogradOutput<T>&) noexcept;
  void (*winograd_cotangent)(const WinogradCotangent<T>&) noexcept;
  void (*winograd_gradient)(const WinogradGradient<T>&) noexcept;
  void (*winograd_products)(const WinogradProducts<T>&) noexcept;
  /// How many are not zero.
  std::size_t (*count_nonzero)(const T* x, std::size_t n) noexcept;
  /// y[i] = f(x[i]); `slope` is the negative slope of LeakyRelu, otherwise ignored. x == y is allowed.
  void (*activate)(Activation, T slope, const T* x, T* y, std::size_t n) noexcept;
  /// out[i] = t[i] * f'(x[i]), given y = f(x) as well: the vjp and the jvp alike. f'(0) = 0 for Relu, slope
  /// for LeakyRelu (PyTorch's choice). out == t is allowed.
  void (*activation_chain)(Activation, T slope, const T* x, const T* y, const T* t, T* out,
                           std::size_t n) noexcept;
  /// out = a + b; out may be a or b.
  void (*add)(const T* a, const T* b, T* out, std::size_t n) noexcept;
  /// y += alpha x.
  void (*axpy)(T alpha, const T* x, T* y, std::size_t n) noexcept;
  /// sum x[i] y[i], products and sums in f64, fixed order.
  double (*dot)(const T* x, const T* y, std::size_t n) noexcept;
  /// One image's windows: out [out_h, out_w, c] = maxima, chosen [out_h, out_w, c] = the place of the first
  /// largest in its window (row * kernel_w + column), as T. With `rectify` max(0, maximum), and chosen is -1
  /// where nothing exceeds 0. A NaN in a window becomes its maximum and its place. Every window must see the
  /// image.
  void (*max_pool)(const ConvGeometry&, bool rectify, const T* in, T* out, T* chosen) noexcept;
  /// in (+)= the cotangents of the maxima at the places chosen (0 elsewhere; NaN all over a window whose
  /// place is NaN). Without `accumulate` windows must not overlap, and pixels in no window are left alone.
  void (*max_pool_chain)(const ConvGeometry&, const T* cotangent, const T* chosen, bool accumulate,
                         T* in) noexcept;
  /// Packs `rows` rows of `depth` elements, source[i * stride + k], for gram_product: groups of rows, within
  /// a group k-major. Writes `depth` times `rows` rounded up to kGramPadding elements at the most; zeros
  /// stand for missing rows of a group.
  void (*gram_pack)(const T* source, std::size_t stride, std::size_t rows, std::size_t depth,
                    T* packed) noexcept;
  void (*gram_pack_rows)(const GramPacking<T>&) noexcept;
  void (*fence_packing)() noexcept;
  void (*gram_product)(const GramProduct<T>&) noexcept;
  /// Bytes of GramProduct::scratch for products with at most so many rows.
  std::size_t (*gram_scratch_bytes)(std::size_t rows) noexcept;
  /// Whether gram_product is so much faster than panel_product that it pays for other matrix products too.
  bool gram_tiles_are_faster;
  /// Rows on a side of a large product at the most.
  std::size_t gram_tile_rows;
  /// Multiply-adds of a product in whose time it fetches an element of either side and makes it ready.
  double gram_side_products;
  void (*panel_product)(const PanelProduct<T>&) noexcept;
  /// Packs `count` rows of `depth` elements from anywhere as gram_pack does; a null row is zero.
  void (*position_pack)(const T* const* sources, std::size_t count, std::size_t depth, T* packed) noexcept;
  void (*position_product)(const PositionProduct<T>&) noexcept;
  void (*position_sums)(const PositionSums<T>&) noexcept;
  double (*position_norm)(const PositionNorm<T>&) noexcept;
  /// Runs independent fused multiply-adds from registers; returns the floating-point operations done (2 per
  /// multiply-add and lane), for measuring the machine's limit. `sink` receives a value so that nothing is
  /// elided.
  double (*fma_peak)(std::size_t iterations, T* sink) noexcept;
};

}  // namespace gradgram::simd
