#include "ntk/checks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>

#include "engine/error.hpp"

namespace gradgram::ntk {
namespace {

std::string entry(const double* matrix, std::size_t n, std::size_t i, std::size_t j, const char* what) {
  return fmt::format("{}({}, {}) = {:.17g}", what, i, j, matrix[i * n + j]);
}

}  // namespace

bool all_finite(std::span<const double> values) {
  // Zero times a number is zero unless the number is not finite, and sums need no branches: the speed of
  // memory, where the answer is mostly yes.
  constexpr std::size_t kLanes = 16;
  double sums[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] += 0.0 * values[i + lane];
  }
  for (; i < values.size(); ++i) sums[0] += 0.0 * values[i];
  return std::all_of(std::begin(sums), std::end(sums), [](double sum) { return sum == 0; });
}

void require_finite_entries(const double* matrix, std::size_t n, const char* call, const char* what) {
  for (std::size_t i = 0; i < n; ++i) {
    if (all_finite({matrix + i * n, n})) continue;
    for (std::size_t j = 0; j < n; ++j) {
      if (!std::isfinite(matrix[i * n + j])) {
        throw NumericError(fmt::format("{}: {} is not finite", call, entry(matrix, n, i, j, what)));
      }
    }
  }
}

double require_symmetric(const double* matrix, std::size_t n, double relative, const char* call,
                         const char* what) {
  double squares = 0;
  constexpr std::size_t kBlock =
      32;  // two blocks of 8 KiB: the transposed reads stay in the first-level cache
  for (std::size_t rows = 0; rows < n; rows += kBlock) {
    for (std::size_t columns = 0; columns <= rows; columns += kBlock) {
      for (std::size_t i = rows; i < std::min(n, rows + kBlock); ++i) {
        for (std::size_t j = columns; j < std::min(i, columns + kBlock); ++j) {
          const double lower = matrix[i * n + j];
          const double upper = matrix[j * n + i];
          if (lower == upper) continue;
          const double scale =
              std::max({std::sqrt(std::abs(matrix[i * n + i])) * std::sqrt(std::abs(matrix[j * n + j])),
                        std::abs(lower), std::abs(upper)});
          if (!(std::abs(lower - upper) <= relative * scale)) {
            throw ArgumentError(fmt::format("{}: the {} must be symmetric, but {} and {}", call, what,
                                            entry(matrix, n, i, j, what), entry(matrix, n, j, i, what)));
          }
          squares += (lower - upper) * (lower - upper) / 2;
        }
      }
    }
  }
  return std::sqrt(squares);
}

}  // namespace gradgram::ntk
