#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tensor.hpp"

namespace gradgram::datasets {

enum class Standardize { None, Channel, Feature };

/// How to open and prepare a data set. The steps run in this order: class selection, limit, label noise, standardize,
/// unit norm.
struct OpenOptions {
  std::vector<std::int32_t> classes;  ///< keep only these, relabelled 0, 1, ... in this order; empty = all
  std::size_t limit = 0;              ///< examples kept, balanced over the classes, first come first; 0 = all
  Standardize standardize = Standardize::None;
  bool unit_norm = false;       ///< ||x|| = 1 for every example (a zero example is refused)
  double label_noise = 0;       ///< share of labels replaced by another class, drawn with `seed`
  std::uint64_t seed = 0;
  bool test = false;            ///< the test part of a set that has one
  std::string target;           ///< CSV: column of the target (a class or a number); empty = last
};

/// Examples in memory. Pixels of 8-bit images are scaled to [0, 1].
struct Dataset {
  Tensor<double> inputs;              ///< [n, features] or [n, height, width, channels]
  std::vector<std::int32_t> labels;   ///< [n], or empty
  Tensor<double> targets;             ///< [n, 1] real targets of a regression set, or empty
  std::vector<std::string> class_names;  ///< one per label value; empty for regression
  std::vector<std::size_t> rows;      ///< [n] which row of the source each example was
  std::string source;                 ///< what was read, in words: `fashion-mnist (system package, ...)`

  std::size_t size() const noexcept { return inputs.size() == 0 ? 0 : inputs.shape()[0]; }
  std::size_t classes() const noexcept { return class_names.size(); }
  /// Shape of one example.
  Shape example_shape() const { return inputs.shape().inner(); }
  /// The inputs in another precision.
  template <class T>
  Tensor<T> inputs_as() const;
};

/// Opens by name (`fashion-mnist`, `mnist`, `cifar10`, or a synthetic one such as `circle:n=200` , see synthetic.hpp) or
/// by path (.csv, .npy, .npz; a directory with IDX files or CIFAR-10 binaries). Arrays of rank 4 are images in PyTorch's
/// order [n, channels, height, width]; .npz holds `x` and optionally `y`.
/// Throws ArgumentError, IoError, FormatError.
Dataset open(std::string_view name, const OpenOptions& options = {});

/// What open() would find, for the report of the machine.
struct Found {
  std::string name;
  std::string where;  ///< in words; empty when it was not found
};
std::vector<Found> list();

}  // namespace gradgram::datasets
