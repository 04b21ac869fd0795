// Where the time of a convolutional network goes: forward, cotangents and per-example weight gradients of a
// block of images, op by op and as a whole. Prints microseconds an image, GFLOP/s counted on dense products,
// and the share of the multiply-add rate probed beside each measurement.
//
//     bench_convolution_network [images a block] [cnn3-64 | cnn3-32 | resnet]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/machine.hpp"
#include "engine/ops.hpp"
#include "engine/ops/conv2d.hpp"
#include "engine/random.hpp"
#include "engine/tape.hpp"

namespace gradgram {
namespace {

/// Processor time of this thread, so that others on the machine disturb less.
double now() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Tensor<float> random_tensor(Shape shape, std::uint64_t seed) {
  Random random(seed);
  Tensor<float> result(shape);
  for (float& value : result.span()) value = static_cast<float>(random.normal());
  return result;
}

/// Forms every convolution's gradient as the kernel builder does, one example after the other, and takes its
/// own time.
class FormingSink final : public Sink<float> {
 public:
  double seconds = 0;
  void use(const DenseUse<float>&, Arena&) override {}
  void use(const ConvUse<float>& use, Arena& scratch) override {
    const std::size_t examples = use.inputs.shape()[0];
    const std::size_t weights = use.geometry.weights();
    const std::size_t row = weights + use.geometry.c_out;
    if (rows_.size() < examples * row) rows_ = Tensor<float>(Shape{examples * row});
    const double start = now();
    {
      const ArenaScope scope(scratch);
      const ops::ConvWeightGradient<float> form(use.geometry, use.weight_scale, use.bias_scale, scratch);
      for (std::size_t i = 0; i < examples; ++i) {
        float* const target = rows_.data() + i * row;
        form(use.inputs.slice(i).data(), use.cotangents.slice(i).data(), false, target,
             use.bias == kNoParameter ? nullptr : target + weights);
      }
    }
    seconds += now() - start;
  }

 private:
  Tensor<float> rows_;
};

/// One op of a network: what it is called and how it is recorded from values computed before.
struct Step {
  std::string name;
  std::vector<std::size_t> inputs;
  std::function<Var(Tape<float>&, const std::vector<Var>&)> record;
  double flop = 0;  ///< of one pass over one image, dense
};

/// A network as a list of ops; value 0 is the image.
class NetworkSteps {
 public:
  explicit NetworkSteps(std::size_t side, std::size_t channels) { shapes_.push_back({side, side, channels}); }
  enum class Tail { None, Relu, ReluMaxPool };
  std::size_t conv(std::size_t x, std::size_t channels, std::size_t kernel, Tail tail,
                   std::size_t stride = 1) {
    const Shape in = shapes_[x];
    const ConvGeometry g = conv_geometry(in[0], in[1], in[2], channels, kernel, kernel, stride, stride, {});
    const ConvGeometry pool = conv_geometry(g.out_h, g.out_w, channels, channels, 2, 2, 2, 2, {});
    const std::size_t weight = parameters_.count();
    parameters_.add(std::to_string(weight),
                    random_tensor(Shape{g.kernel_h, g.kernel_w, g.c_in, g.c_out}, weight));
    parameters_.add(std::to_string(weight + 1), random_tensor(Shape{g.c_out}, weight + 1));
    const auto scale = static_cast<float>(std::sqrt(2.0 / static_cast<double>(g.patch())));
    char name[80];
    std::snprintf(name, sizeof name, "conv%zux%zu/%zu %3zu->%3zu on %zux%zu%s", kernel, kernel, stride,
                  g.c_in, g.c_out, g.in_h, g.in_w,
                  tail == Tail::None   ? ""
                  : tail == Tail::Relu ? " relu"
                                       : " relu maxpool");
    const Shape out = tail == Tail::ReluMaxPool ? Shape{pool.out_h, pool.out_w, channels}
                                                : Shape{g.out_h, g.out_w, channels};
    return add(name, {x}, out, 2.0 * static_cast<double>(g.out_pixels()) * static_cast<double>(g.weights()),
               [=, this](Tape<float>& tape, const std::vector<Var>& in_vars) {
                 const ops::Affine<float> affine{parameters_, weight, weight + 1, scale, 0.1F};
                 if (tail == Tail::None) return ops::conv2d(tape, in_vars[0], g, affine);
                 return ops::conv2d_relu(tape, in_vars[0], g, affine, tail == Tail::Relu ? nullptr : &pool);
               });
  }
  std::size_t relu(std::size_t x) {
    return add("relu", {x}, shapes_[x], 0, [](Tape<float>& tape, const std::vector<Var>& in) {
      return ops::activation(tape, in[0], simd::Activation::Relu);
    });
  }
  std::size_t sum(std::size_t a, std::size_t b) {
    return add("add", {a, b}, shapes_[a], 0,
               [](Tape<float>& tape, const std::vector<Var>& in) { return ops::add(tape, in[0], in[1]); });
  }
  void head(std::size_t x, std::size_t outputs) {
    const Shape in = shapes_[x];
    x = add("gap", {x}, {in[2]}, 0, [](Tape<float>& tape, const std::vector<Var>& in_vars) {
      return ops::global_average_pool(tape, in_vars[0]);
    });
    const std::size_t weight = parameters_.count();
    parameters_.add(std::to_string(weight), random_tensor(Shape{outputs, in[2]}, weight));
    add("dense", {x}, {outputs}, 0, [=, this](Tape<float>& tape, const std::vector<Var>& in_vars) {
      return ops::dense(tape, in_vars[0], ops::Affine<float>{parameters_, weight, kNoParameter, 1, 1});
    });
  }
  const std::vector<Step>& steps() const { return steps_; }
  const Shape& input() const { return shapes_[0]; }

 private:
  std::size_t add(std::string name, std::vector<std::size_t> inputs, Shape shape, double flop,
                  std::function<Var(Tape<float>&, const std::vector<Var>&)> record) {
    steps_.push_back({std::move(name), std::move(inputs), std::move(record), flop});
    shapes_.push_back(shape);
    return shapes_.size() - 1;
  }
  ParameterSet<float> parameters_;
  std::vector<Step> steps_;
  std::vector<Shape> shapes_;
};

/// Seconds of one image's three passes.
struct Times {
  double forward = 0, cotangent = 0, forming = 0;
  double fma = 0;  ///< FLOP/s beside them
};

/// The best of several runs of run(): each field by itself.
Times best(std::size_t images, const std::function<Times()>& run) {
  constexpr int kRuns = 9;
  Times result;
  result.forward = result.cotangent = result.forming = INFINITY;
  for (int i = 0; i < kRuns; ++i) {
    const Times times = run();
    result.forward = std::min(result.forward, times.forward / static_cast<double>(images));
    result.cotangent = std::min(result.cotangent, times.cotangent / static_cast<double>(images));
    result.forming = std::min(result.forming, times.forming / static_cast<double>(images));
    result.fma = std::max(result.fma, probe_fma_rate<float>());
  }
  return result;
}

void print(const std::string& name, std::size_t count, const Times& times, double forward_flop,
           double cotangent_flop) {
  std::printf("%-44s x%-2zu", name.c_str(), count);
  const auto column = [&](double seconds, double flop) {
    std::printf(" %9.1f", 1e6 * seconds);
    if (flop > 0) {
      std::printf(" %7.1f %5.2f", flop / seconds * 1e-9, flop / seconds / times.fma);
    } else {
      std::printf("               ");
    }
  };
  column(times.forward, forward_flop);
  column(times.cotangent, cotangent_flop);
  column(times.forming, forward_flop);
  std::printf("\n");
}

void profile(const std::string& title, const NetworkSteps& network, std::size_t images) {
  const std::vector<Step>& steps = network.steps();
  const Tensor<float> x = random_tensor(network.input().with_outer(images), 99);
  std::printf("%s, blocks of %zu images; microseconds an image, GFLOP/s of dense products, share of FMA\n",
              title.c_str(), images);
  std::printf("%-47s %24s %24s %24s\n", "", "forward", "cotangents", "forming gradients");

  // Every op on a tape of its own, fed with the values and cotangents of the whole network.
  std::vector<Tensor<float>> values;
  values.push_back(x.clone());
  std::vector<std::unique_ptr<Arena>> arenas;
  for (const Step& step : steps) {
    Arena arena;
    Tape<float> tape(arena);
    std::vector<Var> in;
    for (const std::size_t input : step.inputs) in.push_back(tape.input(std::as_const(values[input]).view()));
    const auto y = tape.value(step.record(tape, in));
    values.emplace_back(y.shape());
    std::copy(y.span().begin(), y.span().end(), values.back().data());
  }
  std::vector<Tensor<float>> cotangents;
  for (const Tensor<float>& value : values) cotangents.emplace_back(value.shape());
  for (float& value : cotangents.back().span()) value = 1;
  std::vector<Times> times(steps.size());
  for (std::size_t s = steps.size(); s-- > 0;) {
    const Step& step = steps[s];
    Arena arena;
    FormingSink sink;
    const auto record = [&](Tape<float>& tape, std::vector<Var>& in) {
      for (const std::size_t input : step.inputs) {
        in.push_back(tape.input(std::as_const(values[input]).view(), input != 0));
      }
      return step.record(tape, in);
    };
    times[s] = best(images, [&] {
      Times one;
      Tape<float> tape(arena);
      std::vector<Var> in;
      double start = now();
      const Var y = record(tape, in);
      one.forward = now() - start;
      sink.seconds = 0;
      start = now();
      tape.reverse(y, std::as_const(cotangents[s + 1]).view(), sink);
      one.forming = sink.seconds;
      one.cotangent = now() - start - sink.seconds;
      // Without the copy of the seed.
      Tape<float> other(arena);
      const Var same = other.input(std::as_const(cotangents[s + 1]).view(), true);
      start = now();
      other.reverse(same, std::as_const(cotangents[s + 1]).view(), sink);
      one.cotangent = std::max(0.0, one.cotangent - (now() - start));
      return one;
    });
    Tape<float> tape(arena);
    std::vector<Var> in;
    const Var y = record(tape, in);
    tape.reverse(y, std::as_const(cotangents[s + 1]).view(), sink);
    for (std::size_t i = 0; i < in.size(); ++i) {
      if (step.inputs[i] == 0) continue;
      const auto found = tape.cotangent(in[i]);
      for (std::size_t at = 0; at < found.size(); ++at)
        cotangents[step.inputs[i]].data()[at] += found.data()[at];
    }
  }
  std::map<std::string, std::size_t> seen;
  std::vector<std::size_t> order;
  std::vector<std::size_t> count(steps.size(), 0);
  std::vector<Times> total(steps.size());
  double forward_flop = 0;
  double cotangent_flop = 0;
  for (std::size_t s = 0; s < steps.size(); ++s) {
    const auto [entry, fresh] = seen.try_emplace(steps[s].name, s);
    if (fresh) order.push_back(s);
    const std::size_t at = entry->second;
    ++count[at];
    total[at].forward += times[s].forward;
    total[at].cotangent += times[s].cotangent;
    total[at].forming += times[s].forming;
    total[at].fma = std::max(total[at].fma, times[s].fma);
    forward_flop += steps[s].flop;
    if (steps[s].inputs[0] != 0) cotangent_flop += steps[s].flop;
  }
  for (const std::size_t s : order) {
    const double flop = steps[s].flop * static_cast<double>(count[s]);
    print(steps[s].name, count[s], total[s], flop, steps[s].inputs[0] == 0 ? 0 : flop);
  }

  Arena arena;
  FormingSink sink;
  const Times whole = best(images, [&] {
    Times one;
    double start = now();
    Tape<float> tape(arena);
    std::vector<Var> vars{tape.input(x.view())};
    for (const Step& step : steps) {
      std::vector<Var> in;
      for (const std::size_t input : step.inputs) in.push_back(vars[input]);
      vars.push_back(step.record(tape, in));
    }
    one.forward = now() - start;
    sink.seconds = 0;
    start = now();
    tape.reverse(vars.back(), std::as_const(cotangents.back()).view(), sink);
    one.forming = sink.seconds;
    one.cotangent = now() - start - sink.seconds;
    return one;
  });
  print("whole network", 1, whole, forward_flop, cotangent_flop);
  const double seconds = whole.forward + whole.cotangent + whole.forming;
  const double flop = 2 * forward_flop + cotangent_flop;
  std::printf("%-47s %9.1f %7.1f %5.2f   (FMA %.0f GFLOP/s)\n\n", "all three passes", 1e6 * seconds,
              flop / seconds * 1e-9, flop / seconds / whole.fma, whole.fma * 1e-9);
  std::fflush(stdout);
}

using Tail = NetworkSteps::Tail;

NetworkSteps cnn3(std::size_t channels) {
  NetworkSteps network(32, 3);
  std::size_t x = 0;
  for (int i = 0; i < 2; ++i) x = network.conv(x, channels, 3, Tail::ReluMaxPool);
  network.head(network.conv(x, channels, 3, Tail::Relu), 1);
  return network;
}

NetworkSteps resnet() {
  NetworkSteps network(32, 3);
  std::size_t x = network.conv(0, 64, 3, Tail::Relu);
  std::size_t last = 64;
  for (const std::size_t channels : {64, 128, 256, 512}) {
    for (int block = 0; block < 2; ++block) {
      const std::size_t stride = channels != last ? 2 : 1;
      const std::size_t body =
          network.conv(network.conv(x, channels, 3, Tail::Relu, stride), channels, 3, Tail::None);
      x = network.relu(network.sum(body, stride == 2 ? network.conv(x, channels, 1, Tail::None, 2) : x));
      last = channels;
    }
  }
  network.head(x, 10);
  return network;
}

}  // namespace
}  // namespace gradgram

int main(int argc, char** argv) {
  using namespace gradgram;
  const std::size_t images = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 8;
  const std::string only = argc > 2 ? argv[2] : "";
  if (images == 0) {
    std::fprintf(stderr, "usage: bench_convolution_network [images a block] [cnn3-64 | cnn3-32 | resnet]\n");
    return 2;
  }
  for (const std::size_t channels : {64, 32}) {
    const std::string name = "cnn3-" + std::to_string(channels);
    if (only.empty() || only == name) profile(name, cnn3(channels), images);
  }
  if (only.empty() || only == "resnet") profile("resnet", resnet(), images);
  return 0;
}
