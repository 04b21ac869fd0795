#pragma once

#include <cstdint>

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

/// What _tile_loadconfig() reads: all eight of AMX's tile registers with 16 rows of 64 bytes.
struct alignas(64) TileConfiguration {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64);

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
