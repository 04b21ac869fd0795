#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "engine/error.hpp"
#include "engine/random.hpp"
#include "models/network.hpp"
#include "ntk/planned_kernel.hpp"
#include "ntk/precision.hpp"
#include "tests/models/random_model.hpp"
#include "tests/reference/network_kernel.hpp"

/// Kernels of hundreds of small random networks, by every way to contract and with every kind of block,
/// against the plain reference. GRADGRAM_SEED starts the seeds elsewhere; a failure names its own.
namespace gradgram::ntk {
namespace {

/// A model's layers as the reference has them; parameters are numbered in the order of the layers, a
/// residual's body before its shortcut.
class Translation {
 public:
  Translation(bool ntk, double weight_variance, double bias_variance)
      : ntk_(ntk), weight_variance_(weight_variance), bias_variance_(bias_variance) {}

  std::vector<reference::Layer> list(const std::vector<models::Layer>& layers, Shape shape) {
    std::vector<reference::Layer> result;
    for (const models::Layer& layer : layers) {
      result.push_back(one(layer, shape));
      shape = models::output_shape(layer, shape);
    }
    return result;
  }

 private:
  reference::Layer one(const models::Layer& layer, const Shape& shape) {
    using models::LayerKind;
    using reference::Kind;
    reference::Layer result{};
    switch (layer.kind) {
      case LayerKind::Dense:
        result.kind = Kind::Dense;
        affine(layer, static_cast<double>(shape[0]), result);
        return result;
      case LayerKind::Conv:
        result.kind = Kind::Conv;
        window(layer, result);
        affine(layer, static_cast<double>(layer.kernel_h * layer.kernel_w * shape[2]), result);
        return result;
      case LayerKind::Activation:
        result.kind = Kind::Activation;
        result.function = function(layer.activation);
        // The library keeps the slope in the precision that it computes in: f32 reads the nearest number.
        result.slope = layer.slope;
        return result;
      case LayerKind::MaxPool:
      case LayerKind::AveragePool:
        result.kind = layer.kind == LayerKind::MaxPool ? Kind::MaxPool : Kind::AveragePool;
        window(layer, result);
        return result;
      case LayerKind::GlobalAveragePool:
        result.kind = Kind::GlobalAveragePool;
        return result;
      case LayerKind::Flatten:
        result.kind = Kind::Flatten;
        return result;
      case LayerKind::Residual:
        result.kind = Kind::Residual;
        result.body = list(layer.body, shape);
        result.shortcut = list(layer.shortcut, shape);
        return result;
      default:
        throw Error("the reference has no such layer");
    }
  }

  void affine(const models::Layer& layer, double fan_in, reference::Layer& result) {
    result.features = layer.features;
    result.weight = next_++;
    result.weight_scale = ntk_ ? std::sqrt(weight_variance_ / fan_in) : 1;
    if (!layer.bias) return;
    result.bias = next_++;
    result.bias_scale = ntk_ ? std::sqrt(bias_variance_) : 1;
  }

  static void window(const models::Layer& layer, reference::Layer& result) {
    result.window = layer.kernel_h;
    result.window_w = layer.kernel_w;
    result.stride = layer.stride_h;
    result.stride_w = layer.stride_w;
    result.same = result.pool_same = layer.padding.kind == Padding::Kind::Same;
    result.pad = layer.padding.kind == Padding::Kind::Explicit ? layer.padding.amount : 0;
  }

  static reference::Function function(simd::Activation activation) {
    using reference::Function;
    using simd::Activation;
    switch (activation) {
      case Activation::Relu:
        return Function::Relu;
      case Activation::LeakyRelu:
        return Function::LeakyRelu;
      case Activation::Tanh:
        return Function::Tanh;
      case Activation::Sigmoid:
        return Function::Sigmoid;
      case Activation::Erf:
        return Function::Erf;
      case Activation::Gelu:
        return Function::Gelu;
      case Activation::Softplus:
        return Function::Softplus;
      case Activation::Sin:
        return Function::Sin;
    }
    throw Error("the reference has no such activation");
  }

  bool ntk_;
  double weight_variance_, bias_variance_;
  std::size_t next_ = 0;
};

/// Gradients of every example: one per output, or one for the true class.
struct Rows : std::vector<std::vector<reference::Gradient>> {
  double largest_output = 0;  ///< |f|, of the true class
};

template <class T>
Rows rows_of(const std::vector<reference::Layer>& layers, const models::Network<T>& net,
             TensorView<const T> x, Reduce reduce, const std::vector<std::int32_t>& labels) {
  reference::Parameters parameters;
  for (std::size_t p = 0; p < net.parameters().count(); ++p) {
    const auto value = net.parameters().value(p);
    parameters.emplace_back(value.span().begin(), value.span().end());
  }
  const Shape shape = net.input_shape();
  Rows rows;
  for (std::size_t i = 0; i < x.shape()[0]; ++i) {
    reference::Image image;
    if (shape.rank() == 3) {
      image.h = shape[0];
      image.w = shape[1];
    }
    image.c = shape[shape.rank() - 1];
    const auto values = x.slice(i).span();
    image.values.assign(values.begin(), values.end());
    if (reduce == Reduce::TrueClass) {
      for (const double f : reference::outputs(layers, parameters, image)) {
        rows.largest_output = std::max(rows.largest_output, std::abs(f));
      }
      rows.push_back(
          {reference::true_class_gradient(layers, parameters, image, static_cast<std::size_t>(labels[i]))});
    } else {
      rows.push_back(reference::jacobian(layers, parameters, image));
    }
  }
  return rows;
}

double entry(const std::vector<reference::Gradient>& a, const std::vector<reference::Gradient>& b,
             Reduce reduce, std::size_t output, std::size_t parameter) {
  if (reduce == Reduce::TrueClass) return reference::dot(a[0], b[0], parameter);
  if (reduce == Reduce::Output) return reference::dot(a[output], b[output], parameter);
  double sum = 0;
  for (std::size_t k = 0; k < a.size(); ++k) sum += reference::dot(a[k], b[k], parameter);
  return reduce == Reduce::TraceMean ? sum / static_cast<double>(a.size()) : sum;
}

/// What the reference says, as a flat list like the tensor, and the size that errors are relative to.
struct Expected {
  std::vector<double> values, scales;
};

Expected expected(const Rows& a, const Rows& b, Reduce reduce, std::size_t output, std::size_t parameter) {
  Expected result;
  for (const auto& g : a) {
    for (const auto& h : b) {
      if (reduce == Reduce::Full) {
        for (const auto& one : g) {
          for (const auto& other : h) {
            result.values.push_back(reference::dot(one, other, parameter));
            result.scales.push_back(std::sqrt(reference::dot(one, one) * reference::dot(other, other)));
          }
        }
        continue;
      }
      result.values.push_back(entry(g, h, reduce, output, parameter));
      result.scales.push_back(std::sqrt(entry(g, g, reduce, output, reference::kNone) *
                                        entry(h, h, reduce, output, reference::kNone)));
    }
  }
  return result;
}

/// Largest error in units of its scale; infinite when anything is not a number.
template <class T>
double worst(const Tensor<T>& values, const Expected& expected) {
  if (values.size() != expected.values.size()) return INFINITY;
  double result = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double difference = std::abs(static_cast<double>(values.span()[i]) - expected.values[i]);
    const double error = difference == 0 ? 0 : difference / expected.scales[i];
    if (!(error <= result)) result = std::isnan(error) ? INFINITY : error;
  }
  return result;
}

/// Networks drawn at random cancel worse in their passes than those on which the error was measured.
template <class T>
double tolerance(const models::Network<T>& net) {
  return sizeof(T) == 8 ? 1e-11 : 4 * entry_error<T>(net);
}

std::uint64_t first_seed() {
  const char* const text = std::getenv("GRADGRAM_SEED");
  return text == nullptr ? 20240 : std::strtoull(text, nullptr, 10);
}

/// What was met on the way, so that a run that tests little does not pass for one that tests much.
struct Met {
  std::set<Way> ways;
  std::size_t packed = 0, rows = 0, streamed = 0, refused = 0, controls = 0;
};

template <class T>
void one_network(std::uint64_t seed, Met& met) {
  models::testing::RandomModelOptions options;
  options.softmax = false;
  // A ReLU or a maximum that flips in f32 is no error of the contraction.
  options.smooth = sizeof(T) == 4;
  const auto drawn = models::testing::RandomModelMaker(seed, options).next();
  SCOPED_TRACE("seed " + std::to_string(seed) + ": " + drawn.text + " on " + drawn.input.to_string());
  Random random(seed, 1);
  const auto below = [&](std::size_t count) { return static_cast<std::size_t>(random.below(count)); };
  models::NetworkOptions network_options;
  network_options.parameterization =
      below(2) == 0 ? models::Parameterization::Ntk : models::Parameterization::Standard;
  network_options.bias_variance = 0.3;
  network_options.seed = seed;
  const models::Network<T> net(models::Model(drawn.layers, drawn.input), network_options);
  const auto layers = Translation(network_options.parameterization == models::Parameterization::Ntk,
                                  network_options.weight_variance, network_options.bias_variance)
                          .list(drawn.layers, drawn.input);
  const std::size_t outputs = net.outputs();
  const std::size_t n = 1 + below(9);
  const std::size_t m = 1 + below(5);
  const auto draw = [&](std::size_t count) {
    Tensor<T> x(drawn.input.with_outer(count));
    for (T& value : x.span()) value = static_cast<T>(random.normal());
    return x;
  };
  const auto x = draw(n);
  const auto versus = draw(m);
  const auto draw_labels = [&](std::size_t count) {
    std::vector<std::int32_t> labels(count);
    for (auto& label : labels) label = static_cast<std::int32_t>(below(outputs));
    return labels;
  };
  const auto labels = draw_labels(n);
  const auto versus_labels = draw_labels(m);

  const Reduce reductions[] = {Reduce::TraceMean, Reduce::Full, Reduce::TraceSum, Reduce::Output,
                               Reduce::TrueClass};
  KernelOptions wanted;
  wanted.reduce = reductions[below(outputs > 1 ? 5 : 4)];
  wanted.output = below(outputs);
  wanted.labels = labels;
  wanted.versus_labels = versus_labels;
  wanted.memory = std::size_t{1} << 29;
  wanted.per_parameter = below(3) == 0;
  Rows a = rows_of<T>(layers, net, x.view(), wanted.reduce, labels);
  Rows b = rows_of<T>(layers, net, versus.view(), wanted.reduce, versus_labels);
  // Where one class is all but certain, the reference's 1 - p has no digits left.
  if (std::max(a.largest_output, b.largest_output) > 4) {
    wanted.reduce = Reduce::TraceMean;
    a = rows_of<T>(layers, net, x.view(), wanted.reduce, labels);
    b = rows_of<T>(layers, net, versus.view(), wanted.reduce, versus_labels);
  }
  SCOPED_TRACE(reduce_name(wanted.reduce, wanted.output));
  const bool square = below(2) == 0;
  const Rows& columns = square ? a : b;
  const TensorView<const T> second = versus.view();
  const TensorView<const T>* const other = square ? nullptr : &second;
  const Expected whole = expected(a, columns, wanted.reduce, wanted.output, reference::kNone);
  // An output that is off by d moves a probability by a factor 1 + d (docs/precision.md).
  const double bound = tolerance<T>(net) * (1 + std::max(a.largest_output, columns.largest_output));

  const Plan chosen = plan_for<T>(net, x.view(), other, wanted, 1);
  for (const int force : {0, 1, 2, 3}) {
    wanted.ways.clear();
    if (force != 0) {
      const Way way = force == 1 ? Way::Materialize : force == 2 ? Way::Outer : Way::PositionGram;
      for (const PlannedUse& use : chosen.uses) {
        if (way == Way::Outer && (use.convolution || use.positions > 1)) continue;
        wanted.ways.emplace_back(net.parameters().name(use.weight), way);
      }
    }
    const std::size_t threads = 1 + below(3);
    const Workers workers(threads);
    Plan plan = plan_for<T>(net, x.view(), other, wanted, threads);
    // As planned, and with blocks of any size.
    if (below(3) != 0) {
      plan.packed = below(2) == 0;
      plan.resident = 1 + below(n);
      plan.streamed = 1 + below(5);
      plan.tile = 1 + below(7);
      plan.tape_block = 1 + below(6);
    }
    for (const PlannedUse& use : plan.uses) met.ways.insert(use.way);
    ++(plan.packed ? met.packed : met.rows);
    if (plan.resident < n) ++met.streamed;
    const auto k = planned_kernel<T>(net, x.view(), other, wanted, plan, workers);
    EXPECT_LE(worst(k.values, whole), bound)
        << "way " << force << ", tile " << plan.tile << ", packed " << plan.packed;
    for (std::size_t p = 0; p < k.per_parameter.size(); ++p) {
      EXPECT_LE(worst(k.per_parameter[p], expected(a, columns, wanted.reduce, wanted.output, p)), bound)
          << "way " << force << ", " << k.parameter_names[p];
    }
    // Negative control: an entry that is off by a little more than may be.
    const std::size_t at = below(k.values.size());
    if (!(whole.scales[at] > 0)) continue;
    auto corrupt = k.values.clone();
    corrupt.span()[at] += static_cast<T>(4 * bound * whole.scales[at]);
    EXPECT_FALSE(worst(corrupt, whole) <= bound) << at;
    ++met.controls;
  }

  // The same under the least budget that does, and none under less.
  wanted.ways.clear();
  const Workers two(2);
  wanted.memory = 1;
  try {
    planned_kernel<T>(net, x.view(), other, wanted, plan_for<T>(net, x.view(), other, wanted, 2), two);
    ADD_FAILURE() << "no error";
  } catch (const BudgetError&) {
    ++met.refused;
  }
}

template <class T>
void many_networks(std::size_t count) {
  const std::uint64_t first = first_seed();
  ::testing::Test::RecordProperty("first_seed", std::to_string(first));
  Met met;
  for (std::size_t i = 0; i < count && !::testing::Test::HasFailure(); ++i) one_network<T>(first + i, met);
  EXPECT_EQ(met.ways.size(), 3u);
  EXPECT_GT(met.packed, count / 2);
  EXPECT_GT(met.rows, count / 2);
  EXPECT_GT(met.streamed, count / 2);
  EXPECT_GT(met.controls, 3 * count);
  EXPECT_EQ(met.refused, count);
}

TEST(RandomKernel, EveryWayAndBlockMatchesThePlainReferenceInF64) {
  many_networks<double>(300);
}

TEST(RandomKernel, EveryWayAndBlockMatchesThePlainReferenceInF32) {
  many_networks<float>(300);
}

}  // namespace
}  // namespace gradgram::ntk
