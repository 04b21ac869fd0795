#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/model.hpp"

/// What the rest of models/ shares and no one else needs.
namespace gradgram::models::detail {

/// `column 17`, or `line 2, column 5` when the text has several lines. `position` counts bytes from 1.
std::string location(std::string_view text, std::size_t position);

/// Finite, in f32 too.
bool is_slope(double slope) noexcept;

struct Checked {
  std::vector<Shape> shapes;  ///< of one example after each layer
  std::size_t parameters = 0;
};

/// Walks the layers from `input`; errors as Model's constructor, with lines counted in `text` (which may be
/// empty).
Checked check(std::span<const Layer> layers, const Shape& input, std::string_view text);

/// `0`, `4.0`, `4.shortcut.1`: the names of torch.nn.Sequential.
std::string child_path(std::string_view parent, bool shortcut, std::size_t index);

}  // namespace gradgram::models::detail
