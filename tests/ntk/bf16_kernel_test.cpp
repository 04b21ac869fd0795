#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/bf16.hpp"
#include "engine/cpu.hpp"
#include "engine/sinks.hpp"
#include "ntk/kernel.hpp"
#include "ntk/passes.hpp"
#include "ntk/planned_kernel.hpp"
#include "ntk/precision.hpp"
#include "tests/ntk/kernel_cases.hpp"

namespace gradgram::ntk {
namespace {

using kernel_cases::Case;

/// The nearest number with 8 significant bits, ties to even.
double rounded(double value) {
  if (value == 0) return 0;
  int exponent = 0;
  const double fraction = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
}

/// `way` for every weight that can be contracted so; the others are materialized anyway.
std::vector<std::pair<std::string, Way>> everywhere(const Module<float>& module, const Case& c, Way way) {
  const auto x = kernel_cases::inputs_of<float>(c.input, 1, 1);
  const Plan plan = plan_for<float>(module, x.view(), nullptr, {}, 1);
  std::vector<std::size_t> count(module.parameters().count(), 0);
  for (const PlannedUse& use : plan.uses) ++count[use.weight];
  std::vector<std::pair<std::string, Way>> ways;
  for (const PlannedUse& use : plan.uses) {
    if (count[use.weight] > 1 || (way == Way::Outer && (use.convolution || use.positions > 1))) continue;
    ways.emplace_back(module.parameters().name(use.weight), way);
  }
  return ways;
}

/// The greatest |k - exact| in units of sqrt(k_ii k_jj); NaN when an entry is.
template <class Exact>
double worst(const Tensor<float>& k, const Exact& exact) {
  double result = 0;
  for (std::size_t i = 0; i < k.shape()[0]; ++i) {
    for (std::size_t j = 0; j < k.shape()[1]; ++j) {
      const double error = std::abs(k(i, j) - exact(i, j)) / std::sqrt(exact(i, i) * exact(j, j));
      if (!(error <= result)) result = error;
    }
  }
  return result;
}

class Bf16Kernel : public testing::Test {
 protected:
  void SetUp() override {
    if (bf16_kernels() == nullptr) GTEST_SKIP() << "no bfloat16 products on this processor, or excluded";
  }
};

TEST_F(Bf16Kernel, IsTheProductOfRoundedGradients) {
  const Workers workers(2);
  for (const Case& c : kernel_cases::all()) {
    SCOPED_TRACE(c.name);
    const auto module = kernel_cases::module_of<float>(c);
    const std::size_t n = 37;
    const auto x = kernel_cases::inputs_of<float>(c.input, n, 1);
    KernelOptions options;
    options.reduce = Reduce::Output;
    options.ways = everywhere(*module, c, Way::Materialize);
    options.bf16 = true;
    const auto k = kernel<float>(*module, x.view(), options, workers).values;

    const ParameterSet<float>& parameters = module->parameters();
    std::vector<std::size_t> offsets;
    for (std::size_t p = 0; p < parameters.count(); ++p) offsets.push_back(parameters.offset(p));
    Tensor<float> rows(Shape{n, parameters.size()});
    Arena arena;
    run_passes<float>(*module, x.view(), options, {}, arena, [&](std::size_t, const auto& reverse) {
      JacobianSink<float> sink(rows.data(), parameters.size(), offsets);
      reverse(sink);
    });
    Tensor<double> exact(Shape{n, n}), plain(Shape{n, n});
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        for (std::size_t p = 0; p < parameters.size(); ++p) {
          exact(i, j) += rounded(rows(i, p)) * rounded(rows(j, p));
          plain(i, j) += static_cast<double>(rows(i, p)) * static_cast<double>(rows(j, p));
        }
      }
    }
    // A gradient that is summed in another order may round to the neighbour.
    EXPECT_LE(worst(k, exact), 2e-4);
    EXPECT_LE(worst(k, plain), bf16_entry_error());
    EXPECT_GE(worst(k, plain), 1e-5) << "nothing was rounded";
    Tensor<float> corrupt = k.clone();
    corrupt(n - 1, 0) += static_cast<float>(4e-4 * std::sqrt(exact(0, 0) * exact(n - 1, n - 1)));
    EXPECT_FALSE(worst(corrupt, exact) <= 2e-4);
  }
}

TEST_F(Bf16Kernel, StaysWithinItsBoundTheOuterWayAndHasTheSameBitsHoweverBlocked) {
  for (const Case& c : kernel_cases::all()) {
    SCOPED_TRACE(c.name);
    const auto module = kernel_cases::module_of<float>(c);
    const std::size_t n = 53;
    const auto x = kernel_cases::inputs_of<float>(c.input, n, 1);
    const TensorView<const float> view = x.view();
    for (const Reduce reduce : {Reduce::TraceMean, Reduce::Full}) {
      KernelOptions options;
      options.reduce = reduce;
      options.ways = everywhere(*module, c, Way::Outer);
      const auto exact = kernel<float>(*module, view, options, Workers(1)).values;
      options.bf16 = true;
      const auto k = kernel<float>(*module, view, options, Workers(1)).values;
      if (reduce == Reduce::TraceMean) {
        EXPECT_LE(worst(k, exact), bf16_entry_error());
        EXPECT_GE(worst(k, exact), 1e-5);
      }
      for (const std::size_t threads : {2, 7}) {
        const auto again = kernel<float>(*module, view, options, Workers(threads)).values;
        EXPECT_EQ(std::memcmp(k.data(), again.data(), k.size() * sizeof(float)), 0) << threads;
      }
      Plan plan = plan_for<float>(*module, view, nullptr, options, 2);
      plan.tile = 19;
      plan.resident = 31;
      plan.streamed = 11;
      const auto blocked = planned_kernel<float>(*module, view, nullptr, options, plan, Workers(2)).values;
      EXPECT_EQ(std::memcmp(k.data(), blocked.data(), k.size() * sizeof(float)), 0);
      const auto rectangle = kernel<float>(*module, view.slice(0, 20), view, options, Workers(2)).values;
      EXPECT_EQ(std::memcmp(k.data(), rectangle.data(), rectangle.size() * sizeof(float)), 0);
    }
  }
}

TEST_F(Bf16Kernel, KeepsToItsBudget) {
  const Case c = kernel_cases::all()[2];
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 61, 1);
  KernelOptions options;
  options.bf16 = true;
  options.ways = everywhere(*module, c, Way::Materialize);
  const Workers workers(2);
  const auto roomy = kernel<float>(*module, x.view(), options, workers);
  options.memory = 1;
  try {
    kernel<float>(*module, x.view(), options, workers);
    ADD_FAILURE() << "one byte sufficed";
  } catch (const BudgetError& error) {
    const std::string text = error.what();
    const std::string before = "the least that would do is ";
    ASSERT_NE(text.find(before), std::string::npos) << text;
    options.memory = std::stoull(text.substr(text.find(before) + before.size()));
  }
  const auto tight = kernel<float>(*module, x.view(), options, workers);
  EXPECT_EQ(std::memcmp(roomy.values.data(), tight.values.data(), roomy.values.size() * sizeof(float)), 0);
}

TEST_F(Bf16Kernel, MeasuresItsErrorOnASample) {
  const Case c = kernel_cases::all()[2];
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 71, 1);
  const auto y = kernel_cases::inputs_of<float>(c.input, 5, 2);
  const TensorView<const float> versus = y.view();
  const Workers workers(2);
  for (const Reduce reduce : {Reduce::TraceMean, Reduce::Full}) {
    KernelOptions options;
    options.reduce = reduce;
    options.bf16 = true;
    const std::size_t block = reduce == Reduce::Full ? 9 : 1;
    const EntryErrors own = sampled_bf16_errors<float>(*module, x.view(), nullptr, options, workers);
    EXPECT_EQ(own.entries, 32 * 32 * block);
    EXPECT_LE(own.worst, bf16_entry_error());
    EXPECT_GE(own.worst, own.root_mean_square);
    EXPECT_GE(own.root_mean_square, 1e-6);
    EXPECT_EQ(sampled_bf16_errors<float>(*module, x.view(), &versus, options, workers).entries,
              32 * 5 * block);
  }
}

TEST(Bf16, IsRefusedWhereItCannotBe) {
  const Case c = kernel_cases::all()[0];
  const auto x = kernel_cases::inputs_of<double>(c.input, 3, 1);
  KernelOptions options;
  options.bf16 = true;
  const Workers workers(1);
  EXPECT_THROW(kernel<double>(*kernel_cases::module_of<double>(c), x.view(), options, workers),
               ArgumentError);
  const auto y = kernel_cases::inputs_of<float>(c.input, 3, 1);
  const auto module = kernel_cases::module_of<float>(c);
  if (bf16_kernels() == nullptr) {
    EXPECT_THROW(kernel<float>(*module, y.view(), options, workers), ArgumentError);
  }
}

}  // namespace
}  // namespace gradgram::ntk
