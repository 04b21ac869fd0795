#include "ntk/infinite/plane_stages.hpp"

#include <cmath>

namespace gradgram::ntk::infinite {

PlaneStages::PlaneStages(const Program& program, const Scales& scales, const PlanePlan& first,
                         const std::vector<PlanePlan>& plans)
    : program_(program), scales_(scales), plans_(plans), stages_(plans.size()) {
  const PlanePlan* before = &first;
  for (std::size_t k = 0; k < plans.size(); ++k) {
    Stage& stage = stages_[k];
    const Step& head = program.steps[before->head];
    const auto pairs =
        static_cast<double>(before->window_h * before->window_w * before->window_h * before->window_w);
    stage.before = before;
    // Planes hold tangents in the scale of covariances: one factor serves both.
    stage.scale = std::ldexp(before->delta_out / pairs, scales.variance[head.in] - scales.variance[head.out]);
    for (Side* side : {&stage.left, &stage.right}) {
      side->arrays = Tensor<double>(Shape{2, plans[k].height * plans[k].width});
    }
    stage.worker = std::make_unique<PlaneWorker<double>>(plans[k]);
    before = &plans[k];
  }
}

std::size_t PlaneStages::bytes(const PlanePlan& first, const std::vector<PlanePlan>& plans) {
  std::size_t bytes = 0;
  for (const PlanePlan& plan : plans) {
    bytes += PlaneWorker<double>::bytes(plan) + 4 * plan.height * plan.width * sizeof(double);
  }
  return bytes + first.height * first.width * sizeof(double);
}

/// delta after the pooling is (q + q') / 2 less a mean of (r + r') / 2 - delta, with q of windows and r of
/// their pixels: all but the deltas is a sum of what belongs to one of the images.
PlaneWorker<double>::Image PlaneStages::image(const Stage& stage, Side& to, const Sides<double>& side,
                                              std::size_t example) const {
  const PlanePlan& before = *stage.before;
  const Step& head = program_.steps[before.head];
  const double shift = std::ldexp(1.0, scales_.variance[head.in] - scales_.variance[head.out]);
  const double* const pixels = side.variance(head.in, 0, example);
  const double* const after = side.variance(head.out, 0, example);
  const std::size_t across = before.width / before.window_w;
  const std::size_t windows = before.height / before.window_h * across;
  double* const own = to.arrays.data();
  for (std::size_t window = 0; window < windows; ++window) {
    const double* const corner =
        pixels + window / across * before.window_h * before.width + window % across * before.window_w;
    double sum = 0;
    for (std::size_t y = 0; y < before.window_h; ++y) {
      for (std::size_t x = 0; x < before.window_w; ++x) sum += corner[y * before.width + x];
    }
    const double mean = sum / static_cast<double>(before.window_h * before.window_w);
    own[window] = (after[window] - shift * mean) / 2;
    own[windows + window] = std::sqrt(after[window]);
  }
  return {own, windows, &side, example};
}

void PlaneStages::start(const BlockPlace<double>& place, PairState<double>& state) {
  state_ = &state;
  for (Stage& stage : stages_) {
    stage.worker->start(image(stage, stage.left, *place.left, place.row),
                        image(stage, stage.right, *place.right, place.column));
  }
}

bool PlaneStages::add(std::size_t down, const double* sums, double versine) {
  return follow(0, down, sums, versine);
}

bool PlaneStages::follow(std::size_t index, std::size_t down, const double* sums, double versine) {
  Stage& stage = stages_[index];
  bool near = false;
  const auto next = [&](std::size_t next_down, const double* next_sums) {
    if (index + 1 < stages_.size()) return follow(index + 1, next_down, next_sums, 0);
    return WindowMatrix<double>(plans_[index], stage.worker->fold_pitch(), state_->delta(), state_->theta(),
                                state_->stride())(next_down, next_sums);
  };
  const bool whole = stage.worker->run_pooled(down, sums, stage.scale, versine, near, next);
  return whole && !(versine > 0 && near);
}

template <class T>
void finish_windows(const PlanePlan& plan, Propagator<T>& propagator, const BlockPlace<T>& place,
                    bool tangent) {
  PairState<T>& state = propagator.state();
  const auto pairs = static_cast<double>(plan.window_h * plan.window_w * plan.window_h * plan.window_w);
  const T delta_unit = static_cast<T>(plan.delta_out / pairs);
  const T theta_unit = static_cast<T>(plan.theta_out / pairs);
  for (std::size_t i = 0; i < state.size(); ++i) {
    state.delta()[i] *= delta_unit;
    if (tangent) state.theta()[i] *= theta_unit;
  }
  propagator.set_windows(plan.head, place);
}

template void finish_windows(const PlanePlan&, Propagator<float>&, const BlockPlace<float>&, bool);
template void finish_windows(const PlanePlan&, Propagator<double>&, const BlockPlace<double>&, bool);

}  // namespace gradgram::ntk::infinite
