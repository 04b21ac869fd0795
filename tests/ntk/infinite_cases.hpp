#pragma once

#include <fstream>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "models/model.hpp"
#include "tests/source_root.hpp"

/// The models of the golden infinite kernels.
namespace infinite_cases {

/// One line: name|input|weight variance|bias variance|text of the model.
struct Case {
  std::string name, input, text;
  gradgram::models::NetworkOptions options;
  friend void PrintTo(const Case& entry, std::ostream* out) { *out << entry.text << " of " << entry.input; }
};

/// All lines of a file in tests/golden/infinite.
inline std::vector<Case> read(const char* name) {
  std::ifstream file(gradgram::source_root() / "tests" / "golden" / "infinite" / name);
  std::vector<Case> result;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    Case entry;
    std::string weight;
    std::string bias;
    std::getline(fields, entry.name, '|');
    std::getline(fields, entry.input, '|');
    std::getline(fields, weight, '|');
    std::getline(fields, bias, '|');
    std::getline(fields, entry.text);
    entry.options.weight_variance = std::stod(weight);
    entry.options.bias_variance = std::stod(bias);
    result.push_back(entry);
  }
  return result;
}

}  // namespace infinite_cases
