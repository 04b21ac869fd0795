#include "cli/text.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "cli/png.hpp"
#include "engine/error.hpp"

namespace gradgram::cli {
namespace {

TEST(Text, NumbersForPeople) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(1000), "1,000");
  EXPECT_EQ(grouped(1234567), "1,234,567");
  EXPECT_EQ(significant(0), "0");
  EXPECT_EQ(significant(1.23456), "1.23");
  EXPECT_EQ(significant(0.0123456), "0.0123");
  EXPECT_EQ(significant(12345.6), "12,300");
  EXPECT_EQ(significant(-1234.5, 5), "-1,234.5");
  EXPECT_EQ(significant(3.14e-7, 2), "3.1e-07");
  EXPECT_EQ(significant(std::numeric_limits<double>::quiet_NaN()), "nan");
  EXPECT_EQ(correlation(0.714), "+0.71");
  EXPECT_EQ(correlation(-0.001), "+0.00");
  EXPECT_EQ(correlation(-0.2, true), "\u22120.20");
  EXPECT_EQ(percent(0.123), "12 %");
  EXPECT_EQ(percent(0.0123), "1.2 %");
  EXPECT_EQ(seconds_text(0.0421), "42 ms");
  EXPECT_EQ(seconds_text(3.21), "3.2 s");
  EXPECT_EQ(seconds_text(200), "3 min 20 s");
  EXPECT_EQ(seconds_text(3900), "1 h 05 min");
  EXPECT_EQ(bytes_text(812), "812 B");
  EXPECT_EQ(bytes_text(16'000'000), "16 MB");
  EXPECT_EQ(budget_text(std::size_t{4} << 30), "4 GiB");
}

TEST(Text, ReadsAmountsOfMemory) {
  EXPECT_EQ(parse_bytes("4GiB"), std::size_t{4} << 30);
  EXPECT_EQ(parse_bytes("512MB"), 512'000'000U);
  EXPECT_EQ(parse_bytes("1.5 GB"), 1'500'000'000U);
  EXPECT_EQ(parse_bytes("4096"), 4096U);
  for (const char* bad : {"", "GiB", "-1", "4 gigabytes", "1e400GB", "nan", "0", "4GiB!", "1e30TiB", "1 ",
                          " 1", "1  GB", "1\tGB", "1GB ", "1 GB ", "1 .5GB", "1. 5GB", "1 000", "1G B"}) {
    EXPECT_THROW(parse_bytes(bad), ArgumentError) << bad;
  }
}

TEST(Text, ReadsListsAndShapes) {
  EXPECT_EQ(parse_numbers("0,5,12", "--classes"), (std::vector<std::size_t>{0, 5, 12}));
  for (const char* bad : {"", "1,", ",1", "1,,2", "a", "-1", "1.5"}) {
    EXPECT_THROW(parse_numbers(bad, "--classes"), ArgumentError) << bad;
  }
  EXPECT_EQ(parse_input_shape("784"), Shape{784});
  EXPECT_EQ(parse_input_shape("3x32x40"), (Shape{32, 40, 3}));
  for (const char* bad : {"", "0", "3x32", "3x32x", "3x0x32", "3x3x3x3", "x", "3 x 32 x 32"}) {
    EXPECT_THROW(parse_input_shape(bad), ArgumentError) << bad;
  }
}

TEST(Text, TablesAlignAlsoWithTypography) {
  EXPECT_EQ(table({{"a", "1"}, {"±x", "20"}}, {false, true}), "  a    1\n  ±x  20\n");
}

TEST(Text, SetsAsciiNotation) {
  EXPECT_EQ(typeset("k_ii / ||x||^2 at init"), "k(x,x) / ‖x‖² at init");
  EXPECT_EQ(typeset("a difference of -9.1 +- 3.0, 3-layer `score`"),
            "a difference of \u22129.1 ± 3.0, 3-layer score");
}

TEST(Text, QuotesForHtmlAndShell) {
  EXPECT_EQ(escape_html("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
  EXPECT_EQ(shell_quote("k.npy"), "k.npy");
  EXPECT_EQ(shell_quote("conv(32,3) relu"), "'conv(32,3) relu'");
  EXPECT_EQ(shell_quote("it's"), "'it'\\''s'");
  EXPECT_EQ(shell_quote(""), "''");
}

TEST(Png, WritesAnImageAndItsText) {
  const std::vector<std::uint8_t> pixels = {0, 128, 255, 7, 9, 11};
  const std::vector<std::uint8_t> png = encode_png(pixels, 3, 2, 1);
  ASSERT_GT(png.size(), 24U);
  EXPECT_EQ(png[1], 'P');
  EXPECT_EQ(png[19], 3);  // width and height stand big-endian in the header
  EXPECT_EQ(png[23], 2);
  EXPECT_THROW(encode_png(pixels, 3, 3, 1), ShapeError);
  EXPECT_THROW(encode_png(pixels, 3, 1, 2), ShapeError);
  const std::string text = "Man";
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(text.data());
  EXPECT_EQ(base64({bytes, 3}), "TWFu");
  EXPECT_EQ(base64({bytes, 2}), "TWE=");
  EXPECT_EQ(base64({bytes, 1}), "TQ==");
  EXPECT_EQ(base64({bytes, std::size_t{0}}), "");
}

}  // namespace
}  // namespace gradgram::cli
