#include "datasets/synthetic.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <numbers>

#include "engine/error.hpp"
#include "engine/random.hpp"

namespace gradgram::datasets {
namespace {

struct Key {
  std::string_view name;
  double initial = 0;
  double least = 0;
  double most = 0;
  bool whole = true;
};

constexpr double kMostExamples = 1e8;
constexpr Key kExamples{"n", 200, 1, kMostExamples, true};
constexpr Key kDimensions{"d", 10, 1, 1e6, true};

struct Kind {
  std::string_view name;
  std::array<Key, 3> keys{};
  std::size_t count = 0;
};

constexpr std::array<Kind, 7> kKinds = {{
    {"circle", {{kExamples, {"frequency", 1, 0, 1e6, true}}}, 2},
    {"sphere", {{kExamples, kDimensions}}, 2},
    {"gaussian", {{kExamples, kDimensions}}, 2},
    {"rademacher", {{kExamples, kDimensions}}, 2},
    {"laplace", {{kExamples, kDimensions}}, 2},
    {"student", {{kExamples, kDimensions, {"df", 3, 1, 1e4, true}}}, 3},
    {"moons", {{kExamples, {"noise", 0.1, 0, 1e6, false}}}, 2},
}};

const Kind* find_kind(std::string_view text) noexcept {
  const auto found = std::ranges::find(kKinds, text.substr(0, text.find(':')), &Kind::name);
  return found == kKinds.end() ? nullptr : &*found;
}

[[noreturn]] void refuse(std::string_view text, std::size_t position, const std::string& why) {
  throw ArgumentError(fmt::format("synthetic: '{}': character {}: {}", text, position + 1, why));
}

/// The values of the kind's keys, in its order.
std::array<double, 3> parse_keys(std::string_view text, const Kind& kind) {
  std::array<double, 3> values{};
  std::array<bool, 3> given{};
  for (std::size_t i = 0; i < kind.count; ++i) values[i] = kind.keys[i].initial;
  std::size_t position = kind.name.size();
  while (position < text.size()) {
    ++position;  // past the colon or comma
    const std::size_t end = std::min(text.find(',', position), text.size());
    const std::string_view item = text.substr(position, end - position);
    const std::size_t equals = item.find('=');
    const std::string_view name = item.substr(0, equals);
    std::size_t k = 0;
    while (k < kind.count && kind.keys[k].name != name) ++k;
    if (k == kind.count || given[k] || equals == std::string_view::npos) {
      std::vector<std::string_view> names;
      for (std::size_t i = 0; i < kind.count; ++i) names.push_back(kind.keys[i].name);
      refuse(text, position,
             fmt::format("expected key=value with a key of {} once each, found '{}'", fmt::join(names, ", "),
                         item));
    }
    const Key& key = kind.keys[k];
    const std::string_view number = item.substr(equals + 1);
    double value = 0;
    const auto [stop, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    if (error != std::errc() || stop != number.data() + number.size() ||
        !(value >= key.least && value <= key.most) || (key.whole && value != std::floor(value))) {
      refuse(text, position + equals + 1,
             fmt::format("{} must be a {}number from {} to {}, not '{}'", name, key.whole ? "whole " : "",
                         key.least, key.most, number));
    }
    values[k] = value;
    given[k] = true;
    position = end;
  }
  return values;
}

/// Draws of the two parts and of the teacher never share a stream.
constexpr std::uint64_t kTeacherStream = ~std::uint64_t{0};
std::uint64_t stream_of(std::size_t example, bool test) {
  return 2 * std::uint64_t{example} + (test ? 1 : 0);
}

/// cos(2 pi steps / circumference) >= 0, exactly.
bool right_half(std::uint64_t steps, std::uint64_t circumference) {
  const std::uint64_t at = 4 * (steps % circumference);
  return at <= circumference || at >= 3 * circumference;
}

void circle(std::size_t n, std::uint64_t frequency, bool test, Examples& examples, double* out) {
  for (std::size_t i = 0; i < n; ++i) {
    // Half steps: the test part lies between the training points.
    const std::uint64_t half_steps = 2 * std::uint64_t{i} + (test ? 1 : 0);
    const double angle = std::numbers::pi * static_cast<double>(half_steps) / static_cast<double>(n);
    out[2 * i] = std::cos(angle);
    out[2 * i + 1] = std::sin(angle);
    examples.labels.push_back(right_half(frequency * half_steps, 2 * std::uint64_t{n}) ? 1 : 0);
  }
}

void moons(std::size_t n, double noise, std::uint64_t seed, bool test, Examples& examples, double* out) {
  for (std::size_t i = 0; i < n; ++i) {
    Random random(seed, stream_of(i, test));
    const double angle = std::numbers::pi * random.uniform();
    const bool lower = i % 2 == 1;
    const double x = lower ? 1 - std::cos(angle) : std::cos(angle);
    const double y = lower ? 0.5 - std::sin(angle) : std::sin(angle);
    out[2 * i] = x + noise * random.normal();
    out[2 * i + 1] = y + noise * random.normal();
    examples.labels.push_back(lower ? 1 : 0);
  }
}

double draw(std::string_view kind, std::size_t degrees, Random& random) {
  if (kind == "rademacher") return random.below(2) == 0 ? -1 : 1;
  if (kind == "laplace") {
    // The difference of two exponentials, over sqrt(2): variance 1.
    const double a = -portable_log(random.uniform());
    const double b = -portable_log(random.uniform());
    return (a - b) / std::numbers::sqrt2;
  }
  const double normal = random.normal();
  if (kind != "student") return normal;
  double square = 0;
  for (std::size_t k = 0; k < degrees; ++k) {
    const double other = random.normal();
    square += other * other;
  }
  return normal / std::sqrt(square / static_cast<double>(degrees));
}

}  // namespace

bool is_synthetic(std::string_view text) noexcept {
  return find_kind(text) != nullptr;
}

Examples synthetic(std::string_view text, std::uint64_t seed, bool test) {
  const Kind* kind = find_kind(text);
  if (kind == nullptr) {
    std::vector<std::string_view> names;
    for (const Kind& known : kKinds) names.push_back(known.name);
    refuse(text, 0, fmt::format("the name is none of {}", fmt::join(names, ", ")));
  }
  const std::array<double, 3> keys = parse_keys(text, *kind);
  const auto n = static_cast<std::size_t>(keys[0]);
  const bool plane = kind->name == "circle" || kind->name == "moons";
  const std::size_t d = plane ? 2 : static_cast<std::size_t>(keys[1]);
  constexpr std::size_t kMostNumbers = std::size_t{1} << 32;
  if (n > kMostNumbers / d) {
    refuse(text, 0, fmt::format("n times d ({} times {}) must be at most {}", n, d, kMostNumbers));
  }
  Examples examples;
  examples.values = {NpyType::F8, {n, d}, {}};
  examples.class_names = {"negative", "positive"};
  examples.labels.reserve(n);
  std::vector<double> values(n * d);
  if (kind->name == "circle") {
    circle(n, static_cast<std::uint64_t>(keys[1]), test, examples, values.data());
  } else if (kind->name == "moons") {
    examples.class_names = {"upper", "lower"};
    moons(n, keys[1], seed, test, examples, values.data());
  } else {
    std::vector<double> teacher(d);
    Random teacher_random(seed, kTeacherStream);
    for (double& weight : teacher) weight = teacher_random.normal();
    for (std::size_t i = 0; i < n; ++i) {
      Random random(seed, stream_of(i, test));
      double* row = values.data() + i * d;
      double square = 0;
      for (std::size_t k = 0; k < d; ++k) {
        row[k] = draw(kind->name, static_cast<std::size_t>(keys[2]), random);
        square += row[k] * row[k];
      }
      if (kind->name == "sphere") {
        const double norm = std::sqrt(square);
        for (std::size_t k = 0; k < d; ++k) row[k] /= norm;
      }
      double product = 0;
      for (std::size_t k = 0; k < d; ++k) product += teacher[k] * row[k];
      examples.labels.push_back(product >= 0 ? 1 : 0);
    }
  }
  examples.values.bytes.resize(values.size() * sizeof(double));
  std::memcpy(examples.values.bytes.data(), values.data(), examples.values.bytes.size());
  return examples;
}

}  // namespace gradgram::datasets
