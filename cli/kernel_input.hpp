#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "engine/npy.hpp"
#include "engine/tensor.hpp"
#include "ntk/matrix_operator.hpp"

/// Kernels that a verb reads.
namespace gradgram::cli {

/// What is known of a kernel in an .npy file, from the .json beside it where there is one.
struct KernelFacts {
  bool packed = false;
  double entry_error = 0;          ///< relative to sqrt(k_ii k_jj)
  std::string entry_error_origin;  ///< what says so
  /// How, when the file holds an estimate and not the kernel itself; else empty.
  std::string estimate;
  /// Of a Monte Carlo estimate: ||standard error||_F / ||K||_F.
  double standard_error = 0;
  /// What reports call the estimate.
  const char* estimate_name() const { return standard_error > 0 ? "estimate" : "approximate"; }
};

/// Throws IoError, FormatError.
KernelFacts read_kernel_facts(const std::string& path, NpyType type);

struct KernelInput {
  Tensor<double> values;  ///< [n, n]
  KernelFacts facts;
};

/// What is known of a kernel before it is read.
struct KernelExtent {
  std::size_t n = 0;
  std::size_t reading_bytes = 0;  ///< memory that reading takes, its result counted
};

/// The symmetric kernel of an .npy file of shape [n, n] or [n, n, 1, 1]; or packed, [n (n + 1) / 2] or
/// [n (n + 1) / 2, 1, 1], when the .json beside it says so. `before` is told of a file that is long enough
/// for its shape before it is read, and may throw. Throws IoError, FormatError, ShapeError.
KernelInput read_kernel(const std::string& path, const std::function<void(const KernelExtent&)>& before);

/// n of a kernel of this shape. Throws ShapeError.
std::size_t kernel_side(const std::string& path, const Shape& shape, bool packed);

/// Such a kernel in its own precision, mapped (so that it may be larger than memory) unless it is packed:
/// then it takes n^2 numbers of memory.
template <class T>
class MappedKernel {
 public:
  /// `file` must outlive the object. Throws ShapeError.
  MappedKernel(const std::string& path, const ntk::MappedNpy& file, bool packed);
  TensorView<const T> view() const { return view_; }

 private:
  Tensor<T> unpacked_;
  TensorView<const T> view_;
};

}  // namespace gradgram::cli
