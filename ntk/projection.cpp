#include "ntk/projection.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "engine/blas.hpp"
#include "engine/cpu.hpp"
#include "engine/memory_account.hpp"
#include "engine/sinks.hpp"
#include "ntk/passes.hpp"
#include "ntk/plan.hpp"
#include "ntk/precision.hpp"

namespace gradgram::ntk {
namespace {

// Examples whose rows are held at once, sharing the hash: as many as fit here, at most 16. The size of the
// network decides, never the budget, since matrix products of other sizes round otherwise.
constexpr std::size_t kBlockBytes = std::size_t{256} << 20;
constexpr std::size_t kMaxBlock = 16;
constexpr std::size_t kHashPiece = 2048;  // components hashed at once
constexpr std::size_t kTile = 256;

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every bit of the result depends on every bit of x.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

/// Adds `count` gradients of P components, sketched, to `sums` [count, d].
template <class T>
void sketch(const T* rows, std::size_t stride, std::size_t count, std::size_t size, std::uint64_t key,
            std::size_t dimension, double* sums) {
  std::array<std::uint32_t, kHashPiece> places;
  std::array<double, kHashPiece> signs;
  for (std::size_t begin = 0; begin < size; begin += kHashPiece) {
    const std::size_t piece = std::min(kHashPiece, size - begin);
    for (std::size_t i = 0; i < piece; ++i) {
      const std::uint64_t hash = mix(key + (begin + i) * 0x9E3779B97F4A7C15ULL);
      // The upper 32 bits scaled to [0, d): off from uniform by d / 2^32.
      places[i] = static_cast<std::uint32_t>(((hash >> 32) * dimension) >> 32);
      signs[i] = (hash & 1) != 0 ? 1.0 : -1.0;
    }
    for (std::size_t e = 0; e < count; ++e) {
      const T* const row = rows + e * stride + begin;
      double* const sum = sums + e * dimension;
      for (std::size_t i = 0; i < piece; ++i) sum[places[i]] += signs[i] * static_cast<double>(row[i]);
    }
  }
}

template <class T>
std::string beyond() {
  return std::string(", beyond the numbers of ") + (sizeof(T) == 4 ? "f32" : "f64");
}

template <class T>
std::size_t block_of(std::size_t stride) {
  return std::clamp<std::size_t>(
      kBlockBytes / checked_multiply(std::max<std::size_t>(stride, 1), sizeof(T), "project_gradients"), 1,
      kMaxBlock);
}

}  // namespace

template <class T>
std::size_t projection_bytes(const Module<T>& module, const ModuleProfile& profile, std::size_t examples,
                             const ProjectionOptions& options, std::size_t workers) {
  const auto bytes = [](std::size_t count, std::size_t each) {
    return checked_multiply(count, each, "project_gradients");
  };
  const std::size_t stride = padded_stride(module.parameters().size(), sizeof(T));
  const std::size_t block = std::min(examples, block_of<T>(stride));
  // Of one example: its gradient, its sums.
  const std::size_t rows = bytes(block, bytes(stride, sizeof(T)) + bytes(options.dimension, sizeof(double)));
  return bytes(examples, profile.input_bytes) + profile.weight_bytes +
         bytes(bytes(examples, options.dimension), sizeof(T)) +
         bytes(workers, checked_add(profile.tape_of(block),
                                    checked_add(rows, kBlasBytes, "project_gradients"), "project_gradients"));
}

template <class T>
double ProjectedGradients<T>::standard_distortion() const {
  return std::sqrt(2.0 / static_cast<double>(features.shape()[1]));
}

template <class T>
double ProjectedGradients<T>::distortion_95() const {
  return standard_distortion() / std::sqrt(0.05);
}

template <class T>
std::string ProjectedGradients<T>::label() const {
  char distortion[32];
  std::snprintf(distortion, sizeof distortion, "%.3g", standard_distortion());
  return "approximate: gradients projected to " + std::to_string(features.shape()[1]) +
         " dimensions (CountSketch, seed " + std::to_string(seed) + "), entry error at most " + distortion +
         " sqrt(k_ii k_jj) (one standard deviation)";
}

template <class T>
ProjectedGradients<T> project_gradients(const Module<T>& module, TensorView<const T> x,
                                        const ProjectionOptions& options, const Workers& workers) {
  const char* const call = "project_gradients";
  check_inputs(call, "x", x.shape(), module.input_shape());
  const std::size_t n = x.shape()[0];
  const std::size_t d = options.dimension;
  const std::size_t outputs = module.outputs();
  KernelOptions reduction;
  reduction.reduce = options.reduce;
  reduction.output = options.output;
  reduction.labels = options.labels;
  check_reduction(call, reduction, outputs, n);
  if (options.reduce == Reduce::Full) {
    throw ArgumentError("project_gradients: the reduction full is not available");
  }
  if (d == 0 || d > (std::size_t{1} << 24)) {
    throw ArgumentError("project_gradients: dimension (" + std::to_string(d) + ") must be in [1, 2^24]");
  }
  ProjectedGradients<T> result;
  result.seed = options.seed;
  result.reduce = reduce_name(options.reduce, options.output);
  if (n == 0) {
    result.features = Tensor<T>(Shape{0, d});
    return result;
  }

  const ParameterSet<T>& parameters = module.parameters();
  const std::size_t size = parameters.size();
  const std::size_t stride = padded_stride(size, sizeof(T));
  const std::size_t block = block_of<T>(stride);
  MemoryAccount account(call, options.memory == 0 ? cpu_info().memory_bytes / 2 : options.memory);
  account.phase("the features",
                projection_bytes(module, profile<T>(module, x.slice(0, 1)), n, options, workers.count()));
  account.check();

  std::vector<std::size_t> offsets;
  for (std::size_t p = 0; p < parameters.count(); ++p) offsets.push_back(parameters.offset(p));
  result.features = Tensor<T>(Shape{n, d});
  std::vector<std::unique_ptr<Arena>> arenas;
  for (std::size_t w = 0; w < workers.count(); ++w) arenas.push_back(std::make_unique<Arena>());
  const double scale =
      options.reduce == Reduce::TraceMean ? 1 / std::sqrt(static_cast<double>(outputs)) : 1.0;
  workers.run(
      (n + block - 1) / block,
      [&](std::size_t b, std::size_t worker) {
        const std::size_t begin = b * block;
        const std::size_t count = std::min(block, n - begin);
        Arena& arena = *arenas[worker];
        const ArenaScope scope(arena);
        const TensorView<T> rows = arena.tensor<T>({count, stride});
        const TensorView<double> sums = arena.tensor<double>({count, d});
        std::fill_n(sums.data(), sums.size(), 0.0);
        const auto labels = options.labels.empty() ? options.labels : options.labels.subspan(begin, count);
        run_passes(module, x.slice(begin, begin + count), reduction, labels, arena,
                   [&](std::size_t pass, const auto& reverse) {
                     std::fill_n(rows.data(), rows.size(), T(0));
                     JacobianSink<T> sink(rows.data(), stride, offsets);
                     reverse(sink);
                     // Each output has a hash of its own, as if their gradients stood side by side.
                     const std::uint64_t key = mix(mix(options.seed + 0x9E3779B97F4A7C15ULL) + pass);
                     sketch(rows.data(), stride, count, size, key, d, sums.data());
                   });
        for (std::size_t e = 0; e < count; ++e) {
          for (std::size_t k = 0; k < d; ++k) {
            const T value = static_cast<T>(scale * sums(e, k));
            if (!std::isfinite(value)) {
              throw NumericError("project_gradients: the gradient of example " + std::to_string(begin + e) +
                                 " leaves the numbers: feature " + std::to_string(k) + " is " +
                                 std::to_string(scale * sums(e, k)) + beyond<T>());
            }
            result.features(begin + e, k) = value;
          }
        }
      },
      options.progress, options.stop);
  return result;
}

template <class T>
Tensor<T> approximate_kernel(const ProjectedGradients<T>& projected, const Workers& workers) {
  const std::size_t n = projected.features.shape()[0];
  const std::size_t d = projected.features.shape()[1];
  Tensor<T> result(Shape{n, n});
  const std::size_t side = (n + kTile - 1) / kTile;
  workers.run(side * (side + 1) / 2, [&](std::size_t tile, std::size_t) {
    std::size_t row = 0;
    while ((row + 1) * (row + 2) / 2 <= tile) ++row;
    const std::size_t i0 = row * kTile;
    const std::size_t j0 = (tile - row * (row + 1) / 2) * kTile;
    const std::size_t m = std::min(kTile, n - i0);
    const std::size_t columns = std::min(kTile, n - j0);
    std::vector<double> sums(m * columns);
    std::vector<T> part(m * columns);
    for (std::size_t k = 0; k < d; k += kPanelColumns<T>) {
      blas::gemm(blas::Transpose::No, blas::Transpose::Yes, m, columns, std::min(kPanelColumns<T>, d - k),
                 T(1), projected.features.data() + i0 * d + k, d, projected.features.data() + j0 * d + k, d,
                 T(0), part.data(), columns);
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += static_cast<double>(part[i]);
    }
    for (std::size_t i = 0; i < m; ++i) {
      for (std::size_t j = 0; j < columns && j0 + j <= i0 + i; ++j) {
        const T value = static_cast<T>(sums[i * columns + j]);
        if (!std::isfinite(value)) {
          throw NumericError("approximate_kernel: entry (" + std::to_string(i0 + i) + ", " +
                             std::to_string(j0 + j) + ") is " + std::to_string(sums[i * columns + j]) +
                             beyond<T>());
        }
        result.data()[(i0 + i) * n + j0 + j] = value;
        result.data()[(j0 + j) * n + i0 + i] = value;
      }
    }
  });
  return result;
}

template <class T>
std::size_t approximate_kernel_bytes(std::size_t examples, std::size_t workers) {
  const std::size_t matrix = checked_multiply(checked_multiply(examples, examples, "approximate_kernel"),
                                              sizeof(T), "approximate_kernel");
  return checked_add(matrix, workers * (kBlasBytes + kTile * kTile * (sizeof(double) + sizeof(T))),
                     "approximate_kernel");
}

template std::size_t approximate_kernel_bytes<float>(std::size_t, std::size_t);
template std::size_t approximate_kernel_bytes<double>(std::size_t, std::size_t);
template std::size_t projection_bytes(const Module<float>&, const ModuleProfile&, std::size_t,
                                      const ProjectionOptions&, std::size_t);
template std::size_t projection_bytes(const Module<double>&, const ModuleProfile&, std::size_t,
                                      const ProjectionOptions&, std::size_t);
template struct ProjectedGradients<float>;
template struct ProjectedGradients<double>;
template ProjectedGradients<float> project_gradients(const Module<float>&, TensorView<const float>,
                                                     const ProjectionOptions&, const Workers&);
template ProjectedGradients<double> project_gradients(const Module<double>&, TensorView<const double>,
                                                      const ProjectionOptions&, const Workers&);
template Tensor<float> approximate_kernel(const ProjectedGradients<float>&, const Workers&);
template Tensor<double> approximate_kernel(const ProjectedGradients<double>&, const Workers&);

}  // namespace gradgram::ntk
