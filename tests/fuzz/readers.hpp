#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "datasets/formats.hpp"
#include "engine/error.hpp"
#include "engine/npy.hpp"

/// One function per file format: reads the bytes, then uses what came out, as open() would. Broken bytes must
/// end in an exception of ours, whatever they hold; the fuzzers and the tests over the corpus call these.
namespace gradgram::fuzz {

/// Runs `read` and tells whether it took the bytes.
template <class Read>
bool accepted(const Read& read) {
  try {
    read();
    return true;
  } catch (const Error& error) {
    // Every refusal says which input it is about.
    if (std::string(error.what()).find("fuzzed") == std::string::npos) __builtin_trap();
    return false;
  }
}

inline void use(const datasets::Examples& examples) {
  // Standardizing may overflow, which is an error of its own kind and names the feature, not the file.
  const datasets::Dataset data = datasets::prepare(examples, {.limit = 3}, "fuzzed");
  if (data.size() == 0) __builtin_trap();
  for (const double value : data.inputs.span()) {
    if (!(value - value == 0)) __builtin_trap();
  }
}

inline bool idx(std::span<const std::byte> bytes) {
  return accepted([&] {
    NpyArray array = datasets::parse_idx(bytes, "fuzzed");
    if (array.shape.size() == 1) {
      NpyArray images{NpyType::U1, {array.size(), 1, 1}, std::vector<std::byte>(array.size())};
      use(datasets::idx_examples(std::move(images), array, {}, "fuzzed images", "fuzzed"));
    } else {
      use(datasets::array_examples(std::move(array), std::nullopt, "fuzzed"));
    }
  });
}

inline bool cifar10(std::span<const std::byte> bytes) {
  return accepted([&] { use(datasets::parse_cifar10(bytes, "fuzzed")); });
}

inline bool csv(std::span<const std::byte> bytes) {
  return accepted([&] { use(datasets::parse_csv(bytes, "fuzzed")); });
}

inline bool npy(std::span<const std::byte> bytes) {
  return accepted([&] {
    NpyArray array = parse_npy(bytes, "fuzzed");
    if (array.to_tensor<float>().size() != array.size()) __builtin_trap();
    use(datasets::array_examples(std::move(array), std::nullopt, "fuzzed"));
  });
}

inline bool npz(std::span<const std::byte> bytes) {
  return accepted([&] { use(datasets::npz_examples(parse_npz(bytes, "fuzzed"), "fuzzed")); });
}

}  // namespace gradgram::fuzz
