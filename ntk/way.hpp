#pragma once

namespace gradgram::ntk {

/// How the gradients of one parameter use meet those of another example.
enum class Way {
  Materialize,   ///< the gradient is formed as a row; rows meet in a product: d_in d_out multiply-adds a pair
  Outer,         ///< one position: (a . a') (b . b'): d_in + d_out multiply-adds a pair, nothing is formed
  PositionGram,  ///< many positions: every pixel against every pixel, see ntk/position_gram.hpp
};

}  // namespace gradgram::ntk
