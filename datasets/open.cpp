#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "datasets/dataset.hpp"
#include "datasets/named.hpp"
#include "datasets/synthetic.hpp"
#include "engine/error.hpp"
#include "engine/file.hpp"

namespace gradgram::datasets {
namespace {

namespace fs = std::filesystem;

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& character : result) {
    if (character >= 'A' && character <= 'Z') character = static_cast<char>(character - 'A' + 'a');
  }
  return result;
}

void refuse_test_part(const OpenOptions& options, std::string_view name) {
  if (options.test) throw ArgumentError(fmt::format("open: {} has no test part", name));
}

Loaded load(std::string_view name, const OpenOptions& options, const Places& places) {
  if (name.empty()) throw ArgumentError("open: the name of the data set is empty");
  if (is_synthetic(name)) {
    return {synthetic(name, options.seed, options.test),
            fmt::format("{} (synthetic, seed {}{})", name, options.seed, options.test ? ", test part" : "")};
  }
  if (!named_classes(name).empty()) return load_named(name, options.test, places);
  const fs::path path(name);
  std::error_code error;
  if (fs::is_directory(path, error)) {
    // A folder that is named like a known set has its classes.
    const fs::path own = path.has_filename() ? path.filename() : path.parent_path().filename();
    return {load_folder(path, options.test, named_classes(own.string())),
            fmt::format("{} (folder, {} part)", name, options.test ? "test" : "training")};
  }
  const std::string extension = lower(path.extension().string());
  if (extension == ".csv" || extension == ".npy" || extension == ".npz") refuse_test_part(options, name);
  const std::string source = fmt::format("{} (file)", name);
  if (extension == ".csv") {
    return {parse_csv(read_file(path), path.string(), options.target, options.target_kind), source};
  }
  if (extension == ".npy") return {array_examples(read_npy(path), std::nullopt, path.string()), source};
  if (extension == ".npz") return {npz_examples(read_npz(path), path.string()), source};
  throw ArgumentError(fmt::format(
      "open: '{}' is {}; expected fashion-mnist, mnist, cifar10, a synthetic set (circle, sphere, gaussian, "
      "rademacher, laplace, student, moons), a .csv, .npy or .npz file, or a folder with IDX or CIFAR-10 "
      "files",
      name, fs::exists(path, error) ? "a file of unknown kind" : "no data set and no file"));
}

}  // namespace

Dataset open(std::string_view name, const OpenOptions& options, const Places& places) {
  Loaded loaded = load(name, options, places);
  return prepare(loaded.examples, options, std::move(loaded.source));
}

Dataset open(std::string_view name, const OpenOptions& options) {
  return open(name, options, Places::from_environment());
}

std::vector<std::string> class_names(std::string_view name, const OpenOptions& options) {
  std::vector<std::string> names = named_classes(name);
  if (names.empty()) names = load(name, options, Places::from_environment()).examples.class_names;
  return names;
}

std::vector<std::int32_t> parse_classes(std::string_view text, std::span<const std::string> class_names) {
  if (text == "all") return {};
  const auto known = [&] { return fmt::format("{}", fmt::join(class_names, ", ")); };
  std::vector<std::int32_t> classes;
  while (true) {
    const std::size_t end = std::min(text.find(','), text.size());
    std::string_view item = text.substr(0, end);
    while (item.starts_with(' ')) item.remove_prefix(1);
    while (item.ends_with(' ')) item.remove_suffix(1);
    if (item.empty())
      throw ArgumentError(fmt::format("classes: a class is missing; the classes are {}", known()));

    const std::string wanted = lower(item);
    std::vector<std::size_t> whole;
    std::vector<std::size_t> part;
    for (std::size_t i = 0; i < class_names.size(); ++i) {
      const std::string name = lower(class_names[i]);
      if (name == wanted) whole.push_back(i);
      if (name.find(wanted) != std::string::npos) part.push_back(i);
    }
    // A name that is a number wins over an index; a number is never a part of a name.
    std::size_t index = class_names.size();
    const auto [stop, error] = std::from_chars(item.data(), item.data() + item.size(), index);
    const bool number = error == std::errc() && stop == item.data() + item.size();
    if (number) part.clear();
    std::int32_t found = -1;
    if (whole.size() == 1) {
      found = static_cast<std::int32_t>(whole[0]);
    } else if (number && index < class_names.size()) {
      found = static_cast<std::int32_t>(index);
    } else if (part.size() == 1) {
      found = static_cast<std::int32_t>(part[0]);
    } else {
      throw ArgumentError(fmt::format("classes: '{}' {}; the classes are {}", item,
                                      part.size() > 1 ? "fits several classes" : "is no class", known()));
    }
    if (std::ranges::find(classes, found) != classes.end()) {
      throw ArgumentError(fmt::format("classes: '{}' is class {}, which is named twice", item, found));
    }
    classes.push_back(found);
    if (end == text.size()) return classes;
    text.remove_prefix(end + 1);
  }
}

}  // namespace gradgram::datasets
