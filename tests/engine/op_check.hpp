#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "engine/ops.hpp"
#include "engine/random.hpp"
#include "engine/sinks.hpp"
#include "engine/tape.hpp"

/// One checker for every op: derivatives against six-point differences of the op's own values, the adjoint
/// identity, and the properties that hold for blocks of examples.
namespace gradgram::testing {

template <class T>
using Record = std::function<Var(Tape<T>&, Var, const ParameterSet<T>&)>;

/// Uniform on (-1, 1), away from 0 by `gap` so that no kink lies within a difference stencil.
template <class T>
Tensor<T> random_tensor(Shape shape, std::uint64_t seed, double gap = 0) {
  Random random(seed);
  Tensor<T> result(shape);
  for (T& value : result.span()) {
    const double uniform = 2 * random.uniform() - 1;
    value = static_cast<T>(uniform < 0 ? uniform * (1 - gap) - gap : uniform * (1 - gap) + gap);
  }
  return result;
}

/// Distinct numbers, at least 1/size apart, in random order: no ties for a maximum.
template <class T>
Tensor<T> distinct_tensor(Shape shape, std::uint64_t seed) {
  Random random(seed);
  Tensor<T> result(shape);
  const std::size_t n = result.size();
  for (std::size_t i = 0; i < n; ++i)
    result.data()[i] = static_cast<T>((static_cast<double>(i) + 0.5) / double(n) - 0.5);
  for (std::size_t i = n; i > 1; --i) std::swap(result.data()[i - 1], result.data()[random.below(i)]);
  return result;
}

template <class T>
ParameterSet<T> random_like(const ParameterSet<T>& parameters, std::uint64_t seed) {
  ParameterSet<T> result = parameters.zeros();
  for (std::size_t p = 0; p < result.count(); ++p) {
    const Tensor<T> values = random_tensor<T>(result.value(p).shape(), seed + 1000 * p);
    std::copy(values.span().begin(), values.span().end(), result.value(p).data());
  }
  return result;
}

template <class T>
double dot(TensorView<const T> a, TensorView<const T> b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += double(a.data()[i]) * double(b.data()[i]);
  return sum;
}

template <class T>
double parameter_dot(const ParameterSet<T>& a, const ParameterSet<T>& b) {
  double sum = 0;
  for (std::size_t p = 0; p < a.count(); ++p) sum += dot<T>(a.value(p), b.value(p));
  return sum;
}

/// The larger error; a NaN is the largest of all.
inline double worse(double a, double b) {
  return std::isnan(a) || b <= a ? a : b;
}

template <class T>
bool same_bits(TensorView<const T> a, TensorView<const T> b) {
  return a.size() == b.size() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
Tensor<T> forward(const Record<T>& record, TensorView<const T> x, const ParameterSet<T>& parameters) {
  Arena arena;
  Tape<T> tape(arena, false);
  const Var y = record(tape, tape.input(x), parameters);
  return Tensor<T>(tape.shape(y), tape.value(y).span());
}

template <class T>
struct Gradients {
  Tensor<T> values;
  Tensor<T> x;
  ParameterSet<T> parameters;
};

/// Value, and gradients of <seed, value>.
template <class T>
Gradients<T> gradients(const Record<T>& record, TensorView<const T> x, const ParameterSet<T>& parameters,
                       TensorView<const T> seed) {
  Arena arena;
  Tape<T> tape(arena);
  const Var in = tape.input(x, true);
  const Var y = record(tape, in, parameters);
  Gradients<T> result{Tensor<T>(tape.shape(y), tape.value(y).span()), Tensor<T>(x.shape()),
                      parameters.zeros()};
  SummedGradientSink<T> sink(result.parameters);
  tape.reverse(y, seed, sink);
  if (tape.cotangent(in)) std::copy_n(tape.cotangent(in).data(), x.size(), result.x.data());
  return result;
}

/// (45 (f1 - f-1) - 9 (f2 - f-2) + (f3 - f-3)) / 60 h: error h^6/140 f^(7).
inline double six_point(const std::function<double(double)>& f) {
  const double h = 1e-3;
  return (45 * (f(h) - f(-h)) - 9 * (f(2 * h) - f(-2 * h)) + (f(3 * h) - f(-3 * h))) / (60 * h);
}

/// The largest error of the gradients with respect to every input and every parameter, relative to the
/// largest entry (at least 1).
inline double difference_error(const Record<double>& record, const Tensor<double>& x,
                               const ParameterSet<double>& parameters) {
  const Tensor<double> values = forward(record, x.view(), parameters);
  const Tensor<double> seed = random_tensor<double>(values.shape(), 77);
  const Gradients<double> found = gradients(record, x.view(), parameters, seed.view());
  double error = 0;
  double scale = 1;
  const auto compare = [&](double expected, double actual) {
    scale = std::max(scale, std::abs(expected));
    const double difference = std::abs(expected - actual);
    error = worse(error, difference);
  };
  Tensor<double> moved = x.clone();
  for (std::size_t i = 0; i < x.size(); ++i) {
    compare(six_point([&](double h) {
              moved.data()[i] = x.data()[i] + h;
              const double value =
                  dot<double>(seed.view(), forward(record, std::as_const(moved).view(), parameters).view());
              moved.data()[i] = x.data()[i];
              return value;
            }),
            found.x.data()[i]);
  }
  ParameterSet<double> changed = parameters.clone();
  for (std::size_t p = 0; p < parameters.count(); ++p) {
    for (std::size_t i = 0; i < parameters.value(p).size(); ++i) {
      const double original = parameters.value(p).data()[i];
      compare(six_point([&](double h) {
                changed.value(p).data()[i] = original + h;
                const double value = dot<double>(seed.view(), forward(record, x.view(), changed).view());
                changed.value(p).data()[i] = original;
                return value;
              }),
              std::as_const(found.parameters).value(p).data()[i]);
    }
  }
  return error / scale;
}

/// The largest relative error of the tangent along a random direction of inputs and parameters, against
/// differences.
inline double tangent_error(const Record<double>& record, const Tensor<double>& x,
                            const ParameterSet<double>& parameters) {
  const Tensor<double> dx = random_tensor<double>(x.shape(), 5);
  const ParameterSet<double> dp = random_like(parameters, 6);
  Arena arena;
  Tape<double> tape(arena);
  const Var in = tape.input(x.view(), true);
  const Var y = record(tape, in, parameters);
  const auto tangent = tape.tangents(y, &dp, in, dx.view());
  double error = 0;
  double scale = 1;
  const auto at = [&](double h) {
    Tensor<double> moved = x.clone();
    for (std::size_t i = 0; i < x.size(); ++i) moved.data()[i] += h * dx.data()[i];
    ParameterSet<double> changed = parameters.clone();
    for (std::size_t p = 0; p < parameters.count(); ++p) {
      for (std::size_t i = 0; i < changed.value(p).size(); ++i) {
        changed.value(p).data()[i] += h * dp.value(p).data()[i];
      }
    }
    return forward(record, std::as_const(moved).view(), changed);
  };
  const double h = 1e-3;
  const Tensor<double> f[6] = {at(h), at(-h), at(2 * h), at(-2 * h), at(3 * h), at(-3 * h)};
  for (std::size_t i = 0; i < tangent.size(); ++i) {
    const auto v = [&](int k) { return f[k].data()[i]; };
    const double expected = (45 * (v(0) - v(1)) - 9 * (v(2) - v(3)) + (v(4) - v(5))) / (60 * h);
    scale = std::max(scale, std::abs(expected));
    const double difference = std::abs(expected - tangent.data()[i]);
    error = worse(error, difference);
  }
  return error / scale;
}

/// |<u, J v> - <J^T u, v>| relative to sum of the products' magnitudes (at least 1), v over inputs and
/// parameters together, inputs alone and parameters alone.
template <class T>
double adjoint_error(const Record<T>& record, const Tensor<T>& x, const ParameterSet<T>& parameters) {
  const Tensor<T> dx = random_tensor<T>(x.shape(), 15);
  const ParameterSet<T> dp = random_like(parameters, 16);
  Arena arena;
  Tape<T> tape(arena);
  const Var in = tape.input(x.view(), true);
  const Var y = record(tape, in, parameters);
  const Tensor<T> u = random_tensor<T>(tape.shape(y), 17);
  ParameterSet<T> gradient = parameters.zeros();
  SummedGradientSink<T> sink(gradient);
  tape.reverse(y, u.view(), sink);
  const double of_x = tape.cotangent(in) ? dot<T>(tape.cotangent(in), dx.view()) : 0;
  const double of_parameters = parameter_dot(std::as_const(gradient), dp);
  double error = 0;
  const auto compare = [&](double forward_side, double reverse_side) {
    const double difference = std::abs(forward_side - reverse_side) / std::max(1.0, std::abs(reverse_side));
    error = worse(error, difference);
  };
  compare(dot<T>(u.view(), tape.tangents(y, &dp, in, dx.view())), of_x + of_parameters);
  compare(dot<T>(u.view(), tape.tangents(y, nullptr, in, dx.view())), of_x);
  compare(dot<T>(u.view(), tape.tangents(y, &dp)), of_parameters);
  return error;
}

/// Offsets of all parameters in a row of a Jacobian.
template <class T>
std::vector<std::size_t> all_offsets(const ParameterSet<T>& parameters) {
  std::vector<std::size_t> offsets(parameters.count());
  for (std::size_t p = 0; p < offsets.size(); ++p) offsets[p] = parameters.offset(p);
  return offsets;
}

/// Rows of per-example gradients of <seed_i, f(x_i)>: [n, P].
template <class T>
Tensor<T> jacobian_rows(const Record<T>& record, TensorView<const T> x, const ParameterSet<T>& parameters,
                        TensorView<const T> seed) {
  Arena arena;
  Tape<T> tape(arena);
  const Var y = record(tape, tape.input(x), parameters);
  Tensor<T> rows(Shape{x.shape()[0], parameters.size()});
  const auto offsets = all_offsets(parameters);
  JacobianSink<T> sink(rows.data(), parameters.size(), offsets);
  tape.reverse(y, seed, sink);
  return rows;
}

/// Values, input cotangents and per-example gradients of a block against each example alone, bit for bit; the
/// summed gradient against the sum of the rows; repeated reverse passes; the block of no examples.
template <class T>
void check_blocks(const Record<T>& record, const Tensor<T>& x, const ParameterSet<T>& parameters) {
  const std::size_t n = x.shape()[0];
  const Tensor<T> values = forward(record, x.view(), parameters);
  const Tensor<T> seed = random_tensor<T>(values.shape(), 27);
  const Gradients<T> block = gradients(record, x.view(), parameters, seed.view());
  const Tensor<T> rows = jacobian_rows(record, x.view(), parameters, seed.view());
  EXPECT_TRUE(same_bits<T>(block.values.view(), values.view())) << "recording changes the value";
  for (std::size_t i = 0; i < n; ++i) {
    const auto one = x.view().slice(i, i + 1);
    const auto one_seed = seed.view().slice(i, i + 1);
    const Gradients<T> alone = gradients(record, one, parameters, one_seed);
    EXPECT_TRUE(same_bits<T>(alone.values.view(), values.view().slice(i, i + 1))) << "value of example " << i;
    EXPECT_TRUE(same_bits<T>(alone.x.view(), block.x.view().slice(i, i + 1))) << "cotangent of example " << i;
    const Tensor<T> row = jacobian_rows(record, one, parameters, one_seed);
    EXPECT_TRUE(same_bits<T>(row.view(), rows.view().slice(i, i + 1))) << "gradient row of example " << i;
    // The sum over one example is its row, up to the order of a few additions.
    for (std::size_t p = 0; p < parameters.count(); ++p) {
      for (std::size_t k = 0; k < parameters.value(p).size(); ++k) {
        const double expected = double(alone.parameters.value(p).data()[k]);
        const double found = double(row.data()[parameters.offset(p) + k]);
        const double tolerance = 64 * double(std::numeric_limits<T>::epsilon()) * (1 + std::abs(expected));
        ASSERT_TRUE(std::abs(expected - found) <= tolerance) << expected << " " << found;
      }
    }
  }
  for (std::size_t p = 0; p < parameters.count(); ++p) {
    for (std::size_t k = 0; k < parameters.value(p).size(); ++k) {
      double sum = 0;
      double magnitude = 1;
      for (std::size_t i = 0; i < n; ++i) {
        const double entry = double(rows.data()[i * parameters.size() + parameters.offset(p) + k]);
        sum += entry;
        magnitude += std::abs(entry);
      }
      const double found = double(block.parameters.value(p).data()[k]);
      ASSERT_TRUE(std::abs(found - sum) <= 64 * double(std::numeric_limits<T>::epsilon()) * magnitude)
          << found << " " << sum;
    }
  }
  {
    Arena arena;
    Tape<T> tape(arena);
    const Var in = tape.input(x.view(), true);
    const Var y = record(tape, in, parameters);
    const Tensor<T> other = random_tensor<T>(values.shape(), 28);
    ParameterSet<T> unused = parameters.zeros();
    SummedGradientSink<T> ignored(unused);
    tape.reverse(y, other.view(), ignored);
    tape.tangents(y, &parameters);
    ParameterSet<T> again = parameters.zeros();
    SummedGradientSink<T> sink(again);
    tape.reverse(y, seed.view(), sink);
    if (tape.cotangent(in)) {
      EXPECT_TRUE(same_bits<T>(tape.cotangent(in), block.x.view())) << "second reverse pass";
    }
    for (std::size_t p = 0; p < parameters.count(); ++p) {
      EXPECT_TRUE(same_bits<T>(std::as_const(again).value(p), block.parameters.value(p)))
          << "second reverse pass";
    }
  }
  {
    // Without a differentiable input the parameters get the same gradient.
    Arena arena;
    Tape<T> tape(arena);
    const Var y = record(tape, tape.input(x.view()), parameters);
    ParameterSet<T> again = parameters.zeros();
    SummedGradientSink<T> sink(again);
    tape.reverse(y, seed.view(), sink);
    for (std::size_t p = 0; p < parameters.count(); ++p) {
      EXPECT_TRUE(same_bits<T>(std::as_const(again).value(p), block.parameters.value(p))) << "constant input";
    }
  }
}

/// Everything above, in both precisions, and the block of no examples.
template <class F>
void check_op(F&& record, const Tensor<double>& x, const ParameterSet<double>& parameters) {
  const Record<double> f64 = record;
  const Record<float> f32 = record;
  EXPECT_TRUE(difference_error(f64, x, parameters) <= 1e-9) << difference_error(f64, x, parameters);
  EXPECT_TRUE(tangent_error(f64, x, parameters) <= 1e-9) << tangent_error(f64, x, parameters);
  EXPECT_TRUE(adjoint_error(f64, x, parameters) <= 1e-12) << adjoint_error(f64, x, parameters);
  check_blocks(f64, x, parameters);

  const ParameterSet<float> parameters32 = parameters.cast<float>();
  Tensor<float> x32(x.shape());
  std::copy(x.span().begin(), x.span().end(), x32.data());
  EXPECT_TRUE(adjoint_error(f32, x32, parameters32) <= 2e-5) << adjoint_error(f32, x32, parameters32);
  check_blocks(f32, x32, parameters32);
  // f32 against f64 on the same (rounded) numbers.
  Tensor<double> rounded(x.shape());
  std::copy(x32.span().begin(), x32.span().end(), rounded.data());
  const Tensor<double> exact = forward(f64, std::as_const(rounded).view(), parameters32.cast<double>());
  const Tensor<float> found = forward(f32, std::as_const(x32).view(), parameters32);
  double scale = 1;
  for (const double value : exact.span()) scale = std::max(scale, std::abs(value));
  for (std::size_t i = 0; i < exact.size(); ++i) {
    ASSERT_TRUE(std::abs(exact.data()[i] - double(found.data()[i])) <= 1e-5 * scale) << i;
  }

  const Tensor<double> none(x.shape().inner().with_outer(0));
  const Tensor<double> nothing = forward(f64, none.view(), parameters);
  EXPECT_EQ(nothing.shape()[0], 0U);
  const Gradients<double> zero = gradients(f64, none.view(), parameters, nothing.view());
  for (std::size_t p = 0; p < parameters.count(); ++p) {
    for (const double value : zero.parameters.value(p).span()) EXPECT_EQ(value, 0.0);
  }
}

}  // namespace gradgram::testing
