#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "datasets/formats.hpp"
#include "engine/error.hpp"

namespace gradgram::datasets {
namespace {

constexpr std::size_t kMostClasses = 100;
/// A field costs 32 bytes, even if the file spends only one on it.
constexpr std::size_t kMostColumns = std::size_t{1} << 20;

/// Text from a file as it may stand in a message.
std::string shown(std::string_view text) {
  constexpr std::size_t kLongest = 40;
  std::string result(text.substr(0, kLongest));
  for (char& character : result) {
    if (character < ' ' || character > '~') character = '?';
  }
  return text.size() > kLongest ? result + "..." : result;
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t";
  const std::size_t begin = text.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

/// The number that the whole text spells, or nothing. NaN and infinity are numbers here; the caller refuses
/// them.
std::optional<double> number(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

bool whole(std::string_view text) {
  constexpr std::size_t kLongest = 9;  // digits that surely fit in 32 bits
  if (text.starts_with('-') || text.starts_with('+')) text.remove_prefix(1);
  return !text.empty() && text.size() <= kLongest &&
         text.find_first_not_of("0123456789") == std::string_view::npos;
}

/// One record after the other. A field is valid until the next record is read.
class Reader {
 public:
  Reader(std::string_view text, const std::string& name) : text_(text), name_(name) {
    constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
    if (text_.starts_with(kByteOrderMark)) position_ = kByteOrderMark.size();
    // The separator of the header row holds for the file.
    bool quoted = false;
    for (std::size_t i = position_; i < text_.size() && (quoted || text_[i] != '\n'); ++i) {
      if (text_[i] == '"') quoted = !quoted;
      if (!quoted && (text_[i] == ',' || text_[i] == ';' || text_[i] == '\t')) {
        separator_ = text_[i];
        break;
      }
    }
  }

  /// False at the end of the file. Blank lines are skipped.
  bool next() {
    while (position_ < text_.size() && (text_[position_] == '\n' || text_[position_] == '\r')) {
      if (text_[position_] == '\n') ++next_line_;
      ++position_;
    }
    if (position_ >= text_.size()) return false;
    line_ = next_line_;
    fields_.clear();
    while (field()) {
    }
    return true;
  }
  std::size_t line() const noexcept { return line_; }
  const std::vector<std::string>& fields() const noexcept { return fields_; }

  [[noreturn]] void refuse(const std::string& why) const {
    throw FormatError(fmt::format("csv: {}: line {}: {}", name_, line_, why));
  }

 private:
  /// Reads a field; true when another follows in the same record.
  bool field() {
    while (position_ < text_.size() && text_[position_] == ' ') ++position_;
    std::string value;
    if (position_ < text_.size() && text_[position_] == '"') {
      ++position_;
      while (true) {
        const std::size_t quote = text_.find('"', position_);
        if (quote == std::string_view::npos) {
          refuse(fmt::format("column {}: a quoted field does not end", fields_.size() + 1));
        }
        const std::string_view piece = text_.substr(position_, quote - position_);
        next_line_ += static_cast<std::size_t>(std::ranges::count(piece, '\n'));
        value += piece;
        position_ = quote + 1;
        if (position_ >= text_.size() || text_[position_] != '"') break;
        value += '"';
        ++position_;
      }
      while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\r')) ++position_;
      if (position_ < text_.size() && text_[position_] != separator_ && text_[position_] != '\n') {
        refuse(fmt::format("column {}: text follows a closing quote", fields_.size() + 1));
      }
    } else {
      const std::size_t begin = position_;
      while (position_ < text_.size() && text_[position_] != separator_ && text_[position_] != '\n')
        ++position_;
      std::string_view piece = text_.substr(begin, position_ - begin);
      const bool line_ends = position_ >= text_.size() || text_[position_] == '\n';
      if (line_ends && piece.ends_with('\r')) piece.remove_suffix(1);
      value = trimmed(piece);
    }
    if (fields_.size() == kMostColumns) refuse(fmt::format("more than {} columns", kMostColumns));
    fields_.push_back(std::move(value));
    if (position_ >= text_.size()) return false;
    const bool more = text_[position_] == separator_;
    if (!more) ++next_line_;
    ++position_;
    // A separator at the very end of the file still has an empty field behind it.
    if (more && position_ >= text_.size()) fields_.emplace_back();
    return more && position_ < text_.size();
  }

  std::string_view text_;
  const std::string& name_;
  char separator_ = ',';
  std::size_t position_ = 0;
  std::size_t line_ = 1;
  std::size_t next_line_ = 1;
  std::vector<std::string> fields_;
};

/// The target column as texts, each with the line it stood in. Equal texts share one copy.
struct Column {
  std::vector<const std::string*> texts;
  std::vector<std::size_t> lines;
  std::set<std::string> distinct;
};

void set_classes(Examples& examples, const Column& column) {
  std::vector<const std::string*> names;
  for (const std::string& text : column.distinct) names.push_back(&text);
  // Numbers in the order of numbers, texts in the order of their bytes: independent of the order of the rows.
  if (std::ranges::all_of(column.distinct, whole)) {
    std::ranges::sort(names, {}, [](const std::string* text) { return *number(*text); });
  }
  std::map<const std::string*, std::int32_t> index;
  for (const std::string* text : names) {
    index.emplace(text, static_cast<std::int32_t>(index.size()));
    examples.class_names.push_back(*text);
  }
  for (const std::string* text : column.texts) examples.labels.push_back(index.at(text));
}

void set_numbers(Examples& examples, const Column& column, const std::string& place,
                 const std::string& target) {
  for (std::size_t i = 0; i < column.texts.size(); ++i) {
    const std::optional<double> value = number(*column.texts[i]);
    if (!value || !std::isfinite(*value)) {
      throw FormatError(
          fmt::format("csv: {}: line {}: target column '{}' holds '{}', not a finite number{}", place,
                      column.lines[i], shown(target), shown(*column.texts[i]),
                      value ? ""
                            : fmt::format("; its {} different texts are too many for classes (at most "
                                          "{})",
                                          column.distinct.size(), kMostClasses)));
    }
    examples.targets.push_back(*value);
  }
}

}  // namespace

Examples parse_csv(std::span<const std::byte> bytes, const std::string& name, std::string_view target,
                   TargetKind kind) {
  Reader reader({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, name);
  if (!reader.next()) throw FormatError(fmt::format("csv: {}: line 1: the file is empty", name));
  const std::vector<std::string> header = reader.fields();
  std::set<std::string_view> seen;
  for (std::size_t i = 0; i < header.size(); ++i) {
    if (header[i].empty()) reader.refuse(fmt::format("column {} has no name", i + 1));
    if (!seen.insert(header[i]).second)
      reader.refuse(fmt::format("two columns are named '{}'", shown(header[i])));
  }
  if (std::ranges::all_of(header, [](const std::string& text) { return number(text).has_value(); })) {
    reader.refuse("expected a header row with the names of the columns, found only numbers");
  }
  if (header.size() < 2) reader.refuse("one column is not enough: there must be inputs and a target");
  std::size_t target_column = header.size() - 1;
  if (!target.empty()) {
    const auto found = std::ranges::find(header, target);
    if (found == header.end()) {
      constexpr std::size_t kShown = 20;
      std::vector<std::string> names;
      for (std::size_t i = 0; i < std::min(header.size(), kShown); ++i) names.push_back(shown(header[i]));
      throw ArgumentError(fmt::format("csv: {}: line 1: there is no column '{}'; the columns are {}{}", name,
                                      shown(target), fmt::join(names, ", "),
                                      header.size() > kShown ? ", ..." : ""));
    }
    target_column = static_cast<std::size_t>(found - header.begin());
  }

  Column column;
  std::vector<double> values;
  while (reader.next()) {
    const std::vector<std::string>& fields = reader.fields();
    if (fields.size() != header.size()) {
      reader.refuse(fmt::format("{} fields where the header has {}", fields.size(), header.size()));
    }
    for (std::size_t i = 0; i < fields.size(); ++i) {
      if (fields[i].empty()) reader.refuse(fmt::format("column {} ('{}') is empty", i + 1, shown(header[i])));
      if (i == target_column) {
        column.texts.push_back(&*column.distinct.insert(fields[i]).first);
        column.lines.push_back(reader.line());
        continue;
      }
      const std::optional<double> value = number(fields[i]);
      if (!value || !std::isfinite(*value)) {
        reader.refuse(fmt::format("column {} ('{}') holds '{}', not a finite number", i + 1, shown(header[i]),
                                  shown(fields[i])));
      }
      values.push_back(*value);
    }
  }
  if (column.texts.empty()) reader.refuse("no rows follow the header");

  Examples examples;
  examples.values = {NpyType::F8, {column.texts.size(), header.size() - 1}, {}};
  examples.values.bytes.resize(values.size() * sizeof(double));
  std::memcpy(examples.values.bytes.data(), values.data(), examples.values.bytes.size());

  const bool few = column.distinct.size() <= kMostClasses;
  const bool all_numbers =
      std::ranges::all_of(column.distinct, [](const std::string& text) { return number(text).has_value(); });
  const bool all_whole = std::ranges::all_of(column.distinct, whole);
  if (kind == TargetKind::Classes && !few) {
    throw FormatError(
        fmt::format("csv: {}: target column '{}' has {} different values, more than the {} classes allowed",
                    name, shown(header[target_column]), column.distinct.size(), kMostClasses));
  }
  if (kind == TargetKind::Classes || (kind == TargetKind::Auto && few && (all_whole || !all_numbers))) {
    set_classes(examples, column);
  } else {
    set_numbers(examples, column, name, header[target_column]);
  }
  return examples;
}

}  // namespace gradgram::datasets
