#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/file.hpp"
#include "engine/tensor.hpp"

/// NumPy's .npy and .npz files. Reads f4, f8, u1, i4, i8, little-endian, C and Fortran order, up to rank 5;
/// writes C order. Every size is checked against the bytes that are there before anything is allocated.
namespace gradgram {

enum class NpyType { F4, F8, U1, I4, I8 };

/// An array as it was stored (made C-contiguous).
struct NpyArray {
  NpyType type = NpyType::F8;
  std::vector<std::size_t> shape;
  std::vector<std::byte> bytes;  ///< row-major, native endian

  /// Number of elements.
  std::size_t size() const;
  /// Number `index` in row-major order; i8 beyond 2^53 rounds. Throws ShapeError when out of range.
  double at(std::size_t index) const;
  /// Converted numbers in a tensor of the same shape, rounded to nearest. Throws ShapeError above rank
  /// Shape::kMaxRank.
  template <class T>
  Tensor<T> to_tensor() const;
  /// Converted to int32; throws FormatError when an entry is not an integer or does not fit.
  std::vector<std::int32_t> to_labels() const;
};

/// `<f4`, `|u1`: the type as the file spells it.
std::string to_string(NpyType type);

/// Throws IoError, FormatError (path and byte offset). `name` stands for the path in messages of the second
/// form.
NpyArray read_npy(const std::filesystem::path& path);
NpyArray parse_npy(std::span<const std::byte> bytes, const std::string& name);
/// All arrays of an .npz by name, without the .npy suffix. Entries may be stored or deflated; the memory
/// taken is bounded by what really unpacks from the file. Throws IoError, FormatError (path, entry and byte
/// offset inside it).
std::map<std::string, NpyArray> read_npz(const std::filesystem::path& path);
std::map<std::string, NpyArray> parse_npz(std::span<const std::byte> bytes, const std::string& name);

/// What the header of an .npy file says; the elements are not looked at.
struct NpyLayout {
  NpyType type = NpyType::F8;
  bool fortran = false;
  std::vector<std::size_t> shape;
  std::size_t begin = 0;  ///< offset of the first element
};
/// For readers that map a file or read it piece by piece. Throws IoError, FormatError.
NpyLayout read_npy_layout(const std::filesystem::path& path);

/// What stands in front of the row-major elements of an .npy file of this type and shape (up to rank 5); a
/// multiple of 64 bytes. For writers that fill a file piece by piece.
std::string npy_header(NpyType type, std::span<const std::size_t> shape);

/// Whole or not at all: written under a temporary name beside, then renamed. Throws IoError. T is float or
/// double.
template <class T>
void write_npy(const std::filesystem::path& path, TensorView<const T> values);
void write_npy(const std::filesystem::path& path, std::span<const std::int32_t> values);
template <class T>
requires(!std::is_const_v<T>) void write_npy(const std::filesystem::path& path, TensorView<T> values) {
  write_npy<T>(path, TensorView<const T>(values));
}
template <class T>
void write_npy(const std::filesystem::path& path, const Tensor<T>& values) {
  write_npy<T>(path, values.view());
}

/// The same without its name yet: an array that others are to appear with.
template <class T>
StagedFile stage_npy(const std::filesystem::path& path, TensorView<const T> values);

template <class T>
struct NamedTensor {
  std::string name;
  TensorView<const T> values;
};
/// Uncompressed, in the order given; the same arrays give the same bytes. Whole or not at all. The archive is
/// built in memory first. Throws IoError, ArgumentError for an empty or repeated name.
template <class T>
void write_npz(const std::filesystem::path& path, std::span<const NamedTensor<T>> arrays);
/// The same without its name yet.
template <class T>
StagedFile stage_npz(const std::filesystem::path& path, std::span<const NamedTensor<T>> arrays);

}  // namespace gradgram
