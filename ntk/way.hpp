#pragma once

#include <array>
#include <string_view>

namespace gradgram::ntk {

/// How the gradients of one parameter use meet those of another example.
enum class Way {
  Materialize,   ///< the gradient is formed as a row; rows meet in a product: d_in d_out multiply-adds a pair
  Outer,         ///< one position: (a . a') (b . b'): d_in + d_out multiply-adds a pair, nothing is formed
  PositionGram,  ///< many positions: every pixel against every pixel, see ntk/position_gram.hpp
};

inline constexpr std::array kAllWays = {Way::Materialize, Way::Outer, Way::PositionGram};

/// `materialize`, `outer`, `position-gram`.
constexpr std::string_view way_name(Way way) {
  switch (way) {
    case Way::Materialize:
      return "materialize";
    case Way::Outer:
      return "outer";
    case Way::PositionGram:
      return "position-gram";
  }
  return "unknown";
}

}  // namespace gradgram::ntk
