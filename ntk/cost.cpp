#include "ntk/cost.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "engine/error.hpp"
#include "ntk/position_gram.hpp"

namespace gradgram::ntk {
namespace {

/// Working memory of the position Gram way, per worker, beyond which it is not chosen by price.
constexpr std::size_t kPositionBytes = std::size_t{64} << 20;
/// What the ways are compared for when memory is free: examples that share the forming of one's gradient, and
/// rows on a side of a tile. Constants, so that a part of a kernel is computed the way of the whole and has
/// its bits.
constexpr double kPairs = 1000;
constexpr double kSide = 336;
/// Other ways are taken for want of memory only where they are that much faster: they change the bits.
constexpr double kWorthwhile = 0.9;
/// Seconds in which one weight in f32 is laid out for the products of a tape block: packed, or of a
/// convolution transformed.
constexpr double kDenseLayout = 0.4e-9;
constexpr double kConvolutionLayout = 2e-9;
/// Products of rows in bfloat16 against f32, rounding included.
constexpr double kBf16Speed = 2;

double real(std::size_t value) {
  return static_cast<double>(value);
}

double square(double value) {
  return value * value;
}

/// What is contracted: pairs of examples, and the sides of all tiles.
struct Work {
  double passed = 0;  ///< examples, counted as often as they are passed
  double pairs = 0;
  double products = 0;  ///< of rows, as the tiles' kernels compute them
  double sides = 0;     ///< examples; of a tile on the diagonal one side
  std::size_t blocks = 0;
  std::size_t tiles = 0;
};

/// Adds up the tiles of blocks. Kernels compute eight rows by a group of columns at a time (AMX 16
/// by 16, which is taken for the same).
class TileWork {
 public:
  explicit TileWork(const Plan& plan)
      : tile_(plan.tile), per_example_(plan.rows_per_example()), group_(gram_padded(1, plan.element_bytes)) {}

  void add_rectangle(std::size_t rows, std::size_t columns, Work& work) const {
    const std::size_t down = (rows + tile_ - 1) / tile_;
    const std::size_t across = (columns + tile_ - 1) / tile_;
    work.pairs += real(rows) * real(columns);
    work.products += computed(rows, kRows) * computed(columns, group_);
    work.sides += real(rows) * real(across) + real(columns) * real(down);
    work.tiles += down * across;
  }

  void add_triangle(std::size_t n, Work& work) const {
    const std::size_t whole = n / tile_;
    const std::size_t rest = n % tile_;
    const std::size_t below = whole * (whole - std::min<std::size_t>(whole, 1)) / 2;
    work.pairs += real(n) * (real(n) + 1) / 2;
    work.products += real(below) * padded(tile_, kRows) * padded(tile_, group_) +
                     real(whole) * padded(rest, kRows) * padded(tile_, group_) +
                     real(whole) * diagonal(tile_) + diagonal(rest);
    work.sides += real(2 * below * tile_) + (rest != 0 ? real(whole * (tile_ + rest)) : 0) + real(n);
    const std::size_t down = whole + (rest != 0 ? 1 : 0);
    work.tiles += down * (down + 1) / 2;
  }

 private:
  static constexpr std::size_t kRows = 8;

  double padded(std::size_t examples, std::size_t unit) const {
    const std::size_t rows = examples * per_example_;
    return real((rows + unit - 1) / unit * unit);
  }
  double computed(std::size_t examples, std::size_t unit) const {
    return real(examples / tile_) * padded(tile_, unit) + padded(examples % tile_, unit);
  }
  /// Registers that reach over the diagonal: a sixth of a group on average.
  double diagonal(std::size_t examples) const {
    const double rows = real(examples * per_example_);
    return rows * (rows + 1) / 2 + rows * real(group_) / 6;
  }

  std::size_t tile_, per_example_, group_;
};

Work work_of(const Plan& plan) {
  Work work;
  const TileWork tiles(plan);
  const std::size_t rows = plan.request.rows;
  for (std::size_t begin = 0; begin < rows; begin += std::max<std::size_t>(plan.resident, 1)) {
    const std::size_t count = std::min(plan.resident, rows - begin);
    ++work.blocks;
    work.passed += real(count);
    if (plan.request.symmetric) tiles.add_triangle(count, work);
    const std::size_t stream = plan.request.symmetric ? begin : plan.request.columns;
    if (stream == 0) continue;
    const bool spilled = plan.reuse() == Reuse::Spilled;
    if (!spilled || (begin == 0 && !plan.request.symmetric)) work.passed += real(stream);
    // Spilled, the stream of a symmetric kernel is one of resident blocks.
    const std::size_t run = spilled && plan.request.symmetric ? plan.resident : stream;
    const std::size_t whole = stream / run * (run / plan.streamed);
    const auto add = [&](std::size_t times, std::size_t columns) {
      Work part;
      tiles.add_rectangle(count, columns, part);
      work.pairs += real(times) * part.pairs;
      work.products += real(times) * part.products;
      work.sides += real(times) * part.sides;
      work.tiles += times * part.tiles;
    };
    add(whole, plan.streamed);
    if (run % plan.streamed != 0) add(stream / run, run % plan.streamed);
  }
  return work;
}

/// The measured geometry that is most like this one; sizes in powers of two, another window or stride counts
/// as much as four times the size.
const ConvolutionRate& nearest(const PrecisionRates& rates, const ConvGeometry& g) {
  const auto apart = [](std::size_t a, std::size_t b) {
    return std::abs(std::log2(real(std::max<std::size_t>(a, 1)) / real(std::max<std::size_t>(b, 1))));
  };
  const auto distance = [&](const ConvolutionRate& rate) {
    return apart(g.c_in, rate.c_in) + apart(g.c_out, rate.c_out) +
           0.5 * apart(g.in_pixels(), rate.side * rate.side) + 2 * apart(g.stride_h, rate.stride) +
           2 * apart(g.kernel_h * g.kernel_w, rate.kernel * rate.kernel);
  };
  return *std::min_element(
      rates.convolutions.begin(), rates.convolutions.end(),
      [&](const ConvolutionRate& a, const ConvolutionRate& b) { return distance(a) < distance(b); });
}

/// Prices of one request, in seconds of one worker.
class Prices {
 public:
  /// `packed`: factors are packed once, when they are known; `kept`: there are factors at all.
  Prices(const PlanRequest& request, std::size_t element_bytes, bool packed, bool kept = true)
      : packed_(packed),
        kept_(kept),
        rates_(request.rates.of(element_bytes)),
        bytes_(real(element_bytes)),
        group_(request.full ? real(request.seeds) : 1),
        per_row_(request.full ? 1 : real(request.seeds)),
        seeds_(real(request.seeds)),
        gram_(rates_.gram * (request.bf16 ? kBf16Speed : 1)) {}

  /// Useful FLOP of one pair of examples.
  double flop(const PlannedUse& use, Way way) const {
    const double cotangents = square(group_) * per_row_;
    const double in = real(use.d_in);
    const double out = real(use.d_out);
    switch (way) {
      case Way::Materialize:
        return 2 * cotangents * row_width(use);
      case Way::Outer:
        return 2 * (in + cotangents * out);
      case Way::PositionGram:
        return 2 * position(use).multiply_adds();
    }
    return 0;
  }

  /// `waste`: products that are computed for each one that is wanted.
  double contraction(const PlannedUse& use, Way way, double pairs, double sides, double waste) const {
    const double product = pairs * flop(use, way);
    const double entries = pairs * square(group_) / rates_.entries;
    const double moved = sides * bytes_ * (1 / rates_.fetch + (packed_ ? 0 : 1 / rates_.pack));
    switch (way) {
      case Way::Materialize:
        return waste * product / gram_ + moved * group_ * per_row_ * row_width(use);
      case Way::Outer:
        return waste * product / gram_ + entries +
               moved * (real(use.d_in) + group_ * per_row_ * real(use.d_out));
      case Way::PositionGram:
        return product / rates_.position + pairs * position(use).additions() / rates_.taps + entries;
    }
    return 0;
  }

  /// Of one example, all seeds.
  double forming(const PlannedUse& use, Way way) const {
    const bool lay = packed_ && kept_;
    if (way != Way::Materialize) {
      const double bytes = bytes_ * (real(use.input_size()) + seeds_ * real(use.cotangent_size()));
      return lay && way == Way::Outer ? bytes / rates_.lay : 2 * bytes / rates_.bandwidth;
    }
    const double flop = seeds_ * use_flop(use);
    const double bytes = seeds_ * bytes_ * real(use.d_in) * real(use.d_out);
    const double written = lay                         ? bytes / rates_.lay
                           : kept_ || !use.convolution ? 2 * bytes / rates_.bandwidth
                                                       : 0;
    return flop / (use.convolution ? nearest(rates_, use.geometry).weight_gradient : rates_.gemm) + written;
  }

  /// Of one example among `block` on a tape.
  double forward(const PlannedUse& use, std::size_t block) const {
    return affine(use, block, use.convolution ? nearest(rates_, use.geometry).forward : rates_.gemm) +
           elementwise(use);
  }
  /// All seeds. The inputs of the network have no cotangent.
  double reverse(const PlannedUse& use, std::size_t block, bool first_layer) const {
    const double rate = use.convolution ? nearest(rates_, use.geometry).reverse : rates_.gemm;
    return seeds_ * ((first_layer ? 0 : affine(use, block, rate)) + elementwise(use));
  }
  double pass_flop(const PlannedUse& use, bool first_layer) const {
    return use_flop(use) * (1 + (first_layer ? 0 : seeds_));
  }

  std::size_t factor_bytes(const PlannedUse& use, Way way) const {
    const double rows = way == Way::Materialize
                            ? seeds_ * row_width(use)
                            : real(use.input_size()) + seeds_ * real(use.cotangent_size());
    return static_cast<std::size_t>(bytes_ * rows);
  }

  double tile_entries(double pairs) const { return pairs * square(group_) / rates_.entries; }

 private:
  PositionGram<float> position(const PlannedUse& use) const {
    return {use.position_geometry(), static_cast<std::size_t>(group_), static_cast<std::size_t>(per_row_)};
  }
  /// Columns of a materialized row; those of a shared parameter belong to its first use.
  static double row_width(const PlannedUse& use) {
    return (use.weight_first ? real(use.d_in) * real(use.d_out) : 0) +
           (use.bias != kNoParameter && use.bias_first ? real(use.d_out) : 0);
  }
  static double use_flop(const PlannedUse& use) {
    return 2 * real(use.positions) * real(use.d_in) * real(use.d_out);
  }
  double affine(const PlannedUse& use, std::size_t block, double rate) const {
    // Weights are laid out for the products of a block.
    const double weights = real(use.d_in) * real(use.d_out) * bytes_ / sizeof(float) *
                           (use.convolution ? kConvolutionLayout : kDenseLayout) / real(block);
    return use_flop(use) / rate + weights;
  }
  double elementwise(const PlannedUse& use) const {
    return bytes_ * real(use.input_size() + use.cotangent_size()) / rates_.elementwise;
  }

  bool packed_, kept_;
  const PrecisionRates& rates_;
  double bytes_, group_, per_row_, seeds_;
  double gram_;
};

/// Pieces of equal size on so many workers: how much longer than if they could be divided.
double imbalance(std::size_t pieces, std::size_t workers) {
  const std::size_t rounds = (pieces + workers - 1) / workers;
  return pieces == 0 ? 1 : real(rounds) * real(workers) / real(pieces);
}

PlanCost cost_of(const Plan& plan, const Work& work, bool contracted) {
  const Prices prices(plan.request, plan.element_bytes, plan.packed, contracted);
  const double group = real(plan.rows_per_example());
  const double waste = work.pairs > 0 ? work.products / (work.pairs * square(group)) : 1;
  const std::vector<bool> shared = shared_uses(plan.uses, plan.parameter_sizes.size());
  PlanCost cost;
  const std::size_t examples = plan.request.rows + (plan.request.symmetric ? 0 : plan.request.columns);
  cost.passed = work.passed / real(examples);
  cost.blocks = work.blocks;
  cost.tiles = work.tiles;
  cost.contraction = prices.tile_entries(work.pairs);
  for (std::size_t u = 0; u < plan.uses.size(); ++u) {
    const PlannedUse& use = plan.uses[u];
    // Uses are reported in the order of the reverse pass.
    const bool first_layer = u + 1 == plan.uses.size();
    UseCost price;
    price.pass_flop = work.passed * prices.pass_flop(use, first_layer);
    price.forward =
        work.passed * real(plan.keeps_passes ? 1 : plan.rounds()) * prices.forward(use, plan.tape_block);
    price.reverse = work.passed * prices.reverse(use, plan.tape_block, first_layer);
    for (const Way way : possible_ways(use, shared[u])) {
      WayCost one;
      one.way = way;
      one.forming = work.passed * prices.forming(use, way);
      one.bytes = prices.factor_bytes(use, way);
      if (contracted) {
        one.flop = work.pairs * prices.flop(use, way);
        one.contraction = prices.contraction(use, way, work.pairs, work.sides, waste);
      }
      if (way == use.way) {
        price.chosen = one;
      } else if (contracted) {
        price.others.push_back(one);
      }
    }
    cost.pass_flop += price.pass_flop;
    cost.flop += price.chosen.flop;
    cost.forming += price.chosen.forming;
    cost.passes += price.forward + price.reverse + price.chosen.forming;
    cost.contraction += price.chosen.contraction;
    cost.uses.push_back(std::move(price));
  }
  const std::size_t workers = plan.request.workers;
  const std::size_t touched = plan.factor_bytes(plan.resident) + plan.factor_bytes(plan.streamed) +
                              plan.kept_bytes() + workers * plan.arena_bytes();
  cost.touching = real(touched) / plan.request.rates.touch;
  cost.passes += cost.touching;
  const double together = real(workers) * (workers > 1 ? plan.request.rates.together : 1);
  const auto blocks = static_cast<std::size_t>(work.passed / real(plan.tape_block)) + 1;
  cost.wall = (cost.passes * imbalance(blocks, workers) + cost.contraction * imbalance(work.tiles, workers)) /
              together;
  if (contracted && plan.reuse() == Reuse::Spilled) {
    const ScratchRates& rates = plan.request.rates.scratch;
    const double block = real(plan.factor_bytes(plan.streamed));
    cost.writing = real(plan.spilled_blocks()) * block / rates.write;
    cost.reading = real(plan.spilled_reads()) * block / rates.read;
    cost.wall += cost.writing + cost.reading;
  }
  if (plan.request.result_in_file) {
    const double entries = real(plan.request.rows) * real(plan.request.columns) *
                           (plan.request.full ? square(real(plan.request.seeds)) : 1);
    cost.storing = (plan.request.packed_file ? entries / 2 : entries) * real(plan.element_bytes) /
                   plan.request.rates.store;
  }
  cost.finished = cost.wall + cost.storing / together;
  return cost;
}

/// f(uses) for every set of ways that differs from `uses` in one use.
template <class F>
void each_change(const ModuleProfile& profile, const PlanRequest& request, std::vector<PlannedUse> uses,
                 F f) {
  const std::vector<bool> shared = shared_uses(uses, profile.parameter_sizes.size());
  for (std::size_t u = 0; u < uses.size(); ++u) {
    const std::string& name = profile.parameter_names[uses[u].weight];
    if (std::any_of(request.ways.begin(), request.ways.end(),
                    [&](const auto& forced) { return forced.first == name; })) {
      continue;
    }
    const Way before = uses[u].way;
    for (const Way way : possible_ways(uses[u], shared[u])) {
      if (way == before) continue;
      uses[u].way = way;
      f(uses);
    }
    uses[u].way = before;
  }
}

/// Changes the way of one use after another as long as that makes the predicted time shorter.
Plan quickest_plan(const ModuleProfile& profile, const PlanRequest& request, Plan best) {
  double least = plan_cost(best).wall;
  for (bool better = true; better;) {
    better = false;
    Plan next = best;
    each_change(profile, request, best.uses, [&](const std::vector<PlannedUse>& changed) {
      if (least_plan(profile, request, changed).total_bytes() > request.memory) return;
      Plan plan = plan_blocks(profile, request, changed);
      const double wall = plan_cost(plan).wall;
      if (!(wall < least)) return;
      least = wall;
      next = std::move(plan);
      better = true;
    });
    best = std::move(next);
  }
  return best;
}

}  // namespace

std::size_t position_bytes(const PlannedUse& use, const PlanRequest& request, std::size_t element_bytes) {
  const std::size_t group = request.full ? request.seeds : 1;
  const std::size_t seeds = request.full ? 1 : request.seeds;
  return element_bytes == sizeof(float)
             ? PositionGram<float>(use.position_geometry(), group, seeds).scratch_bytes()
             : PositionGram<double>(use.position_geometry(), group, seeds).scratch_bytes();
}

std::vector<Way> possible_ways(const PlannedUse& use, bool shared) {
  // Shared parameters are materialized: the sum of the gradients over the uses holds the cross terms by
  // construction.
  if (shared) return {Way::Materialize};
  if (!use.convolution && use.positions == 1) return {Way::Materialize, Way::Outer, Way::PositionGram};
  return {Way::Materialize, Way::PositionGram};
}

std::vector<bool> shared_uses(const std::vector<PlannedUse>& uses, std::size_t parameters) {
  std::vector<std::size_t> count(parameters, 0);
  for (const PlannedUse& use : uses) {
    ++count[use.weight];
    if (use.bias != kNoParameter) ++count[use.bias];
  }
  std::vector<bool> shared;
  shared.reserve(uses.size());
  for (const PlannedUse& use : uses) {
    shared.push_back(count[use.weight] > 1 || (use.bias != kNoParameter && count[use.bias] > 1));
  }
  return shared;
}

void choose_ways(const ModuleProfile& profile, const PlanRequest& request, std::vector<PlannedUse>& uses) {
  const std::vector<bool> shared = shared_uses(uses, profile.parameter_sizes.size());
  const Prices prices(request, profile.element_bytes, !request.bf16);
  for (std::size_t u = 0; u < uses.size(); ++u) {
    PlannedUse& use = uses[u];
    if (!shared[u] && !use.convolution && use.positions == 1) {
      use.way = Way::Outer;
      continue;
    }
    double least = 0;
    use.way = Way::Materialize;
    for (const Way way : possible_ways(use, shared[u])) {
      if (way == Way::PositionGram && position_bytes(use, request, profile.element_bytes) > kPositionBytes) {
        continue;
      }
      const double seconds =
          prices.contraction(use, way, 1, 2 / kSide, 1) + prices.forming(use, way) / kPairs;
      if (way == Way::Materialize || seconds < least) {
        least = seconds;
        use.way = way;
      }
    }
  }
  for (const auto& [name, way] : request.ways) {
    const auto parameter = static_cast<std::size_t>(
        std::find(profile.parameter_names.begin(), profile.parameter_names.end(), name) -
        profile.parameter_names.begin());
    bool found = false;
    for (std::size_t u = 0; u < uses.size(); ++u) {
      if (uses[u].weight != parameter) continue;
      found = true;
      const std::vector<Way> possible = possible_ways(uses[u], shared[u]);
      if (std::find(possible.begin(), possible.end(), way) == possible.end()) {
        std::string choices;
        for (const Way choice : possible)
          choices.append(choices.empty() ? "" : " or ").append(way_name(choice));
        const std::string why = shared[u] ? "it or its bias is used several times"
                                          : fmt::format("it is used at {} positions", uses[u].positions);
        throw ArgumentError(fmt::format("kernel: the way of {} cannot be {}, because {}; it can be {}", name,
                                        way_name(way), why, choices));
      }
      uses[u].way = way;
    }
    if (!found) {
      std::string names;
      for (auto use = uses.rbegin(); use != uses.rend(); ++use) {
        if (use->weight_first) {
          names.append(names.empty() ? "" : ", ").append(profile.parameter_names[use->weight]);
        }
      }
      throw ArgumentError(
          fmt::format("kernel: a way is given for {}, which is no weight; the weights are {}", name, names));
    }
  }
}

namespace {

/// The smallest blocks; when even those are beyond `memory`, other ways may still fit.
Plan smallest_plan(const ModuleProfile& profile, const PlanRequest& request, std::size_t memory) {
  std::vector<PlannedUse> uses = profile.uses;
  choose_ways(profile, request, uses);
  Plan best = least_plan(profile, request, uses);
  while (best.total_bytes() > memory) {
    const std::size_t before = best.total_bytes();
    each_change(profile, request, best.uses, [&](const std::vector<PlannedUse>& changed) {
      Plan plan = least_plan(profile, request, changed);
      if (plan.total_bytes() < best.total_bytes()) best = std::move(plan);
    });
    if (best.total_bytes() == before) break;
  }
  return best;
}

}  // namespace

std::size_t least_kernel_bytes(const ModuleProfile& profile, const PlanRequest& request) {
  return smallest_plan(profile, request, 0).total_bytes();
}

namespace {

/// With ways for which passes are repeated where the factors do not fit.
Plan recomputing_plan(const ModuleProfile& profile, const PlanRequest& request) {
  Plan chosen = plan_blocks(profile, request, smallest_plan(profile, request, request.memory).uses);
  if (chosen.resident >= request.rows && chosen.rounds() == 1) return chosen;
  // Not everything fits: ways that hold less repeat fewer passes. One change alone may save nothing where
  // several do, hence the second beginning, from the ways that hold least.
  const double limit = plan_cost(chosen).wall * kWorthwhile;
  Plan best = chosen;
  double least = limit;
  for (Plan plan : {chosen, plan_blocks(profile, request, smallest_plan(profile, request, 0).uses)}) {
    plan = quickest_plan(profile, request, std::move(plan));
    const double wall = plan_cost(plan).wall;
    if (!(wall < least)) continue;
    least = wall;
    best = std::move(plan);
  }
  return best;
}

/// Resident blocks that are whole blocks of the stream, so that none of them is cut short.
void take_whole_blocks(Plan& plan) {
  if (!plan.request.symmetric || plan.streamed == 0 || plan.resident % plan.streamed == 0) return;
  const std::size_t down = plan.resident / plan.streamed * plan.streamed;
  plan.resident = std::min(down + plan.streamed, plan.request.rows);
  if (plan.total_bytes() > plan.request.memory) plan.resident = std::max<std::size_t>(down, 1);
}

}  // namespace

void choose_reuse(Plan& plan, bool whole_tiles) {
  const PlanRequest& request = plan.request;
  plan.spilled = false;
  const bool forced = request.spill == Spill::Always;
  if (request.spill == Spill::Never || (plan.reuse() == Reuse::Kept && plan.rounds() == 1)) return;
  const ScratchSpace& scratch = request.scratch;
  const bool wanted = forced || request.scratch_named;
  if (!scratch.problem.empty() || (scratch.in_memory && !wanted)) return;
  Plan candidate = plan;
  candidate.request.spill = Spill::Always;  // no rounds
  while (!fit_blocks(candidate, whole_tiles)) {
    // In rounds tiles may be larger than a stream of all seeds can hold.
    if (whole_tiles || candidate.tile == 1) return;
    candidate.tile /= 2;
    candidate.tape_block = std::max<std::size_t>(1, candidate.tape_block / 2);
  }
  take_whole_blocks(candidate);
  candidate.request.spill = request.spill;
  candidate.spilled = true;
  if (candidate.reuse() != Reuse::Spilled) return;
  if (!forced && !(plan_cost(candidate).wall < kWorthwhile * plan_cost(plan).wall)) return;
  if (candidate.spilled_bytes() > scratch.usable_bytes()) {
    if (!wanted) return;
    throw ArgumentError("kernel: spilled factors would take " + std::to_string(candidate.spilled_bytes()) +
                        " bytes in " + scratch.folder.string() + ", where " +
                        std::to_string(scratch.free_bytes) + " are free, " +
                        std::to_string(scratch.left_bytes) +
                        " of them not for this; make room, choose another scratch folder, more memory, or do "
                        "not spill");
  }
  plan = std::move(candidate);
}

Plan plan_kernel(const ModuleProfile& profile, const PlanRequest& request) {
  // Whether the disk is quick or full must not change ways, and with them bits.
  PlanRequest dry = request;
  dry.spill = Spill::Never;
  Plan plan = recomputing_plan(profile, dry);
  plan.request.spill = request.spill;
  choose_reuse(plan, false);
  deal_tiles(plan);
  return plan;
}

PlanCost plan_cost(const Plan& plan) {
  return cost_of(plan, work_of(plan), true);
}

PlanCost diagonal_cost(const Plan& plan) {
  Work work;
  work.passed = real(plan.request.rows);
  work.blocks = 1;
  return cost_of(plan, work, false);
}

}  // namespace gradgram::ntk
