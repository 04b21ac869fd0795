#include "engine/ops/conv2d.hpp"
#include "tests/engine/op_check.hpp"
#include "tests/reference/convolution.hpp"

namespace gradgram {
namespace {

using testing::check_op;
using testing::random_tensor;

reference::Convolution plain(const ConvGeometry& g) {
  return {g.in_h,     g.in_w,     g.c_in,    g.c_out,    g.kernel_h, g.kernel_w,
          g.stride_h, g.stride_w, g.pad_top, g.pad_left, g.out_h,    g.out_w};
}

ParameterSet<double> conv_parameters(const ConvGeometry& g) {
  ParameterSet<double> parameters;
  parameters.add("weight", random_tensor<double>(Shape{g.kernel_h, g.kernel_w, g.c_in, g.c_out}, 1));
  parameters.add("bias", random_tensor<double>(Shape{g.c_out}, 2));
  return parameters;
}

auto conv_op(ConvGeometry geometry, bool bias, double weight_scale, double bias_scale) {
  return [=]<class T>(Tape<T>& tape, Var x, const ParameterSet<T>& parameters) {
    return ops::conv2d(tape, x, geometry,
                       ops::Affine<T>{.parameters = parameters,
                                      .weight = 0,
                                      .bias = bias ? 1 : kNoParameter,
                                      .weight_scale = static_cast<T>(weight_scale),
                                      .bias_scale = static_cast<T>(bias_scale)});
  };
}

TEST(Conv2d, DerivativesAndBlocks) {
  const Padding same{};
  const Padding valid{.kind = Padding::Kind::Valid};
  const Padding two{.kind = Padding::Kind::Explicit, .amount = 2};
  const ConvGeometry cases[] = {
      conv_geometry(5, 4, 2, 3, 3, 3, 1, 1, same),  conv_geometry(5, 6, 3, 2, 3, 2, 2, 1, valid),
      conv_geometry(6, 5, 1, 2, 2, 2, 3, 3, valid), conv_geometry(4, 4, 2, 1, 1, 1, 1, 1, same),
      conv_geometry(5, 5, 1, 2, 1, 1, 2, 2, same),  conv_geometry(3, 4, 2, 2, 3, 3, 2, 3, two),
      conv_geometry(3, 3, 1, 1, 5, 5, 1, 1, two),
  };
  for (const ConvGeometry& g : cases) {
    const auto x = random_tensor<double>(Shape{3, g.in_h, g.in_w, g.c_in}, 3);
    check_op(conv_op(g, true, 0.6, 1.3), x, conv_parameters(g));
  }
  const ConvGeometry& g = cases[0];
  const auto x = random_tensor<double>(Shape{2, g.in_h, g.in_w, g.c_in}, 3);
  check_op(conv_op(g, false, 1, 1), x, conv_parameters(g));
  check_op(conv_op(g, true, 1, 1), x, conv_parameters(g));
}

/// |found - expected| <= depth * eps * sum of magnitudes, bounded by inputs below 1: depth products each
/// below 1.
template <class T>
double excess(const std::vector<double>& expected, TensorView<const T> found, std::size_t depth) {
  if (expected.size() != found.size()) return INFINITY;
  const double tolerance =
      2 * double(std::numeric_limits<T>::epsilon()) * double(depth) * std::sqrt(double(depth) + 1);
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    worst = testing::worse(worst, std::abs(double(found.data()[i]) - expected[i]) / tolerance);
  }
  return worst;
}

template <class T>
std::vector<double> widened(TensorView<const T> values) {
  return {values.data(), values.data() + values.size()};
}

template <class T>
void compare_with_reference(const ConvGeometry& g) {
  const ParameterSet<T> parameters = conv_parameters(g).cast<T>();
  const auto x = random_tensor<T>(Shape{2, g.in_h, g.in_w, g.c_in}, 3);
  const auto seed = random_tensor<T>(Shape{2, g.out_h, g.out_w, g.c_out}, 4);
  const testing::Record<T> record = conv_op(g, false, 1, 1);
  const auto found = testing::gradients<T>(record, x.view(), parameters, seed.view());
  const auto rows = testing::jacobian_rows<T>(record, x.view(), parameters, seed.view());
  const auto weights = widened<T>(parameters.value(0));
  const reference::Convolution oracle = plain(g);
  for (std::size_t i = 0; i < 2; ++i) {
    const auto image = widened<T>(x.view().slice(i));
    const auto cotangent = widened<T>(seed.view().slice(i));
    EXPECT_LE(
        excess<T>(oracle.forward(image.data(), weights.data()), found.values.view().slice(i), g.patch()), 1);
    EXPECT_LE(excess<T>(oracle.input_cotangent(cotangent.data(), weights.data()), found.x.view().slice(i),
                        g.kernel_h * g.kernel_w * g.c_out),
              1);
    const auto gradient = oracle.weight_gradient(image.data(), cotangent.data());
    const TensorView<const T> row(rows.data() + i * parameters.size(), Shape{g.weights()});
    EXPECT_LE(excess<T>(gradient, row, g.out_pixels()), 1);
  }
}

TEST(Conv2d, EqualsTheReferenceOverAGrid) {
  const Padding paddings[] = {{},
                              {.kind = Padding::Kind::Valid},
                              {.kind = Padding::Kind::Explicit, .amount = 1},
                              {.kind = Padding::Kind::Explicit, .amount = 3}};
  const std::size_t channels[][2] = {{1, 1}, {3, 16}, {5, 17}, {16, 3}, {17, 5}, {1, 64}, {64, 1}};
  std::size_t cases = 0;
  for (const auto& [h, w] : {std::pair<std::size_t, std::size_t>{5, 7}, {8, 6}}) {
    for (const auto& [c_in, c_out] : channels) {
      for (const std::size_t kernel : {1U, 2U, 3U, 5U}) {
        for (const std::size_t stride : {1U, 2U, 3U}) {
          for (const Padding& padding : paddings) {
            const ConvGeometry g = conv_geometry(h, w, c_in, c_out, kernel, kernel > 1 ? kernel - 1 : 1,
                                                 stride, stride, padding);
            SCOPED_TRACE(::testing::Message() << h << "x" << w << " " << c_in << "->" << c_out << " kernel "
                                              << kernel << " stride " << stride << " pad " << padding.amount);
            compare_with_reference<double>(g);
            compare_with_reference<float>(g);
            ++cases;
          }
        }
      }
    }
  }
  EXPECT_EQ(cases, 2U * 7U * 4U * 3U * 4U);
  compare_with_reference<float>(conv_geometry(11, 13, 64, 64, 3, 3, 1, 1, {}));
  compare_with_reference<float>(conv_geometry(16, 16, 48, 80, 3, 3, 2, 2, {}));
  // Too large for one product over both images.
  compare_with_reference<double>(conv_geometry(29, 31, 40, 43, 3, 3, 1, 1, {}));
}

/// Geometries that go through Winograd's transforms, and their neighbours that do not.
TEST(Conv2d, TransformedWindowsEqualTheReference) {
  const auto padding = [](std::size_t amount) {
    return Padding{.kind = Padding::Kind::Explicit, .amount = amount};
  };
  for (const ConvGeometry& g :
       {conv_geometry(8, 8, 16, 16, 3, 3, 1, 1, {}), conv_geometry(9, 8, 16, 80, 3, 3, 1, 1, {}),
        conv_geometry(10, 11, 96, 32, 3, 3, 1, 1, padding(0)),
        conv_geometry(7, 8, 32, 16, 3, 3, 1, 1, padding(2)),
        conv_geometry(7, 8, 16, 16, 3, 3, 1, 1, padding(3)), conv_geometry(17, 5, 48, 64, 3, 3, 1, 1, {}),
        conv_geometry(9, 7, 16, 16, 3, 3, 1, 1, {}), conv_geometry(16, 16, 64, 64, 3, 3, 1, 1, {})}) {
    SCOPED_TRACE(::testing::Message()
                 << g.in_h << "x" << g.in_w << " " << g.c_in << "->" << g.c_out << " pad " << g.pad_top);
    compare_with_reference<float>(g);
    compare_with_reference<double>(g);
  }
  // Tiles of three images share a block of them.
  const ConvGeometry g = conv_geometry(9, 8, 8, 16, 3, 3, 1, 1, {});
  const auto x = random_tensor<double>(Shape{3, g.in_h, g.in_w, g.c_in}, 3);
  check_op(conv_op(g, true, 0.6, 1.3), x, conv_parameters(g));
}

/// Cotangents with zeros take another way to the gradient, by how many there are: the reference must hold on
/// both sides of the choice, and a full and an emptied cotangent must agree where they are the same.
template <class T>
void compare_sparse(const ConvGeometry& g) {
  const auto image = random_tensor<T>(Shape{g.in_h, g.in_w, g.c_in}, 1);
  const auto full = random_tensor<T>(Shape{g.out_h, g.out_w, g.c_out}, 2);
  Arena scratch;
  const ops::ConvWeightGradient<T> form(g, T(0.5), T(2), scratch);
  for (const std::size_t one_of : {1, 2, 4, 11, 1000000}) {
    Tensor<T> cotangent = full.clone();
    std::size_t at = 0;
    for (T& value : cotangent.span()) {
      if (at++ * 7919 % 1000003 % one_of != 0) value = 0;
    }
    std::vector<double> halved = widened<T>(std::as_const(cotangent).view());
    for (double& value : halved) value /= 2;
    std::vector<double> expected = plain(g).weight_gradient(widened<T>(image.view()).data(), halved.data());
    Tensor<T> weight(Shape{g.weights()});
    Tensor<T> bias(Shape{g.c_out});
    form(image.data(), cotangent.data(), false, weight.data(), bias.data());
    EXPECT_LE(excess<T>(expected, std::as_const(weight).view(), g.out_pixels()), 1) << "one of " << one_of;
    form(image.data(), cotangent.data(), true, weight.data(), nullptr);
    for (double& value : expected) value *= 2;
    EXPECT_LE(excess<T>(expected, std::as_const(weight).view(), 2 * g.out_pixels()), 1)
        << "one of " << one_of;
    for (std::size_t c = 0; c < g.c_out; ++c) {
      double sum = 0;
      for (std::size_t p = 0; p < g.out_pixels(); ++p) sum += 2 * double(cotangent.data()[p * g.c_out + c]);
      EXPECT_NEAR(bias(c), sum, 64 * double(std::numeric_limits<T>::epsilon()) * double(g.out_pixels()));
    }
  }
}

TEST(Conv2d, ZerosInTheCotangentChangeTheWayNotTheGradient) {
  for (const ConvGeometry& g :
       {conv_geometry(16, 16, 32, 17, 3, 3, 1, 1, {}), conv_geometry(13, 17, 35, 40, 5, 5, 1, 1, {}),
        conv_geometry(17, 19, 64, 23, 3, 3, 2, 2, {}), conv_geometry(12, 12, 31, 16, 2, 2, 1, 1, {}),
        conv_geometry(16, 16, 32, 16, 1, 1, 1, 1, {})}) {
    compare_sparse<float>(g);
    compare_sparse<double>(g);
  }
}

/// The parts of a gradient cover it, each element once, and have the bits of the whole.
template <class T>
void compare_parts(const ConvGeometry& g) {
  const auto image = random_tensor<T>(Shape{g.in_h, g.in_w, g.c_in}, 1);
  const auto cotangent = random_tensor<T>(Shape{g.out_h, g.out_w, g.c_out}, 2);
  Arena scratch;
  const ops::ConvWeightGradient<T> form(g, T(0.5), T(2), scratch);
  ASSERT_TRUE(form.in_parts(cotangent.data()));
  Tensor<T> whole(Shape{g.weights()});
  form(image.data(), cotangent.data(), false, whole.data(), nullptr);
  const T unset = std::numeric_limits<T>::quiet_NaN();
  std::vector<T> framed(form.framed_size(), unset), formed(form.part_size(), unset);
  std::vector<int> seen(g.weights(), 0);
  std::size_t wrong = 0;
  form.frame(image.data(), framed.data());
  for (std::size_t p = 0; p < form.parts(); ++p) {
    form.form_part(p, framed.data(), cotangent.data(), formed.data());
    const auto part = form.part(p);
    for (std::size_t o = 0; o < part.outer; ++o) {
      for (std::size_t i = 0; i < part.inner; ++i) {
        for (std::size_t at = 0; at < part.length; ++at) {
          const std::size_t to = part.first + o * part.outer_step + i * part.inner_step + at;
          ASSERT_LT(to, seen.size());
          ++seen[to];
          if (!(formed.at(o * part.formed_step + i * part.length + at) == whole(to))) ++wrong;
        }
      }
    }
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), static_cast<std::ptrdiff_t>(seen.size()));
}

TEST(Conv2d, PartsOfAGradientHaveTheBitsOfTheWhole) {
  for (const ConvGeometry& g :
       {conv_geometry(8, 8, 208, 144, 3, 3, 1, 1, {}), conv_geometry(7, 9, 16, 80, 3, 3, 1, 1, {}),
        conv_geometry(18, 17, 32, 32, 3, 3, 1, 1, {}), conv_geometry(9, 8, 64, 70, 3, 3, 2, 2, {}),
        conv_geometry(6, 5, 35, 131, 2, 3, 1, 1, {}), conv_geometry(8, 8, 32, 7, 1, 1, 2, 2, {}),
        conv_geometry(5, 5, 3, 5, 3, 3, 1, 1, {})}) {
    SCOPED_TRACE(::testing::Message() << g.in_h << "x" << g.in_w << " " << g.c_in << "->" << g.c_out);
    compare_parts<float>(g);
    compare_parts<double>(g);
  }
}

TEST(Conv2d, AHugeStrideCostsNothing) {
  const std::size_t huge = 2'147'483'647;
  for (const Padding& padding : {Padding{}, Padding{.kind = Padding::Kind::Explicit, .amount = 1}}) {
    compare_with_reference<double>(conv_geometry(5, 7, 3, 5, 3, 2, huge, huge, padding));
    compare_with_reference<float>(conv_geometry(5, 7, 3, 5, 2, 3, 1, huge, padding));
  }
}

TEST(Conv2d, TheComparisonNoticesOneWrongNumber) {
  const std::vector<double> expected{1, 2, 3};
  Tensor<float> found(Shape{3}, std::vector<float>{1, 2, 3});
  EXPECT_LE(excess<float>(expected, found.view(), 9), 1);
  found(1) = 2.0001F;
  EXPECT_GT(excess<float>(expected, found.view(), 9), 1);
  found(1) = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(excess<float>(expected, found.view(), 9) <= 1);
}

TEST(Conv2d, AccumulatesAndScalesSingleImages) {
  const ConvGeometry g = conv_geometry(5, 4, 3, 5, 3, 3, 1, 1, {});
  const auto image = random_tensor<double>(Shape{5, 4, 3}, 1);
  const auto cotangent = random_tensor<double>(Shape{5, 4, 5}, 2);
  const auto expected = plain(g).weight_gradient(image.data(), cotangent.data());
  Arena scratch;
  Tensor<double> weight(Shape{g.weights()});
  Tensor<double> bias(Shape{g.c_out});
  for (const bool accumulate : {false, true}) {
    ops::conv_weight_gradient(g, image.data(), cotangent.data(), 0.5, 3.0, accumulate, weight.data(),
                              bias.data(), scratch);
  }
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(weight(i), expected[i], 1e-13);
  for (std::size_t c = 0; c < g.c_out; ++c) {
    double sum = 0;
    for (std::size_t p = 0; p < g.out_pixels(); ++p) sum += cotangent.data()[p * g.c_out + c];
    EXPECT_NEAR(bias(c), 6 * sum, 1e-12);
  }
  const Tensor<double> before = weight.clone();
  ops::conv_weight_gradient<double>(g, image.data(), cotangent.data(), 0.5, 3.0, true, nullptr, bias.data(),
                                    scratch);
  ops::conv_weight_gradient<double>(g, image.data(), cotangent.data(), 0.5, 3.0, false, weight.data(),
                                    nullptr, scratch);
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(2 * weight(i), before(i), 1e-13);
}

/// conv2d_relu, in one op or in two or three.
auto tail_op(ConvGeometry g, const ConvGeometry* pool, bool together, bool relu = true) {
  return [=]<class T>(Tape<T>& tape, Var x, const ParameterSet<T>& parameters) {
    const ops::Affine<T> affine{
        .parameters = parameters, .weight = 0, .bias = 1, .weight_scale = T(0.75), .bias_scale = T(0.5)};
    if (together) return ops::conv2d_relu(tape, x, g, affine, pool);
    Var y = ops::conv2d(tape, x, g, affine);
    if (relu) y = ops::activation(tape, y, simd::Activation::Relu);
    return pool == nullptr ? y : ops::max_pool(tape, y, *pool);
  };
}

template <class T>
Tensor<T> tangent_of(const testing::Record<T>& record, const Tensor<T>& x, const ParameterSet<T>& parameters,
                     bool of_x, bool of_parameters) {
  const auto dx = random_tensor<T>(x.shape(), 31);
  ParameterSet<T> dp = testing::random_like(parameters, 32);
  Arena arena;
  Tape<T> tape(arena);
  const Var in = tape.input(x.view(), true);
  const Var y = record(tape, in, parameters);
  const auto found = of_x ? tape.tangents(y, of_parameters ? &dp : nullptr, in, dx.view())
                          : tape.tangents(y, of_parameters ? &dp : nullptr);
  Tensor<T> result(found.shape());
  std::copy(found.span().begin(), found.span().end(), result.data());
  return result;
}

/// Whether values, cotangents, per-example gradients and tangents of the two have the same bits.
template <class T>
bool same_op(const testing::Record<T>& a, const testing::Record<T>& b, const Tensor<T>& x,
             const ParameterSet<T>& parameters) {
  const auto values = testing::forward(a, x.view(), parameters);
  if (values.shape() != testing::forward(b, x.view(), parameters).shape()) return false;
  const auto seed = random_tensor<T>(values.shape(), 27);
  const auto left = testing::gradients(a, x.view(), parameters, seed.view());
  const auto right = testing::gradients(b, x.view(), parameters, seed.view());
  bool same = testing::same_bits<T>(left.values.view(), right.values.view()) &&
              testing::same_bits<T>(left.x.view(), right.x.view());
  const auto rows = testing::jacobian_rows(a, x.view(), parameters, seed.view());
  same = same && testing::same_bits<T>(rows.view(),
                                       testing::jacobian_rows(b, x.view(), parameters, seed.view()).view());
  for (const auto& [of_x, of_parameters] :
       {std::pair{true, true}, {true, false}, {false, true}, {false, false}}) {
    const auto first = tangent_of(a, x, parameters, of_x, of_parameters);
    const auto second = tangent_of(b, x, parameters, of_x, of_parameters);
    for (std::size_t i = 0; i < first.size(); ++i) same = same && first.data()[i] == second.data()[i];
  }
  return same;
}

TEST(Conv2dRelu, HasTheBitsOfTheOpsOneAfterTheOther) {
  const Padding valid{.kind = Padding::Kind::Valid};
  const Padding one{.kind = Padding::Kind::Explicit, .amount = 1};
  for (const ConvGeometry& g :
       {conv_geometry(9, 8, 3, 5, 3, 3, 1, 1, {}), conv_geometry(9, 7, 2, 17, 3, 2, 2, 1, valid)}) {
    const ConvGeometry pools[] = {conv_geometry(g.out_h, g.out_w, g.c_out, g.c_out, 2, 2, 2, 2, {}),
                                  conv_geometry(g.out_h, g.out_w, g.c_out, g.c_out, 2, 2, 2, 2, valid),
                                  conv_geometry(g.out_h, g.out_w, g.c_out, g.c_out, 3, 3, 2, 1, one),
                                  conv_geometry(g.out_h, g.out_w, g.c_out, g.c_out, 2, 1, 3, 3, valid)};
    const ParameterSet<double> parameters = conv_parameters(g);
    const ParameterSet<float> parameters32 = parameters.cast<float>();
    const auto x = random_tensor<double>(Shape{3, g.in_h, g.in_w, g.c_in}, 3);
    const auto x32 = random_tensor<float>(Shape{3, g.in_h, g.in_w, g.c_in}, 3);
    for (const ConvGeometry* pool :
         {static_cast<const ConvGeometry*>(nullptr), pools, pools + 1, pools + 2, pools + 3}) {
      EXPECT_TRUE(same_op<double>(tail_op(g, pool, true), tail_op(g, pool, false), x, parameters));
      EXPECT_TRUE(same_op<float>(tail_op(g, pool, true), tail_op(g, pool, false), x32, parameters32));
      // Negative control: without the rectifier it is another function.
      EXPECT_FALSE(same_op<double>(tail_op(g, pool, true), tail_op(g, pool, false, false), x, parameters));
      testing::check_blocks<double>(tail_op(g, pool, true), x, parameters);
      testing::check_blocks<float>(tail_op(g, pool, true), x32, parameters32);
    }
  }
  // Too large for one product over all images.
  const ConvGeometry g = conv_geometry(31, 30, 3, 64, 3, 3, 1, 1, {});
  const ConvGeometry pool = conv_geometry(31, 30, 64, 64, 2, 2, 2, 2, {});
  const auto x = random_tensor<float>(Shape{5, g.in_h, g.in_w, g.c_in}, 3);
  EXPECT_TRUE(
      same_op<float>(tail_op(g, &pool, true), tail_op(g, &pool, false), x, conv_parameters(g).cast<float>()));
}

TEST(Conv2dRelu, NanReachesTheOutputAndWrongPoolsAreRefused) {
  const ConvGeometry g = conv_geometry(4, 4, 2, 3, 3, 3, 1, 1, {});
  const ConvGeometry pool = conv_geometry(4, 4, 3, 3, 2, 2, 2, 2, {});
  const ConvGeometry other = conv_geometry(4, 4, 2, 2, 2, 2, 2, 2, {});
  const ParameterSet<float> parameters = conv_parameters(g).cast<float>();
  auto x = random_tensor<float>(Shape{1, 4, 4, 2}, 3);
  x.data()[0] = std::numeric_limits<float>::quiet_NaN();
  for (const ConvGeometry* tail : {static_cast<const ConvGeometry*>(nullptr), &pool}) {
    const auto y = testing::forward<float>(tail_op(g, tail, true), x.view(), parameters);
    EXPECT_TRUE(std::isnan(y.data()[0]));
    EXPECT_FALSE(std::isnan(y.data()[y.size() - 1]));
    const Tensor<float> seed(y.shape(), std::vector<float>(y.size(), 1));
    const auto found = testing::gradients<float>(tail_op(g, tail, true), x.view(), parameters, seed.view());
    EXPECT_TRUE(std::isnan(found.parameters.value(1).data()[0])) << "the bias of a NaN";
  }
  EXPECT_THROW(testing::forward<float>(tail_op(g, &other, true), x.view(), parameters), ShapeError);
}

TEST(Conv2d, RefusesWhatDoesNotMatch) {
  const ConvGeometry g = conv_geometry(5, 4, 3, 2, 3, 3, 1, 1, {});
  const ParameterSet<double> parameters = conv_parameters(g);
  const auto apply = [&](Shape shape, std::size_t weight, std::size_t bias) {
    const Tensor<double> x(shape);
    Arena arena;
    Tape<double> tape(arena);
    ops::conv2d(tape, tape.input(x.view()), g,
                ops::Affine<double>{.parameters = parameters, .weight = weight, .bias = bias});
  };
  EXPECT_NO_THROW(apply({1, 5, 4, 3}, 0, 1));
  EXPECT_THROW(apply({1, 5, 4}, 0, 1), ShapeError);
  EXPECT_THROW(apply({1, 4, 4, 3}, 0, 1), ShapeError);
  EXPECT_THROW(apply({1, 5, 5, 3}, 0, 1), ShapeError);
  EXPECT_THROW(apply({1, 5, 4, 2}, 0, 1), ShapeError);
  EXPECT_THROW(apply({1, 5, 4, 3}, 1, kNoParameter), ShapeError);
  EXPECT_THROW(apply({1, 5, 4, 3}, 0, 0), ShapeError);
}

}  // namespace
}  // namespace gradgram
