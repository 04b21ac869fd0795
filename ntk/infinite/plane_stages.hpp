#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "engine/tensor.hpp"
#include "ntk/infinite/planes.hpp"
#include "ntk/infinite/propagator.hpp"

/// Planes from pooling to pooling.
namespace gradgram::ntk::infinite {

/// Sums over pairs of windows, plane by plane (PlaneWorker::Fold), as a matrix of windows [row][stride].
/// `theta` may be null.
template <class T>
class WindowMatrix {
 public:
  WindowMatrix(const PlanePlan& plan, std::size_t pitch, T* delta, T* theta, std::size_t stride)
      : down_(plan.height / plan.window_h),
        across_(plan.width / plan.window_w),
        pitch_(pitch),
        delta_(delta),
        theta_(theta),
        stride_(stride) {}

  bool operator()(std::size_t down, const double* sums) const {
    for (std::size_t line = 0; line < across_; ++line) {
      for (std::size_t cell = 0; cell < down_; ++cell) {
        const std::size_t at = (cell * across_ + line) * stride_ + (cell + down) % down_ * across_;
        put(sums, line, delta_ + at);
        if (theta_ != nullptr) put(sums + pitch_, line, theta_ + at);
        sums += 2 * pitch_;
      }
    }
    return true;
  }

 private:
  /// Entry i stands for column line + i, which goes around.
  void put(const double* from, std::size_t line, T* to) const {
    for (std::size_t i = line; i < across_; ++i) to[i] = static_cast<T>(from[i - line]);
    for (std::size_t i = 0; i < line; ++i) to[i] = static_cast<T>(from[across_ - line + i]);
  }

  std::size_t down_, across_, pitch_;
  T* delta_;
  T* theta_;
  std::size_t stride_;
};

/// From sums over windows, in the units of planes, to the state after the pooling at plan.head.
template <class T>
void finish_windows(const PlanePlan& plan, Propagator<T>& propagator, const BlockPlace<T>& place,
                    bool tangent);

/// What follows the first pooling of planes, as far as planes go: each plane of windows passes the layers up
/// to the next pooling as soon as it is complete. Scratch of one worker; not shared.
class PlaneStages {
 public:
  /// `plans` of plan_pooled(program, scales, first), not empty.
  PlaneStages(const Program& program, const Scales& scales, const PlanePlan& first,
              const std::vector<PlanePlan>& plans);
  static std::size_t bytes(const PlanePlan& first, const std::vector<PlanePlan>& plans);

  /// Before a pair of different examples. `state` is where the last sums go, a matrix of the windows of the
  /// last plan. It is to be multiplied by that plan's factors.
  void start(const BlockPlace<double>& place, PairState<double>& state);
  /// A plane of windows of the first plan. False where 1 - cosine of a pair of windows is below `versine`, if
  /// that is not zero.
  bool add(std::size_t down, const double* sums, double versine);

 private:
  struct Side {
    Tensor<double> arrays;  ///< [2][windows]: see PlanePlan::channels
  };
  struct Stage {
    const PlanePlan* before = nullptr;
    double scale = 1;  ///< of sums over pairs of windows
    Side left, right;
    std::unique_ptr<PlaneWorker<double>> worker;
  };
  PlaneWorker<double>::Image image(const Stage& stage, Side& to, const Sides<double>& side,
                                   std::size_t example) const;
  bool follow(std::size_t index, std::size_t down, const double* sums, double versine);

  const Program& program_;
  const Scales& scales_;
  const std::vector<PlanePlan>& plans_;
  std::vector<Stage> stages_;
  PairState<double>* state_ = nullptr;
};

}  // namespace gradgram::ntk::infinite
