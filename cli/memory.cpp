#include "cli/memory.hpp"

#include <algorithm>
#include <type_traits>
#include <utility>

namespace gradgram::cli {
namespace {

/// Of what the program takes beside its budget, the part that reading may use.
constexpr std::size_t kReadingBytes = std::size_t{128} << 20;

}  // namespace

template <class T>
std::size_t input_bytes(const datasets::Dataset& data) {
  return checked_multiply(data.inputs.size(), sizeof(T), "--data: bytes");
}

template <class T>
void count_reading(MemoryAccount& account, const std::vector<const datasets::Dataset*>& sets) {
  // All are there in f64; then each gives them back when it is converted.
  std::size_t wide = 0;
  for (const datasets::Dataset* data : sets) wide += input_bytes<double>(*data);
  std::size_t most = wide;
  std::size_t narrow = 0;
  for (const datasets::Dataset* data : sets) {
    if (std::is_same_v<T, double>) break;
    narrow += input_bytes<T>(*data);
    most = std::max(most, wide + narrow);
    wide -= input_bytes<double>(*data);
  }
  account.phase("the data while they are read", most - std::min(most, kReadingBytes));
}

template <class T>
Tensor<T> take_inputs(datasets::Dataset& data) {
  if constexpr (std::is_same_v<T, double>) {
    return std::exchange(data.inputs, Tensor<double>());
  } else {
    Tensor<T> inputs = data.inputs_as<T>();
    data.inputs = Tensor<double>();
    return inputs;
  }
}

#define GRADGRAM_INSTANTIATE(T)                                                                 \
  template std::size_t input_bytes<T>(const datasets::Dataset&);                                \
  template void count_reading<T>(MemoryAccount&, const std::vector<const datasets::Dataset*>&); \
  template Tensor<T> take_inputs(datasets::Dataset&);
GRADGRAM_INSTANTIATE(float)
GRADGRAM_INSTANTIATE(double)
#undef GRADGRAM_INSTANTIATE

}  // namespace gradgram::cli
