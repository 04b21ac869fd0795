#include "ntk/infinite/planes.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "engine/error.hpp"

namespace gradgram::ntk::infinite {
namespace {

/// Beyond them a layer multiplies its sums. Variances are at most near one, so that an f32 has room above;
/// below, inverses of what is smaller than the largest need it.
constexpr double kLargestUnit = 0x1p64;
constexpr double kSmallestUnit = 0x1p-40;

/// Below it the inverse powers that the acute kernel multiplies with could overflow.
constexpr double kLeastRatio = 1.0 / 32;

bool is_step(const Program& program, std::size_t s, StepKind kind) {
  return s < program.steps.size() && program.steps[s].kind == kind;
}

bool keeps_resolution(const ConvGeometry& g) {
  return g.stride_h == 1 && g.stride_w == 1 && g.kernel_h % 2 == 1 && g.kernel_w % 2 == 1 &&
         g.in_h == g.out_h && g.in_w == g.out_w && g.pad_top == g.kernel_h / 2 &&
         g.pad_left == g.kernel_w / 2;
}

/// Whether steps s and s + 1 are a convolution that keeps the resolution and a rectifier.
bool is_plane_layer(const Program& program, std::size_t s) {
  if (!is_step(program, s, StepKind::Affine) || !is_step(program, s + 1, StepKind::Nonlinear)) return false;
  const Step& affine = program.steps[s];
  // Windows as wide as the image would need frames wider than it.
  return affine.convolution && keeps_resolution(affine.geometry) &&
         affine.geometry.kernel_h <= 2 * affine.geometry.in_h - 1 &&
         affine.geometry.kernel_w <= 2 * affine.geometry.in_w - 1 && affine.geometry.kernel_w <= 31 &&
         program.steps[s + 1].phi.kind == Nonlinearity::Kind::ArcCosine;
}

/// Whether step s averages over more than one window, side by side and of more than one pixel.
bool pools_windows(const Program& program, std::size_t s) {
  if (!is_step(program, s, StepKind::AveragePool)) return false;
  const ConvGeometry& g = program.steps[s].geometry;
  return g.kernel_h * g.kernel_w > 1 && g.out_pixels() > 1 && g.pad_top == 0 && g.pad_left == 0 &&
         g.stride_h == g.kernel_h && g.stride_w == g.kernel_w && g.out_h * g.kernel_h == g.in_h &&
         g.out_w * g.kernel_w == g.in_w;
}

PlanePlan plan_from(const Program& program, const Scales& scales, std::size_t begin, const PlanePlan* before,
                    const std::vector<double>& ratios, double most) {
  PlanePlan plan;
  const ConvGeometry& first = program.steps[begin].geometry;
  plan.height = first.in_h;
  plan.width = first.in_w;
  plan.pooled = before != nullptr;
  plan.channels = plan.pooled ? 2 : program.channels;
  plan.diagonal = program.reach == Reach::Diagonal;
  bool obtuse = !plan.pooled || before->obtuse;
  // Sums over windows, and phi's scale, are left out of the planes and gather in their unit.
  double carried = 1;
  int exponent_before = scales.variance[program.steps[begin].in];
  for (std::size_t s = begin; is_plane_layer(program, s); s += 2) {
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
    layer.far_apart = !ratios.empty() && ratios[s + 1] > most;
    const bool any = layer.far_apart && (layer.radius_h != 1 || layer.radius_w != 1);
    layer.obtuse = obtuse || any || layer.ratio < kLeastRatio;
    layer.versine = layer.obtuse ? 1 : layer.ratio * layer.ratio;
    const int exponent = scales.variance[affine.out];
    if (s == 0) {
      // Channels are held in what makes the unit of the first layer one.
      plan.bias = std::ldexp(affine.bias_variance, -exponent);
      const double weight =
          affine.weight_variance * std::ldexp(1.0, scales.variance[affine.in] - scales.variance[affine.out]);
      plan.input_scale = std::sqrt(weight / (2 * static_cast<double>(program.channels) * taps));
    } else {
      layer.unit = std::ldexp(carried * taps / affine.weight_variance, exponent - exponent_before);
      if (layer.unit > kLargestUnit || layer.unit < kSmallestUnit) {
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
  plan.obtuse = obtuse;
  const Step& head = program.steps[plan.head];
  if (!plan.diagonal && pools_windows(program, plan.head)) {
    plan.window_h = head.geometry.kernel_h;
    plan.window_w = head.geometry.kernel_w;
  } else if (plan.pooled) {
    plan.window_h = plan.window_w = 1;
  }
  const std::size_t slot = head.in;
  plan.delta_out = std::ldexp(1 / carried, exponent_before - scales.variance[slot]);
  plan.theta_out = std::ldexp(1 / carried, exponent_before - scales.theta[slot]);
  return plan;
}

}  // namespace

bool has_planes(const Program& program) {
  std::size_t s = 0;
  while (is_plane_layer(program, s)) s += 2;
  if (s == 0) return false;
  if (program.reach == Reach::Diagonal) return is_step(program, s, StepKind::Flatten);
  if (!is_step(program, s, StepKind::AveragePool)) return false;
  const ConvGeometry& g = program.steps[s].geometry;
  return (g.out_pixels() == 1 && g.kernel_h == g.in_h && g.kernel_w == g.in_w) || pools_windows(program, s);
}

PlanePlan plan_planes(const Program& program, const Scales& scales, const std::vector<double>& ratios,
                      double most) {
  return plan_from(program, scales, 0, nullptr, ratios, most);
}

bool pools_planes(const Program& program) {
  if (!has_planes(program) || program.reach != Reach::Full) return false;
  const std::vector<int> zeros(program.pixels.size());
  return plan_planes(program, Scales{zeros, zeros}, {}, 0).window_h > 0;
}

std::vector<PlanePlan> plan_pooled(const Program& program, const Scales& scales, const PlanePlan& first,
                                   const std::vector<double>& ratios, double most) {
  std::vector<PlanePlan> plans;
  const auto goes_on = [&](const PlanePlan& plan) {
    std::size_t s = plan.head + 1;
    if (!pools_windows(program, plan.head) || !is_plane_layer(program, s)) return false;
    while (is_plane_layer(program, s)) s += 2;
    return s < program.steps.size();
  };
  for (const PlanePlan* last = &first; goes_on(*last); last = &plans.back()) {
    plans.push_back(plan_from(program, scales, last->head + 1, last, ratios, most));
  }
  return plans;
}

template <class T>
std::vector<double> ratios_of_roots(const Program& program, const Sides<T>& left, const Sides<T>& right) {
  std::vector<double> ratios(program.steps.size(), 1);
  for (std::size_t s = 0; s < program.steps.size(); ++s) {
    if (!program.steps[s].is_rectifier()) continue;
    const std::size_t pixels = program.pixels[program.steps[s].in];
    T least = std::numeric_limits<T>::infinity();
    T most = 0;
    for (const Sides<T>* side : {&left, &right}) {
      const bool full = program.reach == Reach::Full;
      const std::size_t lines = full ? side->examples() : pixels;
      const std::size_t length = full ? pixels : side->examples();
      for (std::size_t i = 0; i < lines; ++i) {
        const T* const roots = full ? side->factor(s, 0, i) : side->factor(s, i, 0);
        for (std::size_t k = 0; k < length; ++k) {
          if (!(roots[k] > 0)) continue;
          least = std::min(least, roots[k]);
          most = std::max(most, roots[k]);
        }
      }
    }
    if (most > 0) ratios[s] = static_cast<double>(most) / static_cast<double>(least);
  }
  return ratios;
}

template <class T>
PlaneArrays<T>::PlaneArrays(const PlanePlan& plan, std::size_t lanes_of)
    : lines(plan.width),
      cells(plan.height),
      channels(plan.channels),
      layers(plan.layers.size()),
      radius(plan.radius_w),
      lanes(lanes_of),
      pixels(plan.width * plan.height),
      margin(plan.radius_w * plan.height),
      line(plan.width + lanes_of + 2 * plan.radius_w) {}

template <class T>
std::size_t PlaneImages<T>::bytes(const PlanePlan& plan, std::size_t examples) {
  const std::size_t lanes = covariance_kernels<T>().lanes;
  return checked_multiply(2 * (examples + lanes), PlaneArrays<T>(plan, lanes).equal_size() * sizeof(T),
                          "infinite_kernel: bytes of planes");
}

template <class T>
PlaneImages<T>::PlaneImages(const PlanePlan& plan, const Sides<T>& side, const T* rows, bool left, bool right,
                            const Workers& workers)
    : arrays_(plan, covariance_kernels<T>().lanes) {
  const std::size_t pixels = arrays_.pixels;
  const std::size_t lanes = arrays_.lanes;
  const std::size_t examples = side.examples();
  const std::size_t groups = (examples + lanes - 1) / lanes;
  if (left) left_ = Tensor<T>(Shape{examples, arrays_.equal_size()});
  if (right) groups_ = Tensor<T>(Shape{groups, arrays_.equal_layer(arrays_.layers), lanes});
  workers.run(groups, [&](std::size_t group, std::size_t) {
    const std::size_t first = group * lanes;
    const std::size_t count = std::min(lanes, examples - first);
    std::size_t array = 0;
    // The right image's roots are doubled: see simd::PlaneRun.
    const auto place = [&](double scale, double right_scale, const auto& at) {
      for (std::size_t p = 0; p < pixels; ++p) {
        const std::size_t cell = p % plan.width * plan.height + p / plan.width;
        for (std::size_t j = 0; j < count; ++j) {
          const T value = at(p, first + j);
          if (left) {
            left_.data()[(first + j) * arrays_.equal_size() + array * pixels + cell] =
                static_cast<T>(scale) * value;
          }
          if (right) {
            groups_
                .data()[((group * (arrays_.equal_layer(arrays_.layers) / pixels) + array) * pixels + cell) *
                            lanes +
                        j] = static_cast<T>(right_scale) * value;
          }
        }
      }
      ++array;
    };
    for (std::size_t c = 0; c < plan.channels; ++c) {
      place(plan.input_scale, plan.input_scale, [&](std::size_t p, std::size_t example) {
        return rows[(example * pixels + p) * plan.channels + c];
      });
    }
    for (const PlaneLayer& layer : plan.layers) {
      const double scale = std::sqrt(layer.unit / 2);
      place(scale, 2 * scale,
            [&](std::size_t p, std::size_t example) { return *side.factor(layer.nonlinear, p, example); });
      place(layer.versine / scale, 1 / (2 * scale),
            [&](std::size_t p, std::size_t example) { return *side.inverse(layer.nonlinear, p, example); });
    }
  });
}

namespace {

/// Left images that pass a layer together, so that the right images' arrays are read once for all of them:
/// as many as leave room in a second-level cache.
constexpr std::size_t kPlaneBatch = 4;
template <class T>
std::size_t plane_batch(const PlanePlan& plan, const PlaneArrays<T>& arrays) {
  if (!plan.diagonal) return 1;
  constexpr std::size_t kCache = 5 << 18;
  return std::clamp<std::size_t>(kCache / (arrays.state_size() * sizeof(T)), 1, kPlaneBatch);
}

/// Sums over windows that are under way: of offset zero, of the offset that `down` is in, and of the next
/// one.
constexpr std::size_t kWindowSums = 3;

/// Lanes of all groups of offsets, which hold `lines` of them.
std::size_t group_lanes(std::size_t lines, std::size_t lanes) {
  return (lines + lanes - 1) / lanes * lanes;
}

/// Elements of the sums over windows of one offset.
std::size_t window_elements(const PlanePlan& plan, std::size_t lanes) {
  if (plan.window_h == 0) return 0;
  return plan.width * (plan.height / plan.window_h) * 2 * group_lanes(plan.width, lanes);
}

std::size_t scratch_of(const PlanePlan& plan, std::size_t lanes) {
  return simd::plane_scratch(plan.height, plan.radius_w, plan.radius_h, lanes);
}

/// From the sums of a pair of windows to the next: read by registers of f64.
std::size_t pitch_of_folds(const PlanePlan& plan) {
  return group_lanes(plan.width / plan.window_w, covariance_kernels<double>().lanes);
}

std::size_t fold_elements(const PlanePlan& plan) {
  if (plan.window_h == 0) return 0;
  return plan.width / plan.window_w * (plan.height / plan.window_h) * 2 * pitch_of_folds(plan);
}

}  // namespace

template <class T>
std::size_t PlaneWorker<T>::bytes(const PlanePlan& plan) {
  const std::size_t lanes = covariance_kernels<T>().lanes;
  const PlaneArrays<T> arrays(plan, lanes);
  std::size_t elements = arrays.state_size() * plane_batch(plan, arrays);
  elements += scratch_of(plan, lanes);
  if (!plan.diagonal) {
    elements += arrays.left_size() + arrays.right_layer(arrays.layers);
    elements += (arrays.lines + lanes) * arrays.lines * 2 * plan.radius_w;
    elements += kWindowSums * window_elements(plan, lanes) + 2 * group_lanes(arrays.lines, lanes);
  }
  return elements * sizeof(T) + fold_elements(plan) * sizeof(double);
}

template <class T>
PlaneWorker<T>::PlaneWorker(const PlanePlan& plan)
    : plan_(plan), kernels_(covariance_kernels<T>()), arrays_(plan, kernels_.lanes) {
  const std::size_t lanes = kernels_.lanes;
  const std::size_t lines = arrays_.lines;
  state_ = Tensor<T>(Shape{plane_batch(plan, arrays_), arrays_.state_size()});
  sums_ = Tensor<T>(Shape{scratch_of(plan, lanes)});
  places_.resize(arrays_.cells + 3);
  if (plan.diagonal) return;
  left_ = Tensor<T>(Shape{arrays_.left_size()});
  right_ = Tensor<T>(Shape{arrays_.right_layer(arrays_.layers)});
  const std::size_t groups = (lines + lanes - 1) / lanes;
  const std::size_t masks = 2 * plan.radius_w;
  outside_ = Tensor<T>(Shape{groups * lines * masks * lanes + 1});
  seams_.resize(groups * lines);
  for (std::size_t group = 0; group < groups; ++group) {
    for (std::size_t line = 0; line < lines; ++line) {
      for (std::size_t m = 0; m < masks; ++m) {
        const std::size_t moved = m < plan.radius_w ? m : m + 1;  // plus the radius
        for (std::size_t j = 0; j < lanes; ++j) {
          const std::size_t partner = (line + group * lanes + j) % lines + moved;
          const bool outside = partner < plan.radius_w || partner >= lines + plan.radius_w;
          outside_.data()[((group * lines + line) * masks + m) * lanes + j] = outside ? T(1) : T(0);
          if (outside) seams_[group * lines + line] = 1;
        }
      }
    }
  }
  if (plan.window_h > 0) {
    live_ = Tensor<T>(Shape{groups * lanes});
    std::fill_n(live_.data(), lines, T(1));
    window_sums_ = Tensor<T>(Shape{kWindowSums, window_elements(plan, lanes)});
    window_planes_.resize(arrays_.cells / plan.window_h);
    ring_ = Tensor<T>(Shape{groups * lanes});
    fold_pitch_ = pitch_of_folds(plan);
    folded_ = Tensor<double>(Shape{fold_elements(plan)});
  }
}

template <class T>
simd::PlaneRun<T> PlaneWorker<T>::prepared() const {
  simd::PlaneRun<T> run;
  run.lines = arrays_.lines;
  run.cells = arrays_.cells;
  run.pitch = arrays_.pitch() * arrays_.lanes;
  run.places = places_.data();
  run.bias = static_cast<T>(plan_.bias);
  return run;
}

template <class T>
void PlaneWorker<T>::set_layer(simd::PlaneRun<T>& run, std::size_t index) const {
  const PlaneLayer& layer = plan_.layers[index];
  run.radius_lines = layer.radius_w;
  run.radius_cells = layer.radius_h;
  run.first = index == 0 && !plan_.pooled;
  run.factor = static_cast<T>(layer.factor);
  run.ratio = static_cast<T>(layer.ratio);
  run.obtuse = layer.obtuse;
  run.far_apart = layer.far_apart;
}

/// Arrays [line][cell] of the left image.
template <class T>
void PlaneWorker<T>::lay_out_left(const Image& image) {
  const std::size_t pixels = arrays_.pixels;
  const std::size_t cells = arrays_.cells;
  const std::size_t lines = arrays_.lines;
  const auto place = [&](const T* from, double scale, T* to) {
    const T factor = static_cast<T>(scale);
    for (std::size_t line = 0; line < lines; ++line) {
      for (std::size_t cell = 0; cell < cells; ++cell) {
        to[line * cells + cell] = factor * from[cell * lines + line];
      }
    }
  };
  for (std::size_t c = 0; c < plan_.channels; ++c) {
    place(image.channels + c * image.stride, plan_.input_scale, left_.data() + c * pixels);
  }
  for (std::size_t l = 0; l < plan_.layers.size(); ++l) {
    const PlaneLayer& layer = plan_.layers[l];
    T* const root = left_.data() + arrays_.left_layer(l);
    const double scale = std::sqrt(layer.unit / 2);
    place(image.side->factor(layer.nonlinear, 0, image.index), scale, root);
    place(image.side->inverse(layer.nonlinear, 0, image.index), layer.versine / scale, root + pixels);
    T* const square = root + 2 * pixels + arrays_.margin;
    T* const window = square + pixels + arrays_.margin;
    if (l == 0 && plan_.pooled) {
      const T* const before = left_.data() + pixels;
      const T factor = static_cast<T>(layer.factor / 2);
      for (std::size_t i = 0; i < pixels; ++i) square[i] = factor * (before[i] * before[i]);
    } else if (l == 0) {
      std::fill_n(square, pixels, T(0));
      for (std::size_t i = 0; i < plan_.channels * pixels; ++i) {
        square[i % pixels] += left_.data()[i] * left_.data()[i];
      }
    } else {
      const T* const before = left_.data() + arrays_.left_layer(l - 1);
      const T factor = static_cast<T>(layer.factor);
      for (std::size_t i = 0; i < pixels; ++i) square[i] = factor * (before[i] * before[i]);
    }
    std::fill_n(window, pixels, T(0));
    for (std::size_t k = 0; k <= 2 * layer.radius_w; ++k) {
      // Lines outside are zeros.
      const T* const from = square + k * cells - layer.radius_w * cells;
      for (std::size_t i = 0; i < pixels; ++i) window[i] += from[i];
    }
  }
}

/// Arrays [cell][line] of the right image, in which lines go around.
template <class T>
void PlaneWorker<T>::lay_out_right(const Image& image) {
  const std::size_t cells = arrays_.cells;
  const std::size_t lines = arrays_.lines;
  const std::size_t radius = arrays_.radius;
  const std::size_t array = cells * arrays_.line;
  const auto go_around = [&](T* line) {
    for (std::size_t i = 0; i < radius; ++i) line[i] = line[i + lines];
    for (std::size_t i = radius + lines; i < arrays_.line; ++i) line[i] = line[i - lines];
  };
  const auto place = [&](const T* from, double scale, T* to) {
    const T factor = static_cast<T>(scale);
    for (std::size_t cell = 0; cell < cells; ++cell) {
      T* const line = to + cell * arrays_.line;
      for (std::size_t i = 0; i < lines; ++i) line[radius + i] = factor * from[cell * lines + i];
      go_around(line);
    }
  };
  for (std::size_t c = 0; c < plan_.channels; ++c) {
    place(image.channels + c * image.stride, plan_.input_scale, right_.data() + c * array);
  }
  for (std::size_t l = 0; l < plan_.layers.size(); ++l) {
    const PlaneLayer& layer = plan_.layers[l];
    T* const root = right_.data() + arrays_.right_layer(l);
    // Doubled: see simd::PlaneRun.
    const double scale = 2 * std::sqrt(layer.unit / 2);
    place(image.side->factor(layer.nonlinear, 0, image.index), scale, root);
    place(image.side->inverse(layer.nonlinear, 0, image.index), 1 / scale, root + array);
    T* const square = root + 2 * array;
    T* const window = root + 3 * array;
    if (l == 0 && plan_.pooled) {
      const T* const before = right_.data() + array;
      const T factor = static_cast<T>(layer.factor / 2);
      for (std::size_t i = 0; i < array; ++i) square[i] = factor * (before[i] * before[i]);
    } else if (l == 0) {
      std::fill_n(square, array, T(0));
      for (std::size_t c = 0; c < plan_.channels; ++c) {
        const T* const channel = right_.data() + c * array;
        for (std::size_t i = 0; i < array; ++i) square[i] += channel[i] * channel[i];
      }
    } else {
      const T* const before = right_.data() + arrays_.right_layer(l - 1);
      const T factor = static_cast<T>(layer.factor / 4);
      for (std::size_t i = 0; i < array; ++i) square[i] = factor * (before[i] * before[i]);
    }
    for (std::size_t cell = 0; cell < cells; ++cell) {
      const T* const from = square + cell * arrays_.line + radius;
      T* const to = window + cell * arrays_.line;
      for (std::size_t i = 0; i < lines; ++i) {
        const std::size_t begin = i < layer.radius_w ? 0 : i - layer.radius_w;
        const std::size_t end = std::min(lines, i + layer.radius_w + 1);
        T sum = 0;
        for (std::size_t k = begin; k < end; ++k) sum += from[k];
        to[radius + i] = sum;
      }
      go_around(to);
    }
  }
}

template <class T>
simd::PlaneRun<T> PlaneWorker<T>::run_of(std::size_t across, std::size_t down) {
  simd::PlaneRun<T> run = prepared();
  run.state = state_.data() + plan_.radius_w * run.pitch;
  run.sums = sums_.data();
  run.line_offset = across;
  run.cell_offset = down;
  run.masks = 2 * plan_.radius_w;
  run.seams = seams_.data() + across / arrays_.lanes * arrays_.lines;
  run.right_line = 1;
  run.right_cell = arrays_.line;
  return run;
}

template <class T>
void PlaneWorker<T>::set_places(const simd::PlaneRun<T>& run) {
  const std::size_t lanes = arrays_.lanes;
  const std::size_t cells = arrays_.cells;
  const std::size_t down = run.cell_offset;
  for (std::size_t cell = 0; cell < cells; ++cell) {
    const bool before_turn = cell + down < cells;
    const std::size_t entry = cell + (before_turn ? 1 : 3) * run.radius_cells;
    const std::size_t partner = cell + down - (before_turn ? 0 : cells);
    places_[cell].entry = static_cast<std::uint32_t>(entry * 2 * lanes);
    places_[cell].partner = static_cast<std::uint32_t>(partner * arrays_.line);
  }
  for (std::size_t cell = cells; cell < places_.size(); ++cell) {
    places_[cell].entry = static_cast<std::uint32_t>((cells + 4 * run.radius_cells) * 2 * lanes);
    places_[cell].partner = 0;
  }
}

template <class T>
void PlaneWorker<T>::run_planes(simd::PlaneRun<T>& run, bool from_images,
                                const simd::PlaneWindows<T>* windows) {
  const std::size_t pixels = arrays_.pixels;
  const std::size_t array = arrays_.cells * arrays_.line;
  const std::size_t group = run.line_offset / arrays_.lanes;
  const T* const right = right_.data() + arrays_.radius;
  const simd::PlaneInput<T> input{left_.data(), pixels, right, array, plan_.channels};
  const std::size_t layers = plan_.layers.size();
  for (std::size_t l = 0; l < layers; ++l) {
    set_layer(run, l);
    set_places(run);
    run.outside = outside_.data() +
                  (group * arrays_.lines * run.masks + (plan_.radius_w - run.radius_lines)) * arrays_.lanes;
    run.left_root = left_.data() + arrays_.left_layer(l);
    run.left_inverse = run.left_root + pixels;
    run.left_square = run.left_root + 2 * pixels + arrays_.margin;
    run.left_window = run.left_square + pixels + arrays_.margin;
    run.right_root = right + arrays_.right_layer(l);
    run.right_inverse = run.right_root + array;
    run.right_square = run.right_root + 2 * array;
    run.right_window = run.right_root + 3 * array;
    kernels_.plane_layer(run, l == 0 && from_images ? &input : nullptr, l + 1 == layers ? windows : nullptr);
  }
}

template <class T>
void PlaneWorker<T>::run(const Image& left, const Image* rights, std::size_t count, const bool* same,
                         PlaneMeans* means) {
  const FlushDenormals flush;
  const std::size_t lanes = arrays_.lanes;
  const std::size_t cells = arrays_.cells;
  const std::size_t lines = arrays_.lines;
  std::vector<double> sums(2 * lanes);
  lay_out_left(left);
  for (std::size_t j = 0; j < count; ++j) {
    means[j] = {};
    lay_out_right(rights[j]);
    // Of an image with itself, the plane of an offset is that of the opposite offset, transposed.
    for (std::size_t down = 0; down < (same[j] ? cells / 2 + 1 : cells); ++down) {
      const double weight = same[j] && down > 0 && 2 * down != cells ? 2 : 1;
      for (std::size_t across = 0; across < lines; across += lanes) {
        std::fill(sums.begin(), sums.end(), 0.0);
        simd::PlaneRun<T> run = run_of(across, down);
        run_planes(run, true, nullptr);
        kernels_.plane_sums(run, sums.data(), sums.data() + lanes);
        for (std::size_t lane = 0; lane < lanes && across + lane < lines; ++lane) {
          means[j].delta += weight * sums[lane];
          means[j].theta += weight * sums[lanes + lane];
        }
      }
    }
    const auto pairs = static_cast<double>(arrays_.pixels) * static_cast<double>(arrays_.pixels);
    means[j].delta *= plan_.delta_out / pairs;
    means[j].theta *= plan_.theta_out / pairs;
  }
}

template <class T>
void PlaneWorker<T>::start(const Image& left, const Image& right) {
  lay_out_left(left);
  lay_out_right(right);
  std::ranges::fill(window_planes_, std::size_t{0});
}

template <class T>
bool PlaneWorker<T>::run_windows(const Image& left, const Image& right, const Fold& fold) {
  const FlushDenormals flush;
  start(left, right);
  for (std::size_t down = 0; down < arrays_.cells; ++down) {
    for (std::size_t across = 0; across < arrays_.lines; across += arrays_.lanes) {
      simd::PlaneRun<T> run = run_of(across, down);
      const simd::PlaneWindows<T> windows = windows_of(run);
      run_planes(run, true, &windows);
    }
    if (!end_planes(down, fold)) return false;
  }
  return true;
}

template <class T>
bool PlaneWorker<T>::run_pooled(std::size_t down, const double* sums, double scale, double versine,
                                bool& near, const Fold& fold) requires std::is_same_v<T, double> {
  const FlushDenormals flush;
  const std::size_t array = arrays_.cells * arrays_.line;
  simd::PlanePooled<T> pooled;
  pooled.pitch = group_lanes(arrays_.lines, arrays_.lanes);
  pooled.scale = scale;
  pooled.left = left_.data();
  pooled.left_root = left_.data() + arrays_.pixels;
  pooled.right = right_.data() + arrays_.radius;
  pooled.right_root = pooled.right + array;
  pooled.versine = versine;
  for (std::size_t across = 0; across < arrays_.lines; across += arrays_.lanes) {
    simd::PlaneRun<T> run = run_of(across, down);
    set_places(run);
    pooled.sums = sums + across;
    pooled.live = live_.data() + across;
    if (kernels_.plane_pooled(run, pooled)) near = true;
    const simd::PlaneWindows<T> windows = windows_of(run);
    run_planes(run, false, &windows);
  }
  return end_planes(down, fold);
}

template <class T>
T* PlaneWorker<T>::window_sums(std::size_t down) {
  // Offset zero is begun first and finished last, others overlap with the one before and after.
  const std::size_t slot = down == 0 ? 0 : 1 + down % 2;
  return window_sums_.data() + slot * window_elements(plan_, arrays_.lanes);
}

template <class T>
simd::PlaneWindows<T> PlaneWorker<T>::windows_of(const simd::PlaneRun<T>& run) {
  const std::size_t down = run.cell_offset / plan_.window_h;
  const std::size_t next = (down + 1) % window_planes_.size();
  simd::PlaneWindows<T> windows;
  windows.window_cells = plan_.window_h;
  windows.split = plan_.window_h - run.cell_offset % plan_.window_h;
  windows.here = window_sums(down) + run.line_offset;
  windows.beyond = window_sums(next) + run.line_offset;
  windows.here_begins = window_planes_[down] == 0;
  windows.beyond_begins = next != down && window_planes_[next] == 0;
  windows.pitch = group_lanes(arrays_.lines, arrays_.lanes);
  return windows;
}

template <class T>
bool PlaneWorker<T>::end_planes(std::size_t down, const Fold& fold) {
  const std::size_t windows = window_planes_.size();
  const std::size_t planes = windows == 1 ? plan_.window_h : 2 * plan_.window_h - 1;
  const std::size_t here = down / plan_.window_h;
  const std::size_t next = (here + 1) % windows;
  const auto added = [&](std::size_t offset) {
    if (++window_planes_[offset] < planes) return true;
    window_planes_[offset] = 0;
    simd::PlaneFold<T> folds;
    folds.lines = arrays_.lines;
    folds.cells = windows;
    folds.window_lines = plan_.window_w;
    folds.sums = window_sums(offset);
    folds.pitch = group_lanes(arrays_.lines, arrays_.lanes);
    folds.ring = ring_.data();
    folds.folded = folded_.data();
    folds.folded_pitch = fold_pitch_;
    kernels_.plane_fold(folds);
    return fold(offset, folded_.data());
  };
  if (!added(here)) return false;
  return down % plan_.window_h == 0 || next == here || added(next);
}

template <class T>
void PlaneWorker<T>::diagonals(const T* const* lefts, std::size_t count, const T* group, PlaneMeans* means) {
  const FlushDenormals flush;
  const std::size_t lanes = arrays_.lanes;
  const std::size_t cells = arrays_.cells;
  const std::size_t pixels = arrays_.pixels;
  simd::PlaneRun<T> run = prepared();
  run.sums = sums_.data();
  run.right_line = cells * lanes;
  run.right_cell = lanes;
  std::vector<double> sums(2 * lanes);
  const std::size_t batch = plane_batch(plan_, arrays_);
  for (std::size_t begin = 0; begin < count; begin += batch) {
    const std::size_t end = std::min(count, begin + batch);
    for (std::size_t l = 0; l < plan_.layers.size(); ++l) {
      set_layer(run, l);
      for (std::size_t cell = 0; cell < places_.size(); ++cell) {
        const std::size_t entry = cell < cells ? cell + run.radius_cells : cells + 4 * run.radius_cells;
        places_[cell].entry = static_cast<std::uint32_t>(entry * 2 * lanes);
        places_[cell].partner = static_cast<std::uint32_t>(cell % cells * run.right_cell);
      }
      run.right_root = group + arrays_.equal_layer(l) * lanes;
      run.right_inverse = run.right_root + pixels * lanes;
      run.right_square = run.right_window = run.right_root;
      for (std::size_t i = begin; i < end; ++i) {
        run.state = state_.data() + (i - begin) * arrays_.state_size() + plan_.radius_w * run.pitch;
        run.left_root = lefts[i] + arrays_.equal_layer(l);
        run.left_inverse = run.left_root + pixels;
        run.left_square = run.left_window = run.left_root;
        const simd::PlaneInput<T> input{lefts[i], pixels, group, pixels * lanes, plan_.channels};
        kernels_.plane_layer(run, l == 0 ? &input : nullptr, nullptr);
        if (l + 1 < plan_.layers.size()) continue;
        std::fill(sums.begin(), sums.end(), 0.0);
        kernels_.plane_sums(run, sums.data(), sums.data() + lanes);
        for (std::size_t lane = 0; lane < lanes; ++lane) {
          means[i * lanes + lane] = {sums[lane] * plan_.delta_out / static_cast<double>(pixels),
                                     sums[lanes + lane] * plan_.theta_out / static_cast<double>(pixels)};
        }
      }
    }
  }
}

template std::vector<double> ratios_of_roots(const Program&, const Sides<float>&, const Sides<float>&);
template std::vector<double> ratios_of_roots(const Program&, const Sides<double>&, const Sides<double>&);
template struct PlaneArrays<float>;
template struct PlaneArrays<double>;
template class PlaneImages<float>;
template class PlaneImages<double>;
template class PlaneWorker<float>;
template class PlaneWorker<double>;

}  // namespace gradgram::ntk::infinite
