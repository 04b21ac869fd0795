#pragma once

#include <cstring>
#include <string>

#include "engine/cpu.hpp"
#include "engine/ops.hpp"

/// What the ops share. Not part of the library's interface.
namespace gradgram::ops {

[[noreturn]] inline void mismatch(const std::string& op, const std::string& a, std::size_t a_value,
                                  const std::string& b, std::size_t b_value) {
  throw ShapeError(op + ": " + a + " (" + std::to_string(a_value) + ") and " + b + " (" +
                   std::to_string(b_value) + ") must match");
}

inline void require_rank(const char* op, const Shape& shape, std::size_t rank, const char* layout) {
  if (shape.rank() != rank) {
    throw ShapeError(std::string(op) + ": input must be " + layout + ", found " + shape.to_string());
  }
}

template <class T>
void require_shape(const char* op, const ParameterSet<T>& parameters, std::size_t index,
                   const Shape& expected) {
  if (index >= parameters.count()) {
    mismatch(op, "parameter index", index, "an index below the parameter count", parameters.count());
  }
  const Shape found = parameters.value(index).shape();
  if (found != expected) {
    throw ShapeError(std::string(op) + ": parameter `" + parameters.name(index) + "` must be " +
                     expected.to_string() + ", found " + found.to_string());
  }
}

template <class T>
void copy(const T* source, T* target, std::size_t n) {
  if (n != 0) std::memcpy(target, source, n * sizeof(T));
}

template <class T>
void fill_zero(T* target, std::size_t n) {
  if (n != 0) std::memset(target, 0, n * sizeof(T));
}

/// Writes a row over every row of a matrix, times `scale`: where sums that include a bias start.
template <class T>
void fill_rows(const T* row, T scale, T* matrix, std::size_t rows, std::size_t columns) {
  if (rows == 0) return;
  for (std::size_t i = 0; i < columns; ++i) matrix[i] = scale * row[i];
  for (std::size_t r = 1; r < rows; ++r) copy(matrix, matrix + r * columns, columns);
}

}  // namespace gradgram::ops
