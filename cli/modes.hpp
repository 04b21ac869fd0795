#pragma once

#include <functional>
#include <string>

#include "cli/options.hpp"

namespace gradgram::cli {

/// Whether an option, such as `--way`, was given on the command line.
using Given = std::function<bool(const std::string& option)>;

/// Every way of running a verb reads some of the verb's options. Throws ArgumentError, naming both, when an
/// option was given that would be ignored, or that needs another which is not there.
void check_modes(const Options& options, const Given& given);

}  // namespace gradgram::cli
