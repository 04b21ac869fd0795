#pragma once

#include <cstddef>

#include "ntk/infinite/infinite.hpp"
#include "ntk/infinite/program.hpp"

/// What a kernel takes, told before anything is allocated.
namespace gradgram::ntk::infinite {

/// See infinite_kernel_bytes().
template <class T>
std::size_t required_bytes(const Program& program, std::size_t rows, std::size_t columns,
                           const InfiniteOptions& what, std::size_t workers, bool matrices);

}  // namespace gradgram::ntk::infinite
