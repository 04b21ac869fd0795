#pragma once

#include <cstddef>
#include <cstdint>
#include <stop_token>

#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "models/model.hpp"
#include "models/network.hpp"
#include "ntk/kernel.hpp"

/// Kernels of models without a closed limit, estimated from networks drawn at random (docs/predict.md).
namespace gradgram::ntk {

enum class Estimated {
  Tangent,     ///< the empirical NTK, reduced
  Covariance,  ///< mean over the outputs of f(x) f(x'): what the NNGP kernel is the limit of
};

struct MonteCarloOptions {
  std::size_t samples = 0;  ///< networks, at least 2
  std::uint64_t seed = 0;
  Estimated what = Estimated::Tangent;
  Reduce reduce = Reduce::TraceMean;  ///< of Tangent; not TrueClass
  std::size_t output = 0;             ///< of Reduce::Output
  /// Bytes that data, networks, one sample and the sums (16 an entry) may take; 0 = half of the machine's.
  std::size_t memory = 0;
  Progress progress = {};  ///< samples
  std::stop_token stop = {};
};

/// An ESTIMATE of the expected kernel of networks of the model's own widths: with growing widths of its
/// limit, from which it differs by O(1 / width) whatever the number of samples.
struct MonteCarloKernel {
  Tensor<double> mean;            ///< shaped like kernel()'s result
  Tensor<double> standard_error;  ///< of each entry of the mean: sample deviation / sqrt(samples)
  std::size_t samples = 0;
  /// ||standard error||_F / ||mean||_F, and the largest standard error relative to the largest |mean|.
  double relative_error = 0;
  double largest_error = 0;
};

/// The seed that sample i draws its weights with: network(i) of the estimate is models::Network with it.
std::uint64_t monte_carlo_seed(std::uint64_t seed, std::size_t sample);

/// The least MonteCarloOptions::memory that monte_carlo_kernel() does with, of `rows` examples and `columns`
/// others or, for 0, with themselves. `network`: one of the model's; `inputs` [n, ...], n > 0.
template <class T>
std::size_t monte_carlo_bytes(const models::Network<T>& network, TensorView<const double> inputs,
                              std::size_t rows, std::size_t columns, const MonteCarloOptions& what,
                              const Workers& workers);

/// Mean of the kernels of `samples` networks with fresh weights (parameterization and variances of `options`;
/// the seed there is not read), each computed in T, mean and deviation by Welford's recurrence in f64. One
/// sample after the other, each on all workers: the same bits for any number of them. Costs `samples`
/// kernels. Throws what kernel() throws, ArgumentError below two samples, BudgetError with the least
/// that would do, before the first sample.
template <class T>
MonteCarloKernel monte_carlo_kernel(const models::Model& model, const models::NetworkOptions& options,
                                    TensorView<const T> x, const MonteCarloOptions& what,
                                    const Workers& workers);
/// The rectangular block between x and x'.
template <class T>
MonteCarloKernel monte_carlo_kernel(const models::Model& model, const models::NetworkOptions& options,
                                    TensorView<const T> x, TensorView<const T> versus,
                                    const MonteCarloOptions& what, const Workers& workers);

}  // namespace gradgram::ntk
