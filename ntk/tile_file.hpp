#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.hpp"
#include "engine/parallel.hpp"
#include "engine/shape.hpp"
#include "engine/tensor.hpp"
#include "ntk/tile_store.hpp"
#include "ntk/time_left.hpp"

/// A matrix as an .npy file that is written tile by tile and survives being stopped, whatever makes the tiles
/// (docs/large-kernels.md).
namespace gradgram::ntk {

/// Names and values.
using Facts = std::vector<std::pair<std::string, std::string>>;

/// The work was stopped from outside; the same call goes on from there. The text says how far it is.
class StoppedResumable : public Cancelled {
 public:
  using Cancelled::Cancelled;
};

struct KernelFile {
  Shape shape;
  std::size_t tiles = 0;           ///< of the whole kernel (lower triangle, when symmetric)
  std::size_t found = 0;           ///< of these, finished by an earlier call and still intact
  std::size_t damaged = 0;         ///< finished by an earlier call, but not intact: computed again
  std::size_t block_examples = 0;  ///< examples whose gradients were held at once
  std::size_t planned_bytes =
      0;  ///< what the plan takes, inputs and weights included; the result is not in it
};

/// Where a kernel goes, and what made it beyond what the call itself sees.
struct KernelDestination {
  std::filesystem::path path;  ///< .npy; beside it path.partial and path.journal while it is not finished
  /// Names and values that must be the same for an unfinished file to be continued, such as the model's text.
  /// Parameters, inputs, labels, reduction, precision, instruction set and version are compared anyway.
  Facts provenance;
  /// Only what is on and below the diagonal, row by row: [n (n + 1) / 2], entry (i, j) at i (i + 1) / 2 + j
  /// (ntk/packed.hpp). For symmetric kernels.
  bool packed = false;
  bool restart = false;      ///< begin anew even when an unfinished file is there
  WorkProgress work;         ///< of kernel_to_file: what is done, by kind of work
  Progress verify_progress;  ///< while the finished tiles of an unfinished file are read again
  /// Called once everything is on the disk, before the file gets its name: for what must not describe another
  /// file, not even for a moment. When it throws, the file stays unfinished.
  std::function<void(const KernelFile&)> before_naming = {};
};

/// A matrix of examples against examples, cut into squares of `tile` examples a side.
struct TileGrid {
  std::size_t rows = 0, columns = 0;
  bool symmetric = true;
  std::size_t outputs = 0;  ///< the matrix holds blocks of outputs x outputs; 0: numbers
  std::size_t tile = 1;

  std::size_t group() const { return outputs == 0 ? 1 : outputs; }
  /// [rows, columns], with blocks [rows, columns, outputs, outputs]; packed, the first two are one.
  Shape shape(bool packed) const;
};

/// What makes tiles: a kernel to be, given its inputs.
class TileSource {
 public:
  virtual ~TileSource() = default;
  virtual TileGrid grid() const = 0;
  /// Everything that makes the bits, in words: an unfinished file is continued when all of it is the same.
  virtual Facts facts() const = 0;
  /// Takes over what an unfinished file was begun with where the choice is free but makes bits; called before
  /// facts(). Without facts: back to its own choices.
  virtual void adopt(const Facts& /*begun_with*/) {}
  /// The side of the tiles of an unfinished file, which it keeps. Throws BudgetError when the budget does not
  /// hold such tiles.
  virtual void follow(std::size_t tile) = 0;
  /// Puts every tile that the store does not have, in an order of its own and by several workers at once if
  /// it likes (numbered below the `workers` of tiles_to_file); of a symmetric matrix the tiles on and below
  /// the diagonal. The bits of an entry must not depend on tiles or order.
  virtual void produce(TileStore& store) = 0;
  virtual std::size_t block_examples() const { return 0; }
  virtual std::size_t planned_bytes() const { return 0; }
};

/// Library, precision and kernels of this process: the part of facts() that all sources share.
template <class T>
Facts facts_of_process();
/// CRC-32, which tells different bytes apart.
std::uint32_t crc32_of(const void* data, std::size_t bytes, std::uint32_t before = 0);
std::string hexadecimal(std::uint32_t value);
template <class T>
std::string fingerprint(TensorView<const T> values);  ///< shape and checksum

/// The unfinished file beside `path` that tiles_to_file() would go on with; empty when there is none.
std::filesystem::path unfinished_beside(const std::filesystem::path& path);
/// Removes it, with its journal. Throws IoError when it cannot be, or when another process is writing it.
void discard_unfinished(const std::filesystem::path& path);

/// Writes the matrix of `source` in T. Whatever ends the call early leaves path.partial and path.journal once
/// a tile is finished, and the same call goes on from there; the result has the same bits. `path` itself
/// appears when everything is there. Stopped while the tiles of an earlier call are read again it loses
/// nothing of them. Memory: one tile in T for each worker. Throws what the source throws,
/// StoppedResumable in the place of Cancelled once a tile is finished (by this or an earlier call),
/// ArgumentError when the unfinished file was begun with something else (naming each difference and both
/// values) or packed is asked for what is not symmetric, IoError: the disk is full, another process writes
/// the same file.
template <class T>
KernelFile tiles_to_file(TileSource& source, const KernelDestination& destination, const Workers& workers,
                         const std::stop_token& stop);

}  // namespace gradgram::ntk
