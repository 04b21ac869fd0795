#include "cli/result_folder.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <ostream>
#include <set>
#include <string>
#include <system_error>

#include "engine/error.hpp"
#include "engine/file.hpp"

namespace gradgram::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSummary = "summary.json";
/// Stands in the place of the summary while one result is taking the place of another.
constexpr const char* kUnfinished = "summary.json.partial";

/// The summary of an earlier result, or what stands in its place; null without one.
nlohmann::json earlier_summary(const fs::path& folder) {
  for (const char* name : {kUnfinished, kSummary}) {
    std::error_code error;
    if (!fs::is_regular_file(folder / name, error)) continue;
    const std::vector<std::byte> bytes = read_file(folder / name, std::size_t{1} << 28);
    const auto* text = reinterpret_cast<const char*>(bytes.data());
    nlohmann::json json = nlohmann::json::parse(text, text + bytes.size(), nullptr, false);
    if (json.is_object() && json.value("program", nlohmann::json()) == "gradgram") return json;
  }
  return nullptr;
}

/// The names under `files`; one that would lead out of the folder is none of the program's.
std::set<std::string> files_of(const nlohmann::json& summary) {
  std::set<std::string> names;
  if (!summary.is_object() || !summary.contains("files")) return names;
  for (const nlohmann::json& file : summary["files"]) {
    if (!file.is_string()) continue;
    const auto name = file.get<std::string>();
    if (!name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos)
      names.insert(name);
  }
  return names;
}

[[noreturn]] void fail(const fs::path& path, const char* what, const std::error_code& error) {
  throw IoError(fmt::format("--out: {}: {}: {}", path.string(), what, error.message()));
}

}  // namespace

ResultFolder::ResultFolder(fs::path target, bool force) : target_(std::move(target)) {
  // `runs/shoes/` names the same folder as `runs/shoes`.
  if (!target_.has_filename()) target_ = target_.parent_path();
  if (target_.empty()) throw ArgumentError("--out: the name of a folder is empty");
  std::error_code error;
  if (fs::exists(target_, error)) {
    if (!fs::is_directory(target_, error)) {
      throw ArgumentError(fmt::format("--out: {} exists and is not a folder", target_.string()));
    }
    const bool empty = fs::is_empty(target_, error);
    if (error) fail(target_, "cannot read the folder", error);
    if (!empty && !force && earlier_summary(target_).is_null()) {
      throw ArgumentError(
          fmt::format("--out: {} holds files that are not an earlier result; choose another folder, or "
                      "--force to write among them",
                      target_.string()));
    }
  }
  const fs::path parent = target_.has_parent_path() ? target_.parent_path() : fs::path(".");
  fs::create_directories(parent, error);
  if (error) fail(parent, "cannot create the folder", error);
  temporary_ = parent / fmt::format(".{}.unfinished-{}", target_.filename().string(), getpid());
  fs::create_directory(temporary_, error);
  if (error) fail(target_, "cannot create the folder", error);
}

ResultFolder::~ResultFolder() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

void ResultFolder::commit() {
  std::error_code error;
  const bool exists = fs::exists(target_, error);
  if (!exists || fs::is_empty(target_, error)) {
    if (exists) fs::remove(target_, error);
    fs::rename(temporary_, target_, error);
    if (error) fail(target_, "cannot move the results there", error);
  } else {
    std::set<std::string> names = files_of(earlier_summary(target_));
    for (const fs::directory_entry& entry : fs::directory_iterator(temporary_)) {
      names.insert(entry.path().filename().string());
    }
    names.erase(kSummary);
    write_file(target_ / kUnfinished, [&](std::ostream& stream) {
      stream << nlohmann::ordered_json{{"program", "gradgram"}, {"files", names}}.dump(2) << '\n';
    });
    fs::remove(target_ / kSummary, error);
    if (error) fail(target_ / kSummary, "cannot remove the earlier result", error);
    for (const std::string& name : names) {
      fs::remove_all(target_ / name, error);
      if (error) fail(target_ / name, "cannot remove the earlier result", error);
      if (!fs::exists(temporary_ / name, error)) continue;
      fs::rename(temporary_ / name, target_ / name, error);
      if (error) fail(target_ / name, "cannot move the result there", error);
    }
    fs::rename(temporary_ / kSummary, target_ / kSummary, error);
    if (error) fail(target_ / kSummary, "cannot move the result there", error);
    fs::remove(target_ / kUnfinished, error);
    fs::remove_all(temporary_, error);
  }
  temporary_.clear();
}

}  // namespace gradgram::cli
