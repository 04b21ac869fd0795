#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "engine/file.hpp"
#include "engine/tensor.hpp"

/// An array OUT.npy and the files beside it: OUT.json, which describes it, and companions that the
/// description names (OUT.error.npy, ...). Names are given in an order that lets nobody read a torn result:
/// the earlier array goes first and then its companions, the new description takes its name, then the
/// companions, the array last. So at every moment, whatever ends the program in it,
///   - where OUT.npy is, everything of its result is, and nothing of another;
///   - a companion that is there is named by OUT.json, which says that it is the program's.
namespace gradgram::cli {

/// Throws IoError when the files beside `out` could not be written (a folder has the name of one), and
/// ArgumentError when one is called like a companion of `out` that OUT.json does not name: it would be taken
/// for a part of the result, and it is not the program's to remove.
void require_place_beside(const std::filesystem::path& out);

/// The name of the diagonal that is told before the kernel, an array, until the kernel is whole:
/// OUT.npy.preview.
std::filesystem::path preview_beside(const std::filesystem::path& out);

/// Values in T under no name yet. Throws NumericError, naming `what`, when one is beyond the numbers of T.
template <class T>
StagedFile stage_narrowed(const std::filesystem::path& path, const Tensor<double>& values, const char* what);

/// Everything of the above but the array's own name, which the caller is to give next. A preview becomes the
/// companion OUT.diagonal.npy when `json` names it, and goes otherwise. Throws IoError.
void describe_before_naming(const std::filesystem::path& out, const nlohmann::ordered_json& json,
                            std::vector<StagedFile> others = {});
/// The same, and the array gets its name.
void publish(const std::filesystem::path& out, StagedFile array, const nlohmann::ordered_json& json,
             std::vector<StagedFile> others = {});

}  // namespace gradgram::cli
