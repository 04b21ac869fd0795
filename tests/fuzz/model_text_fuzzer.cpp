#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/error.hpp"
#include "models/model.hpp"
#include "models/price.hpp"

// Whatever the bytes: a model whose canonical text reads as the same model, or one of our errors.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace gradgram;
  if (size == 0) return 0;
  const Shape input = data[0] % 2 == 0 ? Shape{28, 28, 3} : Shape{784};
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    const models::Model model = models::parse(text, input);
    if (!(models::parse(model.to_text(), input) == model)) std::abort();
    std::size_t parameters = 0;
    for (const models::LayerPrice& layer : models::price(model)) parameters += layer.parameters;
    if (parameters != model.parameter_count()) std::abort();
  } catch (const Error&) {
  }
  return 0;
}
