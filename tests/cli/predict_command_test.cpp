#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/npy.hpp"
#include "engine/random.hpp"
#include "tests/cli/program.hpp"
#include "tests/reference/linear_training.hpp"
#include "tests/source_root.hpp"

namespace gradgram::cli {
namespace {

namespace fs = std::filesystem;

class PredictCommand : public InFolder {
 protected:
  nlohmann::json report(const std::string& name) const {
    std::ifstream file(at(name));
    return nlohmann::json::parse(file);
  }
  Tensor<double> array(const std::string& name) const { return read_npy(at(name)).to_tensor<double>(); }
  /// Random numbers as .npy.
  Tensor<double> write(const std::string& name, Shape shape, std::uint64_t seed) const {
    Tensor<double> values(shape);
    Random random(seed);
    for (double& value : values.span()) value = random.normal();
    write_npy<double>(at(name), values.view());
    return values;
  }
  /// Examples and real targets, from which a linear function can be learned.
  void regression_set(const std::string& name, std::size_t n, std::uint64_t seed) const {
    std::ofstream file(at(name));
    Random random(seed);
    file << "a,b,c,y\n";
    for (std::size_t i = 0; i < n; ++i) {
      const double a = random.normal();
      const double b = random.normal();
      const double c = random.normal();
      file << a << ',' << b << ',' << c << ',' << 0.5 * a - b + 0.25 * c + 1e-3 * random.normal() << '\n';
    }
  }
};

// Linear regression by hand: a network without hidden layers has the kernel x . x' / 3.
TEST_F(PredictCommand, LinearNetworksLearnLinearRegression) {
  regression_set("train.csv", 40, 1);
  regression_set("test.csv", 11, 2);
  const std::vector<std::string> base = {"predict",  "--model",      "dense(1)", "--data", at("train.csv"),
                                         "--versus", at("test.csv"), "--dtype",  "f64",    "--quiet",
                                         "--out",    at("p.npy"),    "--ridge",  "0.001"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return run(more);
  };
  Outcome outcome = with({"--infinite", "--weight-variance", "1"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_NE(outcome.out.find("largest stable rate"), std::string::npos);
  EXPECT_NE(outcome.out.find("relative residual"), std::string::npos);
  nlohmann::json json = report("p.json");
  EXPECT_LT(json["test_score"]["mean_squared_error"], 1e-5);
  EXPECT_FALSE(json["test_score"].contains("accuracy"));
  EXPECT_LT(json["relative_residual"], 1e-8);
  EXPECT_EQ(json["time"], "inf");
  EXPECT_EQ(array("p.npy").shape(), (Shape{11, 1}));
  const Tensor<double> infinite = array("p.npy");
  // A drawn one learns the same forever, up to the little that the ridge keeps of where it began.
  outcome = with({"--seed", "3"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const Tensor<double> drawn = array("p.npy");
  for (std::size_t i = 0; i < 11; ++i) EXPECT_NEAR(infinite(i, 0), drawn(i, 0), 0.01);
  // A finite time, by its rate; and what the largest stable rate says of steps.
  const double stable = json["largest_stable_rate"]["plain"];
  outcome = with({"--infinite", "--weight-variance", "1", "--steps", "5000", "--learning-rate",
                  std::to_string(0.9 * stable)});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_LT(report("p.json")["test_score"]["mean_squared_error"], 1e-4);
  EXPECT_EQ(report("p.json")["diverges"], false);
  // A few steps above it stay finite, and say so.
  outcome = with({"--infinite", "--weight-variance", "1", "--steps", "20", "--learning-rate",
                  std::to_string(1.1 * stable)});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_EQ(report("p.json")["diverges"], true);
  EXPECT_NE(outcome.out.find("the descent diverges"), std::string::npos) << outcome.out;
  outcome = with({"--infinite", "--weight-variance", "1", "--steps", "20000", "--learning-rate",
                  std::to_string(1.1 * stable)});
  EXPECT_EQ(outcome.code, kFailed);
  EXPECT_NE(outcome.err.find("largest stable rate"), std::string::npos) << outcome.err;
  outcome = with({"--infinite", "--weight-variance", "1", "--steps", "400", "--learning-rate",
                  std::to_string(1.8 * stable), "--momentum", "0.9"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_EQ(report("p.json")["momentum"], 0.9);
  outcome = with({"--infinite", "--time", "0", "--learning-rate", "1", "--variance"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const Tensor<double> untrained = array("p.npy");
  const Tensor<double> prior = array("p.variance.npy");
  for (const double value : untrained.span()) EXPECT_EQ(value, 0);
  for (const double value : prior.span()) EXPECT_GT(value, 0);
}

TEST_F(PredictCommand, ClassesOfTheEmbeddedImages) {
  const std::string source = (source_root() / "datasets" / "fashion-mnist-sample").string();
  const std::vector<std::string> base = {
      "predict",  "--infinite", "--model", "flatten dense(8) relu dense(10)",
      "--data",   source,       "--train", "150",
      "--test",   "60",         "--quiet", "--out",
      at("p.npy")};
  Outcome outcome = run(base);
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  nlohmann::json json = report("p.json");
  EXPECT_GT(json["test_score"]["accuracy"], 0.55);
  EXPECT_LE(json["test_score"]["accuracy"], 1.0);
  EXPECT_EQ(json["train_score"]["accuracy"], 1.0);
  EXPECT_EQ(json["test"]["examples"], 60);
  EXPECT_EQ(array("p.npy").shape(), (Shape{60, 10}));
  EXPECT_NE(outcome.out.find("held out"), std::string::npos) << outcome.out;
  std::vector<std::string> process = base;
  process.insert(process.end(),
                 {"--get", "nngp", "--variance", "--ridge", "0.01", "--standardize", "feature"});
  outcome = run(process);
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_EQ(report("p.json")["variance"]["of"], "posterior");
  const Tensor<double> variance = array("p.variance.npy");
  for (const double value : variance.span()) EXPECT_GT(value, 0);
}

TEST_F(PredictCommand, KernelsFromFiles) {
  constexpr std::size_t n = 60;
  constexpr std::size_t m = 7;
  const Tensor<double> x = write("x.npy", Shape{n, 70}, 1);
  const Tensor<double> z = write("z.npy", Shape{m, 70}, 2);
  std::vector<double> k(n * n, 0.0);
  std::vector<double> cross(m * n, 0.0);
  for (std::size_t p = 0; p < 70; ++p) {
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) k[i * n + j] += x(i, p) * x(j, p) / 70;
    }
    for (std::size_t i = 0; i < m; ++i) {
      for (std::size_t j = 0; j < n; ++j) cross[i * n + j] += z(i, p) * x(j, p) / 70;
    }
  }
  write_npy<double>(at("k.npy"), TensorView<const double>(k.data(), Shape{n, n}));
  write_npy<double>(at("c.npy"), TensorView<const double>(cross.data(), Shape{m, n}));
  const Tensor<double> y = write("y.npy", Shape{n, 2}, 3);
  for (std::size_t i = 0; i < n; ++i) k[i * n + i] += 0.1;
  const std::vector<double> weights = reference::solve(k, {y.span().begin(), y.span().end()}, n);
  const std::vector<std::string> base = {"predict",   "--kernel",  at("k.npy"), "--cross",
                                         at("c.npy"), "--targets", at("y.npy"), "--ridge",
                                         "0.1",       "--quiet",   "--out",     at("p.npy")};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return run(more);
  };
  // 60 x 60 numbers are 28,800 bytes: the second budget holds no factor.
  for (const std::string& budget : {std::string("1GB"), std::string("1")}) {
    const Outcome outcome = with({"--memory", budget, "--threads", "1"});
    if (budget == "1") {
      EXPECT_EQ(outcome.code, kFailed);
      EXPECT_NE(outcome.err.find("budget"), std::string::npos) << outcome.err;
      continue;
    }
    ASSERT_EQ(outcome.code, kDone) << outcome.err;
    const Tensor<double> found = array("p.npy");
    for (std::size_t i = 0; i < m; ++i) {
      for (std::size_t c = 0; c < 2; ++c) {
        double expected = 0;
        for (std::size_t j = 0; j < n; ++j) expected += cross[i * n + j] * weights[j * 2 + c];
        EXPECT_NEAR(found(i, c), expected, 1e-10);
      }
    }
  }
  const std::vector<std::int32_t> labels(n, 3);
  write_npy(at("l.npy"), labels);
  const Outcome one_class = run({"predict", "--kernel", at("k.npy"), "--cross", at("c.npy"), "--targets",
                                 at("l.npy"), "--quiet", "--out", at("p.npy")});
  EXPECT_EQ(one_class.code, kWrongUsage);
  EXPECT_NE(one_class.err.find("different labels"), std::string::npos) << one_class.err;
  EXPECT_EQ(with({"--variance"}).code, kWrongUsage);
  EXPECT_EQ(with({"--steps", "3"}).code, kWrongUsage);
  EXPECT_EQ(with({"--time", "-1", "--learning-rate", "1"}).code, kWrongUsage);
  EXPECT_EQ(with({"--momentum", "0.5"}).code, kWrongUsage);
  EXPECT_EQ(run({"predict", "--kernel", at("k.npy"), "--out", at("p.npy")}).code, kWrongUsage);
  EXPECT_EQ(run({"predict", "--out", at("p.npy")}).code, kWrongUsage);
}

/// Eigenvalues 5 and -3 by hand.
TEST_F(PredictCommand, AnIndefiniteKernelIsRefusedAtAnyTimeWithARidgeThatDoes) {
  const std::vector<double> kernel = {1, 4, 4, 1};
  const std::vector<double> cross = {1, 2};
  const std::vector<double> targets = {1, -1};
  write_npy<double>(at("k.npy"), TensorView<const double>(kernel.data(), Shape{2, 2}));
  write_npy<double>(at("c.npy"), TensorView<const double>(cross.data(), Shape{1, 2}));
  write_npy<double>(at("y.npy"), TensorView<const double>(targets.data(), Shape{2}));
  const auto predict = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"predict", "--kernel", at("k.npy"), "--cross", at("c.npy"), "--targets",
                               at("y.npy"), "--quiet", "--out", at("p.npy")});
    return run(more);
  };
  const std::vector<std::vector<std::string>> ways = {
      {}, {"--time", "300", "--learning-rate", "1"}, {"--steps", "3", "--learning-rate", "0.1"}};
  for (std::vector<std::string> words : ways) {
    for (const char* given : {"0", "2.9"}) {
      std::vector<std::string> asked = words;
      asked.insert(asked.end(), {"--ridge", given});
      const Outcome refused = predict(asked);
      EXPECT_EQ(refused.code, kFailed) << given;
      // A factor's is that of the matrix with its ridge.
      const bool shifted = words.empty() && std::string(given) != "0";
      EXPECT_NE(refused.err.find(shifted ? "-0.1" : "-3"), std::string::npos) << refused.err;
      EXPECT_FALSE(fs::exists(at("p.npy")));
      // The ridge that it names does, and is meant in the place of the one that was given.
      const std::string before = "--ridge ";
      const std::size_t place = refused.err.find(before);
      ASSERT_NE(place, std::string::npos) << refused.err;
      asked.back() = std::to_string(std::stod(refused.err.substr(place + before.size())));
      const Outcome outcome = predict(asked);
      EXPECT_EQ(outcome.code, kDone) << asked.back() << outcome.err;
      fs::remove(at("p.npy"));
    }
  }
}

TEST_F(PredictCommand, PackedKernelsAreReadLikeSquareOnes) {
  write("x.npy", Shape{30, 4}, 1);
  write("z.npy", Shape{7, 4}, 2);
  write("y.npy", Shape{30}, 3);
  const auto kernel = [&](const std::string& out, const std::vector<std::string>& more) {
    std::vector<std::string> words = {
        "kernel", "--model", "dense(9) relu dense(1)", "--data", at("x.npy"), "--out", at(out), "--quiet"};
    words.insert(words.end(), more.begin(), more.end());
    return run(words).code;
  };
  ASSERT_EQ(kernel("square.npy", {}), kDone);
  ASSERT_EQ(kernel("packed.npy", {"--packed"}), kDone);
  ASSERT_EQ(kernel("blocks.npy", {"--reduce", "full"}), kDone);
  ASSERT_EQ(run({"kernel", "--model", "dense(9) relu dense(1)", "--data", at("z.npy"), "--versus",
                 at("x.npy"), "--out", at("c.npy"), "--quiet"})
                .code,
            kDone);
  const auto predict = [&](const std::string& name, const std::vector<std::string>& more) {
    std::vector<std::string> words = {"predict",   "--kernel", at(name), "--cross", at("c.npy"), "--targets",
                                      at("y.npy"), "--ridge",  "0.1",    "--quiet", "--out",     at("p.npy")};
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  };
  ASSERT_EQ(predict("square.npy", {}).code, kDone);
  const Tensor<double> square = array("p.npy");
  for (const char* name : {"packed.npy", "blocks.npy"}) {
    const Outcome outcome = predict(name, {});
    ASSERT_EQ(outcome.code, kDone) << outcome.err;
    EXPECT_EQ(outcome.out.find("packed") != std::string::npos, std::string(name) == "packed.npy");
    const Tensor<double> found = array("p.npy");
    ASSERT_EQ(found.shape(), square.shape());
    EXPECT_TRUE(std::equal(found.span().begin(), found.span().end(), square.span().begin())) << name;
  }
  const Outcome small = predict("packed.npy", {"--memory", "3000"});
  EXPECT_EQ(small.code, kFailed);
  EXPECT_NE(small.err.find("the memory budget (3000 bytes) cannot hold"), std::string::npos) << small.err;
  fs::remove(at("packed.json"));
  const Outcome alone = predict("packed.npy", {});
  EXPECT_EQ(alone.code, kWrongUsage);
  EXPECT_NE(alone.err.find("packed.json"), std::string::npos) << alone.err;
}

TEST_F(PredictCommand, FiniteNetworksOfSeveralOutputs) {
  const std::string source = (source_root() / "datasets" / "fashion-mnist-sample").string();
  const std::vector<std::string> base = {"predict",  "--model", "flatten dense(16) relu dense(3)",
                                         "--data",   source,    "--classes",
                                         "0,1,2",    "--train", "30",
                                         "--test",   "12",      "--dtype",
                                         "f64",      "--quiet", "--out",
                                         at("p.npy")};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return run(more);
  };
  EXPECT_EQ(with({}).code, kWrongUsage);  // the outputs must be joined or shared
  EXPECT_EQ(with({"--reduce", "trace-sum"}).code, kWrongUsage);
  for (const char* how : {"full", "trace-mean"}) {
    const Outcome outcome = with({"--reduce", how});
    ASSERT_EQ(outcome.code, kDone) << outcome.err;
    EXPECT_EQ(array("p.npy").shape(), (Shape{12, 3}));
    EXPECT_EQ(report("p.json")["train_score"]["accuracy"], 1.0);
    EXPECT_EQ(outcome.out.find("approximation") != std::string::npos, std::string(how) == "trace-mean");
  }
  EXPECT_EQ(with({"--reduce", "full", "--variance"}).code, kWrongUsage);
}

TEST_F(PredictCommand, MonteCarloKernels) {
  write("x.npy", Shape{5, 2, 4, 4}, 1);
  const std::vector<std::string> base = {"kernel",   "--model",   "conv(4,3) relu maxpool(2) gap dense(1)",
                                         "--data",   at("x.npy"), "--parameterization",
                                         "ntk",      "--quiet",   "--out",
                                         at("k.npy")};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return run(more);
  };
  Outcome outcome = with({"--infinite"});
  EXPECT_EQ(outcome.code, kWrongUsage);
  EXPECT_NE(outcome.err.find("--monte-carlo"), std::string::npos) << outcome.err;
  outcome = with({"--monte-carlo", "6"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_NE(outcome.out.find("estimate"), std::string::npos);
  EXPECT_NE(outcome.out.find("standard error"), std::string::npos);
  const nlohmann::json json = report("k.json");
  EXPECT_EQ(json["samples"], 6);
  EXPECT_TRUE(json.contains("estimate"));
  const Tensor<double> mean = array("k.npy");
  const Tensor<double> error = array("k.error.npy");
  ASSERT_EQ(mean.shape(), (Shape{5, 5}));
  for (std::size_t i = 0; i < 25; ++i) EXPECT_GT(error.data()[i], 0);
  ASSERT_EQ(with({"--monte-carlo", "6", "--versus", at("x.npy"), "--get", "nngp"}).code, kDone);
  EXPECT_EQ(report("k.json")["get"], "nngp");
  EXPECT_EQ(with({"--monte-carlo", "1"}).code, kWrongUsage);
  EXPECT_EQ(with({"--monte-carlo", "3", "--diagonal"}).code, kWrongUsage);
  EXPECT_EQ(with({"--monte-carlo", "3", "--infinite"}).code, kWrongUsage);
}

}  // namespace
}  // namespace gradgram::cli
