// The gathered product behind a direct convolution, for every instruction set that runs here: pixels of a
// zero-padded channels-last image, 3 x 3 taps.

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "bench/limit.hpp"
#include "engine/cpu.hpp"
#include "engine/tensor.hpp"

namespace gradgram {
namespace {

/// rows = size^2 pixels, depth = 9 channels_in, columns = channels_out.
template <class T>
void gather_product(benchmark::State& state, Isa isa) {
  const auto size = static_cast<std::size_t>(state.range(0));
  const auto channels_in = static_cast<std::size_t>(state.range(1));
  const auto columns = static_cast<std::size_t>(state.range(2));
  const std::size_t rows = size * size;
  const std::size_t depth = 9 * channels_in;
  const std::size_t width = size + 2;
  const std::size_t padding = simd::kColumnPadding<T>;
  const std::size_t stride = (columns + padding - 1) / padding * padding;
  Tensor<T> x(Shape{width, width, channels_in});
  Tensor<T> v(Shape{depth, stride});
  Tensor<T> out(Shape{rows, columns});
  for (std::size_t i = 0; i < x.span().size(); ++i) x.data()[i] = static_cast<T>(static_cast<int>(i % 7) - 3);
  for (std::size_t i = 0; i < v.span().size(); ++i) v.data()[i] = static_cast<T>(static_cast<int>(i % 5) - 2);
  std::vector<std::ptrdiff_t> x_base;
  std::vector<std::ptrdiff_t> out_base;
  std::vector<std::ptrdiff_t> x_offset;
  for (std::size_t j = 0; j < rows; ++j) {
    x_base.push_back(static_cast<std::ptrdiff_t>((j / size * width + j % size) * channels_in));
    out_base.push_back(static_cast<std::ptrdiff_t>(j * columns));
  }
  for (std::size_t tap = 0; tap < 9; ++tap) {
    for (std::size_t c = 0; c < channels_in; ++c) {
      x_offset.push_back(static_cast<std::ptrdiff_t>((tap / 3 * width + tap % 3) * channels_in + c));
    }
  }
  const simd::GatherProduct<T> job{
      x.data(),        x_base.data(), x_offset.data(), v.data(), stride, out.data(),
      out_base.data(), rows,          depth,           columns,  false};
  const auto& table = kernels<T>(isa);
  bench::Limit<T> limit(isa);
  for (auto _ : state) {
    table.gather_product(job);
    benchmark::ClobberMemory();
  }
  double expected = 0;
  for (std::size_t i = 0; i < depth; ++i) {
    expected += static_cast<double>(x.data()[x_base[rows - 1] + x_offset[i]]) *
                static_cast<double>(v(i, columns - 1));
  }
  if (static_cast<double>(out(rows - 1, columns - 1)) != expected) state.SkipWithError("wrong result");
  limit.report(state,
               2.0 * static_cast<double>(rows) * static_cast<double>(depth) * static_cast<double>(columns));
}

void shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"size", "c_in", "c_out"})->MinTime(0.2);
  benchmark->Args({32, 64, 64})->Args({32, 32, 32})->Args({32, 3, 64})->Args({32, 3, 32})->Args({16, 64, 64});
  benchmark->Args({8, 64, 64})
      ->Args({8, 128, 128})
      ->Args({32, 16, 16})
      ->Args({4, 512, 512})
      ->Args({32, 64, 10});
}

}  // namespace
}  // namespace gradgram

int main(int argc, char** argv) {
  using namespace gradgram;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const Isa isa : available_isas()) {
    const std::string name(isa_name(isa));
    shapes(
        benchmark::RegisterBenchmark(("gather_product<float>/" + name).c_str(), gather_product<float>, isa));
    shapes(benchmark::RegisterBenchmark(("gather_product<double>/" + name).c_str(), gather_product<double>,
                                        isa));
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
