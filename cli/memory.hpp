#pragma once

#include <cstddef>
#include <vector>

#include "datasets/dataset.hpp"
#include "engine/memory_account.hpp"

/// What a command holds of its budget besides what the library counts.
namespace gradgram::cli {

/// Counts the moment in which the numbers of data sets, read as f64, are converted to T one after the other.
/// A part of what the program may take beside its budget (docs/planning.md) pays for it.
template <class T>
void count_reading(MemoryAccount& account, const std::vector<const datasets::Dataset*>& sets);

/// The numbers of a data set in T; those in f64 are given back.
template <class T>
Tensor<T> take_inputs(datasets::Dataset& data);

/// Bytes of a data set's numbers in T, and as they are read.
template <class T>
std::size_t input_bytes(const datasets::Dataset& data);

}  // namespace gradgram::cli
