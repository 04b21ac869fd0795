#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

/// Rank statistics over examples. All need finite values (NumericError otherwise) and equal lengths
/// (ShapeError).
namespace gradgram::ntk {

/// Ranks 1 .. n, ascending; equal values share the mean of their ranks. O(n log n).
std::vector<double> average_ranks(std::span<const double> values);
/// Pearson's correlation; 0 when either side does not vary.
double correlation(std::span<const double> x, std::span<const double> y);
/// Spearman's rank correlation: Pearson's of the average ranks, which is right with ties; 0 when either does
/// not vary.
double spearman(std::span<const double> x, std::span<const double> y);
/// Spearman's correlation of x and y with the rank of z partialled out:
/// (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)); 0 when x or y is a function of z's rank to rounding.
double partial_spearman(std::span<const double> x, std::span<const double> y, std::span<const double> z);
/// Spearman's correlation inside each class, averaged with the classes' sizes as weights (classes of fewer
/// than 3 examples are left out; 0 when none is left).
double spearman_within(std::span<const double> x, std::span<const double> y,
                       std::span<const std::int32_t> classes);
/// Correlation ratio eta^2: the share of the variance of `values` that lies between the classes; 0 without
/// variance.
double correlation_ratio(std::span<const double> values, std::span<const std::int32_t> classes);
/// Standard error of spearman(x, y): standard deviation over `resamples` bootstrap samples of the examples,
/// drawn with `seed` (Efron). The same numbers on every machine. O(n log n + resamples n).
double spearman_standard_error(std::span<const double> x, std::span<const double> y,
                               std::size_t resamples = 1000, std::uint64_t seed = 0);

}  // namespace gradgram::ntk
