#include "engine/tensor.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "engine/arena.hpp"

namespace gradgram {
namespace {

TEST(Shape, CountsElementsAndComparesExtents) {
  EXPECT_EQ((Shape{2, 3, 4}).size(), 24U);
  EXPECT_EQ(Shape{}.size(), 1U);
  EXPECT_EQ((Shape{2, 0, 4}).size(), 0U);
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_FALSE((Shape{2, 3}) == (Shape{3, 2}));
  EXPECT_EQ((Shape{2, 3}).with_outer(5), (Shape{5, 2, 3}));
  EXPECT_EQ((Shape{5, 2, 3}).inner(), (Shape{2, 3}));
  EXPECT_EQ((Shape{5, 2}).to_string(), "[5, 2]");
}

TEST(Shape, RefusesOverflowAndTooHighRank) {
  const std::size_t large = std::numeric_limits<std::size_t>::max() / 2;
  EXPECT_THROW((Shape{large, 3}), ShapeError);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1}), ShapeError);
  EXPECT_THROW((Shape{1, 2})[2], ShapeError);
  EXPECT_THROW(Tensor<double>(Shape{large}), ShapeError);
}

TEST(Tensor, IsZeroedAlignedAndIndexed) {
  Tensor<float> tensor(Shape{3, 5});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.data()) % kAlignment, 0U);
  for (const float value : tensor.span()) EXPECT_EQ(value, 0.0F);
  tensor(2, 4) = 7;
  EXPECT_EQ(tensor.data()[14], 7.0F);
  EXPECT_THROW(tensor(3, 0), ShapeError);
  EXPECT_THROW(tensor(0), ShapeError);
}

TEST(Tensor, SlicesAndReshapesShareTheNumbers) {
  Tensor<double> tensor(Shape{4, 2, 3});
  const auto slice = tensor.view().slice(1, 3);
  EXPECT_EQ(slice.shape(), (Shape{2, 2, 3}));
  slice(0, 1, 2) = 5;
  EXPECT_EQ(tensor(1, 1, 2), 5.0);
  EXPECT_EQ(tensor.view().slice(1).shape(), (Shape{2, 3}));
  EXPECT_EQ(tensor.view().reshaped(Shape{24}).data(), tensor.data());
  EXPECT_THROW(tensor.view().slice(3, 5), ShapeError);
  EXPECT_THROW(tensor.view().reshaped(Shape{23}), ShapeError);
}

TEST(Tensor, CloneIsIndependent) {
  Tensor<double> a(Shape{2}, std::vector<double>{1, 2});
  Tensor<double> b = a.clone();
  b(0) = 9;
  EXPECT_EQ(a(0), 1.0);
  EXPECT_THROW(Tensor<double>(Shape{3}, std::vector<double>{1, 2}), ShapeError);
}

TEST(Arena, ReusesMemoryAfterRewindAndGrowsOnDemand) {
  Arena arena(256);
  const auto mark = arena.mark();
  void* first = arena.allocate(100);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % kAlignment, 0U);
  void* second = arena.allocate(1000);
  EXPECT_NE(first, second);
  const std::size_t capacity = arena.capacity();
  arena.rewind(mark);
  EXPECT_EQ(arena.allocate(100), first);
  EXPECT_EQ(arena.allocate(1000), second);
  EXPECT_EQ(arena.capacity(), capacity);
}

TEST(Arena, ScopesNest) {
  Arena arena(1024);
  void* outer = arena.allocate(64);
  void* inner = nullptr;
  {
    const ArenaScope scope(arena);
    inner = arena.allocate(64);
  }
  EXPECT_EQ(arena.allocate(64), inner);
  EXPECT_NE(outer, inner);
}

}  // namespace
}  // namespace gradgram
