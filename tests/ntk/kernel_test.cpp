#include "ntk/kernel.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "ntk/contract.hpp"
#include "ntk/planned_kernel.hpp"
#include "ntk/precision.hpp"
#include "ntk/spectrum.hpp"
#include "tests/ntk/kernel_cases.hpp"

namespace gradgram::ntk {
namespace {

using kernel_cases::Case;

const std::vector<Reduce> kReductions = {Reduce::Full, Reduce::TraceMean, Reduce::TraceSum, Reduce::Output,
                                         Reduce::TrueClass};

/// What the reference says about one set of examples.
struct Oracle {
  std::vector<std::vector<reference::Gradient>> rows;  ///< [example][output], or [example][one] for TrueClass
  double largest_output = 0;                           ///< |f|, of TrueClass

  template <class T>
  Oracle(const Case& c, const Module<T>& module, TensorView<const T> x, Reduce reduce,
         std::span<const std::int32_t> labels) {
    const reference::Parameters parameters = kernel_cases::reference_parameters(c, module);
    for (std::size_t i = 0; i < x.shape()[0]; ++i) {
      const reference::Image image = kernel_cases::reference_image(c.input, x, i);
      if (reduce == Reduce::TrueClass) {
        for (const double f : reference::outputs(c.layers, parameters, image)) {
          largest_output = std::max(largest_output, std::abs(f));
        }
        rows.push_back({reference::true_class_gradient(c.layers, parameters, image,
                                                       static_cast<std::size_t>(labels[i]))});
      } else {
        rows.push_back(reference::jacobian(c.layers, parameters, image));
      }
    }
  }

  /// One number of a reduction without axes for outputs.
  static double entry(const Oracle& a, std::size_t i, const Oracle& b, std::size_t j, Reduce reduce,
                      std::size_t output, std::size_t parameter = reference::kNone) {
    if (reduce == Reduce::TrueClass) return reference::dot(a.rows[i][0], b.rows[j][0], parameter);
    if (reduce == Reduce::Output) return reference::dot(a.rows[i][output], b.rows[j][output], parameter);
    double sum = 0;
    for (std::size_t k = 0; k < a.rows[i].size(); ++k) {
      sum += reference::dot(a.rows[i][k], b.rows[j][k], parameter);
    }
    return reduce == Reduce::TraceMean ? sum / static_cast<double>(a.rows[i].size()) : sum;
  }
};

template <class T>
double tolerance() {
  return sizeof(T) == 8 ? 1e-12 : entry_error<T>();
}
/// An output that is off by d moves a probability, hence the true-class gradient, by a factor 1 + d
/// (docs/precision.md).
template <class T>
double tolerance(const Oracle& oracle) {
  return tolerance<T>() * (1 + oracle.largest_output);
}

/// Largest |K - reference| / sqrt(k_ii k_jj); NaN when an entry is NaN.
template <class T>
double worst(const Oracle& a, const Oracle& b, const KernelOptions& options, TensorView<const T> values,
             std::size_t parameter = reference::kNone) {
  double result = 0;
  const auto note = [&](double value, double expected, double scale) {
    const double error = std::abs(value - expected) / scale;
    if (!(error <= result)) result = error;
  };
  const double tiny = 1e-300;
  for (std::size_t i = 0; i < a.rows.size(); ++i) {
    for (std::size_t j = 0; j < b.rows.size(); ++j) {
      if (options.reduce == Reduce::Full) {
        for (std::size_t k = 0; k < a.rows[i].size(); ++k) {
          for (std::size_t l = 0; l < b.rows[j].size(); ++l) {
            const auto& g = a.rows[i][k];
            const auto& h = b.rows[j][l];
            note(values(i, j, k, l), reference::dot(g, h, parameter),
                 std::sqrt(reference::dot(g, g) * reference::dot(h, h)) + tiny);
          }
        }
      } else {
        const double scale = std::sqrt(Oracle::entry(a, i, a, i, options.reduce, options.output) *
                                       Oracle::entry(b, j, b, j, options.reduce, options.output));
        note(values(i, j), Oracle::entry(a, i, b, j, options.reduce, options.output, parameter),
             scale + tiny);
      }
    }
  }
  return result;
}

template <class T>
bool same_bits(TensorView<const T> a, TensorView<const T> b) {
  return a.shape() == b.shape() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

using Ways = std::vector<std::pair<std::string, Way>>;

/// `way` for every weight that can be contracted so.
template <class T>
Ways forced(const Module<T>& module, const Case& c, Way way) {
  const auto x = kernel_cases::inputs_of<T>(c.input, 1, 1);
  const Plan plan = plan_for<T>(module, x.view(), nullptr, {}, 1);
  std::vector<std::size_t> count(module.parameters().count(), 0);
  for (const PlannedUse& use : plan.uses) ++count[use.weight];
  Ways ways;
  for (const PlannedUse& use : plan.uses) {
    if (count[use.weight] > 1) continue;
    if (way == Way::Outer && (use.convolution || use.positions > 1)) continue;
    ways.emplace_back(module.parameters().name(use.weight), way);
  }
  return ways;
}

template <class T>
void against_reference(const Case& c, Way way) {
  const Workers workers(2);
  const auto module = kernel_cases::module_of<T>(c);
  const std::size_t outputs = module->outputs();
  for (const std::size_t n : {1, 2, 13}) {
    const std::size_t m = 5;
    const auto x = kernel_cases::inputs_of<T>(c.input, n, 1);
    const auto versus = kernel_cases::inputs_of<T>(c.input, m, 2);
    const auto labels = kernel_cases::labels_of(n, outputs, 3);
    const auto versus_labels = kernel_cases::labels_of(m, outputs, 4);
    for (const Reduce reduce : kReductions) {
      if (reduce == Reduce::TrueClass && outputs == 1) continue;
      SCOPED_TRACE(c.name + ", " + reduce_name(reduce, outputs - 1) + ", n = " + std::to_string(n));
      KernelOptions options;
      options.reduce = reduce;
      options.output = outputs - 1;
      options.labels = labels;
      options.versus_labels = versus_labels;
      options.memory = std::size_t{1} << 30;
      options.ways = forced(*module, c, way);
      const Oracle a(c, *module, x.view(), reduce, labels);
      const Oracle b(c, *module, versus.view(), reduce, versus_labels);
      const double bound = tolerance<T>(a);

      const auto square = kernel<T>(*module, x, options, workers);
      EXPECT_LE(worst<T>(a, a, options, square.values), bound);
      const auto rectangle = kernel<T>(*module, x, versus, options, workers);
      EXPECT_LE(worst<T>(a, b, options, rectangle.values), std::max(bound, tolerance<T>(b)));

      // Negative control: one entry off by far less than the eye sees.
      auto corrupt = square.values.clone();
      corrupt.span().back() *= static_cast<T>(1 + 20 * bound);
      EXPECT_FALSE(worst<T>(a, a, options, corrupt) <= bound);

      options.per_parameter = true;
      const auto parts = kernel<T>(*module, x, options, workers);
      ASSERT_EQ(parts.per_parameter.size(), module->parameters().count());
      Tensor<double> sum(parts.values.shape());
      for (std::size_t p = 0; p < parts.per_parameter.size(); ++p) {
        EXPECT_EQ(parts.parameter_names[p], module->parameters().name(p));
        EXPECT_LE(worst<T>(a, a, options, parts.per_parameter[p], p), bound) << parts.parameter_names[p];
        for (std::size_t e = 0; e < sum.size(); ++e) sum.span()[e] += parts.per_parameter[p].span()[e];
      }
      EXPECT_LE(worst<double>(a, a, options, sum), bound);
      EXPECT_LE(worst<T>(a, a, options, parts.values), bound);
    }
  }
}

constexpr Way kWays[] = {Way::Materialize, Way::Outer, Way::PositionGram};

TEST(Kernel, EveryWayMatchesThePlainReferenceInF64) {
  for (const Way way : kWays) {
    SCOPED_TRACE(static_cast<int>(way));
    for (const Case& c : kernel_cases::all()) against_reference<double>(c, way);
  }
}

TEST(Kernel, EveryWayMatchesThePlainReferenceInF32WithinTheStatedError) {
  for (const Way way : kWays) {
    SCOPED_TRACE(static_cast<int>(way));
    for (const Case& c : kernel_cases::all()) against_reference<float>(c, way);
  }
}

TEST(Kernel, RefusesAWayThatDoesNotFit) {
  const Case cnn = kernel_cases::all()[2];
  const auto module = kernel_cases::module_of<float>(cnn);
  const auto x = kernel_cases::inputs_of<float>(cnn.input, 3, 1);
  const Workers workers(1);
  KernelOptions options;
  options.ways = {{module->parameters().name(0), Way::Outer}};
  EXPECT_THROW(kernel<float>(*module, x, options, workers), ArgumentError);
  options.ways = {{module->parameters().name(1), Way::Materialize}};
  EXPECT_THROW(kernel<float>(*module, x, options, workers), ArgumentError);
  options.ways = {{"nobody", Way::Materialize}};
  EXPECT_THROW(kernel<float>(*module, x, options, workers), ArgumentError);
  const Case shared = kernel_cases::all()[5];
  const auto twice = kernel_cases::module_of<float>(shared);
  const auto y = kernel_cases::inputs_of<float>(shared.input, 3, 1);
  options.ways = {{"conv.weight", Way::PositionGram}};
  EXPECT_THROW(kernel<float>(*twice, y, options, workers), ArgumentError);
  options.ways = {{"conv.weight", Way::Materialize}};
  EXPECT_NO_THROW(kernel<float>(*twice, y, options, workers));
}

TEST(Kernel, LateConvolutionsAreContractedByPositions) {
  const Case c{
      "late", "conv(96,3) relu conv(96,3) gap dense(1)", {4, 4, 96}, models::Parameterization::Ntk, {}};
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 50, 1);
  const Plan plan = plan_for<float>(*module, x.view(), nullptr, {}, 1);
  EXPECT_TRUE(plan.has(Way::PositionGram));
  const Case early{"early", "conv(8,3) relu gap dense(1)", {16, 16, 3}, models::Parameterization::Ntk, {}};
  const auto other = kernel_cases::module_of<float>(early);
  const auto y = kernel_cases::inputs_of<float>(early.input, 50, 1);
  EXPECT_FALSE(plan_for<float>(*other, y.view(), nullptr, {}, 1).has(Way::PositionGram));

  KernelOptions options;
  const auto chosen = kernel<float>(*module, x, options, Workers(2));
  options.ways = forced(*module, c, Way::Materialize);
  const auto formed = kernel<float>(*module, x, options, Workers(2));
  for (std::size_t i = 0; i < 50; ++i) {
    for (std::size_t j = 0; j < 50; ++j) {
      const double scale = std::sqrt(static_cast<double>(formed.values(i, i)) * formed.values(j, j));
      EXPECT_LE(std::abs(chosen.values(i, j) - formed.values(i, j)), entry_error<float>() * scale);
    }
  }
}

/// Whatever rows of a panel a tile begins and ends with, of inputs and of seeds apart.
TEST(Kernel, ATileWritesNothingBeyondWhatItTakes) {
  constexpr std::size_t kExamples = 101, kSeeds = 10, kInputs = 100, kOutputs = 7;
  ModuleProfile profile;
  PlannedUse use;
  use.d_in = kInputs;
  use.d_out = kOutputs;
  profile.uses = {use};
  profile.parameter_names = {"w"};
  profile.parameter_sizes = {kInputs * kOutputs};
  profile.outputs = kSeeds;
  profile.element_bytes = sizeof(float);
  profile.tape_bytes = 1;
  PlanRequest request;
  request.rows = request.columns = kExamples;
  request.seeds = kSeeds;
  request.full = true;
  request.memory = std::size_t{1} << 32;
  request.ways = {{"w", Way::Outer}};
  Plan plan = plan_kernel(profile, request);
  for (const bool packed : {true, false}) {
    plan.packed = packed;
    plan.tile = 24;
    Factors<float> factors(plan, kExamples);
    std::vector<float> row(kSeeds * kOutputs + kInputs);
    const auto fill = [&](const FactorMatrix<float>& matrix, std::size_t rows, std::size_t width) {
      for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t k = 0; k < width; ++k) {
          row[k] = static_cast<float>((3 * i + 5 * k) % 7);
          if (!packed) matrix.row(0)[i * matrix.stride + k] = row[k];
        }
        if (packed) matrix.pack(row.data(), width, 1, 0, width, i, 1);
      }
    };
    fill(factors.outer(0).inputs, kExamples, kInputs);
    fill(factors.outer(0).cotangents, kExamples * kSeeds, kOutputs);
    factors.pad(kExamples);
    for (const TileRange range :
         {TileRange{24, 1, 24, 1, true}, TileRange{24, 1, 0, 24, false}, TileRange{47, 1, 0, 2, false},
          TileRange{72, 24, 24, 24, false}, TileRange{96, 5, 96, 5, true}, TileRange{0, 24, 0, 24, true}}) {
      SCOPED_TRACE(std::to_string(packed) + " " + std::to_string(range.row) + " " +
                   std::to_string(range.rows));
      const std::size_t room = std::size_t{1} << 23;
      Arena arena(room);
      const Arena::Mark start = arena.mark();
      auto* const bytes = static_cast<unsigned char*>(arena.allocate(room));
      std::fill_n(bytes, room, static_cast<unsigned char>(77));
      arena.rewind(start);
      std::vector<Arena::Use> uses;
      arena.trace(&uses);
      double corner = 0;
      contract_tile<float>(plan, factors, factors, range, arena,
                           [&](std::size_t, const Tile& tile) { corner = tile.at(1, 0); });
      arena.trace(nullptr);
      EXPECT_GT(corner, 0);
      std::size_t most = 0;
      for (const Arena::Use& in_use : uses) {
        most = std::max(most, in_use.bytes + in_use.pieces * kAlignment);
      }
      EXPECT_LE(most, plan.tile_bytes());
      ASSERT_LT(most, room);
      std::size_t written = room;
      while (written > 0 && bytes[written - 1] == 77) --written;
      EXPECT_LE(written, most);
      EXPECT_GT(written, most / 2);
    }
  }
}

TEST(Kernel, SharedWeightsAreNotTheSumOfTheirUses) {
  // What an engine gets that adds up the kernels of the uses: the reference with the second uses renamed.
  const Case c = kernel_cases::all()[5];
  ASSERT_EQ(c.name, "shared weights");
  const auto module = kernel_cases::module_of<double>(c);
  const auto x = kernel_cases::inputs_of<double>(c.input, 3, 1);
  KernelOptions options;
  options.reduce = Reduce::TraceSum;
  const auto k = kernel<double>(*module, x, options, Workers(1));
  Case wrong = c;
  auto parameters = kernel_cases::reference_parameters(c, *module);
  wrong.layers[2].weight = parameters.size();
  parameters.push_back(parameters[0]);
  const auto right_rows =
      reference::jacobian(c.layers, parameters, kernel_cases::reference_image(c.input, x.view(), 0));
  const auto wrong_rows =
      reference::jacobian(wrong.layers, parameters, kernel_cases::reference_image(c.input, x.view(), 0));
  double right = 0, off = 0;
  for (std::size_t o = 0; o < 3; ++o) {
    right += reference::dot(right_rows[o], right_rows[o]);
    off += reference::dot(wrong_rows[o], wrong_rows[o]);
  }
  EXPECT_NEAR(k.values(0, 0), right, 1e-11 * right);
  EXPECT_GT(std::abs(k.values(0, 0) - off), 1e-3 * right);
}

/// Every block size, thread count and budget gives the same bits.
template <class T>
void same_bits_however_blocked(const Case& c, Reduce reduce, std::size_t n, Way way = Way::Outer) {
  SCOPED_TRACE(c.name + ", " + reduce_name(reduce, 0) + ", n = " + std::to_string(n));
  const auto module = kernel_cases::module_of<T>(c);
  const auto x = kernel_cases::inputs_of<T>(c.input, n, 1);
  const auto versus = kernel_cases::inputs_of<T>(c.input, 17, 2);
  const auto labels = kernel_cases::labels_of(n, module->outputs(), 3);
  const auto versus_labels = kernel_cases::labels_of(17, module->outputs(), 4);
  KernelOptions options;
  options.reduce = reduce;
  options.labels = labels;
  options.versus_labels = versus_labels;
  options.memory = std::size_t{1} << 30;
  options.ways = forced(*module, c, way);
  const Workers one(1);
  const TensorView<const T> v = versus;
  const auto square = kernel<T>(*module, x, options, one);
  const auto rectangle = kernel<T>(*module, x, versus, options, one);
  EXPECT_EQ(square.block_examples, n);
  for (const std::size_t threads : {2, 7}) {
    const Workers workers(threads);
    EXPECT_TRUE(same_bits<T>(square.values, kernel<T>(*module, x, options, workers).values)) << threads;
    EXPECT_TRUE(same_bits<T>(rectangle.values, kernel<T>(*module, x, versus, options, workers).values))
        << threads;
  }
  struct Sizes {
    std::size_t resident, streamed, tape_block, tile;
  };
  for (const Sizes sizes :
       {Sizes{1, 1, 1, 1}, {7, 3, 5, 2}, {13, 61, 4, 31}, {61, 5, 61, 64}, {30, 30, 8, 16}}) {
    if (sizes.resident == 1 && n > 13) continue;  // thousands of recomputed gradients
    const auto set = [&](Plan plan) {
      plan.resident = sizes.resident;
      plan.streamed = sizes.streamed;
      plan.tape_block = sizes.tape_block;
      plan.tile = sizes.tile;
      return plan;
    };
    const Workers workers(2);
    const Plan plan = set(plan_for<T>(*module, x.view(), nullptr, options, 2));
    EXPECT_TRUE(same_bits<T>(square.values,
                             planned_kernel<T>(*module, x.view(), nullptr, options, plan, workers).values))
        << sizes.resident << " " << sizes.tile;
    const Plan wide = set(plan_for<T>(*module, x.view(), &v, options, 2));
    EXPECT_TRUE(same_bits<T>(rectangle.values,
                             planned_kernel<T>(*module, x.view(), &v, options, wide, workers).values))
        << sizes.resident << " " << sizes.tile;
  }
  // Symmetric bit for bit.
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (reduce == Reduce::Full) {
        for (std::size_t k = 0; k < module->outputs(); ++k) {
          for (std::size_t l = 0; l < module->outputs(); ++l) {
            ASSERT_EQ(square.values(i, j, k, l), square.values(j, i, l, k));
          }
        }
      } else {
        ASSERT_EQ(square.values(i, j), square.values(j, i));
      }
    }
  }
}

TEST(Kernel, SameBitsForAnyThreadsBlocksAndTiles) {
  for (const Case& c : kernel_cases::all()) {
    same_bits_however_blocked<float>(c, Reduce::TraceMean, 61);
    same_bits_however_blocked<double>(c, Reduce::TraceMean, 13);
  }
  for (const std::size_t which : {2, 6}) {
    const Case c = kernel_cases::all()[which];
    same_bits_however_blocked<float>(c, Reduce::TraceMean, 29, Way::PositionGram);
    same_bits_however_blocked<double>(c, Reduce::Full, 5, Way::PositionGram);
  }
  same_bits_however_blocked<float>(kernel_cases::all()[3], Reduce::TraceSum, 53, Way::PositionGram);
  // More rows than one group of packed ones.
  same_bits_however_blocked<float>(kernel_cases::all()[0], Reduce::TraceMean, 293);
  same_bits_however_blocked<float>(kernel_cases::all()[1], Reduce::Full, 61);
  const Case cnn = kernel_cases::all()[2];
  same_bits_however_blocked<float>(cnn, Reduce::Full, 13);
  same_bits_however_blocked<float>(cnn, Reduce::TrueClass, 13);
  same_bits_however_blocked<double>(cnn, Reduce::Output, 2);
  same_bits_however_blocked<double>(cnn, Reduce::TraceSum, 1);
}

TEST(Kernel, SameBitsInRoundsOverTheSeeds) {
  for (const std::size_t which : {2, 4, 5}) {
    const Case c = kernel_cases::all()[which];
    SCOPED_TRACE(c.name);
    const auto module = kernel_cases::module_of<float>(c);
    const auto x = kernel_cases::inputs_of<float>(c.input, 53, 1);
    const auto versus = kernel_cases::inputs_of<float>(c.input, 19, 2);
    const TensorView<const float> v = versus;
    KernelOptions options;
    options.reduce = Reduce::TraceSum;
    const Workers workers(2);
    for (const TensorView<const float>* second : {static_cast<const TensorView<const float>*>(nullptr), &v}) {
      Plan plan = plan_for<float>(*module, x.view(), second, options, 2);
      ASSERT_EQ(plan.rounds(), 1u);
      const auto whole = planned_kernel<float>(*module, x.view(), second, options, plan, workers);
      for (const std::size_t held : {1UL, module->outputs() - 1}) {
        for (const bool packed : {true, false}) {
          for (const bool keeps_passes : {true, false}) {
            plan.round_seeds = held;
            plan.packed = packed;
            plan.keeps_passes = keeps_passes;
            plan.tile = 16;
            plan.tape_block = 7;
            EXPECT_EQ(plan.rounds(), (module->outputs() + held - 1) / held);
            const auto k = planned_kernel<float>(*module, x.view(), second, options, plan, workers);
            EXPECT_TRUE(same_bits<float>(whole.values, k.values))
                << held << " " << packed << " " << keeps_passes;
          }
        }
      }
      plan.resident = 20;
      plan.streamed = 20;
      EXPECT_THROW(planned_kernel<float>(*module, x.view(), second, options, plan, workers), ArgumentError);
    }
  }
}

TEST(Kernel, APlanHoldsAPartOfTheSeedsBeforeItRepeatsPasses) {
  const Case c{"many outputs",
               "conv(32,3) relu conv(48,3) relu gap dense(10)",
               {12, 12, 8},
               models::Parameterization::Standard,
               {}};
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 96, 1);
  KernelOptions options;
  options.memory = std::size_t{1} << 31;
  options.ways = forced(*module, c, Way::Materialize);
  const Plan roomy = plan_for<float>(*module, x.view(), nullptr, options, 2);
  EXPECT_EQ(roomy.rounds(), 1u);
  options.memory = roomy.total_bytes() / 2;
  const Plan tight = plan_for<float>(*module, x.view(), nullptr, options, 2);
  EXPECT_EQ(tight.resident, 96u);
  EXPECT_GT(tight.rounds(), 1u);
  EXPECT_LE(tight.total_bytes(), options.memory);
  const Workers workers(2);
  EXPECT_TRUE(
      same_bits<float>(planned_kernel<float>(*module, x.view(), nullptr, options, roomy, workers).values,
                       planned_kernel<float>(*module, x.view(), nullptr, options, tight, workers).values));
}

TEST(Kernel, SameBitsWhenRowsSpanSeveralPanels) {
  // Sums over more than one panel on either side of the outer way.
  const Case inputs{"inputs", "dense(5) relu dense(2)", {9001}, models::Parameterization::Standard, {}};
  same_bits_however_blocked<float>(inputs, Reduce::TraceMean, 37);
  const Case both{"both", "dense(4500) relu dense(3)", {3}, models::Parameterization::Standard, {}};
  same_bits_however_blocked<float>(both, Reduce::TraceMean, 13);
  same_bits_however_blocked<float>(both, Reduce::Full, 5);
}

TEST(Kernel, PanelsKeepTheErrorOfLongSumsSmall) {
  const Case c{"wide", "dense(3) relu dense(1)", {50000}, models::Parameterization::Ntk, {}};
  const auto narrow = kernel_cases::module_of<float>(c);
  const auto wide = kernel_cases::module_of<double>(c);
  auto x = kernel_cases::inputs_of<float>(c.input, 5, 1);
  for (float& value : x.span()) value = std::abs(value);  // no cancellation: the worst case of a long f32 sum
  Tensor<double> x_wide(x.shape());
  std::copy(x.span().begin(), x.span().end(), x_wide.span().begin());
  KernelOptions options;
  const Workers workers(1);
  const auto k = kernel<float>(*narrow, x, options, workers);
  const auto exact = kernel<double>(*wide, x_wide, options, workers);
  for (std::size_t i = 0; i < 5; ++i) {
    for (std::size_t j = 0; j < 5; ++j) {
      const double scale = std::sqrt(exact.values(i, i) * exact.values(j, j));
      EXPECT_LE(std::abs(k.values(i, j) - exact.values(i, j)), entry_error<float>() * scale);
    }
  }
}

TEST(Kernel, TheErrorOfDeepNetworksStaysWithinTheirEntryError) {
  for (const char* activation : {"relu", "tanh"}) {
    for (const std::size_t depth : {20UL, 40UL}) {
      const Shape input{20};
      const models::Model model =
          models::parse("mlp:width=64,depth=" + std::to_string(depth) + ",activation=" + activation, input);
      const models::NetworkOptions network_options{.bias_variance = 0.1, .seed = 2};
      const models::Network<float> narrow(model, network_options);
      models::Network<double> wide(model, network_options);
      wide.parameters() = narrow.parameters().cast<double>();
      const std::size_t n = 60;
      const auto x = kernel_cases::inputs_of<float>(input, n, 7);
      Tensor<double> x_wide(x.shape());
      std::copy(x.span().begin(), x.span().end(), x_wide.span().begin());
      const Workers workers(2);
      const auto k = kernel<float>(narrow, x, {}, workers);
      const auto exact = kernel<double>(wide, x_wide, {}, workers);
      double worst = 0;
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) {
          const double scale = std::sqrt(exact.values(i, i) * exact.values(j, j));
          const double error = std::abs(k.values(i, j) - exact.values(i, j)) / scale;
          EXPECT_LE(error, entry_error<float>(narrow)) << activation << " " << depth;
          worst = std::max(worst, error);
        }
      }
      // Not so loose that it would hold whatever happens.
      EXPECT_GE(worst, entry_error<float>(narrow) / 200) << activation << " " << depth;
    }
  }
}

TEST(Kernel, ASubBlockIsTheSmallerRunAndPermutationsCommute) {
  for (const Case& c : kernel_cases::all()) {
    SCOPED_TRACE(c.name);
    const auto module = kernel_cases::module_of<float>(c);
    const std::size_t n = 23;
    const auto x = kernel_cases::inputs_of<float>(c.input, n, 1);
    const Workers workers(2);
    const KernelOptions options;
    const auto whole = kernel<float>(*module, x, options, workers).values;
    const auto part = kernel<float>(*module, x.view().slice(4, 15), options, workers).values;
    const auto block =
        kernel<float>(*module, x.view().slice(0, 9), x.view().slice(9, n), options, workers).values;
    for (std::size_t i = 0; i < 11; ++i) {
      for (std::size_t j = 0; j < 11; ++j) ASSERT_EQ(part(i, j), whole(i + 4, j + 4));
    }
    for (std::size_t i = 0; i < 9; ++i) {
      for (std::size_t j = 9; j < n; ++j) ASSERT_EQ(block(i, j - 9), whole(i, j));
    }
    Tensor<float> shuffled(x.shape());
    const auto place = [&](std::size_t i) { return i * 7 % n; };
    for (std::size_t i = 0; i < n; ++i) {
      const auto from = x.view().slice(i).span();
      std::copy(from.begin(), from.end(), shuffled.view().slice(place(i)).data());
    }
    const auto moved = kernel<float>(*module, shuffled, options, workers).values;
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) ASSERT_EQ(moved(place(i), place(j)), whole(i, j));
    }
  }
}

TEST(Kernel, IsPositiveSemidefinite) {
  for (const Case& c : kernel_cases::all()) {
    SCOPED_TRACE(c.name);
    const std::size_t n = 61;
    const auto module = kernel_cases::module_of<double>(c);
    const auto x = kernel_cases::inputs_of<double>(c.input, n, 1);
    const auto k = kernel<double>(*module, x, {}, Workers(2));
    const Spectrum s = spectrum(k.values, {.vectors = false});
    EXPECT_GE(s.values.back(), -static_cast<double>(n) * 2.3e-16 * s.values.front());
    auto indefinite = k.values.clone();
    indefinite(0, 0) = -indefinite(0, 0);
    EXPECT_FALSE(spectrum(indefinite, {.vectors = false}).values.back() >=
                 -static_cast<double>(n) * 2.3e-16 * s.values.front());
  }
}

TEST(Kernel, ReductionsAgreeWithEachOther) {
  const Case c = kernel_cases::all()[2];
  const auto module = kernel_cases::module_of<double>(c);
  const std::size_t n = 13;
  const auto x = kernel_cases::inputs_of<double>(c.input, n, 1);
  const Workers workers(2);
  const auto reduced = [&](Reduce reduce, std::size_t output) {
    KernelOptions options;
    options.reduce = reduce;
    options.output = output;
    return kernel<double>(*module, x, options, workers).values;
  };
  const auto full = reduced(Reduce::Full, 0);
  const auto sum = reduced(Reduce::TraceSum, 0);
  const auto mean = reduced(Reduce::TraceMean, 0);
  const Tensor<double> outputs[] = {reduced(Reduce::Output, 0), reduced(Reduce::Output, 1),
                                    reduced(Reduce::Output, 2)};
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      const double scale = 1e-13 * std::sqrt(sum(i, i) * sum(j, j));
      EXPECT_NEAR(sum(i, j), 3 * mean(i, j), scale);
      EXPECT_NEAR(sum(i, j), outputs[0](i, j) + outputs[1](i, j) + outputs[2](i, j), scale);
      EXPECT_NEAR(sum(i, j), full(i, j, 0, 0) + full(i, j, 1, 1) + full(i, j, 2, 2), scale);
    }
  }
}

TEST(Kernel, FitsTheBudgetOrSaysWhatWould) {
  for (const Case& c : kernel_cases::all()) {
    for (const Reduce reduce : {Reduce::TraceMean, Reduce::Full}) {
      SCOPED_TRACE(c.name + " " + reduce_name(reduce, 0));
      const auto module = kernel_cases::module_of<float>(c);
      const std::size_t n = 11;
      const auto x = kernel_cases::inputs_of<float>(c.input, n, 1);
      const auto versus = kernel_cases::inputs_of<float>(c.input, 7, 2);
      const Workers workers(2);
      KernelOptions options;
      options.reduce = reduce;
      const auto roomy = kernel<float>(*module, x, options, workers);
      const auto roomy_rectangle = kernel<float>(*module, x, versus, options, workers);
      EXPECT_EQ(roomy.block_examples, n);

      const auto least_of = [&](const auto& run) {
        options.memory = 1;
        try {
          run();
        } catch (const BudgetError& error) {
          const std::string text = error.what();
          const std::string before = "the least that would do is ";
          const std::size_t at = text.find(before);
          EXPECT_NE(at, std::string::npos) << text;
          return static_cast<std::size_t>(std::stoull(text.substr(at + before.size())));
        }
        ADD_FAILURE() << "one byte sufficed";
        return std::size_t{0};
      };
      options.ways = roomy.ways;  // the ways alone decide the bits
      const std::size_t least = least_of([&] { kernel<float>(*module, x, options, workers); });
      options.memory = least - 1;
      EXPECT_THROW(kernel<float>(*module, x, options, workers), BudgetError);
      std::size_t smallest_block = n;
      for (std::size_t memory = least; memory <= roomy.planned_bytes;
           memory += (roomy.planned_bytes - least) / 3 + 1) {
        options.memory = memory;
        const auto k = kernel<float>(*module, x, options, workers);
        EXPECT_LE(k.planned_bytes, memory);
        EXPECT_TRUE(same_bits<float>(roomy.values, k.values)) << memory;
        smallest_block = std::min(smallest_block, k.block_examples);
      }
      EXPECT_LT(smallest_block, n);
      options.memory = least_of([&] { kernel<float>(*module, x, versus, options, workers); });
      const auto tight = kernel<float>(*module, x, versus, options, workers);
      EXPECT_TRUE(same_bits<float>(roomy_rectangle.values, tight.values));
      EXPECT_LE(tight.planned_bytes, options.memory);
    }
  }
}

TEST(Kernel, RefusesWhatDoesNotFit) {
  const Case c = kernel_cases::all()[1];
  const auto module = kernel_cases::module_of<double>(c);
  const auto x = kernel_cases::inputs_of<double>(c.input, 4, 1);
  const auto other = kernel_cases::inputs_of<double>(Shape{6}, 4, 1);
  const Workers workers(2);
  KernelOptions options;
  EXPECT_THROW(kernel<double>(*module, other, options, workers), ShapeError);
  EXPECT_THROW(kernel<double>(*module, x, other, options, workers), ShapeError);
  EXPECT_THROW(diagonal<double>(*module, other, options, workers), ShapeError);
  options.reduce = Reduce::Output;
  options.output = 3;
  EXPECT_THROW(kernel<double>(*module, x, options, workers), ArgumentError);
  options.reduce = Reduce::TrueClass;
  EXPECT_THROW(kernel<double>(*module, x, options, workers), ShapeError);
  const std::vector<std::int32_t> bad = {0, 1, 3, 2};
  options.labels = bad;
  EXPECT_THROW(kernel<double>(*module, x, options, workers), ArgumentError);
  const std::vector<std::int32_t> good = {0, 1, 2, 2};
  options.labels = good;
  EXPECT_NO_THROW(kernel<double>(*module, x, options, workers));
  EXPECT_THROW(kernel<double>(*module, x, x, options, workers), ShapeError);
  const auto scalar = kernel_cases::module_of<double>(kernel_cases::all()[0]);
  const auto scalar_x = kernel_cases::inputs_of<double>(Shape{7}, 4, 1);
  EXPECT_THROW(kernel<double>(*scalar, scalar_x, options, workers), ArgumentError);
}

TEST(Kernel, EmptySetsGiveEmptyKernels) {
  const Case c = kernel_cases::all()[1];
  const auto module = kernel_cases::module_of<double>(c);
  const auto none = kernel_cases::inputs_of<double>(c.input, 0, 1);
  const auto some = kernel_cases::inputs_of<double>(c.input, 4, 1);
  const Workers workers(2);
  KernelOptions options;
  EXPECT_EQ(kernel<double>(*module, none, options, workers).values.shape(), (Shape{0, 0}));
  EXPECT_EQ(kernel<double>(*module, some, none, options, workers).values.shape(), (Shape{4, 0}));
  options.reduce = Reduce::Full;
  EXPECT_EQ(kernel<double>(*module, none, some, options, workers).values.shape(), (Shape{0, 4, 3, 3}));
  EXPECT_EQ(diagonal<double>(*module, none, options, workers).shape(), (Shape{0, 3, 3}));
}

TEST(Kernel, NamesThePairThatLeavesTheNumbersAndGoesOn) {
  for (const std::size_t which : {0, 2}) {
    const Case c = kernel_cases::all()[which];
    const auto module = kernel_cases::module_of<float>(c);
    auto x = kernel_cases::inputs_of<float>(c.input, 9, 1);
    const auto good = x.clone();
    x.view().slice(6).data()[0] = std::numeric_limits<float>::quiet_NaN();
    const Workers workers(2);
    const KernelOptions options;
    const auto before = kernel<float>(*module, good, options, workers);
    try {
      kernel<float>(*module, x, options, workers);
      ADD_FAILURE() << "no error";
    } catch (const NumericError& error) {
      EXPECT_NE(std::string(error.what()).find("6"), std::string::npos) << error.what();
    }
    EXPECT_TRUE(same_bits<float>(before.values, kernel<float>(*module, good, options, workers).values));
    EXPECT_THROW(diagonal<float>(*module, x, options, workers), NumericError);
  }
}

TEST(Kernel, ReportsProgressAndStops) {
  const Case c = kernel_cases::all()[2];
  const auto module = kernel_cases::module_of<float>(c);
  const auto x = kernel_cases::inputs_of<float>(c.input, 40, 1);
  const Workers workers(2);
  KernelOptions options;
  std::size_t last = 0, total = 0;
  bool rising = true;
  options.progress = [&](std::size_t done, std::size_t of) {
    rising = rising && done == last + 1 && (total == 0 || total == of);
    last = done;
    total = of;
  };
  const Plan easy = plan_for<float>(*module, x.view(), nullptr, options, 2);
  Plan plan = easy;
  plan.resident = 11;
  plan.streamed = 4;
  plan.tile = 3;
  planned_kernel<float>(*module, x.view(), nullptr, options, plan, workers);
  EXPECT_TRUE(rising);
  EXPECT_GT(total, 20u);
  EXPECT_EQ(last, total);

  std::stop_source source;
  options.stop = source.get_token();
  options.progress = [&](std::size_t done, std::size_t) {
    if (done == 5) source.request_stop();
  };
  EXPECT_THROW(planned_kernel<float>(*module, x.view(), nullptr, options, plan, workers), Cancelled);
  options.stop = {};
  options.progress = {};
  EXPECT_NO_THROW(kernel<float>(*module, x, options, workers));
}

/// A module whose graph depends on the block: not something a plan can hold.
class Fickle final : public Module<float> {
 public:
  Fickle() { weight_ = parameters_.add("w", Tensor<float>({2, 2})); }
  Var forward(Tape<float>& tape, Var x) const override {
    const bool first = tape.value(x).data()[0] > 0;
    x = ops::dense(tape, x, {parameters_, weight_});
    return first ? x : ops::dense(tape, x, {parameters_, weight_});
  }
  Shape input_shape() const override { return {2}; }
  std::size_t outputs() const override { return 2; }
  const ParameterSet<float>& parameters() const override { return parameters_; }
  ParameterSet<float>& parameters() override { return parameters_; }

 private:
  ParameterSet<float> parameters_;
  std::size_t weight_;
};

TEST(Kernel, RefusesAModuleThatChangesWithItsInput) {
  const Fickle module;
  const std::vector<float> values = {1, 1, -1, 1, 1, 1, -1, 1};
  const Tensor<float> x(Shape{4, 2}, values);
  const Workers workers(1);
  Plan plan = plan_for<float>(module, x.view(), nullptr, {}, 1);
  plan.tape_block = 1;
  EXPECT_THROW(planned_kernel<float>(module, x.view(), nullptr, {}, plan, workers), Error);
}

TEST(Kernel, NamesItsReductions) {
  EXPECT_EQ(reduce_name(Reduce::Full, 3), "full");
  EXPECT_EQ(reduce_name(Reduce::TraceMean, 3), "trace-mean");
  EXPECT_EQ(reduce_name(Reduce::TraceSum, 3), "trace-sum");
  EXPECT_EQ(reduce_name(Reduce::Output, 3), "output 3");
  EXPECT_EQ(reduce_name(Reduce::TrueClass, 3), "true-class");
}

}  // namespace
}  // namespace gradgram::ntk
