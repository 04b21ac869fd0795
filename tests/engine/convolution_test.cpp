#include "engine/convolution.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "engine/error.hpp"

namespace gradgram {
namespace {

ConvGeometry line(std::size_t in, std::size_t kernel, std::size_t stride, Padding padding) {
  return conv_geometry(in, 1, 1, 1, kernel, 1, stride, 1, padding);
}

TEST(ConvGeometry, SameFollowsCeilAndPutsTheSurplusLast) {
  // Rows of jax.lax.padtype_to_pads((in,), (kernel,), (stride,), "SAME").
  struct Row {
    std::size_t in, kernel, stride, out, before, after;
  };
  const Row rows[] = {{32, 3, 1, 32, 1, 1}, {32, 3, 2, 16, 0, 1}, {31, 3, 2, 16, 1, 1}, {7, 2, 1, 7, 0, 1},
                      {7, 5, 3, 3, 2, 2},   {8, 5, 3, 3, 1, 2},   {5, 1, 2, 3, 0, 0},   {1, 3, 1, 1, 1, 1},
                      {4, 2, 4, 1, 0, 0},   {3, 7, 1, 3, 3, 3}};
  for (const Row& row : rows) {
    const ConvGeometry g = line(row.in, row.kernel, row.stride, {});
    EXPECT_EQ(g.out_h, row.out) << row.in << " " << row.kernel << " " << row.stride;
    EXPECT_EQ(g.pad_top, row.before) << row.in << " " << row.kernel << " " << row.stride;
    EXPECT_EQ(g.pad_bottom, row.after) << row.in << " " << row.kernel << " " << row.stride;
    EXPECT_EQ(g.out_w, 1U);
  }
}

TEST(ConvGeometry, ValidAndExplicit) {
  EXPECT_EQ(line(32, 3, 1, {.kind = Padding::Kind::Valid}).out_h, 30U);
  EXPECT_EQ(line(32, 3, 2, {.kind = Padding::Kind::Valid}).out_h, 15U);
  EXPECT_EQ(line(3, 3, 5, {.kind = Padding::Kind::Valid}).out_h, 1U);
  const ConvGeometry g = line(7, 3, 2, {.kind = Padding::Kind::Explicit, .amount = 2});
  EXPECT_EQ(g.out_h, 5U);
  EXPECT_EQ(g.pad_top, 2U);
  EXPECT_EQ(g.pad_bottom, 2U);
  EXPECT_EQ(g.pad_left, 2U);
}

TEST(ConvGeometry, Sizes) {
  const ConvGeometry g = conv_geometry(5, 6, 3, 7, 2, 3, 1, 1, {.kind = Padding::Kind::Valid});
  EXPECT_EQ(g.in_pixels(), 30U);
  EXPECT_EQ(g.out_pixels(), 16U);
  EXPECT_EQ(g.patch(), 18U);
  EXPECT_EQ(g.weights(), 126U);
}

TEST(ConvGeometry, RefusesWhatDoesNotFit) {
  EXPECT_THROW(line(2, 3, 1, {.kind = Padding::Kind::Valid}), ShapeError);
  EXPECT_THROW(line(0, 3, 1, {}), ShapeError);
  EXPECT_THROW(line(3, 0, 1, {}), ShapeError);
  EXPECT_THROW(line(3, 3, 0, {}), ShapeError);
  EXPECT_THROW(conv_geometry(3, 3, 0, 1, 1, 1, 1, 1, {}), ShapeError);
  EXPECT_THROW(conv_geometry(3, 3, 1, 0, 1, 1, 1, 1, {}), ShapeError);
  const std::size_t huge = std::numeric_limits<std::size_t>::max();
  EXPECT_THROW(line(3, 3, 1, {.kind = Padding::Kind::Explicit, .amount = huge}), ShapeError);
  EXPECT_THROW(line(3, huge, 1, {.kind = Padding::Kind::Explicit, .amount = 1}), ShapeError);
  // Few output pixels of a plane that no memory holds, and a size that would wrap around.
  const std::size_t most = 2'147'483'647;
  EXPECT_THROW(
      conv_geometry(4, 4, 1, 1, 3, 3, most, most, {.kind = Padding::Kind::Explicit, .amount = most - 1}),
      ShapeError);
  EXPECT_THROW(conv_geometry(most, most, 1, 5, 1, 1, most, most, {}), ShapeError);
  EXPECT_THROW(conv_geometry(4, 4, 5, 1, most, most, 1, 1, {}), ShapeError);
  try {
    line(2, 3, 1, {.kind = Padding::Kind::Valid});
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(), "convolution: kernel height (3) must not exceed the padded input height (2)");
  }
}

}  // namespace
}  // namespace gradgram
