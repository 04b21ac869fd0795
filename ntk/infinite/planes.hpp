#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "engine/covariance.hpp"
#include "engine/tensor.hpp"
#include "ntk/infinite/program.hpp"
#include "ntk/infinite/sides.hpp"

/// Convolutional nets that keep their resolution until they are averaged over all pixels: pairs of pixels
/// with the same offset q - p evolve alone, and a plane of them passes through all layers in cache.
namespace gradgram::ntk::infinite {

/// One convolution and the rectifier after it.
struct PlaneLayer {
  std::size_t affine = 0, nonlinear = 0;  ///< steps of the program
  std::size_t radius_h = 0, radius_w = 0;
  double ratio = 0;     ///< turn / scale of the nonlinearity
  bool obtuse = false;  ///< whether cosines below zero may occur
  double unit = 1;      ///< a plane holds that many times the delta, in the scale of the slot before phi
  double factor = 1;    ///< power of two by which sums are multiplied to keep units near one
};

struct PlanePlan {
  std::vector<PlaneLayer> layers;
  /// The step after the layers: it averages over all pairs of pixels; or, when `diagonal`, over equal pixels,
  /// for which the plane of offset zero is enough; or, when `window_h` is not 0, over windows of that size.
  std::size_t head = 0;
  bool diagonal = false;
  std::size_t window_h = 0, window_w = 0;
  std::size_t height = 0, width = 0, channels = 0;
  std::size_t radius_h = 0, radius_w = 0;  ///< largest
  double bias = 0;                         ///< of the first layer
  double input_scale = 1;                  ///< of the inputs as Sides hold them
  /// Factors that turn mean deltas and tangents of the last plane into those of the slot before the average.
  double delta_out = 1, theta_out = 1;

  /// A row of cells: every column, and `radius_w` frame cells at both ends of both runs of columns; on the
  /// diagonal both pixels of a frame cell lie outside, and rows share theirs.
  std::size_t stride() const { return width + (diagonal ? 1 : 4) * radius_w; }
  std::size_t cells() const { return height * stride(); }
};

/// Whether the program begins with stride-1 convolutions of odd size that keep the resolution, each followed
/// by a rectifier, and then flattens the image or averages it, whole or in windows side by side: what planes
/// can follow.
bool has_planes(const Program& program);
PlanePlan plan_planes(const Program& program, const Scales& scales);

/// Means over the pairs of pixels, in the scales of the slot before the head.
struct PlaneMeans {
  double delta = 0, theta = 0;
};

/// How the arrays of an image stand one after the other: its channels, then root and inverse of every layer,
/// each with frames of zeros before and behind.
template <class T>
struct PlaneArrays {
  explicit PlaneArrays(const PlanePlan& plan);
  std::size_t frame = 0;   ///< elements before the first cell
  std::size_t stride = 0;  ///< from one array to the next
  std::size_t count = 0;
  std::size_t size() const { return stride * count; }
};

/// The arrays of all images of one side in the order of the plane of offset zero; for diagonal plans.
template <class T>
class PlaneImages {
 public:
  /// rows: [example, pixel, channel] in the scale of the inputs.
  PlaneImages(const PlanePlan& plan, const Sides<T>& side, const T* rows, const Workers& workers);
  static std::size_t bytes(const PlanePlan& plan, std::size_t examples);
  const T* image(std::size_t example) const { return data_.data() + example * arrays_.size(); }

 private:
  PlaneArrays<T> arrays_;
  Tensor<T> data_;
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

  /// Plans with windows: adds to delta and theta [windows of the left image][stride] the sums over each
  /// window of each image, to be multiplied by `delta_out` and `theta_out`. `theta` may be null.
  void run_windows(const Image& left, const Image& right, T* delta, T* theta, std::size_t stride);

  /// Diagonal plans: makes `image` the right one, then follows pairs with it.
  void set_right(const T* image);
  PlaneMeans diagonal(const T* left);

 private:
  void lay_out(const Image& image, bool right, std::size_t dx);
  void lay_out_live(std::size_t dx);
  /// Adds the sums over the pairs of row y of the left image and row y + down of the right one.
  void run_rows(const T* left, const T* right, std::ptrdiff_t down, double* sums);
  void add_windows(const T* from, std::ptrdiff_t down, T* to, std::size_t stride) const;

  const PlanePlan& plan_;
  const simd::CovarianceTable<T>& kernels_;
  PlaneArrays<T> arrays_;
  Tensor<T> left_, right_;
  Tensor<T> live_, line_, delta_, theta_, delta_sums_, theta_sums_;
  std::vector<std::uint32_t>
      windows_;           ///< of each column and its partner: the place in the matrix of windows
  std::size_t turn_ = 0;  ///< the first column whose partner has gone around
};

}  // namespace gradgram::ntk::infinite
