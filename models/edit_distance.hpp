#pragma once

#include <cstddef>
#include <string_view>

namespace gradgram::models {

/// Edits from one word to the other: insertion, deletion, exchange, swap of neighbours. Capitals equal small
/// letters. For guessing what a misspelt name stands for; takes time and memory of the lengths' product.
std::size_t edit_distance(std::string_view a, std::string_view b);

}  // namespace gradgram::models
