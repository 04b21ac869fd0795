#include "ntk/matrix_operator.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <limits>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/blas.hpp"
#include "engine/error.hpp"

namespace gradgram::ntk {
namespace {

std::string reason() {
  return std::generic_category().message(errno);
}

}  // namespace

struct MappedNpy::Mapping {
  void* address = MAP_FAILED;
  std::size_t bytes = 0;
  NpyLayout layout;
  Shape shape;

  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (address != MAP_FAILED) munmap(address, bytes);
  }
  template <class T>
  TensorView<const T> view() const {
    return {reinterpret_cast<const T*>(static_cast<const std::byte*>(address) + layout.begin), shape};
  }
};

MappedNpy::MappedNpy(const std::filesystem::path& path) : mapping_(std::make_unique<Mapping>()) {
  mapping_->layout = read_npy_layout(path);
  const NpyLayout& layout = mapping_->layout;
  const std::size_t item = layout.type == NpyType::F4 ? sizeof(float) : sizeof(double);
  if ((layout.type != NpyType::F4 && layout.type != NpyType::F8) || layout.fortran || layout.shape.empty() ||
      layout.begin % item != 0) {
    throw FormatError(
        fmt::format("{}: byte 0: to be mapped, the array must be <f4 or <f8, of rank 1 to 5 and in C "
                    "order, and is {} of rank {}{}",
                    path.string(), to_string(layout.type), layout.shape.size(),
                    layout.fortran ? " in Fortran order" : ""));
  }
  mapping_->shape = Shape(layout.shape);
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw IoError(fmt::format("{}: cannot open: {}", path.string(), reason()));
  struct stat status {};
  const bool known = fstat(file, &status) == 0;
  const std::size_t wanted = layout.begin + checked_multiply(mapping_->shape.size(), item, "mapped array");
  if (!known || static_cast<std::size_t>(status.st_size) < wanted) {
    close(file);
    throw FormatError(fmt::format("{}: byte {}: the file ends, but its header declares {} bytes",
                                  path.string(), known ? static_cast<std::size_t>(status.st_size) : 0,
                                  wanted));
  }
  mapping_->bytes = wanted;
  mapping_->address = mmap(nullptr, wanted, PROT_READ, MAP_SHARED, file, 0);
  const std::string why = reason();
  close(file);
  if (mapping_->address == MAP_FAILED) {
    throw IoError(fmt::format("{}: cannot map {} bytes: {}", path.string(), wanted, why));
  }
}
MappedNpy::~MappedNpy() = default;
MappedNpy::MappedNpy(MappedNpy&&) noexcept = default;
MappedNpy& MappedNpy::operator=(MappedNpy&&) noexcept = default;

NpyType MappedNpy::type() const noexcept {
  return mapping_->layout.type;
}
const Shape& MappedNpy::shape() const noexcept {
  return mapping_->shape;
}
TensorView<const float> MappedNpy::f32() const noexcept {
  return type() == NpyType::F4 ? mapping_->view<float>() : TensorView<const float>();
}
TensorView<const double> MappedNpy::f64() const noexcept {
  return type() == NpyType::F8 ? mapping_->view<double>() : TensorView<const double>();
}

template <class T>
MatrixOperator<T>::MatrixOperator(TensorView<const T> matrix, const Workers& workers, double entry_error)
    : matrix_(matrix), workers_(workers), entry_error_(entry_error) {
  if (matrix.shape().rank() != 2 || matrix.shape()[0] != matrix.shape()[1]) {
    throw ShapeError(fmt::format("matrix operator: matrix {} must be [n, n]", matrix.shape().to_string()));
  }
}

template <class T>
double MatrixOperator<T>::relative_error() const {
  return entry_error_ + std::sqrt(static_cast<double>(size())) * std::numeric_limits<double>::epsilon();
}

template <class T>
void MatrixOperator<T>::apply(TensorView<const double> vectors, TensorView<double> products) {
  const std::size_t n = size();
  if (vectors.shape().rank() != 2 || vectors.shape()[1] != n || !(vectors.shape() == products.shape())) {
    throw ShapeError(
        fmt::format("matrix operator: vectors {} and products {} must both be [m, n] with n = {}",
                    vectors.shape().to_string(), products.shape().to_string(), n));
  }
  const std::size_t m = vectors.shape()[0];
  std::vector<std::vector<double>> scratch(workers_.count());
  workers_.run((n + kProductRows - 1) / kProductRows, [&](std::size_t piece, std::size_t worker) {
    const std::size_t begin = piece * kProductRows;
    const std::size_t rows = std::min(kProductRows, n - begin);
    const double* panel = nullptr;
    if constexpr (std::is_same_v<T, double>) {
      panel = matrix_.data() + begin * n;
    } else {
      scratch[worker].resize(kProductRows * n);
      std::copy_n(matrix_.data() + begin * n, rows * n, scratch[worker].begin());
      panel = scratch[worker].data();
    }
    blas::gemm(blas::Transpose::No, blas::Transpose::Yes, m, rows, n, 1.0, vectors.data(), n, panel, n, 0.0,
               products.data() + begin, n);
  });
  for (std::size_t v = 0; v < m; ++v) {
    for (std::size_t i = 0; i < n; ++i) {
      if (!std::isfinite(products.data()[v * n + i])) {
        throw NumericError(
            fmt::format("matrix operator: the product of row {} is {}; the matrix or the vector "
                        "holds a number that is not finite or too large",
                        i, products.data()[v * n + i]));
      }
    }
  }
}

template class MatrixOperator<float>;
template class MatrixOperator<double>;

}  // namespace gradgram::ntk
