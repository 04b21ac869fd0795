// The kernel of a network written by hand, and how it is read. The network is not one that the layer texts
// can say: it uses one weight twice. Its gradient, and so its kernel, sums over both uses by itself.
//
//   g++ -std=c++20 kernel_of_your_own.cpp $(pkg-config --cflags --libs gradgram)

#include <cmath>
#include <cstdio>
#include <exception>

#include "engine/module.hpp"
#include "engine/ops.hpp"
#include "engine/random.hpp"
#include "ntk/kernel.hpp"
#include "ntk/spectrum.hpp"

namespace {

using gradgram::ParameterSet;
using gradgram::Shape;
using gradgram::Tape;
using gradgram::Tensor;
using gradgram::Var;

/// f(x) = v . tanh(W tanh(W x)): two layers that share their weight W [d, d].
class SharedLayers final : public gradgram::Module<double> {
 public:
  SharedLayers(std::size_t features, std::uint64_t seed) : features_(features) {
    gradgram::Random random(seed);
    Tensor<double> shared(Shape{features, features});
    for (double& weight : shared.span()) weight = random.normal() / std::sqrt(static_cast<double>(features));
    Tensor<double> readout(Shape{1, features});
    for (double& weight : readout.span()) weight = random.normal() / std::sqrt(static_cast<double>(features));
    shared_ = parameters_.add("shared", std::move(shared));
    readout_ = parameters_.add("readout", std::move(readout));
  }

  Var forward(Tape<double>& tape, Var x) const override {
    using gradgram::simd::Activation;
    for (int layer = 0; layer < 2; ++layer) {
      x = gradgram::ops::dense<double>(tape, x, {.parameters = parameters_, .weight = shared_});
      x = gradgram::ops::activation<double>(tape, x, Activation::Tanh);
    }
    return gradgram::ops::dense<double>(tape, x, {.parameters = parameters_, .weight = readout_});
  }
  Shape input_shape() const override { return Shape{features_}; }
  std::size_t outputs() const override { return 1; }
  const ParameterSet<double>& parameters() const override { return parameters_; }
  ParameterSet<double>& parameters() override { return parameters_; }

 private:
  std::size_t features_;
  std::size_t shared_ = 0;
  std::size_t readout_ = 0;
  ParameterSet<double> parameters_;
};

}  // namespace

int main() {
  try {
    constexpr std::size_t kExamples = 60;
    constexpr std::size_t kFeatures = 16;
    const SharedLayers network(kFeatures, 7);
    Tensor<double> x(Shape{kExamples, kFeatures});
    gradgram::Random random(1);
    for (double& value : x.span()) value = random.normal();

    const gradgram::Workers workers;
    gradgram::ntk::KernelOptions options;
    options.reduce = gradgram::ntk::Reduce::TraceMean;  // one output: any reduction gives the same numbers
    const auto kernel = gradgram::ntk::kernel<double>(network, x.view(), options, workers);
    const auto spectrum = gradgram::ntk::spectrum(kernel.values.view());
    std::printf("%zu parameters, K is %s\n", network.parameters().size(),
                kernel.values.shape().to_string().c_str());
    std::printf("largest eigenvalue %.4f, smallest %.4g (error bar %.1g), effective rank %.1f\n",
                spectrum.values.front(), spectrum.values.back(), spectrum.error_bar,
                spectrum.effective_rank());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kernel_of_your_own: %s\n", error.what());
    return 1;
  }
}
