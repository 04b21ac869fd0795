#include "cli/result_files.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>
#include <system_error>
#include <utility>

#include "cli/inputs.hpp"
#include "engine/error.hpp"
#include "engine/npy.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

namespace fs = std::filesystem;

/// What stands beside an array, and where in its .json the file is named.
struct Companion {
  const char* ending;
  const char* told_at;
};
constexpr Companion kPreview = {".diagonal.npy", "/preview/file"};
constexpr Companion kCompanions[] = {kPreview,
                                     {".error.npy", "/standard_error/file"},
                                     {".variance.npy", "/variance/file"},
                                     {".per-parameter.npz", "/per_parameter"}};

/// Removes an ordinary file, behind symbolic links.
void remove_file(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return;
  const fs::path target = fs::canonical(path, error);
  if (error || (::unlink(target.c_str()) != 0 && errno != ENOENT)) {
    throw IoError(fmt::format("--out: {}: cannot remove the earlier result: {}", path.string(),
                              error ? error.message() : std::generic_category().message(errno)));
  }
}

/// The .json of an earlier run; null when there is none that can be read.
ordered_json earlier_description(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return nullptr;
  try {
    const std::vector<std::byte> bytes = read_file(path, std::size_t{1} << 26);
    const auto* text = reinterpret_cast<const char*>(bytes.data());
    return ordered_json::parse(text, text + bytes.size(), nullptr, false);
  } catch (const IoError&) {
    return nullptr;
  }
}

/// Whether `description` says that `file` is this companion.
bool names(const ordered_json& description, const Companion& companion, const fs::path& file) {
  const ordered_json::json_pointer place(companion.told_at);
  return description.is_object() && description.contains(place) &&
         description[place] == file.filename().string();
}

}  // namespace

fs::path preview_beside(const fs::path& out) {
  fs::path path = out;
  path += ".preview";
  return path;
}

void require_place_beside(const fs::path& out) {
  const fs::path sidecar = beside(out, ".json");
  require_writable(sidecar);
  require_writable(preview_beside(out));
  const ordered_json earlier = earlier_description(sidecar);
  for (const Companion& companion : kCompanions) {
    const fs::path file = beside(out, companion.ending);
    require_writable(file);
    std::error_code error;
    if (!fs::exists(file, error) || names(earlier, companion, file)) continue;
    throw ArgumentError(fmt::format(
        "--out: {} is there, would be taken for a part of {}, and {}; move it away or choose another "
        "name",
        file.string(), out.string(),
        earlier.is_null() ? fmt::format("no {} says that it is", sidecar.string())
                          : fmt::format("{} does not say that it is", sidecar.string())));
  }
}

template <class T>
StagedFile stage_narrowed(const fs::path& path, const Tensor<double>& values, const char* what) {
  Tensor<T> converted(values.shape());
  for (std::size_t i = 0; i < values.size(); ++i) {
    converted.data()[i] = static_cast<T>(values.data()[i]);
    if (!std::isfinite(converted.data()[i])) {
      throw NumericError(
          fmt::format("{}: entry {} is {:g}, beyond the numbers of {}{}", what, i, values.data()[i],
                      sizeof(T) == 4 ? "f32" : "f64",
                      sizeof(T) == 4 && std::isfinite(values.data()[i]) ? "; --dtype f64 holds it" : ""));
    }
  }
  return stage_npy<T>(path, converted.view());
}
template StagedFile stage_narrowed<float>(const fs::path&, const Tensor<double>&, const char*);
template StagedFile stage_narrowed<double>(const fs::path&, const Tensor<double>&, const char*);

void describe_before_naming(const fs::path& out, const ordered_json& json, std::vector<StagedFile> others) {
  const fs::path sidecar = beside(out, ".json");
  StagedFile description(sidecar, [&](std::ostream& stream) { stream << json.dump(2) << '\n'; });
  const ordered_json earlier = earlier_description(sidecar);
  remove_file(out);
  for (const Companion& companion : kCompanions) {
    const fs::path file = beside(out, companion.ending);
    if (names(earlier, companion, file)) remove_file(file);
  }
  description.commit();
  const fs::path preview = preview_beside(out);
  const fs::path diagonal = beside(out, kPreview.ending);
  if (!names(json, kPreview, diagonal)) {
    remove_file(preview);
  } else if (::rename(preview.c_str(), diagonal.c_str()) != 0) {
    throw IoError(fmt::format("--out: cannot rename {} to {}: {}", preview.string(), diagonal.string(),
                              std::generic_category().message(errno)));
  }
  for (StagedFile& other : others) other.commit();
}

void publish(const fs::path& out, StagedFile array, const ordered_json& json,
             std::vector<StagedFile> others) {
  describe_before_naming(out, json, std::move(others));
  array.commit();
}

}  // namespace gradgram::cli
