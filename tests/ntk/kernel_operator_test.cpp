#include "ntk/kernel_operator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "ntk/precision.hpp"
#include "tests/ntk/kernel_cases.hpp"

namespace gradgram::ntk {
namespace {

using kernel_cases::Case;

const Reduce kAllReductions[] = {Reduce::Full, Reduce::TraceMean, Reduce::TraceSum, Reduce::Output,
                                 Reduce::TrueClass};

Tensor<double> random_vectors(std::size_t m, std::size_t length, std::uint64_t seed) {
  Random random(seed);
  Tensor<double> v(Shape{m, length});
  for (double& value : v.span()) value = random.normal();
  return v;
}

/// The dense kernel as [length, length] in f64, rows i * O + k for Full.
template <class T>
Tensor<double> dense(const Module<T>& module, TensorView<const T> x, const OperatorOptions& options) {
  KernelOptions same;
  same.reduce = options.reduce;
  same.output = options.output;
  same.labels = options.labels;
  const auto k = kernel<T>(module, x, same, Workers(1)).values;
  const std::size_t n = x.shape()[0];
  const std::size_t o = options.reduce == Reduce::Full ? module.outputs() : 1;
  Tensor<double> result(Shape{n * o, n * o});
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      for (std::size_t a = 0; a < o; ++a) {
        for (std::size_t b = 0; b < o; ++b) {
          result(i * o + a, j * o + b) = static_cast<double>(k.data()[((i * n + j) * o + a) * o + b]);
        }
      }
    }
  }
  return result;
}

/// Largest over the vectors of ||product - K v|| / ||K v||.
double relative_difference(const Tensor<double>& k, const Tensor<double>& v, const Tensor<double>& product) {
  const std::size_t length = k.shape()[0];
  double worst = 0;
  for (std::size_t r = 0; r < v.shape()[0]; ++r) {
    double difference = 0;
    double norm = 0;
    for (std::size_t i = 0; i < length; ++i) {
      double sum = 0;
      for (std::size_t j = 0; j < length; ++j) sum += k(i, j) * v(r, j);
      difference += (sum - product(r, i)) * (sum - product(r, i));
      norm += sum * sum;
    }
    const double ratio = std::sqrt(difference / norm);
    if (!(ratio <= worst)) worst = ratio;  // keeps a NaN
  }
  return worst;
}

template <class T>
void is_the_kernel(const Case& c, double tolerance) {
  const auto module = kernel_cases::module_of<T>(c);
  const std::size_t outputs = module->outputs();
  const std::size_t n = 23;
  const auto x = kernel_cases::inputs_of<T>(c.input, n, 1);
  const auto labels = kernel_cases::labels_of(n, outputs, 3);
  for (const Reduce reduce : kAllReductions) {
    if (reduce == Reduce::TrueClass && outputs == 1) continue;
    SCOPED_TRACE(c.name + ", " + reduce_name(reduce, outputs - 1));
    OperatorOptions options;
    options.reduce = reduce;
    options.output = outputs - 1;
    options.labels = labels;
    const Workers workers(1);
    KernelOperator<T> k(*module, x, options, workers);
    ASSERT_EQ(k.size(), reduce == Reduce::Full ? n * outputs : n);
    const auto v = random_vectors(3, k.size(), 9);
    Tensor<double> product(v.shape());
    k.apply(v, product);
    const auto matrix = dense<T>(*module, x, options);
    EXPECT_LE(relative_difference(matrix, v, product), tolerance);
    // One wrong component is seen, and so is a vector that met the wrong product.
    Tensor<double> wrong = product.clone();
    const auto larger = [](double a, double b) { return std::abs(a) < std::abs(b); };
    wrong(1, 7) += 0.001 * *std::max_element(&product(1, 0), &product(1, 0) + k.size(), larger);
    EXPECT_FALSE(relative_difference(matrix, v, wrong) <= tolerance);
    wrong = product.clone();
    std::swap_ranges(&wrong(0, 0), &wrong(0, 0) + k.size(), &wrong(1, 0));
    EXPECT_FALSE(relative_difference(matrix, v, wrong) <= tolerance);
    wrong(0, 0) = std::nan("");
    EXPECT_FALSE(relative_difference(matrix, v, wrong) <= tolerance);
  }
}

TEST(KernelOperator, IsTheDenseKernel) {
  for (const Case& c : kernel_cases::all()) {
    is_the_kernel<double>(c, 1e-10);
    is_the_kernel<float>(c, 1e-5);
  }
}

template <class T>
void same_bits(const Case& c, std::size_t n, Reduce reduce) {
  SCOPED_TRACE(c.name);
  const auto module = kernel_cases::module_of<T>(c);
  const auto x = kernel_cases::inputs_of<T>(c.input, n, 4);
  OperatorOptions options;
  options.reduce = reduce;
  const auto run = [&](const OperatorOptions& chosen, std::size_t threads, const Tensor<double>& v,
                       int times = 1) {
    const Workers workers(threads);
    KernelOperator<T> k(*module, x, chosen, workers);
    Tensor<double> product(v.shape());
    for (int i = 0; i < times; ++i) k.apply(v, product);
    return product;
  };
  const std::size_t length = reduce == Reduce::Full ? n * module->outputs() : n;
  const auto v = random_vectors(2, length, 5);
  const auto expected = run(options, 1, v);
  const auto equal = [&](const Tensor<double>& other) {
    return std::memcmp(expected.data(), other.data(), expected.size() * sizeof(double)) == 0;
  };
  EXPECT_TRUE(equal(run(options, 2, v)));
  EXPECT_TRUE(equal(run(options, 7, v)));
  EXPECT_FALSE(equal(random_vectors(2, length, 6)));

  OperatorOptions kept = options;
  kept.keep_passes = true;
  EXPECT_TRUE(equal(run(kept, 2, v, 3)));
  // One vector at a time, and scaled by a power of two beyond what f32 can hold.
  for (std::size_t r = 0; r < 2; ++r) {
    Tensor<double> one(Shape{1, length}, v.span().subspan(r * length, length));
    for (double& value : one.span()) value = std::ldexp(value, 300);
    auto product = run(options, 1, one);
    for (double& value : product.span()) value = std::ldexp(value, -300);
    EXPECT_EQ(std::memcmp(product.data(), expected.data() + r * length, length * sizeof(double)), 0);
  }

  // The least memory that does, and a byte less.
  OperatorOptions tight = options;
  tight.memory = 1;
  try {
    const Workers workers(1);
    KernelOperator<T>(*module, x, tight, workers);
    ADD_FAILURE() << "one byte sufficed";
  } catch (const BudgetError& error) {
    const std::string text = error.what();
    const std::string before = "the least that would do is ";
    ASSERT_NE(text.find(before), std::string::npos) << text;
    tight.memory = std::stoull(text.substr(text.find(before) + before.size()));
  }
  EXPECT_TRUE(equal(run(tight, 1, v)));
  tight.memory -= 1;
  EXPECT_THROW(run(tight, 1, v), BudgetError);
}

TEST(KernelOperator, SameBitsForAnyThreadsMemoryAndBlocks) {
  const auto cases = kernel_cases::all();
  same_bits<float>(cases[0], 307, Reduce::Output);
  same_bits<double>(cases[1], 2111, Reduce::TraceSum);
  same_bits<float>(cases[2], 79, Reduce::TraceMean);
  same_bits<double>(cases[4], 67, Reduce::Full);
  same_bits<float>(cases[5], 71, Reduce::TraceMean);
}

TEST(KernelOperator, KeepsWhatFits) {
  const Case c = kernel_cases::all()[2];
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 50, 4);
  const Workers workers(2);
  OperatorOptions options;
  KernelOperator<float> none(*module, x, options, workers);
  EXPECT_EQ(none.kept_blocks(), 0U);
  options.keep_passes = true;
  KernelOperator<float> all(*module, x, options, workers);
  EXPECT_EQ(all.kept_blocks(), all.blocks());
  EXPECT_EQ(all.blocks(), 13U);
  options.memory = none.planned_bytes() + (all.planned_bytes() - none.planned_bytes()) / 2;
  KernelOperator<float> some(*module, x, options, workers);
  EXPECT_GT(some.kept_blocks(), 0U);
  EXPECT_LT(some.kept_blocks(), some.blocks());
  EXPECT_LE(some.planned_bytes(), options.memory);
  const auto v = random_vectors(1, 50, 1);
  Tensor<double> a(v.shape());
  Tensor<double> b(v.shape());
  none.apply(v, a);
  some.apply(v, b);
  some.apply(v, b);
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(double)), 0);
}

TEST(KernelOperator, PanelsInDoubleKeepTheErrorDown) {
  // 3,000 examples of one sign: sums that a single f32 chain would lose digits of.
  const auto model = models::parse("dense(31) softplus dense(1)", Shape{6}, {});
  const models::Network<float> single(model, {.seed = 3});
  models::Network<double> twin(model, {.seed = 3});
  for (std::size_t p = 0; p < single.parameters().count(); ++p) {
    const auto source = single.parameters().value(p);
    for (std::size_t i = 0; i < source.size(); ++i) {
      twin.parameters().value(p).data()[i] = static_cast<double>(source.data()[i]);
    }
  }
  const std::size_t n = 3001;
  auto x = kernel_cases::inputs_of<float>({6}, n, 2);
  for (float& value : x.span()) value = std::abs(value);
  Tensor<double> wide(x.shape());
  std::copy(x.span().begin(), x.span().end(), wide.span().begin());
  const Workers workers(2);
  KernelOperator<float> k(single, x, {}, workers);
  KernelOperator<double> exact(twin, wide, {}, workers);
  Tensor<double> ones(Shape{1, n});
  for (double& value : ones.span()) value = 1;
  Tensor<double> a(ones.shape());
  Tensor<double> b(ones.shape());
  k.apply(ones, a);
  exact.apply(ones, b);
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < n; ++i) {
    difference += (a(0, i) - b(0, i)) * (a(0, i) - b(0, i));
    norm += b(0, i) * b(0, i);
  }
  const double error = std::sqrt(difference / norm);
  RecordProperty("error", std::to_string(error * 1e9) + "e-9");
  EXPECT_LE(error, k.relative_error());
  EXPECT_GT(error, 1e-9);  // it is f32 that is measured
}

TEST(KernelOperator, Refuses) {
  const Case c = kernel_cases::all()[1];
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 10, 1);
  const Workers workers(1);
  KernelOperator<float> k(*module, x, {}, workers);
  auto v = random_vectors(2, 10, 1);
  Tensor<double> product(v.shape());
  Tensor<double> wrong(Shape{2, 9});
  EXPECT_THROW(k.apply(wrong, wrong), ShapeError);
  EXPECT_THROW(k.apply(v, wrong), ShapeError);
  v(1, 3) = INFINITY;
  EXPECT_THROW(k.apply(v, product), ArgumentError);
  OperatorOptions options;
  options.reduce = Reduce::Output;
  options.output = 3;
  EXPECT_THROW(KernelOperator<float>(*module, x, options, workers), ArgumentError);
  options.reduce = Reduce::TrueClass;
  EXPECT_THROW(KernelOperator<float>(*module, x, options, workers), ShapeError);
  const auto other = kernel_cases::inputs_of<float>({4}, 10, 1);
  EXPECT_THROW(KernelOperator<float>(*module, other, {}, workers), ShapeError);

  auto broken = kernel_cases::inputs_of<float>(c.input, 10, 1);
  broken(4, 0) = NAN;
  KernelOperator<float> nan(*module, broken, {}, workers);
  EXPECT_THROW(nan.apply(random_vectors(2, 10, 1), product), NumericError);

  std::stop_source stop;
  stop.request_stop();
  options = {};
  options.stop = stop.get_token();
  KernelOperator<float> stopped(*module, x, options, workers);
  EXPECT_THROW(stopped.apply(random_vectors(2, 10, 1), product), Cancelled);

  const Tensor<float> nothing(Shape{0, 5});
  KernelOperator<float> empty(*module, nothing, {}, workers);
  EXPECT_EQ(empty.size(), 0U);
  Tensor<double> none(Shape{2, 0});
  empty.apply(none, none);
}

}  // namespace
}  // namespace gradgram::ntk
