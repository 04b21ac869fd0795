#pragma once

#include <cstddef>
#include <vector>

#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "ntk/infinite/program.hpp"
#include "ntk/infinite/sides.hpp"

/// Pairs of images of which so many pixels see nearly parallel or opposite things that f32 does not hold
/// their entry.
namespace gradgram::ntk::infinite {

/// Finds them from the pre-activations of the first nonlinearity: what is parallel in later layers was so
/// there. Two pre-activations are parallel where random linear functions of them, such as a network's
/// features are, have the ratio of the standard deviations. An estimate, from a part of the pixels of large
/// images.
class ParallelImages {
 public:
  /// Whether the first nonlinearity of a model of images has a kink, and nothing but linear steps before.
  static bool serves(const Program& program);
  template <class T>
  struct Examples {
    const T* rows = nullptr;  ///< [example, pixel, channel] in the scale of slot 0
    const Sides<T>* side = nullptr;
  };
  /// `right` is null when both sides are the same. `opposites`: whether 1 + cosine is known beside 1 -
  /// cosine.
  template <class T>
  ParallelImages(const Program& program, const Scales& scales, const Examples<T>& left,
                 const Examples<T>* right, bool opposites, const Workers& workers);
  static std::size_t bytes(const Program& program, std::size_t examples);

  /// Whether f32 does not hold the entry of left example i and right example j.
  bool lost(std::size_t i, std::size_t j) const;

 private:
  struct Side {
    Tensor<float> arrays;  ///< [example][1 + directions][stride]: see simd::ParallelPixels
    std::vector<double> mean_variance;
  };
  template <class T>
  Side side(const Program& program, const Scales& scales, const Examples<T>& of,
            const Workers& workers) const;
  const Side& right() const noexcept { return same_ ? left_ : right_; }

  std::size_t pixels_ = 0;  ///< kept
  std::size_t step_;        ///< from one pixel that is looked at to the next
  bool equal_, same_, opposites_;
  double turn_ = 0;  ///< share of an entry that an angle of one takes
  Side left_, right_;
};

}  // namespace gradgram::ntk::infinite
