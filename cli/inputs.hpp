#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cli/options.hpp"
#include "datasets/dataset.hpp"
#include "models/network.hpp"
#include "ntk/tile_file.hpp"

/// What the options name, opened; and how it is told in every result.
namespace gradgram::cli {

/// The data set as the options ask for it; `option` is what named it on the command line.
datasets::Dataset open_data(const Options& options, const char* option = "--data");
/// The same examples with the numbers they had before --standardize and --unit-norm, for pictures.
datasets::Dataset open_data_unscaled(const Options& options);
/// The set of --versus; without the option no examples. Throws ArgumentError when it would have to be
/// standardized like --data.
datasets::Dataset open_versus(const Options& options, const Shape& example_shape);

/// --outputs, or what the classes or the columns of targets of the data call for.
std::size_t outputs_for(const Options& options, const datasets::Dataset& data);
/// The model of --model.
models::Model open_model(const Options& options, const Shape& input, std::size_t outputs);
/// --parameterization, --weight-variance, --bias-variance and --seed.
models::NetworkOptions network_options(const Options& options);
/// The variances alone, of the ntk parameterization that infinite width is told in.
models::NetworkOptions infinite_variances(const Options& options);
/// Bytes of the model's weights at `each` a number.
std::size_t weight_bytes(const models::Model& model, std::size_t each);
/// Throws BudgetError when the weights of T alone, which may take minutes to draw, are above the budget.
template <class T>
void require_room_for_weights(const Options& options, const models::Model& model);
/// The model with the weights of --weights or of --seed. Throws like require_room_for_weights().
template <class T>
models::Network<T> open_network(const Options& options, const Shape& input, std::size_t outputs);

/// --memory in bytes, or half of the machine's.
std::size_t memory_budget(const Options& options);
/// Class labels from an .npy file of length n, which `option` named. Throws IoError, FormatError,
/// ArgumentError.
std::vector<std::int32_t> read_labels(const Options& options, const std::string& path, std::size_t n,
                                      const char* option);

/// Throws IoError unless a file can be created at `path` (its folder exists and may be written to): told
/// before the work rather than after.
void require_writable(const std::filesystem::path& path);
/// --out, where an array is going to be written: of a symbolic link the file that it leads to, whose
/// description and companions are those of the result. Throws like require_writable and require_place_beside,
/// and ArgumentError when a name does not end in .npy or another description stands beside the link.
std::filesystem::path array_output(const Options& options);
/// The same of an array that is written at once. An unfinished kernel beside it, which would be taken for one
/// of --out later, is removed with --restart; otherwise it is an ArgumentError.
std::filesystem::path whole_array_output(const Options& options);
/// `k.npy` -> `k.json`.
std::filesystem::path beside(std::filesystem::path path, const char* extension);
void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& document);

/// CRC-32 of a file's bytes, and of numbers in memory, as eight hexadecimal digits.
std::string checksum(const std::filesystem::path& path);
std::string checksum(TensorView<const double> values);

/// The version, as the build names it.
const char* version();
/// `gradgram kernel --model ...` as a shell takes it.
std::string command_line(const Options& options);
/// Model, parameterization, variances, seed or weights with checksum.
template <class T>
nlohmann::ordered_json describe(const Options& options, const models::Network<T>& network);
nlohmann::ordered_json describe(const Options& options, const datasets::Dataset& data);
/// The set of --versus; null without the option.
nlohmann::ordered_json describe_versus(const Options& options, const datasets::Dataset& versus);
std::vector<std::size_t> list(const Shape& shape);
/// Program, version, command, threads, budget, instruction set, BLIS kernels.
nlohmann::ordered_json describe_run(const Options& options, std::size_t threads, std::size_t memory);
/// The line of text that names parameterization, variances and seed or weights.
std::string parameterization_text(const Options& options);
std::string preparation_text(const Options& options);
std::string data_text(std::size_t examples, const Shape& example, const std::string& source);
/// Instruction set, threads and BLIS's kernels; with the budget.
std::string machine_text(std::size_t threads);
std::string machine_text(std::size_t threads, std::size_t memory);
/// What a run found of earlier ones.
std::string went_on_text(const ntk::KernelFile& file);

}  // namespace gradgram::cli
