#include "ntk/cost.hpp"

#include <algorithm>

#include "engine/error.hpp"
#include "ntk/position_gram.hpp"

namespace gradgram::ntk {
namespace {

/// An addition in f64 of the sum over taps costs about as much as this many multiply-adds of a product.
constexpr double kTapCost = 8;
/// Working memory of the position Gram way, per worker, beyond which it is not chosen by price.
constexpr std::size_t kPositionBytes = std::size_t{64} << 20;

/// Pairs that share the forming of an example's gradient. A constant, so that a part of a kernel is computed
/// the way of the whole and has its bits.
constexpr double kPairs = 1000;

/// Multiply-adds for one pair of examples, the forming of gradients shared out over an example's pairs.
double materialize_cost(const PlannedUse& use, const PlanRequest& request) {
  const double weights = static_cast<double>(use.d_in) * static_cast<double>(use.d_out);
  const double seeds = static_cast<double>(request.seeds);
  const double forming = seeds * static_cast<double>(use.positions) * weights / kPairs;
  return (request.full ? seeds * seeds : seeds) * weights + forming;
}

double position_cost(const PlannedUse& use, const PlanRequest& request) {
  const ConvGeometry g = use.position_geometry();
  const auto square = [](std::size_t pixels) {
    return static_cast<double>(pixels) * static_cast<double>(pixels);
  };
  const double seeds = static_cast<double>(request.seeds);
  const double taps = static_cast<double>(g.kernel_h + g.kernel_w + 2) *
                      square(std::max(g.in_pixels(), g.out_pixels())) * kTapCost;
  return square(g.in_pixels()) * static_cast<double>(g.c_in) + taps +
         (request.full ? seeds * seeds : seeds) * square(g.out_pixels()) * static_cast<double>(g.c_out);
}

}  // namespace

std::size_t position_bytes(const PlannedUse& use, const PlanRequest& request, std::size_t element_bytes) {
  const std::size_t group = request.full ? request.seeds : 1;
  const std::size_t seeds = request.full ? 1 : request.seeds;
  return element_bytes == sizeof(float)
             ? PositionGram<float>::scratch_bytes(use.position_geometry(), group, seeds)
             : PositionGram<double>::scratch_bytes(use.position_geometry(), group, seeds);
}

void choose_ways(const ModuleProfile& profile, const PlanRequest& request, std::vector<PlannedUse>& uses) {
  std::vector<std::size_t> count(profile.parameter_sizes.size(), 0);
  for (const PlannedUse& use : uses) {
    ++count[use.weight];
    if (use.bias != kNoParameter) ++count[use.bias];
  }
  const auto shared = [&](const PlannedUse& use) {
    return count[use.weight] > 1 || (use.bias != kNoParameter && count[use.bias] > 1);
  };
  for (PlannedUse& use : uses) {
    // Shared parameters are materialized: the sum of the gradients over the uses holds the cross terms by
    // construction.
    if (shared(use)) {
      use.way = Way::Materialize;
    } else if (!use.convolution && use.positions == 1) {
      use.way = Way::Outer;
    } else {
      use.way = position_cost(use, request) < materialize_cost(use, request) &&
                        position_bytes(use, request, profile.element_bytes) <= kPositionBytes
                    ? Way::PositionGram
                    : Way::Materialize;
    }
  }
  for (const auto& [name, way] : request.ways) {
    const auto parameter = static_cast<std::size_t>(
        std::find(profile.parameter_names.begin(), profile.parameter_names.end(), name) -
        profile.parameter_names.begin());
    bool found = false;
    for (PlannedUse& use : uses) {
      if (use.weight != parameter) continue;
      found = true;
      if (way != Way::Materialize && shared(use)) {
        throw ArgumentError("kernel: the way of " + name +
                            " must be Materialize: it is used several times, or its bias is");
      }
      if (way == Way::Outer && (use.convolution || use.positions != 1)) {
        throw ArgumentError("kernel: the way of " + name + " cannot be Outer: it is used at " +
                            std::to_string(use.positions) + " positions");
      }
      use.way = way;
    }
    if (!found) throw ArgumentError("kernel: a way is given for " + name + ", which is no weight");
  }
}

}  // namespace gradgram::ntk
