#pragma once

#include "ntk/kernel.hpp"
#include "ntk/tile_file.hpp"

/// The kernel of a network as an .npy file that is written tile by tile and survives being stopped
/// (docs/large-kernels.md).
namespace gradgram::ntk {

/// kernel(module, x) as the .npy file that write_npy() would make of it, bit for bit, without holding it in
/// memory (packed: its lower triangle): tiles are written as they are finished and noted with their checksums
/// in a journal. Whatever ends the call early (an exception, a full disk, a stop request, the process's
/// death) leaves path.partial and path.journal once a tile is finished, and the same call goes on from there,
/// with any number of workers and any budget that holds a tile; `path` itself appears when everything is
/// there, and what was there before stays until then. Tiles that were damaged since are computed again.
/// options.per_parameter must be off. Throws what kernel() throws, StoppedResumable in the place of Cancelled
/// once a tile is finished, ArgumentError when the unfinished file was begun with something else (naming each
/// difference and both values), IoError: when the disk is full, or another process writes the same file.
template <class T>
KernelFile kernel_to_file(const Module<T>& module, TensorView<const T> x, const KernelOptions& options,
                          const KernelDestination& destination, const Workers& workers);
/// The rectangular block K(x, x').
template <class T>
KernelFile kernel_to_file(const Module<T>& module, TensorView<const T> x, TensorView<const T> versus,
                          const KernelOptions& options, const KernelDestination& destination,
                          const Workers& workers);

}  // namespace gradgram::ntk
