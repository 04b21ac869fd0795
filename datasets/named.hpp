#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "datasets/dataset.hpp"
#include "datasets/formats.hpp"

/// The sets that are known by name, and where they are looked for.
namespace gradgram::datasets {

/// Folders to look in. open() takes them from the environment; tests give their own.
struct Places {
  std::filesystem::path data;                ///< GRADGRAM_DATA; empty when not set
  std::vector<std::filesystem::path> share;  ///< `<prefix>/share`, in the order they are tried

  static Places from_environment();
};

/// Class names of `fashion-mnist`, `mnist` or `cifar10`; empty for any other name.
std::vector<std::string> named_classes(std::string_view name);

/// Where a named set was found.
struct Location {
  std::filesystem::path folder;  ///< empty for the embedded sample
  std::string words;             ///< `system package, /usr/share/datasets/fashion-mnist`
};
std::optional<Location> locate(std::string_view name, const Places& places);

struct Loaded {
  Examples examples;
  std::string source;
};
/// The training or test part of a named set; throws ArgumentError telling what to put where when it is not
/// found.
Loaded load_named(std::string_view name, bool test, const Places& places);
/// The training or test part from a folder with IDX files or CIFAR-10 binaries under their usual names.
Examples load_folder(const std::filesystem::path& folder, bool test,
                     const std::vector<std::string>& class_names);

/// open() with the folders given.
Dataset open(std::string_view name, const OpenOptions& options, const Places& places);

/// The sample of Fashion-MNIST inside the library: gzipped IDX files of 2,000 training images, 200 a class.
std::span<const std::byte> sample_images() noexcept;
std::span<const std::byte> sample_labels() noexcept;

}  // namespace gradgram::datasets
