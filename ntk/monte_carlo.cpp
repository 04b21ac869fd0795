#include "ntk/monte_carlo.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/cpu.hpp"
#include "engine/error.hpp"
#include "engine/memory_account.hpp"
#include "engine/random.hpp"
#include "ntk/planned_kernel.hpp"

namespace gradgram::ntk {
namespace {

constexpr std::uint64_t kSeedStream = 0x6D6F6E7465;

/// (1/O) sum_k f_k(x) f_k(x').
template <class T>
Tensor<T> covariance(const models::Network<T>& network, TensorView<const T> x,
                     const TensorView<const T>* versus, const Workers& workers) {
  const Tensor<T> rows = evaluate<T>(network, x, workers);
  const Tensor<T> others = versus == nullptr ? rows.clone() : evaluate<T>(network, *versus, workers);
  const std::size_t n = rows.shape()[0];
  const std::size_t m = others.shape()[0];
  const std::size_t outputs = network.outputs();
  Tensor<T> result(Shape{n, m});
  workers.run(n, [&](std::size_t i, std::size_t) {
    for (std::size_t j = 0; j < m; ++j) {
      double sum = 0;
      for (std::size_t k = 0; k < outputs; ++k) {
        sum += static_cast<double>(rows.data()[i * outputs + k]) *
               static_cast<double>(others.data()[j * outputs + k]);
      }
      result.data()[i * m + j] = static_cast<T>(sum / static_cast<double>(outputs));
    }
  });
  return result;
}

std::size_t multiply(std::size_t a, std::size_t b) {
  return checked_multiply(a, b, "monte_carlo_kernel");
}

/// Mean and deviation; columns = 0: of x with itself.
std::size_t sum_bytes(std::size_t outputs, std::size_t rows, std::size_t columns,
                      const MonteCarloOptions& what) {
  const bool full = what.what == Estimated::Tangent && what.reduce == Reduce::Full;
  const std::size_t entries =
      multiply(multiply(rows, columns == 0 ? rows : columns), full ? outputs * outputs : 1);
  return multiply(entries, 2 * sizeof(double));
}

/// The least that one sample does with.
template <class T>
std::size_t sample_bytes(const models::Network<T>& network, const ModuleProfile& module_profile,
                         std::size_t rows, std::size_t columns, const MonteCarloOptions& what,
                         const Workers& workers) {
  if (what.what == Estimated::Tangent) {
    KernelOptions options;
    options.reduce = what.reduce;
    options.output = what.output;
    return least_kernel_bytes<T>(network, module_profile, rows, columns, options, workers.count());
  }
  const std::size_t others = columns == 0 ? rows : columns;
  const std::size_t inputs = multiply(rows + columns, module_profile.input_bytes);
  // Outputs of both sides, and the covariance.
  const std::size_t outputs = evaluation_bytes<T>(network, module_profile, rows, workers.count()) +
                              evaluation_bytes<T>(network, module_profile, others, workers.count());
  return checked_add(inputs + module_profile.weight_bytes,
                     outputs + multiply(multiply(rows, others), sizeof(T)), "monte_carlo_kernel");
}

template <class T>
MonteCarloKernel estimate(const models::Model& model, const models::NetworkOptions& options,
                          TensorView<const T> x, const TensorView<const T>* versus,
                          const MonteCarloOptions& what, const Workers& workers) {
  if (what.samples < 2) {
    throw ArgumentError(fmt::format(
        "monte_carlo_kernel: samples ({}) must be at least 2, or there is no standard error", what.samples));
  }
  if (what.what == Estimated::Tangent && what.reduce == Reduce::TrueClass) {
    throw ArgumentError(
        "monte_carlo_kernel: true-class cannot be averaged over networks, since it is a property of one");
  }
  if (x.shape().rank() == 0 || (versus != nullptr && versus->shape().rank() == 0)) {
    throw ShapeError("monte_carlo_kernel: x and versus must be [n, ...]");
  }
  KernelOptions kernel_options;
  kernel_options.reduce = what.reduce;
  kernel_options.output = what.output;
  kernel_options.stop = what.stop;
  MemoryAccount account("monte_carlo_kernel", what.memory != 0 ? what.memory : cpu_info().memory_bytes / 2);
  const std::size_t rows = x.shape()[0];
  const std::size_t columns = versus == nullptr ? 0 : versus->shape()[0];
  account.hold(sum_bytes(model.outputs(), rows, columns, what));
  if (rows != 0 && (versus == nullptr || columns != 0) && x.shape().inner() == model.input()) {
    const models::Network<T> network(model, options);
    kernel_options.memory = account.phase(
        "one sample beside the sums",
        sample_bytes<T>(network, profile<T>(network, x.slice(0, 1)), rows, columns, what, workers));
  }
  account.check();

  MonteCarloKernel result;
  result.samples = what.samples;
  for (std::size_t sample = 0; sample < what.samples; ++sample) {
    if (what.stop.stop_requested()) throw Cancelled("monte_carlo_kernel: stopped");
    if (what.progress) what.progress(sample, what.samples);
    models::NetworkOptions drawn = options;
    drawn.seed = monte_carlo_seed(what.seed, sample);
    const models::Network<T> network(model, drawn);
    Tensor<T> one;
    if (what.what == Estimated::Covariance) {
      one = covariance<T>(network, x, versus, workers);
    } else {
      one = std::move((versus == nullptr ? kernel<T>(network, x, kernel_options, workers)
                                         : kernel<T>(network, x, *versus, kernel_options, workers))
                          .values);
    }
    if (sample == 0) {
      result.mean = Tensor<double>(one.shape());
      result.standard_error = Tensor<double>(one.shape());
    }
    // Welford: the deviations are summed about the mean so far, which does not cancel.
    const double count = static_cast<double>(sample + 1);
    for (std::size_t i = 0; i < one.size(); ++i) {
      const double value = static_cast<double>(one.data()[i]);
      const double before = value - result.mean.data()[i];
      result.mean.data()[i] += before / count;
      result.standard_error.data()[i] += before * (value - result.mean.data()[i]);
    }
  }
  if (what.progress) what.progress(what.samples, what.samples);
  const double samples = static_cast<double>(what.samples);
  double mean_squares = 0;
  double error_squares = 0;
  double largest_mean = 0;
  double largest_error = 0;
  for (std::size_t i = 0; i < result.mean.size(); ++i) {
    double& error = result.standard_error.data()[i];
    error = std::sqrt(error / ((samples - 1) * samples));
    const double mean = std::abs(result.mean.data()[i]);
    mean_squares += mean * mean;
    error_squares += error * error;
    largest_mean = std::max(largest_mean, mean);
    largest_error = std::max(largest_error, error);
  }
  if (!std::isfinite(mean_squares) || !std::isfinite(error_squares)) {
    throw NumericError("monte_carlo_kernel: the mean or its standard error is not finite");
  }
  result.relative_error = mean_squares > 0 ? std::sqrt(error_squares / mean_squares) : 0;
  result.largest_error = largest_mean > 0 ? largest_error / largest_mean : 0;
  return result;
}

}  // namespace

std::uint64_t monte_carlo_seed(std::uint64_t seed, std::size_t sample) {
  return Random(seed, kSeedStream + sample).bits64();
}

template <class T>
std::size_t monte_carlo_bytes(const models::Network<T>& network, TensorView<const double> inputs,
                              std::size_t rows, std::size_t columns, const MonteCarloOptions& what,
                              const Workers& workers) {
  return checked_add(
      sum_bytes(network.outputs(), rows, columns, what),
      sample_bytes<T>(network, profile_of_first<T>(network, inputs), rows, columns, what, workers),
      "monte_carlo_kernel");
}
template std::size_t monte_carlo_bytes(const models::Network<float>&, TensorView<const double>, std::size_t,
                                       std::size_t, const MonteCarloOptions&, const Workers&);
template std::size_t monte_carlo_bytes(const models::Network<double>&, TensorView<const double>, std::size_t,
                                       std::size_t, const MonteCarloOptions&, const Workers&);

template <class T>
MonteCarloKernel monte_carlo_kernel(const models::Model& model, const models::NetworkOptions& options,
                                    TensorView<const T> x, const MonteCarloOptions& what,
                                    const Workers& workers) {
  return estimate<T>(model, options, x, nullptr, what, workers);
}
template <class T>
MonteCarloKernel monte_carlo_kernel(const models::Model& model, const models::NetworkOptions& options,
                                    TensorView<const T> x, TensorView<const T> versus,
                                    const MonteCarloOptions& what, const Workers& workers) {
  return estimate<T>(model, options, x, &versus, what, workers);
}
template MonteCarloKernel monte_carlo_kernel(const models::Model&, const models::NetworkOptions&,
                                             TensorView<const float>, const MonteCarloOptions&,
                                             const Workers&);
template MonteCarloKernel monte_carlo_kernel(const models::Model&, const models::NetworkOptions&,
                                             TensorView<const float>, TensorView<const float>,
                                             const MonteCarloOptions&, const Workers&);
template MonteCarloKernel monte_carlo_kernel(const models::Model&, const models::NetworkOptions&,
                                             TensorView<const double>, const MonteCarloOptions&,
                                             const Workers&);
template MonteCarloKernel monte_carlo_kernel(const models::Model&, const models::NetworkOptions&,
                                             TensorView<const double>, TensorView<const double>,
                                             const MonteCarloOptions&, const Workers&);

}  // namespace gradgram::ntk
