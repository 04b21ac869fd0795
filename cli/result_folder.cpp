#include "cli/result_folder.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <system_error>

#include "engine/error.hpp"
#include "engine/file.hpp"

namespace gradgram::cli {
namespace {

namespace fs = std::filesystem;

bool is_earlier_result(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_regular_file(folder / "summary.json", error)) return false;
  const std::vector<std::byte> bytes = read_file(folder / "summary.json", std::size_t{1} << 28);
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  const auto json = nlohmann::json::parse(text, text + bytes.size(), nullptr, false);
  return json.is_object() && json.value("program", nlohmann::json()) == "gradgram";
}

[[noreturn]] void fail(const fs::path& path, const char* what, const std::error_code& error) {
  throw IoError(fmt::format("{}: {}: {}", path.string(), what, error.message()));
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
    if (!empty && !force && !is_earlier_result(target_)) {
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
    for (const fs::directory_entry& entry : fs::directory_iterator(temporary_)) {
      const fs::path to = target_ / entry.path().filename();
      fs::remove_all(to, error);
      if (!error) fs::rename(entry.path(), to, error);
      if (error) fail(to, "cannot move the result there", error);
    }
    fs::remove_all(temporary_, error);
  }
  temporary_.clear();
}

}  // namespace gradgram::cli
