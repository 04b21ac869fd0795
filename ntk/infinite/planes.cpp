#include "ntk/infinite/planes.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine/error.hpp"

namespace gradgram::ntk::infinite {
namespace {

bool keeps_resolution(const ConvGeometry& g) {
  return g.stride_h == 1 && g.stride_w == 1 && g.kernel_h % 2 == 1 && g.kernel_w % 2 == 1 &&
         g.in_h == g.out_h && g.in_w == g.out_w && g.pad_top == g.kernel_h / 2 &&
         g.pad_left == g.kernel_w / 2;
}

}  // namespace

bool has_planes(const Program& program) {
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
  if (s == 0) return false;
  if (program.reach == Reach::Diagonal) return is(s, StepKind::Flatten);
  if (!is(s, StepKind::AveragePool)) return false;
  const ConvGeometry& g = program.steps[s].geometry;
  if (g.out_pixels() == 1 && g.kernel_h == g.in_h && g.kernel_w == g.in_w) return true;
  if (g.kernel_h * g.kernel_w == 1) return false;  // averages nothing
  return g.pad_top == 0 && g.pad_left == 0 && g.stride_h == g.kernel_h && g.stride_w == g.kernel_w &&
         g.out_h * g.kernel_h == g.in_h && g.out_w * g.kernel_w == g.in_w;
}

PlanePlan plan_planes(const Program& program, const Scales& scales) {
  PlanePlan plan;
  const ConvGeometry& first = program.steps[0].geometry;
  plan.height = first.in_h;
  plan.width = first.in_w;
  plan.channels = program.channels;
  plan.diagonal = program.reach == Reach::Diagonal;
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
      plan.bias = std::ldexp(affine.bias_variance, -exponent);
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
    plan.head = s + 2;
  }
  const Step& head = program.steps[plan.head];
  if (!plan.diagonal && head.geometry.out_pixels() > 1) {
    plan.window_h = head.geometry.kernel_h;
    plan.window_w = head.geometry.kernel_w;
  }
  const std::size_t slot = head.in;
  plan.delta_out = std::ldexp(1 / carried, exponent_before - scales.variance[slot]);
  plan.theta_out = std::ldexp(1 / carried, exponent_before - scales.theta[slot]);
  return plan;
}

template <class T>
PlaneArrays<T>::PlaneArrays(const PlanePlan& plan)
    // Frame rows, in whole registers, with room for what kernels touch.
    : frame(padded<T>(2 * plan.radius_h * plan.stride() + plan.radius_w) + 6 * simd::kColumnPadding<T>),
      stride(padded<T>(plan.cells()) + 2 * frame),
      count(plan.channels + 2 * plan.layers.size()) {}

template <class T>
std::size_t PlaneImages<T>::bytes(const PlanePlan& plan, std::size_t examples) {
  return checked_multiply(examples, PlaneArrays<T>(plan).size() * sizeof(T),
                          "infinite_kernel: bytes of planes");
}

template <class T>
PlaneImages<T>::PlaneImages(const PlanePlan& plan, const Sides<T>& side, const T* rows,
                            const Workers& workers)
    : arrays_(plan), data_(Shape{side.examples(), arrays_.count, arrays_.stride}) {
  const std::size_t pixels = plan.height * plan.width;
  workers.run(side.examples(), [&](std::size_t example, std::size_t) {
    T* to = data_.data() + example * arrays_.size() + arrays_.frame;
    const auto place = [&](double scale, const auto& at) {
      for (std::size_t p = 0; p < pixels; ++p) {
        to[p / plan.width * plan.stride() + p % plan.width] = static_cast<T>(scale) * at(p);
      }
      to += arrays_.stride;
    };
    for (std::size_t c = 0; c < plan.channels; ++c) {
      place(plan.input_scale,
            [&](std::size_t p) { return rows[(example * pixels + p) * plan.channels + c]; });
    }
    for (const PlaneLayer& layer : plan.layers) {
      const double scale = std::sqrt(layer.unit / 2);
      place(scale, [&](std::size_t p) { return *side.factor(layer.nonlinear, p, example); });
      place(1 / scale, [&](std::size_t p) { return *side.inverse(layer.nonlinear, p, example); });
    }
  });
}

template <class T>
std::size_t PlaneWorker<T>::bytes(const PlanePlan& plan) {
  const PlaneArrays<T> arrays(plan);
  return (2 * arrays.size() + 6 * arrays.stride) * sizeof(T);
}

template <class T>
PlaneWorker<T>::PlaneWorker(const PlanePlan& plan)
    : plan_(plan),
      kernels_(covariance_kernels<T>()),
      arrays_(plan),
      left_(Shape{plan.diagonal ? 0 : arrays_.count, arrays_.stride}),
      right_(Shape{arrays_.count, arrays_.stride}),
      live_(Shape{arrays_.stride}),
      line_(Shape{4 * plan.stride() + 4 * simd::kColumnPadding<T>}),
      delta_(Shape{arrays_.stride}),
      theta_(Shape{arrays_.stride}),
      delta_sums_(Shape{arrays_.stride}),
      theta_sums_(Shape{arrays_.stride}) {
  if (!plan.diagonal) return;
  for (std::size_t y = 0; y < plan.height; ++y) {
    std::fill_n(live_.data() + arrays_.frame + y * plan.stride(), plan.width, T(1));
  }
}

template <class T>
void PlaneWorker<T>::set_right(const T* image) {
  // The right image's roots are doubled: see simd::PlaneRun.
  for (std::size_t array = 0; array < arrays_.count; ++array) {
    const T* const from = image + array * arrays_.stride;
    T* const to = right_.data() + array * arrays_.stride;
    T factor = 1;
    if (array >= plan_.channels) factor = (array - plan_.channels) % 2 == 0 ? T(2) : T(0.5);
    for (std::size_t i = 0; i < arrays_.stride; ++i) to[i] = factor * from[i];
  }
}

template <class T>
PlaneMeans PlaneWorker<T>::diagonal(const T* left) {
  const FlushDenormals flush;
  double sums[2] = {};
  run_rows(left, right_.data(), 0, sums);
  const auto pixels = static_cast<double>(plan_.height * plan_.width);
  return {sums[0] * plan_.delta_out / pixels, sums[1] * plan_.theta_out / pixels};
}

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
  T* to = (right ? right_ : left_).data() + arrays_.frame;
  const auto place = [&](const T* from, double scale) {
    kernels_.plane_layout(from, static_cast<T>(scale), layout, line_.data(), to);
    // The last row runs over into the frame.
    std::fill_n(to + plan_.cells(), simd::kColumnPadding<T>, T(0));
    to += arrays_.stride;
  };
  for (std::size_t c = 0; c < plan_.channels; ++c)
    place(image.channels + c * image.stride, plan_.input_scale);
  for (const PlaneLayer& layer : plan_.layers) {
    const double scale = std::sqrt(layer.unit / 2) * (right ? 2 : 1);
    place(image.side->factor(layer.nonlinear, 0, image.index), scale);
    place(image.side->inverse(layer.nonlinear, 0, image.index), 1 / scale);
  }
}

template <class T>
void PlaneWorker<T>::lay_out_live(std::size_t dx) {
  T* const live = live_.data() + arrays_.frame;
  const std::size_t stride = plan_.stride();
  const std::size_t radius = plan_.radius_w;
  std::fill_n(live, plan_.cells(), T(0));
  for (std::size_t y = 0; y < plan_.height; ++y) {
    T* const row = live + y * stride;
    std::fill_n(row + radius, plan_.width - dx, T(1));
    std::fill_n(row + plan_.width - dx + 3 * radius, dx, T(1));
  }
}

template <class T>
void PlaneWorker<T>::run_rows(const T* left, const T* right, std::ptrdiff_t down, double* sums) {
  const std::size_t stride = plan_.stride();
  const auto frame = static_cast<std::ptrdiff_t>(plan_.radius_h * stride);
  const auto step = static_cast<std::ptrdiff_t>(stride);
  left += static_cast<std::ptrdiff_t>(arrays_.frame) + (down < 0 ? -down * step : 0);
  right += static_cast<std::ptrdiff_t>(arrays_.frame) + (down > 0 ? down * step : 0);
  simd::PlaneRun<T> run;
  run.rows = plan_.height - static_cast<std::size_t>(down < 0 ? -down : down);
  run.stride = stride;
  run.frame_rows = plan_.radius_h;
  run.delta = delta_.data() + arrays_.frame;
  run.theta = theta_.data() + arrays_.frame;
  run.delta_sums = delta_sums_.data() + arrays_.frame;
  run.theta_sums = theta_sums_.data() + arrays_.frame;
  // Of the last register only cells before the end of the run count: behind them live must be zero.
  run.live = live_.data() + arrays_.frame + (plan_.height - run.rows) * stride;
  kernels_.plane_input(left - frame, arrays_.stride, right - frame, arrays_.stride, plan_.channels,
                       run.delta - frame, run.theta - frame,
                       run.rows * stride + 2 * static_cast<std::size_t>(frame));
  for (std::size_t l = 0; l < plan_.layers.size(); ++l) {
    const PlaneLayer& layer = plan_.layers[l];
    const std::size_t array = plan_.channels + 2 * l;
    run.radius_rows = layer.radius_h;
    run.radius_columns = layer.radius_w;
    run.first = l == 0;
    run.bias = static_cast<T>(plan_.bias);
    run.left_root = left + array * arrays_.stride;
    run.left_inverse = left + (array + 1) * arrays_.stride;
    run.right_root = right + array * arrays_.stride;
    run.right_inverse = right + (array + 1) * arrays_.stride;
    run.factor = static_cast<T>(layer.factor);
    run.ratio = static_cast<T>(layer.ratio);
    run.obtuse = layer.obtuse;
    run.sums = l + 1 == plan_.layers.size() ? sums : nullptr;
    kernels_.plane_layer(run);
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
        const auto down = static_cast<std::ptrdiff_t>(dy);
        run_rows(left_.data(), right_.data(), down, sums);
        if (dy > 0) run_rows(left_.data(), right_.data(), down - static_cast<std::ptrdiff_t>(height), sums);
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

template <class T>
void PlaneWorker<T>::add_windows(const T* from, std::ptrdiff_t down, T* to, std::size_t stride) const {
  const std::size_t across = plan_.width / plan_.window_w;
  const std::size_t skipped = static_cast<std::size_t>(down < 0 ? -down : 0);
  const std::size_t rows = plan_.height - static_cast<std::size_t>(down < 0 ? -down : down);
  const std::uint32_t* const windows = windows_.data();
  const std::size_t turn = turn_;
  const std::size_t gap = 2 * plan_.radius_w;
  for (std::size_t row = 0; row < rows; ++row) {
    const std::size_t left_y = row + skipped;
    const auto right_y = static_cast<std::size_t>(static_cast<std::ptrdiff_t>(left_y) + down);
    T* const matrix = to + left_y / plan_.window_h * across * stride + right_y / plan_.window_h * across;
    const T* const cells = from + row * plan_.stride() + plan_.radius_w;
    for (std::size_t x = 0; x < turn; ++x) matrix[windows[x]] += cells[x];
    for (std::size_t x = turn; x < plan_.width; ++x) matrix[windows[x]] += cells[x + gap];
  }
}

template <class T>
void PlaneWorker<T>::run_windows(const Image& left, const Image& right, T* delta, T* theta,
                                 std::size_t stride) {
  const FlushDenormals flush;
  const auto height = static_cast<std::ptrdiff_t>(plan_.height);
  windows_.resize(plan_.width);
  for (std::size_t dx = 0; dx < plan_.width; ++dx) {
    turn_ = plan_.width - dx;
    for (std::size_t x = 0; x < plan_.width; ++x) {
      const std::size_t right_x = x < turn_ ? x + dx : x - turn_;
      windows_[x] = static_cast<std::uint32_t>(x / plan_.window_w * stride + right_x / plan_.window_w);
    }
    lay_out(left, false, dx);
    lay_out(right, true, dx);
    lay_out_live(dx);
    for (std::ptrdiff_t down = 1 - height; down < height; ++down) {
      run_rows(left_.data(), right_.data(), down, nullptr);
      add_windows(delta_.data() + arrays_.frame, down, delta, stride);
      if (theta != nullptr) add_windows(theta_.data() + arrays_.frame, down, theta, stride);
    }
  }
}

template class PlaneImages<float>;
template class PlaneImages<double>;
template class PlaneWorker<float>;
template class PlaneWorker<double>;

}  // namespace gradgram::ntk::infinite
