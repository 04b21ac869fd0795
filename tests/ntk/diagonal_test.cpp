#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "ntk/kernel.hpp"
#include "ntk/precision.hpp"
#include "tests/ntk/kernel_cases.hpp"

namespace gradgram::ntk {
namespace {

using kernel_cases::Case;

template <class T>
void diagonal_is_the_kernels(const Case& c) {
  const auto module = kernel_cases::module_of<T>(c);
  const std::size_t outputs = module->outputs();
  const std::size_t n = 13;
  const auto x = kernel_cases::inputs_of<T>(c.input, n, 1);
  const auto labels = kernel_cases::labels_of(n, outputs, 3);
  for (const Reduce reduce :
       {Reduce::Full, Reduce::TraceMean, Reduce::TraceSum, Reduce::Output, Reduce::TrueClass}) {
    if (reduce == Reduce::TrueClass && outputs == 1) continue;
    SCOPED_TRACE(c.name + ", " + reduce_name(reduce, outputs - 1));
    KernelOptions options;
    options.reduce = reduce;
    options.output = outputs - 1;
    options.labels = labels;
    const Tensor<double> d = diagonal<T>(*module, x, options, Workers(1));
    for (const std::size_t threads : {2, 7}) {
      const Tensor<double> again = diagonal<T>(*module, x, options, Workers(threads));
      EXPECT_EQ(std::memcmp(d.data(), again.data(), d.size() * sizeof(double)), 0) << threads;
    }
    const auto k = kernel<T>(*module, x, options, Workers(2)).values;
    const double tolerance = sizeof(T) == 8 ? 1e-12 : entry_error<T>();
    for (std::size_t i = 0; i < n; ++i) {
      if (reduce != Reduce::Full) {
        EXPECT_LE(std::abs(d(i) - k(i, i)), tolerance * k(i, i));
        EXPECT_FALSE(std::abs(d(i) * (1 + 10 * tolerance) - k(i, i)) <= tolerance * k(i, i));
        continue;
      }
      for (std::size_t a = 0; a < outputs; ++a) {
        for (std::size_t b = 0; b < outputs; ++b) {
          EXPECT_LE(std::abs(d(i, a, b) - k(i, i, a, b)),
                    tolerance * std::sqrt(double(k(i, i, a, a)) * double(k(i, i, b, b))));
          EXPECT_EQ(d(i, a, b), d(i, b, a));
        }
      }
    }
  }
}

TEST(Diagonal, IsTheKernelsDiagonal) {
  for (const Case& c : kernel_cases::all()) {
    diagonal_is_the_kernels<double>(c);
    diagonal_is_the_kernels<float>(c);
  }
}

TEST(Diagonal, KeepsToItsBudget) {
  const Case c = kernel_cases::all()[2];
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 31, 1);
  for (const Reduce reduce : {Reduce::TraceMean, Reduce::Full}) {
    KernelOptions options;
    options.reduce = reduce;
    const Workers workers(2);
    const auto roomy = diagonal<float>(*module, x, options, workers);
    options.memory = 1;
    try {
      diagonal<float>(*module, x, options, workers);
      ADD_FAILURE() << "one byte sufficed";
    } catch (const BudgetError& error) {
      const std::string text = error.what();
      const std::string before = "the least that would do is ";
      ASSERT_NE(text.find(before), std::string::npos) << text;
      options.memory = std::stoull(text.substr(text.find(before) + before.size()));
    }
    const auto tight = diagonal<float>(*module, x, options, workers);
    EXPECT_EQ(std::memcmp(roomy.data(), tight.data(), roomy.size() * sizeof(double)), 0);
    options.memory -= 1;
    EXPECT_THROW(diagonal<float>(*module, x, options, workers), BudgetError);
  }
}

TEST(Diagonal, RefusesPartsPerParameter) {
  const Case c = kernel_cases::all()[0];
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 3, 1);
  KernelOptions options;
  options.per_parameter = true;
  EXPECT_THROW(diagonal<float>(*module, x, options, Workers(1)), ArgumentError);
}

}  // namespace
}  // namespace gradgram::ntk
