#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.hpp"
#include "ntk/kernel.hpp"

/// A kernel as an .npy file that is written tile by tile and survives being stopped (docs/large-kernels.md).
namespace gradgram::ntk {

/// The work was stopped from outside; the same call goes on from there. The text says how far it is.
class StoppedResumable : public Cancelled {
 public:
  using Cancelled::Cancelled;
};

/// Where a kernel goes, and what made it beyond what the call itself sees.
struct KernelDestination {
  std::filesystem::path path;  ///< .npy; beside it path.partial and path.journal while it is not finished
  /// Names and values that must be the same for an unfinished file to be continued, such as the model's text.
  /// Parameters, inputs, labels, reduction, precision, instruction set and version are compared anyway.
  std::vector<std::pair<std::string, std::string>> provenance;
  bool restart = false;      ///< begin anew even when an unfinished file is there
  Progress verify_progress;  ///< while the finished tiles of an unfinished file are read again
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

/// kernel(module, x) as the .npy file that write_npy() would make of it, bit for bit, without holding it in
/// memory: tiles are written as they are finished and noted with their checksums in a journal. Whatever ends
/// the call early (an exception, a full disk, a stop request, the process's death) leaves path.partial and
/// path.journal once a tile is finished, and the same call goes on from there, with any number of workers and
/// any budget that holds a tile; `path` itself appears when everything is there, and what was there before
/// stays until then. Tiles that were damaged since are computed again. options.per_parameter must be off.
/// Throws what kernel() throws, StoppedResumable in the place of Cancelled once a tile is finished,
/// ArgumentError when the unfinished file was begun with something else (naming each difference and both
/// values), IoError: when the disk is full, or another process writes the same file.
template <class T>
KernelFile kernel_to_file(const Module<T>& module, TensorView<const T> x, const KernelOptions& options,
                          const KernelDestination& destination, const Workers& workers);
/// The rectangular block K(x, x').
template <class T>
KernelFile kernel_to_file(const Module<T>& module, TensorView<const T> x, TensorView<const T> versus,
                          const KernelOptions& options, const KernelDestination& destination,
                          const Workers& workers);

}  // namespace gradgram::ntk
