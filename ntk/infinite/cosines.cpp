#include "ntk/infinite/cosines.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "engine/blas.hpp"
#include "ntk/infinite/sides.hpp"

namespace gradgram::ntk::infinite {
namespace {

/// Pairs whose cosine is that near to 1 or -1 are followed in f64, from the differences of their components
/// (or sums): a product rounds their angle to more than a few units.
constexpr double kNear = 1.0 / 64;
/// Right vectors whose differences from a few left ones are taken one after the other stay in the first-level
/// cache, with room for a left one.
constexpr std::size_t kNearBytes = 32 * 1024;

struct Plan {
  std::vector<simd::CosineLayer<double>> layers;
  std::size_t affines = 0;        ///< all
  std::size_t affines_after = 0;  ///< the last rectifier
  double growth = 1;              ///< of the variance
};

Plan plan_of(const Program& program) {
  Plan plan;
  bool obtuse = true;
  for (const Step& step : program.steps) {
    if (step.kind == StepKind::Affine) {
      ++plan.affines;
      ++plan.affines_after;
      plan.growth *= step.weight_variance;
      continue;
    }
    simd::CosineLayer<double> layer;
    layer.affines = static_cast<double>(plan.affines_after);
    layer.ratio = step.phi.turn() / step.phi.scale();
    layer.obtuse = obtuse;
    const double slope = step.phi.slope;
    const double both = 1 + slope * slope;
    layer.mirror = 2 * slope / both;
    layer.one_less = (1 - slope) * (1 - slope) / both;
    layer.one_more = (1 + slope) * (1 + slope) / both;
    plan.layers.push_back(layer);
    plan.affines_after = 0;
    plan.growth *= step.phi.scale();
    // Rectified values are not negative, unless the part below zero keeps its sign.
    obtuse = step.phi.slope > 0;
  }
  return plan;
}

}  // namespace

bool follows_cosines(const Program& program) {
  if (program.reach != Reach::Vector) return false;
  return std::ranges::all_of(program.steps, [](const Step& step) {
    if (step.kind == StepKind::Affine) return step.bias_variance == 0;
    return step.is_rectifier();
  });
}

template <class T>
std::unique_ptr<CosineVectors<T>> CosineVectors<T>::make(const Program& program, TensorView<const T> left,
                                                         const std::vector<double>& left_variances,
                                                         const TensorView<const T>* right,
                                                         const std::vector<double>& right_variances,
                                                         std::size_t side, std::size_t workers) {
  if (!follows_cosines(program)) return nullptr;
  const Plan plan = plan_of(program);
  // |entry| <= affines sqrt(variance variance'): the tangent kernel is positive semidefinite and that on the
  // diagonal. Variances must be normal numbers, or their digits would be lost.
  double least = std::numeric_limits<double>::infinity();
  double most = 0;
  for (const std::vector<double>* variances : {&left_variances, &right_variances}) {
    for (const double variance : *variances) {
      if (variance == 0) continue;
      least = std::min(least, variance);
      most = std::max(most, variance);
    }
  }
  const auto largest = static_cast<double>(std::numeric_limits<T>::max());
  const auto smallest = static_cast<double>(std::numeric_limits<T>::min());
  const double bound = static_cast<double>(std::max<std::size_t>(1, plan.affines)) * plan.growth * most;
  if (most > 0 && !(std::isnormal(plan.growth) && bound < largest / 4 && plan.growth * least > 4 * smallest &&
                    least > 4 * smallest)) {
    return nullptr;
  }

  std::unique_ptr<CosineVectors> result(new CosineVectors);
  result->channels_ = program.channels;
  result->same_ = right == nullptr;
  result->side_ = side;
  result->affines_after_ = plan.affines_after;
  for (const simd::CosineLayer<double>& wide : plan.layers) {
    simd::CosineLayer<T> layer;
    layer.affines = static_cast<T>(wide.affines);
    layer.ratio = static_cast<T>(wide.ratio);
    layer.obtuse = wide.obtuse;
    covariance_kernels<T>().cosine_layer(layer);
    result->layers_.push_back(layer);
  }
  result->wide_layers_ = plan.layers;
  for (simd::CosineLayer<double>& layer : result->wide_layers_) {
    covariance_kernels<double>().cosine_layer(layer);
  }
  const auto fill = [&](Side& to, TensorView<const T> x, const std::vector<double>& variances) {
    const std::size_t n = variances.size();
    to.rows = Tensor<T>(x.shape());
    to.roots = Tensor<T>(Shape{n + simd::kColumnPadding<T>});
    to.wide_roots.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
      const double inverse = variances[i] == 0 ? 0 : 1 / std::sqrt(variances[i]);
      for (std::size_t c = 0; c < program.channels; ++c) {
        const std::size_t at = i * program.channels + c;
        to.rows.data()[at] = static_cast<T>(inverse * static_cast<double>(x.data()[at]));
      }
      to.wide_roots[i] = std::sqrt(plan.growth) * std::sqrt(variances[i]);
      to.roots.data()[i] = static_cast<T>(to.wide_roots[i]);
    }
  };
  fill(result->left_, left, left_variances);
  if (right != nullptr) fill(result->right_, *right, right_variances);
  result->scratch_.resize(workers);
  for (Scratch& scratch : result->scratch_) {
    scratch.products = Tensor<T>(Shape{side * side + simd::kColumnPadding<T>});
    scratch.columns.resize(kRows * side);
    scratch.signs.resize(kRows * side + simd::kColumnPadding<double>);
    scratch.versines.resize(kRows * side + simd::kColumnPadding<double>);
    for (std::vector<double>* list : {&scratch.roots, &scratch.nngp, &scratch.ntk}) {
      list->resize(padded<double>(side));
    }
  }
  return result;
}

template <class T>
std::size_t CosineVectors<T>::bytes_per_example(const Program& program) {
  return (program.channels + 1) * sizeof(T) + sizeof(double);
}

template <class T>
std::size_t CosineVectors<T>::bytes_per_worker(std::size_t side) {
  return (side * side + simd::kColumnPadding<T>)*sizeof(T) +
         side * (kRows * (sizeof(std::size_t) + 2 * sizeof(double)) + 3 * sizeof(double));
}

template <class T>
void CosineVectors<T>::multiply(const Tile& tile, Scratch& scratch) const {
  blas::gemm(blas::Transpose::No, blas::Transpose::Yes, tile.rows, tile.columns, channels_,
             T(1) / static_cast<T>(channels_), left_.rows.data() + tile.row * channels_, channels_,
             right().rows.data() + tile.column * channels_, channels_, T(0), scratch.products.data(), side_);
}

template <class T>
void CosineVectors<T>::run(const Tile& tile, const Tile& part, std::size_t worker, const Output& out) {
  Scratch& scratch = scratch_[worker];
  multiply(tile, scratch);
  simd::CosineRun<T> run;
  run.stride = side_;
  run.layers = layers_.data();
  run.layer_count = layers_.size();
  run.affines_after = static_cast<T>(affines_after_);
  run.right_root = right().roots.data() + part.column;
  run.out_stride = out.stride;
  for (std::size_t row = 0; row < part.rows; row += kRows) {
    run.rows = std::min(kRows, part.rows - row);
    const std::size_t i = part.row + row;
    run.columns = part.columns;
    // What is above the diagonal is not needed.
    if (same_) run.columns = std::min(run.columns, i + run.rows - std::min(part.column, i + run.rows));
    const std::size_t from = (i - tile.row) * side_ + part.column - tile.column;
    run.entries = scratch.products.data() + from;
    run.left_root = left_.roots.data() + i;
    run.covariance = out.nngp == nullptr ? nullptr : out.nngp + row * out.stride;
    run.tangent = out.ntk == nullptr ? nullptr : out.ntk + row * out.stride;
    T outermost[kRows] = {};
    covariance_kernels<T>().cosine_run(run, outermost);
    bool near[kRows] = {};
    for (std::size_t r = 0; r < run.rows; ++r) near[r] = outermost[r] > static_cast<T>(1 - kNear);
    if (std::ranges::none_of(near, std::identity{})) continue;
    follow_near(tile, {i, run.rows, part.column, run.columns}, near, scratch,
                {run.covariance, run.tangent, out.stride});
  }
}

/// The nearly parallel and nearly opposite pairs of those of the rows that have some.
template <class T>
void CosineVectors<T>::follow_near(const Tile& tile, const Tile& rows, const bool* near, Scratch& scratch,
                                   const Output& out) const {
  std::size_t counts[kRows] = {};
  for (std::size_t r = 0; r < rows.rows; ++r) {
    if (!near[r]) continue;
    const T* const products =
        scratch.products.data() + (rows.row + r - tile.row) * side_ + rows.column - tile.column;
    std::size_t count = 0;
    for (std::size_t c = 0; c < rows.columns; ++c) {
      // Without a branch: where there are many, there is no pattern.
      scratch.columns[r * side_ + count] = c;
      scratch.signs[r * side_ + count] = products[c] < 0 ? -1 : 1;
      count += std::abs(products[c]) > static_cast<T>(1 - kNear) ? 1 : 0;
    }
    counts[r] = count;
  }
  const simd::CovarianceTable<T>& kernels = covariance_kernels<T>();
  const std::size_t step = std::max<std::size_t>(4, kNearBytes / (channels_ * sizeof(T)));
  std::size_t done[kRows] = {};
  for (std::size_t begin = 0; begin < rows.columns; begin += step) {
    for (std::size_t r = 0; r < rows.rows; ++r) {
      const std::size_t* const columns = scratch.columns.data() + r * side_;
      const std::size_t* const end = std::lower_bound(columns + done[r], columns + counts[r], begin + step);
      simd::NearRows<T> run;
      run.left = left_.rows.data() + (rows.row + r) * channels_;
      run.rights = right().rows.data() + rows.column * channels_;
      run.channels = channels_;
      run.columns = columns + done[r];
      run.count = static_cast<std::size_t>(end - run.columns);
      run.signs = scratch.signs.data() + r * side_ + done[r];
      run.versines = scratch.versines.data() + r * side_ + done[r];
      kernels.near_versines(run);
      done[r] += run.count;
    }
  }
  for (std::size_t r = 0; r < rows.rows; ++r) {
    if (counts[r] == 0) continue;
    const std::size_t* const columns = scratch.columns.data() + r * side_;
    for (std::size_t k = 0; k < counts[r]; ++k) {
      scratch.roots[k] = right().wide_roots[rows.column + columns[k]];
    }
    simd::NearCosines run;
    run.count = counts[r];
    run.versines = scratch.versines.data() + r * side_;
    run.signs = scratch.signs.data() + r * side_;
    run.layers = wide_layers_.data();
    run.layer_count = wide_layers_.size();
    run.affines_after = static_cast<double>(affines_after_);
    run.left_root = left_.wide_roots[rows.row + r];
    run.right_root = scratch.roots.data();
    run.covariance = out.nngp == nullptr ? nullptr : scratch.nngp.data();
    run.tangent = out.ntk == nullptr ? nullptr : scratch.ntk.data();
    kernels.near_cosines(run);
    for (std::size_t k = 0; k < counts[r]; ++k) {
      const std::size_t to = r * out.stride + columns[k];
      if (out.nngp != nullptr) out.nngp[to] = static_cast<T>(scratch.nngp[k]);
      if (out.ntk != nullptr) out.ntk[to] = static_cast<T>(scratch.ntk[k]);
    }
  }
}

template class CosineVectors<float>;
template class CosineVectors<double>;

}  // namespace gradgram::ntk::infinite
