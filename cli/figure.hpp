#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

/// One description of a chart, drawn twice: as SVG inside the report, and by gnuplot as files.
namespace gradgram::cli {

/// Of the palette of Okabe and Ito, which readers with colour blindness can tell apart.
enum class Colour { Blue, Vermillion, Green, Purple, Grey, Ink };
enum class Mark { Line, Dashes, Points, Steps };

struct Series {
  std::string label;  ///< in the legend; empty leaves it out
  Colour colour = Colour::Blue;
  Mark mark = Mark::Line;
  std::vector<double> x;
  std::vector<double> y;
};

struct Axis {
  std::string label;  ///< with the unit
  bool logarithmic = false;
  bool percent = false;  ///< ticks as percentages of 1
  std::optional<double> low, high;
  std::vector<std::pair<double, std::string>> ticks;  ///< besides the usual ones
};

struct Figure {
  std::string name;     ///< of the files
  std::string title;    ///< what is seen
  std::string caption;  ///< how to read it
  Axis x;
  Axis y;
  std::vector<Series> series;
  std::optional<double> vertical_line;
  std::string vertical_line_label;
};

/// Which side of the vertical line, and which end of it, has room for its label.
struct LabelPlace {
  bool right = true;
  bool top = true;
};
/// The first place that no curve or point runs through, or else the one with the fewest.
LabelPlace label_place(const Figure& figure);

/// An <svg> element that takes the width it is given and its colours from the page's variables --blue,
/// --vermillion,
/// --green, --purple, --grey, --ink, --line, --muted. Points that are not finite, or not positive on a
/// logarithmic axis, are left out.
std::string svg(const Figure& figure);
/// A <figure> with title, caption, legend and drawing.
std::string html(const Figure& figure);

/// Writes NAME.dat and NAME.gp for each figure into `folder` and runs gnuplot there for NAME.svg and
/// NAME.pdf. Returns an empty text, or why there are no drawings. Throws IoError when files cannot be
/// written.
std::string draw_with_gnuplot(const std::vector<Figure>& figures, const std::filesystem::path& folder);

}  // namespace gradgram::cli
