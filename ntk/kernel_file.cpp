#include "ntk/kernel_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <string>

#include "ntk/passes.hpp"
#include "ntk/planned_kernel.hpp"

namespace gradgram::ntk {
namespace {

/// Blocks that are whole tiles of a grid of `tile` examples a side. Throws BudgetError.
void follow_grid(Plan& plan, std::size_t tile) {
  const std::size_t memory = plan.request.memory;
  const std::size_t rows = plan.request.rows;
  const std::size_t columns = plan.request.columns;
  const bool symmetric = plan.request.symmetric;
  const auto whole_tiles = [&](std::size_t examples) {
    return std::max(examples / tile, std::size_t{1}) * tile;
  };
  plan.tile = tile;
  if (plan.resident >= rows && (symmetric || plan.streamed >= columns) && plan.total_bytes() <= memory)
    return;

  const auto stream = [&](std::size_t resident) {
    return symmetric ? (resident >= rows ? 0 : tile) : std::min(tile, columns);
  };
  plan.resident = std::min(tile, rows);
  plan.streamed = stream(plan.resident);
  const std::size_t least = plan.total_bytes();
  if (least > memory) {
    throw BudgetError(fmt::format(
        "kernel_to_file: the memory budget ({} bytes) cannot hold tiles of {} examples; the least that would "
        "do is {} bytes",
        memory, tile, least));
  }
  plan.resident += (memory - least) / std::max<std::size_t>(plan.example_bytes, 1);
  if (plan.resident < rows) {
    plan.resident = whole_tiles(plan.resident);
    // As many blocks, of about the same size.
    const std::size_t blocks = (rows + plan.resident - 1) / plan.resident;
    plan.resident = ((rows + blocks - 1) / blocks + tile - 1) / tile * tile;
  }
  plan.resident = std::min(plan.resident, rows);
  plan.streamed = stream(plan.resident);
}

std::string fingerprint_of(std::span<const std::int32_t> labels) {
  return hexadecimal(crc32_of(labels.data(), labels.size_bytes()));
}

/// The kernel of a network.
template <class T>
class NetworkTiles final : public TileSource {
 public:
  /// versus = nullptr for the kernel of x with itself.
  NetworkTiles(const Module<T>& module, TensorView<const T> x, const TensorView<const T>* versus,
               const KernelOptions& options, const Workers& workers)
      : module_(module), x_(x), versus_(versus), options_(options), workers_(workers) {
    if (rows() == 0 || columns() == 0) return;
    plan_ = plan_for<T>(module, x, versus, options, workers.count(), true);
    follow_grid(plan_, plan_.tile);
  }

  TileGrid grid() const override {
    return {rows(), columns(), versus_ == nullptr, options_.reduce == Reduce::Full ? module_.outputs() : 0,
            plan_.tile};
  }
  void follow(std::size_t tile) override { follow_grid(plan_, tile); }
  void produce(TileStore& store) override {
    planned_tiles(module_, x_, versus_, options_, plan_, workers_, store);
  }
  std::size_t block_examples() const override { return plan_.resident; }
  std::size_t planned_bytes() const override { return plan_.total_bytes(); }

  Facts facts() const override {
    Facts facts = facts_of_process<T>();
    facts.emplace_back("reduction", reduce_name(options_.reduce, options_.output));
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
    std::string ways;
    for (const PlannedUse& use : plan_.uses) {
      ways += (ways.empty() ? "" : " ") + std::to_string(static_cast<int>(use.way));
    }
    facts.emplace_back("ways to contract", ways);
    return facts;
  }

 private:
  std::size_t rows() const { return x_.shape()[0]; }
  std::size_t columns() const { return versus_ == nullptr ? rows() : versus_->shape()[0]; }

  const Module<T>& module_;
  TensorView<const T> x_;
  const TensorView<const T>* versus_;
  const KernelOptions& options_;
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
  NetworkTiles<T> source(module, x, versus, options, workers);
  return tiles_to_file<T>(source, destination, workers, options.stop);
}

}  // namespace

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

#define GRADGRAM_INSTANTIATE(T)                                                                   \
  template KernelFile kernel_to_file(const Module<T>&, TensorView<const T>, const KernelOptions&, \
                                     const KernelDestination&, const Workers&);                   \
  template KernelFile kernel_to_file(const Module<T>&, TensorView<const T>, TensorView<const T>,  \
                                     const KernelOptions&, const KernelDestination&, const Workers&);
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk
