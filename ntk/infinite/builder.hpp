#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/blas.hpp"
#include "engine/error.hpp"
#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "ntk/infinite/cosines.hpp"
#include "ntk/infinite/infinite.hpp"
#include "ntk/infinite/inner_precision.hpp"
#include "ntk/infinite/inputs.hpp"
#include "ntk/infinite/nearly_parallel.hpp"
#include "ntk/infinite/parallel_images.hpp"
#include "ntk/infinite/plane_stages.hpp"
#include "ntk/infinite/planes.hpp"
#include "ntk/infinite/prepare.hpp"
#include "ntk/infinite/program.hpp"
#include "ntk/infinite/propagator.hpp"
#include "ntk/infinite/sides.hpp"
#include "ntk/infinite/tiles.hpp"

/// The blocks of a kernel, by the fastest of the ways that follow the program.
namespace gradgram::ntk::infinite {

/// Below this share of the mean variance, delta is computed from differences instead of a matrix product.
constexpr double kNear = 1.0 / 64;

/// One less a cosine below which planes in f32, off by a few 1e-7 there, are not good enough to be pooled:
/// the angle would be off by more than 1e-5.
constexpr double kNearlyParallel = 1.0 / 1024;

/// What decides how everything is held.
struct VarianceRange {
  Norms norms;
  double largest = 0, smallest = 0;  ///< variances of the inputs, without the norms; not zero
  std::vector<double> ratios;        ///< see ratios_of_roots
};

/// Everything that belongs to examples, prepared once, and the blocks between them.
template <class T>
class Builder {
 public:
  /// `range`: of more inputs than these, so that they are held as those are.
  Builder(Program program, TensorView<const T> x, const TensorView<const T>* versus,
          const InfiniteOptions& what, const Workers& workers, double promised,
          const std::optional<VarianceRange>& range = {})
      : program_(std::move(program)),
        rows_(x.shape().rank() == 0 ? 0 : x.shape()[0]),
        same_(versus == nullptr),
        what_(what),
        workers_(workers),
        promised_(promised) {
    check_shape("x", x);
    if (!same_) check_shape("versus", *versus);
    columns_ = same_ ? rows_ : versus->shape()[0];
    if (!what.nngp && !what.ntk) throw ArgumentError("infinite_kernel: neither nngp nor ntk is asked for");
    if (rows_ == 0 || columns_ == 0) return;

    std::vector<double> left = input_variances<T>(program_, x, "x");
    std::vector<double> right = same_ ? left : input_variances<T>(program_, *versus, "versus");
    scratch_.resize(workers_.count());
    for (Scratch& scratch : scratch_) {
      const Tile tile = largest_tile();
      if (what_.nngp) scratch.nngp = Tensor<T>(Shape{tile.rows, tile.columns});
      if (what_.ntk) scratch.ntk = Tensor<T>(Shape{tile.rows, tile.columns});
    }
    cosines_ = CosineVectors<T>::make(program_, x, left, versus, right, kVectorTile, workers_.count());
    if (cosines_ != nullptr) return;
    range_.norms = range ? range->norms : Norms(program_, left, right);
    left_norms_ = range_.norms.take_out(program_, left);
    right_norms_ = range_.norms.take_out(program_, right);
    for (const std::vector<double>* side : {&left, &right}) {
      for (const double q : *side) {
        range_.largest = std::max(range_.largest, q);
        if (q > 0 && (range_.smallest == 0 || q < range_.smallest)) range_.smallest = q;
      }
    }
    if (range) range_ = *range;
    scales_ = choose_scales(program_, range_.largest, range_.smallest, kOmitted * promised, series_);
    const bool transposed = program_.reach != Reach::Vector;
    if (program_.reach == Reach::Vector) first_ = first_nonlinearity(program_);
    if (widens_vectors<T>(program_)) wide_ = std::make_unique<WideVectors>();
    left_sides_ = prepared_sides(x, left, left_norms_, wide_ ? &wide_->left : nullptr);
    left_inputs_ = std::make_unique<Inputs<T>>(program_, x, scales_.variance[0], left_norms_,
                                               transposed && (same_ || has_planes(program_)));
    if (!same_) {
      right_sides_ = prepared_sides(*versus, right, right_norms_, wide_ ? &wide_->right : nullptr);
      right_inputs_ =
          std::make_unique<Inputs<T>>(program_, *versus, scales_.variance[0], right_norms_, transposed);
    }
    if (!maps_multiples(program_)) {
      check_ratios(program_, scales_, *left_sides_, right_sides_.get(), promised);
    }
    if (has_planes(program_)) {
      if (!range) range_.ratios = ratios_of_roots<T>(program_, *left_sides_, right_sides());
      plan_ = plan_planes(program_, scales_, range_.ratios, kMostRatio<T>);
      stages_ = plan_pooled(program_, scales_, *plan_, range_.ratios, kMostRatio<T>);
    }
    if (plan_ && plan_->diagonal) {
      left_images_ =
          std::make_unique<PlaneImages<T>>(*plan_, *left_sides_, left_inputs_->rows(), true, same_, workers_);
      if (!same_) {
        right_images_ = std::make_unique<PlaneImages<T>>(*plan_, *right_sides_, right_inputs_->rows(), false,
                                                         true, workers_);
      }
    }
    if (std::is_same_v<T, float> && ParallelImages::serves(program_)) parallel_ = parallel_images();
    for (std::size_t w = 0; w < workers_.count(); ++w) {
      propagators_.push_back(std::make_unique<Propagator<T>>(program_, scales_, series_, what_.ntk));
      if (wide_) {
        wide_->propagators.push_back(
            std::make_unique<Propagator<double>>(program_, scales_, series_, what_.ntk));
      }
    }
    for (Scratch& scratch : scratch_) {
      if (plan_) scratch.planes = std::make_unique<PlaneWorker<T>>(*plan_);
      if (std::is_same_v<T, double> && !stages_.empty()) {
        scratch.stages = std::make_unique<PlaneStages>(program_, scales_, *plan_, stages_);
      }
      if (program_.reach == Reach::Vector) scratch.products = Tensor<T>(Shape{kVectorTile, kVectorTile});
    }
  }

  /// For results in f32: planes before a pooling are followed in f32 where what is pooled stands far enough
  /// from its rounding.
  void narrow_planes() requires std::is_same_v<T, double> {
    if (!plan_ || plan_->window_h == 0) return;
    narrow_ = std::make_unique<NarrowPlanes>();
    narrow_->plan = plan_planes(program_, scales_, range_.ratios, kMostRatio<float>);
    parallel_ = parallel_images();
    const auto narrowed = [&](const Inputs<T>& inputs, std::size_t examples) {
      Tensor<float> channels(Shape{examples * program_.channels * inputs.stride()});
      std::transform(inputs.columns(), inputs.columns() + channels.size(), channels.data(),
                     [](T value) { return static_cast<float>(value); });
      return channels;
    };
    narrow_->left = std::make_unique<Sides<float>>(program_, *left_sides_);
    narrow_->left_channels = narrowed(*left_inputs_, rows_);
    if (!same_) {
      narrow_->right = std::make_unique<Sides<float>>(program_, *right_sides_);
      narrow_->right_channels = narrowed(*right_inputs_, columns_);
    }
    for (std::size_t w = 0; w < workers_.count(); ++w) {
      narrow_->workers.push_back(std::make_unique<PlaneWorker<float>>(narrow_->plan));
    }
  }

  std::size_t rows() const noexcept { return rows_; }
  std::size_t columns() const noexcept { return columns_; }
  bool symmetric() const noexcept { return same_; }

  /// One task owns one tile of a grid that belongs to the whole matrix, so that an entry's bits do not depend
  /// on the block it is asked in. Of a symmetric matrix only the lower triangle is computed; a task writes
  /// its entries' mirror images as well.
  template <class Out>
  void block(IndexRange rows, IndexRange columns, const InfiniteBlock<Out>& out, const Progress& progress) {
    check_range("rows", rows, rows_);
    check_range("columns", columns, columns_);
    if (rows.begin == rows.end || columns.begin == columns.end) return;
    require_digits_of_rectangle<Out>();
    const Tile unit = largest_tile();
    std::vector<Tile> list;
    const auto reach = [&](IndexRange r, IndexRange c) {
      for (std::size_t row = r.begin / unit.rows * unit.rows; row < r.end; row += unit.rows) {
        for (std::size_t column = c.begin / unit.columns * unit.columns; column < c.end;
             column += unit.columns) {
          const Tile tile{row, std::min(unit.rows, rows_ - row), column,
                          std::min(unit.columns, columns_ - column)};
          if (same_ && tile.column > tile.row + tile.rows - 1) break;
          list.push_back(tile);
        }
      }
    };
    reach(rows, columns);
    if (same_ && !(rows.begin == columns.begin && rows.end == columns.end)) {
      reach(columns, rows);
      const auto key = [](const Tile& tile) { return std::pair(tile.row, tile.column); };
      std::ranges::sort(list, {}, key);
      const auto rest = std::ranges::unique(list, {}, key);
      list.erase(rest.begin(), rest.end());
    }
    const auto wanted = [&](std::size_t i, std::size_t j) {
      return (rows.holds(i) && columns.holds(j)) || (same_ && rows.holds(j) && columns.holds(i));
    };
    std::vector<std::uint8_t> lost(std::is_same_v<T, float> ? list.size() : 0);
    workers_.run(
        list.size(),
        [&](std::size_t index, std::size_t worker) {
          const Tile& tile = list[index];
          const auto held = [&](std::size_t i, std::size_t j) {
            if (!std::is_same_v<T, float> || parallel_ == nullptr || !parallel_->lost(i, j)) return true;
            lost[index] = 1;
            set_entry(scratch_[worker], tile, i, j, 0, 0);
            return false;
          };
          switch (program_.reach) {
            case Reach::Vector:
              if (cosines_ == nullptr) {
                vectors(tile, worker);
              } else if (cosine_vectors(tile, worker, rows, columns, out)) {
                return;
              }
              break;
            case Reach::Diagonal:
              diagonals(tile, worker, [](std::size_t, std::size_t) { return true; });
              for (std::size_t i = tile.row; i < tile.row + tile.rows; ++i) {
                const std::size_t end = tile.column + tile.columns;
                for (std::size_t j = tile.column; j < (same_ ? std::min(end, i + 1) : end); ++j) {
                  if (wanted(i, j)) held(i, j);
                }
              }
              break;
            case Reach::Full:
              pairs(tile, worker, [&](std::size_t i, std::size_t j) { return wanted(i, j) && held(i, j); });
              break;
          }
          require_digits_of_diagonal<Out>(scratch_[worker], tile, wanted);
          if (what_.nngp) deliver(scratch_[worker].nngp, tile, same_, rows, columns, out.nngp, out.stride);
          if (what_.ntk) deliver(scratch_[worker].ntk, tile, same_, rows, columns, out.ntk, out.stride);
        },
        progress, what_.stop);
    if constexpr (std::is_same_v<T, float>) {
      std::size_t kept = 0;
      for (std::size_t index = 0; index < list.size(); ++index) {
        if (lost[index] != 0) list[kept++] = list[index];
      }
      list.resize(kept);
      follow_lost(std::move(list), wanted, rows, columns, out);
    }
  }

  /// Calls sink(pair, nngp, ntk), from several threads, for pairs of images; what was not asked for is 0.
  template <class Sink>
  void entries(std::vector<Pair> list, const Sink& sink) {
    const Tile unit = largest_tile();
    const auto tile_of = [&](const Pair& pair) {
      return std::pair(pair.row / unit.rows, pair.column / unit.columns);
    };
    std::ranges::sort(list, {}, tile_of);
    std::vector<std::size_t> begins;
    for (std::size_t k = 0; k < list.size(); ++k) {
      if (k == 0 || tile_of(list[k]) != tile_of(list[k - 1])) begins.push_back(k);
    }
    workers_.run(
        begins.size(),
        [&](std::size_t index, std::size_t worker) {
          const std::size_t begin = begins[index];
          const std::size_t end = index + 1 < begins.size() ? begins[index + 1] : list.size();
          Tile tile = unit;
          tile.row = list[begin].row / unit.rows * unit.rows;
          tile.column = list[begin].column / unit.columns * unit.columns;
          tile.rows = std::min(unit.rows, rows_ - tile.row);
          tile.columns = std::min(unit.columns, columns_ - tile.column);
          std::vector<unsigned char> marks(unit.rows * unit.columns);
          const auto place_of = [&](std::size_t i, std::size_t j) {
            return (i - tile.row) * unit.columns + j - tile.column;
          };
          for (std::size_t k = begin; k < end; ++k) marks[place_of(list[k].row, list[k].column)] = 1;
          const auto wanted = [&](std::size_t i, std::size_t j) { return marks[place_of(i, j)] != 0; };
          if (program_.reach == Reach::Diagonal) {
            diagonals(tile, worker, wanted);
          } else {
            pairs(tile, worker, wanted);
          }
          const Scratch& scratch = scratch_[worker];
          for (std::size_t k = begin; k < end; ++k) {
            const std::size_t at = place_of(list[k].row, list[k].column);
            sink(list[k], what_.nngp ? scratch.nngp.data()[at] : T(0),
                 what_.ntk ? scratch.ntk.data()[at] : T(0));
          }
        },
        {}, what_.stop);
  }

 private:
  struct NarrowPlanes {
    PlanePlan plan;                             ///< as that in f64 but for the angles that it follows
    std::unique_ptr<Sides<float>> left, right;  ///< right: null when both sides are the same
    Tensor<float> left_channels, right_channels;
    std::vector<std::unique_ptr<PlaneWorker<float>>> workers;
  };
  struct WideVectors {
    std::unique_ptr<Sides<double>> left, right;  ///< right: null when both sides are the same
    std::vector<std::unique_ptr<Propagator<double>>> propagators;  ///< per worker
  };
  /// Of one worker.
  struct Scratch {
    Tensor<T> products, nngp, ntk;
    std::unique_ptr<PlaneWorker<T>> planes;
    std::unique_ptr<PlaneStages> stages;
  };

  Tile largest_tile() const { return infinite::largest_tile(program_.reach); }

  std::unique_ptr<ParallelImages> parallel_images() const {
    if (!ParallelImages::serves(program_)) return nullptr;
    const ParallelImages::Examples<T> left{left_inputs_->rows(), left_sides_.get()};
    const ParallelImages::Examples<T> right{right_inputs().rows(), &right_sides()};
    return std::make_unique<ParallelImages>(program_, scales_, left, same_ ? nullptr : &right,
                                            plan_.has_value(), workers_);
  }

  void set_entry(Scratch& scratch, const Tile& tile, std::size_t i, std::size_t j, T nngp, T ntk) const {
    const std::size_t at = (i - tile.row) * largest_tile().columns + j - tile.column;
    if (what_.nngp) scratch.nngp.data()[at] = nngp;
    if (what_.ntk) scratch.ntk.data()[at] = ntk;
  }

  /// Whether example i has a kernel with itself that is not zero and nothing but its scale can make small.
  bool keeps_scale(std::size_t i) const {
    return cosines_ == nullptr && program_.homogeneous && !left_sides_->null(i);
  }

  template <class Out, class Wanted>
  void require_digits_of_diagonal(const Scratch& scratch, const Tile& tile, const Wanted& wanted) const {
    if (!same_) return;
    const std::size_t begin = std::max(tile.row, tile.column);
    const std::size_t end = std::min(tile.row + tile.rows, tile.column + tile.columns);
    for (std::size_t i = begin; i < end; ++i) {
      if (!wanted(i, i) || !keeps_scale(i)) continue;
      if (std::is_same_v<T, float> && parallel_ != nullptr && parallel_->lost(i, i)) continue;
      const std::size_t at = (i - tile.row) * largest_tile().columns + i - tile.column;
      if (what_.nngp) require_digits<Out>(i, scratch.nngp.data()[at]);
      if (what_.ntk) require_digits<Out>(i, scratch.ntk.data()[at]);
    }
  }

  /// Of two sets no entry tells the size of an example's kernel with itself: here from variances, which
  /// averages can only make smaller.
  template <class Out>
  void require_digits_of_rectangle() const {
    if (same_ || cosines_ != nullptr || !program_.homogeneous) return;
    // The last variances that are held: behind an average only where a nonlinearity follows.
    std::size_t slot = program_.steps.back().out;
    double growth = 1;
    for (std::size_t s = program_.steps.size(); s-- > 0 && !program_.pooled_variances;) {
      const Step& step = program_.steps[s];
      if (step.kind == StepKind::Nonlinear) break;
      if (step.kind == StepKind::Affine && step.bias_variance != 0) return;
      if (step.kind == StepKind::Affine) growth *= step.weight_variance;
      if (step.kind == StepKind::Dropout) growth /= step.keep;
      if (step.kind == StepKind::Add) return;
      if (step.kind != StepKind::AveragePool) continue;
      slot = step.in;
      break;
    }
    if (slot == program_.steps.back().out) growth = 1;
    // Every layer adds its variance to a tangent kernel.
    if (!what_.nngp) {
      growth *= static_cast<double>(std::ranges::count(program_.steps, StepKind::Affine, &Step::kind));
    }
    struct Least {
      double root = std::numeric_limits<double>::infinity();
      std::size_t at = 0;
    };
    const auto least_of = [&](const Sides<T>& side, const std::vector<int>& norms) {
      const std::size_t pixels = program_.pixels[slot];
      Least least;
      for (std::size_t i = 0; i < side.examples(); ++i) {
        double sum = 0;
        for (std::size_t p = 0; p < pixels; ++p) {
          sum += static_cast<double>(program_.reach == Reach::Full ? side.variance(slot, 0, i)[p]
                                                                   : *side.variance(slot, p, i));
        }
        if (side.null(i) || !(sum > 0)) continue;
        const double root = std::ldexp(std::sqrt(growth * sum / static_cast<double>(pixels)),
                                       scales_.variance[slot] / 2 + (norms.empty() ? 0 : norms[i]));
        if (root < least.root) least = {root, i};
      }
      return least;
    };
    const Least left = least_of(*left_sides_, left_norms_);
    const Least right = least_of(*right_sides_, right_norms_);
    constexpr Out kLeast = std::numeric_limits<Out>::min();
    const double most = left.root * right.root;
    if (!(most < static_cast<double>(kLeast))) return;
    throw NumericError(fmt::format(
        "infinite_kernel: entry ({}, {}) is at most {:g}, where {:.2g} is the least that keeps its digits in "
        "this precision",
        left.at, right.at, most, kLeast));
  }

  /// Entries of these tiles that f32 does not hold, from f64, for a few examples at a time: what belongs to
  /// them would take twice the memory of all others. They are looked for once more: a list of all of them may
  /// be larger than the matrix.
  template <class Out, class Wanted>
  void follow_lost(std::vector<Tile> tiles, const Wanted& wanted, IndexRange rows, IndexRange columns,
                   const InfiniteBlock<Out>& out) const {
    const auto key = [](const Tile& tile) {
      return std::pair(tile.row / kLostExamples, tile.column / kLostExamples);
    };
    std::ranges::sort(tiles, {}, key);
    for (std::size_t begin = 0; begin < tiles.size();) {
      std::vector<Pair> batch;
      std::vector<std::size_t> lefts;
      std::vector<std::size_t> rights;
      const auto first = key(tiles[begin]);
      for (; begin < tiles.size() && key(tiles[begin]) == first; ++begin) {
        const Tile& tile = tiles[begin];
        for (std::size_t i = tile.row; i < tile.row + tile.rows; ++i) {
          const std::size_t end = tile.column + tile.columns;
          for (std::size_t j = tile.column; j < (same_ ? std::min(end, i + 1) : end); ++j) {
            if (wanted(i, j) && parallel_->lost(i, j)) batch.push_back({i, j});
          }
        }
      }
      std::ranges::sort(batch, {}, [](const Pair& pair) { return std::pair(pair.row, pair.column); });
      for (const Pair& pair : batch) {
        lefts.push_back(pair.row);
        (same_ ? lefts : rights).push_back(pair.column);
      }
      for (std::vector<std::size_t>* side : {&lefts, &rights}) {
        std::ranges::sort(*side);
        const auto rest = std::ranges::unique(*side);
        side->erase(rest.begin(), rest.end());
      }
      const auto index_of = [](const std::vector<std::size_t>& side, std::size_t example) {
        return static_cast<std::size_t>(std::ranges::lower_bound(side, example) - side.begin());
      };
      for (Pair& pair : batch) {
        pair = {index_of(lefts, pair.row), index_of(same_ ? lefts : rights, pair.column)};
      }
      const Tensor<double> x = widened(*left_inputs_, left_norms_, lefts);
      const Tensor<double> versus = same_ ? Tensor<double>() : widened(*right_inputs_, right_norms_, rights);
      const TensorView<const double> view = versus.view();
      Builder<double> wide(program_, x.view(), same_ ? nullptr : &view, what_, workers_, promised_, range_);
      wide.entries(std::move(batch), [&](const auto& pair, double nngp, double ntk) {
        const std::size_t i = lefts[pair.row];
        const std::size_t j = (same_ ? lefts : rights)[pair.column];
        const auto put = [&](Out* to, double value) {
          require_finite<Out>(i, j, value);
          if (same_ && i == j && keeps_scale(i)) require_digits<Out>(i, value);
          if (rows.holds(i) && columns.holds(j)) {
            to[(i - rows.begin) * out.stride + j - columns.begin] = static_cast<Out>(value);
          }
          if (same_ && rows.holds(j) && columns.holds(i)) {
            to[(j - rows.begin) * out.stride + i - columns.begin] = static_cast<Out>(value);
          }
        };
        if (what_.nngp) put(out.nngp, nngp);
        if (what_.ntk) put(out.ntk, ntk);
      });
    }
  }

  /// Some of the examples as they were given.
  Tensor<double> widened(const Inputs<T>& inputs, const std::vector<int>& norms,
                         const std::vector<std::size_t>& which) const {
    std::vector<std::size_t> extents{which.size()};
    for (const std::size_t extent : program_.input.extents()) extents.push_back(extent);
    Tensor<double> result{Shape(std::span<const std::size_t>(extents))};
    const std::size_t size = program_.input.size();
    double* to = result.data();
    for (const std::size_t example : which) {
      const double unit = std::ldexp(1.0, scales_.variance[0] / 2 + (norms.empty() ? 0 : norms[example]));
      const T* const from = inputs.rows() + example * size;
      to = std::transform(from, from + size, to, [&](T value) { return unit * static_cast<double>(value); });
    }
    return result;
  }

  void check_shape(const char* name, TensorView<const T> inputs) const {
    const Shape& shape = inputs.shape();
    if (shape.rank() == 0 || !(shape.inner() == program_.input)) {
      throw ShapeError("infinite_kernel: " + std::string(name) + ": found " + shape.to_string() +
                       ", expected [examples] followed by " + program_.input.to_string());
    }
  }

  static void check_range(const char* name, IndexRange range, std::size_t count) {
    if (range.begin > range.end || range.end > count) {
      throw ArgumentError("InfiniteKernel::block: " + std::string(name) + ": found [" +
                          std::to_string(range.begin) + ", " + std::to_string(range.end) + ") of " +
                          std::to_string(count));
    }
  }

  /// `wide`: where the same go before they are rounded, or null.
  std::unique_ptr<Sides<T>> prepared_sides(TensorView<const T> x, const std::vector<double>& variances,
                                           const std::vector<int>& norms,
                                           std::unique_ptr<Sides<double>>* wide) const {
    if constexpr (std::is_same_v<T, float>) {
      if (wide != nullptr) {
        *wide = std::make_unique<Sides<double>>(
            prepare<double>(program_, scales_, series_, x, variances, norms, workers_, what_.stop));
        return std::make_unique<Sides<T>>(program_, **wide);
      }
    }
    return std::make_unique<Sides<T>>(
        prepare<T>(program_, scales_, series_, x, variances, norms, workers_, what_.stop));
  }

  const Sides<T>& right_sides() const { return same_ ? *left_sides_ : *right_sides_; }
  const Inputs<T>& right_inputs() const { return same_ ? *left_inputs_ : *right_inputs_; }

  BlockPlace<T> place(std::size_t row, std::size_t column) const {
    return {left_sides_.get(), &right_sides(), row, column, same_};
  }

  /// True when the results stand where they were asked for; false when they are in the scratch of the tile.
  template <class Out>
  bool cosine_vectors(const Tile& tile, std::size_t worker, IndexRange rows, IndexRange columns,
                      const InfiniteBlock<Out>& out) {
    if constexpr (std::is_same_v<T, Out>) {
      if (!same_) {
        const IndexRange r = overlap(rows, tile.row, tile.rows);
        const IndexRange c = overlap(columns, tile.column, tile.columns);
        const std::size_t to = (r.begin - rows.begin) * out.stride + c.begin - columns.begin;
        cosines_->run(tile, {r.begin, r.end - r.begin, c.begin, c.end - c.begin}, worker,
                      {what_.nngp ? out.nngp + to : nullptr, what_.ntk ? out.ntk + to : nullptr, out.stride});
        return true;
      }
    }
    Scratch& scratch = scratch_[worker];
    cosines_->run(tile, tile, worker,
                  {what_.nngp ? scratch.nngp.data() : nullptr, what_.ntk ? scratch.ntk.data() : nullptr,
                   largest_tile().columns});
    return false;
  }

  void vectors(const Tile& tile, std::size_t worker) {
    const std::size_t d = program_.channels;
    const T* const left = left_inputs_->rows() + tile.row * d;
    const T* const right = right_inputs().rows() + tile.column * d;
    Tensor<T>& products = scratch_[worker].products;
    blas::gemm(blas::Transpose::No, blas::Transpose::Yes, tile.rows, tile.columns, d,
               T(1) / static_cast<T>(d), left, d, right, d, T(0), products.data(), kVectorTile);
    std::optional<NearlyParallel<T>> parallel;
    if constexpr (std::is_same_v<T, double>) {
      if (first_) parallel.emplace(*left_sides_, right_sides(), tile, first_->angles ? 0 : first_->weight);
    } else if (wide_) {
      parallel.emplace(*wide_->left, same_ ? *wide_->left : *wide_->right, tile, 0);
    }
    for (std::size_t row = 0; row < tile.rows; row += kVectorRows) {
      const std::size_t rows = std::min(kVectorRows, tile.rows - row);
      std::size_t columns = tile.columns;
      if (same_) columns = std::min(columns, tile.row + row + rows - tile.column);
      PairState<T>& state = propagators_[worker]->start(1, rows, columns);
      const T* const left_variance = left_sides_->variance(0, 0, tile.row + row);
      const T* const right_variance = right_sides().variance(0, 0, tile.column);
      for (std::size_t r = 0; r < rows; ++r) {
        T* const delta = state.delta() + r * state.stride();
        const T* const product = products.data() + (row + r) * kVectorTile;
        const T half = left_variance[r] / 2;
        unsigned near = 0;  // not a minimum: the loop is to be vectorized
        for (std::size_t c = 0; c < columns; ++c) {
          const T mean = half + right_variance[c] / 2;
          delta[c] = mean - product[c];
          near |= delta[c] < static_cast<T>(kNear) * mean ? 1U : 0U;
        }
        for (std::size_t c = 0; near != 0 && c < columns; ++c) {
          if (delta[c] < static_cast<T>(kNear) * (half + right_variance[c] / 2)) {
            delta[c] = static_cast<T>(half_squared_distance(left + (row + r) * d, right + c * d, d));
          }
        }
        if (parallel) parallel->mark(r, tile.row + row + r, product, delta, columns);
      }
      run_and_store({tile.row + row, rows, tile.column, columns}, tile, worker);
      for (std::size_t r = 0; parallel && r < rows; ++r) {
        if (!parallel->any(r)) continue;
        const std::size_t i = tile.row + row + r;
        const std::size_t end = same_ ? std::min(columns, i + 1 - tile.column) : columns;
        for (std::size_t c = 0; c < end; c += kApartColumns) {
          follow_apart(i, tile, c, std::min(kApartColumns, end - c), parallel->marks(r) + c, worker);
        }
      }
    }
  }

  /// Follows the marked ones of the pairs of example i with columns [column, column + columns) of the tile in
  /// f64, from angles of their own where the program allows it, and puts them into the scratch of the tile.
  void follow_apart(std::size_t i, const Tile& tile, std::size_t column, std::size_t columns,
                    const unsigned char* marks, std::size_t worker) {
    if (std::none_of(marks, marks + columns, [](unsigned char mark) { return mark != 0; })) return;
    const std::size_t d = program_.channels;
    const std::size_t first = tile.column + column;
    const T* const left = left_inputs_->rows() + i * d;
    const T* const right = right_inputs().rows() + first * d;
    const auto [left_side, right_side, propagator] = apart(worker);
    double* const delta = propagator->start(1, 1, columns).delta();
    std::fill_n(delta, propagator->state().size(), 0.0);
    double* const sines = first_ ? propagator->sine_squares(first_->step) : nullptr;
    for (std::size_t c = 0; c < columns; ++c) {
      if (marks[c] == 0) continue;
      delta[c] = half_squared_distance(left, right + c * d, d);
      if (sines == nullptr) continue;
      sines[c] = sine_square(program_, scales_, *first_, squared_sine(left, right + c * d, d), delta[c],
                             {left_side, right_side, i, first + c});
    }
    propagator->run({left_side, right_side, i, first, same_}, 0, program_.steps.size());
    const std::size_t last = program_.steps.back().out;
    const double half = *left_side->variance(last, 0, i) / 2;
    const double* const variance = right_side->variance(last, 0, first);
    const double covariance_unit = std::ldexp(1.0, scales_.variance[last]);
    const double theta_unit = std::ldexp(1.0, scales_.theta[last]);
    Scratch& scratch = scratch_[worker];
    PairState<double>& state = propagator->state();
    const std::size_t to = (i - tile.row) * kVectorTile + column;
    for (std::size_t c = 0; c < columns; ++c) {
      if (marks[c] == 0) continue;
      if (what_.nngp) {
        const double covariance = half + variance[c] / 2 - state.delta()[c];
        scratch.nngp.data()[to + c] = static_cast<T>(with_norms(covariance_unit * covariance, i, first + c));
      }
      if (what_.ntk) {
        scratch.ntk.data()[to + c] = static_cast<T>(with_norms(theta_unit * state.theta()[c], i, first + c));
      }
    }
  }

  struct Apart {
    const Sides<double>*left, *right;
    Propagator<double>* propagator;
  };
  Apart apart(std::size_t worker) const {
    if constexpr (std::is_same_v<T, double>) {
      return {left_sides_.get(), &right_sides(), propagators_[worker].get()};
    } else {
      return {wide_->left.get(), same_ ? wide_->left.get() : wide_->right.get(),
              wide_->propagators[worker].get()};
    }
  }

  /// All entries of the tile, or at least those that are wanted(i, j).
  template <class Wanted>
  void diagonals(const Tile& tile, std::size_t worker, const Wanted& wanted) {
    const std::size_t pixels = program_.pixels[0];
    const std::size_t channels = program_.channels;
    if (plan_) {
      diagonal_planes(tile, worker, wanted);
      return;
    }
    const Inputs<T>& right = right_inputs();
    PairState<T>& state = propagators_[worker]->start(pixels, tile.rows, tile.columns);
    for (std::size_t p = 0; p < pixels; ++p) {
      for (std::size_t r = 0; r < tile.rows; ++r) {
        covariance_kernels<T>().squared_differences(
            left_inputs_->rows() + ((tile.row + r) * pixels + p) * channels,
            right.columns() + p * channels * right.stride() + tile.column, right.stride(), channels,
            T(0.5) / static_cast<T>(channels), state.delta(p) + r * state.stride(), tile.columns);
      }
    }
    run_and_store(tile, tile, worker);
  }

  template <class Wanted>
  void diagonal_planes(const Tile& tile, std::size_t worker, const Wanted& wanted) {
    const PlaneImages<T>& rights = same_ ? *left_images_ : *right_images_;
    PlaneWorker<T>& planes = *scratch_[worker].planes;
    Propagator<T>& propagator = *propagators_[worker];
    PairState<T>& state = propagator.start(1, tile.rows, tile.columns);
    const Step& head = program_.steps[plan_->head];
    const double delta_shift = std::ldexp(1.0, scales_.variance[head.in] - scales_.variance[head.out]);
    const double theta_shift = std::ldexp(1.0, scales_.theta[head.in] - scales_.theta[head.out]);
    const std::size_t lanes = planes.lanes();
    const T* lefts[kDiagonalRows];
    std::size_t rows[kDiagonalRows];
    std::vector<PlaneMeans> means(tile.rows * lanes);
    std::fill_n(state.delta(), state.size(), T(0));
    for (std::size_t c = 0; c < tile.columns; c += lanes) {
      if (same_ && tile.column + c >= tile.row + tile.rows) break;
      const std::size_t here = std::min(lanes, tile.columns - c);
      std::size_t count = 0;
      for (std::size_t r = 0; r < tile.rows; ++r) {
        bool any = false;
        for (std::size_t lane = 0; lane < here; ++lane) any |= wanted(tile.row + r, tile.column + c + lane);
        if (!any) continue;
        rows[count] = r;
        lefts[count++] = left_images_->left(tile.row + r);
      }
      planes.diagonals(lefts, count, rights.group((tile.column + c) / lanes), means.data());
      for (std::size_t k = 0; k < count; ++k) {
        for (std::size_t lane = 0; lane < here; ++lane) {
          const PlaneMeans& mean = means[k * lanes + lane];
          const std::size_t at = rows[k] * state.stride() + c + lane;
          state.delta()[at] = static_cast<T>(delta_shift * mean.delta);
          if (what_.ntk) state.theta()[at] = static_cast<T>(theta_shift * mean.theta);
        }
      }
    }
    propagator.run(place(tile.row, tile.column), plan_->head + 1, program_.steps.size());
    store(propagator.state(), tile, tile, worker);
  }

  template <class Wanted>
  void pairs(const Tile& tile, std::size_t worker, const Wanted& wanted) {
    const std::size_t pixels = program_.pixels[0];
    const std::size_t channels = program_.channels;
    const Inputs<T>& right = right_inputs();
    const std::size_t row = tile.row;
    if (plan_) {
      planes(tile, worker, wanted);
      return;
    }
    for (std::size_t column = tile.column; column < tile.column + tile.columns; ++column) {
      if ((same_ && column > row) || !wanted(row, column)) continue;
      PairState<T>& state = propagators_[worker]->start(1, pixels, pixels);
      for (std::size_t p = 0; p < pixels; ++p) {
        covariance_kernels<T>().squared_differences(
            left_inputs_->rows() + (row * pixels + p) * channels,
            right.columns() + column * channels * right.stride(), right.stride(), channels,
            T(0.5) / static_cast<T>(channels), state.delta() + p * state.stride(), pixels);
      }
      run_and_store({row, 1, column, 1}, tile, worker);
    }
  }

  template <class Wanted>
  void planes(const Tile& tile, std::size_t worker, const Wanted& wanted) {
    using Image = typename PlaneWorker<T>::Image;
    const auto image = [&](const Inputs<T>& inputs, const Sides<T>& side, std::size_t i) {
      return Image{inputs.columns() + i * program_.channels * inputs.stride(), inputs.stride(), &side, i};
    };
    Image rights[kFullColumns];
    bool same[kFullColumns];
    PlaneMeans means[kFullColumns];
    std::size_t count = 0;
    for (std::size_t column = tile.column; column < tile.column + tile.columns; ++column) {
      if ((same_ && column > tile.row) || !wanted(tile.row, column)) continue;
      same[count] = same_ && column == tile.row;
      rights[count++] = image(right_inputs(), right_sides(), column);
    }
    const Inputs<T>& left = same_ ? right_inputs() : *left_inputs_;
    if (plan_->window_h > 0) {
      for (std::size_t j = 0; j < count; ++j) {
        windows(image(left, *left_sides_, tile.row), rights[j], worker);
        store(propagators_[worker]->state(), {tile.row, 1, rights[j].index, 1}, tile, worker);
      }
      return;
    }
    scratch_[worker].planes->run(image(left, *left_sides_, tile.row), rights, count, same, means);
    for (std::size_t j = 0; j < count; ++j) {
      Propagator<T>& propagator = *propagators_[worker];
      const BlockPlace<T> where = place(tile.row, rights[j].index);
      propagator.start(1, 1, 1);
      propagator.set_mean(plan_->head, where, means[j].delta, means[j].theta);
      propagator.run(where, plan_->head + 1, program_.steps.size());
      store(propagator.state(), {tile.row, 1, rights[j].index, 1}, tile, worker);
    }
  }

  void windows(const typename PlaneWorker<T>::Image& left, const typename PlaneWorker<T>::Image& right,
               std::size_t worker) {
    if constexpr (std::is_same_v<T, double>) {
      // An image with itself as its variances were found: windows of constant ones stay equal to the last
      // bit.
      if (!stages_.empty() && !(same_ && left.index == right.index)) {
        pooled_stages(left, right, worker);
        return;
      }
      if (narrow_ != nullptr && held(left.index, right.index) &&
          narrow_windows(left.index, right.index, worker)) {
        return;
      }
    }
    const ConvGeometry& g = program_.steps[plan_->head].geometry;
    PairState<T>& state = propagators_[worker]->start(1, g.out_pixels(), g.out_pixels());
    PlaneWorker<T>& planes = *scratch_[worker].planes;
    planes.run_windows(
        left, right,
        WindowMatrix<T>(*plan_, planes.fold_pitch(), state.delta(), state.theta(), state.stride()));
    finish_windows(*plan_, *propagators_[worker], place(left.index, right.index), what_.ntk);
    propagators_[worker]->run(place(left.index, right.index), plan_->head + 1, program_.steps.size());
  }

  /// The same where planes go on behind the pooling, in f64.
  void pooled_stages(const PlaneWorker<double>::Image& left, const PlaneWorker<double>::Image& right,
                     std::size_t worker) requires std::is_same_v<T, double> {
    const PlanePlan& last = stages_.back();
    const std::size_t windows = last.height / last.window_h * (last.width / last.window_w);
    const BlockPlace<double> where = place(left.index, right.index);
    PlaneStages& stages = *scratch_[worker].stages;
    Propagator<double>& propagator = *propagators_[worker];
    const auto run = [&](double versine, const auto& planes) {
      stages.start(where, propagator.start(1, windows, windows));
      return planes([&](std::size_t down, const double* sums) { return stages.add(down, sums, versine); });
    };
    const bool narrow = narrow_ != nullptr && held(left.index, right.index) &&
                        run(kNearlyParallel, [&](const PlaneWorker<double>::Fold& fold) {
                          return narrow_->workers[worker]->run_windows(narrow_image(left.index, false),
                                                                       narrow_image(right.index, true), fold);
                        });
    if (!narrow) {
      run(0, [&](const PlaneWorker<double>::Fold& fold) {
        return scratch_[worker].planes->run_windows(left, right, fold);
      });
    }
    if (last.window_h * last.window_w > 1) {
      finish_windows(last, propagator, where, what_.ntk);
      propagator.run(where, last.head + 1, program_.steps.size());
      return;
    }
    PairState<double>& state = propagator.state();
    for (std::size_t i = 0; i < state.size(); ++i) {
      state.delta()[i] *= last.delta_out;
      if (what_.ntk) state.theta()[i] *= last.theta_out;
    }
    propagator.run(where, last.head, program_.steps.size());
  }

  /// Whether planes in f32 hold the angles before the pooling.
  bool held(std::size_t row, std::size_t column) const {
    return parallel_ == nullptr || !parallel_->lost(row, column);
  }

  PlaneWorker<float>::Image narrow_image(std::size_t example, bool is_right) const {
    const bool left = same_ || !is_right;
    const std::size_t stride = right_inputs().stride();
    const Tensor<float>& channels = left ? narrow_->left_channels : narrow_->right_channels;
    return {channels.data() + example * program_.channels * stride, stride,
            left ? narrow_->left.get() : narrow_->right.get(), example};
  }

  /// The same with planes in f32. False where two windows' pre-activations are nearly parallel: pooling has
  /// then left little of the digits of the angle.
  bool narrow_windows(std::size_t row, std::size_t column, std::size_t worker) {
    if (same_ && row == column) return false;
    const Step& head = program_.steps[plan_->head];
    const std::size_t windows = head.geometry.out_pixels();
    PairState<T>& state = propagators_[worker]->start(1, windows, windows);
    PlaneWorker<float>& narrow = *narrow_->workers[worker];
    narrow.run_windows(
        narrow_image(row, false), narrow_image(column, true),
        WindowMatrix<T>(*plan_, narrow.fold_pitch(), state.delta(), state.theta(), state.stride()));
    finish_windows(*plan_, *propagators_[worker], place(row, column), what_.ntk);
    const auto roots = [&](const Sides<T>& side, std::size_t example) {
      std::vector<T> result(side.variance(head.out, 0, example),
                            side.variance(head.out, 0, example) + windows);
      for (T& value : result) value = std::sqrt(value);
      return result;
    };
    const std::vector<T> left = roots(*left_sides_, row);
    const std::vector<T> right = roots(right_sides(), column);
    unsigned near = 0;
    for (std::size_t p = 0; p < windows; ++p) {
      const T* const delta = state.delta() + p * state.stride();
      for (std::size_t q = 0; q < windows; ++q) {
        const T gap = left[p] - right[q];
        near |= delta[q] - gap * gap / 2 < static_cast<T>(kNearlyParallel) * left[p] * right[q] ? 1U : 0U;
      }
    }
    if (near != 0) return false;
    propagators_[worker]->run(place(row, column), plan_->head + 1, program_.steps.size());
    return true;
  }

  /// Follows the pairs of `part` to the end and keeps their kernels in the scratch of the tile.
  void run_and_store(const Tile& part, const Tile& tile, std::size_t worker) {
    Propagator<T>& propagator = *propagators_[worker];
    propagator.run(place(part.row, part.column), 0, program_.steps.size());
    store(propagator.state(), part, tile, worker);
  }

  void store(PairState<T>& state, const Tile& part, const Tile& tile, std::size_t worker) {
    const std::size_t last = program_.steps.empty() ? 0 : program_.steps.back().out;
    const T* const left = left_sides_->variance(last, 0, part.row);
    const T* const right = right_sides().variance(last, 0, part.column);
    const double covariance_unit = std::ldexp(1.0, scales_.variance[last]);
    const double theta_unit = std::ldexp(1.0, scales_.theta[last]);
    Scratch& scratch = scratch_[worker];
    for (std::size_t r = 0; r < part.rows; ++r) {
      const std::size_t i = part.row + r;
      const std::size_t to = (i - tile.row) * largest_tile().columns + part.column - tile.column;
      const std::size_t count =
          same_ ? std::min(part.columns, i + 1 - std::min(part.column, i + 1)) : part.columns;
      const T* const delta = state.delta() + r * state.stride();
      if (what_.nngp) {
        T* const out = scratch.nngp.data() + to;
        const double half = static_cast<double>(left[r]) / 2;
        for (std::size_t c = 0; c < count; ++c) {
          const double mean = half + static_cast<double>(right[c]) / 2;
          out[c] = static_cast<T>(covariance_unit * (mean - static_cast<double>(delta[c])));
        }
        put_back_norms(out, i, part.column, count);
        clear_nulls(out, i, part.column, count);
      }
      if (what_.ntk) {
        T* const out = scratch.ntk.data() + to;
        const T* const theta = state.theta() + r * state.stride();
        const T narrow_unit = static_cast<T>(theta_unit);
        if (std::isnormal(narrow_unit)) {  // a power of two: as exact as in f64
          for (std::size_t c = 0; c < count; ++c) out[c] = narrow_unit * theta[c];
        } else {
          for (std::size_t c = 0; c < count; ++c) {
            out[c] = static_cast<T>(theta_unit * static_cast<double>(theta[c]));
          }
        }
        put_back_norms(out, i, part.column, count);
        clear_nulls(out, i, part.column, count);
      }
    }
  }

  /// An entry times the powers of two that were taken out of its examples.
  template <class Value>
  Value with_norms(Value value, std::size_t i, std::size_t j) const {
    if (left_norms_.empty()) return value;
    return std::ldexp(value, left_norms_[i] + right_norms_[j]);
  }
  void put_back_norms(T* row, std::size_t i, std::size_t column, std::size_t count) const {
    for (std::size_t c = 0; !left_norms_.empty() && c < count; ++c) {
      row[c] = with_norms(row[c], i, column + c);
    }
  }

  /// Zero examples give zeros, whatever rounding says.
  void clear_nulls(T* row, std::size_t i, std::size_t column, std::size_t count) const {
    if (left_sides_->null(i)) std::fill_n(row, count, T(0));
    if (count == 0 || !right_sides().any_null(column, count)) return;
    for (std::size_t c = 0; c < count; ++c) {
      if (right_sides().null(column + c)) row[c] = T(0);
    }
  }

  Program program_;
  std::size_t rows_ = 0, columns_ = 0;
  bool same_;
  const InfiniteOptions what_;
  const Workers& workers_;
  double promised_;
  VarianceRange range_;
  std::vector<int> left_norms_, right_norms_;  ///< see Norms::take_out
  Scales scales_;
  SeriesList series_;
  std::unique_ptr<CosineVectors<T>> cosines_;  ///< instead of all that follows, where it serves
  std::optional<PlanePlan> plan_;              ///< for models that planes can follow
  std::vector<PlanePlan> stages_;              ///< behind its pooling
  std::optional<FirstNonlinearity> first_;     ///< of vectors
  std::unique_ptr<Sides<T>> left_sides_, right_sides_;
  std::unique_ptr<Inputs<T>> left_inputs_, right_inputs_;
  std::unique_ptr<PlaneImages<T>> left_images_, right_images_;  ///< for diagonal plans
  std::vector<std::unique_ptr<Propagator<T>>> propagators_;     ///< per worker
  std::vector<Scratch> scratch_;                                ///< per worker
  std::unique_ptr<WideVectors> wide_;                           ///< see widens_vectors
  std::unique_ptr<NarrowPlanes> narrow_;                        ///< see narrow_planes
  std::unique_ptr<ParallelImages> parallel_;  ///< where there is f32 whose entries it can tell
};

}  // namespace gradgram::ntk::infinite
