#include "cli/reduction.hpp"

#include <fmt/format.h>

#include <charconv>
#include <string_view>
#include <system_error>

#include "cli/inputs.hpp"
#include "cli/text.hpp"
#include "engine/error.hpp"

namespace gradgram::cli {

void choose_reduction(const Options& options, std::size_t outputs, ntk::KernelOptions& kernel,
                      std::string& note) {
  const std::string& text = options.reduce;
  if (text.empty()) {
    if (outputs > 1) {
      throw ArgumentError(fmt::format(
          "--reduce: the model has {} outputs, so choose how to reduce them: full (the blocks as they are), "
          "trace-mean (mean of the diagonal), trace-sum, output:K, or true-class",
          outputs));
    }
    kernel.reduce = ntk::Reduce::TraceMean;
    note = "one output: trace-mean, trace-sum, output:0 and full hold the same numbers";
  } else if (text == "full") {
    kernel.reduce = ntk::Reduce::Full;
  } else if (text == "trace-mean") {
    kernel.reduce = ntk::Reduce::TraceMean;
  } else if (text == "trace-sum") {
    kernel.reduce = ntk::Reduce::TraceSum;
  } else if (text == "true-class") {
    kernel.reduce = ntk::Reduce::TrueClass;
  } else if (text.starts_with("output:")) {
    kernel.reduce = ntk::Reduce::Output;
    const std::string_view number = std::string_view(text).substr(7);
    std::size_t output = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), output);
    if (error != std::errc() || end != number.data() + number.size() || output >= outputs) {
      throw ArgumentError(fmt::format(
          "--reduce: '{}' must be output:K with K from 0 to {}, the model's outputs", text, outputs - 1));
    }
    kernel.output = output;
  } else {
    throw ArgumentError(fmt::format(
        "--reduce: '{}' is unknown; expected one of full, trace-mean, trace-sum, output:K, true-class",
        text));
  }
}

std::vector<std::int32_t> labels_of(const Options& options, const std::string& file,
                                    const datasets::Dataset& data, const char* option) {
  if (!file.empty()) return read_labels(options, file, data.size(), option);
  if (data.labels.empty()) {
    throw ArgumentError(
        fmt::format("--reduce true-class: needs labels, and the data have none; give {}", option));
  }
  return data.labels;
}

}  // namespace gradgram::cli
