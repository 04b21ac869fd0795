#include "engine/ops/conv2d.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine/ops/common.hpp"
#include "engine/ops/pool.hpp"

/// Direct convolution, channels-last: zero-padded copies of a few images and one gather product over all
/// their pixels, so that panels of the weights are read once for all of them. The offset tables depend on the
/// geometry alone and are built once per block of examples.
namespace gradgram::ops {
namespace {

using Offset = std::ptrdiff_t;

Offset* offsets(Arena& arena, std::size_t count) {
  return static_cast<Offset*>(arena.allocate(checked_multiply(count, sizeof(Offset), "conv2d")));
}

Offset signed_offset(std::size_t value) {
  return static_cast<Offset>(value);
}

/// Bytes of inputs and outputs of one product over several images: they stay in the second-level cache.
constexpr std::size_t kGroupBytes = std::size_t{1} << 20;
/// Pixels over which reading and packing a panel of the weights costs little; more only take up the cache.
constexpr std::size_t kGroupPixels = 1024;

/// Images of one product, at most n.
template <class T>
std::size_t group_images(std::size_t n, std::size_t pixels, std::size_t in_size, std::size_t out_size) {
  const std::size_t fit = kGroupBytes / sizeof(T) / std::max<std::size_t>(in_size + out_size, 1);
  const std::size_t enough = (kGroupPixels - 1) / std::max<std::size_t>(pixels, 1) + 1;
  return std::clamp<std::size_t>(std::min(fit, enough), 1, std::max<std::size_t>(n, 1));
}

/// Where an image stands inside a plane with zeros around it.
struct Frame {
  std::size_t height, width, channels;
  std::size_t top, left;
  std::size_t bottom, right;
  std::size_t padded_width() const { return left + width + right; }
  std::size_t padded_height() const { return top + height + bottom; }
  std::size_t size() const { return padded_height() * padded_width() * channels; }
  bool bare() const { return top + left + bottom + right == 0; }
};

/// Copies into the middle of a plane whose border is already zero.
template <class T>
void frame_image(const Frame& frame, const T* image, T scale, T* plane) {
  const std::size_t row = frame.width * frame.channels;
  for (std::size_t y = 0; y < frame.height; ++y) {
    T* const out = plane + ((frame.top + y) * frame.padded_width() + frame.left) * frame.channels;
    const T* const in = image + y * row;
    if (scale == T(1)) {
      copy(in, out, row);
    } else {
      for (std::size_t i = 0; i < row; ++i) out[i] = scale * in[i];
    }
  }
}

/// Zeros around `images` images.
template <class T>
void clear_border(const Frame& frame, T* plane, std::size_t images) {
  const std::size_t row = frame.padded_width() * frame.channels;
  const std::size_t left = frame.left * frame.channels;
  const std::size_t right = frame.right * frame.channels;
  for (std::size_t i = 0; i < images; ++i, plane += frame.size()) {
    fill_zero(plane, frame.top * row);
    for (std::size_t y = frame.top; y < frame.top + frame.height; ++y) {
      fill_zero(plane + y * row, left);
      fill_zero(plane + (y + 1) * row - right, right);
    }
    fill_zero(plane + (frame.top + frame.height) * row, frame.bottom * row);
  }
}

Frame image_frame(const ConvGeometry& g) {
  return {g.in_h, g.in_w, g.c_in, g.pad_top, g.pad_left, g.pad_bottom, g.pad_right};
}

/// Offset of each output pixel's window, and of each tap and channel inside a window, in the padded image.
void window_offsets(const ConvGeometry& g, const Frame& frame, Offset* pixels, Offset* taps) {
  const std::size_t row = frame.padded_width() * g.c_in;
  for (std::size_t y = 0; y < g.out_h; ++y) {
    for (std::size_t x = 0; x < g.out_w; ++x) {
      *pixels++ = signed_offset(y * g.stride_h * row + x * g.stride_w * g.c_in);
    }
  }
  for (std::size_t a = 0; a < g.kernel_h; ++a) {
    for (std::size_t i = 0; i < g.kernel_w * g.c_in; ++i) *taps++ = signed_offset(a * row + i);
  }
}

/// table[i * count + j] = table[j] + i * step for images i < n; the first `count` stand there.
void repeat_for_images(Offset* table, std::size_t count, std::size_t step, std::size_t n) {
  for (std::size_t i = count; i < n * count; ++i) table[i] = table[i - count] + signed_offset(step);
}

/// Hands a block of images, a group at a time and framed where that is needed, to body(images of the group,
/// their pixels, first image).
template <class T, class Body>
void each_group(const Frame& frame, const T* images, std::size_t n, std::size_t group, Arena& arena,
                const Body& body) {
  T* plane = nullptr;
  if (!frame.bare()) {
    plane = arena.tensor<T>(Shape{group, frame.size()}).data();
    clear_border(frame, plane, group);
  }
  const std::size_t size = frame.height * frame.width * frame.channels;
  for (std::size_t i = 0; i < n; i += group) {
    const std::size_t count = std::min(group, n - i);
    if (plane != nullptr) {
      for (std::size_t k = 0; k < count; ++k) {
        frame_image(frame, images + (i + k) * size, T(1), plane + k * frame.size());
      }
    }
    body(count, plane != nullptr ? plane : images + i * size, i);
  }
}

/// Whether Winograd's transforms apply, and pay with a few images: from a single one of these pixels on,
/// transforming the weights does not outweigh the products.
template <class T>
bool winograd(const ConvGeometry& g) {
  constexpr std::size_t kLeastPixels = 16;
  constexpr std::size_t kLine = simd::kColumnPadding<T>;
  return g.kernel_h == 3 && g.kernel_w == 3 && g.stride_h == 1 && g.stride_w == 1 && g.c_in % kLine == 0 &&
         g.c_out % kLine == 0 && g.out_pixels() >= kLeastPixels &&
         std::max({g.pad_top, g.pad_left, g.pad_bottom, g.pad_right}) <= 2;
}
constexpr std::size_t kWinogradComponents = 16;
/// Room for the transforms of rows x columns numbers.
template <class T>
T* components(std::size_t rows, std::size_t columns, Arena& arena) {
  return arena.tensor<T>(Shape{kWinogradComponents, simd::winograd_component<T>(rows, columns)}).data();
}
/// `product` of every component; its x, v and out are of the first, and the next stand so much further on.
template <class T>
void component_products(simd::GatherProduct<T> product, std::size_t x_step, std::size_t v_step,
                        std::size_t out_step) {
  for (std::size_t c = 0; c < kWinogradComponents; ++c) {
    kernels<T>().gather_product(product);
    product.x += x_step;
    product.v += v_step;
    product.out += out_step;
  }
}
/// Bytes of transformed weights that are kept for all tiles; of larger ones a panel at a time, again for
/// every block. Those near stay in the second-level cache.
constexpr std::size_t kWinogradWeights = std::size_t{5} << 20;
constexpr std::size_t kNearWinogradWeights = std::size_t{5} << 18;
/// Tiles of a block: its transformed windows and products stay in the second-level cache; a multiple of the
/// rows of a gather product's tile. More of them when the weights come from farther away for every block.
constexpr std::size_t kWinogradTiles = 48;
constexpr std::size_t kMostWinogradTiles = 128;
constexpr std::size_t kWinogradWindows = std::size_t{5} << 19;

/// How a correlation with `depth` channels in and `columns` out is blocked.
template <class T>
struct WinogradBlocks {
  WinogradBlocks(std::size_t depth, std::size_t columns, std::size_t tiles) {
    const std::size_t bytes = kWinogradComponents * sizeof(T) * depth;
    const std::size_t weights = bytes * columns;
    whole = weights <= kWinogradWeights;
    const std::size_t room = std::clamp(kWinogradWindows / bytes, kWinogradTiles, kMostWinogradTiles);
    block = std::min(weights <= kNearWinogradWeights ? kWinogradTiles : room, tiles);
  }
  bool whole;         ///< all weights are transformed at once
  std::size_t block;  ///< tiles
};

/// Tiles of an image with h x w outputs.
std::size_t winograd_tiles(std::size_t h, std::size_t w) {
  return ((h + 1) / 2) * ((w + 1) / 2);
}

/// Images that fill a block of tiles.
template <class T>
std::size_t winograd_group(std::size_t n, std::size_t group, std::size_t depth, std::size_t columns,
                           std::size_t tiles) {
  n = std::max<std::size_t>(n, 1);
  const WinogradBlocks<T> blocks(depth, columns, n * tiles);
  return std::min(n, std::max(group, (blocks.block + tiles - 1) / tiles));
}

/// A correlation by Winograd's F(2x2, 3x3) of framed images with the weights or, `transposed`, with the
/// weights turned around: out[y, x] sees the 3 x 3 pixels of the plane from (y, x) on.
template <class T>
class Winograd {
 public:
  /// `frame`: for out_h x out_w outputs; made large enough for whole tiles. Of at most n images.
  Winograd(const ConvGeometry& g, const T* weights, T scale, bool transposed, std::size_t n, Frame& frame,
           Arena& arena)
      : out_h_(transposed ? g.in_h : g.out_h),
        out_w_(transposed ? g.in_w : g.out_w),
        depth_(transposed ? g.c_out : g.c_in),
        columns_(transposed ? g.c_in : g.c_out),
        width_(std::min(columns_, kernels<T>().panel_columns)),
        blocks_(depth_, columns_, n * winograd_tiles(out_h_, out_w_)),
        weights_{weights, g.c_in, g.c_out, transposed, scale, 0, 0, nullptr} {
    frame.bottom += out_h_ % 2;
    frame.right += out_w_ % 2;
    row_ = frame.padded_width() * frame.channels;
    image_ = frame.size();
    const std::size_t panels = blocks_.whole ? (columns_ + width_ - 1) / width_ : 1;
    panel_size_ = kWinogradComponents * simd::winograd_component<T>(depth_, width_);
    weights_.out = arena.tensor<T>(Shape{panels, panel_size_}).data();
    for (std::size_t first = 0; blocks_.whole && first < columns_; first += width_) panel(first);
    windows_ = components<T>(blocks_.block, depth_, arena);
    products_ = components<T>(blocks_.block, width_, arena);
    window_base_ = offsets(arena, blocks_.block);
    product_base_ = offsets(arena, blocks_.block);
    channels_ = offsets(arena, depth_);
    for (std::size_t t = 0; t < blocks_.block; ++t) window_base_[t] = signed_offset(t * depth_);
    for (std::size_t i = 0; i < depth_; ++i) channels_[i] = signed_offset(i);
  }

  /// `count` images of the plane into `out`; the other arguments as those of GatherProduct.
  void operator()(const T* plane, std::size_t count, T* out, bool accumulate, const T* start, T start_scale,
                  bool rectify) const {
    const simd::KernelTable<T>& table = kernels<T>();
    simd::WinogradGrid grid{(out_w_ + 1) / 2, (out_h_ + 1) / 2, 0, 0};
    const std::size_t tiles = count * grid.across * grid.down;
    for (; grid.first < tiles; grid.first += grid.count) {
      grid.count = std::min(blocks_.block, tiles - grid.first);
      const std::size_t window = simd::winograd_component<T>(grid.count, depth_);
      table.winograd_input({.grid = grid,
                            .plane = plane,
                            .row = row_,
                            .image = image_,
                            .channels = depth_,
                            .out = windows_,
                            .component = window});
      for (std::size_t first = 0; first < columns_; first += width_) {
        const std::size_t width = std::min(width_, columns_ - first);
        const std::size_t weight = simd::winograd_component<T>(depth_, width);
        const std::size_t product = simd::winograd_component<T>(grid.count, width);
        const T* const weights = blocks_.whole ? weights_.out + first / width_ * panel_size_ : panel(first);
        for (std::size_t t = 0; t < grid.count; ++t) product_base_[t] = signed_offset(t * width);
        component_products<T>({.x = windows_,
                               .x_base = window_base_,
                               .x_offset = channels_,
                               .v = weights,
                               .v_stride = width,
                               .out = products_,
                               .out_base = product_base_,
                               .rows = grid.count,
                               .depth = depth_,
                               .columns = width},
                              window, weight, product);
        table.winograd_output({.grid = grid,
                               .products = products_,
                               .component = product,
                               .columns = width,
                               .out = out + first,
                               .out_h = out_h_,
                               .out_w = out_w_,
                               .pixel = columns_,
                               .accumulate = accumulate,
                               .start = start == nullptr ? nullptr : start + first,
                               .start_scale = start_scale,
                               .rectify = rectify});
      }
    }
  }

 private:
  /// Transforms the weights of the columns from `first` on.
  const T* panel(std::size_t first) const {
    simd::WinogradWeights<T> job = weights_;
    job.first = first;
    job.columns = std::min(width_, columns_ - first);
    if (blocks_.whole) job.out += first / width_ * panel_size_;
    kernels<T>().winograd_weights(job);
    return job.out;
  }

  std::size_t out_h_, out_w_, depth_, columns_;
  std::size_t width_;  ///< columns of a panel
  WinogradBlocks<T> blocks_;
  simd::WinogradWeights<T> weights_;  ///< out: [panels, panel_size_], or one panel
  std::size_t panel_size_ = 0;
  std::size_t row_ = 0, image_ = 0;
  T *windows_ = nullptr, *products_ = nullptr;
  Offset *window_base_ = nullptr, *product_base_ = nullptr, *channels_ = nullptr;
};

/// What is convolved. Winograd's transforms round about three times more coarsely than direct sums; what is
/// linear in them does not mind, but the values decide about rectifiers and maxima, and one that tips the
/// other way moves all entries of its example: they are summed directly.
enum class Convolved { Values, Tangents };

/// Images of one product of a forward convolution.
template <class T>
std::size_t forward_group(const ConvGeometry& g, Convolved what, std::size_t n) {
  const std::size_t group =
      group_images<T>(n, g.out_pixels(), image_frame(g).size(), g.out_pixels() * g.c_out);
  return what == Convolved::Tangents && winograd<T>(g)
             ? winograd_group<T>(n, group, g.c_in, g.c_out, winograd_tiles(g.out_h, g.out_w))
             : group;
}

/// scale * (x correlated with the weights) + bias_scale * bias for n images; bias may be absent (null). A
/// group of images goes to target(first image); then finish(its images, first image) may do something with
/// it.
template <class T, class Target, class Finish>
void convolve(const ConvGeometry& g, Convolved what, const T* x, const T* weights, T scale, const T* bias,
              T bias_scale, bool accumulate, bool rectify, std::size_t n, Arena& arena, const Target& target,
              const Finish& finish) {
  const ArenaScope scope(arena);
  Frame frame = image_frame(g);
  const std::size_t rows = g.out_pixels();
  const std::size_t group = forward_group<T>(g, what, n);
  if (what == Convolved::Tangents && winograd<T>(g)) {
    const Winograd<T> product(g, weights, scale, false, group, frame, arena);
    each_group(frame, x, n, group, arena, [&](std::size_t count, const T* images, std::size_t first) {
      product(images, count, target(first), accumulate, bias, bias_scale, rectify);
      finish(count, first);
    });
    return;
  }
  Offset* const pixels = offsets(arena, group * rows);
  Offset* const taps = offsets(arena, g.patch());
  Offset* const out = offsets(arena, group * rows);
  window_offsets(g, frame, pixels, taps);
  repeat_for_images(pixels, rows, frame.size(), group);
  for (std::size_t p = 0; p < group * rows; ++p) out[p] = signed_offset(p * g.c_out);
  each_group(frame, x, n, group, arena, [&](std::size_t count, const T* images, std::size_t first) {
    kernels<T>().gather_product({.x = images,
                                 .x_base = pixels,
                                 .x_offset = taps,
                                 .v = weights,
                                 .v_stride = g.c_out,
                                 .out = target(first),
                                 .out_base = out,
                                 .rows = count * rows,
                                 .depth = g.patch(),
                                 .columns = g.c_out,
                                 .accumulate = accumulate,
                                 .start = bias,
                                 .start_scale = bias_scale,
                                 .rectify = rectify,
                                 .v_scale = scale});
    finish(count, first);
  });
}

/// The same into y (+)=.
template <class T>
void convolve(const ConvGeometry& g, Convolved what, const T* x, const T* weights, T scale, const T* bias,
              T bias_scale, bool accumulate, bool rectify, T* y, std::size_t n, Arena& arena) {
  convolve(
      g, what, x, weights, scale, bias, bias_scale, accumulate, rectify, n, arena,
      [&](std::size_t first) { return y + first * g.out_pixels() * g.c_out; },
      [](std::size_t, std::size_t) {});
}

/// One axis of the transposed convolution. In padded coordinates u = output * stride + tap; inputs of one
/// residue u mod stride are reached by the taps of the same residue only, so each residue (phase) is a dense
/// correlation with its own taps and no multiplication by the zeros of a dilated cotangent.
struct PhaseAxis {
  std::size_t stride, kernel, pad, in, out;
  /// Zeros before and after the cotangent.
  std::size_t before() const {
    const std::size_t reach = (kernel - 1) / stride;
    return reach > pad / stride ? reach - pad / stride : 0;
  }
  std::size_t after() const {
    const std::size_t last = (pad + in - 1) / stride;
    return last + 1 > out ? last + 1 - out : 0;
  }
  /// phase < kernel.
  std::size_t taps(std::size_t phase) const { return (kernel - 1 - phase) / stride + 1; }
  /// The first input of this phase.
  std::size_t first(std::size_t phase) const { return (phase + stride - pad % stride) % stride; }
};

/// x_cotangent (+)= scale * (transposed convolution of the cotangent), for n images.
template <class T>
void convolve_transposed(const ConvGeometry& g, const T* cotangent, const T* weights, T scale,
                         bool accumulate, T* x_cotangent, std::size_t n, Arena& arena) {
  const ArenaScope scope(arena);
  const PhaseAxis vertical{g.stride_h, g.kernel_h, g.pad_top, g.in_h, g.out_h};
  const PhaseAxis horizontal{g.stride_w, g.kernel_w, g.pad_left, g.in_w, g.out_w};
  Frame frame{g.out_h,          g.out_w,           g.c_out, vertical.before(), horizontal.before(),
              vertical.after(), horizontal.after()};
  std::size_t group = group_images<T>(n, g.out_pixels(), frame.size(), g.in_pixels() * g.c_in);
  if (winograd<T>(g)) {
    group = winograd_group<T>(n, group, g.c_out, g.c_in, winograd_tiles(g.in_h, g.in_w));
    const Winograd<T> product(g, weights, scale, true, group, frame, arena);
    each_group(frame, cotangent, n, group, arena, [&](std::size_t count, const T* images, std::size_t first) {
      product(images, count, x_cotangent + first * g.in_pixels() * g.c_in, accumulate, nullptr, T(0), false);
    });
    return;
  }

  // Prepared once for the block: of every phase the offsets of its weights [taps, c_out] and pixels. Phases
  // beyond the kernel have no taps: a stride may be huge, the work is not.
  const std::size_t phases_h = std::min(g.stride_h, g.kernel_h);
  const std::size_t phases_w = std::min(g.stride_w, g.kernel_w);
  const std::size_t phases = phases_h * phases_w;
  const bool untouched = phases_h < g.stride_h || phases_w < g.stride_w;  // some inputs are reached by no tap
  auto* const products = static_cast<simd::GatherProduct<T>*>(
      arena.allocate(checked_multiply(phases, sizeof(simd::GatherProduct<T>), "conv2d")));
  for (std::size_t phase = 0; phase < phases; ++phase) {
    const std::size_t phase_h = phase / phases_w;
    const std::size_t phase_w = phase % phases_w;
    const std::size_t taps_h = vertical.taps(phase_h);
    const std::size_t taps_w = horizontal.taps(phase_w);
    const std::size_t depth = taps_h * taps_w * g.c_out;
    Offset* const x_offset = offsets(arena, depth);
    Offset* const v_offset = offsets(arena, depth);
    std::size_t i = 0;
    // Farthest tap first, so that memory is walked upwards.
    for (std::size_t a = taps_h; a-- > 0;) {
      for (std::size_t b = taps_w; b-- > 0;) {
        const std::size_t tap = (phase_h + a * g.stride_h) * g.kernel_w + phase_w + b * g.stride_w;
        for (std::size_t k = 0; k < g.c_out; ++k, ++i) {
          x_offset[i] = signed_offset(k) - signed_offset((a * frame.padded_width() + b) * g.c_out);
          v_offset[i] = signed_offset(tap * g.c_in * g.c_out + k);
        }
      }
    }
    const std::size_t first_y = vertical.first(phase_h);
    const std::size_t first_x = horizontal.first(phase_w);
    const std::size_t rows_h = first_y < g.in_h ? (g.in_h - 1 - first_y) / g.stride_h + 1 : 0;
    const std::size_t rows_w = first_x < g.in_w ? (g.in_w - 1 - first_x) / g.stride_w + 1 : 0;
    Offset* const x_base = offsets(arena, group * rows_h * rows_w);
    Offset* const out_base = offsets(arena, group * rows_h * rows_w);
    std::size_t row = 0;
    for (std::size_t y = first_y; y < g.in_h; y += g.stride_h) {
      for (std::size_t x = first_x; x < g.in_w; x += g.stride_w) {
        const std::size_t u = (y + g.pad_top) / g.stride_h + frame.top;
        const std::size_t v = (x + g.pad_left) / g.stride_w + frame.left;
        x_base[row] = signed_offset((u * frame.padded_width() + v) * g.c_out);
        out_base[row] = signed_offset((y * g.in_w + x) * g.c_in);
        ++row;
      }
    }
    repeat_for_images(x_base, row, frame.size(), group);
    repeat_for_images(out_base, row, g.in_pixels() * g.c_in, group);
    products[phase] = {.x = nullptr,
                       .x_base = x_base,
                       .x_offset = x_offset,
                       .v = weights,
                       .v_stride = g.c_out,
                       .out = nullptr,
                       .out_base = out_base,
                       .rows = row,
                       .depth = depth,
                       .columns = g.c_in,
                       .accumulate = accumulate,
                       .v_scale = scale,
                       .v_offset = v_offset};
  }

  each_group(frame, cotangent, n, group, arena, [&](std::size_t count, const T* images, std::size_t first) {
    T* const result = x_cotangent + first * g.in_pixels() * g.c_in;
    if (untouched && !accumulate) fill_zero(result, count * g.in_pixels() * g.c_in);
    for (std::size_t phase = 0; phase < phases; ++phase) {
      simd::GatherProduct<T> product = products[phase];
      product.x = images;
      product.out = result;
      product.rows *= count;
      if (product.rows != 0) kernels<T>().gather_product(product);
    }
  });
}

/// Time of forming a gradient from the nonzero cotangents, of which there is a share `density`, against all
/// of them, as measured: input channels filled up to whole blocks, loads beside the multiply-adds, the
/// squares that are transposed on their way into the gradient (and out of it), and sorting the cotangents.
double sparse_cost(const ConvGeometry& g, double density, bool accumulate) {
  constexpr double kBlock = 32;
  const auto taps = static_cast<double>(g.kernel_h * g.kernel_w);
  if (taps < 4) return 1;  // too few sums at once
  const auto channels = static_cast<double>(g.c_in);
  const double filled = std::ceil(channels / kBlock) * kBlock / channels;
  const double squares = (accumulate ? 28.0 : 14.0) / static_cast<double>(g.out_pixels());
  return 0.05 + 1.27 * density * filled + squares + 80.0 / (taps * channels);
}

/// Tiles of a block of a gradient.
constexpr std::size_t kGradientTiles = 64;

/// The frame of an image whose gradient is formed: room for whole tiles.
template <class T>
Frame gradient_frame(const ConvGeometry& g) {
  Frame frame = image_frame(g);
  if (conv_gradient_cost<T>(g) < 1) {
    frame.bottom += g.out_h % 2;
    frame.right += g.out_w % 2;
  }
  return frame;
}

/// Elements from pixel to pixel of an image whose products walk over many pixels of few channels: an odd
/// number of cache lines, or their lines would compete for a few cache sets.
template <class T>
std::size_t apart(std::size_t channels) {
  constexpr std::size_t kLine = kAlignment / sizeof(T);
  return channels % (2 * kLine) == 0 ? channels + kLine : channels;
}

/// What follows a convolution in the same op.
template <class T>
struct Tail {
  bool relu = false;
  const ConvGeometry* pool = nullptr;  ///< in the arena
  const T* chosen = nullptr;           ///< of the pool, with negative maxima left out
};

template <class T>
class Conv2dNode final : public Node<T> {
 public:
  Conv2dNode(const ConvGeometry& geometry, const Affine<T>& affine, const Tail<T>& tail, Var x, Var y)
      : geometry_(geometry), affine_(affine), tail_(tail), x_(x), y_(y) {}

  void jvp(Tape<T>& tape) const override {
    if (!tape.tangent(x_) && !tape.parameter_tangent(affine_.weight) &&
        !tape.parameter_tangent(affine_.bias)) {
      return;
    }
    const auto y = tape.make_tangent(y_);
    if (tail_.pool != nullptr) {
      const ArenaScope scope(tape.arena());
      const auto before = tape.arena().template tensor<T>(conv_shape(tape));
      conv_tangent(tape, before.data());
      max_pool_tangent(*tail_.pool, before.data(), tail_.chosen, tape.examples(y_), y.data());
      return;
    }
    conv_tangent(tape, y.data());
    if (tail_.relu) rectify_chain(tape, y.data());
  }

  void vjp(Tape<T>& tape, Sink<T>& sink) const override {
    auto cotangent = tape.cotangent(y_);
    if (!cotangent) return;
    typename Tape<T>::Target target{};
    if (tape.depends(x_)) target = tape.cotangent_target(x_);
    const ArenaScope scope(tape.arena());
    if (tail_.pool != nullptr) {
      const auto before = tape.arena().template tensor<T>(conv_shape(tape));
      max_pool_cotangent(*tail_.pool, cotangent.data(), tail_.chosen, tape.examples(y_), false,
                         before.data());
      cotangent = before;
    } else if (tail_.relu) {
      // In place: nobody needs the cotangent of y afterwards.
      rectify_chain(tape, tape.cotangent_target(y_).view.data());
    }
    sink.use(ConvUse<T>{.weight = affine_.weight,
                        .bias = affine_.bias,
                        .weight_scale = affine_.weight_scale,
                        .bias_scale = affine_.bias_scale,
                        .geometry = geometry_,
                        .inputs = tape.value(x_),
                        .cotangents = cotangent},
             tape.arena());
    if (!tape.depends(x_)) return;
    convolve_transposed(geometry_, cotangent.data(), affine_.parameters.value(affine_.weight).data(),
                        affine_.weight_scale, !target.first, target.view.data(), tape.examples(y_),
                        tape.arena());
  }

 private:
  Shape conv_shape(Tape<T>& tape) const {
    return {tape.examples(y_), geometry_.out_h, geometry_.out_w, geometry_.c_out};
  }
  /// The rectifier's derivative follows from its value as well as from its argument.
  void rectify_chain(Tape<T>& tape, T* numbers) const {
    const auto y = tape.value(y_);
    kernels<T>().activation_chain(simd::Activation::Relu, T(0), y.data(), y.data(), numbers, numbers,
                                  y.size());
  }
  /// The tangent before the tail; one of its sources is there.
  void conv_tangent(Tape<T>& tape, T* y) const {
    const auto x = tape.tangent(x_);
    const auto weight = tape.parameter_tangent(affine_.weight);
    const auto bias = tape.parameter_tangent(affine_.bias);
    const ConvGeometry& g = geometry_;
    const std::size_t n = tape.examples(y_);
    if (!x && !weight) {
      fill_rows(bias.data(), affine_.bias_scale, y, n * g.out_pixels(), g.c_out);
      return;
    }
    if (x) {
      convolve(g, Convolved::Tangents, x.data(), affine_.parameters.value(affine_.weight).data(),
               affine_.weight_scale, bias.data(), affine_.bias_scale, false, false, y, n, tape.arena());
    }
    if (weight) {
      convolve<T>(g, Convolved::Tangents, tape.value(x_).data(), weight.data(), affine_.weight_scale,
                  x ? nullptr : bias.data(), affine_.bias_scale, static_cast<bool>(x), false, y, n,
                  tape.arena());
    }
  }

  ConvGeometry geometry_;
  Affine<T> affine_;
  Tail<T> tail_;
  Var x_;
  Var y_;
};

template <class T>
void check_conv2d(Tape<T>& tape, Var x, const ConvGeometry& g, const Affine<T>& affine) {
  const Shape shape = tape.shape(x);
  require_rank("conv2d", shape, 4, "[examples, height, width, channels]");
  if (shape[1] != g.in_h) mismatch("conv2d", "input height", shape[1], "geometry.in_h", g.in_h);
  if (shape[2] != g.in_w) mismatch("conv2d", "input width", shape[2], "geometry.in_w", g.in_w);
  if (shape[3] != g.c_in) mismatch("conv2d", "input channels", shape[3], "geometry.c_in", g.c_in);
  require_shape("conv2d", affine.parameters, affine.weight, Shape{g.kernel_h, g.kernel_w, g.c_in, g.c_out});
  if (affine.bias != kNoParameter) require_shape("conv2d", affine.parameters, affine.bias, Shape{g.c_out});
}

template <class T>
void record_conv2d(Tape<T>& tape, const ConvGeometry& g, const Affine<T>& affine, const Tail<T>& tail, Var x,
                   Var y) {
  tape.count_parameter_use(affine.weight);
  tape.count_parameter_use(affine.bias);
  tape.record(Conv2dNode<T>(g, affine, tail, x, y));
}

/// The convolution with at most a rectifier behind it.
template <class T>
Var unpooled(Tape<T>& tape, Var x, const ConvGeometry& g, const Affine<T>& affine, bool relu) {
  check_conv2d(tape, x, g, affine);
  const std::size_t n = tape.examples(x);
  const Var y = tape.emit(Shape{n, g.out_h, g.out_w, g.c_out}, true);
  convolve<T>(g, Convolved::Values, tape.value(x).data(), affine.parameters.value(affine.weight).data(),
              affine.weight_scale,
              affine.bias == kNoParameter ? nullptr : affine.parameters.value(affine.bias).data(),
              affine.bias_scale, false, relu, tape.mutable_value(y).data(), n, tape.scratch());
  record_conv2d(tape, g, affine, Tail<T>{.relu = relu}, x, y);
  return y;
}

}  // namespace

template <class T>
double conv_gradient_cost(const ConvGeometry& g) {
  if (!winograd<T>(g)) return 1;
  // The products, and the transforms of windows, cotangents and gradients, as measured.
  return std::min(1.0, 0.47 + 2.5 / static_cast<double>(g.c_out) + 2.0 / static_cast<double>(g.c_in) +
                           10.0 / static_cast<double>(g.out_pixels()));
}

template <class T>
ConvWeightGradient<T>::ConvWeightGradient(const ConvGeometry& geometry, T scale, T bias_scale, Arena& scratch)
    : geometry_(geometry),
      scale_(scale),
      bias_scale_(bias_scale),
      taps_(offsets(scratch, geometry.patch())),
      pixels_(offsets(scratch, geometry.out_pixels())),
      rows_(offsets(scratch, geometry.patch())),
      pixel_(apart<T>(geometry.c_in)),
      part_taps_(offsets(scratch, geometry.patch())),
      part_pixels_(offsets(scratch, geometry.out_pixels())),
      part_rows_(offsets(scratch, geometry.patch())),
      zeros_(offsets(scratch, geometry.out_pixels())) {
  const Frame frame = gradient_frame<T>(geometry);
  window_offsets(geometry, frame, pixels_, taps_);
  const auto spread = [&](Offset offset) {
    const auto at = static_cast<std::size_t>(offset);
    return signed_offset(at / geometry.c_in * pixel_ + at % geometry.c_in);
  };
  std::transform(taps_, taps_ + geometry.patch(), part_taps_, spread);
  std::transform(pixels_, pixels_ + geometry.out_pixels(), part_pixels_, spread);
  for (std::size_t i = 0; i < geometry.patch(); ++i) rows_[i] = signed_offset(i * geometry.c_out);
  std::fill_n(zeros_, geometry.out_pixels(), Offset{0});
  // The scale rides on the copy that padding needs anyway.
  if (!frame.bare() || scale != T(1)) {
    padded_image_ = scratch.tensor<T>(Shape{frame.size()}).data();
    clear_border(frame, padded_image_, 1);
  }
  if (conv_gradient_cost<T>(geometry) < 1) {
    const std::size_t width = std::min(geometry.c_out, kernels<T>().panel_columns);
    const std::size_t block = std::min(kGradientTiles, winograd_tiles(geometry.out_h, geometry.out_w));
    windows_ = components<T>(block, geometry.c_in, scratch);
    tile_cotangents_ = components<T>(block, width, scratch);
    products_ = components<T>(geometry.c_in, width, scratch);
    tiles_ = offsets(scratch, block);
    channels_ = offsets(scratch, geometry.c_in);
    product_rows_ = offsets(scratch, geometry.c_in);
    for (std::size_t i = 0; i < geometry.c_in; ++i) channels_[i] = signed_offset(i);
  }
  const std::size_t plane = frame.padded_height() * frame.padded_width();
  constexpr std::size_t kBlock = simd::kSparsePadding<T>;
  if (sparse_cost(geometry, 0, false) >= conv_gradient_cost<T>(geometry) ||
      plane > static_cast<std::size_t>(INT32_MAX) / kBlock)
    return;
  tap_pixels_ = offsets(scratch, geometry.kernel_h * geometry.kernel_w);
  window_pixels_ = offsets(scratch, geometry.out_pixels());
  for (std::size_t p = 0; p < geometry.out_pixels(); ++p) {
    window_pixels_[p] = pixels_[p] / signed_offset(geometry.c_in);
  }
  for (std::size_t t = 0; t < geometry.kernel_h * geometry.kernel_w; ++t) {
    tap_pixels_[t] = taps_[t * geometry.c_in] / signed_offset(geometry.c_in);
  }
  blocks_ = scratch.tensor<T>(Shape{plane, (geometry.c_in + kBlock - 1) / kBlock * kBlock}).data();
  const Shape lists{simd::kColumnPadding<T>, geometry.out_pixels() + simd::kColumnPadding<T>};
  values_ = scratch.tensor<T>(lists).data();
  value_offsets_ = static_cast<std::int32_t*>(scratch.allocate(lists.size() * sizeof(std::int32_t)));
}

template <class T>
bool ConvWeightGradient<T>::sparse(const T* cotangent, bool accumulate) const {
  const double other = conv_gradient_cost<T>(geometry_);
  if (blocks_ == nullptr || sparse_cost(geometry_, 0, accumulate) >= other) return false;
  const std::size_t size = geometry_.out_pixels() * geometry_.c_out;
  const double density =
      static_cast<double>(kernels<T>().count_nonzero(cotangent, size)) / static_cast<double>(size);
  return sparse_cost(geometry_, density, accumulate) < other;
}

template <class T>
void ConvWeightGradient<T>::transformed(const T* image, const T* cotangent, bool accumulate,
                                        const Block& block) const {
  const ConvGeometry& g = geometry_;
  const simd::KernelTable<T>& table = kernels<T>();
  const Frame frame = gradient_frame<T>(g);
  const std::size_t tiles = winograd_tiles(g.out_h, g.out_w);
  const std::size_t width = block.outputs;
  const std::size_t product = simd::winograd_component<T>(block.inputs, width);
  for (std::size_t i = 0; i < block.inputs; ++i) product_rows_[i] = signed_offset(i * width);
  simd::WinogradGrid grid{(g.out_w + 1) / 2, (g.out_h + 1) / 2, 0, 0};
  for (; grid.first < tiles; grid.first += grid.count) {
    grid.count = std::min(kGradientTiles, tiles - grid.first);
    for (std::size_t t = 0; t < grid.count; ++t) tiles_[t] = signed_offset(t * block.inputs);
    const std::size_t window = simd::winograd_component<T>(grid.count, block.inputs);
    const std::size_t component = simd::winograd_component<T>(grid.count, width);
    if (!block.same_windows || tiles > kGradientTiles) {
      table.winograd_input({.grid = grid,
                            .plane = image + block.first_in,
                            .row = frame.padded_width() * block.pixel,
                            .image = frame.size(),
                            .channels = block.inputs,
                            .out = windows_,
                            .component = window,
                            .pixel = block.pixel});
    }
    table.winograd_cotangent({.grid = grid,
                              .cotangent = cotangent + block.first_out,
                              .out_h = g.out_h,
                              .out_w = g.out_w,
                              .pixel = g.c_out,
                              .columns = width,
                              .out = tile_cotangents_,
                              .component = component});
    if (tiles <= kGradientTiles) {
      table.winograd_products({.windows = windows_,
                               .window_component = window,
                               .cotangents = tile_cotangents_,
                               .cotangent_component = component,
                               .tiles = grid.count,
                               .inputs = block.inputs,
                               .columns = width,
                               .channel = channels_,
                               .tile = tiles_,
                               .gradient = block.gradient,
                               .row = block.row,
                               .tap = block.tap,
                               .accumulate = accumulate});
      return;
    }
    component_products<T>({.x = windows_,
                           .x_base = channels_,
                           .x_offset = tiles_,
                           .v = tile_cotangents_,
                           .v_stride = width,
                           .out = products_,
                           .out_base = product_rows_,
                           .rows = block.inputs,
                           .depth = grid.count,
                           .columns = width,
                           .accumulate = grid.first > 0},
                          window, component, product);
  }
  table.winograd_gradient({.products = products_,
                           .component = product,
                           .c_in = block.inputs,
                           .columns = width,
                           .gradient = block.gradient,
                           .c_out = block.row,
                           .accumulate = accumulate,
                           .tap = block.tap});
}

template <class T>
void ConvWeightGradient<T>::direct(const T* image, const T* cotangent, bool accumulate, std::size_t first,
                                   std::size_t count, T* gradient) const {
  kernels<T>().gather_product({.x = image,
                               .x_base = taps_ + first,
                               .x_offset = pixels_,
                               .v = cotangent,
                               .v_stride = geometry_.c_out,
                               .out = gradient,
                               .out_base = rows_,
                               .rows = count,
                               .depth = geometry_.out_pixels(),
                               .columns = geometry_.c_out,
                               .accumulate = accumulate});
}

namespace {

/// Input channels of a part by Winograd's transforms, and rows of one that is formed directly: whole tiles,
/// enough to share the packing of the cotangents.
constexpr std::size_t kPartInputs = 96;
constexpr std::size_t kPartRows = 192;

/// Equal parts of whole registers, of at most `most`.
template <class T>
std::size_t even_part(std::size_t count, std::size_t most) {
  constexpr std::size_t kLine = simd::kColumnPadding<T>;
  const std::size_t parts = (count + most - 1) / most;
  return ((count + parts - 1) / parts + kLine - 1) / kLine * kLine;
}

/// From tap to tap of a part: all nine are written at once, and would compete for one cache set.
template <class T>
std::size_t formed_step(std::size_t size) {
  return size + kAlignment / sizeof(T);
}

}  // namespace

template <class T>
typename ConvWeightGradient<T>::PartSize ConvWeightGradient<T>::most_of_part() const {
  const std::size_t outputs = std::min(geometry_.c_out, kernels<T>().panel_columns);
  if (windows_ != nullptr) return {9, even_part<T>(geometry_.c_in, kPartInputs), outputs};
  return {1, std::min(kPartRows, geometry_.patch()), outputs};
}

template <class T>
std::size_t ConvWeightGradient<T>::parts() const {
  const PartSize most = most_of_part();
  const std::size_t rows = geometry_.patch() / most.taps;
  return ((rows - 1) / most.rows + 1) * ((geometry_.c_out - 1) / most.outputs + 1);
}

template <class T>
std::size_t ConvWeightGradient<T>::part_size() const {
  const PartSize most = most_of_part();
  return most.taps * formed_step<T>(most.rows * most.outputs);
}

template <class T>
typename ConvWeightGradient<T>::Part ConvWeightGradient<T>::part(std::size_t number) const {
  const PartSize most = most_of_part();
  const std::size_t c_out = geometry_.c_out;
  const std::size_t rows = geometry_.patch() / most.taps;
  const std::size_t down = (rows - 1) / most.rows + 1;
  const std::size_t row = number % down * most.rows;
  const std::size_t column = number / down * most.outputs;
  const std::size_t inner = std::min(most.rows, rows - row);
  const std::size_t length = std::min(most.outputs, c_out - column);
  return {row * c_out + column,          most.taps, rows * c_out, inner, c_out, length,
          formed_step<T>(inner * length)};
}

template <class T>
std::size_t ConvWeightGradient<T>::framed_size() const {
  const Frame frame = gradient_frame<T>(geometry_);
  return frame.padded_height() * frame.padded_width() * pixel_;
}

template <class T>
void ConvWeightGradient<T>::frame(const T* image, T* framed) const {
  const Frame frame = gradient_frame<T>(geometry_);
  const std::size_t line = frame.padded_width() * pixel_;
  for (std::size_t y = 0; y < frame.padded_height(); ++y, framed += line) {
    if (y < frame.top || y >= frame.top + frame.height) {
      fill_zero(framed, line);
      continue;
    }
    fill_zero(framed, frame.left * pixel_);
    fill_zero(framed + line - frame.right * pixel_, frame.right * pixel_);
    T* target = framed + frame.left * pixel_;
    for (std::size_t x = 0; x < frame.width; ++x, image += frame.channels, target += pixel_) {
      for (std::size_t c = 0; c < frame.channels; ++c) target[c] = scale_ * image[c];
    }
  }
}

template <class T>
void ConvWeightGradient<T>::form_part(std::size_t number, const T* framed, const T* cotangent,
                                      T* gradient) const {
  const Part part = this->part(number);
  if (windows_ == nullptr) {
    for (std::size_t i = 0; i < part.inner; ++i) part_rows_[i] = signed_offset(i * part.length);
    kernels<T>().gather_product({.x = framed,
                                 .x_base = part_taps_ + part.first / geometry_.c_out,
                                 .x_offset = part_pixels_,
                                 .v = cotangent + part.first % geometry_.c_out,
                                 .v_stride = geometry_.c_out,
                                 .out = gradient,
                                 .out_base = part_rows_,
                                 .rows = part.inner,
                                 .depth = geometry_.out_pixels(),
                                 .columns = part.length});
    return;
  }
  const std::size_t c_out = geometry_.c_out;
  transformed(framed, cotangent, false,
              {.first_in = part.first / c_out,
               .inputs = part.inner,
               .first_out = part.first % c_out,
               .outputs = part.length,
               .gradient = gradient,
               .row = part.length,
               .tap = part.formed_step,
               .pixel = pixel_,
               .same_windows = false});
}

template <class T>
void ConvWeightGradient<T>::operator()(const T* image, const T* cotangent, bool accumulate,
                                       T* weight_gradient, T* bias_gradient) const {
  const ConvGeometry& g = geometry_;
  if (padded_image_ != nullptr && weight_gradient != nullptr) {
    frame_image(gradient_frame<T>(g), image, scale_, padded_image_);
    image = padded_image_;
  }
  const bool zeros = weight_gradient != nullptr && sparse(cotangent, accumulate);
  if (zeros) {
    const Frame frame = gradient_frame<T>(g);
    kernels<T>().sparse_gradient({.image = image,
                                  .image_pixels = frame.padded_height() * frame.padded_width(),
                                  .c_in = g.c_in,
                                  .cotangent = cotangent,
                                  .pixels = g.out_pixels(),
                                  .c_out = g.c_out,
                                  .taps = g.kernel_h * g.kernel_w,
                                  .tap_offset = tap_pixels_,
                                  .pixel_offset = window_pixels_,
                                  .accumulate = accumulate,
                                  .gradient = weight_gradient,
                                  .blocks = blocks_,
                                  .values = values_,
                                  .offsets = value_offsets_});
  }
  if (weight_gradient != nullptr && !zeros && windows_ != nullptr) {
    const std::size_t panel = kernels<T>().panel_columns;
    for (std::size_t first = 0; first < g.c_out; first += panel) {
      // The windows of the only block of tiles stay for all panels.
      transformed(image, cotangent, accumulate,
                  {.first_in = 0,
                   .inputs = g.c_in,
                   .first_out = first,
                   .outputs = std::min(panel, g.c_out - first),
                   .gradient = weight_gradient + first,
                   .row = g.c_out,
                   .tap = g.c_in * g.c_out,
                   .pixel = g.c_in,
                   .same_windows = first > 0});
    }
  } else if (weight_gradient != nullptr && !zeros) {
    // Some rows of the gradient at a time: a large one is written from front to back.
    const std::size_t most = std::max<std::size_t>(kGroupBytes / 4 / sizeof(T) / g.c_out, 96);
    for (std::size_t row = 0; row < g.patch(); row += most) {
      direct(image, cotangent, accumulate, row, std::min(most, g.patch() - row),
             weight_gradient + row * g.c_out);
    }
  }
  if (bias_gradient != nullptr) {
    // The same sum with the scale in the place of every input.
    kernels<T>().gather_product({.x = &bias_scale_,
                                 .x_base = zeros_,
                                 .x_offset = zeros_,
                                 .v = cotangent,
                                 .v_stride = g.c_out,
                                 .out = bias_gradient,
                                 .out_base = zeros_,
                                 .rows = 1,
                                 .depth = g.out_pixels(),
                                 .columns = g.c_out,
                                 .accumulate = accumulate});
  }
}

template <class T>
void conv_weight_gradient(const ConvGeometry& geometry, const T* image, const T* cotangent, T scale,
                          T bias_scale, bool accumulate, T* weight_gradient, T* bias_gradient,
                          Arena& scratch) {
  const ArenaScope scope(scratch);
  const ConvWeightGradient<T> gradient(geometry, scale, bias_scale, scratch);
  gradient(image, cotangent, accumulate, weight_gradient, bias_gradient);
}

template <class T>
Var conv2d(Tape<T>& tape, Var x, const ConvGeometry& geometry, const Affine<T>& affine) {
  return unpooled(tape, x, geometry, affine, false);
}

template <class T>
Var conv2d_relu(Tape<T>& tape, Var x, const ConvGeometry& geometry, const Affine<T>& affine,
                const ConvGeometry* pool) {
  if (pool == nullptr) return unpooled(tape, x, geometry, affine, true);
  const ConvGeometry& g = geometry;
  check_conv2d(tape, x, g, affine);
  const std::size_t n = tape.examples(x);
  check_max_pool<T>(Shape{n, g.out_h, g.out_w, g.c_out}, *pool);
  const Var y = tape.emit(Shape{n, pool->out_h, pool->out_w, g.c_out}, true);
  T* const chosen = tape.arena().template tensor<T>(tape.shape(y)).data();
  auto* const kept = new (tape.arena().allocate(sizeof(ConvGeometry))) ConvGeometry(*pool);
  {
    const ArenaScope scope(tape.scratch());
    const std::size_t size = g.out_pixels() * g.c_out;
    const std::size_t pooled = pool->out_pixels() * g.c_out;
    T* const before =
        tape.scratch().template tensor<T>(Shape{forward_group<T>(g, Convolved::Values, n), size}).data();
    T* const values = tape.mutable_value(y).data();
    convolve<T>(
        g, Convolved::Values, tape.value(x).data(), affine.parameters.value(affine.weight).data(),
        affine.weight_scale,
        affine.bias == kNoParameter ? nullptr : affine.parameters.value(affine.bias).data(),
        affine.bias_scale, false, false, n, tape.scratch(), [&](std::size_t) { return before; },
        [&](std::size_t count, std::size_t first) {
          for (std::size_t i = 0; i < count; ++i) {
            kernels<T>().max_pool(*pool, true, before + i * size, values + (first + i) * pooled,
                                  chosen + (first + i) * pooled);
          }
        });
  }
  record_conv2d(tape, g, affine, Tail<T>{.relu = true, .pool = kept, .chosen = chosen}, x, y);
  return y;
}

template double conv_gradient_cost<float>(const ConvGeometry&);
template double conv_gradient_cost<double>(const ConvGeometry&);
template class ConvWeightGradient<float>;
template class ConvWeightGradient<double>;
template void conv_weight_gradient(const ConvGeometry&, const float*, const float*, float, float, bool,
                                   float*, float*, Arena&);
template void conv_weight_gradient(const ConvGeometry&, const double*, const double*, double, double, bool,
                                   double*, double*, Arena&);
template Var conv2d(Tape<float>&, Var, const ConvGeometry&, const Affine<float>&);
template Var conv2d(Tape<double>&, Var, const ConvGeometry&, const Affine<double>&);
template Var conv2d_relu(Tape<float>&, Var, const ConvGeometry&, const Affine<float>&, const ConvGeometry*);
template Var conv2d_relu(Tape<double>&, Var, const ConvGeometry&, const Affine<double>&, const ConvGeometry*);

}  // namespace gradgram::ops
