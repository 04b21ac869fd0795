// Activations and their derivatives, for every instruction set that runs here and for the standard library,
// on 16 KiB that stay in the first-level cache.

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "engine/cpu.hpp"
#include "engine/machine.hpp"

namespace gradgram {
namespace {

using simd::Activation;

template <class T>
std::vector<T> arguments() {
  std::vector<T> x(16384 / sizeof(T));
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<T>(4 * std::sin(0.7 * static_cast<double>(i)));
  return x;
}

/// `values/s`, and `fma_slots`: the multiply-adds (per lane) that the machine could have done in the time of
/// one value; a polynomial alone takes 10 to 30.
template <class T>
class Report {
 public:
  explicit Report(Isa isa) : isa_(isa), before_(probe_fma_rate<T>(isa)) {}
  void print(benchmark::State& state, std::size_t n) const {
    using benchmark::Counter;
    const double multiply_adds = (before_ + probe_fma_rate<T>(isa_)) / 4;
    const auto values = static_cast<double>(n);
    state.counters["values/s"] = Counter(values, Counter::kIsIterationInvariantRate);
    state.counters["fma_slots"] =
        Counter(values / multiply_adds, Counter::kIsIterationInvariantRate | Counter::kInvert);
  }

 private:
  Isa isa_;
  double before_;
};

template <class T>
void value(benchmark::State& state, Isa isa, Activation kind) {
  const auto x = arguments<T>();
  std::vector<T> y(x.size());
  const Report<T> report(isa);
  for (auto _ : state) {
    kernels<T>(isa).activate(kind, T(0.01), x.data(), y.data(), x.size());
    benchmark::ClobberMemory();
  }
  report.print(state, x.size());
}

template <class T>
void chain(benchmark::State& state, Isa isa, Activation kind) {
  const auto x = arguments<T>();
  const std::vector<T> t(x.size(), T(1));
  std::vector<T> y(x.size());
  std::vector<T> out(x.size());
  kernels<T>(isa).activate(kind, T(0.01), x.data(), y.data(), x.size());
  const Report<T> report(isa);
  for (auto _ : state) {
    kernels<T>(isa).activation_chain(kind, T(0.01), x.data(), y.data(), t.data(), out.data(), x.size());
    benchmark::ClobberMemory();
  }
  report.print(state, x.size());
}

template <class T>
void standard_library(benchmark::State& state, T (*function)(T)) {
  const auto x = arguments<T>();
  std::vector<T> y(x.size());
  const Report<T> report(active_isa());
  for (auto _ : state) {
    for (std::size_t i = 0; i < x.size(); ++i) y[i] = function(x[i]);
    benchmark::ClobberMemory();
  }
  report.print(state, x.size());
}

template <class T>
void register_all(const std::string& type) {
  const std::vector<std::pair<std::string, Activation>> kinds = {
      {"relu", Activation::Relu},         {"leaky_relu", Activation::LeakyRelu},
      {"tanh", Activation::Tanh},         {"sigmoid", Activation::Sigmoid},
      {"erf", Activation::Erf},           {"gelu", Activation::Gelu},
      {"softplus", Activation::Softplus}, {"sin", Activation::Sin}};
  for (const auto& [name, kind] : kinds) {
    for (const Isa isa : available_isas()) {
      const std::string suffix = "<" + type + ">/" + name + "/" + std::string(isa_name(isa));
      benchmark::RegisterBenchmark(("value" + suffix).c_str(), value<T>, isa, kind)->MinTime(0.05);
      benchmark::RegisterBenchmark(("chain" + suffix).c_str(), chain<T>, isa, kind)->MinTime(0.05);
    }
  }
  const std::vector<std::pair<std::string, T (*)(T)>> scalars = {
      {"tanh", [](T x) { return std::tanh(x); }},
      {"erf", [](T x) { return std::erf(x); }},
      {"sin", [](T x) { return std::sin(x); }},
      {"sigmoid", [](T x) { return 1 / (1 + std::exp(-x)); }}};
  for (const auto& [name, function] : scalars) {
    benchmark::RegisterBenchmark(("value<" + type + ">/" + name + "/standard_library").c_str(),
                                 standard_library<T>, function)
        ->MinTime(0.05);
  }
}

}  // namespace
}  // namespace gradgram

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  gradgram::register_all<float>("float");
  gradgram::register_all<double>("double");
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
