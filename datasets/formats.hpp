#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datasets/dataset.hpp"
#include "engine/npy.hpp"

/// Readers of file formats. Each takes the bytes of a whole file and a name for messages, allocates no more
/// than a small multiple of what the bytes really hold, and throws FormatError (name, byte offset or line)
/// for anything broken.
namespace gradgram::datasets {

/// Examples as they are stored, not yet selected and converted.
struct Examples {
  NpyArray values;              ///< [n, ...], all numbers finite
  bool channels_first = false;  ///< rank 4 values are [n, channels, height, width]
  bool pixels = false;          ///< bytes 0..255 that stand for 0..1
  std::vector<std::int32_t> labels;
  std::vector<double> targets;  ///< of each example as many, one example after the other
  std::vector<std::string> class_names;

  std::size_t size() const { return values.shape.empty() ? 0 : values.shape[0]; }
};

/// An IDX file, plain or gzipped, of type u8, i8, i16, i32, f32 or f64 (stored big-endian) and rank 1 to 5;
/// i8 and i16 come out as i4.
NpyArray parse_idx(std::span<const std::byte> bytes, const std::string& name);

/// Images and labels from two parsed IDX files. `class_names` gives the classes that labels must be of; when
/// empty, they are the numbers up to the largest label.
Examples idx_examples(NpyArray images, const NpyArray& labels, std::vector<std::string> class_names,
                      const std::string& images_name, const std::string& labels_name);

/// The labels and pixels [n, 3, 32, 32] of a CIFAR-10 binary file: records of one label byte and 3072 pixels.
Examples parse_cifar10(std::span<const std::byte> bytes, const std::string& name);

/// Comma (or semicolon, or tab) separated numbers under a header row; one column is the target (`target`, or
/// the last). Throws ArgumentError when there is no such column.
Examples parse_csv(std::span<const std::byte> bytes, const std::string& name, std::string_view target = {},
                   TargetKind kind = TargetKind::Auto);

/// Inputs `x` of rank 2, 3 or 4 with optional classes or targets `y`.
Examples array_examples(NpyArray x, const std::optional<NpyArray>& y, const std::string& name);

/// `x` and optionally `y` of an .npz archive, as array_examples().
Examples npz_examples(std::map<std::string, NpyArray> arrays, const std::string& name);

/// Selects, converts and prepares. `source` is copied into the result.
Dataset prepare(const Examples& examples, const OpenOptions& options, std::string source);

}  // namespace gradgram::datasets
