#include "ntk/infinite/prepare.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>

#include "ntk/infinite/plane_stages.hpp"
#include "ntk/infinite/planes.hpp"
#include "ntk/infinite/propagator.hpp"

namespace gradgram::ntk::infinite {
namespace {

/// The pair of an image, [pixel][channel], with itself, up to the pooling at plan.head.
template <class T>
void pool_own_planes(const PlanePlan& plan, PlaneWorker<double>& planes, const T* image, double scale,
                     const Sides<double>& own, Propagator<double>& pairs, const BlockPlace<double>& place) {
  const std::size_t pixels = plan.height * plan.width;
  const std::size_t stride = padded<double>(pixels);
  std::vector<double> channels(plan.channels * stride);
  for (std::size_t p = 0; p < pixels; ++p) {
    for (std::size_t c = 0; c < plan.channels; ++c) {
      channels[c * stride + p] = scale * static_cast<double>(image[p * plan.channels + c]);
    }
  }
  const std::size_t windows = plan.height / plan.window_h * (plan.width / plan.window_w);
  PairState<double>& state = pairs.start(1, windows, windows);
  const PlaneWorker<double>::Image both{channels.data(), stride, &own, 0};
  planes.run_windows(both, both,
                     WindowMatrix<double>(plan, planes.fold_pitch(), state.delta(), nullptr, state.stride()));
  finish_windows(plan, pairs, place, false);
}

}  // namespace

template <class T, class In>
Sides<T> prepare(const Program& program, const Scales& scales, const SeriesList& series,
                 TensorView<const In> x, const std::vector<double>& variances, const std::vector<int>& norms,
                 const Workers& workers, const std::stop_token& stop) {
  const std::size_t pixels = program.pixels[0];
  const std::size_t channels = program.channels;
  const std::size_t examples = x.shape()[0];
  Sides<T> sides(program, examples);
  const double unit = std::ldexp(1.0, -scales.variance[0]);
  std::size_t last_pool = 0;  ///< one past
  for (std::size_t s = 0; s < program.steps.size(); ++s) {
    if (program.pooled_variances && program.steps[s].kind == StepKind::AveragePool) last_pool = s + 1;
  }
  // Of images whose roots are far apart somewhere, the second one.
  std::optional<PlanePlan> plans[2];
  if (last_pool != 0 && pools_planes(program)) {
    const std::vector<double> ratios(program.steps.size(), 1);
    for (const bool far_apart : {false, true}) {
      plans[far_apart] = plan_planes(program, scales, ratios, far_apart ? 0 : 2);
    }
  }
  std::vector<std::unique_ptr<PlaneWorker<double>>> planes[2];
  for (auto& of_kind : planes) of_kind.resize(workers.count());
  const std::size_t chunk = last_pool == 0 ? 16 : 1;
  workers.run((examples + chunk - 1) / chunk,
              [&](std::size_t piece, std::size_t worker) {
                ExampleVariances example;
                example.variance.resize(program.pixels.size());
                example.factor.resize(program.steps.size());
                example.inverse.resize(program.steps.size());
                std::unique_ptr<Propagator<double>> pairs;
                std::unique_ptr<Sides<double>> own;
                for (std::size_t i = piece * chunk; i < std::min(examples, (piece + 1) * chunk); ++i) {
                  example.variance[0].resize(pixels);
                  for (std::size_t p = 0; p < pixels; ++p)
                    example.variance[0][p] = unit * variances[i * pixels + p];
                  BlockPlace<double> place;
                  std::size_t followed = 0;  // steps that the pair of the example with itself has taken
                  if (last_pool != 0) {
                    if (pairs == nullptr) {
                      pairs = std::make_unique<Propagator<double>>(program, scales, series, false);
                      own = std::make_unique<Sides<double>>(program, 1);
                    }
                    place = {own.get(), own.get(), 0, 0, true};
                  }
                  const double taken_out = std::ldexp(1.0, norms.empty() ? 0 : -norms[i]);
                  if (last_pool != 0 && !plans[0]) {
                    PairState<double>& state = pairs->start(1, pixels, pixels);
                    const In* const image = x.data() + i * pixels * channels;
                    for (std::size_t p = 0; p < pixels; ++p) {
                      for (std::size_t q = 0; q < pixels; ++q) {
                        double sum = 0;
                        for (std::size_t c = 0; c < channels; ++c) {
                          const double difference = static_cast<double>(image[p * channels + c]) -
                                                    static_cast<double>(image[q * channels + c]);
                          sum += difference * difference;
                        }
                        state.delta()[p * state.stride() + q] =
                            unit * (taken_out * (taken_out * sum)) / (2 * static_cast<double>(channels));
                      }
                    }
                  }
                  for (std::size_t s = 0; s < program.steps.size(); ++s) {
                    advance(program, scales, series, s, example);
                    if (s >= last_pool || program.steps[s].kind != StepKind::AveragePool) continue;
                    // With the variances after it still zero, pooling leaves minus the covariance.
                    for (std::size_t slot = program.steps[s].out; slot < program.pixels.size(); ++slot) {
                      example.variance[slot].clear();
                    }
                    example.variance[program.steps[s].out].assign(program.pixels[program.steps[s].out], 0.0);
                    own->set(0, example);
                    BlockPlace<double> apart = place;
                    apart.same_set = false;
                    if (plans[0] && s == plans[0]->head) {
                      const std::vector<double> ratios = ratios_of_roots<double>(program, *own, *own);
                      const bool far_apart = *std::ranges::max_element(ratios) > kMostRatio<double>;
                      const PlanePlan& plan = *plans[far_apart];
                      auto& own_planes = planes[far_apart][worker];
                      if (own_planes == nullptr) own_planes = std::make_unique<PlaneWorker<double>>(plan);
                      pool_own_planes(plan, *own_planes, x.data() + i * pixels * channels,
                                      taken_out * std::ldexp(1.0, -scales.variance[0] / 2), *own, *pairs,
                                      apart);
                    } else {
                      pairs->run(place, followed, s);
                      pairs->run(apart, s, s + 1);
                    }
                    followed = s + 1;
                    PairState<double>& state = pairs->state();
                    std::vector<double>& pooled = example.variance[program.steps[s].out];
                    for (std::size_t p = 0; p < pooled.size(); ++p) {
                      pooled[p] = std::max(0.0, -state.delta()[p * state.stride() + p]);
                    }
                    for (std::size_t p = 0; p < pooled.size(); ++p) {
                      double* const row = state.delta() + p * state.stride();
                      for (std::size_t q = 0; q < pooled.size(); ++q) row[q] += (pooled[p] + pooled[q]) / 2;
                      row[p] = 0;
                    }
                  }
                  sides.set(i, example);
                }
              },
              {}, stop);
  return sides;
}

#define GRADGRAM_INSTANTIATE(T, In)                                                                    \
  template Sides<T> prepare<T>(const Program&, const Scales&, const SeriesList&, TensorView<const In>, \
                               const std::vector<double>&, const std::vector<int>&, const Workers&,    \
                               const std::stop_token&);
GRADGRAM_INSTANTIATE(float, float)
GRADGRAM_INSTANTIATE(double, float)
GRADGRAM_INSTANTIATE(double, double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk::infinite
