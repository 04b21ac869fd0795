#include "cli/text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>

#include "engine/error.hpp"

namespace gradgram::cli {
namespace {

/// Inserts commas into the integer part of a decimal number.
std::string with_commas(const std::string& digits) {
  const std::size_t begin = digits.starts_with('-') ? 1 : 0;
  const std::size_t end = std::min(digits.find('.'), digits.size());
  std::string result;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > begin && i < end && (end - i) % 3 == 0) result += ',';
    result += digits[i];
  }
  return result;
}

/// The whole of `text` as a non-negative decimal number.
bool read_double(std::string_view text, double& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && std::isfinite(value) && value >= 0;
}

bool read_size(std::string_view text, std::size_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && !text.empty();
}

}  // namespace

std::string grouped(std::size_t value) {
  return with_commas(std::to_string(value));
}

std::string significant(double value, int digits) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : (value > 0 ? "infinity" : "-infinity");
  if (value == 0) return "0";
  const double magnitude = std::floor(std::log10(std::abs(value)));
  if (magnitude < -4 || magnitude >= 9) return fmt::format("{:.{}e}", value, digits - 1);
  const int decimals = std::max(0, digits - 1 - static_cast<int>(magnitude));
  const double unit = std::pow(10.0, magnitude - (digits - 1));
  const double rounded = decimals == 0 ? std::round(value / unit) * unit : value;
  return with_commas(fmt::format("{:.{}f}", rounded, decimals));
}

std::string correlation(double value, bool html) {
  if (!std::isfinite(value)) return "n/a";
  std::string text = fmt::format("{:+.2f}", value);
  if (text == "-0.00") text = "+0.00";
  if (html && text[0] == '-') text = "\u2212" + text.substr(1);
  return text;
}

std::string bytes_text(std::size_t bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1000 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes)
                   : fmt::format("{:.{}f} {}", value, value < 10 ? 1 : 0, kUnits[unit]);
}

std::string budget_text(std::size_t bytes) {
  constexpr std::size_t kMebi = std::size_t{1} << 20;
  constexpr std::size_t kGibi = std::size_t{1} << 30;
  if (bytes >= kGibi && bytes % kGibi == 0) return fmt::format("{} GiB", bytes / kGibi);
  if (bytes >= kMebi && bytes % kMebi == 0) return fmt::format("{} MiB", bytes / kMebi);
  return bytes_text(bytes);
}

std::string seconds_text(double seconds) {
  if (seconds < 0.0995) return fmt::format("{:.0f} ms", std::max(seconds, 0.0) * 1000);
  if (seconds < 9.95) return fmt::format("{:.{}f} s", seconds, seconds < 0.995 ? 2 : 1);
  const auto whole = static_cast<long>(std::lround(seconds));
  if (whole < 100) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

std::string percent(double share) {
  const double value = share * 100;
  if (value == 0 || value >= 10) return fmt::format("{:.0f} %", value);
  return fmt::format("{:.{}f} %", value, value >= 1 ? 1 : 2);
}

std::string extents(const Shape& shape, std::string_view separator) {
  return fmt::format("{}", fmt::join(shape.extents(), separator));
}

std::size_t parse_bytes(std::string_view text) {
  std::size_t digits = 0;
  while (digits < text.size() &&
         (std::isdigit(static_cast<unsigned char>(text[digits])) || text[digits] == '.')) {
    ++digits;
  }
  std::string_view unit = text.substr(digits);
  if (unit.size() > 1 && unit.front() == ' ') unit.remove_prefix(1);
  struct Unit {
    std::string_view name;
    double factor;
  };
  static constexpr std::array<Unit, 10> kUnits = {{{"", 1},
                                                   {"B", 1},
                                                   {"kB", 1e3},
                                                   {"KB", 1e3},
                                                   {"MB", 1e6},
                                                   {"GB", 1e9},
                                                   {"KiB", 1024.0},
                                                   {"MiB", 1048576.0},
                                                   {"GiB", 1073741824.0},
                                                   {"TiB", 1099511627776.0}}};
  double value = 0;
  if (read_double(text.substr(0, digits), value)) {
    for (const Unit& candidate : kUnits) {
      if (candidate.name != unit) continue;
      const double bytes = value * candidate.factor;
      if (bytes >= 1 && bytes < 1e18) return static_cast<std::size_t>(bytes);
    }
  }
  throw ArgumentError(fmt::format(
      "--memory: '{}' is not an amount of memory; expected a number of bytes or one with a unit, such as "
      "4GiB, 512MB or '1.5 GB'",
      text));
}

std::vector<std::size_t> parse_numbers(std::string_view text, std::string_view what) {
  std::vector<std::size_t> numbers;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t comma = std::min(text.find(',', begin), text.size());
    std::size_t value = 0;
    if (!read_size(text.substr(begin, comma - begin), value)) {
      throw ArgumentError(
          fmt::format("{}: '{}' is not a list of whole numbers; expected one such as 0,5", what, text));
    }
    numbers.push_back(value);
    begin = comma + 1;
  }
  return numbers;
}

Shape parse_input_shape(std::string_view text) {
  std::vector<std::size_t> numbers;
  std::size_t begin = 0;
  bool good = true;
  while (good && begin <= text.size()) {
    const std::size_t end = std::min(text.find('x', begin), text.size());
    std::size_t value = 0;
    good = read_size(text.substr(begin, end - begin), value) && value > 0;
    numbers.push_back(value);
    begin = end + 1;
  }
  if (good && numbers.size() == 1) return Shape{numbers[0]};
  if (good && numbers.size() == 3) return Shape{numbers[1], numbers[2], numbers[0]};
  throw ArgumentError(
      fmt::format("--input: '{}' is not the shape of an example; expected FEATURES or CHANNELSxHEIGHTxWIDTH, "
                  "such as 3x32x32",
                  text));
}

std::string table(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& numeric,
                  std::string_view indent) {
  std::vector<std::size_t> widths(numeric.size());
  // Counts code points, so that a typographic character does not shift its column.
  const auto width_of = [](const std::string& text) {
    std::size_t width = 0;
    for (const char c : text) width += (static_cast<unsigned char>(c) & 0xC0U) != 0x80U ? 1U : 0U;
    return width;
  };
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths.at(i) = std::max(widths.at(i), width_of(row[i]));
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line(indent);
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - width_of(row[i]), ' ');
      if (i > 0) line += "  ";
      line += numeric[i] ? padding + row[i] : row[i] + padding;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string escape_html(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string typeset(std::string text) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 9> kNotation = {
      {{"k_ii", "k(x,x)"},
       {"||x||^2", "‖x‖²"},
       {"||x||", "‖x‖"},
       {"r_i^2", "r²"},
       {"+-", "±"},
       {"lambda", "λ"},
       {"eta t", "η t"},
       {"eta K", "η K"},
       {"`", ""}}};
  for (const auto& [plain, set] : kNotation) {
    std::string result;
    std::size_t begin = 0;
    for (std::size_t at = text.find(plain); at != std::string::npos; at = text.find(plain, begin)) {
      result += text.substr(begin, at - begin);
      result += set;
      begin = at + plain.size();
    }
    text = result + text.substr(begin);
  }
  // A minus sign before a digit, but not the hyphen inside a word.
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool minus = text[i] == '-' && i + 1 < text.size() &&
                       std::isdigit(static_cast<unsigned char>(text[i + 1])) != 0 &&
                       (i == 0 || text[i - 1] == ' ' || text[i - 1] == '(');
    if (minus) {
      result += "\u2212";
    } else {
      result += text[i];
    }
  }
  return result;
}

std::string shell_quote(std::string_view word) {
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) ||
           std::string_view("-_./,:=+%@").find(c) != std::string_view::npos;
  };
  bool needs = word.empty();
  for (const char c : word) needs = needs || !plain(c);
  if (!needs) return std::string(word);
  std::string quoted = "'";
  for (const char c : word) {
    if (c == '\'') {
      quoted += "'\\''";
    } else {
      quoted += c;
    }
  }
  return quoted + "'";
}

}  // namespace gradgram::cli
