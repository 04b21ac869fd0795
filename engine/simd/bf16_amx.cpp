#define GRADGRAM_SIMD_NAMESPACE amx_bf16
#include "engine/simd/bf16_pack.hpp"
#include "engine/simd/tile_registers.hpp"

namespace gradgram::simd {
namespace amx_bf16 {
namespace {

constexpr std::size_t kTile = kBf16Group * kBf16Block;
constexpr std::size_t kBytes = 64;

/// Two groups of rows by two of columns. `rows` and `columns` may each be the last group: then it stands for
/// both, and its second result is not stored.
void tile(const std::uint16_t* rows, const std::uint16_t* columns, std::size_t depth, bool second_rows,
          bool second_columns, double* sum, std::size_t stride, bool accumulate) {
  const std::uint16_t* const more_rows = rows + (second_rows ? kBf16Group * depth : 0);
  const std::uint16_t* const more_columns = columns + (second_columns ? kBf16Group * depth : 0);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::size_t block = 0; block < depth / kBf16Block; ++block) {
    _tile_loadd(4, rows + block * kTile, kBytes);
    _tile_loadd(6, columns + block * kTile, kBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, more_columns + block * kTile, kBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, more_rows + block * kTile, kBytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  alignas(64) float part[4][kBf16Group * kBf16Group];
  _tile_stored(0, part[0], kBytes);
  _tile_stored(1, part[1], kBytes);
  _tile_stored(2, part[2], kBytes);
  _tile_stored(3, part[3], kBytes);
  for (std::size_t at = 0; at < 4; ++at) {
    if ((at / 2 == 1 && !second_rows) || (at % 2 == 1 && !second_columns)) continue;
    double* const to = sum + at / 2 * kBf16Group * stride + at % 2 * kBf16Group;
    for (std::size_t r = 0; r < kBf16Group; ++r) {
      add_wide(to + r * stride, _mm512_load_ps(part[at] + r * kBf16Group), accumulate);
    }
  }
}

void product(const Bf16Product& job) noexcept {
  const TileConfiguration configuration;
  _tile_loadconfig(&configuration);
  const std::size_t depth = padded_depth(job.depth);
  constexpr std::size_t kStep = 2 * kBf16Group;
  for (std::size_t column = 0; column < job.column_count; column += kStep) {
    for (std::size_t row = job.lower ? column : 0; row < job.row_count; row += kStep) {
      tile(job.rows + row * depth, job.columns + column * depth, depth, row + kBf16Group < job.row_count,
           column + kBf16Group < job.column_count, job.sum + row * job.sum_stride + column, job.sum_stride,
           job.accumulate);
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace amx_bf16

constinit const Bf16Kernels amx_bf16_kernels = {"amx_bf16", amx_bf16::pack_rows, amx_bf16::pack_columns,
                                                amx_bf16::product};

}  // namespace gradgram::simd
