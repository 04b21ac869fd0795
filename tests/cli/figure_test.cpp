#include "cli/figure.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "engine/error.hpp"

namespace gradgram::cli {
namespace {

Figure sample() {
  Figure figure;
  figure.name = "sample";
  figure.title = "Two curves & a cloud";
  figure.x.label = "epoch";
  figure.y.label = "accuracy";
  figure.y.percent = true;
  figure.series = {{"first", Colour::Blue, Mark::Line, {0, 1, 2}, {0.5, 0.75, 1.0}},
                   {"", Colour::Green, Mark::Points, {0.5, 1.5}, {0.6, 0.9}}};
  return figure;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(Figure, DrawsEveryPointInsideItsFrame) {
  const std::string text = svg(sample());
  EXPECT_EQ(count(text, "class=\"curve"), 1U);
  EXPECT_EQ(count(text, "h0"), 2U);
  EXPECT_EQ(count(text, "Two curves &amp; a cloud"), 1U);
  EXPECT_NE(text.find("100 %"), std::string::npos);
  EXPECT_EQ(text.find("nan"), std::string::npos);
  EXPECT_EQ(text.find("inf"), std::string::npos);
}

TEST(Figure, LeavesOutWhatCannotBeShown) {
  Figure figure = sample();
  figure.series[0].y[1] = std::numeric_limits<double>::quiet_NaN();
  figure.y.logarithmic = true;
  figure.y.percent = false;
  figure.series[1].y[0] = -1;
  const std::string text = svg(figure);
  EXPECT_EQ(text.find("nan"), std::string::npos);
  EXPECT_EQ(count(text, "h0"), 1U);
}

TEST(Figure, AnEmptyOrConstantSeriesIsStillAPicture) {
  Figure figure = sample();
  figure.series = {{"none", Colour::Blue, Mark::Line, {}, {}}};
  EXPECT_EQ(svg(figure).find("nan"), std::string::npos);
  figure.series = {{"flat", Colour::Blue, Mark::Steps, {1, 1}, {3, 3}}};
  EXPECT_EQ(svg(figure).find("nan"), std::string::npos);
  figure.x.logarithmic = figure.y.logarithmic = true;
  EXPECT_EQ(svg(figure).find("nan"), std::string::npos);
}

TEST(Figure, NumbersThatDifferByRoundingAloneAreOneNumber) {
  Figure figure = sample();
  for (const double at : {1.0, -3.0, 1e-320, 1e300, 0.0}) {
    const double next = std::nextafter(at, std::numeric_limits<double>::infinity());
    figure.series = {{"norms", Colour::Blue, Mark::Points, {at, next}, {next, at}}};
    for (const bool logarithmic : {false, true}) {
      figure.x.logarithmic = figure.y.logarithmic = logarithmic;
      const std::string text = svg(figure);
      EXPECT_EQ(text.find("nan"), std::string::npos) << at;
      EXPECT_EQ(text.find("inf"), std::string::npos) << at;
      EXPECT_LT(text.size(), 20000U) << at;
    }
  }
}

TEST(Figure, ALabelStandsWhereNoCurveRuns) {
  Figure figure;
  figure.name = "cdf";
  figure.y.low = 0;
  figure.y.high = 1;
  figure.x.logarithmic = true;
  figure.vertical_line = 1e-3;
  figure.vertical_line_label = "error bar";
  const auto place = [&](std::vector<double> x, std::vector<double> y) {
    figure.series = {{"", Colour::Blue, Mark::Steps, std::move(x), std::move(y)}};
    return label_place(figure);
  };
  // Low there and high behind it: above the curve.
  LabelPlace found = place({1e-6, 1e-3, 1}, {0.1, 0.3, 1});
  EXPECT_TRUE(found.right && found.top);
  // Nearly one from the line on: before it.
  found = place({1e-6, 0.9e-3, 1.1e-3, 1}, {0.2, 0.3, 0.97, 1});
  EXPECT_TRUE(!found.right && found.top);
  // Near the upper edge on both sides: below.
  found = place({1e-6, 1e-5, 1e-3, 1}, {0.93, 0.95, 0.97, 1});
  EXPECT_TRUE(found.right && !found.top);
  // No room at the right edge.
  figure.vertical_line = 0.9;
  found = place({1e-6, 1e-5, 1e-3, 1}, {0.1, 0.2, 0.3, 0.4});
  EXPECT_TRUE(!found.right && found.top);
  EXPECT_EQ(count(svg(figure), "text-anchor=\"end\">error bar"), 1U);
  figure.series.clear();
  EXPECT_EQ(svg(figure).find("nan"), std::string::npos);
}

class GnuplotFigure : public testing::Test {
 protected:
  void SetUp() override {
    folder = std::filesystem::path(testing::TempDir()) / "gradgram-figures";
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }
  std::filesystem::path folder;
};

TEST_F(GnuplotFigure, DataAndScriptsAreThereWithAndWithoutGnuplot) {
  const std::string note = draw_with_gnuplot({sample()}, folder);
  EXPECT_TRUE(std::filesystem::exists(folder / "sample.gp"));
  std::ifstream stream(folder / "sample.dat");
  std::stringstream data;
  data << stream.rdbuf();
  EXPECT_NE(data.str().find("2\t100"), std::string::npos) << data.str();
  if (!note.empty()) GTEST_SKIP() << note;
  EXPECT_TRUE(std::filesystem::exists(folder / "sample.pdf"));
  EXPECT_GT(std::filesystem::file_size(folder / "sample.svg"), 500U);
}

TEST_F(GnuplotFigure, TellsWhenThereIsNoGnuplot) {
  const std::string path = getenv("PATH");
  setenv("PATH", folder.c_str(), 1);
  const std::string note = draw_with_gnuplot({sample()}, folder);
  setenv("PATH", path.c_str(), 1);
  EXPECT_NE(note.find("gnuplot could not be started"), std::string::npos) << note;
  EXPECT_TRUE(std::filesystem::exists(folder / "sample.dat"));
  EXPECT_FALSE(std::filesystem::exists(folder / "sample.svg"));
}

TEST_F(GnuplotFigure, AFolderThatIsNotThereIsAnError) {
  EXPECT_THROW(draw_with_gnuplot({sample()}, folder / "missing"), IoError);
}

}  // namespace
}  // namespace gradgram::cli
