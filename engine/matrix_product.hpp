#pragma once

#include <cstddef>

#include "engine/arena.hpp"

namespace gradgram {

/// c [rows, columns] (+)= scale * a [rows, depth] op(b), row-major, ld* the row strides: op(b) = b^T with b
/// [columns, depth] when `transposed`, otherwise b [depth, columns]. The product of a dense layer: both sides
/// are packed for the Gram kernels' tiles, b once for every 512 rows (256 in f64); products in T, panels of
/// at most kGramDepth at a time. Where Gram products in tiles are much faster (Isa::Amx) sums over all panels
/// are in f64, and it takes up to 4 MiB of `arena`, for its own time. A row of c has the same bits whatever
/// number of rows a call has. Single-threaded; working memory otherwise of about 1 MiB, part of what plans
/// count for BLAS (ntk::kBlasBytes). Sizes of zero are allowed. Throws std::bad_alloc.
template <class T>
void multiply(bool transposed, std::size_t rows, std::size_t columns, std::size_t depth, T scale, const T* a,
              std::size_t lda, const T* b, std::size_t ldb, bool accumulate, T* c, std::size_t ldc,
              Arena& arena);

}  // namespace gradgram
