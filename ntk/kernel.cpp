#include "ntk/kernel.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <optional>

#include "engine/bf16.hpp"
#include "engine/cpu.hpp"
#include "ntk/contract.hpp"
#include "ntk/cost.hpp"
#include "ntk/factors.hpp"
#include "ntk/passes.hpp"
#include "ntk/plan.hpp"
#include "ntk/planned_kernel.hpp"
#include "ntk/spilled_factors.hpp"
#include "ntk/thread_seconds.hpp"
#include "ntk/tile_store.hpp"

namespace gradgram::ntk {
namespace {

/// A contiguous run of examples of x or x'.
struct Span {
  std::size_t begin = 0, count = 0;
  std::size_t end() const { return begin + count; }
};

/// [first, first + total) in runs of `step`.
std::vector<Span> split(std::size_t total, std::size_t step, std::size_t first = 0) {
  std::vector<Span> spans;
  for (std::size_t begin = 0; begin < total; begin += step)
    spans.push_back({first + begin, std::min(step, total - begin)});
  return spans;
}

/// The tiles of a block of `rows` examples against `columns` (or, symmetric, against itself: lower triangle).
/// The largest come first: the others, those on the diagonal among them, even out the end of the work.
std::vector<TileRange> tiles_of(std::size_t rows, std::size_t columns, bool symmetric, std::size_t tile) {
  std::vector<TileRange> tiles;
  for (const Span& r : split(rows, tile)) {
    for (const Span& c : split(symmetric ? r.end() : columns, tile)) {
      tiles.push_back({r.begin, r.count, c.begin, c.count, symmetric && c.begin == r.begin});
    }
  }
  const auto entries = [](const TileRange& range) {
    return range.rows * (range.diagonal ? (range.rows + 1) / 2 : range.columns);
  };
  std::stable_sort(tiles.begin(), tiles.end(),
                   [&](const TileRange& a, const TileRange& b) { return entries(a) > entries(b); });
  return tiles;
}

/// One step of the schedule: first gradients, then the tiles that they make possible.
struct Step {
  bool load_resident = false;
  Span resident;
  Span streamed;  ///< empty: the tiles within the resident block
};

/// The steps in their order. None is stored: blocks of single examples would have more of them than memory.
class Schedule {
 public:
  explicit Schedule(const Plan& plan)
      : rows_(plan.request.rows),
        symmetric_(plan.request.symmetric),
        resident_(plan.resident),
        streamed_(plan.streamed),
        cut_(symmetric_ && plan.reuse() == Reuse::Spilled),
        columns_(symmetric_ ? 0 : plan.request.columns) {
    for (std::size_t begin = 0; begin < rows_; begin += resident_) {
      first_.push_back(size_);
      size_ += (symmetric_ ? 1 : 0) + runs(symmetric_ ? begin : columns_);
    }
  }

  std::size_t size() const { return size_; }
  Step operator[](std::size_t number) const {
    const auto block =
        static_cast<std::size_t>(std::upper_bound(first_.begin(), first_.end(), number) - first_.begin()) - 1;
    const std::size_t begin = block * resident_;
    Step step;
    step.resident = {begin, std::min(resident_, rows_ - begin)};
    number -= first_[block];
    step.load_resident = number == 0;
    if (!symmetric_) {
      step.streamed = run(columns_, number);
    } else if (number > 0) {
      step.streamed = run(begin, number - 1);
    }
    return step;
  }

 private:
  /// The runs in which examples [0, total) pass by; of earlier resident blocks, when those are spilled.
  std::size_t runs(std::size_t total) const {
    if (total == 0) return 0;
    return cut_ ? total / resident_ * runs_of_block() : (total + streamed_ - 1) / streamed_;
  }
  Span run(std::size_t total, std::size_t number) const {
    if (!cut_) return {number * streamed_, std::min(streamed_, total - number * streamed_)};
    const std::size_t within = number % runs_of_block() * streamed_;
    return {number / runs_of_block() * resident_ + within, std::min(streamed_, resident_ - within)};
  }
  std::size_t runs_of_block() const { return (resident_ + streamed_ - 1) / streamed_; }

  std::size_t rows_;
  bool symmetric_;
  std::size_t resident_, streamed_;
  bool cut_;  ///< runs end where resident blocks do
  std::size_t columns_;
  std::vector<std::size_t> first_;  ///< steps before those of every resident block
  std::size_t size_ = 0;
};

/// Puts every tile and its mirror image into tensors.
template <class T>
class MemoryStore final : public TileStore {
 public:
  MemoryStore(KernelMatrix<T>& result, const Plan& plan) : result_(result), plan_(plan) {}

  void put(const PlacedTile& tile, std::size_t) override {
    T* const values =
        (tile.parameter == kAllParameters ? result_.values : result_.per_parameter[tile.parameter]).data();
    const std::size_t m = plan_.request.columns;
    const std::size_t group = tile.group;
    const auto position = [&](std::size_t i, std::size_t j, std::size_t k, std::size_t l) {
      return ((i * m + j) * group + k) * group + l;
    };
    tile.each_entry<T>([&](std::size_t i, std::size_t j, std::size_t k, std::size_t l, T value) {
      i += tile.place.row;
      j += tile.place.column;
      values[position(i, j, k, l)] = value;
      if (plan_.request.symmetric) values[position(j, i, l, k)] = value;
    });
  }

 private:
  KernelMatrix<T>& result_;
  const Plan& plan_;
};

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Processor seconds that one worker spent; a cache line of its own.
struct alignas(kAlignment) WorkerSeconds {
  double passes = 0, contraction = 0;
};

template <class T>
class Builder {
 public:
  Builder(const Module<T>& module, TensorView<const T> x, TensorView<const T> versus,
          const KernelOptions& options, const Plan& plan, const Workers& workers, TileStore& store)
      : module_(module),
        x_(x),
        versus_(versus),
        options_(options),
        plan_(plan),
        workers_(workers),
        store_(store),
        resident_(plan, plan.resident),
        streamed_(plan, plan.streamed),
        seconds_(workers.count()) {
    for (std::size_t w = 0; w < workers.count(); ++w) {
      arenas_.push_back(std::make_unique<Arena>(plan.arena_bytes()));
    }
  }

  void build() {
    const auto begin = Clock::now();
    const Schedule steps(plan_);
    const std::size_t rounds = plan_.rounds();
    if (rounds > 1 && steps.size() > 1) {
      throw ArgumentError("kernel: a plan in rounds must hold all examples at once");
    }
    if (plan_.reuse() == Reuse::Spilled) begin_spilling(steps);
    total_pieces_ = 0;
    // Places of examples: of a file that goes on most may stay empty.
    std::vector<bool> resident_filled(plan_.resident, false);
    std::vector<bool> streamed_filled(plan_.streamed, spilled_.has_value());
    const auto count = [this](const std::vector<Span>& blocks, std::vector<bool>& filled) {
      total_pieces_ += blocks.size();
      for (const Span& block : blocks) {
        for (std::size_t i = block.begin; i < block.end(); ++i) filled[i] = true;
      }
    };
    for (std::size_t s = 0; s < steps.size(); ++s) {
      const std::vector<TileRange> ranges = tiles(steps[s]);
      if (steps[s].load_resident) count(resident_blocks(steps, s), resident_filled);
      count(streamed_blocks(steps[s], s, ranges), streamed_filled);
      total_pieces_ += ranges.size();
    }
    total_pieces_ *= rounds;
    supply(resident_, resident_filled);
    supply(streamed_, streamed_filled);
    for (std::size_t round = 0; round < rounds; ++round) {
      for (std::size_t s = 0; s < steps.size(); ++s) {
        const Step step = steps[s];
        if (step.load_resident) {
          load(x_, options_.labels, step.resident, resident_blocks(steps, s), resident_, round,
               resident_passes_);
          spill_resident(step);
        }
        const std::vector<TileRange> ranges = tiles(step);
        if (!within(step)) load_streamed(step, s, ranges, round);
        fetch_next(steps, s);
        contract(step, ranges, within(step) ? resident_ : streamed_, round);
      }
    }
    if (options_.timings == nullptr) return;
    *options_.timings = {};
    for (const WorkerSeconds& worker : seconds_) {
      options_.timings->passes += worker.passes;
      options_.timings->contraction += worker.contraction;
    }
    if (spilled_) {
      options_.timings->writing = spilled_->writing();
      options_.timings->reading = spilled_->reading();
      options_.timings->spilled_bytes = spilled_->written_bytes();
    }
    options_.timings->wall = seconds_since(begin);
  }

 private:
  /// A block of a spilled stream, over all steps.
  struct Again {
    std::vector<bool> needed;  ///< of its examples
    std::size_t uses = 0;      ///< steps
    std::size_t first = 0;     ///< number of the first of them
    std::size_t reads = 0;     ///< from the disk, that are still to come
  };

  static bool within(const Step& step) { return step.streamed.count == 0; }

  static TilePlace place(const Step& step, const TileRange& range) {
    const std::size_t column = within(step) ? step.resident.begin : step.streamed.begin;
    return {step.resident.begin + range.row, range.rows, column + range.column, range.columns,
            range.diagonal};
  }

  void supply(Factors<T>& factors, const std::vector<bool>& filled) {
    const auto begin = Clock::now();
    factors.supply(static_cast<std::size_t>(std::count(filled.begin(), filled.end(), true)), workers_,
                   options_.stop);
    // The plan counts new memory among the passes, which would have it cleared otherwise.
    for (WorkerSeconds& worker : seconds_) worker.passes += seconds_since(begin);
  }

  /// The tiles of a step that are still to be computed.
  std::vector<TileRange> tiles(const Step& step) const {
    std::vector<TileRange> ranges =
        tiles_of(step.resident.count, within(step) ? step.resident.count : step.streamed.count, within(step),
                 plan_.tile);
    std::erase_if(ranges, [&](const TileRange& range) { return store_.has(place(step, range)); });
    return ranges;
  }

  /// The tape blocks of `count` examples that hold at least one that is needed.
  std::vector<Span> blocks(std::size_t count, const std::vector<bool>& needed) const {
    std::vector<Span> result = split(count, plan_.tape_block);
    std::erase_if(result, [&](const Span& block) {
      const auto begin = needed.begin() + static_cast<std::ptrdiff_t>(block.begin);
      return std::find(begin, begin + static_cast<std::ptrdiff_t>(block.count), true) ==
             begin + static_cast<std::ptrdiff_t>(block.count);
    });
    return result;
  }

  /// What the tiles of all steps on the resident block that step `first` loads need of it.
  std::vector<Span> resident_blocks(const Schedule& steps, std::size_t first) const {
    const std::size_t count = steps[first].resident.count;
    std::vector<bool> needed(count, false);
    for (std::size_t s = first; s < steps.size() && (s == first || !steps[s].load_resident); ++s) {
      for (const TileRange& range : tiles(steps[s])) {
        for (std::size_t i = 0; i < range.rows; ++i) needed[range.row + i] = true;
        if (!within(steps[s])) continue;
        for (std::size_t i = 0; i < range.columns; ++i) needed[range.column + i] = true;
      }
    }
    if (spilled_ && plan_.request.symmetric) need_spilled(steps[first].resident, needed);
    return blocks(count, needed);
  }

  /// What is going to be spilled of a resident block.
  void need_spilled(const Span& resident, std::vector<bool>& needed) const {
    for (const Span& block : split(resident.count, plan_.streamed, resident.begin)) {
      const auto spilled = again_.find(block.begin);
      if (spilled == again_.end()) continue;
      for (std::size_t i = 0; i < block.count; ++i) {
        if (spilled->second.needed[i]) needed[block.begin - resident.begin + i] = true;
      }
    }
  }

  static void need_columns(const std::vector<TileRange>& ranges, std::vector<bool>& needed) {
    for (const TileRange& range : ranges) {
      for (std::size_t i = 0; i < range.columns; ++i) needed[range.column + i] = true;
    }
  }

  /// What step number `number` passes of its stream, when the disk does what it should.
  std::vector<Span> streamed_blocks(const Step& step, std::size_t number,
                                    const std::vector<TileRange>& ranges) const {
    if (within(step) || ranges.empty()) return {};
    std::vector<bool> needed(step.streamed.count, false);
    if (spilled_) {
      const Again& again = again_.at(step.streamed.begin);
      if (plan_.request.symmetric || again.first != number) return {};
      needed = again.needed;
    }
    need_columns(ranges, needed);
    return blocks(step.streamed.count, needed);
  }

  /// Opens the scratch file for the blocks of the stream that are going to be written to it: those that tiles
  /// need which are still to be computed, of a rectangle when that is more than once.
  void begin_spilling(const Schedule& steps) {
    for (std::size_t s = 0; s < steps.size(); ++s) {
      const std::vector<TileRange> ranges = tiles(steps[s]);
      if (within(steps[s]) || ranges.empty()) continue;
      Again& again = again_.try_emplace(steps[s].streamed.begin).first->second;
      if (again.uses++ == 0) again.first = s;
      again.reads = plan_.request.symmetric ? again.uses : again.uses - 1;
      again.needed.resize(steps[s].streamed.count, false);
      need_columns(ranges, again.needed);
    }
    const auto written = std::count_if(again_.begin(), again_.end(),
                                       [&](const auto& block) { return is_written(block.second); });
    spilled_.emplace(plan_, options_, workers_, static_cast<std::size_t>(written));
    if (!spilled_->open()) {
      spilled_.reset();
      again_.clear();
      return;
    }
    std::size_t reads = 0;
    for (const auto& [first, again] : again_) reads += again.reads;
    spill_work_.to_write = static_cast<std::size_t>(written) * spilled_->block_bytes();
    spill_work_.to_read = reads * spilled_->block_bytes();
    tell_spilling();
  }

  void tell_spilling() const {
    if (options_.spilling) options_.spilling(spill_work_);
  }
  /// After a block was written, or refused.
  void count_write(std::size_t begin, Again& again) {
    if (spilled_->holds(begin)) {
      spill_work_.written += spilled_->block_bytes();
    } else {
      spill_work_.to_write -= spilled_->block_bytes();
      lose(again);
    }
    tell_spilling();
  }
  /// The disk does not hold a block: it is not going to be read.
  void lose(Again& again) {
    spill_work_.to_read -= again.reads * spilled_->block_bytes();
    again.reads = 0;
  }
  bool read_spilled(std::size_t begin) {
    if (!spilled_->holds(begin)) return false;
    Again& again = again_.at(begin);
    const bool done = spilled_->read(begin, streamed_);
    if (done) {
      spill_work_.read += spilled_->block_bytes();
      --again.reads;
    } else {
      lose(again);
    }
    tell_spilling();
    return done;
  }

  void spill_resident(const Step& step) {
    if (!spilled_ || !plan_.request.symmetric) return;
    for (const Span& block : split(step.resident.count, plan_.streamed, step.resident.begin)) {
      const auto again = again_.find(block.begin);
      if (again == again_.end()) continue;
      spilled_->write(block.begin, resident_, block.begin - step.resident.begin, block.count, streamed_);
      count_write(block.begin, again->second);
    }
  }

  void load_streamed(const Step& step, std::size_t number, const std::vector<TileRange>& ranges,
                     std::size_t round) {
    const bool symmetric = plan_.request.symmetric;
    if (spilled_ && !ranges.empty() && read_spilled(step.streamed.begin)) return;
    std::vector<Span> passed = streamed_blocks(step, number, ranges);
    if (passed.empty() && !ranges.empty()) {
      // The disk failed.
      std::vector<bool> needed(step.streamed.count, false);
      need_columns(ranges, needed);
      passed = blocks(step.streamed.count, needed);
      total_pieces_ += passed.size();
    }
    load(symmetric ? x_ : versus_, symmetric ? options_.labels : options_.versus_labels, step.streamed,
         passed, streamed_, round, streamed_passes_);
    if (!spilled_ || symmetric || ranges.empty()) return;
    Again& again = again_.at(step.streamed.begin);
    if (again.first != number || !is_written(again)) return;
    spilled_->write(step.streamed.begin, streamed_);
    count_write(step.streamed.begin, again);
  }

  /// Has the next block that is read come from the disk while tiles are contracted.
  void fetch_next(const Schedule& steps, std::size_t number) {
    if (!spilled_) return;
    for (std::size_t s = number + 1; s < steps.size(); ++s) {
      if (within(steps[s]) || tiles(steps[s]).empty()) continue;
      spilled_->fetch(steps[s].streamed.begin);
      return;
    }
  }

  template <class Piece>
  void run(std::size_t pieces, const Piece& piece) {
    Progress progress;
    if (options_.progress) {
      progress = [this](std::size_t done, std::size_t) {
        options_.progress(done_pieces_ + done, total_pieces_);
      };
    }
    workers_.run(pieces, piece, progress, options_.stop);
    done_pieces_ += pieces;
  }

  void load(TensorView<const T> x, std::span<const std::int32_t> labels, Span examples,
            const std::vector<Span>& blocks, const Factors<T>& factors, std::size_t round,
            std::vector<std::unique_ptr<KeptPass<T>>>& passes) {
    const bool keep = plan_.keeps_passes && plan_.rounds() > 1;
    if (keep) passes.resize(blocks.size());
    run(blocks.size(), [&](std::size_t index, std::size_t worker) {
      const double start = thread_seconds();
      const std::size_t begin = examples.begin + blocks[index].begin;
      const std::size_t count = blocks[index].count;
      const TensorView<const T> block = x.slice(begin, begin + count);
      if (keep && round == 0) {
        passes[index] =
            std::make_unique<KeptPass<T>>(module_, block, plan_.kept_pass_bytes(), *arenas_[worker]);
      }
      record_factors(module_, plan_, block, options_, labels.empty() ? labels : labels.subspan(begin, count),
                     factors, blocks[index].begin, *arenas_[worker], round,
                     keep ? passes[index].get() : nullptr);
      if (keep && round + 1 == plan_.rounds()) passes[index].reset();
      seconds_[worker].passes += thread_seconds() - start;
    });
    // Only now: whoever touches memory first has it cleared, and that is shared work.
    factors.pad(examples.count);
  }

  void contract(const Step& step, const std::vector<TileRange>& ranges, const Factors<T>& columns,
                std::size_t round) {
    if (plan_.rounds() > 1 && round == 0) {
      for (const TileRange& range : ranges) {
        kept_.push_back(kept_memory_.tensor<double>({tile_sums<T>(plan_, range)}).data());
      }
    }
    const double weight =
        options_.reduce == Reduce::TraceMean ? 1.0 / static_cast<double>(plan_.request.seeds) : 1.0;
    run(ranges.size(), [&](std::size_t index, std::size_t worker) {
      const double start = thread_seconds();
      contract_tile<T>(plan_, resident_, columns, ranges[index], *arenas_[worker],
                       [&](std::size_t parameter, const Tile& tile) {
                         store_.put(
                             {parameter, place(step, ranges[index]), plan_.rows_per_example(), weight, tile},
                             worker);
                       },
                       {round, kept_.empty() ? nullptr : kept_[index]});
      seconds_[worker].contraction += thread_seconds() - start;
    });
  }

  bool is_written(const Again& again) const { return plan_.request.symmetric || again.uses > 1; }

  const Module<T>& module_;
  TensorView<const T> x_, versus_;
  const KernelOptions& options_;
  const Plan& plan_;
  const Workers& workers_;
  TileStore& store_;
  Factors<T> resident_, streamed_;
  std::map<std::size_t, Again> again_;  ///< by first example
  std::optional<SpilledFactors<T>> spilled_;
  SpillWork spill_work_;
  std::vector<std::unique_ptr<KeptPass<T>>> resident_passes_, streamed_passes_;  ///< of their tape blocks
  std::vector<std::unique_ptr<Arena>> arenas_;                                   ///< per worker
  std::vector<WorkerSeconds> seconds_;                                           ///< per worker
  Arena kept_memory_{kAlignment};
  std::vector<double*> kept_;  ///< sums of every tile, between rounds
  std::size_t total_pieces_ = 0;
  std::size_t done_pieces_ = 0;
};

template <class T>
KernelMatrix<T> empty_kernel(const Module<T>& module, std::size_t n, std::size_t m,
                             const KernelOptions& options) {
  const std::size_t outputs = module.outputs();
  const Shape shape = options.reduce == Reduce::Full ? Shape{n, m, outputs, outputs} : Shape{n, m};
  KernelMatrix<T> result;
  result.values = Tensor<T>(shape);
  if (options.per_parameter) {
    for (std::size_t p = 0; p < module.parameters().count(); ++p) {
      result.parameter_names.push_back(module.parameters().name(p));
      result.per_parameter.emplace_back(shape);
    }
  }
  return result;
}

}  // namespace

std::string reduce_name(Reduce reduce, std::size_t output) {
  switch (reduce) {
    case Reduce::Full:
      return "full";
    case Reduce::TraceMean:
      return "trace-mean";
    case Reduce::TraceSum:
      return "trace-sum";
    case Reduce::Output:
      return "output " + std::to_string(output);
    case Reduce::TrueClass:
      return "true-class";
  }
  throw ArgumentError("reduce_name: unknown reduction " + std::to_string(static_cast<int>(reduce)));
}

namespace {

/// columns = 0: symmetric.
template <class T>
PlanRequest kernel_request(std::size_t outputs, std::size_t rows, std::size_t columns,
                           const KernelOptions& options, std::size_t workers, bool result_in_file) {
  if (options.bf16 && sizeof(T) != sizeof(float)) throw ArgumentError("kernel: bf16 must be off in f64");
  if (options.bf16 && bf16_kernels() == nullptr) {
    throw ArgumentError("kernel: bf16 needs a processor with AVX512_BF16, which " + cpu_info().name +
                        " with instruction set " + std::string(isa_name(active_isa())) + " does not give");
  }
  PlanRequest request;
  request.bf16 = options.bf16;
  request.rows = rows;
  request.symmetric = columns == 0;
  request.columns = columns == 0 ? rows : columns;
  request.seeds = seed_count(options.reduce, outputs);
  request.full = options.reduce == Reduce::Full;
  request.per_parameter = options.per_parameter;
  request.result_in_file = result_in_file;
  request.memory = options.memory == 0 ? cpu_info().memory_bytes / 2 : options.memory;
  request.workers = workers;
  request.ways = options.ways;
  if (options.rates != nullptr) request.rates = *options.rates;
  request.spill = options.spill;
  if (options.spill == Spill::Never) return request;
  request.scratch_named = !options.scratch.empty();
  request.scratch = scratch_space(request.scratch_named ? options.scratch : default_scratch_folder());
  if (!request.scratch.problem.empty() && (request.scratch_named || options.spill == Spill::Always)) {
    throw ArgumentError("kernel: the scratch folder " + request.scratch.folder.string() +
                        " cannot be used: " + request.scratch.problem);
  }
  return request;
}

}  // namespace

template <class T>
Plan plan_for(const Module<T>& module, TensorView<const T> x, const TensorView<const T>* versus,
              const KernelOptions& options, std::size_t workers, bool result_in_file) {
  return plan_kernel(
      profile<T>(module, x.slice(0, 1)),
      kernel_request<T>(module.outputs(), x.shape()[0], versus == nullptr ? 0 : versus->shape()[0], options,
                        workers, result_in_file));
}

template <class T>
std::size_t least_kernel_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t rows,
                               std::size_t columns, const KernelOptions& options, std::size_t workers,
                               bool result_in_file) {
  return least_kernel_bytes(
      profile, kernel_request<T>(module.outputs(), rows, columns, options, workers, result_in_file));
}

template <class T>
void planned_tiles(const Module<T>& module, TensorView<const T> x, const TensorView<const T>* versus,
                   const KernelOptions& options, const Plan& plan, const Workers& workers, TileStore& store) {
  if (options.planned) options.planned(plan);
  Builder<T>(module, x, versus == nullptr ? TensorView<const T>() : *versus, options, plan, workers, store)
      .build();
}

template <class T>
KernelMatrix<T> planned_kernel(const Module<T>& module, TensorView<const T> x,
                               const TensorView<const T>* versus, const KernelOptions& options,
                               const Plan& plan, const Workers& workers) {
  KernelMatrix<T> result = empty_kernel(module, plan.request.rows, plan.request.columns, options);
  result.block_examples = plan.resident;
  result.planned_bytes = plan.total_bytes();
  result.ways = plan.ways();
  MemoryStore<T> store(result, plan);
  planned_tiles(module, x, versus, options, plan, workers, store);
  return result;
}

template <class T>
KernelMatrix<T> kernel(const Module<T>& module, TensorView<const T> x, const KernelOptions& options,
                       const Workers& workers) {
  check_inputs("kernel", "x", x.shape(), module.input_shape());
  check_reduction("kernel", options, module.outputs(), x.shape()[0]);
  if (x.shape()[0] == 0) return empty_kernel(module, 0, 0, options);
  return planned_kernel<T>(module, x, nullptr, options,
                           plan_for<T>(module, x, nullptr, options, workers.count()), workers);
}

template <class T>
KernelMatrix<T> kernel(const Module<T>& module, TensorView<const T> x, TensorView<const T> versus,
                       const KernelOptions& options, const Workers& workers) {
  check_inputs("kernel", "x", x.shape(), module.input_shape());
  check_inputs("kernel", "versus", versus.shape(), module.input_shape());
  check_reduction("kernel", options, module.outputs(), x.shape()[0]);
  if (options.reduce == Reduce::TrueClass) {
    check_labels("kernel", "versus_labels", options.versus_labels, module.outputs(), versus.shape()[0]);
  }
  if (x.shape()[0] == 0 || versus.shape()[0] == 0) {
    return empty_kernel(module, x.shape()[0], versus.shape()[0], options);
  }
  return planned_kernel<T>(module, x, &versus, options,
                           plan_for<T>(module, x, &versus, options, workers.count()), workers);
}

#define GRADGRAM_INSTANTIATE(T)                                                                              \
  template Plan plan_for(const Module<T>&, TensorView<const T>, const TensorView<const T>*,                  \
                         const KernelOptions&, std::size_t, bool);                                           \
  template std::size_t least_kernel_bytes(const Module<T>&, const ModuleProfile&, std::size_t, std::size_t,  \
                                          const KernelOptions&, std::size_t, bool);                          \
  template void planned_tiles(const Module<T>&, TensorView<const T>, const TensorView<const T>*,             \
                              const KernelOptions&, const Plan&, const Workers&, TileStore&);                \
  template KernelMatrix<T> planned_kernel(const Module<T>&, TensorView<const T>, const TensorView<const T>*, \
                                          const KernelOptions&, const Plan&, const Workers&);                \
  template KernelMatrix<T> kernel(const Module<T>&, TensorView<const T>, const KernelOptions&,               \
                                  const Workers&);                                                           \
  template KernelMatrix<T> kernel(const Module<T>&, TensorView<const T>, TensorView<const T>,                \
                                  const KernelOptions&, const Workers&);
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk
