#include "ntk/estimators.hpp"

#include <Spectra/SymEigsSolver.h>
#include <fmt/format.h>

#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>

#include "engine/error.hpp"
#include "engine/random.hpp"

namespace gradgram::ntk {
namespace {

using Matrix = Eigen::MatrixXd;  // columns are vectors, as the rows of the operator's blocks are
using Eigen::Index;

// Streams of the seed: what is drawn for one purpose never meets another's numbers.
constexpr std::uint64_t kProbeStream = std::uint64_t{1} << 32;
constexpr std::uint64_t kRangeStream = std::uint64_t{2} << 32;
constexpr std::uint64_t kDensityStream = std::uint64_t{3} << 32;
constexpr std::uint64_t kStartStream = std::uint64_t{4} << 32;

Index index(std::size_t value) {
  return static_cast<Index>(value);
}

void random_signs(std::uint64_t seed, std::uint64_t stream, double* out, std::size_t n) {
  Random random(seed, stream);
  for (std::size_t i = 0; i < n; i += 32) {
    std::uint32_t bits = random.bits();
    for (std::size_t j = i; j < std::min(n, i + 32); ++j, bits >>= 1) out[j] = (bits & 1) != 0 ? 1.0 : -1.0;
  }
}

Matrix random_signs(std::uint64_t seed, std::uint64_t stream, std::size_t n, std::size_t count) {
  Matrix result(index(n), index(count));
  for (std::size_t c = 0; c < count; ++c) random_signs(seed, stream + c, result.col(index(c)).data(), n);
  return result;
}

/// K V, in pieces between which progress is told.
Matrix product(SymmetricOperator& kernel, const Matrix& vectors, const Progress& progress, std::size_t& done,
               std::size_t total) {
  constexpr Index kPiece = 16;
  Matrix result(vectors.rows(), vectors.cols());
  for (Index c = 0; c < vectors.cols(); c += kPiece) {
    const Index count = std::min(kPiece, vectors.cols() - c);
    const Shape shape{static_cast<std::size_t>(count), kernel.size()};
    kernel.apply({vectors.col(c).data(), shape}, {result.col(c).data(), shape});
    done += static_cast<std::size_t>(count);
    if (progress) progress(done, total);
  }
  return result;
}

/// P(|t| <= x) for a whole number of degrees of freedom: the finite series of Abramowitz and Stegun 26.7.3-4.
double student_inside(double x, std::size_t freedom) {
  const double angle = std::atan(x / std::sqrt(static_cast<double>(freedom)));
  const double square = std::cos(angle) * std::cos(angle);
  const bool odd = freedom % 2 == 1;
  double term = odd ? std::cos(angle) : 1;
  double sum = freedom == 1 ? 0 : term;
  for (std::size_t k = odd ? 3 : 2; k + 2 <= freedom; k += 2) {
    term *= square * static_cast<double>(k - 1) / static_cast<double>(k);
    sum += term;
  }
  return odd ? 2 / std::numbers::pi * (angle + std::sin(angle) * sum) : std::sin(angle) * sum;
}

/// The x with P(|t| <= x) = 0.95.
double student_quantile(std::size_t freedom) {
  double low = 1.9;
  double high = 13;  // one degree of freedom: 12.706
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (student_inside(middle, freedom) < 0.95 ? low : high) = middle;
  }
  return high;
}

Estimate shifted(Estimate estimate, double exact) {
  estimate.value += exact;
  estimate.low += exact;
  estimate.high += exact;
  return estimate;
}

/// Of the square root of what was estimated, which is not negative.
Estimate square_root(const Estimate& squares) {
  Estimate result = squares;
  result.value = std::sqrt(std::max(0.0, squares.value));
  result.low = std::sqrt(std::max(0.0, squares.low));
  result.high = std::sqrt(std::max(0.0, squares.high));
  result.standard_error = result.value > 0 ? squares.standard_error / (2 * result.value) : 0;
  return result;
}

void require(bool condition, const std::string& message) {
  if (!condition) throw ArgumentError(message);
}

/// An eigenvector is free in its sign: the first component that is largest to rounding becomes positive.
void fix_sign(Eigen::Ref<Eigen::VectorXd> vector) {
  const double largest = vector.cwiseAbs().maxCoeff();
  for (Index i = 0; i < vector.size(); ++i) {
    if (std::abs(vector[i]) < (1 - 1e-8) * largest) continue;
    if (vector[i] < 0) vector = -vector;
    return;
  }
}

/// K x / scale for Spectra, whose convergence test has an absolute part. Counts products.
class ScaledOperator {
 public:
  using Scalar = double;
  ScaledOperator(SymmetricOperator& kernel, double scale, std::size_t& products, const Progress& progress,
                 std::size_t expected)
      : kernel_(kernel), inverse_(1 / scale), products_(products), progress_(progress), expected_(expected) {}
  Index rows() const { return index(kernel_.size()); }
  Index cols() const { return rows(); }
  void perform_op(const double* x, double* y) const {
    const Shape shape{1, kernel_.size()};
    kernel_.apply({x, shape}, {y, shape});
    for (std::size_t i = 0; i < kernel_.size(); ++i) y[i] *= inverse_;
    ++products_;
    if (progress_) progress_(products_, std::max(products_ + 1, expected_));
  }

 private:
  SymmetricOperator& kernel_;
  double inverse_;
  std::size_t& products_;
  const Progress& progress_;
  std::size_t expected_;  ///< products before the first restart
};

/// One probe's Lanczos recurrence: the basis so far and the tridiagonal matrix.
struct Recurrence {
  Matrix basis;  ///< [n, steps]
  std::vector<double> diagonal;
  std::vector<double> beside;
  bool ended = false;  ///< the Krylov space is used up: the quadrature is exact

  Recurrence(std::size_t n, std::size_t steps, std::uint64_t seed, std::uint64_t stream)
      : basis(index(n), index(steps)) {
    random_signs(seed, stream, basis.col(0).data(), n);
    basis.col(0) /= std::sqrt(static_cast<double>(n));
  }

  /// `next`: K times the newest basis vector; overwritten.
  void advance(Eigen::Ref<Eigen::VectorXd> next, double rounding) {
    const Index step = index(diagonal.size());
    const double before = next.norm();
    diagonal.push_back(basis.col(step).dot(next));
    // Twice is enough: the first pass leaves rounding of the size of what it removed.
    const auto known = basis.leftCols(step + 1);
    for (int pass = 0; pass < 2; ++pass) next -= known * (known.transpose() * next).eval();
    const double norm = next.norm();
    largest = std::max(largest, before);
    if (step + 1 == basis.cols() || !(norm > rounding * largest)) {
      ended = true;
      return;
    }
    beside.push_back(norm);
    basis.col(step + 1) = next / norm;
  }

  std::vector<SpectralDensity::Node> nodes() const {
    const Eigen::Map<const Eigen::VectorXd> a(diagonal.data(), index(diagonal.size()));
    const Eigen::Map<const Eigen::VectorXd> b(beside.data(), index(diagonal.size()) - 1);
    Eigen::SelfAdjointEigenSolver<Matrix> solver;
    solver.computeFromTridiagonal(a, b);
    if (solver.info() != Eigen::Success) {
      throw NumericError("spectral_density: the eigenvalues of a tridiagonal matrix of " +
                         std::to_string(diagonal.size()) + " rows did not converge");
    }
    std::vector<SpectralDensity::Node> result;
    for (Index i = 0; i < a.size(); ++i) {
      const double component = solver.eigenvectors()(0, i);
      result.push_back({solver.eigenvalues()[i], component * component});
    }
    return result;
  }

 private:
  double largest = 0;
};

}  // namespace

Estimate mean_of(std::span<const double> samples) {
  require(samples.size() >= 2,
          "mean_of: samples (" + std::to_string(samples.size()) + ") must be at least 2 for an error bar");
  Estimate result;
  result.probes = samples.size();
  const auto count = static_cast<double>(samples.size());
  double sum = 0;
  for (const double value : samples) sum += value;
  result.value = sum / count;
  double squares = 0;
  for (const double value : samples) squares += (value - result.value) * (value - result.value);
  result.standard_error = std::sqrt(squares / (count - 1) / count);
  const double half = student_quantile(samples.size() - 1) * result.standard_error;
  result.low = result.value - half;
  result.high = result.value + half;
  return result;
}

Moments estimate_moments(SymmetricOperator& kernel, const ProbeOptions& options) {
  const std::size_t n = kernel.size();
  const bool deflate = options.method == TraceMethod::HutchPlusPlus;
  const std::size_t least = deflate ? 6 : 2;
  require(options.products >= least, "estimate_moments: products (" + std::to_string(options.products) +
                                         ") must be at least " + std::to_string(least));
  Moments result;
  if (n == 0) return result;
  const std::size_t range = deflate ? std::min(options.products / 3, n) : 0;
  const std::size_t probes = options.products - 2 * range;
  const std::size_t total = 2 * range + probes;

  double exact_trace = 0;
  double exact_squares = 0;
  Matrix q;
  if (range != 0) {
    const Matrix sketch = product(kernel, random_signs(options.seed, kRangeStream, n, range),
                                  options.progress, result.products, total);
    // Householder: orthonormal to rounding even where the sketch has lost rank.
    q = Eigen::HouseholderQR<Matrix>(sketch).householderQ() * Matrix::Identity(index(n), index(range));
    const Matrix kq = product(kernel, q, options.progress, result.products, total);
    exact_trace = (q.array() * kq.array()).sum();
    exact_squares = kq.squaredNorm();
  }
  std::vector<double> traces;
  std::vector<double> squares;
  constexpr std::size_t kPiece = 16;
  for (std::size_t first = 0; first < probes; first += kPiece) {
    const std::size_t count = std::min(kPiece, probes - first);
    Matrix z = random_signs(options.seed, kProbeStream + first, n, count);
    if (range != 0) z -= q * (q.transpose() * z).eval();
    const Matrix kz = product(kernel, z, options.progress, result.products, total);
    for (Index c = 0; c < index(count); ++c) {
      traces.push_back(z.col(c).dot(kz.col(c)));
      squares.push_back(kz.col(c).squaredNorm());
    }
  }
  result.trace = shifted(mean_of(traces), exact_trace);
  result.frobenius = square_root(shifted(mean_of(squares), exact_squares));
  return result;
}

TopPairs largest_pairs(SymmetricOperator& kernel, const TopOptions& options) {
  const std::size_t n = kernel.size();
  const std::size_t top = options.top;
  require(top > 0 && top <= n, "largest_pairs: top (" + std::to_string(top) +
                                   ") must be positive and at most the size of the kernel (" +
                                   std::to_string(n) + ")");
  TopPairs result;
  // The largest eigenvalue to within a factor: one product with a random vector.
  Eigen::VectorXd start(index(n));
  Random random(options.seed, kStartStream);
  for (double& value : start) value = random.normal();
  start.normalize();
  Eigen::VectorXd image(index(n));
  const Shape one{1, n};
  kernel.apply({start.data(), one}, {image.data(), one});
  ++result.products;
  const double scale = image.norm();
  if (!std::isfinite(scale)) throw NumericError("largest_pairs: a product with the kernel is not finite");
  if (scale == 0) {
    // The kernel is zero, of which any vectors are eigenvectors.
    result.values.assign(top, 0.0);
    result.residuals.assign(top, 0.0);
    result.vectors = Tensor<double>(Shape{top, n});
    for (std::size_t i = 0; i < top; ++i) result.vectors(i, i) = 1;
    return result;
  }

  const std::size_t krylov = std::max<std::size_t>(2 * top + 1, 20);
  const double tolerance = std::max(1e-12, kernel.relative_error());
  const double allowed = 1e-10 + 100 * kernel.relative_error();
  Eigen::VectorXd values;
  Matrix vectors;
  Eigen::VectorXd residuals;
  const auto measure = [&] {
    const Matrix images = product(kernel, vectors, options.progress, result.products, result.products + top);
    residuals = (images - vectors * values.asDiagonal()).colwise().norm();
    return (residuals.array() <= allowed * std::abs(values[0])).all();
  };
  if (krylov >= n) {
    // Lanczos would see the whole space: the matrix itself is as cheap, and no vector is missed.
    const Matrix columns =
        product(kernel, Matrix::Identity(index(n), index(n)), options.progress, result.products, n + 1);
    const Eigen::SelfAdjointEigenSolver<Matrix> solver((columns + columns.transpose()) / 2);
    if (solver.info() != Eigen::Success) {
      throw NumericError("largest_pairs: the eigenvalues of a matrix of " + std::to_string(n) +
                         " rows did not converge");
    }
    values = solver.eigenvalues().reverse().head(index(top));
    vectors = solver.eigenvectors().rowwise().reverse().leftCols(index(top));
    measure();
  } else {
    bool good = false;
    ScaledOperator operation(kernel, scale, result.products, options.progress, krylov);
    Spectra::SymEigsSolver<ScaledOperator> solver(operation, index(top), index(krylov));
    solver.init(start.data());
    try {
      solver.compute(Spectra::SortRule::LargestAlge, index(options.max_restarts), tolerance);
      if (solver.info() != Spectra::CompInfo::Successful) {
        throw NumericError("largest_pairs: Lanczos did not find the " + std::to_string(top) +
                           " largest eigenvalues of a kernel of " + std::to_string(n) + " rows in " +
                           std::to_string(options.max_restarts) + " restarts");
      }
      values = solver.eigenvalues() * scale;
      vectors = solver.eigenvectors();
      good = measure();
    } catch (const ArgumentError&) {
      // Lanczos asked for a product with a vector that is not finite.
    }
    if (!good) {
      // Of a kernel whose rank is below the Krylov space's, Lanczos breaks down; the images of as many random
      // vectors then span all of its range.
      Matrix range = random_signs(options.seed, kRangeStream, n, krylov);
      for (int pass = 0; pass < 2; ++pass) {
        const Matrix images =
            product(kernel, range, options.progress, result.products, result.products + krylov);
        range =
            Eigen::HouseholderQR<Matrix>(images).householderQ() * Matrix::Identity(index(n), index(krylov));
      }
      const Matrix images =
          product(kernel, range, options.progress, result.products, result.products + krylov);
      const Matrix small = range.transpose() * images;
      const Eigen::SelfAdjointEigenSolver<Matrix> inner((small + small.transpose()) / 2);
      values = inner.eigenvalues().reverse().head(index(top));
      vectors = range * inner.eigenvectors().rowwise().reverse().leftCols(index(top));
      measure();
    }
  }
  for (Index c = 0; c < vectors.cols(); ++c) fix_sign(vectors.col(c));
  result.vectors = Tensor<double>(Shape{top, n});
  std::copy_n(vectors.data(), vectors.size(), result.vectors.data());
  const double limit = allowed * std::abs(values[0]);
  for (Index c = 0; c < index(top); ++c) {
    result.values.push_back(values[c]);
    result.residuals.push_back(residuals[c]);
    if (!(residuals[c] <= limit)) {
      throw NumericError(
          fmt::format("largest_pairs: the residual ||K u - lambda u|| of pair {} is {:.3g}, beyond rounding "
                      "({:.3g}): the "
                      "kernel is not symmetric, or less precise than it says",
                      c, result.residuals.back(), limit));
    }
  }
  return result;
}

SpectralDensity spectral_density(SymmetricOperator& kernel, const DensityOptions& options) {
  require(options.probes >= 2,
          "spectral_density: probes (" + std::to_string(options.probes) + ") must be at least 2");
  require(options.steps > 0 && options.block > 0, "spectral_density: steps (" +
                                                      std::to_string(options.steps) + ") and block (" +
                                                      std::to_string(options.block) + ") must be positive");
  SpectralDensity result;
  result.n = kernel.size();
  require(result.n > 0, "spectral_density: the size of the kernel (0) must be positive");
  const std::size_t n = result.n;
  const std::size_t steps = std::min(options.steps, n);
  // Where rounding of the product is all that is left of the next vector, Lanczos has seen everything.
  const double rounding =
      std::max(kernel.relative_error(), static_cast<double>(n) * std::numeric_limits<double>::epsilon());
  for (std::size_t first = 0; first < options.probes; first += options.block) {
    const std::size_t count = std::min(options.block, options.probes - first);
    std::vector<Recurrence> recurrences;
    for (std::size_t p = 0; p < count; ++p) {
      recurrences.emplace_back(n, steps, options.seed, kDensityStream + first + p);
    }
    for (std::size_t step = 0; step < steps; ++step) {
      std::vector<Recurrence*> running;
      for (Recurrence& recurrence : recurrences) {
        if (!recurrence.ended) running.push_back(&recurrence);
      }
      if (running.empty()) break;
      Matrix newest(index(n), index(running.size()));
      for (std::size_t r = 0; r < running.size(); ++r) {
        newest.col(index(r)) = running[r]->basis.col(index(step));
      }
      Matrix next = product(kernel, newest, {}, result.products, 0);
      for (std::size_t r = 0; r < running.size(); ++r) running[r]->advance(next.col(index(r)), rounding);
      if (options.progress) options.progress(first * steps + (step + 1) * count, options.probes * steps);
    }
    for (const Recurrence& recurrence : recurrences) result.probes.push_back(recurrence.nodes());
  }
  return result;
}

Estimate SpectralDensity::cdf(double x) const {
  Estimate result = sum([x](double value) { return value <= x ? 1.0 : 0.0; });
  const auto count = static_cast<double>(n);
  result.value /= count;
  result.standard_error /= count;
  result.low = std::max(0.0, result.low / count);
  result.high = std::min(1.0, result.high / count);
  return result;
}

Estimate SpectralDensity::sum(const std::function<double(double)>& f) const {
  std::vector<double> samples;
  for (const auto& nodes : probes) {
    double mean = 0;
    for (const Node& node : nodes) mean += node.weight * f(node.value);
    samples.push_back(static_cast<double>(n) * mean);
  }
  return mean_of(samples);
}

Estimate SpectralDensity::effective_dimension(double lambda) const {
  require(lambda > 0 && std::isfinite(lambda),
          "effective_dimension: lambda (" + std::to_string(lambda) + ") must be positive");
  return sum([lambda](double value) { return std::max(0.0, value) / (std::max(0.0, value) + lambda); });
}

double SpectralDensity::largest() const {
  double result = -std::numeric_limits<double>::infinity();
  for (const auto& nodes : probes) result = std::max(result, nodes.back().value);
  return result;
}

}  // namespace gradgram::ntk
