#include "ntk/infinite/infinite_file.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "engine/npy.hpp"
#include "models/model.hpp"
#include "ntk/packed.hpp"
#include "tests/file_bytes.hpp"
#include "tests/ntk/kernel_cases.hpp"

namespace gradgram::ntk {
namespace {

namespace fs = std::filesystem;

struct Case {
  const char* name;
  const char* text;
  Shape input;
  std::size_t n;
};
/// Two and more tiles a side for each way in which entries are computed.
const std::vector<Case> kCases = {
    {"vectors", "dense(9) relu dense(9) erf dense(1)", {7}, 1100},
    {"flatten", "conv(3,3) relu conv(3,3) relu flatten dense(1)", {5, 5, 2}, 530},
    {"gap", "conv(3,3) relu conv(3,3) relu gap dense(1)", {4, 5, 2}, 70}};

class InfiniteFileTest : public testing::Test {
 protected:
  void SetUp() override {
    folder = fs::path(testing::TempDir()) / ("gradgram-infinite-file-" + std::to_string(getpid()) + "-" +
                                             testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder);
    fs::create_directories(folder);
    destination.path = folder / "k.npy";
    variances.weight_variance = 2;
    variances.bias_variance = 0.1;
  }
  void TearDown() override { fs::remove_all(folder); }

  /// What infinite_kernel gives, in a file.
  template <class T>
  std::string reference(const Case& c, TensorView<const T> x, const TensorView<const T>* versus, bool nngp) {
    InfiniteOptions what;
    what.nngp = nngp;
    what.ntk = !nngp;
    const models::Model model = models::parse(c.text, c.input);
    const Workers workers(1);
    const InfiniteKernels<T> kernels = versus == nullptr
                                           ? infinite_kernel<T>(model, variances, x, what, workers)
                                           : infinite_kernel<T>(model, variances, x, *versus, what, workers);
    const Tensor<T>& square = nngp ? kernels.nngp : kernels.ntk;
    if (!destination.packed) {
      write_npy<T>(folder / "reference.npy", square.view());
    } else {
      std::vector<T> entries;
      const std::size_t n = square.shape()[0];
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j <= i; ++j) entries.push_back(square.span()[i * n + j]);
      }
      write_npy<T>(folder / "reference.npy", Tensor<T>(Shape{entries.size()}, entries));
    }
    return bytes_of(folder / "reference.npy");
  }

  template <class T>
  void expect_equal(const Case& c, bool nngp) {
    SCOPED_TRACE(c.name);
    const models::Model model = models::parse(c.text, c.input);
    const Tensor<T> x = kernel_cases::inputs_of<T>(c.input, c.n, 3);
    InfiniteOptions what;
    what.nngp = nngp;
    what.ntk = !nngp;
    for (const bool packed : {false, true}) {
      destination.packed = packed;
      const std::string expected = reference<T>(c, x.view(), nullptr, nngp);
      for (const std::size_t workers : {std::size_t{1}, std::size_t{3}}) {
        const KernelFile file =
            infinite_kernel_to_file<T>(model, variances, x.view(), what, destination, Workers(workers));
        EXPECT_GT(file.tiles, 1u);
        EXPECT_TRUE(bytes_of(destination.path) == expected);
      }
    }
    destination.packed = false;
    const Tensor<T> versus = kernel_cases::inputs_of<T>(c.input, c.n / 3, 4);
    const TensorView<const T> view = versus.view();
    infinite_kernel_to_file<T>(model, variances, x.view(), view, what, destination, Workers(2));
    EXPECT_TRUE(bytes_of(destination.path) == reference<T>(c, x.view(), &view, nngp));
  }

  fs::path folder;
  KernelDestination destination;
  models::NetworkOptions variances;
};

TEST_F(InfiniteFileTest, EqualsTheKernelInMemoryBitForBit) {
  for (const Case& c : kCases) expect_equal<float>(c, false);
  expect_equal<float>(kCases[0], true);
  expect_equal<double>(kCases[2], false);
  // Pooling between nonlinearities: f64 inside, rounded at the end.
  expect_equal<float>({"pooled", "conv(3,3) relu avgpool(2) conv(3,3) relu flatten dense(1)", {4, 4, 2}, 66},
                      false);
}

TEST_F(InfiniteFileTest, GoesOnAfterAStop) {
  // More tiles than are computed before they are written.
  std::vector<Case> cases = kCases;
  cases[0].n = 2100;
  cases[1].n = 2100;
  cases[1].input = {2, 2, 1};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const models::Model model = models::parse(c.text, c.input);
    const Tensor<float> x = kernel_cases::inputs_of<float>(c.input, c.n, 3);
    for (const bool packed : {false, true}) {
      destination.packed = packed;
      InfiniteOptions what;
      std::stop_source source;
      what.stop = source.get_token();
      std::size_t last = 0;
      std::size_t all = 0;
      what.progress = [&](std::size_t done, std::size_t total) {
        EXPECT_GE(done, last);
        last = done;
        all = total;
        if (20 * done > 17 * total) source.request_stop();
      };
      try {
        infinite_kernel_to_file<float>(model, variances, x.view(), what, destination, Workers(2));
        ADD_FAILURE() << "was not stopped";
      } catch (const StoppedResumable& stopped) {
        EXPECT_NE(std::string(stopped.what()).find("the same call goes on from there"), std::string::npos);
      }
      EXPECT_FALSE(fs::exists(destination.path));
      EXPECT_EQ(all, c.n * (c.n + 1) / 2);
      // Only what is left counts.
      what = {};
      last = 0;
      what.progress = [&](std::size_t done, std::size_t total) {
        last = done;
        EXPECT_LT(total, all);
        EXPECT_LE(done, total);
        all = total + 1;
      };
      const KernelFile file =
          infinite_kernel_to_file<float>(model, variances, x.view(), what, destination, Workers(3));
      EXPECT_GE(file.found, 1u);
      EXPECT_LT(file.found, file.tiles);
      EXPECT_EQ(last + 1, all);
      EXPECT_TRUE(bytes_of(destination.path) == reference<float>(c, x.view(), nullptr, false));
      fs::remove(destination.path);
    }
  }
}

template <class F>
std::string thrown(F call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing";
}

TEST_F(InfiniteFileTest, RefusesWhatDiffersAndLeavesNothingWhenItCannotBegin) {
  const Case c = kCases[2];
  const Tensor<float> x = kernel_cases::inputs_of<float>(c.input, c.n, 3);
  std::stop_source source;
  InfiniteOptions what;
  what.stop = source.get_token();
  what.progress = [&](std::size_t done, std::size_t total) {
    if (2 * done > total) source.request_stop();
  };
  const auto run = [&](const char* text, const InfiniteOptions& options) {
    return thrown([&] {
      infinite_kernel_to_file<float>(models::parse(text, c.input), variances, x.view(), options, destination,
                                     Workers(2));
    });
  };
  const std::string limitless = run("conv(3,3) relu maxpool(2) flatten dense(1)", {});
  EXPECT_NE(limitless.find("maxpool"), std::string::npos) << limitless;
  InfiniteOptions poor;
  poor.memory = 50000;
  EXPECT_NE(run(c.text, poor).find("bytes"), std::string::npos);
  InfiniteOptions both;
  both.nngp = true;
  EXPECT_NE(run(c.text, both).find("both of nngp and ntk"), std::string::npos);
  EXPECT_TRUE(fs::is_empty(folder));

  EXPECT_TRUE(run(c.text, what).starts_with("stopped; "));
  EXPECT_NE(run("conv(3,3) erf conv(3,3) relu gap dense(1)", {}).find("model was "), std::string::npos);
  InfiniteOptions nngp;
  nngp.nngp = true;
  nngp.ntk = false;
  EXPECT_NE(run(c.text, nngp).find("kernel was ntk of infinite width"), std::string::npos);
  variances.weight_variance = 1.5;
  EXPECT_NE(run(c.text, {}).find("weight variance was 2 and is now 1.5"), std::string::npos);
  variances.weight_variance = 2;
  destination.packed = true;
  EXPECT_NE(run(c.text, {}).find("storage was square and is now packed"), std::string::npos);
  destination.packed = false;
  EXPECT_EQ(run(c.text, {}), "nothing");
  EXPECT_TRUE(bytes_of(destination.path) == reference<float>(c, x.view(), nullptr, false));
  // Negative control: the comparison sees one bit.
  std::string other = bytes_of(destination.path);
  other.back() = static_cast<char>(other.back() ^ 1);
  EXPECT_FALSE(other == reference<float>(c, x.view(), nullptr, false));
}

TEST_F(InfiniteFileTest, NoExamples) {
  const models::Model model = models::parse("dense(1)", {3});
  const Tensor<float> x(Shape{0, 3});
  infinite_kernel_to_file<float>(model, variances, x.view(), {}, destination, Workers(1));
  EXPECT_EQ(read_npy(destination.path).shape, (std::vector<std::size_t>{0, 0}));
  const Tensor<float> wrong(Shape{0, 4});
  EXPECT_THROW(infinite_kernel_to_file<float>(model, variances, wrong.view(), {}, destination, Workers(1)),
               ShapeError);
}

}  // namespace
}  // namespace gradgram::ntk
