#pragma once

#include <cstddef>
#include <vector>

#include "ntk/plan.hpp"

/// What the ways to contract cost, by the rates of a plan's request, and which are chosen.
namespace gradgram::ntk {

/// Working memory of the position Gram way for this use, per worker.
std::size_t position_bytes(const PlannedUse& use, const PlanRequest& request, std::size_t element_bytes);

/// The ways that this use can be contracted. `shared`: its weight or its bias has another use.
std::vector<Way> possible_ways(const PlannedUse& use, bool shared);
/// Whether the weight or the bias of each use has another one.
std::vector<bool> shared_uses(const std::vector<PlannedUse>& uses, std::size_t parameters);

/// Chooses the way of every use as if memory were free. Throws ArgumentError when a forced way names no
/// weight, or one that cannot be contracted so (naming those that can).
void choose_ways(const ModuleProfile& profile, const PlanRequest& request, std::vector<PlannedUse>& uses);

/// The least budget with which plan_kernel() does not throw BudgetError, whatever `request.memory` is.
/// Throws ArgumentError as plan_kernel() does.
std::size_t least_kernel_bytes(const ModuleProfile& profile, const PlanRequest& request);

/// Decides whether the factors that several resident blocks meet are spilled, which nothing else of the
/// result depends on: as the request forces, or when it is predicted to save at least a tenth of the time and
/// the scratch folder has the room. One that keeps its files in memory counts as having none unless the
/// caller named or forced it. `plan` holds blocks (plan_blocks(), fit_blocks()); where it is spilled they are
/// chosen anew, for whole tiles with `whole_tiles`. Throws ArgumentError, with the bytes needed and free,
/// when a folder that was named, or must be used, does not hold what it should.
void choose_reuse(Plan& plan, bool whole_tiles);

/// One way of one use, for the whole kernel; seconds of one worker.
struct WayCost {
  Way way = Way::Materialize;
  double flop = 0;        ///< of the contraction, useful work: 2 per multiply-add
  std::size_t bytes = 0;  ///< factors of one example
  double forming = 0;     ///< gradients, or copies of the factors
  double contraction = 0;
  double seconds() const { return forming + contraction; }
};

struct UseCost {
  double pass_flop = 0;  ///< forward and reverse, all examples and seeds
  double forward = 0;    ///< with the elementwise work behind it
  double reverse = 0;    ///< without forming the gradient
  WayCost chosen;
  std::vector<WayCost> others;
};

/// What a plan is expected to take.
struct PlanCost {
  std::vector<UseCost> uses;  ///< as in Plan::uses
  double passed = 1;          ///< how often an example is passed, on average
  std::size_t blocks = 1;     ///< of resident examples
  std::size_t tiles = 0;
  double pass_flop = 0;
  double flop = 0;         ///< of the contraction
  double passes = 0;       ///< of all workers together: forward, reverse, forming and touching
  double forming = 0;      ///< this much of it
  double touching = 0;     ///< and this: memory that is written for the first time
  double contraction = 0;  ///< of all workers together
  double writing = 0;      ///< spilled factors, from begin to end: a disk is no quicker for several workers
  double reading = 0;      ///< the same, all times together, as if the system's cache held nothing
  double wall = 0;         ///< from the first pass to the last tile; by it plans are chosen
  double storing = 0;      ///< of all workers together: tiles into their file
  double finished = 0;     ///< wall, with storing
};
PlanCost plan_cost(const Plan& plan);
/// Of a plan_diagonal(): passes and the gradients' norms.
PlanCost diagonal_cost(const Plan& plan);

}  // namespace gradgram::ntk
