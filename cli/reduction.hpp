#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/options.hpp"
#include "datasets/dataset.hpp"
#include "ntk/kernel.hpp"

namespace gradgram::cli {

/// --reduce for a model with `outputs` outputs; says in `note` when the choice makes no difference. Throws
/// ArgumentError.
void choose_reduction(const Options& options, std::size_t outputs, ntk::KernelOptions& kernel,
                      std::string& note);

/// The labels that a true-class kernel reads: from `file`, or those of the data when it is empty; `option`
/// names the file's option. Throws ArgumentError when there are none.
std::vector<std::int32_t> labels_of(const Options& options, const std::string& file,
                                    const datasets::Dataset& data, const char* option);

}  // namespace gradgram::cli
