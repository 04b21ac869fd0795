#include "ntk/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>

#include "engine/error.hpp"
#include "engine/random.hpp"

namespace gradgram::ntk {
namespace {

void require_equal(std::size_t a, std::size_t b, const char* call) {
  if (a != b) {
    throw ShapeError(std::string(call) + ": lengths " + std::to_string(a) + " and " + std::to_string(b) +
                     " must match");
  }
}

void require_finite(std::span<const double> values, const char* call) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      throw NumericError(std::string(call) + ": value " + std::to_string(i) + " is " +
                         std::to_string(values[i]));
    }
  }
}

std::vector<std::size_t> ascending_order(std::span<const double> values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return values[a] != values[b] ? values[a] < values[b] : a < b;
  });
  return order;
}

/// Which distinct value each is, counted from the smallest.
std::vector<std::uint32_t> dense_codes(std::span<const double> values, std::size_t& distinct) {
  std::vector<std::uint32_t> codes(values.size());
  distinct = 0;
  const std::vector<std::size_t> order = ascending_order(values);
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && values[order[i]] != values[order[i - 1]]) ++distinct;
    codes[order[i]] = static_cast<std::uint32_t>(distinct);
  }
  if (!values.empty()) ++distinct;
  return codes;
}

/// Average rank of each code in a sample that holds counts[code] copies of it.
void ranks_of_counts(std::span<const std::uint32_t> counts, std::span<double> ranks) {
  double below = 0;
  for (std::size_t code = 0; code < counts.size(); ++code) {
    ranks[code] = below + (counts[code] + 1) / 2.0;
    below += counts[code];
  }
}

std::map<std::int32_t, std::vector<std::size_t>> members(std::span<const std::int32_t> classes) {
  std::map<std::int32_t, std::vector<std::size_t>> result;
  for (std::size_t i = 0; i < classes.size(); ++i) result[classes[i]].push_back(i);
  return result;
}

std::vector<double> gather(std::span<const double> values, const std::vector<std::size_t>& indices) {
  std::vector<double> result;
  result.reserve(indices.size());
  for (const std::size_t i : indices) result.push_back(values[i]);
  return result;
}

}  // namespace

std::vector<double> average_ranks(std::span<const double> values) {
  require_finite(values, "average_ranks");
  const std::vector<std::size_t> order = ascending_order(values);
  std::vector<double> ranks(values.size());
  for (std::size_t begin = 0; begin < order.size();) {
    std::size_t end = begin + 1;
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    for (std::size_t i = begin; i < end; ++i) ranks[order[i]] = static_cast<double>(begin + 1 + end) / 2;
    begin = end;
  }
  return ranks;
}

double correlation(std::span<const double> x, std::span<const double> y) {
  require_equal(x.size(), y.size(), "correlation");
  require_finite(x, "correlation");
  require_finite(y, "correlation");
  if (x.empty()) return 0;
  const auto constant = [](std::span<const double> values) {
    return std::all_of(values.begin(), values.end(), [&](double value) { return value == values[0]; });
  };
  if (constant(x) || constant(y)) return 0;
  const double n = static_cast<double>(x.size());
  const double x_mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
  const double y_mean = std::accumulate(y.begin(), y.end(), 0.0) / n;
  double xx = 0;
  double yy = 0;
  double xy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double dx = x[i] - x_mean;
    const double dy = y[i] - y_mean;
    xx += dx * dx;
    yy += dy * dy;
    xy += dx * dy;
  }
  // One root keeps +-1 exact; two keep the product in range.
  const double result = xy / (std::isnormal(xx * yy) ? std::sqrt(xx * yy) : std::sqrt(xx) * std::sqrt(yy));
  if (!std::isfinite(result)) throw NumericError("correlation: a variance overflows or underflows");
  return std::clamp(result, -1.0, 1.0);
}

double spearman(std::span<const double> x, std::span<const double> y) {
  require_equal(x.size(), y.size(), "spearman");
  return correlation(average_ranks(x), average_ranks(y));
}

double partial_spearman(std::span<const double> x, std::span<const double> y, std::span<const double> z) {
  const double xy = spearman(x, y);
  const double xz = spearman(x, z);
  const double yz = spearman(y, z);
  const double x_left = 1 - xz * xz;
  const double y_left = 1 - yz * yz;
  // Below this nothing but rounding is left of x or y.
  constexpr double kNothing = 1e-12;
  if (!(x_left > kNothing && y_left > kNothing)) return 0;
  return std::clamp((xy - xz * yz) / std::sqrt(x_left * y_left), -1.0, 1.0);
}

double spearman_within(std::span<const double> x, std::span<const double> y,
                       std::span<const std::int32_t> classes) {
  require_equal(x.size(), y.size(), "spearman_within");
  require_equal(x.size(), classes.size(), "spearman_within");
  double sum = 0;
  double weight = 0;
  for (const auto& [label, indices] : members(classes)) {
    if (indices.size() < 3) continue;
    const double size = static_cast<double>(indices.size());
    sum += size * spearman(gather(x, indices), gather(y, indices));
    weight += size;
  }
  return weight > 0 ? sum / weight : 0;
}

double correlation_ratio(std::span<const double> values, std::span<const std::int32_t> classes) {
  require_equal(values.size(), classes.size(), "correlation_ratio");
  require_finite(values, "correlation_ratio");
  if (values.empty()) return 0;
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  double total = 0;
  double between = 0;
  for (const auto& [label, indices] : members(classes)) {
    double sum = 0;
    for (const std::size_t i : indices) {
      sum += values[i];
      total += (values[i] - mean) * (values[i] - mean);
    }
    const double size = static_cast<double>(indices.size());
    between += size * (sum / size - mean) * (sum / size - mean);
  }
  if (total == 0) return 0;
  const double result = between / total;
  if (!std::isfinite(result)) throw NumericError("correlation_ratio: the variance overflows");
  return std::clamp(result, 0.0, 1.0);
}

double spearman_standard_error(std::span<const double> x, std::span<const double> y, std::size_t resamples,
                               std::uint64_t seed) {
  require_equal(x.size(), y.size(), "spearman_standard_error");
  require_finite(x, "spearman_standard_error");
  require_finite(y, "spearman_standard_error");
  if (resamples < 2) {
    throw ArgumentError("spearman_standard_error: resamples must be at least 2, found " +
                        std::to_string(resamples));
  }
  const std::size_t n = x.size();
  if (n < 2) return 0;
  // Sorted once: a resample only changes how often each value occurs, so its ranks follow from counts in
  // O(n).
  std::size_t x_distinct = 0;
  std::size_t y_distinct = 0;
  const std::vector<std::uint32_t> x_codes = dense_codes(x, x_distinct);
  const std::vector<std::uint32_t> y_codes = dense_codes(y, y_distinct);
  std::vector<std::uint32_t> x_counts(x_distinct);
  std::vector<std::uint32_t> y_counts(y_distinct);
  std::vector<double> x_ranks(x_distinct);
  std::vector<double> y_ranks(y_distinct);
  std::vector<std::size_t> drawn(n);
  Random random(seed);
  const double mean_rank = (static_cast<double>(n) + 1) / 2;
  double mean = 0;
  double squares = 0;
  for (std::size_t sample = 0; sample < resamples; ++sample) {
    std::fill(x_counts.begin(), x_counts.end(), 0U);
    std::fill(y_counts.begin(), y_counts.end(), 0U);
    for (std::size_t& i : drawn) {
      i = static_cast<std::size_t>(random.below(n));
      ++x_counts[x_codes[i]];
      ++y_counts[y_codes[i]];
    }
    ranks_of_counts(x_counts, x_ranks);
    ranks_of_counts(y_counts, y_ranks);
    double xx = 0;
    double yy = 0;
    double xy = 0;
    for (const std::size_t i : drawn) {
      const double dx = x_ranks[x_codes[i]] - mean_rank;
      const double dy = y_ranks[y_codes[i]] - mean_rank;
      xx += dx * dx;
      yy += dy * dy;
      xy += dx * dy;
    }
    const double rho = xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0;
    // Welford's running variance.
    const double before = rho - mean;
    mean += before / static_cast<double>(sample + 1);
    squares += before * (rho - mean);
  }
  return std::sqrt(squares / static_cast<double>(resamples - 1));
}

}  // namespace gradgram::ntk
