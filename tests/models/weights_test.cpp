#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/arena.hpp"
#include "engine/error.hpp"
#include "engine/npy.hpp"
#include "models/network.hpp"
#include "tests/models/random_model.hpp"
#include "tests/source_root.hpp"

namespace gradgram::models {
namespace {

namespace fs = std::filesystem;

fs::path golden(const std::string& name) {
  return source_root() / "tests" / "golden" / "models" / name;
}

/// A folder of this test alone, removed at its end.
class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "gradgram_weights_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  fs::path operator/(const char* name) const { return path_ / name; }

 private:
  fs::path path_;
};

/// Writes f8 arrays given by name and shape, numbered 1, 2, 3... unless `value` says otherwise.
void write_arrays(const fs::path& path, const std::vector<std::pair<std::string, Shape>>& arrays,
                  double value = std::numeric_limits<double>::quiet_NaN()) {
  std::vector<Tensor<double>> tensors;
  std::vector<NamedTensor<double>> named;
  tensors.reserve(arrays.size());
  for (const auto& [name, shape] : arrays) {
    Tensor<double>& tensor = tensors.emplace_back(shape);
    double next = 1;
    for (double& v : tensor.span()) v = std::isnan(value) ? next++ : value;
    named.push_back({name, std::as_const(tensor).view()});
  }
  write_npz<double>(path, named);
}

template <class T>
std::string refusal(Network<T>& network, const fs::path& path) {
  const double before = network.parameters().value(0).data()[0];
  try {
    network.load_weights(path);
  } catch (const FormatError& error) {
    EXPECT_EQ(network.parameters().value(0).data()[0], before);
    std::string message = error.what();
    const std::size_t at = message.find(path.string());
    EXPECT_NE(at, std::string::npos) << message;
    return message.replace(at, path.string().size(), "FILE");
  }
  return {};
}

template <class T>
class WeightsOf : public ::testing::Test {};
using Precisions = ::testing::Types<float, double>;
TYPED_TEST_SUITE(WeightsOf, Precisions);

// tests/golden/models/generate.py made these with PyTorch.
const char* const kImageText =
    "conv(4,3x5) relu maxpool(2) conv(6,3,stride=2,pad=1,bias=false) tanh residual(conv(6,3) gelu conv(6,1) "
    "| "
    "conv(6,1)) avgpool(2,stride=1,pad=1) flatten dense(5) softplus dense(3)";
const char* const kVectorText =
    "dense(7) sigmoid residual(dense(5) leakyrelu(0.1) dense(7)) sin dense(6,bias=false) erf dense(4) "
    "logsoftmax";

template <class T>
double distance_from_torch(const std::string& name, const std::string& text, const Shape& input,
                           const char* weights, std::size_t corrupt_parameter = SIZE_MAX) {
  Network<T> network(parse(text, input), {.seed = 99});
  network.load_weights(golden(name + weights));
  if (corrupt_parameter != SIZE_MAX) network.parameters().value(corrupt_parameter).data()[0] += T(0.01);
  const Tensor<T> x = read_npy(golden(name + "_x.npy")).to_tensor<T>();
  const Tensor<double> y = read_npy(golden(name + "_y.npy")).to_tensor<double>();
  Arena arena;
  Tape<T> tape(arena, false);
  const TensorView<const T> found = tape.value(network.forward(tape, tape.input(x.view())));
  EXPECT_TRUE(found.shape() == y.shape());
  double largest = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double difference = std::abs(static_cast<double>(found.data()[i]) - y.data()[i]);
    if (!(difference <= largest)) largest = difference;  // keeps a NaN
  }
  return largest;
}

TEST(Weights, PytorchStateDictsLoadAsTheyAre) {
  const Shape image{13, 11, 2};
  const Shape vector{9};
  EXPECT_TRUE(distance_from_torch<double>("image", kImageText, image, "_f8.npz") <= 1e-13);
  EXPECT_TRUE(distance_from_torch<double>("vector", kVectorText, vector, "_f8.npz") <= 1e-13);
  // Weights rounded to f32, then arithmetic in f32: outputs are of order one.
  EXPECT_TRUE(distance_from_torch<double>("image", kImageText, image, "_f4.npz") <= 1e-6);
  EXPECT_TRUE(distance_from_torch<float>("image", kImageText, image, "_f8.npz") <= 2e-6);
  EXPECT_TRUE(distance_from_torch<float>("image", kImageText, image, "_f4.npz") <= 2e-6);
  EXPECT_TRUE(distance_from_torch<float>("vector", kVectorText, vector, "_f4.npz") <= 2e-6);
  // The oracle sees a small change in any one parameter.
  const std::size_t count = Network<double>(parse(kImageText, image), {}).parameters().count();
  for (std::size_t i = 0; i < count; ++i) {
    EXPECT_TRUE(distance_from_torch<double>("image", kImageText, image, "_f8.npz", i) > 1e-7) << i;
  }
}

TYPED_TEST(WeightsOf, ConvolutionsAreTransposed) {
  const Folder folder;
  Network<TypeParam> network(parse("conv(3,2x4,pad=valid) gap", {4, 4, 5}), {});
  write_arrays(folder / "w.npz", {{"0.weight", {3, 5, 2, 4}}, {"0.bias", {3}}});
  network.load_weights(folder / "w.npz");
  const auto w = network.parameters().value(0);
  TypeParam next = 1;
  for (std::size_t o = 0; o < 3; ++o) {
    for (std::size_t i = 0; i < 5; ++i) {
      for (std::size_t y = 0; y < 2; ++y) {
        for (std::size_t x = 0; x < 4; ++x) EXPECT_EQ(w(y, x, i, o), next++);
      }
    }
  }
  EXPECT_EQ(network.parameters().value(1).data()[2], TypeParam(3));
}

TYPED_TEST(WeightsOf, RandomModelsGoRoundBitForBit) {
  constexpr std::uint64_t kSeed = 50;
  this->RecordProperty("seed", std::to_string(kSeed));
  const Folder folder;
  testing::RandomModelMaker maker(kSeed);
  for (int i = 0; i < 30; ++i) {
    const testing::RandomModel made = maker.next();
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", model " << i << ": " << made.text);
    const Model model(made.layers, made.input);
    const Network<TypeParam> saved(model, {.bias_variance = 0.5, .seed = 1});
    saved.save_weights(folder / "w.npz");
    Network<TypeParam> loaded(model, {.seed = 2});
    loaded.load_weights(folder / "w.npz");
    for (std::size_t p = 0; p < saved.parameters().count(); ++p) {
      const auto a = saved.parameters().value(p).span();
      const auto b = std::as_const(loaded).parameters().value(p).span();
      ASSERT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << saved.parameters().name(p);
    }
    // The file holds the type of the network and PyTorch's shapes.
    for (const auto& [name, array] : read_npz(folder / "w.npz")) {
      EXPECT_EQ(array.type, sizeof(TypeParam) == 4 ? NpyType::F4 : NpyType::F8);
      const Shape shape = saved.parameters().value(saved.parameters().find(name)).shape();
      ASSERT_EQ(array.shape.size(), shape.rank());
      if (shape.rank() == 4) {
        EXPECT_EQ(array.shape, (std::vector<std::size_t>{shape[3], shape[2], shape[0], shape[1]}));
      }
    }
  }
}

TYPED_TEST(WeightsOf, OneErrorTellsAllThatDoesNotFit) {
  const Folder folder;
  Network<TypeParam> network(parse("conv(3,2,pad=valid) gap dense(4) dense(2)", {4, 4, 5}), {});
  write_arrays(
      folder / "w.npz",
      {{"0.weight", {2, 2, 5, 3}}, {"0.bias", {3}}, {"2.weight", {4}}, {"3.bias", {2}}, {"9.weight", {1}}});
  EXPECT_EQ(refusal(network, folder / "w.npz"),
            "load_weights: FILE: missing: 2.bias, 3.weight; not in the model: 9.weight; of another shape: "
            "0.weight is "
            "[2, 2, 5, 3], expected [3, 5, 2, 2], 2.weight is [4], expected [4, 3]");
}

TYPED_TEST(WeightsOf, LongListsAreCutShort) {
  const Folder folder;
  Network<TypeParam> network(parse("mlp:width=1,depth=5", {1}), {});
  write_arrays(folder / "w.npz", {{"x", {1}}});
  EXPECT_EQ(refusal(network, folder / "w.npz"),
            "load_weights: FILE: missing: 0.weight, 0.bias, 2.weight, 2.bias, 4.weight, 4.bias, 6.weight, "
            "6.bias and 4 "
            "more; not in the model: x");
}

TYPED_TEST(WeightsOf, SaysWhyNtkHasNoBiases) {
  const Folder folder;
  Network<TypeParam> network(parse("dense(2)", {3}), {.parameterization = Parameterization::Ntk});
  write_arrays(folder / "w.npz", {{"0.weight", {2, 3}}, {"0.bias", {2}}});
  EXPECT_EQ(refusal(network, folder / "w.npz"),
            "load_weights: FILE: not in the model: 0.bias; the ntk parameterization with bias variance 0 has "
            "no biases");
}

TYPED_TEST(WeightsOf, RefusesNumbersThatAreNone) {
  const Folder folder;
  Network<TypeParam> network(parse("conv(2,1) gap", {4, 4, 2}), {});
  const double infinity = std::numeric_limits<double>::infinity();
  write_arrays(folder / "w.npz", {{"0.weight", {2, 2, 1, 1}}, {"0.bias", {2}}}, infinity);
  EXPECT_EQ(refusal(network, folder / "w.npz"),
            "load_weights: FILE: 0.bias holds inf at element 0, expected finite numbers");

  Tensor<double> weight({2, 2, 1, 1});
  weight.data()[3] = std::numeric_limits<double>::quiet_NaN();
  const Tensor<double> bias(Shape{2});
  const std::vector<NamedTensor<double>> arrays{{"0.weight", std::as_const(weight).view()},
                                                {"0.bias", bias.view()}};
  write_npz<double>(folder / "n.npz", arrays);
  EXPECT_EQ(refusal(network, folder / "n.npz"),
            "load_weights: FILE: 0.weight holds nan at element 3, expected finite numbers");

  network.parameters().value(0).data()[1] = std::numeric_limits<TypeParam>::quiet_NaN();
  EXPECT_THROW(network.save_weights(folder / "s.npz"), NumericError);
  EXPECT_FALSE(fs::exists(folder / "s.npz"));
}

TEST(Weights, RefusesNumbersTooLargeForF32) {
  const Folder folder;
  write_arrays(folder / "w.npz", {{"0.weight", {1, 1}}, {"0.bias", {1}}}, 1e300);
  Network<float> network(parse("dense(1)", {1}), {});
  EXPECT_EQ(refusal(network, folder / "w.npz"),
            "load_weights: FILE: 0.bias holds inf at element 0, expected finite numbers");
  Network<double> wide(parse("dense(1)", {1}), {});
  wide.load_weights(folder / "w.npz");
  EXPECT_EQ(wide.parameters().value(0).data()[0], 1e300);
}

TEST(Weights, RefusesWhatIsNoArchive) {
  const Folder folder;
  Network<float> network(parse("dense(1)", {1}), {});
  EXPECT_THROW(network.load_weights(folder / "absent.npz"), IoError);
  std::ofstream(folder / "w.npz") << "no archive";
  EXPECT_THROW(network.load_weights(folder / "w.npz"), FormatError);
}

}  // namespace
}  // namespace gradgram::models
