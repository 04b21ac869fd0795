#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <type_traits>
#include <vector>

#include "engine/covariance.hpp"
#include "engine/tensor.hpp"
#include "ntk/infinite/program.hpp"
#include "ntk/infinite/sides.hpp"

/// Convolutional nets that keep their resolution until they are averaged: pairs of pixels with the same
/// offset q - p evolve alone, and a plane of them passes through all layers in cache. Averages over windows
/// side by side make planes of windows of them, which go on in the same way.
namespace gradgram::ntk::infinite {

/// One convolution and the rectifier after it.
struct PlaneLayer {
  std::size_t affine = 0, nonlinear = 0;  ///< steps of the program
  std::size_t radius_h = 0, radius_w = 0;
  double ratio = 0;                        ///< turn / scale of the nonlinearity
  bool obtuse = false, far_apart = false;  ///< see simd::PlaneRun
  double versine = 1;                      ///< factor of the left inverses: see simd::PlaneRun
  double unit = 1;    ///< a plane holds that many times the delta, in the scale of the slot before phi
  double factor = 1;  ///< power of two by which sums are multiplied to keep units near one
};

struct PlanePlan {
  std::vector<PlaneLayer> layers;
  /// Whether the planes begin with averages over windows instead of images.
  bool pooled = false;
  /// The step after the layers: it averages over all pairs of pixels; or, when `diagonal`, over equal pixels,
  /// for which the plane of offset zero is enough; or, when `window_h` is not 0, over windows of that size.
  /// Behind a pooling it may be any other step, which windows of one pixel leave all pairs to.
  std::size_t head = 0;
  bool diagonal = false;
  std::size_t window_h = 0, window_w = 0;
  std::size_t height = 0, width = 0;
  /// Arrays that the planes begin with: of the images; or, behind a pooling, two: what belongs to one of the
  /// images in delta (see pooled_arrays), and roots of variances.
  std::size_t channels = 0;
  bool obtuse = false;                     ///< whether cosines below zero may occur behind the last layer
  std::size_t radius_h = 0, radius_w = 0;  ///< largest
  double bias = 0;                         ///< of the first layer
  double input_scale = 1;                  ///< of the inputs as Sides hold them
  /// Factors that turn mean deltas and tangents of the last plane into those of the slot before the average.
  double delta_out = 1, theta_out = 1;
};

/// Whether the program begins with stride-1 convolutions of odd size that keep the resolution, each followed
/// by a rectifier, and then flattens the image or averages it, whole or in windows side by side: what planes
/// can follow.
bool has_planes(const Program& program);
/// The largest root of a pixel's variance that each step sees, divided by the smallest but for zeros; of
/// rectifiers only.
template <class T>
std::vector<double> ratios_of_roots(const Program& program, const Sides<T>& left, const Sides<T>& right);

/// `ratios`: those of roots, or none where it does not matter. Beyond `most`, rounding of delta, relative to
/// the smaller of two roots, may take the 1 - cosine of acute angles out of the polynomial's reach.
PlanePlan plan_planes(const Program& program, const Scales& scales, const std::vector<double>& ratios,
                      double most);
/// The most for T: the last digits of delta behind many layers, and what is left of them.
template <class T>
inline constexpr double kMostRatio = 1 / (64 * static_cast<double>(std::numeric_limits<T>::epsilon()));
/// Whether planes end in an inner pooling.
bool pools_planes(const Program& program);
/// What planes can follow behind the pooling of `first`, each plan up to the next pooling; empty where the
/// next step is not a convolution of theirs.
std::vector<PlanePlan> plan_pooled(const Program& program, const Scales& scales, const PlanePlan& first,
                                   const std::vector<double>& ratios, double most);

/// Means over the pairs of pixels, in the scales of the slot before the head.
struct PlaneMeans {
  double delta = 0, theta = 0;
};

/// How the arrays of an image stand one after the other. Lines of planes are columns of the image, cells its
/// rows.
template <class T>
struct PlaneArrays {
  PlaneArrays(const PlanePlan& plan, std::size_t lanes);
  std::size_t lines = 0, cells = 0, channels = 0, layers = 0, radius = 0, lanes = 0;
  std::size_t pixels = 0;
  std::size_t margin = 0;  ///< elements of the lines outside the left image
  std::size_t line = 0;    ///< of the right image: with lines outside and those that go around

  /// Left: channels and then of each layer root, inverse, square, window; the square with lines outside.
  std::size_t left_layer(std::size_t layer) const {
    return channels * pixels + layer * (4 * pixels + 2 * margin);
  }
  std::size_t left_size() const { return left_layer(layers) + 4; }
  /// Right: the same order, each array [cells][line].
  std::size_t right_layer(std::size_t layer) const { return (channels + 4 * layer) * cells * line; }
  /// Equal pixels: channels and then root and inverse of each layer.
  std::size_t equal_layer(std::size_t layer) const { return (channels + 2 * layer) * pixels; }
  std::size_t equal_size() const { return equal_layer(layers) + 4; }
  /// From line to line of the state of a plane, in registers.
  std::size_t pitch() const { return 2 * (cells + 1); }
  std::size_t state_size() const { return ((lines + 3 * radius) * pitch() + 6) * lanes; }
};

/// The arrays of all images of one side, for diagonal plans.
template <class T>
class PlaneImages {
 public:
  /// rows: [example, pixel, channel] in the scale of the inputs. As what images are to be read.
  PlaneImages(const PlanePlan& plan, const Sides<T>& side, const T* rows, bool left, bool right,
              const Workers& workers);
  static std::size_t bytes(const PlanePlan& plan, std::size_t examples);
  /// [arrays][lines][cells].
  const T* left(std::size_t example) const { return left_.data() + example * arrays_.equal_size(); }
  /// [arrays][lines][cells][lanes]: as many images as a register has lanes; zeros behind the last.
  const T* group(std::size_t index) const {
    return groups_.data() + index * arrays_.equal_layer(arrays_.layers) * arrays_.lanes;
  }

 private:
  PlaneArrays<T> arrays_;
  Tensor<T> left_, groups_;
};

/// Scratch of one worker; not shared.
template <class T>
class PlaneWorker {
 public:
  explicit PlaneWorker(const PlanePlan& plan);
  static std::size_t bytes(const PlanePlan& plan);

  /// An image as its channels [channels][stride >= pixels] and its index on its side.
  struct Image {
    const T* channels = nullptr;
    std::size_t stride = 0;
    const Sides<T>* side = nullptr;
    std::size_t index = 0;
  };
  /// The left image against `count` right ones. Where `same` both are one image, and half of the planes
  /// suffice. The bits of a pair do not depend on its company.
  void run(const Image& left, const Image* rights, std::size_t count, const bool* same, PlaneMeans* means);

  /// Takes a plane of windows: those of the right image are `down` windows of rows behind the left ones. Sums
  /// over pairs of windows, [windows of columns][windows of rows][delta, theta][fold_pitch()], the last being
  /// windows of columns that the right one is behind. False stops.
  using Fold = std::function<bool(std::size_t down, const double* sums)>;
  /// Plans with windows: every plane of them, the one of `down` = 0 last. False where `fold` said so.
  bool run_windows(const Image& left, const Image& right, const Fold& fold);
  std::size_t fold_pitch() const noexcept { return fold_pitch_; }
  /// The same for pooled plans, whose planes come from the pooling before, one by one: sums times `scale` and
  /// what the images' arrays add. `near` becomes true where 1 - cosine of a
  /// pair of windows is below `versine`.
  void start(const Image& left, const Image& right);
  bool run_pooled(std::size_t down, const double* sums, double scale, double versine, bool& near,
                  const Fold& fold) requires std::is_same_v<T, double>;

  /// Diagonal plans: left images, of PlaneImages, against a group of right ones; means [count][lanes].
  void diagonals(const T* const* lefts, std::size_t count, const T* group, PlaneMeans* means);
  std::size_t lanes() const noexcept { return kernels_.lanes; }

 private:
  simd::PlaneRun<T> prepared() const;
  void set_layer(simd::PlaneRun<T>& run, std::size_t layer) const;
  void lay_out_left(const Image& image);
  void lay_out_right(const Image& image);
  /// For the planes of right cells `down` and right lines `across` + lane.
  simd::PlaneRun<T> run_of(std::size_t across, std::size_t down);
  /// All layers of them; leaves their state, and adds it to `windows` unless that is null.
  void run_planes(simd::PlaneRun<T>& run, bool from_images, const simd::PlaneWindows<T>* windows);
  void set_places(const simd::PlaneRun<T>& run);
  /// The windows' sums that the planes of a run belong to.
  simd::PlaneWindows<T> windows_of(const simd::PlaneRun<T>& run);
  /// To be called when all lines' offsets of `down` have been added.
  bool end_planes(std::size_t down, const Fold& fold);
  T* window_sums(std::size_t down);

  const PlanePlan& plan_;
  const simd::CovarianceTable<T>& kernels_;
  PlaneArrays<T> arrays_;
  Tensor<T> left_, right_;
  Tensor<T> state_, sums_;
  Tensor<T> outside_;                 ///< [groups of offsets][lines][2 radius][lanes]
  std::vector<unsigned char> seams_;  ///< [groups of offsets][lines]
  std::vector<simd::PlaneCell> places_;
  Tensor<T> live_;         ///< [lanes of all groups]: 1, or 0 behind the last line
  Tensor<T> window_sums_;  ///< [3][lines][windows of a line][delta, theta][lanes of all groups]
  std::vector<std::size_t> window_planes_;  ///< of each offset in windows, how many planes have been added
  Tensor<T> ring_;
  std::size_t fold_pitch_ = 0;
  Tensor<double> folded_;
};

}  // namespace gradgram::ntk::infinite
