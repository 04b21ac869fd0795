#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tensor.hpp"

namespace gradgram::datasets {

/// Zero mean and unit variance (divided by n) over the kept examples: per channel (the last axis, over all
/// examples and positions) or per feature (every position by itself). The same thing for inputs without
/// positions.
enum class Standardize { None, Channel, Feature };

/// How a CSV target column is read. Auto: texts are classes; whole numbers of at most 100 different values
/// are classes; everything else are numbers (docs/data.md).
enum class TargetKind { Auto, Classes, Numbers };

/// How to open and prepare a data set. The steps run in this order: class selection, limit, label noise,
/// standardize, unit norm.
struct OpenOptions {
  /// Keep only these, relabelled 0, 1, ... in this order; empty = all.
  std::vector<std::int32_t> classes = {};
  /// Examples kept, balanced over the classes, first come first; 0 = all. More than there are keeps all.
  std::size_t limit = 0;
  Standardize standardize = Standardize::None;
  /// ||x|| = 1 for every example; a zero example is refused.
  bool unit_norm = false;
  /// Share of labels, to the nearest example, replaced by another class, drawn with `seed`.
  double label_noise = 0;
  /// Of the label noise and of synthetic sets.
  std::uint64_t seed = 0;
  /// The test part of a set that has one.
  bool test = false;
  /// CSV: column of the target, and what it is; empty = the last.
  std::string target = {};
  TargetKind target_kind = TargetKind::Auto;
};

/// Examples in memory, in the order of their source. Pixels of 8-bit images are scaled to [0, 1].
struct Dataset {
  Tensor<double> inputs;                   ///< [n, features] or [n, height, width, channels]
  std::vector<std::int32_t> labels;        ///< [n], or empty
  std::vector<std::int32_t> clean_labels;  ///< [n] the labels before label noise; empty when there was none
  Tensor<double> targets;                  ///< [n, C] real targets of a regression set, or empty
  std::vector<std::string> class_names;    ///< one per label value; empty for regression
  std::vector<std::size_t> rows;           ///< [n] which row of the source each example was
  std::string source;                      ///< what was read, in words: `fashion-mnist (system package, ...)`

  std::size_t size() const noexcept { return inputs.size() == 0 ? 0 : inputs.shape()[0]; }
  std::size_t classes() const noexcept { return class_names.size(); }
  /// Shape of one example.
  Shape example_shape() const { return inputs.shape().inner(); }
  /// The inputs in another precision, rounded to nearest. Throws NumericError for a number beyond its range,
  /// and for an example whose numbers are all too small to keep their digits, but not all zero.
  template <class T>
  Tensor<T> inputs_as() const;
};

/// Opens by name (`fashion-mnist`, `mnist`, `cifar10`, or a synthetic one such as `circle:n=200`, see
/// synthetic.hpp) or by path (.csv, .npy, .npz; a directory with IDX files or CIFAR-10 binaries). Arrays of
/// rank 4 are images in PyTorch's order [n, channels, height, width], of rank 3 images of one channel; .npz
/// holds `x` and optionally `y`: whole numbers are classes, f4 and f8 are targets. docs/data.md tells where
/// the named sets are looked for. The kept examples are converted to double, the others stay as they were
/// stored: memory is the file, unpacked, and 8 bytes a kept number. Throws ArgumentError, IoError,
/// FormatError; NumericError when standardizing overflows.
Dataset open(std::string_view name, const OpenOptions& options = {});

/// The class names of what open(name, options) would read, before any selection; empty for a set without
/// classes.
std::vector<std::string> class_names(std::string_view name, const OpenOptions& options = {});

/// Class indices from a list such as `0,5`, `sandal,boot` or `all` (which gives none: OpenOptions keeps all
/// then). A name matches in either case, whole or as the only class that contains it. Throws ArgumentError.
std::vector<std::int32_t> parse_classes(std::string_view text, std::span<const std::string> class_names);

/// What open() would find, for the report of the machine.
struct Found {
  std::string name;
  std::string where;  ///< in words; empty when it was not found
};
std::vector<Found> list();

}  // namespace gradgram::datasets
