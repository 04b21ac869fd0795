#include "ntk/kernel.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

#include "engine/cpu.hpp"
#include "ntk/contract.hpp"
#include "ntk/factors.hpp"
#include "ntk/passes.hpp"
#include "ntk/plan.hpp"
#include "ntk/planned_kernel.hpp"

namespace gradgram::ntk {
namespace {

/// A contiguous run of examples of x or x'.
struct Span {
  std::size_t begin = 0, count = 0;
  std::size_t end() const { return begin + count; }
};

/// [0, total) in runs of `step`.
std::vector<Span> split(std::size_t total, std::size_t step) {
  std::vector<Span> spans;
  for (std::size_t begin = 0; begin < total; begin += step)
    spans.push_back({begin, std::min(step, total - begin)});
  return spans;
}

/// The tiles of a block of `rows` examples against `columns` (or, symmetric, against itself: lower triangle).
/// The full tiles come first: the cheaper diagonal ones even out the end of the work.
std::vector<TileRange> tiles_of(std::size_t rows, std::size_t columns, bool symmetric, std::size_t tile) {
  std::vector<TileRange> tiles;
  std::vector<TileRange> diagonal;
  for (const Span& r : split(rows, tile)) {
    for (const Span& c : split(symmetric ? r.end() : columns, tile)) {
      const bool on_diagonal = symmetric && c.begin == r.begin;
      (on_diagonal ? diagonal : tiles).push_back({r.begin, r.count, c.begin, c.count, on_diagonal});
    }
  }
  tiles.insert(tiles.end(), diagonal.begin(), diagonal.end());
  return tiles;
}

/// One step of the schedule: first gradients, then the tiles that they make possible.
struct Step {
  bool load_resident = false;
  Span resident;
  Span streamed;  ///< empty: the tiles within the resident block
};

std::vector<Step> schedule(const Plan& plan) {
  std::vector<Step> steps;
  for (const Span& resident : split(plan.request.rows, plan.resident)) {
    bool load = true;
    if (plan.request.symmetric) {
      steps.push_back({load, resident, {}});
      load = false;
    }
    const std::size_t stream = plan.request.symmetric ? resident.begin : plan.request.columns;
    if (stream == 0) continue;
    for (const Span& streamed : split(stream, plan.streamed)) {
      steps.push_back({load, resident, streamed});
      load = false;
    }
  }
  return steps;
}

template <class T>
class Builder {
 public:
  Builder(const Module<T>& module, TensorView<const T> x, TensorView<const T> versus,
          const KernelOptions& options, const Plan& plan, const Workers& workers)
      : module_(module),
        x_(x),
        versus_(versus),
        options_(options),
        plan_(plan),
        workers_(workers),
        resident_(plan, plan.resident),
        streamed_(plan, plan.streamed) {
    for (std::size_t w = 0; w < workers.count(); ++w) {
      arenas_.push_back(std::make_unique<Arena>(plan.arena_bytes()));
    }
  }

  KernelMatrix<T> build(const std::vector<std::string>& parameter_names) {
    KernelMatrix<T> result;
    const std::size_t n = plan_.request.rows;
    const std::size_t m = plan_.request.columns;
    const std::size_t outputs = plan_.request.seeds;
    const Shape shape = plan_.request.full ? Shape{n, m, outputs, outputs} : Shape{n, m};
    result.values = Tensor<T>(shape);
    if (plan_.request.per_parameter) {
      result.parameter_names = parameter_names;
      for (std::size_t p = 0; p < parameter_names.size(); ++p) result.per_parameter.emplace_back(shape);
    }
    result.block_examples = plan_.resident;
    result.planned_bytes = plan_.total_bytes();

    const std::vector<Step> steps = schedule(plan_);
    total_pieces_ = 0;
    for (const Step& step : steps) total_pieces_ += pieces_of(step);
    for (const Step& step : steps) {
      if (step.load_resident) load(x_, options_.labels, step.resident, resident_);
      const bool symmetric = plan_.request.symmetric;
      if (step.streamed.count == 0) {
        contract(step, resident_, result);
      } else {
        load(symmetric ? x_ : versus_, symmetric ? options_.labels : options_.versus_labels, step.streamed,
             streamed_);
        contract(step, streamed_, result);
      }
    }
    return result;
  }

 private:
  std::vector<TileRange> tiles(const Step& step) const {
    const bool within = step.streamed.count == 0;
    return tiles_of(step.resident.count, within ? step.resident.count : step.streamed.count, within,
                    plan_.tile);
  }

  std::size_t pieces_of(const Step& step) const {
    std::size_t pieces = tiles(step).size() + split(step.streamed.count, plan_.tape_block).size();
    if (step.load_resident) pieces += split(step.resident.count, plan_.tape_block).size();
    return pieces;
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
            const Factors<T>& factors) {
    const std::vector<Span> blocks = split(examples.count, plan_.tape_block);
    run(blocks.size(), [&](std::size_t index, std::size_t worker) {
      const std::size_t begin = examples.begin + blocks[index].begin;
      const std::size_t count = blocks[index].count;
      record_factors(module_, plan_, x.slice(begin, begin + count), options_,
                     labels.empty() ? labels : labels.subspan(begin, count), factors, blocks[index].begin,
                     *arenas_[worker]);
    });
  }

  void contract(const Step& step, const Factors<T>& columns, KernelMatrix<T>& result) {
    const std::vector<TileRange> ranges = tiles(step);
    const std::size_t column_begin = step.streamed.count == 0 ? step.resident.begin : step.streamed.begin;
    run(ranges.size(), [&](std::size_t index, std::size_t worker) {
      contract_tile<T>(plan_, resident_, columns, ranges[index], *arenas_[worker],
                       [&](std::size_t parameter, const Tile& tile) {
                         Tensor<T>& values =
                             parameter == kAllParameters ? result.values : result.per_parameter[parameter];
                         write(ranges[index], step.resident.begin, column_begin, tile, values);
                       });
    });
  }

  /// Rounds a tile to T, writes it and its mirror image.
  void write(const TileRange& range, std::size_t row_begin, std::size_t column_begin, const Tile& tile,
             Tensor<T>& values) const {
    const std::size_t group = plan_.rows_per_example();
    const std::size_t m = plan_.request.columns;
    const double weight =
        options_.reduce == Reduce::TraceMean ? 1.0 / static_cast<double>(plan_.request.seeds) : 1.0;
    const auto place = [&](std::size_t i, std::size_t j, std::size_t k, std::size_t l) {
      return ((i * m + j) * group + k) * group + l;
    };
    for (std::size_t r = 0; r < tile.rows; ++r) {
      const std::size_t i = row_begin + range.row + r / group;
      const std::size_t k = r % group;
      const std::size_t columns = range.diagonal ? r + 1 : tile.columns;
      for (std::size_t c = 0; c < columns; ++c) {
        const std::size_t j = column_begin + range.column + c / group;
        const std::size_t l = c % group;
        const T value = static_cast<T>(tile.at(r, c) * weight);
        if (!std::isfinite(value)) {
          throw NumericError("kernel: entry (" + std::to_string(i) + ", " + std::to_string(j) +
                             (group == 1 ? "" : ", " + std::to_string(k) + ", " + std::to_string(l)) +
                             ") is " + std::to_string(value) + ": the gradients of examples " +
                             std::to_string(i) + " and " + std::to_string(j) + " leave the numbers");
        }
        values.data()[place(i, j, k, l)] = value;
        if (plan_.request.symmetric) values.data()[place(j, i, l, k)] = value;
      }
    }
  }

  const Module<T>& module_;
  TensorView<const T> x_, versus_;
  const KernelOptions& options_;
  const Plan& plan_;
  const Workers& workers_;
  Factors<T> resident_, streamed_;
  std::vector<std::unique_ptr<Arena>> arenas_;  ///< per worker
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

template <class T>
Plan plan_for(const Module<T>& module, TensorView<const T> x, const TensorView<const T>* versus,
              const KernelOptions& options, std::size_t workers) {
  PlanRequest request;
  request.rows = x.shape()[0];
  request.symmetric = versus == nullptr;
  request.columns = versus == nullptr ? request.rows : versus->shape()[0];
  request.seeds = seed_count(options.reduce, module.outputs());
  request.full = options.reduce == Reduce::Full;
  request.per_parameter = options.per_parameter;
  request.memory = options.memory == 0 ? cpu_info().memory_bytes / 2 : options.memory;
  request.workers = workers;
  return plan_kernel(profile<T>(module, x.slice(0, 1)), request);
}

template <class T>
KernelMatrix<T> planned_kernel(const Module<T>& module, TensorView<const T> x,
                               const TensorView<const T>* versus, const KernelOptions& options,
                               const Plan& plan, const Workers& workers) {
  std::vector<std::string> names;
  for (std::size_t p = 0; p < module.parameters().count(); ++p) names.push_back(module.parameters().name(p));
  return Builder<T>(module, x, versus == nullptr ? TensorView<const T>() : *versus, options, plan, workers)
      .build(names);
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
                         const KernelOptions&, std::size_t);                                                 \
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
