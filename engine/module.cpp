#include "engine/module.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "engine/evaluation.hpp"
#include "engine/parallel.hpp"

namespace gradgram {

template <class T>
std::size_t evaluation_block(const Module<T>& module) {
  // Few images at a time, so that their activations stay in the caches; rows enough for a matrix product
  // otherwise.
  return module.input_shape().rank() == 3 ? 4 : 32;
}
template std::size_t evaluation_block(const Module<float>&);
template std::size_t evaluation_block(const Module<double>&);

template <class T>
Tensor<T> evaluate(const Module<T>& module, TensorView<const T> inputs, const Workers& workers) {
  if (inputs.shape().rank() == 0 || inputs.shape().inner() != module.input_shape()) {
    throw ShapeError("evaluate: inputs " + inputs.shape().to_string() + " must be [examples] of " +
                     module.input_shape().to_string());
  }
  const std::size_t n = inputs.shape()[0];
  const std::size_t block_size = evaluation_block(module);
  const std::size_t outputs = module.outputs();
  const std::size_t blocks = (n + block_size - 1) / block_size;
  Tensor<T> result(Shape{n, outputs});
  std::vector<Arena> arenas(workers.count());
  workers.run(blocks, [&](std::size_t block, std::size_t worker) {
    const std::size_t begin = block * block_size;
    const std::size_t end = std::min(n, begin + block_size);
    Tape<T> tape(arenas[worker], false);
    const Var out = module.forward(tape, tape.input(inputs.slice(begin, end)));
    const Shape expected{end - begin, outputs};
    if (tape.shape(out) != expected) {
      throw ShapeError("evaluate: the module's outputs " + tape.shape(out).to_string() + " must be " +
                       expected.to_string());
    }
    std::copy_n(tape.value(out).data(), expected.size(), result.data() + begin * outputs);
  });
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (!std::isfinite(result.data()[i])) {
      throw NumericError("evaluate: output " + std::to_string(i % outputs) + " of example " +
                         std::to_string(i / outputs) + " is " + std::to_string(result.data()[i]));
    }
  }
  return result;
}

template Tensor<float> evaluate(const Module<float>&, TensorView<const float>, const Workers&);
template Tensor<double> evaluate(const Module<double>&, TensorView<const double>, const Workers&);

}  // namespace gradgram
