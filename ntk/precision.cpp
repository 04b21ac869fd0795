#include "ntk/precision.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/cpu.hpp"
#include "ntk/kernel.hpp"
#include "ntk/planned_kernel.hpp"

namespace gradgram::ntk {

template <>
double entry_error<float>() {
  return 2e-6;
}

template <>
double entry_error<double>() {
  return 4e-15;
}

template <class T>
double entry_error(const Module<T>& module) {
  const ParameterSet<T>& parameters = module.parameters();
  std::size_t weights = 0;
  for (std::size_t p = 0; p < parameters.count(); ++p)
    weights += parameters.value(p).shape().rank() > 1 ? 1 : 0;
  const double depth = std::max(1.0, static_cast<double>(weights) / static_cast<double>(kShallow));
  return entry_error<T>() * depth * depth;
}

double bf16_entry_error() {
  constexpr double kUnit = 1.0 / 256;
  return std::pow(1 + kUnit, 4) - 1;
}

namespace {

constexpr std::size_t kSampled = 32;

/// Evenly spaced examples and what belongs to them.
template <class T>
struct Sample {
  Sample(TensorView<const T> x, std::span<const std::int32_t> all_labels) {
    const std::size_t n = x.shape()[0];
    const std::size_t count = std::min(n, kSampled);
    examples = Tensor<T>(x.shape().inner().with_outer(count));
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t from = i * n / count;
      const auto values = x.slice(from).span();
      std::copy(values.begin(), values.end(), examples.view().slice(i).data());
      if (!all_labels.empty()) labels.push_back(all_labels[from]);
    }
  }
  Tensor<T> examples;
  std::vector<std::int32_t> labels;
};

/// Lengths of the rows of a block's outputs: sqrt of the diagonal, [n * outputs] for Full.
template <class T>
std::vector<double> lengths(const Module<T>& module, const Sample<T>& sample, KernelOptions options,
                            const Workers& workers) {
  options.labels = sample.labels;
  const Tensor<double> diagonal = ntk::diagonal<T>(module, sample.examples.view(), options, workers);
  const std::size_t outputs = options.reduce == Reduce::Full ? module.outputs() : 1;
  std::vector<double> result;
  for (std::size_t i = 0; i < diagonal.shape()[0]; ++i) {
    for (std::size_t k = 0; k < outputs; ++k) {
      result.push_back(std::sqrt(diagonal.data()[(i * outputs + k) * outputs + k]));
    }
  }
  return result;
}

/// Of a block of the kernel.
template <class T>
std::size_t block_bytes(std::size_t rows, std::size_t columns, std::size_t outputs,
                        const KernelOptions& options) {
  const std::size_t group = options.reduce == Reduce::Full ? outputs * outputs : 1;
  return rows * columns * group * sizeof(T);
}

}  // namespace

template <class T>
std::size_t least_sampled_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t rows,
                                std::size_t columns, const KernelOptions& asked, std::size_t workers) {
  const std::size_t n = std::min(rows, kSampled);
  const std::size_t m = std::min(columns == 0 ? rows : columns, kSampled);
  KernelOptions options = asked;
  options.per_parameter = false;
  const std::size_t beside = block_bytes<T>(n, m, module.outputs(), options);
  std::size_t least = 0;
  for (const bool bf16 : {true, false}) {
    options.bf16 = bf16;
    least = std::max(least, beside + least_kernel_bytes<T>(module, profile, n, m, options, workers));
  }
  for (const std::size_t examples : {n, m}) {
    least =
        std::max(least, 2 * beside + least_diagonal_bytes<T>(module, profile, examples, options, workers));
  }
  return least;
}

template <class T>
EntryErrors sampled_bf16_errors(const Module<T>& module, TensorView<const T> x,
                                const TensorView<const T>* versus, const KernelOptions& asked,
                                const Workers& workers) {
  KernelOptions options = asked;
  const std::size_t memory = asked.memory == 0 ? cpu_info().memory_bytes / 2 : asked.memory;
  options.progress = {};
  options.planned = {};
  options.timings = nullptr;
  options.per_parameter = false;
  const Sample<T> rows(x, options.labels);
  const Sample<T> columns =
      versus == nullptr ? Sample<T>(x, options.labels) : Sample<T>(*versus, options.versus_labels);
  options.labels = rows.labels;
  options.versus_labels = columns.labels;
  const auto block = [&](bool bf16) {
    options.bf16 = bf16;
    return kernel<T>(module, rows.examples.view(), columns.examples.view(), options, workers).values;
  };
  const std::size_t beside =
      block_bytes<T>(rows.examples.shape()[0], columns.examples.shape()[0], module.outputs(), options);
  // One block stays while the other is computed, and both while the diagonals are.
  options.memory = memory - std::min(memory - 1, beside);
  const Tensor<T> rounded = block(true);
  const Tensor<T> exact = block(false);
  KernelOptions plain = options;
  plain.memory = memory - std::min(memory - 1, 2 * beside);
  plain.ways.clear();
  const std::vector<double> left = lengths(module, rows, plain, workers);
  const std::vector<double> right = lengths(module, columns, plain, workers);
  const std::size_t n = rows.examples.shape()[0];
  const std::size_t m = columns.examples.shape()[0];
  const std::size_t group = n == 0 ? 1 : left.size() / n;
  EntryErrors errors;
  double sum = 0;
  for (std::size_t at = 0; at < exact.size(); ++at) {
    const std::size_t l = at % group;
    const std::size_t k = at / group % group;
    const std::size_t entry = at / (group * group);
    const double scale = left[entry / m * group + k] * right[entry % m * group + l];
    const double difference = static_cast<double>(rounded.data()[at]) - static_cast<double>(exact.data()[at]);
    const double error = scale > 0 ? std::abs(difference) / scale : 0;
    errors.worst = std::max(errors.worst, error);
    sum += error * error;
    ++errors.entries;
  }
  if (errors.entries != 0) errors.root_mean_square = std::sqrt(sum / static_cast<double>(errors.entries));
  return errors;
}

template EntryErrors sampled_bf16_errors(const Module<float>&, TensorView<const float>,
                                         const TensorView<const float>*, const KernelOptions&,
                                         const Workers&);
template EntryErrors sampled_bf16_errors(const Module<double>&, TensorView<const double>,
                                         const TensorView<const double>*, const KernelOptions&,
                                         const Workers&);

template std::size_t least_sampled_bytes(const Module<float>&, const ModuleProfile&, std::size_t, std::size_t,
                                         const KernelOptions&, std::size_t);
template std::size_t least_sampled_bytes(const Module<double>&, const ModuleProfile&, std::size_t,
                                         std::size_t, const KernelOptions&, std::size_t);

template double entry_error(const Module<float>&);
template double entry_error(const Module<double>&);

}  // namespace gradgram::ntk
