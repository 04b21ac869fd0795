#pragma once

#include "engine/random.hpp"
#include "engine/tensor.hpp"
#include "models/network.hpp"

/// What benchmarks run on: the same numbers and weights in each.
namespace gradgram::bench {

inline Tensor<float> normal(Shape shape) {
  Random random(1);
  Tensor<float> values(shape);
  for (float& value : values.span()) value = static_cast<float>(random.normal());
  return values;
}

inline models::Network<float> network(const char* text, Shape input, std::size_t outputs = 1) {
  return models::Network<float>(models::parse(text, input, {.outputs = outputs}), {.seed = 1});
}

}  // namespace gradgram::bench
