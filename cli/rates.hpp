#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "ntk/rates.hpp"

/// Measured rates, kept in the user's cache folder from run to run.
namespace gradgram::cli {

struct MeasuredRates {
  ntk::KernelRates rates;
  std::string when;               ///< `2026-01-31T12:00:00Z`
  std::filesystem::path scratch;  ///< whose disk `rates.scratch` is about; empty: built in
};

/// $XDG_CACHE_HOME/gradgram or ~/.cache/gradgram, then rates-PROCESSOR-INSTRUCTIONS.json. Empty when neither
/// variable names an absolute path.
std::filesystem::path rates_path();

/// What `path` holds; nothing when it is absent, broken, or of another processor, instruction set, BLIS
/// kernel set, version or layout.
std::optional<MeasuredRates> read_rates(const std::filesystem::path& path);
/// Measures on so many threads, and the default scratch folder, if that can be written.
MeasuredRates measure_rates_now(std::size_t threads);
/// Measures another scratch folder. Returns why it cannot be, or nothing.
std::string measure_scratch_now(const std::filesystem::path& folder, MeasuredRates& measured);
/// Whole or not at all, creating the folder. Returns why it could not be written, or nothing.
std::string store_rates(const std::filesystem::path& path, const MeasuredRates& measured);

nlohmann::ordered_json to_json(const ntk::KernelRates& rates);

}  // namespace gradgram::cli
