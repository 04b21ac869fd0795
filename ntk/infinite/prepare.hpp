#pragma once

#include <stop_token>
#include <vector>

#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "ntk/infinite/program.hpp"
#include "ntk/infinite/sides.hpp"

/// What belongs to one example, computed for all of one side before any pair.
namespace gradgram::ntk::infinite {

/// Variances of every example of one side, from input_variances() and Norms::take_out(). Where a nonlinearity
/// follows a pooling, the pair of each image with itself is followed in f64 up to there. Throws NumericError,
/// Cancelled.
template <class T, class In>
Sides<T> prepare(const Program& program, const Scales& scales, const SeriesList& series,
                 TensorView<const In> x, const std::vector<double>& variances, const std::vector<int>& norms,
                 const Workers& workers, const std::stop_token& stop);

}  // namespace gradgram::ntk::infinite
