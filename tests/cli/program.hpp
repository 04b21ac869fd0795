#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
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

/// An empty folder of the test's own, gone behind it.
class InFolder : public testing::Test {
 protected:
  void SetUp() override {
    const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
    folder = std::filesystem::path(testing::TempDir()) /
             ("gradgram-" + std::to_string(getpid()) + "-" + test.test_suite_name() + "-" + test.name());
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }
  std::string at(const std::string& name) const { return (folder / name).string(); }

  std::filesystem::path folder;
};

}  // namespace gradgram::cli
