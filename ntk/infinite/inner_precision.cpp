#include "ntk/infinite/inner_precision.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "engine/error.hpp"
#include "ntk/infinite/infinite.hpp"
#include "ntk/infinite/inputs.hpp"

namespace gradgram::ntk::infinite {
namespace {

bool has_smooth_forms(const Program& program) {
  return std::ranges::any_of(program.steps, [](const Step& step) {
    return step.kind == StepKind::Nonlinear && step.phi.kind == Nonlinearity::Kind::Series;
  });
}

}  // namespace

template <class T>
bool runs_wide(const Program& program) {
  return std::is_same_v<T, float> && program.fragile;
}

template <class T>
bool mixes_logistics(const Program& program, TensorView<const T> x, const TensorView<const T>* versus) {
  if (!has_smooth_forms(program)) return false;
  double largest = 0;
  for (const double q : input_variances<T>(program, x, "x")) largest = std::max(largest, q);
  if (versus != nullptr) {
    for (const double q : input_variances<T>(program, *versus, "versus")) largest = std::max(largest, q);
  }
  SeriesList forms;
  choose_scales(program, largest, 0, kOmitted * infinite_entry_error<T>(), forms);
  return std::ranges::any_of(forms, [](const auto& form) { return form != nullptr && !form->series; });
}

template <class T>
bool may_run_wide(const Program& program) {
  return runs_wide<T>(program) || (std::is_same_v<T, float> && has_smooth_forms(program));
}

template <class T>
void check_ratios(const Program& program, const Scales& scales, const Sides<T>& left_sides,
                  const Sides<T>* right_sides, double promised) {
  struct Range {
    double least = std::numeric_limits<double>::infinity(), most = 0;
    std::size_t least_at = 0, most_at = 0;
  };
  const auto range_of = [&](const Sides<T>& side, std::size_t slot) {
    Range range;
    const std::size_t pixels = program.pixels[slot];
    for (std::size_t i = 0; i < side.examples(); ++i) {
      double sum = 0;
      for (std::size_t p = 0; p < pixels; ++p) {
        sum += static_cast<double>(program.reach == Reach::Full ? side.variance(slot, 0, i)[p]
                                                                : *side.variance(slot, p, i));
      }
      if (side.null(i) || !(sum > 0)) continue;  // exact zeros, or not held
      if (sum < range.least) range.least = sum, range.least_at = i;
      if (sum > range.most) range.most = sum, range.most_at = i;
    }
    return range;
  };
  const auto check = [&](std::size_t slot, double growth, const std::string& where) {
    const Range left = range_of(left_sides, slot);
    const Range right = right_sides == nullptr ? left : range_of(*right_sides, slot);
    if (left.most == 0 || right.most == 0) return;
    const bool left_largest = left.most / right.least >= right.most / left.least;
    const double root = std::sqrt(left_largest ? left.most / right.least : right.most / left.least);
    // In f64 even where T is f32, which such pairs are kept from.
    const double error = growth * std::numeric_limits<double>::epsilon() / 4 * (root + 1 / root);
    if (error <= promised) return;
    const double unit = std::ldexp(1.0, scales.variance[slot]) / static_cast<double>(program.pixels[slot]);
    throw NumericError(fmt::format(
        "infinite_kernel: the variances {} of example {} of x ({:.3g}) and of example {} of {} ({:.3g}) are "
        "a "
        "factor {:.2g} apart: their entry would be off by {:.1e} sqrt(k_ii k_jj), where {:g} is promised; "
        "bring the examples to one norm{}",
        where, left_largest ? left.most_at : left.least_at, unit * (left_largest ? left.most : left.least),
        left_largest ? right.least_at : right.most_at, right_sides == nullptr ? "x" : "versus",
        unit * (left_largest ? right.least : right.most), root * root, error, promised,
        error <= infinite_entry_error<float>() ? ", or ask for f32, which promises less" : ""));
  };
  // Sums over windows and averages of pixels of which some are smaller: up to 6 were measured.
  double growth = program.reach == Reach::Vector ? 1 : 8;
  check(program.steps.back().out, growth, "at the end");
  for (std::size_t s = program.steps.size(); s-- > 0;) {
    const Step& step = program.steps[s];
    if (step.kind == StepKind::AveragePool || step.kind == StepKind::Normalize) {
      check(step.in, growth, "before " + step.name);
    }
    if (step.kind != StepKind::Nonlinear) continue;
    if (step.phi.kind == Nonlinearity::Kind::Monomial) {
      growth *= static_cast<double>(std::max<std::size_t>(1, step.phi.degree));
    }
    check(step.in, growth, "before " + step.name);
  }
}

#define GRADGRAM_INSTANTIATE(T)                                                                   \
  template bool runs_wide<T>(const Program&);                                                     \
  template bool mixes_logistics(const Program&, TensorView<const T>, const TensorView<const T>*); \
  template bool may_run_wide<T>(const Program&);                                                  \
  template void check_ratios(const Program&, const Scales&, const Sides<T>&, const Sides<T>*, double);
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::ntk::infinite
