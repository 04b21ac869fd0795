#include "engine/sinks.hpp"

#include "tests/engine/small_modules.hpp"

namespace gradgram {
namespace {

using testing::all_offsets;
using testing::check_op;
using testing::random_tensor;
using testing::SharedConvNet;
using testing::SharedNet;

template <class T>
testing::Record<T> record_of(const Module<T>& module) {
  return [&module](Tape<T>& tape, Var x, const ParameterSet<T>&) { return module.forward(tape, x); };
}

template <class T>
Tensor<T> inputs_for(const Module<T>& module, std::size_t n) {
  return random_tensor<T>(module.input_shape().with_outer(n), 8);
}

/// Per-example gradients of sum_k seed_k f_k by six-point differences on the module's own parameters: [n, P].
template <class M>
std::vector<std::vector<double>> difference_rows(M& module, const Tensor<double>& x,
                                                 const Tensor<double>& seed) {
  const std::size_t n = x.shape()[0];
  std::vector<std::vector<double>> rows(n);
  ParameterSet<double>& parameters = module.parameters();
  const auto record = record_of<double>(module);
  for (std::size_t p = 0; p < parameters.count(); ++p) {
    for (std::size_t k = 0; k < parameters.value(p).size(); ++k) {
      double& entry = parameters.value(p).data()[k];
      const double original = entry;
      const double weights[] = {45, -9, 1};
      std::vector<double> slope(n);
      for (int step = 1; step <= 3; ++step) {
        for (const int sign : {1, -1}) {
          entry = original + 1e-3 * step * sign;
          const auto y = testing::forward<double>(record, x.view(), parameters);
          for (std::size_t i = 0; i < n; ++i) {
            slope[i] += sign * weights[step - 1] *
                        testing::dot<double>(y.view().slice(i), seed.view().slice(i)) / 0.06;
          }
        }
      }
      entry = original;
      for (std::size_t i = 0; i < n; ++i) rows[i].push_back(slope[i]);
    }
  }
  return rows;
}

template <class M>
void check_shared(M& module) {
  const std::size_t n = 3;
  const auto x = inputs_for<double>(module, n);
  const auto seed = random_tensor<double>(Shape{n, module.outputs()}, 9);
  const auto expected = difference_rows(module, x, seed);
  const ParameterSet<double>& parameters = module.parameters();

  const auto rows =
      testing::jacobian_rows<double>(record_of<double>(module), x.view(), parameters, seed.view());
  const auto sum = testing::gradients<double>(record_of<double>(module), x.view(), parameters, seed.view());
  Arena arena;
  Tape<double> tape(arena);
  const Var y = module.forward(tape, tape.input(x.view()));
  EXPECT_EQ(tape.parameter_uses()[0], 2U);
  EXPECT_EQ(tape.parameter_uses()[1], 2U);
  EXPECT_EQ(tape.parameter_uses()[2], 1U);
  std::vector<double> norms(n);
  const std::size_t shared[] = {0, 1};
  SquaredNormSink<double> sink(norms, parameters, shared);
  tape.reverse(y, seed.view(), sink);
  sink.finish();
  std::vector<double> without(n);
  SquaredNormSink<double> blind(without, parameters, {});
  tape.reverse(y, seed.view(), blind);
  blind.finish();
  // Only the weight is known to be shared: the bias takes the path without forming, and is missing its cross
  // terms.
  std::vector<double> half(n);
  SquaredNormSink<double> half_blind(half, parameters, std::span<const std::size_t>(shared, 1));
  tape.reverse(y, seed.view(), half_blind);
  half_blind.finish();

  std::vector<double> total(parameters.size());
  for (std::size_t i = 0; i < n; ++i) {
    double norm = 0;
    for (std::size_t k = 0; k < parameters.size(); ++k) {
      EXPECT_NEAR(rows(i, k), expected[i][k], 1e-9);
      norm += expected[i][k] * expected[i][k];
      total[k] += expected[i][k];
    }
    EXPECT_NEAR(norms[i], norm, 1e-8 * norm);
    EXPECT_GT(std::abs(without[i] - norm), 1e-4 * norm) << "the cross terms should matter in this net";
    EXPECT_GT(std::abs(half[i] - norm), 1e-6 * norm);
  }
  for (std::size_t p = 0; p < parameters.count(); ++p) {
    for (std::size_t k = 0; k < parameters.value(p).size(); ++k) {
      EXPECT_NEAR(sum.parameters.value(p).data()[k], total[parameters.offset(p) + k], 1e-9);
    }
  }
}

TEST(Sinks, ADenseWeightUsedTwice) {
  SharedNet<double> net(5, 3);
  check_shared(net);
}

TEST(Sinks, AConvolutionUsedTwice) {
  SharedConvNet<double> net(4, 2, 3);
  check_shared(net);
}

/// Norms without shared parameters equal those of the Jacobian's rows, in both precisions.
template <class T>
void check_norms(double tolerance) {
  const auto compare = [&](const testing::Record<T>& record, const Tensor<T>& x,
                           const ParameterSet<T>& parameters) {
    Arena arena;
    Tape<T> tape(arena);
    const Var y = record(tape, tape.input(x.view()), parameters);
    const Tensor<T> seed = random_tensor<T>(tape.shape(y), 9);
    std::vector<double> norms(x.shape()[0], 1.0);  // adds to what is there
    SquaredNormSink<T> sink(norms, parameters, {});
    tape.reverse(y, seed.view(), sink);
    sink.finish();
    const auto rows = testing::jacobian_rows<T>(record, x.view(), parameters, seed.view());
    for (std::size_t i = 0; i < norms.size(); ++i) {
      const double expected = testing::dot<T>(rows.view().slice(i), rows.view().slice(i));
      EXPECT_NEAR(norms[i], 1 + expected, tolerance * (1 + expected)) << i;
    }
  };
  for (const bool bias : {true, false}) {
    ParameterSet<T> dense;
    dense.add("weight", random_tensor<T>(Shape{4, 7}, 1));
    dense.add("bias", random_tensor<T>(Shape{4}, 2));
    const testing::Record<T> dense_record = [bias](Tape<T>& tape, Var x, const ParameterSet<T>& parameters) {
      return ops::dense(
          tape, x,
          ops::Affine<T>{parameters, 0, bias ? 1 : kNoParameter, static_cast<T>(0.4), static_cast<T>(1.5)});
    };
    compare(dense_record, random_tensor<T>(Shape{5, 7}, 3), dense);
    compare(dense_record, random_tensor<T>(Shape{5, 3, 7}, 3), dense);
    // From pairs of positions.
    ParameterSet<T> wide;
    wide.add("weight", random_tensor<T>(Shape{50, 60}, 1));
    wide.add("bias", random_tensor<T>(Shape{50}, 2));
    compare(dense_record, random_tensor<T>(Shape{3, 5, 60}, 3), wide);
    struct Window {
      ConvGeometry geometry;
      bool pairs;
    };
    for (const auto& [g, pairs] : {Window{conv_geometry(6, 5, 3, 4, 3, 3, 2, 1, {}), false},
                                   Window{conv_geometry(5, 4, 33, 29, 3, 3, 1, 1, {}), true},
                                   Window{conv_geometry(3, 6, 70, 41, 5, 3, 1, 1, {}), true},
                                   Window{conv_geometry(8, 7, 130, 71, 2, 3, 1, 1, {}), true},
                                   Window{conv_geometry(4, 4, 450, 200, 1, 1, 1, 1, {}), true}}) {
      EXPECT_EQ(SquaredNormSink<T>::scratch_bytes(g) > 0, pairs);
      ParameterSet<T> conv;
      conv.add("weight", random_tensor<T>(Shape{g.kernel_h, g.kernel_w, g.c_in, g.c_out}, 1));
      conv.add("bias", random_tensor<T>(Shape{g.c_out}, 2));
      const testing::Record<T> conv_record = [bias, g](Tape<T>& tape, Var x,
                                                       const ParameterSet<T>& parameters) {
        return ops::conv2d(
            tape, x, g,
            ops::Affine<T>{parameters, 0, bias ? 1 : kNoParameter, static_cast<T>(0.4), static_cast<T>(1.5)});
      };
      compare(conv_record, random_tensor<T>(Shape{5, g.in_h, g.in_w, g.c_in}, 3), conv);
    }
  }
}

TEST(Sinks, SquaredNormsEqualThoseOfTheRows) {
  check_norms<double>(1e-13);
  check_norms<float>(2e-6);
}

TEST(Sinks, JacobianSkipsParametersAndKeepsToItsStride) {
  SharedNet<double> net(4, 2);
  const auto x = inputs_for<double>(net, 3);
  const auto seed = random_tensor<double>(Shape{3, 2}, 9);
  const auto full =
      testing::jacobian_rows<double>(record_of<double>(net), x.view(), net.parameters(), seed.view());
  // The shared weight after the last bias, the rest skipped; two columns of the row belong to somebody else.
  const std::size_t offsets[] = {2, kNoParameter, kNoParameter, 0};
  Tensor<double> rows(Shape{3, 20});
  for (std::size_t i = 0; i < 3; ++i) rows(i, 18) = rows(i, 19) = -7;
  Arena arena;
  Tape<double> tape(arena);
  const Var y = net.forward(tape, tape.input(x.view()));
  JacobianSink<double> sink(rows.data(), 20, offsets);
  tape.reverse(y, seed.view(), sink);
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t k = 0; k < 16; ++k) EXPECT_EQ(rows(i, 2 + k), full(i, net.parameters().offset(0) + k));
    for (std::size_t k = 0; k < 2; ++k) EXPECT_EQ(rows(i, k), full(i, net.parameters().offset(3) + k));
    EXPECT_EQ(rows(i, 18), -7);
    EXPECT_EQ(rows(i, 19), -7);
  }
}

TEST(Sinks, WholeNetsPassTheCheckerOfOps) {
  const SharedNet<double> net(4, 2);
  const auto op = []<class T>(Tape<T>& tape, Var x, const ParameterSet<T>& parameters) {
    const ops::Affine<T> shared{parameters, 0, 1, static_cast<T>(0.5), static_cast<T>(0.7)};
    const Var once = ops::activation(tape, ops::dense(tape, x, shared), simd::Activation::Tanh);
    const Var twice = ops::activation(tape, ops::dense(tape, once, shared), simd::Activation::Softplus);
    return ops::dense(tape, ops::add(tape, once, twice), ops::Affine<T>{parameters, 2, 3, 1, 1});
  };
  check_op(op, inputs_for<double>(net, 3), net.parameters());
}

TEST(Sinks, RefuseASharedIndexThatDoesNotExist) {
  const SharedNet<double> net(4, 2);
  std::vector<double> norms(3);
  const std::size_t shared[] = {4};
  EXPECT_THROW(SquaredNormSink<double>(norms, net.parameters(), shared), ArgumentError);
}

}  // namespace
}  // namespace gradgram
