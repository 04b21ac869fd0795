#pragma once

#include "engine/simd/activations.hpp"
#include "engine/simd/elementwise.hpp"
#include "engine/simd/gather_product.hpp"
#include "engine/simd/gram.hpp"
#include "engine/simd/pooling.hpp"
#include "engine/simd/position.hpp"
#include "engine/simd/sparse_gradient.hpp"
#include "engine/simd/tables.hpp"
#include "engine/simd/winograd.hpp"

namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE {

template <class T>
constexpr KernelTable<T> make_table(const char* isa) {
  return {isa,
          kLanes<T>,
          kPanelVectors * kLanes<T>,
          gather_product<T>,
          sparse_gradient<T>,
          winograd_input<T>,
          winograd_weights<T>,
          winograd_output<T>,
          winograd_cotangent<T>,
          winograd_gradient<T>,
          winograd_products<T>,
          count_nonzero<T>,
          activate<T>,
          activation_chain<T>,
          add<T>,
          axpy<T>,
          dot<T>,
          max_pool<T>,
          max_pool_chain<T>,
          gram_pack<T>,
          gram_pack_rows<T>,
          fence_packing,
          gram_product<T>,
          no_gram_scratch,
          false,
          kGramTileRows,
          kGramSideProducts,
          panel_product<T>,
          position_pack<T>,
          position_product<T>,
          position_sums<T>,
          position_norm<T>,
          fma_peak<T>};
}

}  // namespace gradgram::simd::GRADGRAM_SIMD_NAMESPACE
