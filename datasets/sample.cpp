#include <cstddef>
#include <span>

#include "datasets/named.hpp"

// The assembler copies the files into the library: no generated source, nothing to find at run time.
#ifdef __APPLE__
#define SECTION ".const_data\n"
#define RESTORE ".text\n"
#define SYMBOL(name) "_" name
#else
#define SECTION ".section .rodata\n"
#define RESTORE ".previous\n"
#define SYMBOL(name) name
#endif
#define EMBED(name, file) \
  asm(SECTION ".globl " SYMBOL(name "_begin") "\n"   \
      SYMBOL(name "_begin") ":\n"                    \
      ".incbin \"" GRADGRAM_SAMPLE_FOLDER file "\"\n" \
      ".globl " SYMBOL(name "_end") "\n"             \
      SYMBOL(name "_end") ":\n"                      \
      RESTORE)

EMBED("gradgram_sample_images", "/train-images-idx3-ubyte.gz");
EMBED("gradgram_sample_labels", "/train-labels-idx1-ubyte.gz");

extern "C" {
extern const std::byte gradgram_sample_images_begin[];
extern const std::byte gradgram_sample_images_end[];
extern const std::byte gradgram_sample_labels_begin[];
extern const std::byte gradgram_sample_labels_end[];
}

namespace gradgram::datasets {

std::span<const std::byte> sample_images() noexcept {
  return {gradgram_sample_images_begin, gradgram_sample_images_end};
}

std::span<const std::byte> sample_labels() noexcept {
  return {gradgram_sample_labels_begin, gradgram_sample_labels_end};
}

}  // namespace gradgram::datasets
