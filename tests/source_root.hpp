#pragma once

#include <filesystem>

namespace gradgram {

/// The folder of this source tree, wherever a test is started from.
std::filesystem::path source_root();

}  // namespace gradgram
