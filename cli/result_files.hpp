#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "engine/file.hpp"
#include "engine/tensor.hpp"

/// An array and the files beside it that describe it, so that no moment shows an array beside the description
/// of another.
namespace gradgram::cli {

/// Throws IoError when the files beside `out` could not be written: a folder has the name of one.
void require_writable_beside(const std::filesystem::path& out);

/// Values in T under no name yet. Throws NumericError, naming `what`, when one is beyond the numbers of T.
template <class T>
StagedFile stage_narrowed(const std::filesystem::path& path, const Tensor<double>& values, const char* what);

/// Takes away the array `out` of an earlier run with its .json and what that names beside it, then gives
/// `others` and the new .json their names. The array is to get its own next: whoever is killed in between
/// leaves a description without an array. Other files that carry similar names stay. Throws IoError.
void describe_before_naming(const std::filesystem::path& out, const nlohmann::ordered_json& json,
                            std::vector<StagedFile> others = {});
/// The same, and the array gets its name.
void publish(const std::filesystem::path& out, StagedFile array, const nlohmann::ordered_json& json,
             std::vector<StagedFile> others = {});

}  // namespace gradgram::cli
