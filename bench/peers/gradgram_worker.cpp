// gradgram's side of run.py: one case in one process, spoken to in lines, like the peers' worker.py. What is
// timed is the library's call alone; inputs and weights are read before, as they are for the peers.
//
//   peers_gradgram_worker MODEL INPUTS.npy WEIGHTS.npz|- OUTPUTS kernel|diagonal|infinite THREADS
//   standard input: `run N` computes on the first N examples, `save FILE.npy` writes the last result, `quit`
//   ends.

#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <utility>

#include "datasets/dataset.hpp"
#include "engine/npy.hpp"
#include "models/network.hpp"
#include "ntk/infinite/infinite.hpp"
#include "ntk/kernel.hpp"

namespace gradgram {
namespace {

long peak_kilobytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

Tensor<float> first(const Tensor<float>& x, std::size_t n) {
  return Tensor<float>(x.shape().inner().with_outer(n), x.span().first(x.size() / x.shape()[0] * n));
}

int serve(const std::string& text, const std::string& inputs, const std::string& weights, std::size_t outputs,
          const std::string& job, std::size_t threads) {
  const Tensor<float> all = datasets::open(inputs).inputs_as<float>();
  const models::Model model = models::parse(text, all.shape().inner(), {.outputs = outputs});
  models::Network<float> network(model, {});
  if (weights != "-") network.load_weights(weights);
  const Workers workers(threads);
  ntk::KernelOptions options;
  options.reduce = ntk::Reduce::TraceMean;
  Tensor<float> result;
  std::printf("{\"ready\": true, \"peak_kilobytes\": %ld}\n", peak_kilobytes());
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string verb;
    std::string what;
    words >> verb >> what;
    if (verb == "quit") return 0;
    if (verb == "save") {
      write_npy<float>(what, std::as_const(result).view());
      std::printf("{\"saved\": true}\n");
    } else {
      const Tensor<float> x = first(all, std::stoul(what));
      result = Tensor<float>();
      const auto begin = std::chrono::steady_clock::now();
      if (job == "infinite") {
        result = ntk::infinite_kernel<float>(model, {}, x.view(), {}, workers).ntk;
      } else if (job == "diagonal") {
        const Tensor<double> diagonal = ntk::diagonal<float>(network, x.view(), options, workers);
        result = Tensor<float>(diagonal.shape());
        for (std::size_t i = 0; i < result.size(); ++i) {
          result.span()[i] = static_cast<float>(diagonal.span()[i]);
        }
      } else {
        result = ntk::kernel<float>(network, x.view(), options, workers).values;
      }
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      std::printf("{\"seconds\": %.6f, \"peak_kilobytes\": %ld}\n", seconds.count(), peak_kilobytes());
    }
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace gradgram

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr,
                 "usage: %s MODEL INPUTS.npy WEIGHTS.npz|- OUTPUTS kernel|diagonal|infinite THREADS\n",
                 argv[0]);
    return 2;
  }
  try {
    return gradgram::serve(argv[1], argv[2], argv[3], std::stoul(argv[4]), argv[5], std::stoul(argv[6]));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
