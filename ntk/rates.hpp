#pragma once

#include <array>
#include <cstddef>

#include "engine/scratch_file.hpp"

/// How fast one worker does the parts of a kernel's work: what the plan's prices rest on.
namespace gradgram::ntk {

/// Passes of one convolution with `side` x `side` input pixels and a square window, `same` padding.
struct ConvolutionRate {
  std::size_t c_in = 0, c_out = 0, side = 0, kernel = 0, stride = 0;
  double forward = 0;          ///< FLOP/s of the outputs
  double reverse = 0;          ///< FLOP/s of the cotangents of the inputs
  double weight_gradient = 0;  ///< FLOP/s of single examples' gradients, in parts
};

/// In FLOP/s (a multiply-add is two) or bytes/s, one worker, one precision.
struct PrecisionRates {
  double gram = 0;         ///< FLOP/s of products of rows, neither packing nor fetching counted
  double fetch = 0;        ///< bytes/s at which both sides of a tile come to its products, beside them
  double pack = 0;         ///< bytes/s of packing rows for one tile
  double lay = 0;          ///< bytes/s of gradients that are packed among the factors as they are formed
  double entries = 0;      ///< entries/s that a tile's ways are added up with, in f64
  double position = 0;     ///< FLOP/s of the position Gram's products
  double taps = 0;         ///< additions/s of its sums over taps
  double gemm = 0;         ///< FLOP/s of the passes of dense layers
  double bandwidth = 0;    ///< bytes/s that are copied, read and written counted
  double elementwise = 0;  ///< bytes/s of what lies between affine layers: activations, pooling
  std::array<ConvolutionRate, 8> convolutions{};
};

/// The numbers that it starts with are built in: rounded from an AVX-512 core. Only their ratios decide ways,
/// so a kernel's bits do not depend on the machine unless measured rates are asked for.
struct KernelRates {
  PrecisionRates f32;
  PrecisionRates f64;
  double touch = 0;  ///< bytes/s of memory that is written for the first time
  /// bytes/s of one worker's tiles on their way into a file: rounded, checksummed and handed to the system
  /// row by row. Not measured: it is that of the folder's file system (here ext4 with room for all of it in
  /// the system's cache).
  double store = 0.25e9;
  double together = 1;  ///< share of its rate that a worker keeps when all work at once
  /// Of the scratch folder, whatever the number of workers; built in: an ordinary solid-state disk. Not of
  /// measure_kernel_rates(), which knows no folder.
  ScratchRates scratch{0.4e9, 0.5e9};

  KernelRates();
  const PrecisionRates& of(std::size_t element_bytes) const {
    return element_bytes == sizeof(float) ? f32 : f64;
  }
};

/// Measures all of them on small kernels with the active instruction set, within two to three seconds; takes
/// about 150 MB. `threads`: of `together`.
KernelRates measure_kernel_rates(std::size_t threads);

}  // namespace gradgram::ntk
