#include "datasets/named.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "engine/error.hpp"
#include "engine/file.hpp"

namespace gradgram::datasets {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 3> kNames = {"fashion-mnist", "mnist", "cifar10"};

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

/// The file under one of its usual names: plain or packed, `images-idx3` or `images.idx3`.
std::optional<fs::path> idx_file(const fs::path& folder, const std::string& part, const std::string& kind) {
  for (const char* joint : {"-", "."}) {
    for (const char* suffix : {"", ".gz"}) {
      fs::path path = folder / (part + "-" + kind.substr(0, 6) + joint + kind.substr(7) + suffix);
      if (is_file(path)) return path;
    }
  }
  return std::nullopt;
}

std::string idx_part(bool test) {
  return test ? "t10k" : "train";
}

std::vector<fs::path> cifar_files(const fs::path& folder, bool test) {
  std::vector<fs::path> files;
  if (test) {
    if (is_file(folder / "test_batch.bin")) files.push_back(folder / "test_batch.bin");
    return files;
  }
  for (int i = 1; i <= 5; ++i) {
    fs::path path = folder / fmt::format("data_batch_{}.bin", i);
    if (is_file(path)) files.push_back(std::move(path));
  }
  return files;
}

bool holds(const fs::path& folder, std::string_view name) {
  if (name == "cifar10") return !cifar_files(folder, false).empty() || !cifar_files(folder, true).empty();
  return idx_file(folder, "train", "images-idx3-ubyte") || idx_file(folder, "t10k", "images-idx3-ubyte");
}

Examples load_idx(const fs::path& folder, bool test, std::vector<std::string> class_names) {
  const std::string part = idx_part(test);
  const auto images = idx_file(folder, part, "images-idx3-ubyte");
  const auto labels = idx_file(folder, part, "labels-idx1-ubyte");
  if (!images || !labels) {
    throw IoError(fmt::format("open: {} holds no {}-{}-ubyte or {}-{}-ubyte.gz", folder.string(), part,
                              images ? "labels-idx1" : "images-idx3", part,
                              images ? "labels-idx1" : "images-idx3"));
  }
  return idx_examples(parse_idx(read_file(*images), images->string()),
                      parse_idx(read_file(*labels), labels->string()), std::move(class_names),
                      images->string(), labels->string());
}

Examples load_cifar(const fs::path& folder, bool test) {
  const std::vector<fs::path> files = cifar_files(folder, test);
  if (files.empty()) {
    throw IoError(fmt::format("open: {} holds no {}", folder.string(),
                              test ? "test_batch.bin" : "data_batch_1.bin to data_batch_5.bin"));
  }
  Examples all;
  for (const fs::path& file : files) {
    Examples part = parse_cifar10(read_file(file), file.string());
    if (all.labels.empty()) {
      all = std::move(part);
      continue;
    }
    all.values.shape[0] += part.values.shape[0];
    all.values.bytes.insert(all.values.bytes.end(), part.values.bytes.begin(), part.values.bytes.end());
    all.labels.insert(all.labels.end(), part.labels.begin(), part.labels.end());
  }
  return all;
}

std::string part_words(bool test) {
  return test ? "test part" : "training part";
}

}  // namespace

Places Places::from_environment() {
  Places places;
  if (const char* data = std::getenv("GRADGRAM_DATA"); data != nullptr) places.data = data;
  places.share = {"/usr/share", "/usr/local/share"};
  const char* folders = std::getenv("XDG_DATA_DIRS");
  std::string_view rest = folders == nullptr ? "" : folders;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find(':'), rest.size());
    fs::path folder = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (folder.is_absolute() && std::ranges::find(places.share, folder) == places.share.end()) {
      places.share.push_back(std::move(folder));
    }
  }
  return places;
}

std::vector<std::string> named_classes(std::string_view name) {
  if (name == "fashion-mnist") {
    return {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal",      "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};
  }
  if (name == "mnist") return {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
  if (name == "cifar10") {
    return {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"};
  }
  return {};
}

std::optional<Location> locate(std::string_view name, const Places& places) {
  if (!places.data.empty()) {
    fs::path folder = places.data / name;
    if (holds(folder, name)) return Location{folder, fmt::format("GRADGRAM_DATA, {}", folder.string())};
    // Files right in the folder are taken for the set that is asked for, unless the folder is named like
    // another: MNIST and Fashion-MNIST have the same file names.
    fs::path own = places.data.filename();
    if (own.empty()) own = places.data.parent_path().filename();
    const bool other = own != fs::path(name) && std::ranges::find(kNames, own.string()) != kNames.end();
    if (!other && holds(places.data, name)) {
      return Location{places.data, fmt::format("GRADGRAM_DATA, {}", places.data.string())};
    }
  }
  if (name != "fashion-mnist") return std::nullopt;
  for (const fs::path& share : places.share) {
    fs::path folder = share / "datasets" / name;
    if (holds(folder, name)) return Location{folder, fmt::format("system package, {}", folder.string())};
  }
  return Location{{}, "embedded sample of 2,000 training images"};
}

Examples load_folder(const fs::path& folder, bool test, const std::vector<std::string>& class_names) {
  if (holds(folder, "cifar10")) return load_cifar(folder, test);
  if (holds(folder, "mnist")) return load_idx(folder, test, class_names);
  throw IoError(
      fmt::format("open: {} holds neither IDX files (train-images-idx3-ubyte, plain or .gz) nor CIFAR-10 "
                  "binaries (data_batch_1.bin)",
                  folder.string()));
}

Loaded load_named(std::string_view name, bool test, const Places& places) {
  const std::optional<Location> location = locate(name, places);
  if (!location) {
    const std::string files = name == "cifar10"
                                  ? "data_batch_1.bin to data_batch_5.bin and test_batch.bin (the binary "
                                    "version of CIFAR-10)"
                                  : "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
                                    "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz";
    const std::string where = places.data.empty()
                                  ? fmt::format("set GRADGRAM_DATA to a folder that has {}/ with", name)
                                  : fmt::format("GRADGRAM_DATA is {}: make {} there with",
                                                places.data.string(), (places.data / name).string());
    throw ArgumentError(fmt::format("open: {} was not found; {} {}", name, where, files));
  }
  if (!location->folder.empty()) {
    Examples examples = name == "cifar10" ? load_cifar(location->folder, test)
                                          : load_idx(location->folder, test, named_classes(name));
    return {std::move(examples), fmt::format("{} ({}, {})", name, location->words, part_words(test))};
  }
  if (test) {
    throw ArgumentError(
        "open: the embedded sample of fashion-mnist has no test part; install the package "
        "dataset-fashion-mnist or set "
        "GRADGRAM_DATA to a folder that has fashion-mnist/");
  }
  Examples examples = idx_examples(parse_idx(sample_images(), "embedded images"),
                                   parse_idx(sample_labels(), "embedded labels"), named_classes(name),
                                   "embedded images", "embedded labels");
  return {std::move(examples), fmt::format("{} ({})", name, location->words)};
}

std::vector<Found> list() {
  const Places places = Places::from_environment();
  std::vector<Found> result;
  for (const std::string_view name : kNames) {
    const std::optional<Location> location = locate(name, places);
    result.push_back({std::string(name), location ? location->words : ""});
  }
  return result;
}

}  // namespace gradgram::datasets
