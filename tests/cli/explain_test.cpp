#include "cli/explain.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "cli/rates.hpp"
#include "engine/error.hpp"
#include "engine/npy.hpp"
#include "engine/random.hpp"
#include "tests/cli/program.hpp"

namespace gradgram::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string text_of(const fs::path& path) {
  std::ifstream stream(path);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

/// A folder for files, another as the user's cache.
class Explain : public InFolder {
 protected:
  void SetUp() override {
    InFolder::SetUp();
    fs::create_directories(folder / "cache");
    setenv("XDG_CACHE_HOME", (folder / "cache").c_str(), 1);
    Tensor<double> values(Shape{40, 3, 8, 8});
    Random random(1);
    for (double& value : values.span()) value = random.normal();
    write_npy<double>(folder / "x.npy", values.view());
  }
  void TearDown() override {
    unsetenv("XDG_CACHE_HOME");
    InFolder::TearDown();
  }
  std::vector<std::string> kernel(std::vector<std::string> more, const char* out = "k.npy") const {
    std::vector<std::string> words = {"kernel", "--data", (folder / "x.npy").string(), "--model", model};
    if (out != nullptr) words.insert(words.end(), {"--out", (folder / out).string()});
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  std::string model = "conv(6,3) relu maxpool(2) conv(8,3) relu gap dense(5) relu dense(1)";
};

TEST_F(Explain, PlanOnlyTellsEveryLayerAndWritesNothing) {
  const Outcome outcome = run(kernel({"--plan-only", "--rates", "built-in", "--json"}, nullptr));
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const json plan = json::parse(outcome.out).at("plan");
  ASSERT_EQ(plan.at("layers").size(), 4U);
  const json& first = plan["layers"][0];
  EXPECT_EQ(first["layer"], "0");
  EXPECT_EQ(first["positions"], 64);
  EXPECT_EQ(first["d_in"], 27);
  EXPECT_EQ(first["d_out"], 6);
  EXPECT_EQ(plan["layers"][2]["way"], "outer");
  double flop = 0;
  double contraction = 0;
  for (const json& layer : plan["layers"]) {
    EXPECT_FALSE(layer["alternatives"].empty());
    for (const char* name : {"forward_seconds", "seconds", "contraction_flop"}) {
      EXPECT_GT(layer[name].get<double>(), 0) << name;
    }
    flop += layer["contraction_flop"].get<double>();
    contraction += layer["contraction_seconds"].get<double>();
  }
  const json& total = plan["total"];
  EXPECT_DOUBLE_EQ(total["contraction_flop"].get<double>(), flop);
  EXPECT_GE(total["contraction_seconds"].get<double>(), contraction);
  EXPECT_EQ(total["block_examples"], 40);
  EXPECT_EQ(total["passes_per_example"], 1.0);
  double memory = 0;
  for (const auto& [name, bytes] : total["memory"].items()) memory += bytes.get<double>();
  EXPECT_EQ(memory, total["memory_bytes"].get<double>());
  // By hand: the pairs of the lower triangle, 2 FLOP for each column of a materialized row.
  if (first["way"] == "materialize") {
    EXPECT_DOUBLE_EQ(first["contraction_flop"].get<double>(), 40 * 41 / 2 * 2.0 * (27 * 6 + 6));
  }
  EXPECT_FALSE(fs::exists(folder / "k.npy"));
  EXPECT_TRUE(fs::is_empty(folder / "cache"));

  const Outcome text = run(kernel({"--plan-only", "--rates", "built-in"}, nullptr));
  ASSERT_EQ(text.code, kDone) << text.err;
  for (const char* part : {"layer", "conv(6,3)", "GFLOP", "contraction", "memory", "built in"}) {
    EXPECT_NE(text.out.find(part), std::string::npos) << part << "\n" << text.out;
  }
}

TEST_F(Explain, ExplainTellsPlannedAndMeasured) {
  const Outcome outcome = run(kernel({"--explain", "--rates", "built-in", "--json"}));
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const json result = json::parse(outcome.out);
  const json& measured = result.at("measured");
  for (const char* name : {"passes_seconds", "contraction_seconds", "seconds"}) {
    EXPECT_GT(measured[name].get<double>(), 0) << name;
  }
  EXPECT_LE(measured["seconds"].get<double>(), result["seconds"].get<double>());
  EXPECT_GT(measured["peak_resident_bytes"].get<double>(), 1e6);
  EXPECT_EQ(result["ways"]["6"], "outer");
  EXPECT_EQ(json::parse(text_of(folder / "k.json")), result);

  const Outcome diagonal = run(kernel({"--explain", "--rates", "built-in", "--diagonal"}, "d.npy"));
  ASSERT_EQ(diagonal.code, kDone) << diagonal.err;
  EXPECT_NE(diagonal.out.find("norm"), std::string::npos) << diagonal.out;
  EXPECT_NE(diagonal.out.find("peak resident memory"), std::string::npos) << diagonal.out;
}

TEST_F(Explain, WaysAreForcedAndWrongOnesListTheChoices) {
  const Outcome forced = run(kernel({"--way", "0=position-gram", "--way", "3.weight=materialize",
                                     "--plan-only", "--rates", "built-in", "--json"},
                                    nullptr));
  ASSERT_EQ(forced.code, kDone) << forced.err;
  const json result = json::parse(forced.out);
  EXPECT_EQ(result["plan"]["layers"][0]["way"], "position-gram");
  EXPECT_EQ(result["plan"]["layers"][1]["way"], "materialize");
  EXPECT_EQ(result["ways"]["0"], "position-gram");
  struct Wrong {
    const char* text;
    std::vector<const char*> told;
  };
  for (const Wrong& wrong :
       std::vector<Wrong>{{"0=fast", {"materialize", "outer", "position-gram"}},
                          {"0", {"LAYER=WAY", "materialize"}},
                          {"1=materialize", {"'1'", "0, 3, 6, 8"}},
                          {"9.weight=outer", {"'9.weight'", "0, 3, 6, 8"}},
                          {"0=outer", {"0.weight", "64 positions", "materialize or position-gram"}}}) {
    const Outcome outcome = run(kernel({"--way", wrong.text}));
    EXPECT_EQ(outcome.code, kWrongUsage) << wrong.text;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    for (const char* part : wrong.told) EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  }
  EXPECT_EQ(run(kernel({"--way", "0=materialize", "--way", "0=position-gram"})).code, kWrongUsage);
  EXPECT_EQ(run(kernel({"--way", "0=materialize", "--diagonal"})).code, kWrongUsage);
  EXPECT_EQ(run(kernel({"--rates", "guessed"})).code, kWrongUsage);
  EXPECT_EQ(run(kernel({"--explain", "--infinite"})).code, kWrongUsage);
  EXPECT_EQ(run(kernel({}, nullptr)).code, kWrongUsage);
  EXPECT_FALSE(fs::exists(folder / "k.npy"));
}

TEST_F(Explain, TellsWhatIsSpilledAndWhatThatSaves) {
  const auto parsed = [&](const std::vector<std::string>& more, const char* out = nullptr) {
    std::vector<std::string> words = {"--rates", "built-in", "--json", "--way", "3=materialize"};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome outcome = run(kernel(words, out));
    EXPECT_EQ(outcome.code, kDone) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    return json::parse(outcome.out);
  };
  Tensor<double> many(Shape{400, 3, 8, 8});
  Random random(2);
  for (double& value : many.span()) value = random.normal();
  write_npy<double>(folder / "x.npy", many.view());
  model = "conv(32,3) relu maxpool(2) conv(64,3) relu gap dense(1)";
  const json roomy = parsed({"--plan-only"})["plan"]["total"];
  EXPECT_EQ(roomy["factors"], "kept");
  EXPECT_EQ(roomy["spilled_bytes"], 0);
  EXPECT_FALSE(roomy.contains("instead"));
  const std::string memory = std::to_string(static_cast<std::size_t>(
      roomy["memory_bytes"].get<double>() - 0.7 * roomy["memory"]["factors"].get<double>()));
  fs::create_directories(folder / "scratch");
  const std::string scratch = (folder / "scratch").string();
  const std::vector<std::string> always = {"--memory",  memory,  "--spill", "always",
                                           "--scratch", scratch, "--quiet", "--explain"};
  const json spilled = parsed(always, "spilled.npy");
  const json& total = spilled["plan"]["total"];
  EXPECT_EQ(total["factors"], "spilled");
  EXPECT_GT(total["blocks"].get<int>(), 1);
  EXPECT_EQ(total["passes_per_example"], 1.0);
  EXPECT_GT(total["spilled_bytes"].get<double>(), 0);
  EXPECT_GT(total["spill_writing_seconds"].get<double>(), 0);
  EXPECT_EQ(total["scratch"]["folder"], scratch);
  EXPECT_EQ(total["scratch"]["rates"], "built in");
  EXPECT_EQ(total["instead"]["factors"], "recomputed");
  EXPECT_GT(total["instead"]["seconds"].get<double>(), 0);
  EXPECT_EQ(spilled["measured"]["spilled_bytes"], total["spilled_bytes"]);
  EXPECT_GT(spilled["measured"]["spill_writing_seconds"].get<double>(), 0);
  EXPECT_GT(spilled["measured"]["spill_reading_seconds"].get<double>(), 0);
  EXPECT_TRUE(fs::is_empty(scratch));

  // So little is quickly computed again.
  const json computed = parsed({"--memory", memory, "--quiet", "--explain"}, "computed.npy");
  const json& again = computed["plan"]["total"];
  EXPECT_EQ(again["factors"], "recomputed");
  EXPECT_EQ(again["instead"]["factors"], "spilled");
  EXPECT_GT(again["instead"]["spilled_bytes"].get<double>(), 0);
  EXPECT_GT(again["instead"]["seconds"].get<double>(), again["seconds"].get<double>());
  EXPECT_EQ(computed["ways"], spilled["ways"]);
  EXPECT_EQ(text_of(folder / "spilled.npy"), text_of(folder / "computed.npy"));

  std::vector<std::string> words = always;
  words.insert(words.end(), {"--rates", "built-in", "--way", "3=materialize"});
  const Outcome text = run(kernel(words));
  ASSERT_EQ(text.code, kDone) << text.err;
  for (const std::string& part :
       {std::string("spilled: "), scratch, std::string("computed again instead"),
        std::string("writing spilled factors"), std::string("reading them again")}) {
    EXPECT_NE(text.out.find(part), std::string::npos) << part << "\n" << text.out;
  }
  const Outcome told = run(
      kernel({"--memory", memory, "--plan-only", "--rates", "built-in", "--way", "3=materialize"}, nullptr));
  EXPECT_NE(told.out.find("computed again; spilled instead: "), std::string::npos) << told.out;
}

TEST_F(Explain, WhatDoesNotSpillRefusesToBeTold) {
  for (const std::vector<std::string>& wrong :
       std::vector<std::vector<std::string>>{{"--spill", "sometimes"},
                                             {"--spill", "never", "--scratch", folder.string()},
                                             {"--diagonal", "--spill", "always"},
                                             {"--diagonal", "--scratch", folder.string()},
                                             {"--infinite", "--spill", "auto"},
                                             {"--monte-carlo", "2", "--scratch", folder.string()},
                                             {"--approximate", "20", "--spill", "never"},
                                             {"--scratch", (folder / "absent").string()}}) {
    const Outcome outcome = run(kernel(wrong));
    EXPECT_EQ(outcome.code, kWrongUsage) << wrong[0] << " " << wrong[1];
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  }
  EXPECT_FALSE(fs::exists(folder / "k.npy"));
}

/// Measured once for each folder, and only to be shown.
TEST_F(Explain, MeasuresTheDiskOfTheScratchFolder) {
  fs::create_directories(folder / "scratch");
  const fs::path scratch = folder / "scratch";
  MeasuredRates measured;
  measured.when = "2026-01-31T12:00:00Z";
  measured.scratch = "/somewhere";
  measured.rates.scratch = {1, 1};
  ASSERT_EQ(store_rates(rates_path(), measured), "");
  ASSERT_EQ(run(kernel({"--scratch", scratch.string()})).code, kDone);
  EXPECT_EQ(read_rates(rates_path())->scratch, "/somewhere");
  ASSERT_EQ(run(kernel({"--scratch", scratch.string(), "--plan-only"}, nullptr)).code, kDone);
  const auto found = read_rates(rates_path());
  ASSERT_TRUE(found);
  EXPECT_EQ(found->scratch, scratch);
  EXPECT_EQ(found->when, measured.when);
  EXPECT_GT(found->rates.scratch.write, 1e6);
  EXPECT_GT(found->rates.scratch.read, 1e6);
  EXPECT_TRUE(fs::is_empty(scratch));
}

TEST_F(Explain, RatesAreKeptAndBrokenOnesAreNot) {
  const fs::path path = rates_path();
  EXPECT_EQ(path.parent_path(), folder / "cache" / "gradgram");
  EXPECT_FALSE(read_rates(path));
  MeasuredRates measured;
  measured.when = "2026-01-31T12:00:00Z";
  measured.rates.f32.gram = 123e9;
  measured.rates.f64.convolutions[2].reverse = 45e9;
  measured.rates.together = 0.75;
  measured.rates.scratch = {45e6, 123e6};
  measured.scratch = "/somewhere";
  ASSERT_EQ(store_rates(path, measured), "");
  const auto found = read_rates(path);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->rates.f32.gram, 123e9);
  EXPECT_EQ(found->rates.f64.convolutions[2].reverse, 45e9);
  EXPECT_EQ(found->rates.together, 0.75);
  EXPECT_EQ(found->rates.scratch.write, 45e6);
  EXPECT_EQ(found->rates.scratch.read, 123e6);
  EXPECT_EQ(found->scratch, "/somewhere");
  EXPECT_EQ(found->when, measured.when);

  const std::string good = text_of(path);
  const auto broken = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    std::ofstream(path) << text.replace(at, from.size(), to);
    EXPECT_FALSE(read_rates(path)) << from << " -> " << to;
  };
  broken("\"layout\": 3", "\"layout\": 2");
  broken("\"scratch_read_bytes_per_second\": 123000000.0", "\"scratch_read_bytes_per_second\": 0");
  broken("123000000000.0", "-1");
  broken("123000000000.0", "\"fast\"");
  broken("\"version\": \"", "\"version\": \"old ");
  broken("\"cpu\": \"", "\"cpu\": \"other ");
  broken("3x3 window", "5x5 window");
  std::ofstream(path) << good.substr(0, good.size() / 2);
  EXPECT_FALSE(read_rates(path));
  std::ofstream(path) << "";
  EXPECT_FALSE(read_rates(path));
  std::ofstream(path) << good;
  EXPECT_TRUE(read_rates(path));

  // They are what a plan reckons with.
  const Outcome plan = run(kernel({"--plan-only", "--json"}, nullptr));
  ASSERT_EQ(plan.code, kDone) << plan.err;
  EXPECT_EQ(json::parse(plan.out)["rates"], "measured 2026-01-31T12:00:00Z");
  EXPECT_EQ(json::parse(run({"doctor", "--json", "--threads", "1"}).out)["kernel_rates"]["measured"],
            "2026-01-31T12:00:00Z");
}

TEST_F(Explain, ACacheThatCannotBeWrittenIsToldAndNoMore) {
  // A file where the folder should be.
  std::ofstream(folder / "cache" / "gradgram") << "in the way";
  MeasuredRates measured;
  EXPECT_NE(store_rates(rates_path(), measured), "");
  setenv("XDG_CACHE_HOME", "relative", 1);
  const char* const home = std::getenv("HOME");
  const std::string before = home == nullptr ? "" : home;
  unsetenv("HOME");
  EXPECT_TRUE(rates_path().empty());
  EXPECT_FALSE(read_rates(rates_path()));
  EXPECT_NE(store_rates(rates_path(), measured), "");
  if (home != nullptr) setenv("HOME", before.c_str(), 1);
}

TEST_F(Explain, MeasuredOnceAndThenRead) {
  const Outcome first = run({"doctor", "--measure", "--json", "--threads", "2"});
  ASSERT_EQ(first.code, kDone) << first.err;
  const json rates = json::parse(first.out)["kernel_rates"];
  ASSERT_TRUE(fs::exists(rates_path()));
  for (const char* precision : {"f32", "f64"}) {
    for (const auto& [name, value] : rates[precision].items()) {
      if (value.is_number()) {
        EXPECT_GT(value.get<double>(), 1e6) << name;
      }
    }
  }
  const auto written = fs::last_write_time(rates_path());
  const Outcome plan = run(kernel({"--plan-only", "--json"}, nullptr));
  ASSERT_EQ(plan.code, kDone) << plan.err;
  EXPECT_EQ(json::parse(plan.out)["rates"].get<std::string>(),
            "measured " + rates["measured"].get<std::string>());
  EXPECT_EQ(fs::last_write_time(rates_path()), written);
}

}  // namespace
}  // namespace gradgram::cli
