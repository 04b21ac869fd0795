#pragma once

#include <filesystem>

namespace gradgram::cli {

/// A folder of results that appears whole or not at all: files are written to path() beside the target, and
/// commit() moves them there. Removed when not committed. In the place of an earlier result the parts move
/// one by one: summary.json goes first and comes last, so that a folder that has one is whole, and all that
/// the earlier one lists under `files` goes too.
class ResultFolder {
 public:
  /// Refuses (ArgumentError) a target that holds something other than an earlier result, unless `force`;
  /// then files of the same name are replaced and others stay. Throws IoError.
  ResultFolder(std::filesystem::path target, bool force);
  ~ResultFolder();
  ResultFolder(const ResultFolder&) = delete;
  ResultFolder& operator=(const ResultFolder&) = delete;

  /// Where summary.json is to be written among the rest; its `files` names the others.
  const std::filesystem::path& path() const { return temporary_; }
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;
};

}  // namespace gradgram::cli
