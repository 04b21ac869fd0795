// All that `gradgram learnability` finds out, in a few lines: which examples does a network learn first, and
// did its kernel know beforehand?

#include "ntk/learnability.hpp"

#include <cstdio>
#include <exception>

#include "datasets/dataset.hpp"
#include "models/network.hpp"

int main() {
  try {
    const auto data = gradgram::datasets::open("moons:n=200", {.seed = 3});
    gradgram::models::Network<float> network(
        gradgram::models::parse("dense(64) relu dense(64) relu dense(1)", data.example_shape()), {.seed = 7});

    gradgram::ntk::LearnabilityOptions options;
    options.training.optimizer = gradgram::Optimizer::Momentum;
    options.training.learning_rate = 0.02;
    options.training.epochs = 30;
    options.training.batch = 20;
    const gradgram::Workers workers;
    const auto study = gradgram::ntk::learnability(network, data, options, workers);

    std::printf("%s: %.0f %% right after %zu epochs\n", data.source.c_str(), 100 * study.accuracy.back(),
                study.epochs);
    std::printf("%s\n\n", study.verdict.answer.c_str());
    for (const auto& c : study.correlations) {
      std::printf("%+.2f +- %.2f  %s\n", c.with_epoch_learned, c.with_epoch_learned_error, c.score.c_str());
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "learnability: %s\n", error.what());
    return 1;
  }
}
