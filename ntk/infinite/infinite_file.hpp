#pragma once

#include "ntk/infinite/infinite.hpp"
#include "ntk/tile_file.hpp"

/// The kernel of infinite width as an .npy file that is written tile by tile and survives being stopped
/// (docs/large-kernels.md).
namespace gradgram::ntk {

/// infinite_kernel(...) as the .npy file that write_npy() would make of it, bit for bit, without holding it
/// in memory; one of nngp and ntk must be asked for. Goes on after a stop like kernel_to_file; compared are
/// the library's version, instruction set and precision, the model's text, the variances, shape and checksum
/// of the inputs, which kernel it is, the storage and `destination.provenance`. `what.memory` bounds what is
/// held: what belongs to examples, and some tiles. Progress counts entries. Throws what infinite_kernel and
/// tiles_to_file throw.
template <class T>
KernelFile infinite_kernel_to_file(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, const InfiniteOptions& what,
                                   const KernelDestination& destination, const Workers& workers);
/// The least `what.memory` that it does with, as long as no unfinished file gives it larger tiles: of `rows`
/// examples and `columns` others or, for 0, with themselves.
template <class T>
std::size_t infinite_file_bytes(const models::Model& model, const models::NetworkOptions& options,
                                std::size_t rows, std::size_t columns, const InfiniteOptions& what,
                                std::size_t workers);
/// The rectangular block between x and x'.
template <class T>
KernelFile infinite_kernel_to_file(const models::Model& model, const models::NetworkOptions& options,
                                   TensorView<const T> x, TensorView<const T> versus,
                                   const InfiniteOptions& what, const KernelDestination& destination,
                                   const Workers& workers);

}  // namespace gradgram::ntk
