#include "ntk/estimators.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "ntk/spectrum.hpp"
#include "tests/ntk/kernel_cases.hpp"

namespace gradgram::ntk {
namespace {

/// A matrix of known eigenvalues: H diag(values) H with a Householder reflection H of a fixed random vector.
class KnownOperator final : public SymmetricOperator {
 public:
  explicit KnownOperator(std::vector<double> values, double error = 0)
      : values_(std::move(values)), direction_(values_.size()), error_(error) {
    Random random(77);
    double squares = 0;
    for (double& component : direction_) {
      component = random.normal();
      squares += component * component;
    }
    for (double& component : direction_) component /= std::sqrt(squares);
  }
  std::size_t size() const override { return values_.size(); }
  double relative_error() const override { return std::max(error_, 4e-15); }
  void apply(TensorView<const double> v, TensorView<double> out) override {
    for (std::size_t r = 0; r < v.shape()[0]; ++r) {
      std::vector<double> x(v.data() + r * size(), v.data() + (r + 1) * size());
      reflect(x);
      for (std::size_t i = 0; i < size(); ++i) x[i] *= values_[i];
      reflect(x);
      std::copy(x.begin(), x.end(), out.data() + r * size());
      ++products;
    }
  }
  double trace() const {
    double sum = 0;
    for (const double value : values_) sum += value;
    return sum;
  }
  double frobenius() const {
    double sum = 0;
    for (const double value : values_) sum += value * value;
    return std::sqrt(sum);
  }
  const std::vector<double>& values() const { return values_; }

  std::size_t products = 0;

 private:
  void reflect(std::vector<double>& x) const {
    double dot = 0;
    for (std::size_t i = 0; i < x.size(); ++i) dot += direction_[i] * x[i];
    for (std::size_t i = 0; i < x.size(); ++i) x[i] -= 2 * dot * direction_[i];
  }
  std::vector<double> values_;
  std::vector<double> direction_;
  double error_;
};

std::vector<double> generated(std::size_t n, const std::function<double(double)>& value) {
  std::vector<double> values(n);
  for (std::size_t i = 0; i < n; ++i) values[i] = value(static_cast<double>(i));
  return values;
}

/// A dense random symmetric matrix: its off-diagonal part is what random signs feel.
class DenseOperator final : public SymmetricOperator {
 public:
  explicit DenseOperator(std::size_t n, std::size_t rank) : n_(n), matrix_(n * n) {
    Random random(5);
    std::vector<double> factors(n * rank);
    for (double& value : factors) value = random.normal();
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        for (std::size_t k = 0; k < rank; ++k) {
          matrix_[i * n + j] += factors[i * rank + k] * factors[j * rank + k] / static_cast<double>(k + 1);
        }
      }
    }
  }
  std::size_t size() const override { return n_; }
  double relative_error() const override { return 4e-15; }
  void apply(TensorView<const double> v, TensorView<double> out) override {
    for (std::size_t r = 0; r < v.shape()[0]; ++r) {
      for (std::size_t i = 0; i < n_; ++i) {
        double sum = 0;
        for (std::size_t j = 0; j < n_; ++j) sum += matrix_[i * n_ + j] * v(r, j);
        out(r, i) = sum;
      }
    }
  }
  double trace() const {
    double sum = 0;
    for (std::size_t i = 0; i < n_; ++i) sum += matrix_[i * n_ + i];
    return sum;
  }
  double frobenius() const {
    double sum = 0;
    for (const double value : matrix_) sum += value * value;
    return std::sqrt(sum);
  }

 private:
  std::size_t n_;
  std::vector<double> matrix_;
};

constexpr std::size_t kSeeds = 200;

struct Coverage {
  double trace = 0, frobenius = 0;  ///< share of seeds whose interval holds the truth
  double half_trace = 0;            ///< the same for intervals of half the width
  double trace_error = 0;           ///< root mean square
  double trace_bias = 0, trace_mean_se = 0;
};

template <class Operator>
Coverage coverage(Operator& k, TraceMethod method, std::size_t products) {
  Coverage result;
  for (std::size_t seed = 0; seed < kSeeds; ++seed) {
    const Moments m = estimate_moments(k, {.method = method, .products = products, .seed = seed});
    const auto inside = [](const Estimate& e, double truth) { return e.low <= truth && truth <= e.high; };
    result.trace += inside(m.trace, k.trace());
    result.frobenius += inside(m.frobenius, k.frobenius());
    const double error = m.trace.value - k.trace();
    result.half_trace += std::abs(error) <= (m.trace.high - m.trace.low) / 4;
    result.trace_error += error * error;
    result.trace_bias += error;
    result.trace_mean_se += m.trace.standard_error;
  }
  const auto count = static_cast<double>(kSeeds);
  result.trace /= count;
  result.frobenius /= count;
  result.half_trace /= count;
  result.trace_bias /= count;
  result.trace_mean_se /= count;
  result.trace_error = std::sqrt(result.trace_error / count);
  return result;
}

// 95 % of 200 is 190 +- 3.1: 0.88 to 1 by more than four standard deviations, were the samples normal.
// Quadratic forms in signs are nearly so.
void expect_honest(const Coverage& c) {
  EXPECT_GE(c.trace, 0.88);
  EXPECT_GE(c.frobenius, 0.89);   // squares of quadratic forms have heavier tails
  EXPECT_LT(c.half_trace, 0.85);  // half the interval is not enough: the bars are not merely wide
  EXPECT_LE(std::abs(c.trace_bias), 4.5 * c.trace_error / std::sqrt(static_cast<double>(kSeeds)));
  EXPECT_NEAR(c.trace_mean_se / c.trace_error, 1, 0.2);
}

TEST(Moments, IntervalsHoldTheTruthAsOftenAsTheySay) {
  DenseOperator dense(41, 60);
  KnownOperator decaying(generated(97, [](double i) { return std::pow(1 + i, -1.0); }));
  for (const TraceMethod method : {TraceMethod::Hutchinson, TraceMethod::HutchPlusPlus}) {
    SCOPED_TRACE(method == TraceMethod::Hutchinson ? "Hutchinson" : "Hutch++");
    expect_honest(coverage(dense, method, 45));
    expect_honest(coverage(decaying, method, 60));
  }
}

TEST(Moments, DeflationWinsWhereEigenvaluesDecay) {
  DenseOperator decaying(83, 30);  // falls as 1 / k and ends at rank 30
  const Coverage plain = coverage(decaying, TraceMethod::Hutchinson, 60);
  const Coverage deflated = coverage(decaying, TraceMethod::HutchPlusPlus, 60);
  EXPECT_LT(deflated.trace_error, 0.2 * plain.trace_error);
  EXPECT_LT(deflated.trace_mean_se, 0.2 * plain.trace_mean_se);
  // Where they do not decay there is nothing to win: the comparison can fail.
  KnownOperator flat(generated(83, [](double i) { return i < 41 ? 1.0 : 1.1; }));
  const Coverage a = coverage(flat, TraceMethod::Hutchinson, 30);
  const Coverage b = coverage(flat, TraceMethod::HutchPlusPlus, 30);
  EXPECT_GT(b.trace_error, 0.2 * a.trace_error);
}

TEST(Moments, ExactWhenTheRangeIsFound) {
  DenseOperator k(37, 5);
  const Moments m = estimate_moments(k, {.products = 24, .seed = 3});
  EXPECT_EQ(m.products, 24U);
  EXPECT_EQ(m.trace.probes, 8U);
  EXPECT_NEAR(m.trace.value, k.trace(), 1e-11 * k.trace());
  EXPECT_NEAR(m.frobenius.value, k.frobenius(), 1e-11 * k.frobenius());
  EXPECT_LE(m.trace.standard_error, 1e-11 * k.trace());
  // A rank beyond the sketch leaves an error, and a bar that says so.
  DenseOperator wide(37, 30);
  const Moments rest = estimate_moments(wide, {.products = 24, .seed = 3});
  EXPECT_GT(std::abs(rest.trace.value - wide.trace()), 1e-6 * wide.trace());
  EXPECT_GT(rest.trace.standard_error, 1e-4 * wide.trace());
}

TEST(Moments, AreFixedByTheSeed) {
  DenseOperator k(29, 29);
  const auto a = estimate_moments(k, {.products = 31, .seed = 8});
  const auto b = estimate_moments(k, {.products = 31, .seed = 8});
  const auto c = estimate_moments(k, {.products = 31, .seed = 9});
  EXPECT_EQ(a.trace.value, b.trace.value);
  EXPECT_EQ(a.frobenius.high, b.frobenius.high);
  EXPECT_NE(a.trace.value, c.trace.value);
  EXPECT_THROW(estimate_moments(k, {.products = 5}), ArgumentError);
  EXPECT_THROW(estimate_moments(k, {.method = TraceMethod::Hutchinson, .products = 1}), ArgumentError);
}

TEST(MeanOf, UsesStudentsQuantiles) {
  // Two-sided 95 % quantiles of Student's t, from a table.
  const std::vector<std::pair<std::size_t, double>> table = {{1, 12.7062}, {2, 4.3027},  {3, 3.1824},
                                                             {4, 2.7764},  {7, 2.3646},  {10, 2.2281},
                                                             {29, 2.0452}, {120, 1.9799}};
  for (const auto& [freedom, quantile] : table) {
    std::vector<double> samples(freedom + 1);
    for (std::size_t i = 0; i < samples.size(); ++i) samples[i] = static_cast<double>(i * i % 7);
    const Estimate e = mean_of(samples);
    EXPECT_NEAR((e.high - e.value) / e.standard_error, quantile, 1e-4) << freedom;
    EXPECT_NEAR((e.value - e.low) / e.standard_error, quantile, 1e-4) << freedom;
  }
  const std::vector<double> two = {1, 4};
  EXPECT_DOUBLE_EQ(mean_of(two).value, 2.5);
  EXPECT_DOUBLE_EQ(mean_of(two).standard_error, 1.5);
  EXPECT_THROW(mean_of(std::span(two).first(1)), ArgumentError);
}

TEST(LargestPairs, AreThoseThatAreKnown) {
  for (const std::size_t top : {std::size_t{1}, std::size_t{5}, std::size_t{60}}) {
    KnownOperator k(generated(113, [](double i) { return 1e-6 * std::pow(1 + i, -0.7); }));
    const TopPairs found = largest_pairs(k, {.top = top});
    ASSERT_EQ(found.values.size(), top);
    EXPECT_EQ(found.products, k.products);
    for (std::size_t i = 0; i < top; ++i) {
      EXPECT_NEAR(found.values[i], k.values()[i], 1e-10 * k.values()[0]) << i;
      EXPECT_FALSE(std::abs(found.values[i] * (1 + 1e-3) - k.values()[i]) <= 1e-10 * k.values()[0]);
      EXPECT_LE(found.residuals[i], 1e-10 * k.values()[0]);
      double squares = 0;
      for (std::size_t j = 0; j < 113; ++j) squares += found.vectors(i, j) * found.vectors(i, j);
      EXPECT_NEAR(squares, 1, 1e-12);
    }
  }
  KnownOperator zero(std::vector<double>(9, 0.0));
  const TopPairs none = largest_pairs(zero, {.top = 2});
  EXPECT_EQ(none.values, (std::vector<double>{0, 0}));
  EXPECT_EQ(none.residuals, (std::vector<double>{0, 0}));
  EXPECT_EQ(none.vectors(0, 0), 1);
  EXPECT_EQ(none.vectors(1, 0), 0);
  EXPECT_EQ(none.vectors(1, 1), 1);
  KnownOperator small(std::vector<double>(9, 1.0));
  EXPECT_THROW(largest_pairs(small, {.top = 10}), ArgumentError);
  EXPECT_THROW(largest_pairs(small, {.top = 0}), ArgumentError);
}

TEST(LargestPairs, OfTinyKernels) {
  for (const std::size_t n :
       {std::size_t{1}, std::size_t{2}, std::size_t{3}, std::size_t{20}, std::size_t{21}}) {
    for (std::size_t top = 1; top <= n; ++top) {
      KnownOperator k(generated(n, [](double i) { return 1e3 / (1 + i); }));
      const TopPairs found = largest_pairs(k, {.top = top});
      ASSERT_EQ(found.values.size(), top);
      EXPECT_EQ(found.products, k.products);
      EXPECT_EQ(found.vectors.shape(), (Shape{top, n}));
      for (std::size_t i = 0; i < top; ++i) {
        EXPECT_NEAR(found.values[i], k.values()[i], 1e-9) << n << ' ' << top;
        EXPECT_LE(found.residuals[i], 1e-9);
      }
    }
  }
  // Repeated to the last bit, which Lanczos would not see.
  KnownOperator equal(std::vector<double>(9, 3.0));
  EXPECT_NEAR(largest_pairs(equal, {.top = 9}).values[8], 3, 1e-12);
}

TEST(LargestPairs, OfKernelsOfFewDirections) {
  // Lanczos breaks down where the range is smaller than its Krylov space.
  for (const std::size_t rank : {std::size_t{1}, std::size_t{2}, std::size_t{7}}) {
    std::vector<double> values(97, 0.0);
    for (std::size_t i = 0; i < rank; ++i) values[i] = 5.0 / static_cast<double>(i + 1);
    KnownOperator k(values);
    const TopPairs found = largest_pairs(k, {.top = 4});
    EXPECT_EQ(found.products, k.products);
    for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(found.values[i], values[i], 1e-9) << rank << ' ' << i;
  }
  KnownOperator equal(std::vector<double>(97, 3.0));
  for (const double value : largest_pairs(equal, {.top = 3}).values) EXPECT_NEAR(value, 3, 1e-9);
}

/// Not symmetric: Lanczos gives pairs, the residuals tell that they are none.
class Crooked final : public SymmetricOperator {
 public:
  std::size_t size() const override { return 60; }
  double relative_error() const override { return 4e-15; }
  void apply(TensorView<const double> v, TensorView<double> out) override {
    for (std::size_t r = 0; r < v.shape()[0]; ++r) {
      for (std::size_t i = 0; i < 60; ++i) {
        out(r, i) = v(r, i) / static_cast<double>(i + 1) + 0.3 * (i > 0 ? v(r, i - 1) : 0);
      }
    }
  }
};

TEST(LargestPairs, RefusesWhatTheResidualsDeny) {
  Crooked k;
  EXPECT_THROW(largest_pairs(k, {.top = 3}), NumericError);
}

template <class T>
void reads_a_network(const char* text, Shape input, std::size_t n, double tolerance) {
  SCOPED_TRACE(text);
  const models::Network<T> net(models::parse(text, input, {}), {.seed = 2});
  const auto x = kernel_cases::inputs_of<T>(input, n, 6);
  const auto matrix = kernel<T>(net, x, {}, Workers(1)).values;
  Tensor<double> wide(matrix.shape());
  std::copy(matrix.span().begin(), matrix.span().end(), wide.span().begin());
  const Spectrum truth = spectrum(wide, {.entry_error = 2e-6});
  std::vector<TopPairs> tops;
  std::vector<Moments> moments;
  std::vector<SpectralDensity> densities;
  for (const std::size_t threads : {1, 2, 7}) {
    const Workers workers(threads);
    KernelOperator<T> k(net, x, {}, workers);
    tops.push_back(largest_pairs(k, {.top = 4}));
    moments.push_back(estimate_moments(k, {.products = 30, .seed = 1}));
    densities.push_back(spectral_density(k, {.probes = 3, .steps = 20, .seed = 1, .block = threads}));
  }
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(tops[0].values[i], truth.values[i], tolerance * truth.values[0]);
    EXPECT_FALSE(std::abs(tops[0].values[i] - truth.values[i + 1]) <= tolerance * truth.values[0]);
  }
  EXPECT_NEAR(moments[0].trace.value, truth.trace,
              4 * moments[0].trace.standard_error + tolerance * truth.trace);
  EXPECT_NEAR(moments[0].frobenius.value, truth.frobenius,
              4 * moments[0].frobenius.standard_error + tolerance * truth.frobenius);
  EXPECT_LE(densities[0].largest(), truth.values[0] * (1 + tolerance));
  EXPECT_GE(densities[0].largest(), truth.values[0] * 0.99);
  for (std::size_t t = 1; t < 3; ++t) {
    EXPECT_EQ(tops[t].values, tops[0].values);
    EXPECT_EQ(std::memcmp(tops[t].vectors.data(), tops[0].vectors.data(), 4 * n * sizeof(double)), 0);
    EXPECT_EQ(moments[t].trace.high, moments[0].trace.high);
    for (std::size_t p = 0; p < 3; ++p) {
      ASSERT_EQ(densities[t].probes[p].size(), densities[0].probes[p].size());
      for (std::size_t j = 0; j < densities[0].probes[p].size(); ++j) {
        EXPECT_EQ(densities[t].probes[p][j].value, densities[0].probes[p][j].value);
        EXPECT_EQ(densities[t].probes[p][j].weight, densities[0].probes[p][j].weight);
      }
    }
  }
}

TEST(Estimators, ReadNetworks) {
  reads_a_network<double>("dense(13) tanh dense(1)", {5}, 131, 1e-9);
  reads_a_network<float>("dense(13) relu dense(3)", {5}, 131, 2e-5);
  reads_a_network<double>("conv(3,3) gelu avgpool(2) flatten dense(2)", {6, 6, 1}, 37, 1e-9);
  reads_a_network<float>("conv(3,3) relu gap dense(1)", {6, 6, 1}, 37, 2e-5);
}

/// Wasserstein-1 distance of the mean of the probes from the distribution of `values`: the integral of the
/// difference of their CDFs.
double distance(const SpectralDensity& density, std::vector<double> values) {
  struct Step {
    double at;
    double height;
  };
  std::vector<Step> steps;
  for (const double value : values) steps.push_back({value, -1.0 / static_cast<double>(values.size())});
  for (const auto& probe : density.probes) {
    for (const auto& node : probe) {
      steps.push_back({node.value, node.weight / static_cast<double>(density.probes.size())});
    }
  }
  std::sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) { return a.at < b.at; });
  double total = 0;
  double height = 0;
  for (std::size_t i = 0; i + 1 < steps.size(); ++i) {
    height += steps[i].height;
    total += std::abs(height) * (steps[i + 1].at - steps[i].at);
  }
  return total;
}

TEST(SpectralDensity, IsNearTheDistributionOfTheEigenvalues) {
  const std::vector<std::vector<double>> spectra = {
      generated(307, [](double i) { return std::pow(1 + i, -1.5); }),
      generated(307, [](double i) { return i < 100 ? 2 + i / 100 : i / 307; }),
      generated(307, [](double i) { return i / 306; })};
  for (const auto& values : spectra) {
    KnownOperator k(values);
    const double norm = *std::max_element(values.begin(), values.end());
    const SpectralDensity density = spectral_density(k, {.probes = 16, .steps = 40, .seed = 4});
    EXPECT_EQ(density.products, 16U * 40U);
    EXPECT_EQ(density.products, k.products);
    // The probes' error is about ||K|| / sqrt(probes n), the steps' about ||K|| / steps.
    const double bound = norm * (1 / std::sqrt(16.0 * 307) + 1 / 40.0);
    EXPECT_LE(distance(density, values), bound);
    std::vector<double> other = values;
    for (double& value : other) value += 0.1 * norm;
    EXPECT_FALSE(distance(density, other) <= bound);
    for (const auto& probe : density.probes) {
      double weight = 0;
      for (const auto& node : probe) weight += node.weight;
      EXPECT_NEAR(weight, 1, 1e-12);
    }
    EXPECT_LE(density.largest(), norm * (1 + 1e-12));
  }
}

TEST(SpectralDensity, FewStepsAreWorse) {
  KnownOperator k(generated(307, [](double i) { return i / 306; }));
  const double coarse = distance(spectral_density(k, {.probes = 16, .steps = 3, .seed = 4}), k.values());
  const double fine = distance(spectral_density(k, {.probes = 16, .steps = 30, .seed = 4}), k.values());
  EXPECT_LT(fine, 0.5 * coarse);
}

TEST(SpectralDensity, SumsHoldTheTruthAsOftenAsTheySay) {
  KnownOperator k(generated(101, [](double i) { return std::pow(1 + i, -1.0); }));
  double dimension = 0;
  for (const double value : k.values()) dimension += value / (value + 0.05);
  int inside = 0;
  int halves = 0;
  int traces = 0;
  const int seeds = 200;
  for (int seed = 0; seed < seeds; ++seed) {
    const auto density =
        spectral_density(k, {.probes = 8, .steps = 25, .seed = static_cast<std::uint64_t>(seed)});
    const Estimate e = density.effective_dimension(0.05);
    const Estimate t = density.sum([](double value) { return value; });
    inside += e.low <= dimension && dimension <= e.high;
    halves += std::abs(e.value - dimension) <= (e.high - e.low) / 4;
    traces += t.low <= k.trace() && k.trace() <= t.high;
  }
  EXPECT_GE(inside, seeds * 0.89);
  EXPECT_GE(traces, seeds * 0.89);
  EXPECT_LT(halves, seeds * 0.88);
}

TEST(SpectralDensity, EndsWhenEverythingIsSeen) {
  // Three distinct eigenvalues: a Krylov space of three vectors, and exact weights.
  KnownOperator k(generated(60, [](double i) { return i < 10 ? 3.0 : i < 30 ? 1.0 : 0.0; }));
  const auto density = spectral_density(k, {.probes = 5, .steps = 30, .seed = 1});
  for (const auto& probe : density.probes) {
    ASSERT_EQ(probe.size(), 3U);
    EXPECT_NEAR(probe[2].value, 3, 1e-12);
    EXPECT_NEAR(probe[1].value, 1, 1e-12);
    EXPECT_NEAR(probe[0].value, 0, 1e-12);
  }
  const Estimate below = density.cdf(0.5);
  EXPECT_NEAR(below.value, 0.5, 5 * below.standard_error);
  EXPECT_GT(below.standard_error, 0);
  EXPECT_NEAR(density.cdf(4).value, 1, 1e-12);
  EXPECT_EQ(density.cdf(-1).value, 0);
  KnownOperator zero(std::vector<double>(7, 0.0));
  EXPECT_EQ(spectral_density(zero, {.probes = 2}).largest(), 0);
  EXPECT_THROW(spectral_density(zero, {.probes = 1}), ArgumentError);
  EXPECT_THROW(spectral_density(zero, {.steps = 0}), ArgumentError);
  EXPECT_THROW(density.effective_dimension(0), ArgumentError);
}

}  // namespace
}  // namespace gradgram::ntk
