#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cli/figure.hpp"
#include "cli/text.hpp"

namespace gradgram::cli {
namespace {

constexpr double kWidth = 440;
constexpr double kHeight = 310;
constexpr double kLeft = 50;
constexpr double kRight = 10;
constexpr double kTop = 30;
constexpr double kBottom = 44;

const char* variable(Colour colour) {
  switch (colour) {
    case Colour::Blue:
      return "var(--blue)";
    case Colour::Vermillion:
      return "var(--vermillion)";
    case Colour::Green:
      return "var(--green)";
    case Colour::Purple:
      return "var(--purple)";
    case Colour::Grey:
      return "var(--grey)";
    case Colour::Ink:
      return "var(--ink)";
  }
  return "currentColor";
}

/// Coordinates without needless digits: `12.3`, `7`.
std::string coordinate(double value) {
  std::string text = fmt::format("{:.1f}", value);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text == "-0" ? "0" : text;
}

/// An axis with its range settled: data -> drawing, and its ticks.
class Scale {
 public:
  Scale(const Axis& axis, double low, double high, double from, double to)
      : logarithmic_(axis.logarithmic), percent_(axis.percent), from_(from), to_(to) {
    if (!(low <= high)) low = axis.logarithmic ? 1 : 0, high = 1;
    low_ = axis.low.value_or(low);
    high_ = axis.high.value_or(high);
    // Numbers that differ by rounding alone (the norms of points on a circle): steps of a millionth of such a
    // range would be lost in sums with its ends.
    const bool narrow = !(high_ - low_ > 1e-9 * std::max(std::abs(low_), std::abs(high_)) + kLeast);
    if (logarithmic_) {
      if (!(low_ > 0)) low_ = high_ > 0 ? high_ / 10 : 1;
      low_ = std::clamp(low_, kLeast, 1 / kLeast);
      high_ = std::clamp(high_, kLeast, 1 / kLeast);
      if (narrow || !(high_ > low_)) low_ /= 2, high_ = low_ * 4;
      // Room at either end: a curve along the frame looks cut off.
      const double margin = std::pow(high_ / low_, 0.04);
      if (!axis.low) low_ /= margin;
      if (!axis.high) high_ *= margin;
    } else if (narrow) {
      const double pad = std::abs(low_) <= kLeast ? 1 : std::abs(low_) * 0.1;
      low_ -= pad;
      high_ += pad;
    }
    if (!axis.ticks.empty()) {
      ticks_ = axis.ticks;
    } else if (logarithmic_) {
      log_ticks();
    } else {
      linear_ticks(axis);
    }
  }
  bool shows(double value) const { return std::isfinite(value) && (!logarithmic_ || value > 0); }
  double operator()(double value) const {
    const double share =
        logarithmic_ ? std::log(value / low_) / std::log(high_ / low_) : (value - low_) / (high_ - low_);
    return from_ + std::clamp(share, -0.02, 1.02) * (to_ - from_);
  }
  const std::vector<std::pair<double, std::string>>& ticks() const { return ticks_; }

 private:
  void linear_ticks(const Axis& axis) {
    const double rough = (high_ - low_) / 5;
    const double power = std::pow(10.0, std::floor(std::log10(rough)));
    const double ratio = rough / power;
    const double step = power * (ratio < 1.5 ? 1 : ratio < 3.5 ? 2 : ratio < 7.5 ? 5 : 10);
    if (!axis.low) low_ = std::floor(low_ / step + 1e-9) * step;
    if (!axis.high) high_ = std::ceil(high_ / step - 1e-9) * step;
    const int digits = std::max(0, -static_cast<int>(std::floor(std::log10(step) + 1e-9)));
    const double first = std::ceil(low_ / step - 1e-9);
    for (double k = first; k * step <= high_ + step * 1e-6; ++k) {
      const double value = std::abs(k) < 0.5 ? 0 : k * step;
      std::string text =
          percent_ ? fmt::format("{:.{}f} %", value == 0 ? 0.0 : value * 100, std::max(0, digits - 2))
                   : fmt::format("{:.{}f}", value == 0 ? 0.0 : value, digits);
      if (text.starts_with('-')) text = "\u2212" + text.substr(1);
      ticks_.emplace_back(value, text);
    }
  }
  void log_ticks() {
    const int first = static_cast<int>(std::ceil(std::log10(low_) - 1e-9));
    const int last = static_cast<int>(std::floor(std::log10(high_) + 1e-9));
    const int decades = last - first;
    if (decades >= 2) {
      const int step = std::max(1, (decades + 5) / 6);
      for (int e = first; e <= last; e += step) ticks_.emplace_back(std::pow(10.0, e), power_text(e));
      return;
    }
    for (int e = first - 1; e <= last; ++e) {
      for (const double digit : {1.0, 2.0, 5.0}) {
        const double value = digit * std::pow(10.0, e);
        if (value >= low_ * 0.999 && value <= high_ * 1.001)
          ticks_.emplace_back(value, significant(value, 1));
      }
    }
  }
  /// Below it decimal digits are no longer numbers.
  static constexpr double kLeast = 1e-290;

  static std::string power_text(int exponent) {
    if (exponent >= 0 && exponent <= 4)
      return grouped(static_cast<std::size_t>(std::lround(std::pow(10.0, exponent))));
    static constexpr const char* kSuperscripts[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
    std::string text = exponent < 0 ? "10⁻" : "10";
    for (const char digit : std::to_string(std::abs(exponent))) text += kSuperscripts[digit - '0'];
    return text;
  }

  bool logarithmic_;
  bool percent_;
  double from_;
  double to_;
  double low_ = 0;
  double high_ = 1;
  std::vector<std::pair<double, std::string>> ticks_;
};

std::pair<double, double> range(const Figure& figure, std::vector<double> Series::*values, bool positive) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const Series& series : figure.series) {
    for (const double value : series.*values) {
      if (!std::isfinite(value) || (positive && value <= 0)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  return {low, high};
}

std::string path_of(const Series& series, const Scale& x, const Scale& y) {
  std::string path;
  bool pen = false;
  double last = 0;
  const std::size_t count = std::min(series.x.size(), series.y.size());
  // A curve of thousands of points looks the same with a few hundred.
  const std::size_t stride = std::max<std::size_t>(1, count / 600);
  for (std::size_t i = 0; i < count; ++i) {
    if (i % stride != 0 && i + 1 != count) continue;
    if (!x.shows(series.x[i]) || !y.shows(series.y[i])) {
      pen = false;
      continue;
    }
    const double px = x(series.x[i]);
    const double py = y(series.y[i]);
    if (pen && series.mark == Mark::Steps) path += fmt::format("L{} {}", coordinate(px), coordinate(last));
    path += fmt::format("{}{} {}", pen ? 'L' : 'M', coordinate(px), coordinate(py));
    pen = true;
    last = py;
  }
  return path;
}

/// Points as strokes of no length with round caps, in several paths so that where they lie on one another
/// shows.
std::string points_of(const Series& series, const Scale& x, const Scale& y) {
  constexpr std::size_t kLayers = 40;
  std::string layers[kLayers];
  const std::size_t count = std::min(series.x.size(), series.y.size());
  for (std::size_t i = 0; i < count; ++i) {
    if (!x.shows(series.x[i]) || !y.shows(series.y[i])) continue;
    layers[i % kLayers] += fmt::format("M{} {}h0", coordinate(x(series.x[i])), coordinate(y(series.y[i])));
  }
  std::string text = fmt::format("<g stroke=\"{}\" class=\"points\">", variable(series.colour));
  for (const std::string& layer : layers) {
    if (!layer.empty()) text += "<path d=\"" + layer + "\"/>";
  }
  return text + "</g>\n";
}

/// Where a value lies on an axis, 0 to 1 and beyond; NaN where it is not shown.
class Share {
 public:
  Share(const Figure& figure, const Axis& axis, std::vector<double> Series::*values)
      : logarithmic_(axis.logarithmic) {
    const auto [low, high] = range(figure, values, axis.logarithmic);
    low_ = at(axis.low.value_or(low));
    width_ = at(axis.high.value_or(high)) - low_;
  }
  double operator()(double value) const { return (at(value) - low_) / width_; }

 private:
  double at(double value) const { return logarithmic_ ? std::log(value) : value; }
  bool logarithmic_;
  double low_ = 0, width_ = 1;
};

}  // namespace

LabelPlace label_place(const Figure& figure) {
  // A letter's width and a line's height in shares of the drawing, with some room around.
  constexpr double kLetter = 0.019;
  constexpr double kLine = 0.1;
  const Share x(figure, figure.x, &Series::x);
  const Share y(figure, figure.y, &Series::y);
  const double line = std::clamp(x(figure.vertical_line.value_or(0)), 0.0, 1.0);
  const double width = kLetter * static_cast<double>(figure.vertical_line_label.size() + 2);
  const auto meets = [&](const LabelPlace& place) {
    const double left = place.right ? line : line - width;
    const double bottom = place.top ? 1 - kLine : 0;
    // Beyond the frame there is no room at all.
    if (!(left >= 0 && left + width <= 1)) return std::numeric_limits<std::size_t>::max();
    std::size_t count = 0;
    const auto look = [&](double px, double py) {
      count += px >= left && px <= left + width && py >= bottom && py <= bottom + kLine ? 1 : 0;
    };
    const auto walk = [&](double px, double py, double qx, double qy) {
      constexpr int kSteps = 64;
      for (int i = 1; i <= kSteps; ++i) look(px + (qx - px) * i / kSteps, py + (qy - py) * i / kSteps);
    };
    for (const Series& series : figure.series) {
      for (std::size_t i = 0; i < std::min(series.x.size(), series.y.size()); ++i) {
        const double px = x(series.x[i]);
        const double py = y(series.y[i]);
        if (series.mark == Mark::Points || i == 0) {
          look(px, py);
          continue;
        }
        const double before = y(series.y[i - 1]);
        const double middle = series.mark == Mark::Steps ? before : py;
        walk(x(series.x[i - 1]), before, px, middle);
        if (series.mark == Mark::Steps) walk(px, before, px, py);
      }
    }
    return count;
  };
  const LabelPlace places[] = {{true, true}, {false, true}, {true, false}, {false, false}};
  return *std::min_element(std::begin(places), std::end(places),
                           [&](const LabelPlace& a, const LabelPlace& b) { return meets(a) < meets(b); });
}

std::string svg(const Figure& figure) {
  const auto [x_low, x_high] = range(figure, &Series::x, figure.x.logarithmic);
  const auto [y_low, y_high] = range(figure, &Series::y, figure.y.logarithmic);
  const Scale x(figure.x, x_low, x_high, kLeft, kWidth - kRight);
  const Scale y(figure.y, y_low, y_high, kHeight - kBottom, kTop);
  std::string text = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n", kWidth,
                                 kHeight, escape_html(figure.title));
  text += "<g class=\"grid\">";
  for (const auto& [value, label] : y.ticks()) {
    text += fmt::format("<path d=\"M{} {}H{}\"/>", kLeft, coordinate(y(value)), kWidth - kRight);
  }
  text += "</g>\n<g class=\"axis\">";
  for (const auto& [value, label] : y.ticks()) {
    text += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", kLeft - 6,
                        coordinate(y(value) + 4), label);
  }
  for (const auto& [value, label] : x.ticks()) {
    text += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>", coordinate(x(value)),
                        kHeight - kBottom + 16, label);
    text += fmt::format("<path d=\"M{0} {1}v4\"/>", coordinate(x(value)), kHeight - kBottom);
  }
  text += fmt::format("<path d=\"M{} {}H{}\"/>", kLeft, kHeight - kBottom, kWidth - kRight);
  text += fmt::format("</g>\n<g class=\"label\"><text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                      (kLeft + kWidth - kRight) / 2, kHeight - 8, escape_html(figure.x.label));
  // Above its axis rather than turned on its side: easier to read, and no room lost on a narrow screen.
  text += fmt::format("<text x=\"0\" y=\"14\">{}</text></g>\n", escape_html(figure.y.label));
  if (figure.vertical_line && x.shows(*figure.vertical_line)) {
    const double at = x(*figure.vertical_line);
    const LabelPlace place = label_place(figure);
    text += fmt::format(
        "<g class=\"mark\"><path d=\"M{0} {1}V{2}\"/><text x=\"{3}\" y=\"{4}\" "
        "text-anchor=\"{5}\">{6}</text></g>\n",
        coordinate(at), kTop, kHeight - kBottom, coordinate(at + (place.right ? 5 : -5)),
        place.top ? kTop + 12 : kHeight - kBottom - 8, place.right ? "start" : "end",
        escape_html(figure.vertical_line_label));
  }
  for (const Series& series : figure.series) {
    if (series.mark == Mark::Points) {
      text += points_of(series, x, y);
      continue;
    }
    text += fmt::format("<path class=\"curve{}\" stroke=\"{}\" d=\"{}\"/>\n",
                        series.mark == Mark::Dashes ? " dashes" : "", variable(series.colour),
                        path_of(series, x, y));
  }
  return text + "</svg>";
}

std::string html(const Figure& figure) {
  std::string text = fmt::format("<figure>\n<figcaption><b>{}</b> {}</figcaption>\n",
                                 escape_html(figure.title), escape_html(figure.caption));
  std::string legend;
  for (const Series& series : figure.series) {
    if (series.label.empty()) continue;
    const char* kind = series.mark == Mark::Points ? "dot" : series.mark == Mark::Dashes ? "dash" : "rule";
    legend += fmt::format("<li><i class=\"{}\" style=\"color:{}\"></i>{}</li>", kind, variable(series.colour),
                          escape_html(series.label));
  }
  if (!legend.empty()) text += "<ul class=\"legend\">" + legend + "</ul>\n";
  return text + svg(figure) + "\n</figure>\n";
}

}  // namespace gradgram::cli
