#pragma once

#include "engine/tensor.hpp"
#include "ntk/infinite/program.hpp"
#include "ntk/infinite/sides.hpp"

/// How exact a program is: what f32 does not hold runs in f64 inside, and what f64 does not hold is refused.
namespace gradgram::ntk::infinite {

/// What series leave out, as a share of what the result promises.
constexpr double kOmitted = 1e-4;

/// In f32 a fragile program (Program::fragile) would be off by 1e-4 and more for some pairs: it runs in f64
/// inside.
template <class T>
bool runs_wide(const Program& program);

/// Whether variances are so large that a mixture takes a series' place. f32 would then leave too little of
/// 1 - cosine: such a program runs in f64 inside as well.
template <class T>
bool mixes_logistics(const Program& program, TensorView<const T> x, const TensorView<const T>* versus);

/// Whether the program runs in f64 inside for some inputs.
template <class T>
bool may_run_wide(const Program& program);

/// Covariances are held as the mean of both variances less delta: one between variances q and q' is off by
/// half a unit in the last place of the mean, (q + q') / 2, and every power multiplies what is relative to
/// sqrt(q q') by its degree. Throws NumericError when that passes `promised` at a nonlinearity, a
/// normalization, an average or the end. `right_sides` is null when both sides are the same.
template <class T>
void check_ratios(const Program& program, const Scales& scales, const Sides<T>& left_sides,
                  const Sides<T>* right_sides, double promised);

}  // namespace gradgram::ntk::infinite
