#pragma once

#include <string>

#include "cli/options.hpp"
#include "datasets/dataset.hpp"

namespace gradgram::cli {

/// Examples to learn from and others to be judged by.
struct Split {
  datasets::Dataset train;
  datasets::Dataset test;
  std::string test_words;  ///< where the test examples come from
};

/// --train examples of --data, and --test examples of --versus, or of the set's test part, or, where it has
/// none, of the examples that --train leaves. Both are standardized with the means and variances of the
/// training examples; labels are replaced (--label-noise) in these alone. Throws what datasets::open()
/// throws, and ArgumentError when nothing is left to test on.
Split open_split(const Options& options);

}  // namespace gradgram::cli
