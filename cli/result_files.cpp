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
constexpr Companion kCompanions[] = {{".diagonal.npy", "/preview/file"},
                                     {".error.npy", "/standard_error/file"},
                                     {".variance.npy", "/variance/file"},
                                     {".per-parameter.npz", "/per_parameter"}};

/// Removes an ordinary file, behind symbolic links.
void remove_file(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return;
  const fs::path target = fs::canonical(path, error);
  if (error || (::unlink(target.c_str()) != 0 && errno != ENOENT)) {
    throw IoError(fmt::format("{}: cannot remove the earlier result: {}", path.string(),
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

}  // namespace

void require_writable_beside(const fs::path& out) {
  require_writable(beside(out, ".json"));
  for (const Companion& companion : kCompanions) require_writable(beside(out, companion.ending));
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
  for (const auto& [ending, told_at] : kCompanions) {
    const ordered_json::json_pointer place(told_at);
    const fs::path file = beside(out, ending);
    const auto tells = [&](const ordered_json& of) {
      return of.is_object() && of.contains(place) && of[place] == file.filename().string();
    };
    // The preview of this run is there already.
    if (tells(earlier) && !tells(json)) remove_file(file);
  }
  remove_file(sidecar);
  for (StagedFile& other : others) other.commit();
  description.commit();
}

void publish(const fs::path& out, StagedFile array, const ordered_json& json,
             std::vector<StagedFile> others) {
  describe_before_naming(out, json, std::move(others));
  array.commit();
}

}  // namespace gradgram::cli
