#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <string>
#include <vector>

#include "engine/error.hpp"
#include "engine/random.hpp"
#include "models/model.hpp"
#include "tests/models/random_model.hpp"

namespace gradgram::models {
namespace {

const Shape kImage{32, 32, 3};
const Shape kVector{784};

/// What parse says when it refuses; empty when it accepts.
std::string refusal(const std::string& text, const Shape& input, const ParseOptions& options = {}) {
  try {
    parse(text, input, options);
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

struct Accepted {
  std::string text;
  Shape input;
  std::string canonical;
  std::vector<Shape> shapes;
};

TEST(Parse, ReadsEveryLayerAndItsShapes) {
  const std::vector<Accepted> cases{
      {"dense(10)", {4}, "dense(10)", {{10}}},
      {"dense(features=10,bias=false)", {4}, "dense(10,bias=false)", {{10}}},
      {"dense( 10 , bias = true )", {4}, "dense(10)", {{10}}},
      {"conv(32,3) gap", kImage, "conv(32,3) gap", {{32, 32, 32}, {32}}},
      {"conv(8,3,pad=valid) globalavgpool", kImage, "conv(8,3,pad=valid) gap", {{30, 30, 8}, {8}}},
      {"conv(8,3x5,stride=2x1,pad=1,bias=false) flatten",
       {9, 7, 2},
       "conv(8,3x5,stride=2x1,pad=1,bias=false) flatten",
       {{5, 5, 8}, {200}}},
      {"conv(kernel=3,channels=4,stride=2) gap", {7, 7, 1}, "conv(4,3,stride=2) gap", {{4, 4, 4}, {4}}},
      {"maxpool(2) flatten", {5, 4, 3}, "maxpool(2) flatten", {{2, 2, 3}, {12}}},
      {"maxpool(3,stride=2,pad=1) flatten",
       {8, 8, 1},
       "maxpool(3,stride=2,pad=1) flatten",
       {{4, 4, 1}, {16}}},
      {"avgpool(2x3,pad=same) gap", {5, 7, 2}, "avgpool(2x3,pad=same) gap", {{3, 3, 2}, {2}}},
      {"avgpool(2,stride=2) gap", {4, 4, 2}, "avgpool(2) gap", {{2, 2, 2}, {2}}},
      {"relu leakyrelu leakyrelu(0.25) tanh sigmoid erf gelu softplus sin",
       {3},
       "relu leakyrelu(0.01) leakyrelu(0.25) tanh sigmoid erf gelu softplus sin",
       {{3}, {3}, {3}, {3}, {3}, {3}, {3}, {3}, {3}}},
      {"relu() flatten() dense(2) softmax", {3}, "relu flatten dense(2) softmax", {{3}, {3}, {2}, {2}}},
      {"dense(3)\n\tlogsoftmax\r\n", {3}, "dense(3) logsoftmax", {{3}, {3}}},
      {"residual(dense(5) tanh dense(3))", {3}, "residual(dense(5) tanh dense(3))", {{3}}},
      {"residual( conv(6,3,stride=2) relu|conv(6,1,stride=2) ) gap",
       {8, 8, 3},
       "residual(conv(6,3,stride=2) relu | conv(6,1,stride=2)) gap",
       {{4, 4, 6}, {6}}},
      {"residual(residual(dense(4)|dense(4)) tanh|residual(dense(3)) dense(4))",
       {3},
       "residual(residual(dense(4) | dense(4)) tanh | residual(dense(3)) dense(4))",
       {{4}}},
  };
  for (const Accepted& one : cases) {
    SCOPED_TRACE(one.text);
    const Model model = parse(one.text, one.input);
    EXPECT_EQ(model.to_text(), one.canonical);
    ASSERT_EQ(model.layers().size(), one.shapes.size());
    for (std::size_t i = 0; i < one.shapes.size(); ++i) {
      EXPECT_TRUE(model.output(i) == one.shapes[i]) << i << ": " << model.output(i).to_string();
    }
    EXPECT_EQ(model.outputs(), one.shapes.back()[0]);
    EXPECT_TRUE(parse(model.to_text(), one.input) == model);
  }
}

TEST(Parse, ExpandsPresets) {
  const auto text = [](const std::string& preset, const Shape& input, std::size_t outputs = 1) {
    return parse(preset, input, {.outputs = outputs}).to_text();
  };
  EXPECT_EQ(text("mlp", kVector), "dense(512) relu dense(512) relu dense(512) relu dense(1)");
  EXPECT_EQ(text("mlp:width=7,depth=2", kVector, 4), "dense(7) relu dense(7) relu dense(4)");
  EXPECT_EQ(text("mlp:width=7,depth=1", kImage), "flatten dense(7) relu dense(1)");
  EXPECT_EQ(text("mlp:depth=0,outputs=3", kVector), "dense(3)");
  EXPECT_EQ(text("mlp:outputs=5,activation=leakyrelu(0.2),depth=1, width=2,bias=false", kVector),
            "dense(2,bias=false) leakyrelu(0.2) dense(5,bias=false)");
  EXPECT_EQ(text("mlp:width=2,depth=1 softmax", kVector, 3), "dense(2) relu dense(3) softmax");
  EXPECT_EQ(text("cnn3", kImage),
            "conv(32,3) relu maxpool(2) conv(32,3) relu maxpool(2) conv(32,3) relu gap dense(1)");
  EXPECT_EQ(text(" cnn3:channels=4,outputs=2,activation=tanh\n logsoftmax ", kImage),
            "conv(4,3) tanh maxpool(2) conv(4,3) tanh maxpool(2) conv(4,3) tanh gap dense(2) logsoftmax");
  EXPECT_EQ(text("resnet18-plain:width=2", kImage, 10),
            "conv(2,3) relu residual(conv(2,3) relu conv(2,3)) relu residual(conv(2,3) relu conv(2,3)) relu "
            "residual(conv(4,3,stride=2) relu conv(4,3) | conv(4,1,stride=2)) relu residual(conv(4,3) relu "
            "conv(4,3)) "
            "relu residual(conv(8,3,stride=2) relu conv(8,3) | conv(8,1,stride=2)) relu "
            "residual(conv(8,3) relu conv(8,3)) relu residual(conv(16,3,stride=2) relu conv(16,3) | "
            "conv(16,1,stride=2)) relu residual(conv(16,3) relu conv(16,3)) relu gap dense(10)");
}

TEST(Parse, CountsParameters) {
  EXPECT_EQ(parse("dense(10) relu dense(3,bias=false)", {4}).parameter_count(), 4U * 10 + 10 + 10 * 3);
  EXPECT_EQ(parse("conv(8,3x5) residual(conv(8,1) | conv(8,1,bias=false)) gap dense(2)", {9, 9, 3})
                .parameter_count(),
            8U * 15 * 3 + 8 + 8 * 8 + 8 + 8 * 8 + 8 * 2 + 2);
}

TEST(Parse, SaysExactlyWhatIsWrong) {
  EXPECT_EQ(refusal("relu rleu", {3}),
            "model: at column 6: found the unknown layer 'rleu', expected one of dense, conv, maxpool, "
            "avgpool, gap, "
            "globalavgpool, flatten, relu, leakyrelu, tanh, sigmoid, erf, gelu, softplus, sin, abs, "
            "identity, cos, sign, monomial, layernorm, dropout, softmax, logsoftmax, "
            "residual; did you mean 'relu'?");
  EXPECT_EQ(refusal("dense(0)", {3}),
            "model: at column 7: found '0', expected a whole number from 1 to 2147483647 (dense: features)");
  EXPECT_EQ(
      refusal("conv(4,3,stride=2x)", kImage),
      "model: at column 17: found '2x', expected a whole number or heightxwidth, as in 3x5 (conv: stride)");
  EXPECT_EQ(refusal("relu\n  dense(1,bias=no)", {3}),
            "model: at line 2, column 16: found 'no', expected true or false (dense: bias)");
  EXPECT_EQ(refusal("relu dense(10)", kImage),
            "model: layer 1 'dense(10)' at column 6: found the image [32, 32, 3] as input, expected a vector "
            "[features]; put flatten or gap before this layer");
  EXPECT_EQ(
      refusal("flatten\nconv(3,3) gap", kImage),
      "model: layer 1 'conv(3,3)' at line 2, column 1: found the vector [3072] as input, expected an image "
      "[height, width, channels]");
  EXPECT_EQ(refusal("dense(4) residual(dense(5) relu)", {3}),
            "model: layer 1 'residual(dense(5) relu)' at column 10: found the vector [5] from the body and "
            "the vector "
            "[4] from the identity shortcut, expected equal shapes; give a shortcut after '|'");
  EXPECT_EQ(refusal("conv(4,3)", kImage),
            "model: the last layer gives the image [32, 32, 4], expected a vector [outputs]; end with "
            "flatten or gap "
            "and dense(outputs)");
  EXPECT_EQ(refusal("maxpool(2,pad=2) gap", kImage),
            "model: layer 0 'maxpool(2,pad=2)' at column 1: found padding 2 for a window of 2, expected at "
            "most half "
            "the window");
}

struct Refused {
  std::string text;
  Shape input;
  std::vector<std::string> parts;  ///< of the message
};

TEST(Parse, RefusesWithPositionFoundAndExpected) {
  const std::vector<Refused> cases{
      {"", {3}, {"column 1", "found nothing", "mlp"}},
      {" \n\t", {3}, {"line 2, column 2", "found nothing"}},
      {"(", {3}, {"column 1", "found '('", "a layer"}},
      {"relu)", {3}, {"column 5", "found ')'"}},
      {"relu|relu", {3}, {"column 5", "found '|'"}},
      {"relu,relu", {3}, {"column 5", "found ','", "a space between layers"}},
      {"dense", {3}, {"column 1", "dense without features", "dense(features)"}},
      {"dense()", {3}, {"column 1", "dense without features"}},
      {"dense(bias=true)", {3}, {"dense without features"}},
      {"conv(3) gap", kImage, {"conv without kernel", "conv(channels,kernel)"}},
      {"maxpool gap", kImage, {"maxpool without window"}},
      {"dense(3", {3}, {"column 8", "the end of the text", "',' or ')'"}},
      {"dense(3,", {3}, {"column 9", "the end of the text", "an argument of dense"}},
      {"dense(3,)", {3}, {"column 9", "found ')'"}},
      {"dense(,3)", {3}, {"column 7", "found ','"}},
      {"dense(3 4)", {3}, {"column 9", "found '4'", "',' or ')'"}},
      {"dense(3)relu", {3}, {"column 9", "found 'relu'", "a space between layers"}},
      {"dense (3)", {3}, {"dense without features"}},
      {"dense(-3)", {3}, {"found '-3'"}},
      {"dense(+3)", {3}, {"found '+3'"}},
      {"dense(3.0)", {3}, {"found '3.0'"}},
      {"dense(3a)", {3}, {"found '3a'"}},
      {"dense(0x10)", {3}, {"found '0x10'"}},
      {"dense(1e3)", {3}, {"found '1e3'"}},
      {"dense(2147483648)", {3}, {"found '2147483648'", "1 to 2147483647"}},
      {"dense(99999999999999999999999)", {3}, {"found '99999999999999999999999'"}},
      {"dense(3,false)",
       {3},
       {"column 9", "found 'false'", "at most 1 argument of dense without a name", "bias="}},
      {"dense(3,bias)", {3}, {"column 9", "found 'bias'"}},
      {"dense(3,bias=)", {3}, {"column 14", "found ')'", "true or false"}},
      {"dense(3,bias=1)", {3}, {"found '1'", "true or false"}},
      {"dense(3,bias=true,bias=true)", {3}, {"column 19", "bias twice"}},
      {"dense(3,features=3)", {3}, {"column 9", "features twice"}},
      {"dense(bias=true,3)", {3}, {"column 17", "found '3'", "key=value"}},
      {"dense(3,bais=true)", {3}, {"column 9", "the unknown option 'bais' of dense", "did you mean 'bias'?"}},
      {"conv(3,3,strid=2) gap", kImage, {"did you mean 'stride'?"}},
      {"conv(3,0) gap", kImage, {"column 8", "found '0'", "conv: kernel"}},
      {"conv(3,3x0) gap", kImage, {"column 10", "found '0'"}},
      {"conv(3,3x3x3) gap", kImage, {"found '3x3'"}},
      {"conv(3,x3) gap", kImage, {"found 'x3'"}},
      {"conv(3,3,2) gap", kImage, {"column 10", "at most 2 arguments of conv", "stride=, pad=, bias="}},
      {"conv(3,3,stride=0) gap", kImage, {"column 17", "found '0'"}},
      {"conv(3,3,pad=sane) gap", kImage, {"found 'sane'", "same, valid or a whole number from 0"}},
      {"conv(3,3,pad=-1) gap", kImage, {"found '-1'"}},
      {"conv(3,33,pad=valid) gap", kImage, {"layer 0 'conv(3,33,pad=valid)' at column 1"}},
      {"avgpool(3,pad=2) gap", kImage, {"layer 0", "at most half the window"}},
      {"relu(3)", {3}, {"column 6", "found '3'", "no arguments for relu"}},
      {"leakyrelu(nan)", {3}, {"found 'nan'", "a finite number"}},
      {"leakyrelu(inf)", {3}, {"found 'inf'"}},
      {"leakyrelu(1e999)", {3}, {"found '1e999'"}},
      {"leakyrelu(-1e39)", {3}, {"found '-1e39'", "fits into f32"}},
      {"leakyrelu(0.1.2)", {3}, {"found '0.1.2'"}},
      {"leakyrelu(0.1,0.2)", {3}, {"found '0.2'", "at most 1 argument"}},
      {"gap dense(1)", {3}, {"layer 0 'gap' at column 1", "found the vector [3]", "an image"}},
      {"maxpool(2)", {3}, {"layer 0 'maxpool(2)'", "found the vector [3]"}},
      {"softmax gap", kImage, {"layer 0 'softmax'", "found the image [32, 32, 3]"}},
      {"residual", {3}, {"column 9", "the end of the text", "'('"}},
      {"residual(", {3}, {"column 10", "the end of the text", "a layer"}},
      {"residual()", {3}, {"column 10", "found ')'", "a layer"}},
      {"residual(|relu)", {3}, {"column 10", "found '|'"}},
      {"residual(relu|)", {3}, {"column 15", "found ')'"}},
      {"residual(relu", {3}, {"column 14", "the end of the text", "'|' or ')'"}},
      {"residual(relu|relu|relu)", {3}, {"column 19", "found '|'", "a layer or ')'"}},
      {"residual(relu dense(4) | tanh) relu",
       {3},
       {"the vector [4] from the body", "the vector [3] from the shortcut"}},
      {"relu residual(relu residual(tanh conv(2,3)))", {3}, {"layer 1.1.1 'conv(2,3)' at column 34"}},
      {"residual(relu | gap)", {3}, {"layer 0.shortcut.0 'gap' at column 17"}},
      {"residual(mlp)", {3}, {"column 10", "the preset 'mlp'", "at the start"}},
      {"relu mlp:width=3", {3}, {"column 6", "the preset 'mlp'", "at the start"}},
      {"Linear(3)", {3}, {"did you mean 'dense'?"}},
      {"conv2d(3,3)", kImage, {"did you mean 'conv'?"}},
      {"RELU", {3}, {"did you mean 'relu'?"}},
      {"mpl:width=3", {3}, {"the unknown layer 'mpl'", "did you mean 'mlp'?"}},
      {"mlp:", {3}, {"column 5", "the end of the text", "width, depth, activation, bias, outputs"}},
      {"mlp:width", {3}, {"column 10", "'=' and a value for width"}},
      {"mlp:width=", {3}, {"column 11", "the end of the text"}},
      {"mlp:width=0", {3}, {"column 11", "found '0'"}},
      {"mlp:widht=3", {3}, {"column 5", "the unknown option 'widht' of mlp", "did you mean 'width'?"}},
      {"mlp:width=3,width=3", {3}, {"column 13", "width twice"}},
      {"mlp:width=3,", {3}, {"column 13", "an option of mlp"}},
      {"mlp:depth=99999", {3}, {"found '99999'", "0 to 4999"}},
      {"mlp:activation=dense(3)", {3}, {"column 16", "found 'dense(3)'", "an activation"}},
      {"mlp(3)", {3}, {"column 4", "found '('"}},
      {"mlp:width=3|relu", {3}, {"column 12", "found '|'"}},
      {"cnn3", kVector, {"layer 0 'conv(32,3)' at column 1", "the vector [784]"}},
      {"cnn3", {3, 3, 1}, {"layer 5 'maxpool(2)' at column 1"}},
      {"resnet18-plain:width=2147483647", kImage, {"width 2147483647", "at most 268435455"}},
      {std::string("re\0lu", 5), {3}, {"'re'"}},
      {std::string("\xff\x01"), {3}, {"found '\\xff'"}},
      {"relu", {}, {"found input shape []"}},
      {"relu", {2, 3}, {"found input shape [2, 3]", "[features] or [height, width, channels]"}},
      {"relu", {0}, {"found input shape [0]", "at least 1"}},
      {"flatten relu", {3, 0, 1}, {"found input shape [3, 0, 1]"}},
      {"dense(2147483647) dense(2147483647)", {2147483647}, {"layer 0", "overflows"}},
      {"dense(2147483647) dense(2147483647) dense(2147483647)", {3}, {"layer 1", "overflows"}},
      {"conv(2147483647,1,pad=2147483647) gap", kImage, {"layer 0", "overflows"}},
  };
  for (const Refused& one : cases) {
    SCOPED_TRACE(one.text);
    const std::string message = refusal(one.text, one.input);
    EXPECT_NE(message, "") << "accepted";
    for (const std::string& part : one.parts)
      EXPECT_NE(message.find(part), std::string::npos) << message << "\n" << part;
  }
}

TEST(Parse, ReadsLayersOfTheInfiniteReading) {
  const char* const text =
      "dense(8,sigma_w=1.4,sigma_b=0.1) abs identity cos sign monomial(3) layernorm dropout(0.25) dense(1)";
  const Model model = parse(text, {3});
  EXPECT_EQ(model.to_text(), text);
  EXPECT_EQ(parse(model.to_text(), {3}), model);
  EXPECT_EQ(model.layers()[0].weight_scale, 1.4);
  EXPECT_EQ(model.layers()[0].bias_scale, 0.1);
  EXPECT_EQ(model.layers()[1].slope, -1);
  EXPECT_EQ(model.layers()[5].degree, 3U);
  EXPECT_EQ(model.layers()[7].rate, 0.25);
  EXPECT_FALSE(parse("dense(8,sigma_w=1.4) dense(1)", {3}) == parse("dense(8,sigma_w=1.5) dense(1)", {3}));
  for (const char* const refused :
       {"dense(8,sigma_w=0) dense(1)", "dense(8,sigma_b=-1) dense(1)", "dropout(1) dense(1)",
        "dropout(-0.1) dense(1)", "monomial(0) dense(1)", "monomial(17) dense(1)", "dropout dense(1)"}) {
    EXPECT_THROW(parse(refused, {3}), ArgumentError) << refused;
  }
}

TEST(Parse, RefusesPresetOutputsOutOfRange) {
  EXPECT_NE(refusal("mlp", {3}, {.outputs = 0}).find("found 0 outputs"), std::string::npos);
}

TEST(Parse, TellsTextFromShapeTrouble) {
  EXPECT_THROW(parse("dense(x)", {3}), ArgumentError);
  EXPECT_THROW(parse("gap", {3}), ShapeError);
}

TEST(Parse, LimitsNestingAndLength) {
  const auto nested = [](std::size_t depth) {
    std::string text;
    for (std::size_t i = 0; i < depth; ++i) text += "residual(";
    return text + "relu" + std::string(depth, ')');
  };
  EXPECT_EQ(parse(nested(kMaxNesting), {3}).outputs(), 3U);
  EXPECT_NE(refusal(nested(kMaxNesting + 1), {3}).find("at most 32"), std::string::npos);
  EXPECT_NE(refusal(nested(1'000'000), {3}).find("at most 32"), std::string::npos);

  std::string many;
  for (std::size_t i = 0; i < kMaxLayers; ++i) many += "sin ";
  EXPECT_EQ(parse(many, {3}).layers().size(), kMaxLayers);
  EXPECT_NE(refusal(many + "sin", {3}).find("more than 10000 layers"), std::string::npos);
  EXPECT_NE(refusal("mlp:width=1,depth=4999 tanh tanh", {1}).find("more than 10000 layers"),
            std::string::npos);
}

TEST(Model, ChecksLayersMadeInCode) {
  EXPECT_THROW(Model({}, {3}), ArgumentError);
  Layer dense;
  dense.kind = LayerKind::Dense;
  EXPECT_THROW(Model({dense}, {3}), ArgumentError);  // no features
  dense.features = 2;
  EXPECT_EQ(Model({dense}, {3}).outputs(), 2U);
  Layer leaky;
  leaky.kind = LayerKind::Activation;
  leaky.activation = simd::Activation::LeakyRelu;
  leaky.slope = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(Model({leaky}, {3}), ArgumentError);
  Layer residual;
  residual.kind = LayerKind::Residual;
  EXPECT_THROW(Model({residual}, {3}), ArgumentError);
  Layer conv;
  conv.kind = LayerKind::Conv;
  conv.features = 1;
  conv.kernel_h = conv.kernel_w = 1;
  conv.stride_h = 0;
  EXPECT_THROW(Model({conv}, {3, 3, 1}), ArgumentError);
  residual.body = {dense};
  for (std::size_t i = 0; i < kMaxNesting; ++i) {
    Layer outer;
    outer.kind = LayerKind::Residual;
    outer.body = {residual};
    residual = outer;
  }
  EXPECT_THROW(Model({residual}, {2}), ArgumentError);
  try {
    Model({dense, conv}, {3});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find("column"), std::string::npos) << error.what();
  }
}

TEST(Parse, RandomModelsGoRoundInAnyWriting) {
  constexpr std::uint64_t kSeed = 20;
  RecordProperty("seed", std::to_string(kSeed));
  testing::RandomModelMaker maker(kSeed);
  std::set<LayerKind> kinds;
  std::size_t images = 0;
  for (int i = 0; i < 2000; ++i) {
    const testing::RandomModel made = maker.next();
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", model " << i << " on "
                                      << made.input.to_string() << ": " << made.text);
    const Model model = parse(made.text, made.input);
    ASSERT_TRUE(model.layers() == made.layers) << model.to_text();
    const Model again = parse(model.to_text(), made.input);
    ASSERT_TRUE(again == model);
    ASSERT_EQ(again.to_text(), model.to_text());
    ASSERT_TRUE(Model(made.layers, made.input) == model);
    for (const Layer& layer : made.layers) kinds.insert(layer.kind);
    images += made.input.rank() == 3 ? 1 : 0;
  }
  EXPECT_EQ(kinds.size(), 10U);  // the generator reaches every kind
  EXPECT_GT(images, 500U);
}

TEST(Layer, EqualityTellsEveryOptionApart) {
  const std::vector<std::string> different{"dense(4)",
                                           "dense(5)",
                                           "dense(4,bias=false)",
                                           "relu",
                                           "tanh",
                                           "leakyrelu(0.1)",
                                           "leakyrelu(0.2)",
                                           "residual(relu)",
                                           "residual(relu|tanh)",
                                           "residual(relu relu)",
                                           "residual(tanh)",
                                           "flatten",
                                           "softmax",
                                           "logsoftmax",
                                           "conv(4,3) gap",
                                           "conv(4,3x1) gap",
                                           "conv(4,1x3) gap",
                                           "conv(4,3,pad=1) gap",
                                           "conv(4,3,pad=2) gap",
                                           "conv(4,3,stride=2) gap",
                                           "conv(4,3,stride=1x2) gap",
                                           "conv(4,3,bias=false) gap",
                                           "maxpool(3) gap",
                                           "avgpool(3) gap",
                                           "maxpool(3,stride=1) gap"};
  std::vector<Layer> layers;
  for (const std::string& text : different) {
    const bool image = text.find("gap") != std::string::npos;
    layers.push_back(parse(text, image ? Shape{8, 8, 2} : Shape{4}).layers()[0]);
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (std::size_t j = 0; j < layers.size(); ++j) {
      EXPECT_EQ(layers[i] == layers[j], i == j) << different[i] << " and " << different[j];
    }
  }
}

/// Whatever the bytes: a model that goes round, or one clear refusal.
void expect_model_or_refusal(const std::string& text, const Shape& input) {
  try {
    const Model model = parse(text, input);
    EXPECT_TRUE(parse(model.to_text(), input) == model) << text;
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.rfind("model: ", 0), 0U) << message;
    EXPECT_LT(message.size(), 600U) << message;
    for (const char c : message) EXPECT_TRUE(c >= ' ' && c <= '~') << message;
  }
}

TEST(Parse, SurvivesRandomBytes) {
  constexpr std::uint64_t kSeed = 21;
  RecordProperty("seed", std::to_string(kSeed));
  Random random(kSeed);
  for (int i = 0; i < 5000; ++i) {
    std::string text;
    const std::uint64_t length = random.below(30);
    for (std::uint64_t k = 0; k < length; ++k) text += static_cast<char>(random.below(256));
    expect_model_or_refusal(text, kVector);
  }
}

TEST(Parse, SurvivesRandomWords) {
  constexpr std::uint64_t kSeed = 22;
  RecordProperty("seed", std::to_string(kSeed));
  const std::vector<std::string> words{"dense",
                                       "conv",
                                       "maxpool",
                                       "avgpool",
                                       "gap",
                                       "flatten",
                                       "relu",
                                       "leakyrelu",
                                       "softmax",
                                       "residual",
                                       "mlp",
                                       "cnn3",
                                       "resnet18-plain",
                                       ":",
                                       "(",
                                       ")",
                                       "(",
                                       ")",
                                       "|",
                                       ",",
                                       "=",
                                       "3",
                                       "1x2",
                                       "0",
                                       "-1",
                                       "0.5",
                                       "1e400",
                                       "nan",
                                       " ",
                                       " ",
                                       "\n",
                                       "stride",
                                       "pad",
                                       "same",
                                       "valid",
                                       "bias",
                                       "false",
                                       "width",
                                       "depth",
                                       "channels",
                                       "outputs",
                                       "activation",
                                       "18446744073709551616",
                                       "2147483647",
                                       "dense(3)",
                                       "conv(2,3)",
                                       "relu "};
  Random random(kSeed);
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    const std::uint64_t length = random.below(12);
    for (std::uint64_t k = 0; k < length; ++k) text += words[random.below(words.size())];
    expect_model_or_refusal(text, random.below(2) == 0 ? kVector : Shape{8, 8, 3});
  }
}

TEST(Parse, SurvivesOneWrongByteInAValidText) {
  constexpr std::uint64_t kSeed = 23;
  RecordProperty("seed", std::to_string(kSeed));
  testing::RandomModelMaker maker(kSeed);
  Random random(kSeed);
  for (int i = 0; i < 5000; ++i) {
    testing::RandomModel made = maker.next();
    const std::uint64_t at = random.below(made.text.size());
    switch (random.below(3)) {
      case 0:
        made.text[at] = static_cast<char>(random.below(256));
        break;
      case 1:
        made.text.erase(at, 1 + random.below(4));
        break;
      default:
        made.text.insert(at, 1, static_cast<char>(random.below(128)));
        break;
    }
    expect_model_or_refusal(made.text, made.input);
  }
}

}  // namespace
}  // namespace gradgram::models
