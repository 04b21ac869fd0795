#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "engine/convolution.hpp"
#include "engine/module.hpp"
#include "engine/scratch_file.hpp"
#include "engine/sink.hpp"
#include "ntk/rates.hpp"
#include "ntk/spill.hpp"
#include "ntk/way.hpp"

/// How a kernel is going to be computed: which way each parameter use is contracted, and how the examples are
/// blocked so that everything fits into the memory budget. Decided before any work starts.
namespace gradgram::ntk {

/// What BLIS keeps per thread for its packed panels: part of every budget.
inline constexpr std::size_t kBlasBytes = std::size_t{8} << 20;

/// One use of a weight (and a bias) as a reverse pass reports it, and what was decided about it.
struct PlannedUse {
  bool convolution = false;
  ConvGeometry geometry;            ///< of a convolution
  std::size_t positions = 1;        ///< L: output pixels of a convolution
  std::size_t d_in = 0, d_out = 0;  ///< a convolution's d_in is its patch
  std::size_t weight = 0;
  std::size_t bias = kNoParameter;
  double weight_scale = 1, bias_scale = 1;

  Way way = Way::Materialize;
  /// Whether this is the first use of the parameter in a reverse pass: it overwrites, later ones add.
  bool weight_first = true, bias_first = true;
  bool alone = true;  ///< no other use has its weight or its bias

  /// A dense layer at L positions is a 1 x 1 convolution of 1 x L pixels.
  ConvGeometry position_geometry() const;
  /// Elements of its inputs and its output cotangents, of one example and seed.
  std::size_t input_size() const;
  std::size_t cotangent_size() const { return positions * d_out; }
};

/// What a module asks for, learned from one forward and one reverse pass of one example.
struct ModuleProfile {
  std::vector<PlannedUse> uses;  ///< in the order in which a reverse pass reports them
  std::vector<std::string> parameter_names;
  std::vector<std::size_t> parameter_sizes;
  std::size_t outputs = 0;
  std::size_t element_bytes = 0;  ///< of T
  std::size_t input_bytes = 0;    ///< one example
  std::size_t weight_bytes = 0;
  /// Arena that the passes of a block take at the most: for each example, and whatever their number.
  std::size_t tape_bytes = 0, tape_fixed_bytes = 0;

  /// The part of them that a forward pass leaves for reverse passes, and the tape with its lists beside it.
  std::size_t forward_bytes = 0, forward_fixed_bytes = 0, forward_list_bytes = 0;

  std::size_t tape_of(std::size_t examples) const { return tape_fixed_bytes + examples * tape_bytes; }
};

/// Throws ShapeError when `example` [1, ...] is not an input of the module or its output is not [1, O].
template <class T>
ModuleProfile profile(const Module<T>& module, TensorView<const T> example);
/// Of the first of the inputs [n, ...], n > 0, given in f64.
template <class T>
ModuleProfile profile_of_first(const Module<T>& module, TensorView<const double> inputs);
/// What evaluate() takes beside inputs and weights: outputs and tapes.
template <class T>
std::size_t evaluation_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t examples,
                             std::size_t workers);

struct PlanRequest {
  std::size_t rows = 0;     ///< examples of x
  std::size_t columns = 0;  ///< examples of x'; equal to `rows` when symmetric
  bool symmetric = true;
  std::size_t seeds = 1;  ///< reverse passes per example
  bool full = false;      ///< the seeds stay apart as rows; otherwise they are summed over
  bool per_parameter = false;
  /// Products of rows in bfloat16, rounded as they are packed for a tile.
  bool bf16 = false;
  /// The kernel goes to a file: it takes no memory, but every worker holds one more tile in T.
  bool result_in_file = false;
  bool packed_file = false;  ///< which holds half of a symmetric kernel
  std::size_t memory = 0;
  std::size_t workers = 1;
  /// Ways that are not chosen by price: name of a weight and its way.
  std::vector<std::pair<std::string, Way>> ways;
  KernelRates rates;
  Spill spill = Spill::Never;
  ScratchSpace scratch;        ///< where to, and how much
  bool scratch_named = false;  ///< by the caller, who wants to know when it does not do
};

/// The decisions. Any values of the four block sizes and of `spilled` give the same bits; they decide time,
/// memory and disk alone.
struct Plan {
  PlanRequest request;
  std::vector<PlannedUse> uses;
  std::vector<std::string> parameter_names;
  std::vector<std::size_t> parameter_sizes;
  /// Where parameter i stands in a materialized row, kNoParameter when it is not materialized.
  std::vector<std::size_t> columns;
  std::size_t row_width =
      0;  ///< elements of a materialized row of one seed: padded sizes of all such parameters
  /// Columns [0, scratch_width) reach packed rows by way of a scratch that lives as long as a tape block: of
  /// parameters that are used several times, and all of them when the seeds stay apart. The others are packed
  /// as they are formed, a few examples at a time.
  std::size_t scratch_width = 0;
  std::size_t element_bytes = 0;

  std::size_t resident = 0;  ///< examples of x whose factors are held at once
  std::size_t streamed = 0;  ///< examples of x' (or earlier ones of x) that pass by; 0 when all are resident
  std::size_t tape_block = 1;  ///< examples on one tape
  std::size_t tile = 1;        ///< examples on a side of a tile
  /// Gradients that meet in products are packed for them as soon as they are known, once; otherwise they stay
  /// as rows and every tile packs its own. Needs room for whole groups of rows, and the scratch of
  /// scratch_bytes().
  bool packed = false;

  /// Seeds (of those that lie side by side) whose materialized rows are held at once. Fewer than
  /// seeds_per_row() take as many rounds, between which the sums of all tiles are kept. The bits are the
  /// same.
  std::size_t round_seeds = 1;
  /// Between rounds the forward passes are kept, too; otherwise every round repeats them.
  bool keeps_passes = false;
  /// Factors that several resident blocks meet are written to a scratch file when they are known, in blocks
  /// of `streamed` examples, and read where they pass by. Otherwise the examples are passed again. Of a
  /// symmetric kernel these are the examples of earlier resident blocks, where a block of the stream then
  /// ends too.
  bool spilled = false;

  std::size_t result_bytes = 0;   ///< the kernel, and those per parameter; 0 in a file
  std::size_t fixed_bytes = 0;    ///< inputs and weights
  std::size_t example_bytes = 0;  ///< factors of one example, as rows
  /// Packed factors: one row of the inputs of outer uses, one row (of rows_per_example()) of the others, and
  /// what stays as it is of one example.
  std::size_t packed_input_bytes = 0, packed_row_bytes = 0, plain_bytes = 0;
  std::size_t tape_bytes = 0, tape_fixed_bytes = 0;        ///< tape of one example, and of all in a block
  std::size_t forward_bytes = 0, forward_fixed_bytes = 0;  ///< what a forward pass leaves of it
  std::size_t forward_list_bytes = 0;                      ///< and outside the arena
  /// Arena of one worker: tape or tile, whichever is larger.
  std::size_t arena_bytes() const;
  /// The tile's part of it.
  std::size_t tile_bytes() const;
  /// Rows (columns) of the sums of a tile with `rows` of them: packed ones begin where a group does.
  std::size_t padded_side(std::size_t rows) const;
  /// Gradients on their way into packed rows, of one worker: part of the arena's.
  std::size_t scratch_bytes() const;
  /// Factors of that many examples.
  std::size_t factor_bytes(std::size_t examples) const;
  std::size_t rounds() const { return (seeds_per_row() + round_seeds - 1) / round_seeds; }
  /// Resident blocks.
  std::size_t blocks() const { return resident == 0 ? 1 : (request.rows + resident - 1) / resident; }
  Reuse reuse() const;
  /// Blocks of the scratch file, how many of them are read in all, and the file's bytes; 0 unless spilled.
  std::size_t spilled_blocks() const;
  std::size_t spilled_reads() const;
  std::size_t spilled_bytes() const;
  /// What is kept between rounds, the sums of all tiles and perhaps forward passes; 0 with one.
  std::size_t kept_bytes() const;
  /// The arena of the forward pass of one tape block.
  std::size_t kept_pass_bytes() const;
  /// The tile as a file takes it, of one worker; 0 when the kernel stays in memory.
  std::size_t staged_bytes() const;
  /// Everything, including what BLAS keeps for packing.
  std::size_t total_bytes() const;

  /// The way of every weight, by name, in the order of the forward pass: PlanRequest::ways that force them.
  std::vector<std::pair<std::string, Way>> ways() const;
  /// Whether any use is contracted this way.
  bool has(Way way) const;
  /// Rows that one example adds to a product: its seeds when they stay apart, otherwise one.
  std::size_t rows_per_example() const { return request.full ? request.seeds : 1; }
  /// Seeds that lie side by side in such a row.
  std::size_t seeds_per_row() const { return request.full ? 1 : request.seeds; }
};

/// Ways are chosen by price (ntk/cost.hpp). As long as the factors of all examples fit they depend on the
/// network, the reduction, the precision and the rates alone: a part of a kernel has the bits of the whole.
/// Otherwise those are taken that make the predicted time least, passes that are repeated included. Throws
/// BudgetError with the least budget that would do, ArgumentError when a forced way names no weight or one
/// that cannot be contracted so.
Plan plan_kernel(const ModuleProfile& profile, const PlanRequest& request);
/// The blocks for given ways. Throws BudgetError.
Plan plan_blocks(const ModuleProfile& profile, const PlanRequest& request, std::vector<PlannedUse> uses);
/// The smallest blocks for given ways, whether or not they fit: total_bytes() is the least that would do.
Plan least_plan(const ModuleProfile& profile, const PlanRequest& request, std::vector<PlannedUse> uses);
/// Chooses `resident`, `streamed`, `packed` and `round_seeds` for the plan's tile and tape block, the most
/// examples that the budget holds; with `whole_tiles` blocks are multiples of the tile. Returns whether
/// anything fits; when not, the plan is the smallest.
bool fit_blocks(Plan& plan, bool whole_tiles);

/// Where the factors of all examples are held and tiles are few: their side from the request's number of
/// workers, as large as keeps all of them busy. Larger tiles fetch less from memory. Within the budget; not
/// for a file, whose tiles are the same for any number of workers.
void deal_tiles(Plan& plan);
/// The same for the diagonal of a symmetric request: `resident` is the examples whose factors all workers
/// together hold (none unless the seeds stay apart), a tile is one example.
Plan plan_diagonal(const ModuleProfile& profile, const PlanRequest& request);
/// The least budget with which it does not throw.
std::size_t least_diagonal_bytes(const ModuleProfile& profile, const PlanRequest& request);

/// Rows or columns of a tile, padded for gram_product.
std::size_t gram_padded(std::size_t count, std::size_t element_bytes);
/// A panel of a product: columns [begin, begin + depth).
struct Panel {
  std::size_t begin, depth;
};
/// The panels of `width` columns from `begin` on.
std::vector<Panel> panels_of(std::size_t begin, std::size_t width, std::size_t element_bytes);
/// Columns in a panel of a product over `width` columns: panels of about equal size, at most kPanelColumns,
/// whole cache lines.
std::size_t gram_depth(std::size_t width, std::size_t element_bytes);

/// Row stride, in elements, of a matrix with `width` columns: whole cache lines, and not a multiple of 4 KiB,
/// where the rows would compete for the same cache sets.
std::size_t padded_stride(std::size_t width, std::size_t element_bytes);

}  // namespace gradgram::ntk
