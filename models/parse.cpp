#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/error.hpp"
#include "models/edit_distance.hpp"
#include "models/layers.hpp"
#include "models/model.hpp"

namespace gradgram::models {
namespace {

using simd::Activation;

enum class Option { Features, Kernel, Stride, Pad, Bias, Slope, WeightScale, BiasScale, Degree, Rate };

struct OptionName {
  std::string_view name;
  Option option;
};

/// One word of the grammar. The first `positional` options may be given by order; the first `required` must
/// be given.
struct LayerWord {
  std::string_view name;
  LayerKind kind;
  Activation activation = Activation::Relu;
  std::span<const OptionName> options = {};
  std::size_t positional = 0;
  std::size_t required = 0;
};

constexpr std::array kDenseOptions{OptionName{"features", Option::Features}, OptionName{"bias", Option::Bias},
                                   OptionName{"sigma_w", Option::WeightScale},
                                   OptionName{"sigma_b", Option::BiasScale}};
constexpr std::array kConvOptions{
    OptionName{"channels", Option::Features}, OptionName{"kernel", Option::Kernel},
    OptionName{"stride", Option::Stride},     OptionName{"pad", Option::Pad},
    OptionName{"bias", Option::Bias},         OptionName{"sigma_w", Option::WeightScale},
    OptionName{"sigma_b", Option::BiasScale}};
constexpr std::array kPoolOptions{OptionName{"window", Option::Kernel}, OptionName{"stride", Option::Stride},
                                  OptionName{"pad", Option::Pad}};
constexpr std::array kDegreeOptions{OptionName{"degree", Option::Degree}};
constexpr std::array kRateOptions{OptionName{"rate", Option::Rate}};
constexpr std::array kSlopeOptions{OptionName{"slope", Option::Slope}};

constexpr std::array kWords{
    LayerWord{"dense", LayerKind::Dense, {}, kDenseOptions, 1, 1},
    LayerWord{"conv", LayerKind::Conv, {}, kConvOptions, 2, 2},
    LayerWord{"maxpool", LayerKind::MaxPool, {}, kPoolOptions, 1, 1},
    LayerWord{"avgpool", LayerKind::AveragePool, {}, kPoolOptions, 1, 1},
    LayerWord{"gap", LayerKind::GlobalAveragePool},
    LayerWord{"globalavgpool", LayerKind::GlobalAveragePool},
    LayerWord{"flatten", LayerKind::Flatten},
    LayerWord{"relu", LayerKind::Activation, Activation::Relu},
    LayerWord{"leakyrelu", LayerKind::Activation, Activation::LeakyRelu, kSlopeOptions, 1, 0},
    LayerWord{"tanh", LayerKind::Activation, Activation::Tanh},
    LayerWord{"sigmoid", LayerKind::Activation, Activation::Sigmoid},
    LayerWord{"erf", LayerKind::Activation, Activation::Erf},
    LayerWord{"gelu", LayerKind::Activation, Activation::Gelu},
    LayerWord{"softplus", LayerKind::Activation, Activation::Softplus},
    LayerWord{"sin", LayerKind::Activation, Activation::Sin},
    LayerWord{"abs", LayerKind::Activation, Activation::LeakyRelu},
    LayerWord{"identity", LayerKind::Activation, Activation::LeakyRelu},
    LayerWord{"cos", LayerKind::Cos},
    LayerWord{"sign", LayerKind::Sign},
    LayerWord{"monomial", LayerKind::Monomial, {}, kDegreeOptions, 1, 1},
    LayerWord{"layernorm", LayerKind::LayerNorm},
    LayerWord{"dropout", LayerKind::Dropout, {}, kRateOptions, 1, 1},
    LayerWord{"softmax", LayerKind::Softmax},
    LayerWord{"logsoftmax", LayerKind::LogSoftmax},
    LayerWord{"residual", LayerKind::Residual},
};

struct PresetWord {
  std::string_view name;
  std::span<const std::string_view> options;
};
constexpr std::array<std::string_view, 5> kMlpOptions{"width", "depth", "activation", "bias", "outputs"};
constexpr std::array<std::string_view, 4> kCnn3Options{"channels", "activation", "bias", "outputs"};
constexpr std::array<std::string_view, 4> kResnetOptions{"width", "activation", "bias", "outputs"};
constexpr std::array kPresets{PresetWord{"mlp", kMlpOptions}, PresetWord{"cnn3", kCnn3Options},
                              PresetWord{"resnet18-plain", kResnetOptions}};

/// What other libraries call our layers.
constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kForeignNames{{
    {"linear", "dense"},
    {"fc", "dense"},
    {"conv2d", "conv"},
    {"maxpool2d", "maxpool"},
    {"avgpool2d", "avgpool"},
    {"averagepool", "avgpool"},
    {"globalaveragepool", "gap"},
    {"leaky", "leakyrelu"},
    {"logistic", "sigmoid"},
    {"skip", "residual"},
    {"shortcut", "residual"},
}};

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}
bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}
bool is_value(char c) {
  return is_word(c) || c == '.' || c == '+';
}

/// Bytes of the user's text made fit for a message.
std::string shown(std::string_view text) {
  constexpr std::size_t kLongest = 40;
  std::string result;
  for (const char c : text.substr(0, kLongest)) {
    if (c >= ' ' && c <= '~') {
      result += c;
    } else {
      result += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    }
  }
  return "'" + result + (text.size() > kLongest ? "...'" : "'");
}

/// `; did you mean 'relu'?` or nothing when none of the candidates is near.
std::string suggestion(std::string_view word, std::span<const std::string_view> candidates) {
  constexpr std::size_t kLongestWord = 32;
  if (word.empty() || word.size() > kLongestWord) return {};
  std::string_view best;
  std::size_t least = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const auto& [foreign, ours] : kForeignNames) {
    if (edit_distance(word, foreign) == 0 && std::ranges::find(candidates, ours) != candidates.end()) {
      best = ours;
      least = 0;
    }
  }
  for (const std::string_view candidate : candidates) {
    const std::size_t d = edit_distance(word, candidate);
    if (d < least) {
      best = candidate;
      least = d;
    }
  }
  return best.empty() ? std::string() : fmt::format("; did you mean '{}'?", best);
}

std::string joined(std::span<const std::string_view> words) {
  std::string text;
  for (const std::string_view word : words) {
    if (!text.empty()) text += ", ";
    text += word;
  }
  return text;
}

class Parser {
 public:
  Parser(std::string_view text, const Shape& input, const ParseOptions& options)
      : text_(text), input_(input), options_(options) {}

  std::vector<Layer> model() {
    std::vector<Layer> layers;
    skip_space();
    if (at_end()) fail(at_, "nothing", "a layer or a preset (" + known_names(true) + ")");
    if (const PresetWord* preset = peek_preset()) {
      expand(*preset, layers);
      if (!at_end() && !is_space(peek())) {
        fail(at_, found_here(), "a space, ',' and another option, or the end after the preset");
      }
      skip_space();
      if (at_end()) return layers;
    }
    list(layers, 0, layers.empty());
    if (!at_end()) fail(at_, found_here(), "a layer or the end of the text");
    return layers;
  }

 private:
  bool at_end() const { return at_ == text_.size(); }
  char peek() const { return text_[at_]; }
  bool next_is(char c) const { return !at_end() && peek() == c; }
  void skip_space() {
    while (!at_end() && is_space(peek())) ++at_;
  }
  bool accept(char c) {
    if (!next_is(c)) return false;
    ++at_;
    return true;
  }
  template <class Predicate>
  std::string_view take(Predicate predicate) {
    const std::size_t begin = at_;
    while (!at_end() && predicate(peek())) ++at_;
    return text_.substr(begin, at_ - begin);
  }

  /// The value, word or character at the cursor, for messages.
  std::string found_here() const {
    if (at_end()) return "the end of the text";
    std::size_t end = at_;
    while (end < text_.size() && is_value(text_[end])) ++end;
    return shown(text_.substr(at_, std::max<std::size_t>(1, end - at_)));
  }

  [[noreturn]] void fail(std::size_t at, const std::string& found, const std::string& expected) const {
    throw ArgumentError(
        fmt::format("model: at {}: found {}, expected {}", detail::location(text_, at + 1), found, expected));
  }

  static std::vector<std::string_view> names(bool presets) {
    std::vector<std::string_view> result;
    result.reserve(kWords.size() + kPresets.size());
    for (const LayerWord& word : kWords) result.push_back(word.name);
    if (presets) {
      for (const PresetWord& preset : kPresets) result.push_back(preset.name);
    }
    return result;
  }
  static std::string known_names(bool presets) { return joined(names(presets)); }

  const PresetWord* peek_preset() const {
    std::size_t end = at_;
    while (end < text_.size() && is_word(text_[end])) ++end;
    const std::string_view word = text_.substr(at_, end - at_);
    const auto* found = std::ranges::find(kPresets, word, &PresetWord::name);
    return found == kPresets.end() ? nullptr : found;
  }

  /// Layers up to '|', ')' or the end. At least one.
  void list(std::vector<Layer>& layers, std::size_t nesting, bool preset_possible) {
    for (;;) {
      skip_space();
      if (!layers.empty() && (at_end() || peek() == ')' || peek() == '|')) return;
      layers.push_back(layer(nesting, preset_possible));
      preset_possible = false;
      if (!at_end() && !is_space(peek()) && peek() != ')' && peek() != '|') {
        fail(at_, found_here(), "a space between layers");
      }
    }
  }

  Layer layer(std::size_t nesting, bool preset_possible) {
    const std::size_t begin = at_;
    const std::string_view name = take(is_word);
    if (name.empty()) fail(begin, found_here(), "a layer (" + known_names(preset_possible) + ")");
    const auto* word = std::ranges::find(kWords, name, &LayerWord::name);
    if (word == kWords.end()) {
      if (std::ranges::find(kPresets, name, &PresetWord::name) != kPresets.end()) {
        fail(begin, "the preset " + shown(name), "a layer; a preset stands at the start of the text");
      }
      const std::vector<std::string_view> known = names(preset_possible);
      fail(begin, "the unknown layer " + shown(name), "one of " + joined(known) + suggestion(name, known));
    }
    if (++layers_ > kMaxLayers) {
      fail(begin, fmt::format("more than {} layers", kMaxLayers), "at most that many");
    }
    Layer result;
    result.kind = word->kind;
    result.activation = word->activation;
    result.position = begin + 1;
    if (word->name == "abs") result.slope = -1;
    if (word->name == "identity") result.slope = 1;
    if (word->kind == LayerKind::Residual) {
      residual(result, nesting);
    } else {
      arguments(*word, result);
    }
    return result;
  }

  void residual(Layer& layer, std::size_t nesting) {
    if (nesting == kMaxNesting) {
      fail(layer.position - 1, fmt::format("residual inside residual {} deep", nesting + 1),
           fmt::format("at most {}", kMaxNesting));
    }
    if (!accept('(')) fail(at_, found_here(), "'(' and the layers of the residual's body");
    list(layer.body, nesting + 1, false);
    if (accept('|')) list(layer.shortcut, nesting + 1, false);
    if (!accept(')'))
      fail(at_, found_here(), layer.shortcut.empty() ? "a layer, '|' or ')'" : "a layer or ')'");
  }

  void arguments(const LayerWord& word, Layer& layer) {
    layer.padding.kind = word.kind == LayerKind::Conv ? Padding::Kind::Same : Padding::Kind::Valid;
    std::vector<bool> given(word.options.size(), false);
    if (accept('(')) {
      skip_space();
      if (!next_is(')')) {
        if (word.options.empty()) fail(at_, found_here(), fmt::format("no arguments for {}", word.name));
        bool keys = false;
        std::size_t order = 0;
        do {
          skip_space();
          argument(word, layer, given, order, keys);
          skip_space();
        } while (accept(','));
      }
      if (!accept(')')) fail(at_, found_here(), "',' or ')'");
    }
    for (std::size_t i = 0; i < word.required; ++i) {
      if (given[i]) continue;
      fail(layer.position - 1, fmt::format("{} without {}", word.name, word.options[i].name),
           word.kind == LayerKind::Conv    ? "conv(channels,kernel)"
           : word.kind == LayerKind::Dense ? "dense(features)"
                                           : fmt::format("{}({})", word.name, word.options[0].name));
    }
    const bool pool = word.kind == LayerKind::MaxPool || word.kind == LayerKind::AveragePool;
    if (pool && !given[1]) {  // the pools' second option is the stride
      layer.stride_h = layer.kernel_h;
      layer.stride_w = layer.kernel_w;
    }
  }

  void argument(const LayerWord& word, Layer& layer, std::vector<bool>& given, std::size_t& order,
                bool& keys) {
    const std::size_t begin = at_;
    const std::string_view first = take(is_value);
    const std::string context(word.name);
    if (first.empty()) fail(begin, found_here(), fmt::format("an argument of {}", word.name));
    const std::size_t after = at_;
    skip_space();
    if (accept('=')) {
      keys = true;
      const auto known = std::ranges::find(word.options, first, &OptionName::name);
      if (known == word.options.end()) {
        std::vector<std::string_view> candidates;
        for (const OptionName& option : word.options) candidates.push_back(option.name);
        fail(begin, fmt::format("the unknown option {} of {}", shown(first), word.name),
             "one of " + joined(candidates) + suggestion(first, candidates));
      }
      const auto index = static_cast<std::size_t>(known - word.options.begin());
      if (given[index]) fail(begin, fmt::format("{} twice", known->name), "it once");
      given[index] = true;
      skip_space();
      const std::size_t value_begin = at_;
      const std::string_view value = take(is_value);
      set(layer, known->option, fmt::format("{}: {}", context, known->name), value, value_begin);
      return;
    }
    at_ = after;
    if (keys) fail(begin, shown(first), "key=value after the first key=value");
    if (order == word.positional) {
      std::string named;
      for (std::size_t i = word.positional; i < word.options.size(); ++i) {
        named += fmt::format("{}{}=", named.empty() ? "" : ", ", word.options[i].name);
      }
      fail(begin, shown(first),
           fmt::format("at most {} argument{} of {} without a name{}{}", word.positional,
                       word.positional == 1 ? "" : "s", word.name, named.empty() ? "" : "; the others are ",
                       named));
    }
    const OptionName& option = word.options[order];
    given[order++] = true;
    set(layer, option.option, fmt::format("{}: {}", context, option.name), first, begin);
  }

  void set(Layer& layer, Option option, const std::string& what, std::string_view value,
           std::size_t at) const {
    switch (option) {
      case Option::Features:
        layer.features = extent(what, value, at, 1);
        return;
      case Option::Kernel:
        std::tie(layer.kernel_h, layer.kernel_w) = pair(what, value, at);
        return;
      case Option::Stride:
        std::tie(layer.stride_h, layer.stride_w) = pair(what, value, at);
        return;
      case Option::Bias:
        layer.bias = truth(what, value, at);
        return;
      case Option::Slope:
        layer.slope = slope(what, value, at);
        return;
      case Option::WeightScale:
        layer.weight_scale = slope(what, value, at);
        return;
      case Option::BiasScale:
        layer.bias_scale = slope(what, value, at);
        return;
      case Option::Degree:
        layer.degree = number(what, value, at, 1, kMaxDegree);
        return;
      case Option::Rate:
        layer.rate = slope(what, value, at);
        return;
      case Option::Pad:
        if (value == "same" || value == "valid") {
          layer.padding = {value == "same" ? Padding::Kind::Same : Padding::Kind::Valid, 0};
        } else {
          layer.padding = {Padding::Kind::Explicit,
                           number(what, value, at, 0, kMaxExtent, "same, valid or ")};
        }
        return;
    }
  }

  /// The value that stands at `at`; what follows a value's characters is part of the trouble when it is
  /// empty.
  std::string found_value(std::string_view value) const {
    return value.empty() ? found_here() : shown(value);
  }

  std::size_t number(const std::string& what, std::string_view value, std::size_t at, std::size_t least,
                     std::size_t most, std::string_view otherwise = {}) const {
    std::size_t result = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    if (error != std::errc() || end != value.data() + value.size() || result < least || result > most) {
      fail(at, found_value(value),
           fmt::format("{}a whole number from {} to {} ({})", otherwise, least, most, what));
    }
    return result;
  }
  std::size_t extent(const std::string& what, std::string_view value, std::size_t at,
                     std::size_t least) const {
    return number(what, value, at, least, kMaxExtent);
  }
  /// `3` or `3x5`.
  std::pair<std::size_t, std::size_t> pair(const std::string& what, std::string_view value,
                                           std::size_t at) const {
    const std::size_t cross = value.find('x');
    if (cross == std::string_view::npos) {
      const std::size_t both = extent(what, value, at, 1);
      return {both, both};
    }
    const std::string_view first = value.substr(0, cross);
    const std::string_view second = value.substr(cross + 1);
    if (first.empty() || second.empty()) {
      fail(at, shown(value), fmt::format("a whole number or heightxwidth, as in 3x5 ({})", what));
    }
    return {extent(what, first, at, 1), extent(what, second, at + cross + 1, 1)};
  }
  bool truth(const std::string& what, std::string_view value, std::size_t at) const {
    if (value != "true" && value != "false")
      fail(at, found_value(value), fmt::format("true or false ({})", what));
    return value == "true";
  }
  double slope(const std::string& what, std::string_view value, std::size_t at) const {
    double result = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    if (error != std::errc() || end != value.data() + value.size() || !detail::is_slope(result)) {
      fail(at, found_value(value), fmt::format("a finite number that fits into f32 ({})", what));
    }
    return result;
  }

  // Presets.

  struct PresetValues {
    std::size_t width = 0;  ///< or channels
    std::size_t depth = 3;
    bool bias = true;
    std::size_t outputs = 1;
    Layer activation;
  };

  void expand(const PresetWord& preset, std::vector<Layer>& layers) {
    const std::size_t begin = at_;
    at_ += preset.name.size();
    PresetValues values;
    values.outputs = options_.outputs;
    values.width = preset.name == "mlp" ? 512 : preset.name == "cnn3" ? 32 : 64;
    values.activation.kind = LayerKind::Activation;
    if (accept(':')) preset_options(preset, values);
    if (values.outputs < 1 || values.outputs > kMaxExtent) {
      fail(begin, fmt::format("{} outputs", values.outputs), fmt::format("1 to {}", kMaxExtent));
    }
    values.activation.position = begin + 1;
    if (preset.name == "mlp") {
      mlp(values, layers, begin);
    } else if (preset.name == "cnn3") {
      cnn3(values, layers, begin);
    } else {
      resnet18(values, layers, begin);
    }
  }

  void preset_options(const PresetWord& preset, PresetValues& values) {
    std::vector<std::string_view> given;
    do {
      skip_space();
      const std::size_t begin = at_;
      const std::string_view key = take(is_word);
      if (key.empty())
        fail(begin, found_here(), fmt::format("an option of {} ({})", preset.name, joined(preset.options)));
      if (std::ranges::find(preset.options, key) == preset.options.end()) {
        fail(begin, fmt::format("the unknown option {} of {}", shown(key), preset.name),
             "one of " + joined(preset.options) + suggestion(key, preset.options));
      }
      if (std::ranges::find(given, key) != given.end()) fail(begin, fmt::format("{} twice", key), "it once");
      given.push_back(key);
      if (!accept('=')) fail(at_, found_here(), fmt::format("'=' and a value for {}", key));
      const std::string what = fmt::format("{}: {}", preset.name, key);
      const std::size_t at = at_;
      if (key == "activation") {
        values.activation = layer(0, false);
        if (values.activation.kind != LayerKind::Activation) {
          fail(at, shown(to_text(values.activation)), fmt::format("an activation ({})", what));
        }
        continue;
      }
      const std::string_view value = take(is_value);
      if (key == "width" || key == "channels") {
        values.width = extent(what, value, at, 1);
      } else if (key == "depth") {
        values.depth = number(what, value, at, 0, kMaxLayers / 2 - 1);
      } else if (key == "outputs") {
        values.outputs = extent(what, value, at, 1);
      } else {
        values.bias = truth(what, value, at);
      }
    } while (accept(','));
  }

  Layer make(LayerKind kind, std::size_t begin) {
    ++layers_;
    Layer result;
    result.kind = kind;
    result.position = begin + 1;
    return result;
  }
  Layer dense(std::size_t features, const PresetValues& values, std::size_t begin) {
    Layer result = make(LayerKind::Dense, begin);
    result.features = features;
    result.bias = values.bias;
    return result;
  }
  Layer conv(std::size_t channels, std::size_t kernel, std::size_t stride, const PresetValues& values,
             std::size_t begin) {
    Layer result = make(LayerKind::Conv, begin);
    result.features = channels;
    result.kernel_h = result.kernel_w = kernel;
    result.stride_h = result.stride_w = stride;
    result.bias = values.bias;
    return result;
  }

  void mlp(const PresetValues& values, std::vector<Layer>& layers, std::size_t begin) {
    if (input_.rank() == 3) layers.push_back(make(LayerKind::Flatten, begin));
    for (std::size_t i = 0; i < values.depth; ++i) {
      layers.push_back(dense(values.width, values, begin));
      layers.push_back(values.activation);
    }
    layers.push_back(dense(values.outputs, values, begin));
  }

  void cnn3(const PresetValues& values, std::vector<Layer>& layers, std::size_t begin) {
    for (int i = 0; i < 3; ++i) {
      if (i != 0) {
        Layer pool = make(LayerKind::MaxPool, begin);
        pool.kernel_h = pool.kernel_w = pool.stride_h = pool.stride_w = 2;
        pool.padding.kind = Padding::Kind::Valid;
        layers.push_back(pool);
      }
      layers.push_back(conv(values.width, 3, 1, values, begin));
      layers.push_back(values.activation);
    }
    layers.push_back(make(LayerKind::GlobalAveragePool, begin));
    layers.push_back(dense(values.outputs, values, begin));
  }

  void resnet18(const PresetValues& values, std::vector<Layer>& layers, std::size_t begin) {
    if (values.width > kMaxExtent / 8) {
      fail(begin, fmt::format("width {}", values.width), fmt::format("at most {}", kMaxExtent / 8));
    }
    layers.push_back(conv(values.width, 3, 1, values, begin));
    layers.push_back(values.activation);
    for (std::size_t stage = 0; stage < 4; ++stage) {
      const std::size_t channels = values.width << stage;
      for (std::size_t block = 0; block < 2; ++block) {
        const std::size_t stride = stage != 0 && block == 0 ? 2 : 1;
        Layer residual = make(LayerKind::Residual, begin);
        residual.body = {conv(channels, 3, stride, values, begin), values.activation,
                         conv(channels, 3, 1, values, begin)};
        if (stride != 1) residual.shortcut = {conv(channels, 1, stride, values, begin)};
        layers.push_back(std::move(residual));
        layers.push_back(values.activation);
      }
    }
    layers.push_back(make(LayerKind::GlobalAveragePool, begin));
    layers.push_back(dense(values.outputs, values, begin));
  }

  std::string_view text_;
  Shape input_;
  ParseOptions options_;
  std::size_t at_ = 0;
  std::size_t layers_ = 0;
};

}  // namespace

Model parse(std::string_view text, const Shape& input, const ParseOptions& options) {
  std::vector<Layer> layers = Parser(text, input, options).model();
  // Once here, with the text at hand to tell lines; Model checks again and finds nothing.
  detail::check(layers, input, text);
  return Model(std::move(layers), input);
}

}  // namespace gradgram::models
