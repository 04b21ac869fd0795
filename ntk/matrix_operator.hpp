#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

#include "engine/npy.hpp"
#include "engine/parallel.hpp"
#include "engine/tensor.hpp"
#include "ntk/kernel_operator.hpp"

/// A kernel that exists as a matrix, seen as a map: in memory or in a file that is larger than memory.
namespace gradgram::ntk {

/// An .npy file of `<f4` or `<f8`, rank 1 to 5, C order, mapped read-only: pages come when they are read and
/// are the system's to take back. The file must not change meanwhile.
class MappedNpy {
 public:
  /// Throws IoError, FormatError (path and byte offset; another type, order or rank; a file that is shorter
  /// than its header says).
  explicit MappedNpy(const std::filesystem::path& path);
  ~MappedNpy();
  MappedNpy(MappedNpy&&) noexcept;
  MappedNpy& operator=(MappedNpy&&) noexcept;

  NpyType type() const noexcept;
  const Shape& shape() const noexcept;
  /// The numbers; the one that type() names, the other is empty.
  TensorView<const float> f32() const noexcept;
  TensorView<const double> f64() const noexcept;

 private:
  struct Mapping;
  std::unique_ptr<Mapping> mapping_;
};

/// Rows of a matrix that a worker holds in f64 for its products.
inline constexpr std::size_t kProductRows = 64;

/// Products with a symmetric matrix [n, n] in memory (or mapped), of which every entry is read once per call
/// whatever the number of vectors. Products and sums in f64; row panels of at most 64 rows are converted, so
/// that nothing of size n^2 is held. The same bits for any number of workers.
template <class T>
class MatrixOperator final : public SymmetricOperator {
 public:
  /// The numbers and the workers must outlive the operator. `entry_error`: relative error of the entries, of
  /// which products keep about as much. Throws ShapeError when not square.
  MatrixOperator(TensorView<const T> matrix, const Workers& workers, double entry_error = 0);

  std::size_t size() const override { return matrix_.shape()[0]; }
  /// Throws ShapeError, NumericError naming the first row whose product is not finite.
  void apply(TensorView<const double> vectors, TensorView<double> products) override;
  double relative_error() const override;

 private:
  TensorView<const T> matrix_;
  const Workers& workers_;
  double entry_error_;
};

}  // namespace gradgram::ntk
