#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ostream.h>
#include <spawn.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ostream>
#include <system_error>

#include "cli/figure.hpp"
#include "engine/error.hpp"
#include "engine/file.hpp"

extern char** environ;

namespace gradgram::cli {
namespace {

const char* rgb(Colour colour) {
  switch (colour) {
    case Colour::Blue:
      return "#0072b2";
    case Colour::Vermillion:
      return "#d55e00";
    case Colour::Green:
      return "#009e73";
    case Colour::Purple:
      return "#aa4499";
    case Colour::Grey:
      return "#888888";
    case Colour::Ink:
      return "#222222";
  }
  return "#000000";
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

std::string script(const Figure& figure) {
  std::string text = fmt::format(
      "# gnuplot {0}.gp  draws {0}.svg and {0}.pdf from {0}.dat\n"
      "set encoding utf8\nset termoption noenhanced\nset border 3 lc rgb '#666666'\nset tics nomirror "
      "textcolor rgb "
      "'#333333'\nset grid ytics lc rgb '#dddddd' lw 0.7\nset key outside below center horizontal samplen "
      "1.5\nset autoscale xfix\n"
      "set title {1}\nset xlabel {2}\nset ylabel {3}\n",
      figure.name, quoted(figure.title), quoted(figure.x.label), quoted(figure.y.label));
  const auto axis = [&](const Axis& a, char name) {
    if (a.logarithmic) text += fmt::format("set logscale {0}\nset format {0} \"%g\"\n", name);
    if (a.percent) text += fmt::format("set format {} \"%.0f %%\"\n", name);
    const double scale = a.percent ? 100 : 1;
    if (a.low || a.high) {
      text += fmt::format("set {}range [{}:{}]\n", name, a.low ? fmt::format("{}", *a.low * scale) : "*",
                          a.high ? fmt::format("{}", *a.high * scale) : "*");
    }
    if (!a.ticks.empty()) {
      text += fmt::format("set {}tics (", name);
      for (std::size_t i = 0; i < a.ticks.size(); ++i) {
        text +=
            fmt::format("{}{} {}", i == 0 ? "" : ", ", quoted(a.ticks[i].second), a.ticks[i].first * scale);
      }
      text += ")\n";
    }
  };
  axis(figure.x, 'x');
  axis(figure.y, 'y');
  if (figure.vertical_line) {
    const LabelPlace place = label_place(figure);
    text += fmt::format(
        "set arrow from first {0}, graph 0 to first {0}, graph 1 nohead dt 2 lc rgb '#666666'\n"
        "set label {1} at first {0}, graph {2} {3} offset {4},0 textcolor rgb '#666666'\n",
        *figure.vertical_line, quoted(figure.vertical_line_label), place.top ? 0.95 : 0.05,
        place.right ? "left" : "right", place.right ? 0.6 : -0.6);
  }
  std::string plot = "plot";
  for (std::size_t i = 0; i < figure.series.size(); ++i) {
    const Series& series = figure.series[i];
    std::string style;
    switch (series.mark) {
      case Mark::Line:
        style = "lines lw 2";
        break;
      case Mark::Dashes:
        style = "lines lw 1.5 dt 2";
        break;
      case Mark::Steps:
        style = "steps lw 2";
        break;
      case Mark::Points:
        style = "points pt 7 ps 0.25";
        break;
    }
    plot += fmt::format("{} '{}.dat' index {} using 1:2 with {} lc rgb '{}' {}", i == 0 ? "" : ", \\\n ",
                        figure.name, i, style, rgb(series.colour),
                        series.label.empty() ? "notitle" : "title " + quoted(series.label));
  }
  text += fmt::format(
              "set terminal svg size 640,440 dynamic font 'sans,14' background rgb 'white'\nset output "
              "'{}.svg'\n",
              figure.name) +
          plot +
          fmt::format(
              "\nset terminal pdfcairo size 5in,3.4in font 'sans,11'\nset output '{}.pdf'\nreplot\nunset "
              "output\n",
              figure.name);
  return text;
}

void write_data(const Figure& figure, std::ostream& stream) {
  fmt::print(stream, "# {}\n# {}\t{}\n", figure.title, figure.x.label, figure.y.label);
  for (const Series& series : figure.series) {
    fmt::print(stream, "# {}\n", series.label.empty() ? "line" : series.label);
    const double x_scale = figure.x.percent ? 100 : 1;
    const double y_scale = figure.y.percent ? 100 : 1;
    for (std::size_t i = 0; i < std::min(series.x.size(), series.y.size()); ++i) {
      fmt::print(stream, "{:.9g}\t{:.9g}\n", series.x[i] * x_scale, series.y[i] * y_scale);
    }
    // Two blank lines separate what gnuplot calls an index.
    fmt::print(stream, "\n\n");
  }
}

/// Runs a program of the PATH in `folder`, its words going nowhere. Returns its exit status, or -1 with `why`
/// when it could not be started.
int run(const std::vector<std::string>& words, const std::filesystem::path& folder, std::string& why) {
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addchdir_np(&actions, folder.c_str());
  for (const int descriptor : {0, 1, 2}) {
    posix_spawn_file_actions_addopen(&actions, descriptor, "/dev/null", descriptor == 0 ? O_RDONLY : O_WRONLY,
                                     0);
  }
  // Ctrl-C is blocked in this program's threads (a watcher waits for it); the child must not inherit that.
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t child = 0;
  const int error = posix_spawnp(&child, arguments[0], &actions, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    why = std::generic_category().message(error);
    return -1;
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

}  // namespace

std::string draw_with_gnuplot(const std::vector<Figure>& figures, const std::filesystem::path& folder) {
  for (const Figure& figure : figures) {
    write_file(folder / (figure.name + ".dat"), [&](std::ostream& stream) { write_data(figure, stream); });
    write_file(folder / (figure.name + ".gp"), [&](std::ostream& stream) { stream << script(figure); });
  }
  for (const Figure& figure : figures) {
    std::string why;
    const int status = run({"gnuplot", figure.name + ".gp"}, folder, why);
    if (status == -1 || status == 127) {
      return fmt::format(
          "gnuplot could not be started ({}), so figures/ holds the data and scripts but no drawings; "
          "install gnuplot and "
          "run `gnuplot *.gp` there",
          status == -1 ? why : "not found");
    }
    if (status != 0) {
      return fmt::format("gnuplot failed on figures/{}.gp (exit status {}), so drawings are missing",
                         figure.name, status);
    }
  }
  return {};
}

}  // namespace gradgram::cli
