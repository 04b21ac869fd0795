#include "ntk/plan.hpp"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "engine/cpu.hpp"
#include "engine/error.hpp"
#include "engine/evaluation.hpp"
#include "engine/ops.hpp"
#include "engine/simd/bf16.hpp"
#include "engine/sinks.hpp"
#include "ntk/cost.hpp"
#include "ntk/precision.hpp"

namespace gradgram::ntk {
namespace {

/// Multiply-adds in whose time a weight is laid out for the products of a tape block (about a nanosecond, for
/// BLIS's panels as for a convolution's), and the part of the products' time that may go into it.
constexpr double kLayoutCost = 90;
constexpr double kLayoutPart = 1.0 / 16;
/// The rows for which a dense layer packs its weights once (engine/matrix_product.hpp).
constexpr std::size_t kMaxTapeBlock = 384;
/// The part of the budget that the tapes of all workers may take before blocks are shrunk for want of memory.
constexpr std::size_t kTapePart = 16;
/// Tiles at the least, so that the last one to finish does not leave other workers idle for long. Not a
/// number per worker: tiles in a file must be the same for any.
constexpr std::size_t kLeastTiles = 16;
/// Rows on a side of a tile that are not halved for their number's sake.
constexpr std::size_t kLeastTileRows = 48;
/// Tiles per worker from which on it does not matter how they are dealt out.
constexpr std::size_t kManyTiles = 16;
/// FLOP of products that a kernel into a file may go through in rounds, about a minute of one thread: so much
/// more than the tiles in flight may be lost when it is stopped.
constexpr double kRoundsIntoFile = 1e13;

/// Notes every use, and forms convolution gradients once so that the scratch they need is seen in the arena.
template <class T>
class ProfileSink final : public Sink<T> {
 public:
  explicit ProfileSink(std::vector<PlannedUse>& uses) : uses_(uses) {}

  void use(const DenseUse<T>& use, Arena&) override {
    PlannedUse planned;
    planned.positions = use.inputs.shape()[1];
    planned.d_in = use.inputs.shape()[2];
    planned.d_out = use.cotangents.shape()[2];
    note(planned, use);
  }

  void use(const ConvUse<T>& use, Arena& scratch) override {
    PlannedUse planned;
    planned.convolution = true;
    planned.geometry = use.geometry;
    planned.positions = use.geometry.out_pixels();
    planned.d_in = use.geometry.patch();
    planned.d_out = use.geometry.c_out;
    note(planned, use);
    // The gradient itself stands among the factors.
    gradient_.resize(std::max(gradient_.size(), use.geometry.weights() + use.geometry.c_out));
    ops::conv_weight_gradient(use.geometry, use.inputs.data(), use.cotangents.data(), use.weight_scale,
                              use.bias_scale, false, gradient_.data(),
                              use.bias == kNoParameter ? nullptr : gradient_.data() + use.geometry.weights(),
                              scratch);
  }

 private:
  template <class Use>
  void note(PlannedUse& planned, const Use& use) {
    planned.weight = use.weight;
    planned.bias = use.bias;
    planned.weight_scale = static_cast<double>(use.weight_scale);
    planned.bias_scale = static_cast<double>(use.bias_scale);
    uses_.push_back(planned);
  }

  std::vector<PlannedUse>& uses_;
  std::vector<T> gradient_;
};

std::size_t multiply(std::size_t a, std::size_t b) {
  return checked_multiply(a, b, "kernel: bytes");
}

/// The first uses of parameters; shared ones cannot be told apart afterwards.
void number_uses(std::vector<PlannedUse>& uses, std::size_t parameters) {
  std::vector<std::size_t> count(parameters, 0);
  for (PlannedUse& use : uses) {
    use.weight_first = count[use.weight]++ == 0;
    if (use.bias != kNoParameter) use.bias_first = count[use.bias]++ == 0;
  }
  const std::vector<bool> shared = shared_uses(uses, parameters);
  for (std::size_t u = 0; u < uses.size(); ++u) uses[u].alone = !shared[u];
}

/// Bytes of the factors of one example, see Factors<T>.
void count_factors(Plan& plan) {
  std::size_t rows = 0, packed_inputs = 0, packed_rows = 0, plain = 0;
  const std::size_t group = plan.rows_per_example();
  const std::size_t seeds = plan.seeds_per_row();
  for (const PlannedUse& use : plan.uses) {
    if (use.way == Way::Materialize) continue;
    const std::size_t cotangents = multiply(seeds, use.cotangent_size());
    const std::size_t bytes = padded_stride(use.input_size(), plan.element_bytes) +
                              multiply(group, padded_stride(cotangents, plan.element_bytes));
    rows += bytes;
    if (use.way == Way::Outer) {
      packed_inputs += use.input_size();
      packed_rows += cotangents;
    } else {
      plain += bytes;
    }
  }
  if (plan.row_width != 0) {
    const std::size_t width = multiply(plan.round_seeds, plan.row_width);
    rows += multiply(group, padded_stride(width, plan.element_bytes));
    packed_rows += width;
  }
  plan.example_bytes = multiply(rows, plan.element_bytes);
  plan.packed_input_bytes = multiply(packed_inputs, plan.element_bytes);
  plan.packed_row_bytes = multiply(packed_rows, plan.element_bytes);
  plan.plain_bytes = multiply(plain, plan.element_bytes);
}

/// Elements of an image with room for whole tiles of Winograd's transforms around it; the most there may be.
std::size_t frame_size(const PlannedUse& use) {
  if (!use.convolution) return 0;
  const ConvGeometry& g = use.geometry;
  const std::size_t height = g.pad_top + g.in_h + g.pad_bottom + 1;
  const std::size_t width = g.pad_left + g.in_w + g.pad_right + 1;
  return padded_stride(multiply(multiply(height, width), g.c_in + kAlignment / sizeof(float)),
                       sizeof(double));
}

}  // namespace

std::size_t gram_padded(std::size_t count, std::size_t element_bytes) {
  const std::size_t group = simd::kGramPadding<char> / element_bytes;
  return (count + group - 1) / group * group;
}

std::size_t gram_depth(std::size_t width, std::size_t element_bytes) {
  const std::size_t line = kAlignment / element_bytes;
  const std::size_t most = simd::kGramDepth<char> / element_bytes;
  const std::size_t panels = std::max<std::size_t>(1, (width + most - 1) / most);
  const std::size_t depth = (width + panels - 1) / panels;
  return std::max(line, (depth + line - 1) / line * line);
}

std::vector<Panel> panels_of(std::size_t begin, std::size_t width, std::size_t element_bytes) {
  std::vector<Panel> panels;
  const std::size_t depth = gram_depth(width, element_bytes);
  for (std::size_t column = 0; column < width; column += depth) {
    panels.push_back({begin + column, std::min(depth, width - column)});
  }
  return panels;
}

std::size_t padded_stride(std::size_t width, std::size_t element_bytes) {
  const std::size_t line = kAlignment / element_bytes;
  std::size_t stride = (width + line - 1) / line * line;
  if (stride != 0 && multiply(stride, element_bytes) % 4096 == 0) stride += line;
  return stride;
}

template <class T>
ModuleProfile profile(const Module<T>& module, TensorView<const T> example) {
  ModuleProfile result;
  result.outputs = module.outputs();
  result.element_bytes = sizeof(T);
  const ParameterSet<T>& parameters = module.parameters();
  for (std::size_t i = 0; i < parameters.count(); ++i) {
    result.parameter_names.push_back(parameters.name(i));
    result.parameter_sizes.push_back(parameters.value(i).size());
  }
  result.input_bytes = multiply(example.size(), sizeof(T));
  result.weight_bytes = multiply(parameters.size(), sizeof(T));

  using Use = Arena::Use;
  struct Pass {
    Use forward;                // what the forward pass leaves
    std::size_t lists = 0;      // of the tape
    std::vector<Use> in_use{};  // after every allocation
  };
  Tensor<T> inputs(example.shape().inner().with_outer(2));
  for (std::size_t e = 0; e < 2; ++e) {
    std::copy_n(example.data(), example.size(), inputs.data() + e * example.size());
  }
  const auto pass = [&](std::size_t examples, std::vector<PlannedUse>& uses) {
    Pass pass;
    Arena arena;
    arena.trace(&pass.in_use);
    ProfileSink<T> sink(uses);
    const auto seed = arena.tensor<T>({examples, result.outputs});
    std::fill_n(seed.data(), seed.size(), T(1));
    const Use before = arena.in_use();
    Tape<T> tape(arena);
    const Var output = module.forward(tape, tape.input(inputs.view().slice(0, examples)));
    if (!(tape.shape(output) == Shape{examples, result.outputs})) {
      throw ShapeError("kernel: the module's output " + tape.shape(output).to_string() + " for " +
                       (examples == 1 ? "one example" : std::to_string(examples) + " examples") +
                       " must be [" + std::to_string(examples) + ", " + std::to_string(result.outputs) + "]");
    }
    pass.forward = {arena.in_use().bytes - before.bytes, arena.in_use().pieces - before.pieces};
    pass.lists = tape.list_bytes();
    tape.reverse(output, seed, sink);
    return pass;
  };
  // What a second example adds, and what was there without it: offsets of windows, a gradient on its way. In
  // bytes as they are asked for: a piece of few bytes an example fills a cache line with one or with sixteen.
  const Pass one = pass(1, result.uses);
  std::vector<PlannedUse> again;
  const Pass two = pass(2, again);
  const auto more = [](const Use& of_two, const Use& of_one) {
    return of_two.bytes - std::min(of_two.bytes, of_one.bytes);
  };
  const auto rounding = [](const Use& use) { return use.pieces * (kAlignment - 1); };
  result.forward_bytes = more(two.forward, one.forward);
  result.forward_fixed_bytes =
      one.forward.bytes - std::min(one.forward.bytes, result.forward_bytes) + rounding(one.forward);
  // The tape itself and what the system adds to its allocations count where images are small.
  result.forward_list_bytes = one.lists + sizeof(Arena) + sizeof(Tape<T>) + 4 * kAlignment;
  // At every moment the bytes are at most linear in the examples (what serves a few of them at a time stops
  // growing), but not always the same moment takes most.
  std::size_t most = 0;
  for (std::size_t i = 0; i < one.in_use.size(); ++i) {
    const Use& now = one.in_use[i];
    most = std::max(most, now.bytes + rounding(now));
    if (i < two.in_use.size()) result.tape_bytes = std::max(result.tape_bytes, more(two.in_use[i], now));
  }
  result.tape_fixed_bytes = most - std::min(most, result.tape_bytes);
  number_uses(result.uses, parameters.count());
  return result;
}

template ModuleProfile profile(const Module<float>&, TensorView<const float>);
template ModuleProfile profile(const Module<double>&, TensorView<const double>);

template <class T>
ModuleProfile profile_of_first(const Module<T>& module, TensorView<const double> inputs) {
  const TensorView<const double> first = inputs.slice(0, 1);
  Tensor<T> example(first.shape());
  std::transform(first.data(), first.data() + first.size(), example.data(),
                 [](double value) { return static_cast<T>(value); });
  return profile<T>(module, example);
}

template ModuleProfile profile_of_first(const Module<float>&, TensorView<const double>);
template ModuleProfile profile_of_first(const Module<double>&, TensorView<const double>);

template <class T>
std::size_t evaluation_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t examples,
                             std::size_t workers) {
  const std::size_t block = std::min(examples, evaluation_block(module));
  return checked_add(multiply(multiply(examples, profile.outputs), sizeof(T)),
                     multiply(workers, profile.tape_of(block)), "kernel: bytes");
}

template std::size_t evaluation_bytes(const Module<float>&, const ModuleProfile&, std::size_t, std::size_t);
template std::size_t evaluation_bytes(const Module<double>&, const ModuleProfile&, std::size_t, std::size_t);

ConvGeometry PlannedUse::position_geometry() const {
  return convolution ? geometry : positions_geometry(positions, d_in, d_out);
}

std::size_t PlannedUse::input_size() const {
  return convolution ? geometry.in_pixels() * geometry.c_in : positions * d_in;
}

std::vector<std::pair<std::string, Way>> Plan::ways() const {
  std::vector<std::pair<std::string, Way>> result;
  for (auto use = uses.rbegin(); use != uses.rend(); ++use) {
    if (use->weight_first) result.emplace_back(parameter_names[use->weight], use->way);
  }
  return result;
}

bool Plan::has(Way way) const {
  return std::any_of(uses.begin(), uses.end(), [way](const PlannedUse& use) { return use.way == way; });
}

std::size_t Plan::padded_side(std::size_t rows) const {
  const std::size_t padded = gram_padded(rows, element_bytes);
  return packed && padded != rows ? padded + gram_padded(1, element_bytes) : padded;
}

std::size_t Plan::tile_bytes() const {
  const std::size_t side = padded_side(multiply(tile, rows_per_example()));
  const std::size_t input_side = padded_side(tile);
  // Sums in f64: of everything, of one parameter, and those of the ways that form nothing.
  const bool factored = has(Way::Outer) || has(Way::PositionGram);
  const std::size_t sums =
      1 + (request.per_parameter ? 1 : 0) + (has(Way::PositionGram) ? 1 : 0) + (factored ? 1 : 0);
  const std::size_t inputs = has(Way::Outer) ? multiply(input_side, input_side) : 0;
  std::size_t position = 0;
  for (const PlannedUse& use : uses) {
    if (use.way == Way::PositionGram) {
      position = std::max(position, position_bytes(use, request, element_bytes));
    }
  }
  const std::size_t panel = request.bf16 ? simd::kBf16Depth * sizeof(std::uint16_t) : simd::kGramDepth<char>;
  const std::size_t panels = packed ? 0 : multiply(side, 2 * panel);
  const std::size_t products = element_bytes == sizeof(float) && !request.bf16
                                   ? kernels<float>().gram_scratch_bytes(std::max(side, input_side))
                                   : 0;
  return multiply(checked_add(multiply(multiply(side, side), sums), inputs, "kernel: bytes"),
                  sizeof(double)) +
         panels + products + 8 * kAlignment + position;
}

std::size_t Plan::scratch_bytes() const {
  if (!packed || row_width == 0) return 0;
  // Gradients of a few examples, whole or in parts, and what FactorSink forms them from.
  constexpr std::size_t kGaps = 16 * kAlignment / sizeof(float);
  std::size_t group = 0;
  for (const PlannedUse& use : uses) {
    if (use.way != Way::Materialize || !use.alone || request.full) continue;
    group = std::max(group,
                     checked_add(padded_stride(multiply(use.d_in, use.d_out) + kGaps, element_bytes),
                                 padded_stride(use.d_out, element_bytes) + frame_size(use), "kernel: bytes"));
  }
  const std::size_t rows = multiply(tape_block, rows_per_example());
  const std::size_t kept = multiply(rows, padded_stride(scratch_width, element_bytes));
  const std::size_t line = kAlignment / element_bytes;
  return multiply(checked_add(kept, multiply(line, group), "kernel: bytes"), element_bytes);
}

std::size_t Plan::factor_bytes(std::size_t examples) const {
  if (!packed) return multiply(examples, example_bytes);
  const std::size_t rows = gram_padded(multiply(examples, rows_per_example()), element_bytes);
  const std::size_t products = checked_add(multiply(gram_padded(examples, element_bytes), packed_input_bytes),
                                           multiply(rows, packed_row_bytes), "kernel: bytes");
  return checked_add(products, multiply(examples, plain_bytes), "kernel: bytes");
}

std::size_t Plan::arena_bytes() const {
  const std::size_t tape = checked_add(tape_fixed_bytes, multiply(tape_block, tape_bytes), "kernel: bytes");
  return std::max(checked_add(tape, scratch_bytes(), "kernel: bytes"), tile_bytes());
}

Reuse Plan::reuse() const {
  if (blocks() == 1) return Reuse::Kept;
  return spilled ? Reuse::Spilled : Reuse::Recomputed;
}

std::size_t Plan::spilled_blocks() const {
  if (reuse() != Reuse::Spilled) return 0;
  if (!request.symmetric) return (request.columns + streamed - 1) / streamed;
  // The last resident block is met by no later one.
  return multiply(blocks() - 1, (resident + streamed - 1) / streamed);
}

std::size_t Plan::spilled_reads() const {
  const std::size_t written = spilled_blocks();
  // Of a symmetric kernel resident block b reads the blocks before it.
  return request.symmetric ? multiply(written, blocks()) / 2 : multiply(written, blocks() - 1);
}

std::size_t Plan::spilled_bytes() const {
  return multiply(spilled_blocks(), factor_bytes(streamed));
}

std::size_t Plan::kept_bytes() const {
  if (rounds() == 1) return 0;
  const std::size_t down = (request.rows + tile - 1) / tile;
  const std::size_t across = (request.columns + tile - 1) / tile;
  const std::size_t tiles = request.symmetric ? multiply(down, down + 1) / 2 : multiply(down, across);
  const std::size_t side = padded_side(multiply(tile, rows_per_example()));
  const std::size_t sums = multiply(multiply(tiles, multiply(side, side)), sizeof(double));
  if (!keeps_passes) return sums;
  const auto blocks = [&](std::size_t examples) { return (examples + tape_block - 1) / tape_block; };
  return checked_add(sums,
                     multiply(blocks(request.rows) + (request.symmetric ? 0 : blocks(request.columns)),
                              checked_add(kept_pass_bytes(), forward_list_bytes, "kernel: bytes")),
                     "kernel: bytes");
}

std::size_t Plan::kept_pass_bytes() const {
  return checked_add(forward_fixed_bytes, multiply(tape_block, forward_bytes), "kernel: bytes");
}

std::size_t Plan::staged_bytes() const {
  const std::size_t side = multiply(tile, rows_per_example());
  return request.result_in_file ? multiply(multiply(side, side), element_bytes) : 0;
}

std::size_t Plan::total_bytes() const {
  const std::size_t factors = checked_add(factor_bytes(resident), factor_bytes(streamed), "kernel: bytes");
  std::size_t total = checked_add(result_bytes, fixed_bytes, "kernel: bytes");
  total = checked_add(total, factors, "kernel: bytes");
  total = checked_add(total, kept_bytes(), "kernel: bytes");
  const std::size_t per_worker = checked_add(arena_bytes(), kBlasBytes + staged_bytes(), "kernel: bytes");
  return checked_add(total, multiply(request.workers, per_worker), "kernel: bytes");
}

namespace {

std::size_t round_up(std::size_t count, std::size_t step) {
  return (count + step - 1) / step * step;
}

/// Examples whose packed rows fill cache lines.
std::size_t line_examples(const Plan& plan) {
  const std::size_t line = kAlignment / plan.element_bytes;
  return line / std::gcd(line, plan.rows_per_example());
}

/// Blocks of at most `block` of `examples`, about as many for every worker.
std::size_t even_block(const Plan& plan, std::size_t examples, std::size_t block) {
  const std::size_t blocks = round_up((examples + block - 1) / block, plan.request.workers);
  const std::size_t even = (examples + blocks - 1) / blocks;
  const std::size_t line = line_examples(plan);
  return std::clamp<std::size_t>(even < line ? even : round_up(even, line), 1, block);
}

/// Enough examples that laying out the weights for them takes a small part of the time.
std::size_t tape_block(const Plan& plan) {
  double products = 0, weights = 0;
  for (const PlannedUse& use : plan.uses) {
    const double size = static_cast<double>(use.d_in) * static_cast<double>(use.d_out);
    products += static_cast<double>(use.positions) * size;
    weights += size;
  }
  const double wanted = kLayoutCost / kLayoutPart * weights / std::max(products, 1.0);
  const std::size_t part = plan.request.memory / kTapePart / plan.request.workers;
  const std::size_t room =
      (part - std::min(part, plan.tape_fixed_bytes)) / std::max<std::size_t>(plan.tape_bytes, 1);
  const auto block =
      std::min(static_cast<std::size_t>(std::min(wanted, static_cast<double>(kMaxTapeBlock))), room);
  const std::size_t most = std::max(plan.request.rows, plan.request.symmetric ? 0 : plan.request.columns);
  return even_block(plan, most, round_up(std::max<std::size_t>(block, 1), line_examples(plan)));
}

/// What both plans share: ways, the columns of materialized rows, bytes of one example.
Plan layout(const ModuleProfile& profile, const PlanRequest& request, std::vector<PlannedUse> uses) {
  Plan plan;
  plan.request = request;
  plan.uses = std::move(uses);
  plan.parameter_names = profile.parameter_names;
  plan.parameter_sizes = profile.parameter_sizes;
  plan.element_bytes = profile.element_bytes;
  plan.tape_bytes = profile.tape_bytes;
  plan.tape_fixed_bytes = profile.tape_fixed_bytes;
  plan.forward_bytes = profile.forward_bytes;
  plan.forward_fixed_bytes = profile.forward_fixed_bytes;
  plan.forward_list_bytes = profile.forward_list_bytes;

  plan.columns.assign(profile.parameter_sizes.size(), kNoParameter);
  const std::size_t line = kAlignment / plan.element_bytes;
  const auto place = [&](std::size_t parameter) {
    if (parameter == kNoParameter || plan.columns[parameter] != kNoParameter) return;
    plan.columns[parameter] = plan.row_width;
    plan.row_width += (profile.parameter_sizes[parameter] + line - 1) / line * line;
  };
  const auto place_uses = [&](bool alone) {
    for (const PlannedUse& use : plan.uses) {
      if (use.way != Way::Materialize || use.alone != alone) continue;
      place(use.weight);
      place(use.bias);
    }
  };
  place_uses(false);
  plan.scratch_width = plan.row_width;
  place_uses(true);
  if (request.full) plan.scratch_width = plan.row_width;
  const std::size_t inputs = request.rows + (request.symmetric ? 0 : request.columns);
  plan.fixed_bytes = multiply(inputs, profile.input_bytes) + profile.weight_bytes;
  plan.round_seeds = plan.seeds_per_row();
  count_factors(plan);

  plan.tape_block = tape_block(plan);
  return plan;
}

/// FLOP of the products of materialized rows, without those above the diagonal.
double products_of_rows(const Plan& plan) {
  const double rows = static_cast<double>(plan.request.rows) * static_cast<double>(plan.rows_per_example());
  const double columns =
      static_cast<double>(plan.request.columns) * static_cast<double>(plan.rows_per_example());
  return (plan.request.symmetric ? 1 : 2) * rows * columns * static_cast<double>(plan.row_width) *
         static_cast<double>(plan.seeds_per_row());
}

BudgetError too_small(const char* call, const Plan& plan) {
  return BudgetError(std::string(call) + ": the memory budget (" + std::to_string(plan.request.memory) +
                     " bytes) cannot hold this work; the least that would do is " +
                     std::to_string(plan.total_bytes()) + " bytes, of which result " +
                     std::to_string(plan.result_bytes) + ", inputs and weights " +
                     std::to_string(plan.fixed_bytes));
}

/// Rows on a side of a tile at the most.
std::size_t tile_rows(std::size_t element_bytes) {
  return element_bytes == sizeof(float) ? kernels<float>().gram_tile_rows : kernels<double>().gram_tile_rows;
}

/// Examples on a side of a tile: equal parts, no larger than tile_rows(), small enough to keep workers busy.
std::size_t tile_side(const PlanRequest& request, std::size_t rows_per_example, std::size_t element_bytes) {
  const std::size_t longest = std::max(request.rows, request.columns);
  const std::size_t most = std::max<std::size_t>(1, tile_rows(element_bytes) / rows_per_example);
  const std::size_t least = std::max<std::size_t>(1, kLeastTileRows / rows_per_example);
  const auto tiles = [&](std::size_t side) {
    const std::size_t down = (request.rows + side - 1) / side;
    const std::size_t across = (request.columns + side - 1) / side;
    return request.symmetric ? down * (down + 1) / 2 : down * across;
  };
  std::size_t parts = (longest + most - 1) / most;
  while (longest / (parts + 1) >= least && tiles((longest + parts - 1) / parts) < kLeastTiles) {
    ++parts;
  }
  // Whole groups of packed rows where that is possible.
  const std::size_t group = gram_padded(1, element_bytes);
  const std::size_t whole = group / std::gcd(group, rows_per_example);
  const std::size_t step = whole <= most ? whole : 1;
  const std::size_t side = round_up((longest + parts - 1) / parts, step);
  return std::clamp<std::size_t>(side, 1, std::min(std::max(most / step, std::size_t{1}) * step, longest));
}

/// When the last worker finishes the tiles of this side, those that take longest dealt out first, in products
/// of two rows.
double tiles_end(const PlanRequest& request, std::size_t rows_per_example, std::size_t side,
                 double side_products) {
  std::vector<double> tiles;
  const auto rows = [&](std::size_t begin, std::size_t end) {
    return static_cast<double>(std::min(side, end - begin) * rows_per_example);
  };
  for (std::size_t row = 0; row < request.rows; row += side) {
    const double down = rows(row, request.rows);
    for (std::size_t column = 0; column < (request.symmetric ? row : request.columns); column += side) {
      const double across = rows(column, request.columns);
      tiles.push_back(down * across + side_products * (down + across));
    }
    if (request.symmetric) tiles.push_back(down * (down + 1) / 2 + side_products * down);
  }
  std::sort(tiles.begin(), tiles.end(), std::greater<>());
  std::vector<double> ends(request.workers, 0.0);
  for (const double tile : tiles) *std::min_element(ends.begin(), ends.end()) += tile;
  return *std::max_element(ends.begin(), ends.end());
}

/// Without blocks.
Plan kernel_layout(const ModuleProfile& profile, const PlanRequest& request, std::vector<PlannedUse> uses) {
  Plan plan = layout(profile, request, std::move(uses));
  const std::size_t block = request.full ? multiply(request.seeds, request.seeds) : 1;
  const std::size_t entries = multiply(multiply(request.rows, request.columns), block);
  const std::size_t kernels = 1 + (request.per_parameter ? profile.parameter_sizes.size() : 0);
  plan.result_bytes = request.result_in_file ? 0 : multiply(multiply(entries, plan.element_bytes), kernels);
  return plan;
}

}  // namespace

Plan least_plan(const ModuleProfile& profile, const PlanRequest& request, std::vector<PlannedUse> uses) {
  Plan plan = kernel_layout(profile, request, std::move(uses));
  plan.tile = plan.tape_block = plan.resident = 1;
  plan.streamed = request.symmetric && request.rows == 1 ? 0 : 1;
  return plan;
}

Plan plan_blocks(const ModuleProfile& profile, const PlanRequest& request, std::vector<PlannedUse> uses) {
  Plan plan = kernel_layout(profile, request, std::move(uses));

  const std::size_t tape_block = plan.tape_block;
  const std::size_t tile = tile_side(request, plan.rows_per_example(), plan.element_bytes);

  // First as if memory were free, then with ever smaller blocks.
  for (std::size_t shrink = 1;; shrink *= 2) {
    plan.tile = std::max<std::size_t>(1, tile / shrink);
    plan.tape_block = std::max<std::size_t>(1, tape_block / shrink);
    if (fit_blocks(plan, false)) return plan;
    if (plan.tile == 1 && plan.tape_block == 1) throw too_small("kernel", plan);
  }
}

void deal_tiles(Plan& plan) {
  const PlanRequest& request = plan.request;
  const std::size_t group = plan.rows_per_example();
  const std::size_t whole = std::lcm(gram_padded(1, plan.element_bytes), group) / group;
  const std::size_t largest = std::max<std::size_t>(1, tile_rows(plan.element_bytes) / group);
  const std::size_t parts = (std::max(request.rows, request.columns) + largest - 1) / largest;
  const bool held = plan.blocks() == 1 && plan.streamed == (request.symmetric ? 0 : request.columns);
  if (request.result_in_file || !held || parts * parts >= kManyTiles * request.workers) return;
  const double side_products = plan.element_bytes == sizeof(float) ? kernels<float>().gram_side_products
                                                                   : kernels<double>().gram_side_products;
  double best = tiles_end(request, group, plan.tile, side_products);
  for (std::size_t side = whole; side * group <= tile_rows(plan.element_bytes); side += whole) {
    const double end = tiles_end(request, group, side, side_products);
    if (end >= best) continue;
    const std::size_t tile = std::exchange(plan.tile, side);
    if (plan.total_bytes() <= request.memory) {
      best = end;
    } else {
      plan.tile = tile;
    }
  }
}

bool fit_blocks(Plan& plan, bool whole_tiles) {
  const PlanRequest& request = plan.request;
  const auto fits = [&] { return plan.total_bytes() <= request.memory; };
  const auto hold_seeds = [&](std::size_t seeds, bool keeps_passes = false) {
    plan.round_seeds = seeds;
    plan.keeps_passes = keeps_passes;
    count_factors(plan);
  };
  // Products in bfloat16 round rows as they pack them for a tile.
  const bool may_pack = !request.bf16;
  const auto hold_all = [&](bool packed) {
    if (packed && !may_pack) return false;
    plan.packed = packed;
    plan.resident = request.rows;
    plan.streamed = request.symmetric ? 0 : request.columns;
    return fits();
  };
  const std::size_t seeds = plan.seeds_per_row();
  hold_seeds(seeds);
  // Rather shorter tapes than repeated passes.
  const std::size_t tape_block = plan.tape_block;
  const std::size_t line = line_examples(plan);
  for (const bool packed : {true, false}) {
    for (std::size_t cut = 1; cut <= 16; cut *= 2) {
      const std::size_t lines = tape_block / cut / line * line;
      plan.tape_block = cut == 1 ? tape_block : std::max(lines, std::min(tape_block, line));
      if (hold_all(packed)) return true;
    }
  }
  plan.tape_block = tape_block;
  // A part of the seeds at a time, with forward passes that are kept or, if there is no room for them,
  // repeated. Not with a kernel per parameter; into a file, whose tiles are then finished all at the end,
  // only when that puts little work at stake.
  const bool may_round = may_pack && seeds > 1 && plan.row_width != 0 && !request.per_parameter &&
                         request.spill != Spill::Always &&
                         (!request.result_in_file || products_of_rows(plan) <= kRoundsIntoFile);
  if (may_round) {
    // As many rounds as there are: memory that is not touched need not be cleared by the system.
    hold_seeds(1, true);
    if (hold_all(true)) return true;
    for (std::size_t rounds = 2; rounds <= seeds; ++rounds) {
      hold_seeds((seeds + rounds - 1) / rounds);
      if (hold_all(true)) return true;
    }
  }
  // Large resident blocks against a narrow stream: the stream is recomputed once per resident block.
  const std::size_t step = whole_tiles ? plan.tile : 1;
  const auto stream = [&](std::size_t resident) {
    plan.resident = std::min(resident, request.rows);
    const std::size_t most = request.symmetric ? request.rows - plan.resident : request.columns;
    // Of a file a tile is finished at once: a stream never cuts one.
    plan.streamed = whole_tiles && request.symmetric && most != 0 ? plan.tile : std::min(plan.tile, most);
  };
  hold_seeds(seeds);
  const auto largest = [&](bool packed) {
    plan.packed = packed;
    stream(plan.tile);
    if (!fits()) return std::size_t{0};
    std::size_t good = plan.resident, bad = request.rows + 1;
    while (bad - good > 1) {
      const std::size_t middle = good + (bad - good) / 2;
      stream(middle);
      (fits() ? good : bad) = middle;
    }
    good = good >= request.rows ? request.rows : std::max(good / step, std::size_t{1}) * step;
    // As many blocks, of about the same size.
    const std::size_t blocks = (request.rows + good - 1) / good;
    const std::size_t even = round_up((request.rows + blocks - 1) / blocks, step);
    stream(even);
    return fits() ? std::min(even, request.rows) : good;
  };
  // Rows as they are take no padding: where little fits, more of them do.
  const std::size_t as_rows = largest(false);
  const std::size_t packed = may_pack ? largest(true) : 0;
  plan.packed = packed != 0 && packed + packed / 2 >= as_rows;
  const std::size_t resident = plan.packed ? packed : as_rows;
  stream(resident == 0 ? plan.tile : resident);
  if (resident == 0) return false;
  if (plan.streamed != 0) plan.tape_block = even_block(plan, plan.streamed, plan.tape_block);
  return true;
}

namespace {

/// With the tape block of free memory.
Plan diagonal_layout(const ModuleProfile& profile, const PlanRequest& request) {
  // An example meets itself alone: the position Gram way would fill a block of them for nothing.
  PlanRequest alone = request;
  alone.ways.clear();
  for (const PlannedUse& use : profile.uses) {
    if (use.convolution || use.positions > 1) {
      alone.ways.emplace_back(profile.parameter_names[use.weight], Way::Materialize);
    }
  }
  std::vector<PlannedUse> uses = profile.uses;
  choose_ways(profile, alone, uses);
  Plan plan = layout(profile, alone, std::move(uses));
  plan.result_bytes = multiply(request.rows, sizeof(double));
  if (request.full) plan.result_bytes = multiply(plan.result_bytes, multiply(request.seeds, request.seeds));
  // A norm needs the gradient of one use or, for shared parameters, of all their uses: a row of every
  // parameter covers it.
  if (!request.full) {
    std::size_t pairs = 0;
    for (const PlannedUse& use : plan.uses) {
      const ConvGeometry g = use.position_geometry();
      pairs =
          std::max(pairs, plan.element_bytes == sizeof(float) ? SquaredNormSink<float>::scratch_bytes(g)
                                                              : SquaredNormSink<double>::scratch_bytes(g));
    }
    const bool shared = std::any_of(plan.uses.begin(), plan.uses.end(), [](const PlannedUse& use) {
      return !use.weight_first || (use.bias != kNoParameter && !use.bias_first);
    });
    if (shared) plan.tape_bytes += padded_stride(profile.weight_bytes, 1);
    plan.tape_fixed_bytes += padded_stride(profile.weight_bytes, 1) + pairs;
  }
  return plan;
}

void take_block(Plan& plan, std::size_t block) {
  plan.tape_block = block;
  plan.resident = plan.request.full ? multiply(plan.request.workers, block) : 0;
}

}  // namespace

std::size_t least_diagonal_bytes(const ModuleProfile& profile, const PlanRequest& request) {
  Plan plan = diagonal_layout(profile, request);
  take_block(plan, 1);
  return plan.total_bytes();
}

Plan plan_diagonal(const ModuleProfile& profile, const PlanRequest& request) {
  Plan plan = diagonal_layout(profile, request);
  for (std::size_t block = plan.tape_block;; block /= 2) {
    take_block(plan, block);
    if (plan.total_bytes() <= request.memory) return plan;
    if (block == 1) throw too_small("diagonal", plan);
  }
}

}  // namespace gradgram::ntk
