#pragma once

#include <cstddef>
#include <limits>
#include <span>
#include <stop_token>
#include <string>

#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "ntk/cholesky.hpp"
#include "ntk/kernel_operator.hpp"
#include "ntk/spectrum.hpp"

/// What a network whose kernel does not move learns from squared losses: exact at any time, on the training
/// examples X [n] and on others x* [m] (docs/predict.md). Outputs, targets and initial outputs are [n, C] or
/// [n]; the same kernel serves each of the C columns. For a kernel of full O x O blocks see join_outputs().
namespace gradgram::ntk {

/// Which squared loss a learning rate belongs to; r = f(X) - y has n C entries. The rate of HalfSum is what
/// the formulas below and dynamics.hpp call the rate.
enum class LossScale {
  HalfSum,   ///< 1/2 sum r^2
  Mean,      ///< (1 / nC) sum r^2: gradgram's trainer, torch.nn.MSELoss. Its rate acts as 2 / nC of HalfSum's
  HalfMean,  ///< (1 / 2nC) sum r^2: neural-tangents. Its rate acts as 1 / nC of HalfSum's
};
/// The rate under HalfSum that does what `rate` does under `scale`, and back. Throws ArgumentError for n C =
/// 0.
double rate_of_half_sum(double rate, LossScale scale, std::size_t n, std::size_t columns);
double rate_under(LossScale scale, double rate_of_half_sum, std::size_t n, std::size_t columns);

/// How the loss 1/2 sum r^2 + ridge/2 ||theta - theta_0||^2 is descended.
enum class Descent {
  Flow,       ///< d theta / dt = -rate * gradient
  Steps,      ///< theta -= rate * gradient
  HeavyBall,  ///< v = momentum v + gradient, theta -= rate v; v_0 = 0 (Polyak; torch.optim.SGD)
  Nesterov,   ///< v = momentum v + gradient, theta -= rate (gradient + momentum v) (torch.optim.SGD's form)
};

inline constexpr double kForever = std::numeric_limits<double>::infinity();

struct Learning {
  Descent descent = Descent::Flow;
  double rate = 1;         ///< > 0, of LossScale::HalfSum
  double momentum = 0;     ///< of HeavyBall and Nesterov, in [0, 1)
  double time = kForever;  ///< >= 0: of Flow any number, otherwise a whole number of steps; or kForever
  double ridge = 0;        ///< >= 0
};

/// What learning does along an eigenvector of eigenvalue lambda >= 0.
struct Learned {
  /// (1 - remaining) / (lambda + ridge) with the regularized residual's remaining share: the outputs on x*
  /// move by -K(x*, X) u gained <u, r_0>. Exact also where lambda is 0 or tiny.
  double gained = 0;
  double remaining = 1;  ///< share of the residual that is left, 1 - lambda * gained
};
/// Flow: gained = (1 - exp(-rate s time)) / s, s = lambda + ridge. Descent: the recursion itself, as a power
/// of its 3 x 3 matrix (O(log time), rounding error about time * eps). Forever: 1 / s, or 0 when s = 0.
/// Throws ArgumentError, naming the number of `learning` that is not acceptable; may overflow where the
/// descent diverges.
Learned learned(const Learning& learning, double lambda);

/// The rate (of HalfSum) below which descent converges along every eigenvector: 2 / s for Steps,
/// 2 (1 + momentum) / s for HeavyBall, (2 + 2 momentum) / ((1 + 2 momentum) s) for Nesterov, infinity for
/// Flow; s = largest_eigenvalue + ridge. Infinity for s = 0. Throws ArgumentError.
double largest_stable_rate(Descent descent, double largest_eigenvalue, double momentum = 0, double ridge = 0);

/// Outputs [n, C] on the training examples: y + U^T remaining U (f_0 - y). `initial` = f_0(X), or an empty
/// view for zeros (a kernel method; an infinite network's mean). Needs all eigenpairs; negative
/// values within their error bar count as 0, forever without a ridge positive ones too. 4 n^2 C
/// multiply-adds. Throws ShapeError, ArgumentError, NumericError when an eigenvalue with its ridge is below
/// zero by more than the error bar (naming the smallest and a ridge that does), when the result is not finite
/// (naming the largest stable rate) or forever is asked of a descent that diverges.
Tensor<double> predict_train(const Spectrum& spectrum, const Learning& learning, TensorView<const double> y,
                             TensorView<const double> initial = {});
/// Outputs [m, C] on others: f_0(x*) - K(x*, X) U^T gained U (f_0(X) - y); versus = K(x*, X) [m, n],
/// initial_versus = f_0(x*) or empty like `initial`. Besides 2 m n C multiply-adds.
Tensor<double> predict(const Spectrum& spectrum, const Learning& learning, TensorView<const double> versus,
                       TensorView<const double> y, TensorView<const double> initial = {},
                       TensorView<const double> initial_versus = {});

/// A Gaussian law of outputs: the columns are independent, with the same covariance.
struct GaussianOutputs {
  Tensor<double> mean;        ///< [m, C]
  Tensor<double> covariance;  ///< [m, m], or variances [m], or empty
  /// [n, C] (K(X, X) + shift I)^-1 y, of gaussian_process() alone.
  Tensor<double> coefficients;
};

/// Posterior of a Gaussian process with prior covariance K and observations y + N(0, shift) at X, where
/// `factor` is K(X, X) + shift I: mean K(x*, X) (K + shift)^-1 y, covariance K(x*, x*) - K(x*, X) (K +
/// shift)^-1 K(X, x*) of the noiseless function. With the NNGP kernel: an infinite network whose last layer
/// alone is trained, or that is drawn until it fits (Lee et al. 2018). `prior` = K(x*, x*) [m, m] for the
/// covariance, its diagonal [m] for the variances, or empty. 2 n^2 C + n^2 m (with covariance) + n m^2
/// multiply-adds, m n numbers.
GaussianOutputs gaussian_process(const CholeskyFactor& factor, TensorView<const double> versus,
                                 TensorView<const double> prior, TensorView<const double> y,
                                 const Workers& workers);
/// log p(y) of the observations under that process, summed over the columns.
double log_marginal_likelihood(const CholeskyFactor& factor, TensorView<const double> y,
                               const Workers& workers);

/// Law over initializations of an infinitely wide network that has learned (Lee et al. 2019, section 2.3.1):
/// a trained network is f_0(x*) - A (f_0(X) - y) with A = T(x*, X) U^T gained U and f_0 a Gaussian process of
/// covariance K, so that
///   mean A y,  covariance K(x*, x*) - A K(X, x*) - K(x*, X) A^T + A K(X, X) A^T
/// with T the tangent kernel, whose eigenpairs are `tangent`, and K the NNGP covariance. The same bits for
/// any number of workers. For an ensemble of finite networks this is the limit of its mean and covariance.
/// `prior` as for gaussian_process(). m n^2 + n m^2 multiply-adds or, for variances, 2 m n^2.
GaussianOutputs ensemble(const Spectrum& tangent, const Learning& learning,
                         TensorView<const double> tangent_versus, TensorView<const double> nngp,
                         TensorView<const double> nngp_versus, TensorView<const double> prior,
                         TensorView<const double> y, const Workers& workers = Workers(1));
/// The same on the training examples: mean y - B y, covariance B K(X, X) B, B = U^T remaining U. Variances
/// [n] alone unless `covariance`.
GaussianOutputs ensemble_train(const Spectrum& tangent, const Learning& learning,
                               TensorView<const double> nngp, TensorView<const double> y,
                               bool covariance = true, const Workers& workers = Workers(1));

struct RegressionOptions {
  double ridge = 0;
  /// Bytes for a factor in f64 (8 n^2) and the right-hand sides; when they do not suffice, conjugate
  /// gradients run on the kernel as it is. 0 = half of the machine's.
  std::size_t memory = 0;
  double tolerance = 1e-8;  ///< of conjugate gradients
  std::size_t most_iterations = 2000;
  std::size_t rank = 0;  ///< of their preconditioner; ConjugateGradientOptions
  Progress progress = {};
  std::stop_token stop = {};
};

/// (K + ridge I)^-1 y, of which K(x*, X) times it are the predictions of kernel regression: what a network
/// has learned forever, and a Gaussian process's posterior mean.
struct Regression {
  Tensor<double> coefficients;  ///< [n, C]
  bool factored = false;        ///< by Cholesky, otherwise by conjugate gradients
  /// The largest ||y - (K + ridge I) x|| / ||y|| of the columns, from a product with the kernel.
  double residual = 0;
  std::size_t iterations = 0;  ///< of conjugate gradients, the most of any column
  std::size_t rank = 0;        ///< of their preconditioner
};
/// The least RegressionOptions::memory that kernel_regression() of n examples and `columns` right-hand sides
/// does with: what a factor takes, or conjugate gradients.
std::size_t least_regression_bytes(std::size_t n, std::size_t columns, std::size_t workers);
/// The kernel [n, n] in memory or mapped (MappedNpy). Throws ShapeError, ArgumentError, NotPositiveDefinite,
/// NumericError without convergence, BudgetError when not even the right-hand sides and the preconditioner
/// fit, Cancelled.
template <class T>
Regression kernel_regression(TensorView<const T> kernel, TensorView<const double> y,
                             const RegressionOptions& options, const Workers& workers);
/// The kernel by its products alone.
Regression kernel_regression(SymmetricOperator& kernel, TensorView<const double> y,
                             const RegressionOptions& options);

/// K(x*, X) c [m, C] for coefficients c [n, C] (or [n]); in f64 from panels of rows. Throws ShapeError.
template <class T>
Tensor<double> apply_kernel(TensorView<const T> versus, TensorView<const double> coefficients,
                            const Workers& workers);

/// Largest eigenvalue of a symmetric positive semidefinite operator by Lanczos, to about 1e-10. 0 for a zero
/// matrix. Throws what largest_pairs() throws.
double largest_eigenvalue(SymmetricOperator& kernel);

/// A kernel of O x O blocks [n, m, O, O] (Reduce::Full) as one matrix [n O, m O] of which row i O + k is
/// output k of example i; outputs and targets [n, C = O] are then one column [n O]. Exact for finite
/// networks, where the outputs' kernels differ and are not independent. Throws ShapeError.
template <class T>
Tensor<double> join_outputs(TensorView<const T> kernel);

}  // namespace gradgram::ntk
