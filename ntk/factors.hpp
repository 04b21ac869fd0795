#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine/arena.hpp"
#include "engine/simd/kernels.hpp"
#include "engine/sink.hpp"
#include "ntk/plan.hpp"

namespace gradgram::ntk {

/// A matrix whose rows are examples, or (example, seed) pairs when the seeds stay apart: as it is, or packed
/// for products.
template <class T>
struct FactorMatrix {
  T* data = nullptr;
  std::size_t stride = 0;            ///< elements from row to row, of a matrix that is not packed
  std::size_t width = 0;             ///< columns of one seed
  std::size_t rows_per_example = 1;  ///< 1, or the number of seeds
  std::size_t seeds_per_row = 1;     ///< seeds side by side in a row
  std::vector<Panel> panels;         ///< in which it enters products, in order of their columns
  std::size_t packed_rows = 0;       ///< room for that many in every panel; 0: not packed

  /// First row of an example; not of packed ones, nor is at().
  T* row(std::size_t example) const { return data + example * rows_per_example * stride; }
  /// Where seed `seed` of an example stands.
  T* at(std::size_t example, std::size_t seed) const {
    return rows_per_example == 1 ? row(example) + seed * width : row(example) + seed * stride;
  }
  /// A packed panel from a row on that begins a group (kGramPadding).
  T* packed(const Panel& panel, std::size_t row) const {
    return data + packed_rows * panel.begin + row * panel.depth;
  }
  /// Packs columns [column, column + count) of `rows` rows source[i * source_stride]; they become rows first
  /// + i * step. Different rows may be packed by several threads at once, which others see after
  /// fence_packing(). `hint`: number of a panel where to look first; afterwards the last one.
  void pack(const T* source, std::size_t source_stride, std::size_t rows, std::size_t column,
            std::size_t count, std::size_t first, std::size_t step, std::size_t* hint = nullptr) const;
  /// Zeroes the packed rows behind those of `examples` examples to the end of a register: they enter products
  /// that nobody reads, which must not be slow (denormals). What follows in the group enters none.
  void pad(std::size_t examples) const;
  void pad(const Panel& panel, std::size_t examples) const;
  /// Fills rows of packed panels [begin, end), or of examples [begin, end) of a matrix that is not packed and
  /// `count`, from examples [first, first + count) of a matrix of the same columns.
  void copy(const FactorMatrix& from, std::size_t begin, std::size_t end, std::size_t first,
            std::size_t count) const;
};

/// The gradients of a block of examples, as factors: inputs A and output cotangents B of every use that is
/// contracted the outer or the position Gram way, materialized rows for the rest. Memory is taken once for
/// `capacity` examples and refilled. Of a packed plan everything but the factors of position Grams is packed.
template <class T>
class Factors {
 public:
  Factors(const Plan& plan, std::size_t capacity);

  struct Outer {
    FactorMatrix<T>
        inputs;  ///< [examples, positions * d_in] (a convolution: its image): the same for every seed
    FactorMatrix<T> cotangents;  ///< [examples, seeds * positions * d_out], or seeds as rows
  };
  /// By number of the use; empty matrices for materialized uses.
  const Outer& outer(std::size_t use) const { return outer_[use]; }
  /// [examples, seeds of a round * row_width] or [examples * seeds, row_width].
  const FactorMatrix<T>& rows() const { return rows_; }
  /// Arena::commit() of all that is held; when fewer than half of the examples are going to be filled, memory
  /// comes for those alone, as they are.
  void supply(std::size_t filled, const Workers& workers, const std::stop_token& stop) {
    if (2 * filled < capacity_) {
      memory_.scatter();
    } else {
      memory_.commit(workers, stop);
    }
  }
  /// Call when `examples` of them are filled, before products: FactorMatrix::pad() of all.
  void pad(std::size_t examples) const;

  /// All that is held, in pieces of a few hundred KiB to a few MiB in the order of their addresses: what goes
  /// to a file and comes back from it. Factors of the same plan and capacity have the same ones.
  struct Strip {
    const FactorMatrix<T>* matrix = nullptr;
    std::size_t begin = 0, end = 0;  ///< panels of a packed matrix; examples of another
    std::size_t offset = 0;          ///< bytes in the strips before
    std::span<std::byte> bytes;
  };
  std::vector<Strip> strips() const;
  /// Fills examples [0, count) of one of strips() with [first, first + count) of `from`, which has the same
  /// plan and any capacity, padding as pad(count) does.
  void copy(const Strip& strip, const Factors& from, std::size_t first, std::size_t count) const;

 private:
  const FactorMatrix<T>& matrix(std::size_t number) const;
  std::size_t matrices() const { return 2 * outer_.size() + 1; }

  std::size_t capacity_;
  Arena memory_;
  std::vector<Outer> outer_;
  FactorMatrix<T> rows_;
};

/// Materialized rows of one tape block that are going to be packed; without memory when there are none.
/// `arena` keeps Plan::scratch_bytes() for them.
template <class T>
FactorMatrix<T> scratch_rows(const Plan& plan, Arena& arena);

/// Writes what one reverse pass (seed number `seed`) of a tape block reports to examples [first, ...) of
/// `factors`.
template <class T>
class FactorSink final : public Sink<T> {
 public:
  /// `scratch`: of scratch_rows(), the same for all seeds of the tape block.
  FactorSink(const Plan& plan, const Factors<T>& factors, std::size_t first, std::size_t seed,
             const FactorMatrix<T>& scratch);
  void use(const DenseUse<T>& use, Arena& scratch) override;
  void use(const ConvUse<T>& use, Arena& scratch) override;
  /// Call before the reverse pass: zeroes the padding between parameters of the rows of `examples` examples.
  void begin(std::size_t examples) const;
  /// Call after it: packs the rows. Throws Error when the module did not use its parameters as it did when
  /// the plan was made.
  void finish(std::size_t examples) const;

 private:
  void keep(std::size_t number, std::size_t examples, const T* inputs, const T* cotangents);
  const PlannedUse& next(bool convolution, std::size_t weight, std::size_t bias, std::size_t d_out);

  /// Whether the gradients of a use are packed as they are formed.
  bool at_once(const PlannedUse& use) const {
    return plan_.packed && !plan_.request.full && use.way == Way::Materialize && use.alone;
  }
  /// Rows of a few examples: fills whole cache lines of packed ones.
  static constexpr std::size_t kGroup = simd::kGramLine<T>;
  /// Packs parameter columns [first, first + count) of examples [example, example + rows) of the tape block.
  void pack_columns(std::size_t parameter, std::size_t first, std::size_t count, const T* source,
                    std::size_t stride, std::size_t example, std::size_t rows, std::size_t* hint) const;
  /// Zeros behind a parameter.
  void pack_padding(std::size_t parameter, std::size_t example, std::size_t rows) const;
  void pack_dense(const DenseUse<T>& use, Arena& scratch) const;
  void pack_convolution(const ConvUse<T>& use, Arena& scratch) const;

  /// Where the materialized row of an example of this tape block stands.
  T* row(std::size_t example) const { return rows_.at(first_row_ + example, row_seed_); }

  const Plan& plan_;
  const Factors<T>& factors_;
  std::size_t first_;
  std::size_t seed_;
  const FactorMatrix<T>& rows_;  ///< materialized rows: those of `factors`, or scratch
  std::size_t first_row_;        ///< of this tape block in them
  std::size_t row_seed_;         ///< its number in them
  std::size_t ordinal_ = 0;
};

}  // namespace gradgram::ntk
