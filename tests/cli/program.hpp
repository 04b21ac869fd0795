#pragma once

#include <sstream>
#include <stop_token>
#include <string>
#include <vector>

#include "cli/cli.hpp"

namespace gradgram::cli {

struct Outcome {
  int code = -1;
  std::string out;
  std::string err;
};

/// The program as a function.
inline Outcome run(const std::vector<std::string>& arguments, std::stop_token stop = {}) {
  std::ostringstream out;
  std::ostringstream err;
  const int code = cli_main(arguments, out, err, stop);
  return {code, out.str(), err.str()};
}

}  // namespace gradgram::cli
