#include "tests/engine/op_check.hpp"

namespace gradgram {
namespace {

using testing::check_op;
using testing::distinct_tensor;
using testing::random_tensor;

auto max_op(ConvGeometry g) {
  return [=]<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) { return ops::max_pool(tape, x, g); };
}
auto average_op(ConvGeometry g) {
  return [=]<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) { return ops::average_pool(tape, x, g); };
}

std::vector<ConvGeometry> geometries() {
  std::vector<ConvGeometry> result;
  const Padding paddings[] = {
      {}, {.kind = Padding::Kind::Valid}, {.kind = Padding::Kind::Explicit, .amount = 1}};
  for (const std::size_t kernel : {1U, 2U, 3U}) {
    for (const std::size_t stride : {1U, 2U, 3U}) {
      for (const Padding& padding : paddings) {
        if (padding.kind == Padding::Kind::Explicit && kernel == 1) continue;
        result.push_back(conv_geometry(4, 5, 3, 3, kernel, kernel, stride, stride, padding));
      }
    }
  }
  result.push_back(conv_geometry(4, 6, 5, 5, 2, 3, 2, 3, {.kind = Padding::Kind::Valid}));  // an exact tiling
  return result;
}

TEST(MaxPool, DerivativesAndBlocks) {
  for (const ConvGeometry& g : geometries()) {
    SCOPED_TRACE(::testing::Message()
                 << "kernel " << g.kernel_h << " stride " << g.stride_h << " pad " << g.pad_top);
    // 1/360 apart: wider than the stencil's 6e-3 would be too wide, so scale the numbers up.
    Tensor<double> x = distinct_tensor<double>(Shape{2, g.in_h, g.in_w, g.c_in}, 3);
    for (double& value : x.span()) value *= 8;
    check_op(max_op(g), x, {});
  }
}

TEST(MaxPool, EqualsThePlainMaximum) {
  for (const ConvGeometry& g : geometries()) {
    const Tensor<double> x = random_tensor<double>(Shape{2, g.in_h, g.in_w, g.c_in}, 3);
    const Tensor<double> y = testing::forward<double>(max_op(g), x.view(), {});
    for (std::size_t i = 0; i < 2; ++i) {
      for (std::size_t r = 0; r < g.out_h; ++r) {
        for (std::size_t s = 0; s < g.out_w; ++s) {
          for (std::size_t c = 0; c < g.c_in; ++c) {
            double best = -INFINITY;
            for (std::size_t a = 0; a < g.kernel_h; ++a) {
              for (std::size_t b = 0; b < g.kernel_w; ++b) {
                const long row = long(r * g.stride_h + a) - long(g.pad_top);
                const long column = long(s * g.stride_w + b) - long(g.pad_left);
                if (row < 0 || column < 0 || row >= long(g.in_h) || column >= long(g.in_w)) continue;
                best = std::max(best, x(i, row, column, c));
              }
            }
            EXPECT_EQ(y(i, r, s, c), best);
          }
        }
      }
    }
  }
}

TEST(MaxPool, TiesGoToTheFirstAndPaddingNeverWins) {
  const ConvGeometry g =
      conv_geometry(2, 2, 1, 1, 2, 2, 1, 1, {.kind = Padding::Kind::Explicit, .amount = 1});
  const Tensor<double> x(Shape{1, 2, 2, 1}, std::vector<double>{-1, -1, -1, -1});
  const Tensor<double> seed(Shape{1, 3, 3, 1}, std::vector<double>(9, 1.0));
  const auto found = testing::gradients<double>(max_op(g), x.view(), {}, seed.view());
  for (const double value : found.values.span()) EXPECT_EQ(value, -1.0);
  // Nine windows: the top-left pixel is first in four, the others in 2, 2 and 1.
  EXPECT_EQ(found.x(0, 0, 0, 0), 4.0);
  EXPECT_EQ(found.x(0, 0, 1, 0), 2.0);
  EXPECT_EQ(found.x(0, 1, 0, 0), 2.0);
  EXPECT_EQ(found.x(0, 1, 1, 0), 1.0);
}

TEST(MaxPool, NanReachesTheOutput) {
  const ConvGeometry g = conv_geometry(2, 2, 1, 1, 2, 2, 2, 2, {.kind = Padding::Kind::Valid});
  for (std::size_t at = 0; at < 4; ++at) {
    Tensor<float> x(Shape{1, 2, 2, 1}, std::vector<float>{1, 2, 3, 4});
    x.data()[at] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(testing::forward<float>(max_op(g), x.view(), {}).data()[0])) << at;
  }
}

TEST(AveragePool, DerivativesAndBlocks) {
  for (const ConvGeometry& g : geometries()) {
    SCOPED_TRACE(::testing::Message()
                 << "kernel " << g.kernel_h << " stride " << g.stride_h << " pad " << g.pad_top);
    check_op(average_op(g), random_tensor<double>(Shape{2, g.in_h, g.in_w, g.c_in}, 3), {});
  }
  // A border wider than the window: some windows see zeros only.
  const ConvGeometry wide =
      conv_geometry(2, 3, 2, 2, 2, 2, 1, 1, {.kind = Padding::Kind::Explicit, .amount = 3});
  check_op(average_op(wide), random_tensor<double>(Shape{2, 2, 3, 2}, 3), {});
}

TEST(AveragePool, CountsThePadding) {
  const ConvGeometry g =
      conv_geometry(2, 2, 1, 1, 2, 2, 2, 2, {.kind = Padding::Kind::Explicit, .amount = 1});
  const Tensor<double> x(Shape{1, 2, 2, 1}, std::vector<double>{1, 2, 3, 4});
  const auto y = testing::forward<double>(average_op(g), x.view(), {});
  EXPECT_EQ(y.shape(), (Shape{1, 2, 2, 1}));
  EXPECT_EQ(y(0, 0, 0, 0), 0.25);
  EXPECT_EQ(y(0, 1, 1, 0), 1.0);
}

TEST(GlobalAveragePool, DerivativesBlocksAndValue) {
  const auto op = []<class T>(Tape<T>& tape, Var x, const ParameterSet<T>&) {
    return ops::global_average_pool(tape, x);
  };
  check_op(op, random_tensor<double>(Shape{3, 3, 5, 4}, 3), {});
  const Tensor<double> x(Shape{1, 2, 2, 2}, std::vector<double>{1, 10, 2, 20, 3, 30, 4, 40});
  const auto y = testing::forward<double>(op, x.view(), {});
  EXPECT_EQ(y.shape(), (Shape{1, 2}));
  EXPECT_EQ(y(0, 0), 2.5);
  EXPECT_EQ(y(0, 1), 25.0);
}

TEST(Pool, RefusesWhatDoesNotMatch) {
  const ConvGeometry g = conv_geometry(4, 4, 2, 2, 2, 2, 2, 2, {});
  const auto apply = [](const auto& op, Shape shape) {
    const Tensor<double> x(shape);
    testing::forward<double>(op, x.view(), {});
  };
  EXPECT_THROW(apply(max_op(g), {1, 4, 4, 3}), ShapeError);
  EXPECT_THROW(apply(max_op(g), {1, 5, 4, 2}), ShapeError);
  EXPECT_THROW(apply(max_op(g), {1, 32}), ShapeError);
  EXPECT_THROW(apply(average_op(g), {1, 4, 5, 2}), ShapeError);
  EXPECT_THROW(apply(average_op(conv_geometry(4, 4, 2, 3, 2, 2, 2, 2, {})), {1, 4, 4, 2}), ShapeError);
  const Padding two{.kind = Padding::Kind::Explicit, .amount = 2};
  EXPECT_THROW(apply(max_op(conv_geometry(4, 4, 2, 2, 2, 2, 2, 2, two)), {1, 4, 4, 2}), ShapeError);
  const Tensor<double> flat(Shape{1, 4});
  Arena arena;
  Tape<double> tape(arena);
  EXPECT_THROW(ops::global_average_pool(tape, tape.input(flat.view())), ShapeError);
}

}  // namespace
}  // namespace gradgram
