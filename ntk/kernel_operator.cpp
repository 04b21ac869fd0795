#include "ntk/kernel_operator.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "engine/cpu.hpp"
#include "engine/memory_account.hpp"
#include "engine/parameter_ranges.hpp"
#include "engine/sinks.hpp"
#include "ntk/passes.hpp"
#include "ntk/plan.hpp"
#include "ntk/precision.hpp"

namespace gradgram::ntk {
namespace {

// Sizes of work that depend on shapes alone, never on threads or memory: they fix the order of every sum.
constexpr std::size_t kBlockOfImages = 4;
constexpr std::size_t kBlockOfVectors = 64;
constexpr std::size_t kPanelsAimedAt = 16;  // enough for threads to share a small set evenly
constexpr std::size_t kMaxPanelOfImages = 64;
constexpr std::size_t kMaxPanelOfVectors = 1024;

// These decide time and memory alone.
constexpr std::size_t kMaxColumns = 16;

std::size_t ceiling(std::size_t a, std::size_t b) {
  return (a + b - 1) / b;
}

std::size_t multiply(std::size_t a, std::size_t b) {
  return checked_multiply(a, b, "kernel operator: bytes");
}

template <class T>
std::size_t block_of(const Module<T>& module) {
  return module.input_shape().rank() == 3 ? kBlockOfImages : kBlockOfVectors;
}

/// A tangent pass holds all tangents at once where a reverse pass may reuse some: half as much again.
std::size_t tape_of(const ModuleProfile& profile, std::size_t examples) {
  return multiply(profile.tape_of(examples), 3) / 2;
}

}  // namespace

template <class T>
std::size_t least_operator_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t examples,
                                 std::size_t workers) {
  const std::size_t tape = tape_of(profile, std::min(block_of(module), examples));
  // Weights, and their gradient in T and in f64.
  const std::size_t weights = 2 * profile.weight_bytes + multiply(module.parameters().size(), sizeof(double));
  return multiply(examples, profile.input_bytes) + weights + multiply(workers, tape + kBlasBytes);
}

template std::size_t least_operator_bytes(const Module<float>&, const ModuleProfile&, std::size_t,
                                          std::size_t);
template std::size_t least_operator_bytes(const Module<double>&, const ModuleProfile&, std::size_t,
                                          std::size_t);

template <class T>
struct KernelOperator<T>::State {
  /// A forward pass over one block that may be replayed.
  struct Pass {
    TensorView<T> rows;  ///< [count, O]: cotangent of the reduced output
    TensorView<T> seed;  ///< [count, O]: the same times the vector
    Tape<T> tape;
    Var output;

    Pass(const State& state, std::size_t block, Arena& arena)
        : rows(arena.tensor<T>({state.count(block), state.outputs})),
          seed(arena.tensor<T>({state.count(block), state.outputs})),
          tape(arena) {
      const std::size_t begin = block * state.block;
      output = state.module.forward(tape, tape.input(state.x.slice(begin, begin + state.count(block))));
      if (tape.shape(output) != rows.shape()) {
        throw ShapeError("kernel operator: the module's outputs " + tape.shape(output).to_string() +
                         " must be " + rows.shape().to_string());
      }
    }
  };
  struct Kept {
    Arena arena;
    std::optional<Pass> pass;
    explicit Kept(std::size_t bytes) : arena(bytes) {}
  };

  const Module<T>& module;
  TensorView<const T> x;
  OperatorOptions options;
  const Workers& workers;
  std::size_t n;
  std::size_t outputs;
  std::size_t seeds = 1;  ///< reverse passes per vector
  std::size_t block;
  std::size_t panel_blocks = 1;  ///< blocks whose gradients are summed in T
  std::size_t slots = 1;         ///< panels at once
  std::size_t columns = 1;       ///< pairs of a vector and a seed at once
  std::size_t kept_count = 0;
  std::size_t planned = 0;
  std::size_t kept_bytes = 0;  ///< of one kept block
  std::vector<ParameterRange> ranges;
  std::vector<ParameterSet<T>> gradients;    ///< [slots * columns], made when first needed
  std::vector<ParameterSet<double>> totals;  ///< [columns]
  std::vector<std::unique_ptr<Arena>> arenas;
  std::vector<std::unique_ptr<Kept>> kept;

  State(const Module<T>& module_, TensorView<const T> x_, const OperatorOptions& options_,
        const Workers& workers_)
      : module(module_),
        x(x_),
        options(options_),
        workers(workers_),
        n(x_.shape().rank() == 0 ? 0 : x_.shape()[0]),
        outputs(module_.outputs()),
        block(block_of(module_)) {
    check_inputs("kernel operator", "x", x.shape(), module.input_shape());
    KernelOptions reduction;
    reduction.reduce = options.reduce;
    reduction.output = options.output;
    reduction.labels = options.labels;
    check_reduction("kernel operator", reduction, outputs, n);
    if (options.reduce != Reduce::Full) seeds = seed_count(options.reduce, outputs);
    const std::size_t panel_limit = block == kBlockOfImages ? kMaxPanelOfImages : kMaxPanelOfVectors;
    panel_blocks =
        std::clamp<std::size_t>(ceiling(ceiling(n, kPanelsAimedAt), block), 1, panel_limit / block);
    ranges = parameter_ranges(module.parameters());
    if (n != 0) plan();
  }

  void plan() {
    const ModuleProfile module_profile = profile<T>(module, x.slice(0, 1));
    const std::size_t tape = tape_of(module_profile, std::min(block, n));
    const std::size_t gradient = module_profile.weight_bytes;
    const std::size_t total = multiply(module.parameters().size(), sizeof(double));
    const std::size_t memory = options.memory == 0 ? cpu_info().memory_bytes / 2 : options.memory;
    const std::size_t least = least_operator_bytes(module, module_profile, n, workers.count());
    const std::size_t fixed = least - gradient - total;
    MemoryAccount account("kernel operator", memory);
    account.phase("products", least);
    account.check();
    // A panel for each thread first, then several vectors at once, both within half of what is left.
    const std::size_t room = gradient + total + (memory - least) / 2;
    const std::size_t panels = ceiling(blocks(), panel_blocks);
    const auto fits = [&](std::size_t s, std::size_t c) { return c * (s * gradient + total) <= room; };
    while (slots < std::min(panels, workers.count()) && fits(slots + 1, 1)) ++slots;
    while (columns < kMaxColumns && fits(slots, columns + 1)) ++columns;
    while (slots < std::min(panels, 2 * workers.count()) && fits(slots + 1, columns)) ++slots;
    planned = fixed + columns * (slots * gradient + total);
    if (options.keep_passes) {
      kept_bytes = tape;
      kept_count = std::min(blocks(), (memory - planned) / std::max<std::size_t>(1, tape));
      planned += kept_count * tape;
    }
    kept.resize(kept_count);
    for (std::size_t w = 0; w < workers.count(); ++w) arenas.push_back(std::make_unique<Arena>());
  }

  std::size_t blocks() const { return ceiling(n, block); }
  std::size_t count(std::size_t b) const { return std::min(n, (b + 1) * block) - b * block; }
  bool full() const { return options.reduce == Reduce::Full; }
  std::size_t length() const { return full() ? multiply(n, outputs) : n; }

  template <class Use>
  void with_pass(std::size_t b, std::size_t worker, Use use) {
    if (b >= kept_count) {
      const ArenaScope scope(*arenas[worker]);
      Pass pass(*this, b, *arenas[worker]);
      use(pass);
      return;
    }
    if (!kept[b]) {
      auto fresh = std::make_unique<Kept>(kept_bytes);
      fresh->pass.emplace(*this, b, fresh->arena);
      kept[b] = std::move(fresh);
    }
    use(*kept[b]->pass);
  }

  void fill_rows(std::size_t b, std::size_t s, Pass& pass) const {
    const auto labels = options.labels.empty() ? options.labels : options.labels.subspan(b * block, count(b));
    fill_seed<T>(options.reduce, options.output, s, pass.tape.value(pass.output), labels, pass.rows);
  }

  /// Adds J^T v of one block to `gradient`.
  void reverse(std::size_t b, std::size_t s, const double* vector, double scale, Pass& pass,
               ParameterSet<T>& gradient) const {
    T* const seed = pass.seed.data();
    if (full()) {
      const double* const own = vector + b * block * outputs;
      for (std::size_t i = 0; i < pass.seed.size(); ++i) seed[i] = static_cast<T>(scale * own[i]);
    } else {
      fill_rows(b, s, pass);
      for (std::size_t i = 0; i < count(b); ++i) {
        const double factor = scale * vector[b * block + i];
        for (std::size_t k = i * outputs; k < (i + 1) * outputs; ++k) {
          seed[k] = static_cast<T>(factor * static_cast<double>(pass.rows.data()[k]));
        }
      }
    }
    SummedGradientSink<T> sink(gradient);
    pass.tape.reverse(pass.output, pass.seed, sink);
  }

  /// Adds J g of one block to its part of `product`.
  void forward(std::size_t b, std::size_t s, const ParameterSet<T>& gradient, Pass& pass,
               double* product) const {
    if (!full()) fill_rows(b, s, pass);
    const TensorView<const T> tangent = pass.tape.tangents(pass.output, &gradient);
    const T* const t = tangent.data();
    if (full()) {
      double* const own = product + b * block * outputs;
      for (std::size_t i = 0; i < tangent.size(); ++i) own[i] = static_cast<double>(t[i]);
      return;
    }
    for (std::size_t i = 0; i < count(b); ++i) {
      double sum = 0;
      for (std::size_t k = i * outputs; k < (i + 1) * outputs; ++k) {
        sum += static_cast<double>(pass.rows.data()[k]) * static_cast<double>(t[k]);
      }
      product[b * block + i] += sum;
    }
  }

  void make_gradients(std::size_t used_columns) {
    while (totals.size() < used_columns) totals.push_back(zero_totals());
    while (gradients.size() < slots * used_columns) gradients.push_back(module.parameters().zeros());
  }

  ParameterSet<double> zero_totals() const {
    ParameterSet<double> result;
    const ParameterSet<T>& parameters = module.parameters();
    for (std::size_t p = 0; p < parameters.count(); ++p) {
      result.add(parameters.name(p), Tensor<double>(parameters.value(p).shape()));
    }
    return result;
  }

  /// Adds the gradients of `used` slots to the totals, in order, and clears them.
  void reduce(std::size_t used_columns, std::size_t used) {
    workers.run(ranges.size() * used_columns, [&](std::size_t piece, std::size_t) {
      const std::size_t c = piece / ranges.size();
      const ParameterRange& range = ranges[piece % ranges.size()];
      double* const total = totals[c].value(range.parameter).data();
      for (std::size_t slot = 0; slot < used; ++slot) {
        T* const part = gradients[slot * used_columns + c].value(range.parameter).data();
        for (std::size_t i = range.begin; i < range.end; ++i) total[i] += static_cast<double>(part[i]);
        std::fill(part + range.begin, part + range.end, T(0));
      }
    });
  }

  /// J^T for columns [first, first + used) of the call: into the first `used` gradients.
  void sum_gradients(TensorView<const double> vectors, const std::vector<double>& scales, std::size_t first,
                     std::size_t used) {
    make_gradients(used);
    for (auto& gradient : gradients) gradient.fill_zero();  // an earlier call may have been stopped half-way
    for (auto& total : totals) total.fill_zero();
    const std::size_t panels = ceiling(blocks(), panel_blocks);
    const std::size_t length = vectors.shape()[1];
    for (std::size_t panel = 0; panel < panels; panel += slots) {
      const std::size_t now = std::min(slots, panels - panel);
      workers.run(
          now,
          [&](std::size_t slot, std::size_t worker) {
            const std::size_t begin = (panel + slot) * panel_blocks;
            for (std::size_t b = begin; b < std::min(blocks(), begin + panel_blocks); ++b) {
              with_pass(b, worker, [&](Pass& pass) {
                for (std::size_t c = 0; c < used; ++c) {
                  const std::size_t v = (first + c) / seeds;
                  reverse(b, (first + c) % seeds, vectors.data() + v * length, scales[v], pass,
                          gradients[slot * used + c]);
                }
              });
            }
          },
          {}, options.stop);
      reduce(used, now);
    }
    workers.run(ranges.size() * used, [&](std::size_t piece, std::size_t) {
      const std::size_t c = piece / ranges.size();
      const ParameterRange& range = ranges[piece % ranges.size()];
      const double* const total = totals[c].value(range.parameter).data();
      T* const rounded = gradients[c].value(range.parameter).data();
      for (std::size_t i = range.begin; i < range.end; ++i) rounded[i] = static_cast<T>(total[i]);
    });
  }

  void apply(TensorView<const double> vectors, TensorView<double> products) {
    const std::size_t m = vectors.shape()[0];
    const std::size_t length = vectors.shape()[1];
    // Scaled by powers of two, which rounds nothing: vectors of any size are far from the ends of f32.
    std::vector<double> scales(m, 1);
    for (std::size_t v = 0; v < m; ++v) {
      double largest = 0;
      for (std::size_t i = 0; i < length; ++i) {
        const double value = vectors.data()[v * length + i];
        if (!std::isfinite(value)) {
          throw ArgumentError("kernel operator: component " + std::to_string(i) + " of vector " +
                              std::to_string(v) + " is " + std::to_string(value));
        }
        largest = std::max(largest, std::abs(value));
      }
      if (largest > 0) scales[v] = std::ldexp(1.0, -std::clamp(std::ilogb(largest), -1000, 1000));
    }
    std::fill_n(products.data(), products.size(), 0.0);
    for (std::size_t first = 0; first < m * seeds; first += columns) {
      const std::size_t used = std::min(columns, m * seeds - first);
      sum_gradients(vectors, scales, first, used);
      workers.run(
          blocks(),
          [&](std::size_t b, std::size_t worker) {
            with_pass(b, worker, [&](Pass& pass) {
              for (std::size_t c = 0; c < used; ++c) {
                forward(b, (first + c) % seeds, gradients[c], pass,
                        products.data() + (first + c) / seeds * length);
              }
            });
          },
          {}, options.stop);
    }
    const double mean = options.reduce == Reduce::TraceMean ? 1.0 / static_cast<double>(outputs) : 1.0;
    for (std::size_t i = 0; i < products.size(); ++i) {
      double& value = products.data()[i];
      value *= mean / scales[i / length];
      if (!std::isfinite(value)) {
        throw NumericError("kernel operator: the product at example " +
                           std::to_string(i % length / (length / n)) + " is " + std::to_string(value));
      }
    }
  }
};

template <class T>
KernelOperator<T>::KernelOperator(const Module<T>& module, TensorView<const T> x,
                                  const OperatorOptions& options, const Workers& workers)
    : state_(std::make_unique<State>(module, x, options, workers)) {}

template <class T>
KernelOperator<T>::~KernelOperator() = default;

template <class T>
std::size_t KernelOperator<T>::size() const {
  return state_->length();
}

template <class T>
void KernelOperator<T>::apply(TensorView<const double> vectors, TensorView<double> products) {
  const Shape& shape = vectors.shape();
  if (shape.rank() != 2 || shape[1] != size() || products.shape() != shape) {
    throw ShapeError("kernel operator: vectors " + shape.to_string() + " and products " +
                     products.shape().to_string() + " must both be [m, " + std::to_string(size()) + "]");
  }
  if (shape.size() != 0) state_->apply(vectors, products);
}

template <class T>
void KernelOperator<T>::apply(std::span<const double> vector, std::span<double> product) {
  apply(TensorView<const double>(vector.data(), Shape{1, vector.size()}),
        TensorView<double>(product.data(), Shape{1, product.size()}));
}

template <class T>
double KernelOperator<T>::relative_error() const {
  return entry_error<T>(state_->module);
}

template <class T>
std::size_t KernelOperator<T>::planned_bytes() const {
  return state_->planned;
}

template <class T>
std::size_t KernelOperator<T>::kept_blocks() const {
  return state_->kept_count;
}

template <class T>
std::size_t KernelOperator<T>::blocks() const {
  return state_->blocks();
}

template class KernelOperator<float>;
template class KernelOperator<double>;

}  // namespace gradgram::ntk
