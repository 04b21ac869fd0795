#pragma once

#include <filesystem>
#include <vector>

#include "ntk/spectrum.hpp"

namespace gradgram::cli {

/// One line per eigenvalue found; `label_energy` may be empty. Throws IoError.
void write_spectrum_csv(const std::filesystem::path& path, const ntk::Spectrum& spectrum,
                        const std::vector<double>& label_energy);

}  // namespace gradgram::cli
