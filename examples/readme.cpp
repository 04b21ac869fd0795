// The README's example, whole: a test holds that the two are the same.

#include <cstdio>

#include "datasets/dataset.hpp"
#include "models/network.hpp"
#include "ntk/kernel.hpp"
#include "ntk/spectrum.hpp"

using namespace gradgram;

int main() {
  const auto data = datasets::open("fashion-mnist", {.classes = {0, 6}, .limit = 500});
  const models::Network<double> network(models::parse("cnn3:channels=32", data.example_shape()), {.seed = 7});
  const Workers workers;  // all processors; every result has the same bits for any number of threads
  ntk::KernelOptions options;
  options.reduce = ntk::Reduce::TraceMean;
  options.memory = std::size_t{2} << 30;  // a budget that is kept
  const auto kernel = ntk::kernel<double>(network, data.inputs_as<double>(), options, workers);
  const auto spectrum = ntk::spectrum(kernel.values.view());

  std::printf("%s: largest eigenvalue %.1f, effective rank %.2f\n", data.source.c_str(),
              spectrum.values.front(), spectrum.effective_rank());
}
