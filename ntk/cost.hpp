#pragma once

#include <cstddef>
#include <vector>

#include "ntk/plan.hpp"

/// What the ways to contract a parameter use cost, and which is chosen.
namespace gradgram::ntk {

/// Working memory of the position Gram way for this use, per worker.
std::size_t position_bytes(const PlannedUse& use, const PlanRequest& request, std::size_t element_bytes);

/// Chooses the way of every use. Throws ArgumentError when a forced way names no weight or one that cannot be
/// contracted so.
void choose_ways(const ModuleProfile& profile, const PlanRequest& request, std::vector<PlannedUse>& uses);

}  // namespace gradgram::ntk
