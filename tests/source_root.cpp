#include "tests/source_root.hpp"

namespace gradgram {

std::filesystem::path source_root() {
  return GRADGRAM_SOURCE_ROOT;
}

}  // namespace gradgram
