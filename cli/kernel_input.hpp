#pragma once

#include <string>

#include "engine/tensor.hpp"

/// Kernels that a verb reads.
namespace gradgram::cli {

struct KernelInput {
  Tensor<double> values;  ///< [n, n]
  bool packed = false;    ///< as it is stored
  double entry_error = 0;
  std::string entry_error_origin;  ///< what says so
  std::string approximate;         ///< how, when the kernel is an estimate; else empty
};

/// The symmetric kernel of an .npy file of shape [n, n] or [n, n, 1, 1]; or packed, [n (n + 1) / 2] or
/// [n (n + 1) / 2, 1, 1], when the .json beside it says so. Throws IoError, FormatError, ShapeError.
KernelInput read_kernel(const std::string& path);

}  // namespace gradgram::cli
