#include "ntk/infinite/memory.hpp"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "engine/error.hpp"
#include "ntk/infinite/cosines.hpp"
#include "ntk/infinite/inner_precision.hpp"
#include "ntk/infinite/nearly_parallel.hpp"
#include "ntk/infinite/parallel_images.hpp"
#include "ntk/infinite/plane_stages.hpp"
#include "ntk/infinite/planes.hpp"
#include "ntk/infinite/sides.hpp"
#include "ntk/infinite/tiles.hpp"

namespace gradgram::ntk::infinite {
namespace {

constexpr const char* kBytes = "infinite_kernel: bytes";

/// What a Builder takes for so many examples of both sides together.
template <class T>
std::size_t builder_bytes(const Program& program, std::size_t examples, std::size_t workers) {
  std::size_t bytes = Sides<T>::bytes(program, examples);
  const std::size_t inputs = checked_multiply(examples, program.input.size() * sizeof(T), kBytes);
  bytes =
      checked_add(bytes, checked_multiply(program.reach == Reach::Vector ? 1 : 2, inputs, kBytes), kBytes);
  bytes = checked_add(bytes, checked_multiply(examples, program.pixels[0] * sizeof(double), kBytes), kBytes);
  // States, frame and spare of one worker, two arrays each; in f64 while variances are prepared.
  std::size_t block = kVectorRows * kVectorTile;
  const std::size_t pixels = *std::ranges::max_element(program.pixels);
  if (program.reach == Reach::Diagonal)
    block = (has_planes(program) ? 1 : pixels) * kDiagonalRows * kDiagonalColumns;
  const bool planes = has_planes(program) && (!program.pooled_variances || pools_planes(program));
  if (program.reach == Reach::Full && !planes)
    block = 2 * checked_multiply(pixels, padded<T>(pixels), kBytes);
  const std::vector<int> zeros(program.pixels.size());
  const Scales unscaled{zeros, zeros};
  const Tile unit = largest_tile(program.reach);
  const std::size_t tile = unit.rows * unit.columns;
  std::size_t plane_scratch = 0;
  if (has_planes(program)) {
    const PlanePlan plan = plan_planes(program, unscaled, {}, 0);
    if (plan.window_h > 0) {
      const std::size_t windows = program.steps[plan.head].geometry.out_pixels();
      block = std::max(block, checked_multiply(windows, padded<T>(windows), kBytes));
    }
    const std::vector<PlanePlan> stages = plan_pooled(program, unscaled, plan, {}, 0);
    plane_scratch = PlaneWorker<T>::bytes(plan);
    if (program.pooled_variances && plan.window_h > 0) plane_scratch = PlaneWorker<double>::bytes(plan);
    if (!stages.empty()) plane_scratch += PlaneStages::bytes(plan, stages);
    if (plan.diagonal) bytes = checked_add(bytes, PlaneImages<T>::bytes(plan, examples), kBytes);
  }
  if (widens_vectors<T>(program)) {
    bytes = checked_add(bytes, Sides<double>::bytes(program, examples), kBytes);
    block += kApartColumns;
  }
  if (follows_cosines(program)) {
    const std::size_t held = checked_multiply(examples, CosineVectors<T>::bytes_per_example(program), kBytes);
    bytes = checked_add(bytes, held, kBytes);
    plane_scratch += CosineVectors<T>::bytes_per_worker(kVectorTile);
  }
  const std::size_t scratch = checked_add(
      checked_multiply(2 * (program.depth + 2), checked_multiply(block, sizeof(double), kBytes), kBytes),
      3 * tile * sizeof(T) + plane_scratch, kBytes);
  return checked_add(bytes, checked_multiply(scratch, workers, kBytes), kBytes);
}

/// What planes in f32 add to a Builder in f64.
std::size_t narrow_bytes(const Program& program, std::size_t examples, std::size_t workers) {
  if (!pools_planes(program)) return 0;
  const std::vector<int> zeros(program.pixels.size());
  const PlanePlan plan = plan_planes(program, Scales{zeros, zeros}, {}, 0);
  const std::size_t inputs = checked_multiply(examples, program.input.size() * sizeof(float), kBytes);
  const std::size_t held = checked_add(checked_add(Sides<float>::bytes(program, examples), inputs, kBytes),
                                       ParallelImages::bytes(program, examples), kBytes);
  return checked_add(held, checked_multiply(PlaneWorker<float>::bytes(plan), workers, kBytes), kBytes);
}

/// What entries in f64 add to a Builder in f32.
std::size_t lost_bytes(const Program& program, std::size_t examples, std::size_t workers) {
  if (!ParallelImages::serves(program)) return 0;
  const std::size_t some = std::min(examples, 2 * kLostExamples);
  const std::size_t copies = checked_multiply(some, program.input.size() * sizeof(double), kBytes);
  // Pairs of one batch and their examples, in vectors that grow to twice their length.
  constexpr std::size_t kBatch = kLostExamples * kLostExamples * 2 * (sizeof(Pair) + 2 * sizeof(std::size_t));
  const std::size_t found = checked_add(ParallelImages::bytes(program, examples), kBatch, kBytes);
  return checked_add(checked_add(found, copies, kBytes), builder_bytes<double>(program, some, workers),
                     kBytes);
}

}  // namespace

template <class T>
std::size_t required_bytes(const Program& program, std::size_t rows, std::size_t columns,
                           const InfiniteOptions& what, std::size_t workers, bool matrices) {
  const std::size_t examples = columns == 0 ? rows : checked_add(rows, columns, kBytes);
  std::size_t bytes = 0;
  if (matrices) {
    const std::size_t entries = checked_multiply(rows, columns == 0 ? rows : columns, kBytes);
    bytes = checked_multiply(entries, sizeof(T) * (what.nngp && what.ntk ? 2 : 1), kBytes);
  }
  // With smooth forms the inputs decide: the more is counted.
  if (!may_run_wide<T>(program)) {
    if (std::is_same_v<T, float>) bytes = checked_add(bytes, lost_bytes(program, examples, workers), kBytes);
    return checked_add(bytes, builder_bytes<T>(program, examples, workers), kBytes);
  }
  const std::size_t copies = checked_multiply(examples, program.input.size() * sizeof(double), kBytes);
  bytes = checked_add(checked_add(bytes, copies, kBytes), narrow_bytes(program, examples, workers), kBytes);
  return checked_add(bytes, builder_bytes<double>(program, examples, workers), kBytes);
}

template std::size_t required_bytes<float>(const Program&, std::size_t, std::size_t, const InfiniteOptions&,
                                           std::size_t, bool);
template std::size_t required_bytes<double>(const Program&, std::size_t, std::size_t, const InfiniteOptions&,
                                            std::size_t, bool);

}  // namespace gradgram::ntk::infinite
