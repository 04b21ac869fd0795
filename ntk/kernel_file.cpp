#include "ntk/kernel_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "engine/bf16.hpp"
#include "ntk/cost.hpp"
#include "ntk/passes.hpp"
#include "ntk/planned_kernel.hpp"

namespace gradgram::ntk {
namespace {

/// Blocks that are whole tiles of a grid of `tile` examples a side. Throws BudgetError.
void follow_grid(Plan& plan, std::size_t tile) {
  plan.tile = tile;
  plan.spilled = false;
  while (!fit_blocks(plan, true) && plan.tape_block > 1) plan.tape_block /= 2;
  if (plan.total_bytes() <= plan.request.memory) {
    choose_reuse(plan, true);
    return;
  }
  throw BudgetError(fmt::format(
      "kernel_to_file: the memory budget ({} bytes) cannot hold tiles of {} examples; the least that would "
      "do is {} bytes",
      plan.request.memory, tile, plan.total_bytes()));
}

std::string fingerprint_of(std::span<const std::int32_t> labels) {
  return hexadecimal(crc32_of(labels.data(), labels.size_bytes()));
}

constexpr const char* kWaysFact = "ways to contract";

/// `0.weight=outer 2.weight=materialize`.
std::string text_of(const std::vector<std::pair<std::string, Way>>& ways) {
  std::string text;
  for (const auto& [weight, way] : ways) {
    text += (text.empty() ? "" : " ") + weight + '=' + std::string(way_name(way));
  }
  return text;
}
/// Those that it can read.
std::vector<std::pair<std::string, Way>> ways_of(const std::string& text) {
  std::vector<std::pair<std::string, Way>> ways;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const std::size_t sign = word.rfind('=');
    for (const Way way : kAllWays) {
      if (sign != std::string::npos && word.substr(sign + 1) == way_name(way)) {
        ways.emplace_back(word.substr(0, sign), way);
      }
    }
  }
  return ways;
}

/// Stands before a store and tells how much of which kind of work is done, in seconds of one worker as the
/// plan expects them. Every tile is one piece of the work, whatever remains are passes; blocks that go to the
/// scratch file and back are told apart from pieces.
class WorkMeter final : public TileStore {
 public:
  WorkMeter(const Plan& plan, TileStore& store, const WorkProgress& work, const Progress& progress)
      : store_(store), work_(work), progress_(progress) {
    const PlanRequest& request = plan.request;
    std::size_t all_pairs = 0;
    for (std::size_t row = 0; row < request.rows; row += plan.tile) {
      const std::size_t end = request.symmetric ? row + 1 : request.columns;
      for (std::size_t column = 0; column < end; column += plan.tile) {
        const TilePlace place{row, std::min(plan.tile, request.rows - row), column,
                              std::min(plan.tile, request.columns - column),
                              request.symmetric && row == column};
        all_pairs += pairs(place);
        if (store.has(place)) continue;
        ++tiles_;
        total_pairs_ += pairs(place);
      }
    }
    const PlanCost cost = plan_cost(plan);
    rounds_ = plan.rounds();
    const std::size_t examples = request.rows + (request.symmetric ? 0 : request.columns);
    tape_block_seconds_ = cost.passes / (cost.passed * static_cast<double>(examples * rounds_)) *
                          static_cast<double>(std::min(plan.tape_block, examples));
    pair_seconds_ = cost.contraction / static_cast<double>(all_pairs);
    // A disk is no quicker for several workers, who all wait for it.
    const double waiting =
        static_cast<double>(request.workers) * (request.workers > 1 ? request.rates.together : 1);
    written_byte_seconds_ = waiting / request.rates.scratch.write;
    read_byte_seconds_ = waiting / request.rates.scratch.read;
  }

  bool has(const TilePlace& place) const override { return store_.has(place); }
  void put(const PlacedTile& tile, std::size_t worker) override {
    store_.put(tile, worker);
    put_pairs_.fetch_add(pairs(tile.place), std::memory_order_relaxed);
    put_tiles_.fetch_add(1, std::memory_order_relaxed);
  }

  /// Nothing done: the clock starts.
  void begin() {
    told_.total = {0, static_cast<double>(total_pairs_) * pair_seconds_};
    work_(told_);
  }
  /// The same for spilled factors, between pieces.
  void spilling(const SpillWork& spilled) {
    if (spilled.written > spilled_.written || spilled.to_write < spilled_.to_write) {
      told_.kind = WorkKind::Writing;
    } else if (spilled.read > spilled_.read || spilled.to_read < spilled_.to_read) {
      told_.kind = WorkKind::Reading;
    }
    spilled_ = spilled;
    constexpr auto kWriting = static_cast<std::size_t>(WorkKind::Writing);
    constexpr auto kReading = static_cast<std::size_t>(WorkKind::Reading);
    told_.done[kWriting] = static_cast<double>(spilled.written) * written_byte_seconds_;
    told_.total[kWriting] = static_cast<double>(spilled.to_write) * written_byte_seconds_;
    told_.done[kReading] = static_cast<double>(spilled.read) * read_byte_seconds_;
    told_.total[kReading] = static_cast<double>(spilled.to_read) * read_byte_seconds_;
    work_(told_);
  }
  /// Called by one thread at a time.
  void piece(std::size_t done, std::size_t total) {
    if (progress_) progress_(done, total);
    if (rounds_ > 1) return round_piece(done, total);
    // Tiles of pieces that are not reported yet may be counted already.
    const std::size_t put_tiles = put_tiles_.load(std::memory_order_relaxed);
    const std::size_t passes = done - std::min(done, put_tiles);
    told_.kind = put_tiles > tiles_seen_ || passes <= passes_seen_ ? WorkKind::Tiles : WorkKind::Passes;
    tiles_seen_ = put_tiles;
    passes_seen_ = std::max(passes_seen_, passes);
    told_.done[0] = static_cast<double>(passes_seen_) * tape_block_seconds_;
    told_.done[1] = static_cast<double>(put_pairs_.load(std::memory_order_relaxed)) * pair_seconds_;
    told_.total[0] = static_cast<double>(total - std::min(total, tiles_)) * tape_block_seconds_;
    work_(told_);
  }

  /// Every round is all passes, then all tiles; they are put in the last.
  void round_piece(std::size_t done, std::size_t total) {
    const std::size_t pieces = total / rounds_;
    const std::size_t blocks = pieces - std::min(pieces, tiles_);
    const std::size_t within = done % pieces;
    const std::size_t passes = done / pieces * blocks + std::min(within, blocks);
    const double tiles = static_cast<double>(rounds_ * tiles_);
    KernelWork work;
    work.kind = within == 0 || within > blocks ? WorkKind::Tiles : WorkKind::Passes;
    work.total = {static_cast<double>(rounds_ * blocks) * tape_block_seconds_,
                  static_cast<double>(total_pairs_) * pair_seconds_};
    work.done = {static_cast<double>(passes) * tape_block_seconds_,
                 tiles > 0 ? static_cast<double>(done - passes) / tiles * work.total[1] : 0};
    work_(work);
  }

 private:
  static std::size_t pairs(const TilePlace& place) {
    return place.diagonal ? place.rows * (place.rows + 1) / 2 : place.rows * place.columns;
  }

  TileStore& store_;
  const WorkProgress& work_;
  const Progress& progress_;
  std::size_t tiles_ = 0, total_pairs_ = 0;  ///< to do
  std::size_t rounds_ = 1;
  double tape_block_seconds_ = 0, pair_seconds_ = 0;
  double written_byte_seconds_ = 0, read_byte_seconds_ = 0;
  KernelWork told_;
  SpillWork spilled_;
  std::atomic<std::size_t> put_tiles_{0}, put_pairs_{0};
  std::size_t tiles_seen_ = 0, passes_seen_ = 0;
};

/// The kernel of a network.
template <class T>
class NetworkTiles final : public TileSource {
 public:
  /// versus = nullptr for the kernel of x with itself.
  NetworkTiles(const Module<T>& module, TensorView<const T> x, const TensorView<const T>* versus,
               const KernelOptions& options, const WorkProgress& work, const Workers& workers)
      : module_(module), x_(x), versus_(versus), options_(options), work_(work), workers_(workers) {
    if (rows() != 0 && columns() != 0) make_plan(options.ways);
  }

  TileGrid grid() const override {
    return {rows(), columns(), versus_ == nullptr, options_.reduce == Reduce::Full ? module_.outputs() : 0,
            plan_.tile};
  }
  /// The ways to contract may depend on the budget.
  void adopt(const Facts& begun_with) override {
    const auto fact = std::find_if(begun_with.begin(), begun_with.end(),
                                   [](const auto& named) { return named.first == kWaysFact; });
    std::vector<std::pair<std::string, Way>> ways = options_.ways;
    if (fact != begun_with.end()) {
      for (const auto& [weight, way] : ways_of(fact->second)) {
        const bool forced = std::any_of(ways.begin(), ways.end(),
                                        [&name = weight](const auto& given) { return given.first == name; });
        if (!forced) ways.emplace_back(weight, way);
      }
    }
    try {
      make_plan(ways);
    } catch (const ArgumentError&) {
      // Another network: facts() will tell.
    }
  }
  void follow(std::size_t tile) override { follow_grid(plan_, tile); }
  void produce(TileStore& store) override {
    if (options_.spill != Spill::Never) {
      // The file has taken its own room by now.
      plan_.request.scratch = scratch_space(plan_.request.scratch.folder);
      follow_grid(plan_, plan_.tile);
    }
    if (!work_) {
      planned_tiles(module_, x_, versus_, options_, plan_, workers_, store);
      return;
    }
    WorkMeter meter(plan_, store, work_, options_.progress);
    meter.begin();
    KernelOptions options = options_;
    options.progress = [&meter](std::size_t done, std::size_t total) { meter.piece(done, total); };
    options.spilling = [&](const SpillWork& spilled) {
      if (options_.spilling) options_.spilling(spilled);
      meter.spilling(spilled);
    };
    planned_tiles(module_, x_, versus_, options, plan_, workers_, meter);
  }
  std::size_t block_examples() const override { return plan_.resident; }
  std::size_t planned_bytes() const override { return plan_.total_bytes(); }

  Facts facts() const override {
    Facts facts = facts_of_process<T>();
    facts.emplace_back("reduction", reduce_name(options_.reduce, options_.output));
    facts.emplace_back("factors of products",
                       options_.bf16 && bf16_kernels() != nullptr ? bf16_kernels()->name : "not rounded");
    facts.emplace_back("kernel",
                       versus_ == nullptr ? "of the inputs with themselves" : "of two sets of inputs");
    facts.emplace_back("inputs (checksum)", fingerprint<T>(x_));
    if (versus_ != nullptr) facts.emplace_back("second inputs (checksum)", fingerprint<T>(*versus_));
    if (options_.reduce == Reduce::TrueClass) {
      facts.emplace_back("labels (checksum)", fingerprint_of(options_.labels));
      if (versus_ != nullptr) {
        facts.emplace_back("second labels (checksum)", fingerprint_of(options_.versus_labels));
      }
    }
    const ParameterSet<T>& parameters = module_.parameters();
    std::string names;
    std::uint32_t weights = 0;
    for (std::size_t p = 0; p < parameters.count(); ++p) {
      const TensorView<const T> value = parameters.value(p);
      names += (names.empty() ? "" : " ") + parameters.name(p) + value.shape().to_string();
      weights = crc32_of(value.data(), value.size() * sizeof(T), weights);
    }
    facts.emplace_back("parameters", names);
    facts.emplace_back("weights (checksum)", hexadecimal(weights));
    // What the module does with them, activations included, shows in its outputs.
    const Tensor<T> outputs = evaluate<T>(module_, x_.slice(0, std::min<std::size_t>(8, rows())), workers_);
    facts.emplace_back("outputs of the first examples (checksum)", fingerprint<T>(outputs.view()));
    facts.emplace_back(kWaysFact, text_of(plan_.ways()));
    return facts;
  }

 private:
  void make_plan(const std::vector<std::pair<std::string, Way>>& ways) {
    KernelOptions options = options_;
    options.ways = ways;
    plan_ = kernel_file_plan<T>(module_, x_, versus_, options, workers_.count());
  }
  std::size_t rows() const { return x_.shape()[0]; }
  std::size_t columns() const { return versus_ == nullptr ? rows() : versus_->shape()[0]; }

  const Module<T>& module_;
  TensorView<const T> x_;
  const TensorView<const T>* versus_;
  const KernelOptions& options_;
  const WorkProgress& work_;
  const Workers& workers_;
  Plan plan_;
};

template <class T>
KernelFile to_file(const Module<T>& module, TensorView<const T> x, const TensorView<const T>* versus,
                   const KernelOptions& options, const KernelDestination& destination,
                   const Workers& workers) {
  if (options.per_parameter) {
    throw ArgumentError("kernel_to_file: per_parameter must be off: such kernels stay in memory");
  }
  NetworkTiles<T> source(module, x, versus, options, destination.work, workers);
  return tiles_to_file<T>(source, destination, workers, options.stop);
}

}  // namespace

template <class T>
Plan kernel_file_plan(const Module<T>& module, TensorView<const T> x, const TensorView<const T>* versus,
                      const KernelOptions& options, std::size_t workers) {
  Plan plan = plan_for<T>(module, x, versus, options, workers, true);
  while (plan.tile > 1 && !fit_blocks(plan, true)) plan.tile /= 2;
  follow_grid(plan, plan.tile);
  return plan;
}

template <class T>
KernelFile kernel_to_file(const Module<T>& module, TensorView<const T> x, const KernelOptions& options,
                          const KernelDestination& destination, const Workers& workers) {
  check_inputs("kernel_to_file", "x", x.shape(), module.input_shape());
  check_reduction("kernel_to_file", options, module.outputs(), x.shape()[0]);
  return to_file<T>(module, x, nullptr, options, destination, workers);
}

template <class T>
KernelFile kernel_to_file(const Module<T>& module, TensorView<const T> x, TensorView<const T> versus,
                          const KernelOptions& options, const KernelDestination& destination,
                          const Workers& workers) {
  check_inputs("kernel_to_file", "x", x.shape(), module.input_shape());
  check_inputs("kernel_to_file", "versus", versus.shape(), module.input_shape());
  check_reduction("kernel_to_file", options, module.outputs(), x.shape()[0]);
  if (options.reduce == Reduce::TrueClass) {
    check_labels("kernel_to_file", "versus_labels", options.versus_labels, module.outputs(),
                 versus.shape()[0]);
  }
  return to_file<T>(module, x, &versus, options, destination, workers);
}

#define GRADGRAM_INSTANTIATE(T)                                                                     \
  template Plan kernel_file_plan(const Module<T>&, TensorView<const T>, const TensorView<const T>*, \
                                 const KernelOptions&, std::size_t);                                \
  template KernelFile kernel_to_file(const Module<T>&, TensorView<const T>, const KernelOptions&,   \
                                     const KernelDestination&, const Workers&);                     \
  template KernelFile kernel_to_file(const Module<T>&, TensorView<const T>, TensorView<const T>,    \
                                     const KernelOptions&, const KernelDestination&, const Workers&);
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk
