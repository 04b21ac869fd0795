#include <cstdint>

#include "tests/fuzz/readers.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  gradgram::fuzz::npz(std::as_bytes(std::span(data, size)));
  return 0;
}
