#pragma once

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace gradgram {

/// All of a file; nothing where there is none.
inline std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

}  // namespace gradgram
