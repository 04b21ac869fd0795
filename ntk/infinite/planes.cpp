#include "ntk/infinite/planes.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/error.hpp"

namespace gradgram::ntk::infinite {
namespace {

/// Cells before and after every list of cells that kernels may touch.
template <class T>
constexpr std::size_t kMargin = 4 * simd::kColumnPadding<T>;

bool keeps_resolution(const ConvGeometry& g) {
  return g.stride_h == 1 && g.stride_w == 1 && g.kernel_h % 2 == 1 && g.kernel_w % 2 == 1 &&
         g.in_h == g.out_h && g.in_w == g.out_w && g.pad_top == g.kernel_h / 2 &&
         g.pad_left == g.kernel_w / 2;
}

}  // namespace

bool has_planes(const Program& program) {
  if (program.reach != Reach::Full) return false;
  const auto is = [&](std::size_t s, StepKind kind) {
    return s < program.steps.size() && program.steps[s].kind == kind;
  };
  std::size_t s = 0;
  while (is(s, StepKind::Affine) && is(s + 1, StepKind::Nonlinear)) {
    const Step& affine = program.steps[s];
    // Windows as wide as the image would need frames wider than it.
    if (!affine.convolution || !keeps_resolution(affine.geometry) ||
        affine.geometry.kernel_h > 2 * affine.geometry.in_h - 1 ||
        affine.geometry.kernel_w > 2 * affine.geometry.in_w - 1 || affine.geometry.kernel_w > 31) {
      return false;
    }
    if (program.steps[s + 1].phi.kind != Nonlinearity::Kind::ArcCosine) return false;
    s += 2;
  }
  if (s == 0 || !is(s, StepKind::AveragePool)) return false;
  const ConvGeometry& g = program.steps[s].geometry;
  return g.out_pixels() == 1 && g.kernel_h == g.in_h && g.kernel_w == g.in_w;
}

PlanePlan plan_planes(const Program& program, const Scales& scales) {
  PlanePlan plan;
  const ConvGeometry& first = program.steps[0].geometry;
  plan.height = first.in_h;
  plan.width = first.in_w;
  plan.channels = program.channels;
  bool obtuse = true;
  // Sums over windows, and phi's scale, are left out of the planes and gather in their unit.
  double carried = 0;
  int exponent_before = 0;
  for (std::size_t s = 0; program.steps[s].kind == StepKind::Affine; s += 2) {
    const Step& affine = program.steps[s];
    const Nonlinearity& phi = program.steps[s + 1].phi;
    const ConvGeometry& g = affine.geometry;
    const auto taps = static_cast<double>(g.kernel_h * g.kernel_w);
    PlaneLayer layer;
    layer.affine = s;
    layer.nonlinear = s + 1;
    layer.radius_h = g.kernel_h / 2;
    layer.radius_w = g.kernel_w / 2;
    layer.ratio = phi.turn() / phi.scale();
    layer.obtuse = obtuse;
    const int exponent = scales.variance[affine.out];
    if (s == 0) {
      // The unit of the first layer is one.
      const double weight =
          affine.weight_variance * std::ldexp(1.0, scales.variance[affine.in] - scales.variance[affine.out]);
      plan.input_scale = std::sqrt(weight / (2 * static_cast<double>(program.channels) * taps));
    } else {
      layer.unit = std::ldexp(carried * taps / affine.weight_variance, exponent - exponent_before);
      if (layer.unit > 0x1p40 || layer.unit < 0x1p-40) {
        layer.factor = std::ldexp(1.0, -2 * (std::ilogb(layer.unit) / 2));
        layer.unit *= layer.factor;
      }
    }
    carried = layer.unit / phi.scale();
    exponent_before = exponent;
    // Rectified values are not negative, unless the part below zero keeps its sign.
    if (!(phi.slope > 0)) obtuse = false;
    if (phi.slope > 0) obtuse = true;
    plan.radius_h = std::max(plan.radius_h, layer.radius_h);
    plan.radius_w = std::max(plan.radius_w, layer.radius_w);
    plan.layers.push_back(layer);
    plan.pool = s + 2;
  }
  const std::size_t slot = program.steps[plan.pool].in;
  plan.delta_out = std::ldexp(1 / carried, exponent_before - scales.variance[slot]);
  plan.theta_out = std::ldexp(1 / carried, exponent_before - scales.theta[slot]);
  return plan;
}

template <class T>
std::size_t PlaneWorker<T>::bytes(const PlanePlan& plan) {
  const std::size_t single = plan.cells() + 2 * kMargin<T>;
  const std::size_t arrays = plan.layers.size() * 6 + plan.channels * 3 + 5;
  return arrays * single * sizeof(T);
}

template <class T>
PlaneWorker<T>::PlaneWorker(const PlanePlan& plan)
    : plan_(plan),
      kernels_(covariance_kernels<T>()),
      single_(plan.cells() + kMargin<T>),
      double_(2 * plan.cells() + kMargin<T>),
      left_(Shape{plan.layers.size(), 2, single_}),
      right_(Shape{plan.layers.size(), 2, double_}),
      left_input_(Shape{plan.channels, single_}),
      right_input_(Shape{plan.channels, double_}),
      live_(Shape{single_}),
      line_(Shape{4 * plan.stride() + kMargin<T>}),
      delta_(Shape{single_ + kMargin<T>}),
      theta_(Shape{single_ + kMargin<T>}),
      delta_sums_(Shape{single_ + kMargin<T>}),
      theta_sums_(Shape{single_ + kMargin<T>}) {}

/// Brings the arrays of an image into the order of the planes with horizontal offset dx.
template <class T>
void PlaneWorker<T>::lay_out(const Image& image, bool right, std::size_t dx) {
  const auto offset = static_cast<std::ptrdiff_t>(dx);
  const auto width = static_cast<std::ptrdiff_t>(plan_.width);
  const auto radius = static_cast<std::ptrdiff_t>(plan_.radius_w);
  simd::PlaneLayout layout;
  layout.height = plan_.height;
  layout.width = plan_.width;
  layout.first = right ? offset - radius : -radius;
  layout.second = right ? -radius : width - offset - radius;
  layout.first_columns = plan_.width - dx + 2 * plan_.radius_w;
  layout.second_columns = dx + 2 * plan_.radius_w;
  const auto place = [&](const T* from, double scale, T* to) {
    kernels_.plane_layout(from, static_cast<T>(scale), layout, line_.data(), to);
    // Rows of the right image begin anywhere and go around.
    if (right) std::memcpy(to + plan_.cells(), to, plan_.cells() * sizeof(T));
  };
  for (std::size_t c = 0; c < plan_.channels; ++c) {
    place(image.channels + c * image.stride, plan_.input_scale,
          right ? right_input_.data() + c * double_ : left_input_.data() + c * single_);
  }
  for (std::size_t l = 0; l < plan_.layers.size(); ++l) {
    const PlaneLayer& layer = plan_.layers[l];
    const double scale = std::sqrt(layer.unit / 2) * (right ? 2 : 1);
    place(image.side->factor(layer.nonlinear, 0, image.index), scale, right ? right_root(l) : left_root(l));
    place(image.side->inverse(layer.nonlinear, 0, image.index), 1 / scale,
          right ? right_inverse(l) : left_inverse(l));
  }
}

template <class T>
void PlaneWorker<T>::lay_out_live(std::size_t dx) {
  T* const live = live_.data();
  const std::size_t stride = plan_.stride();
  const std::size_t radius = plan_.radius_w;
  std::fill_n(live, plan_.cells(), T(0));
  for (std::size_t y = 0; y < plan_.height; ++y) {
    T* const row = live + y * stride;
    std::fill_n(row + radius, plan_.width - dx, T(1));
    std::fill_n(row + plan_.width - dx + 3 * radius, dx, T(1));
  }
}

/// Sums of one row of cells with those above and below, of which some lie outside of one image. [begin, end)
/// are the rows of which both lie inside, for this run of rows.
template <class T>
void PlaneWorker<T>::add_edge_row(const PlaneLayer& layer, std::size_t index, std::size_t dy, std::size_t y,
                                  std::size_t begin, std::size_t end) {
  const std::size_t stride = plan_.stride();
  const T* const delta = delta_.data() + kMargin<T>;
  const T* const theta = theta_.data() + kMargin<T>;
  const auto radius = static_cast<std::ptrdiff_t>(layer.radius_h);
  const auto height = static_cast<std::ptrdiff_t>(plan_.height);
  // Row y of the left image meets row y + shift of the right one.
  const std::ptrdiff_t shift =
      begin == 0 ? static_cast<std::ptrdiff_t>(dy) : static_cast<std::ptrdiff_t>(dy) - height;
  rows_.clear();
  theta_rows_.clear();
  squares_.clear();
  std::size_t left_squares = 0;
  for (const bool left : {true, false}) {
    for (std::ptrdiff_t k = -radius; k <= radius; ++k) {
      const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(y) + k;
      const bool inside = row >= static_cast<std::ptrdiff_t>(begin) && row < static_cast<std::ptrdiff_t>(end);
      if (inside) {
        if (!left) continue;
        const std::size_t at = static_cast<std::size_t>(row) * stride;
        rows_.push_back(delta + at);
        theta_rows_.push_back(theta + at);
        continue;
      }
      const std::ptrdiff_t own = left ? row : row + shift;
      if (own < 0 || own >= height) continue;
      const std::size_t at = static_cast<std::size_t>(own) * stride;
      if (index > 0) {
        squares_.push_back((left ? left_root(index - 1) : right_root(index - 1)) + at);
      } else {
        for (std::size_t c = 0; c < plan_.channels; ++c) {
          squares_.push_back((left ? left_input_.data() + c * single_ : right_input_.data() + c * double_) +
                             at);
        }
      }
    }
    if (left) left_squares = squares_.size();
  }
  simd::PlaneRows<T> sums;
  sums.rows = rows_.data();
  sums.count = rows_.size();
  sums.squares = squares_.data();
  // The roots of right images are doubled, their channels are not.
  sums.left_squares = index == 0 ? squares_.size() : left_squares;
  sums.right_squares = index == 0 ? 0 : squares_.size() - left_squares;
  sums.factor = static_cast<T>(layer.factor);
  sums.out = delta_sums_.data() + kMargin<T> + y * stride;
  sums.cells = stride;
  kernels_.plane_rows(sums);
  if (index == 0) return;
  sums.rows = theta_rows_.data();
  sums.left_squares = sums.right_squares = 0;
  sums.out = theta_sums_.data() + kMargin<T> + y * stride;
  kernels_.plane_rows(sums);
}

template <class T>
void PlaneWorker<T>::add_rows(const PlaneLayer& layer, std::size_t index, std::size_t dy) {
  const std::size_t stride = plan_.stride();
  const std::size_t radius = layer.radius_h;
  // Rows for which the right image has not gone around, and those for which it has.
  const std::size_t bounds[3] = {0, plan_.height - dy, plan_.height};
  for (std::size_t run = 0; run < 2; ++run) {
    const std::size_t begin = bounds[run];
    const std::size_t end = bounds[run + 1];
    if (begin == end) continue;
    // What a sum writes beyond its cells is written again by the rows after it.
    const std::size_t inner = std::min(end, begin + radius);
    const std::size_t inner_end = std::max(inner, end < radius ? 0 : end - radius);
    for (std::size_t y = begin; y < inner; ++y) add_edge_row(layer, index, dy, y, begin, end);
    if (inner < inner_end) {
      for (const bool theta : {false, true}) {
        if (theta && index == 0) break;
        const T* const from = (theta ? theta_ : delta_).data() + kMargin<T>;
        rows_.clear();
        for (std::size_t k = 0; k <= 2 * radius; ++k) rows_.push_back(from + (inner + k - radius) * stride);
        simd::PlaneRows<T> sums;
        sums.rows = rows_.data();
        sums.count = rows_.size();
        sums.factor = static_cast<T>(layer.factor);
        sums.out = (theta ? theta_sums_ : delta_sums_).data() + kMargin<T> + inner * stride;
        sums.cells = (inner_end - inner) * stride;
        kernels_.plane_rows(sums);
      }
    }
    for (std::size_t y = inner_end; y < end; ++y) add_edge_row(layer, index, dy, y, begin, end);
  }
}

template <class T>
void PlaneWorker<T>::plane(std::size_t dy, double* sums) {
  const std::size_t cells = plan_.cells();
  const std::size_t around = dy * plan_.stride();
  kernels_.plane_input(left_input_.data(), single_, right_input_.data() + around, double_, plan_.channels,
                       delta_.data() + kMargin<T>, cells);
  for (std::size_t l = 0; l < plan_.layers.size(); ++l) {
    const PlaneLayer& layer = plan_.layers[l];
    add_rows(layer, l, dy);
    simd::PlaneStep<T> step;
    step.cells = cells;
    step.radius = layer.radius_w;
    step.delta = delta_sums_.data() + kMargin<T>;
    step.theta = l == 0 ? nullptr : theta_sums_.data() + kMargin<T>;
    step.left_root = left_root(l);
    step.left_inverse = left_inverse(l);
    step.right_root = right_root(l) + around;
    step.right_inverse = right_inverse(l) + around;
    step.live = live_.data();
    step.ratio = static_cast<T>(layer.ratio);
    step.obtuse = layer.obtuse;
    step.out_delta = delta_.data() + kMargin<T>;
    step.out_theta = theta_.data() + kMargin<T>;
    step.sums = l + 1 == plan_.layers.size() ? sums : nullptr;
    kernels_.plane_step(step);
  }
}

template <class T>
void PlaneWorker<T>::run(const Image& left, const Image* rights, std::size_t count, const bool* same,
                         PlaneMeans* means) {
  const FlushDenormals flush;
  const std::size_t height = plan_.height;
  const std::size_t width = plan_.width;
  std::fill_n(means, count, PlaneMeans{});
  for (std::size_t dx = 0; dx < width; ++dx) {
    const std::size_t mirrored_dx = (width - dx) % width;
    const bool needed = std::any_of(same, same + count, [](bool s) { return !s; }) || dx <= mirrored_dx;
    if (!needed) break;
    lay_out(left, false, dx);
    lay_out_live(dx);
    for (std::size_t j = 0; j < count; ++j) {
      if (same[j] && dx > mirrored_dx) continue;
      lay_out(rights[j], true, dx);
      for (std::size_t dy = 0; dy < height; ++dy) {
        // Of an image with itself, the plane of an offset is that of the opposite offset, transposed.
        const std::size_t mirrored_dy = (height - dy) % height;
        const bool pair_of_planes = dx != mirrored_dx || dy != mirrored_dy;
        if (same[j] && dx == mirrored_dx && dy > mirrored_dy) continue;
        double sums[2] = {};
        plane(dy, sums);
        const double weight = same[j] && pair_of_planes ? 2 : 1;
        means[j].delta += weight * sums[0];
        means[j].theta += weight * sums[1];
      }
    }
  }
  const auto pixels = static_cast<double>(width * height);
  for (std::size_t j = 0; j < count; ++j) {
    means[j].delta *= plan_.delta_out / (pixels * pixels);
    means[j].theta *= plan_.theta_out / (pixels * pixels);
  }
}

template class PlaneWorker<float>;
template class PlaneWorker<double>;

}  // namespace gradgram::ntk::infinite
