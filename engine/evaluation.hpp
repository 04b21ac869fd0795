#pragma once

#include <cstddef>

#include "engine/module.hpp"

namespace gradgram {

/// Examples on a tape of evaluate(), one tape a worker.
template <class T>
std::size_t evaluation_block(const Module<T>& module);

}  // namespace gradgram
