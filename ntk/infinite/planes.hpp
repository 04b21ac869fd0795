#pragma once

#include <cstddef>
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
  std::size_t pool = 0;  ///< the step of the global average
  std::size_t height = 0, width = 0, channels = 0;
  std::size_t radius_h = 0, radius_w = 0;  ///< largest
  double input_scale = 1;                  ///< of the inputs as Sides hold them
  /// Factors that turn mean deltas and tangents of the last plane into those of the slot before the average.
  double delta_out = 1, theta_out = 1;

  /// A row of cells: every column, and `radius_w` frame cells at both ends of both runs of columns.
  std::size_t stride() const { return width + 4 * radius_w; }
  std::size_t cells() const { return height * stride(); }
};

/// Whether the program begins with stride-1 convolutions of odd size that keep the resolution, each followed
/// by a rectifier, and then averages over the whole image: what can follow by planes.
bool has_planes(const Program& program);
PlanePlan plan_planes(const Program& program, const Scales& scales);

/// Means over all pairs of pixels, in the scales of the slot before the average.
struct PlaneMeans {
  double delta = 0, theta = 0;
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

 private:
  void lay_out(const Image& image, bool right, std::size_t dx);
  void lay_out_live(std::size_t dx);
  /// Adds the sums over one plane.
  void plane(std::size_t dy, double* sums);
  void add_rows(const PlaneLayer& layer, std::size_t index, std::size_t dy);
  void add_edge_row(const PlaneLayer& layer, std::size_t index, std::size_t dy, std::size_t y,
                    std::size_t begin, std::size_t end);
  T* left_root(std::size_t layer) { return left_.data() + 2 * layer * single_; }
  T* left_inverse(std::size_t layer) { return left_root(layer) + single_; }
  T* right_root(std::size_t layer) { return right_.data() + 2 * layer * double_; }
  T* right_inverse(std::size_t layer) { return right_root(layer) + double_; }

  const PlanePlan& plan_;
  const simd::CovarianceTable<T>& kernels_;
  std::size_t single_, double_;  ///< elements of an array of one image, and of one whose rows come twice
  Tensor<T> left_, right_, left_input_, right_input_, live_, line_;
  Tensor<T> delta_, theta_, delta_sums_, theta_sums_;
  std::vector<const T*> rows_, theta_rows_, squares_;
};

}  // namespace gradgram::ntk::infinite
