#include "ntk/cost.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include "engine/error.hpp"
#include "engine/sinks.hpp"
#include "models/network.hpp"
#include "ntk/kernel.hpp"
#include "ntk/passes.hpp"
#include "ntk/planned_kernel.hpp"
#include "ntk/precision.hpp"
#include "tests/models/random_model.hpp"
#include "tests/ntk/kernel_cases.hpp"

namespace gradgram::ntk {
namespace {

/// Counts the examples that pass through a network.
class Counted final : public Module<float> {
 public:
  explicit Counted(const char* text, Shape input)
      : network_(models::parse(text, input, {.outputs = 1}), {.seed = 3}) {}
  Var forward(Tape<float>& tape, Var x) const override {
    passed += tape.examples(x);
    return network_.forward(tape, x);
  }
  Shape input_shape() const override { return network_.input_shape(); }
  std::size_t outputs() const override { return network_.outputs(); }
  const ParameterSet<float>& parameters() const override { return network_.parameters(); }
  ParameterSet<float>& parameters() override { return network_.parameters(); }
  mutable std::atomic<std::size_t> passed{0};

 private:
  models::Network<float> network_;
};

/// Counts tiles and entries.
class CountingStore final : public TileStore {
 public:
  void put(const PlacedTile& tile, std::size_t) override {
    if (tile.parameter != kAllParameters) return;
    ++tiles;
    tile.each_entry<float>([&](std::size_t, std::size_t, std::size_t, std::size_t, float) { ++entries; });
  }
  std::atomic<std::size_t> tiles{0}, entries{0};
};

constexpr const char* kText = "conv(5,3) relu maxpool(2) conv(7,3) relu gap dense(1)";

TEST(Cost, CountsWhatARunDoes) {
  const Counted module(kText, {8, 8, 3});
  const auto x = kernel_cases::inputs_of<float>({8, 8, 3}, 37, 1);
  const auto versus = kernel_cases::inputs_of<float>({8, 8, 3}, 23, 2);
  const Workers workers(1);
  const KernelOptions options;
  for (const bool symmetric : {true, false}) {
    const TensorView<const float> other = versus.view();
    const TensorView<const float>* const second = symmetric ? nullptr : &other;
    Plan plan = plan_for<float>(module, x.view(), second, options, 1);
    struct Blocks {
      std::size_t resident, streamed, tile, tape;
    };
    for (const Blocks& blocks :
         {Blocks{37, symmetric ? 0U : 23U, 37, 8}, Blocks{37, symmetric ? 0U : 23U, 5, 4},
          Blocks{11, 4, 3, 2}, Blocks{1, 1, 1, 1}, Blocks{20, 7, 7, 3}}) {
      plan.resident = blocks.resident;
      plan.streamed = blocks.streamed;
      plan.tile = blocks.tile;
      plan.tape_block = blocks.tape;
      const PlanCost cost = plan_cost(plan);
      CountingStore store;
      module.passed = 0;
      planned_tiles<float>(module, x.view(), second, options, plan, workers, store);
      EXPECT_EQ(cost.tiles, store.tiles) << blocks.resident << " " << blocks.tile;
      const double examples = symmetric ? 37 : 37 + 23;
      EXPECT_NEAR(cost.passed * examples, static_cast<double>(module.passed), 1e-6);
      // Useful FLOP of the first convolution: every entry of the lower triangle, or of the rectangle.
      const auto pairs = static_cast<double>(store.entries);
      const UseCost& first = cost.uses.back();
      if (first.chosen.way == Way::Materialize) {
        EXPECT_NEAR(first.chosen.flop, pairs * 2 * (27 * 5 + 5), 1e-6 * first.chosen.flop);
      }
      double passes = cost.touching;
      double contraction = 0;
      for (const UseCost& use : cost.uses) {
        passes += use.forward + use.reverse + use.chosen.forming;
        contraction += use.chosen.contraction;
      }
      EXPECT_NEAR(cost.passes, passes, 1e-9 * passes);
      EXPECT_GE(cost.contraction, contraction);
      EXPECT_GE(cost.wall, cost.passes + cost.contraction);
    }
  }
}

/// A network for which forming gradients is a little quicker, and holds far more.
struct Greedy {
  Greedy()
      : network(models::parse("conv(64,3) relu conv(64,3) gap dense(1)", {4, 4, 64}, {.outputs = 1}),
                {.seed = 1}) {
    // Position Grams cost 1.2 times as much.
    const Plan plan = plan_for<float>(network, x.view(), nullptr, {}, 1);
    const PlanCost cost = plan_cost(plan);
    for (const UseCost& use : cost.uses) {
      if (!plan.uses[static_cast<std::size_t>(&use - cost.uses.data())].convolution) continue;
      for (const WayCost* way : {&use.chosen, use.others.data()}) {
        (way->way == Way::Materialize ? formed : positions) += way->contraction;
      }
    }
    const double factor = 1.2 * formed / positions;
    rates.f32.position /= factor;
    rates.f32.taps /= factor;
    options.rates = &rates;
  }
  models::Network<float> network;
  Tensor<float> x = kernel_cases::inputs_of<float>({4, 4, 64}, 300, 1);
  KernelRates rates;
  KernelOptions options;
  double formed = 0, positions = 0;
};

TEST(Cost, WaysWhoseFactorsRepeatPassesLose) {
  Greedy greedy;
  const Workers workers(1);
  const auto roomy = kernel<float>(greedy.network, greedy.x, greedy.options, workers);
  ASSERT_EQ(roomy.block_examples, 300U);
  const auto way_of = [&](const auto& ways, std::size_t layer) { return ways[layer].second; };
  EXPECT_EQ(way_of(roomy.ways, 1), Way::Materialize);
  // A small part of the factors fits.
  greedy.options.memory = std::size_t{24} << 20;
  const Plan tight = plan_for<float>(greedy.network, greedy.x.view(), nullptr, greedy.options, 1);
  EXPECT_EQ(way_of(tight.ways(), 1), Way::PositionGram);
  EXPECT_LE(tight.total_bytes(), greedy.options.memory);
  // What it was exchanged for is expected to be slower.
  KernelOptions kept = greedy.options;
  kept.ways = roomy.ways;
  const Plan forced = plan_for<float>(greedy.network, greedy.x.view(), nullptr, kept, 1);
  EXPECT_EQ(forced.ways(), roomy.ways);
  EXPECT_LT(plan_cost(tight).wall, plan_cost(forced).wall);
  // The same ways have the same bits, other ways the same numbers.
  const auto same = kernel<float>(greedy.network, greedy.x, kept, workers);
  const auto other = kernel<float>(greedy.network, greedy.x, greedy.options, workers);
  for (std::size_t i = 0; i < 300; ++i) {
    for (std::size_t j = 0; j < 300; ++j) {
      ASSERT_EQ(same.values(i, j), roomy.values(i, j));
      const double scale = std::sqrt(static_cast<double>(roomy.values(i, i)) * roomy.values(j, j));
      ASSERT_LE(std::abs(other.values(i, j) - roomy.values(i, j)), 2 * entry_error<float>() * scale);
    }
  }
}

TEST(Cost, FewTilesAreAsLargeAsKeepsWorkersBusy) {
  const models::Network<float> network(models::parse(kText, {8, 8, 3}), {.seed = 1});
  const auto x = kernel_cases::inputs_of<float>({8, 8, 3}, 256, 1);
  const auto versus = kernel_cases::inputs_of<float>({8, 8, 3}, 200, 2);
  const KernelOptions options;
  const auto tile = [&](std::size_t workers, bool file, const KernelOptions& with) {
    return plan_for<float>(network, x.view(), nullptr, with, workers, file).tile;
  };
  // Of 256 examples 144 and 112 against themselves are as much as one against the other.
  EXPECT_EQ(tile(2, false, options), 144U);
  EXPECT_LT(tile(16, false, options), 144U);
  EXPECT_EQ(tile(2, true, options), tile(16, true, options));
  // The bits are those of any number of workers.
  const auto two = kernel<float>(network, x.view(), options, Workers(2));
  const auto seven = kernel<float>(network, x.view(), options, Workers(7));
  const auto across = kernel<float>(network, x.view(), versus.view(), options, Workers(2));
  const auto across7 = kernel<float>(network, x.view(), versus.view(), options, Workers(7));
  for (std::size_t i = 0; i < 256 * 256; ++i) ASSERT_EQ(two.values.data()[i], seven.values.data()[i]) << i;
  for (std::size_t i = 0; i < 256 * 200; ++i)
    ASSERT_EQ(across.values.data()[i], across7.values.data()[i]) << i;
  // Larger tiles keep within the budget.
  KernelOptions tight;
  for (const std::size_t memory : {std::size_t{1} << 30, std::size_t{24} << 20, std::size_t{21} << 20}) {
    tight.memory = memory;
    EXPECT_LE(plan_for<float>(network, x.view(), nullptr, tight, 2).total_bytes(), memory);
  }
}

/// Several layers must change their ways together before one pass is enough.
TEST(Cost, ASmallerBudgetIsNoCliff) {
  const models::Network<float> network(models::parse("resnet18-plain", {32, 32, 3}, {.outputs = 10}), {});
  const Tensor<float> x(Shape{64, 32, 32, 3});
  KernelOptions options;
  options.reduce = Reduce::TraceMean;
  // Into a file: without rounds.
  const auto plan = [&](std::size_t memory) {
    options.memory = memory;
    return plan_for<float>(network, x.view(), nullptr, options, 1, true);
  };
  const Plan ample = plan(std::size_t{16} << 30);
  ASSERT_EQ(ample.resident, 64U);
  const Plan tight = plan(std::size_t{3300} << 20);
  ASSERT_LE(tight.total_bytes(), std::size_t{3300} << 20);
  EXPECT_EQ(tight.resident, 64U);
  EXPECT_LT(plan_cost(tight).wall, 1.5 * plan_cost(ample).wall);
}

TEST(Cost, RatesDecideWays) {
  Greedy greedy;
  const auto first = [&] {
    return plan_for<float>(greedy.network, greedy.x.view(), nullptr, greedy.options, 1).ways()[1].second;
  };
  EXPECT_EQ(first(), Way::Materialize);
  greedy.rates.f32.position *= 2;
  greedy.rates.f32.taps *= 2;
  EXPECT_EQ(first(), Way::PositionGram);
}

TEST(Cost, TheLeastBudgetIsThatOfTheSmallestWays) {
  Greedy greedy;
  // Single examples in every block: few are enough.
  const TensorView<const float> x = greedy.x.view().slice(0, 12);
  greedy.options.memory = 1;
  std::size_t least = 0;
  try {
    plan_for<float>(greedy.network, x, nullptr, greedy.options, 1);
  } catch (const BudgetError& error) {
    const std::string text = error.what();
    const std::string before = "the least that would do is ";
    least = std::stoull(text.substr(text.find(before) + before.size()));
  }
  ASSERT_GT(least, 0U);
  greedy.options.memory = least - 1;
  EXPECT_THROW(plan_for<float>(greedy.network, x, nullptr, greedy.options, 1), BudgetError);
  greedy.options.memory = least;
  const auto k = kernel<float>(greedy.network, x, greedy.options, Workers(1));
  EXPECT_EQ(k.planned_bytes, least);
  EXPECT_GT(k.values(11, 11), 0);
}

/// Ways are chosen without it: a kernel has the same bits in memory and in a file.
TEST(Cost, AFileTakesTimeOfItsOwn) {
  const Counted module(kText, {8, 8, 3});
  const auto x = kernel_cases::inputs_of<float>({8, 8, 3}, 37, 1);
  Plan plan = plan_for<float>(module, x.view(), nullptr, {}, 2);
  const PlanCost memory = plan_cost(plan);
  EXPECT_EQ(memory.storing, 0);
  EXPECT_EQ(memory.finished, memory.wall);
  plan.request.result_in_file = true;
  const PlanCost file = plan_cost(plan);
  EXPECT_DOUBLE_EQ(file.storing, 37 * 37 * 4 / KernelRates().store);
  EXPECT_EQ(file.wall, memory.wall);
  EXPECT_DOUBLE_EQ(file.finished, file.wall + file.storing / (2 * KernelRates().together));
  plan.request.packed_file = true;
  EXPECT_DOUBLE_EQ(plan_cost(plan).storing, file.storing / 2);
}

/// Everything that new memory, fetching, packing and ragged tiles cost beside the work that is wanted.
TEST(Cost, KnowsWhatGoesBesideTheProducts) {
  const Counted module(kText, {8, 8, 3});
  const auto cost_of = [&](std::size_t n, auto change) {
    const auto x = kernel_cases::inputs_of<float>({8, 8, 3}, n, 1);
    KernelRates rates;
    change(rates);
    KernelOptions options;
    options.rates = &rates;
    const Plan plan = plan_for<float>(module, x.view(), nullptr, options, 1);
    EXPECT_TRUE(plan.packed);
    return std::pair(plan, plan_cost(plan));
  };
  const auto [plan, before] = cost_of(64, [](KernelRates&) {});
  const double touched = static_cast<double>(plan.factor_bytes(64) + plan.arena_bytes());
  EXPECT_DOUBLE_EQ(before.touching, touched / KernelRates().touch);
  const auto [same, touching] = cost_of(64, [](KernelRates& rates) { rates.touch /= 2; });
  EXPECT_NEAR(touching.passes - before.passes, before.touching, 1e-9 * before.passes);
  EXPECT_EQ(touching.contraction, before.contraction);
  // Rows are laid out once for each example.
  const double rows = 64.0 * static_cast<double>(plan.packed_row_bytes + plan.packed_input_bytes);
  const auto [laid, laying] = cost_of(64, [](KernelRates& rates) { rates.f32.lay /= 2; });
  EXPECT_NEAR(laying.passes - before.passes, rows / KernelRates().f32.lay,
              0.2 * (laying.passes - before.passes));
  const auto [moved, fetching] = cost_of(64, [](KernelRates& rates) { rates.f32.fetch /= 2; });
  EXPECT_GT(fetching.contraction, before.contraction);
  EXPECT_EQ(fetching.passes, before.passes);
  // A tile of 9 examples computes groups of 48 columns, and of few pairs.
  const auto per_pair = [&](std::size_t n) {
    return cost_of(n, [](KernelRates& rates) { rates.f32.fetch = 1e30; }).second.contraction * 2 /
           static_cast<double>(n * (n + 1));
  };
  EXPECT_GT(per_pair(9), 1.5 * per_pair(576));
}

TEST(Cost, ATapeCountsOnceWhatDoesNotGrowWithItsExamples) {
  // The gradient of the second layer, 2.4 MB, belongs to no tape; its weights, laid out, and the offsets of
  // their products belong to it once.
  const Counted module("conv(256,3) relu conv(256,3) relu gap dense(1)", {4, 4, 3});
  const auto x = kernel_cases::inputs_of<float>({4, 4, 3}, 1, 1);
  const ModuleProfile p = profile<float>(module, x);
  EXPECT_GT(p.tape_fixed_bytes, 256U * 9 * 4);
  EXPECT_LT(p.tape_of(16), 16 * p.tape_of(1) / 2);
  // Values and cotangents of an example.
  EXPECT_GT(p.tape_bytes, 2U * 2 * 16 * 256 * 4);
  EXPECT_LT(p.tape_bytes, 16U * 2 * 16 * 256 * 4);
  // What the passes of five examples really take.
  Arena arena(p.tape_of(5));
  const auto five = kernel_cases::inputs_of<float>({4, 4, 3}, 5, 1);
  {
    ParameterSet<float> gradient = module.parameters().zeros();
    SummedGradientSink<float> sink(gradient);
    Tape<float> tape(arena);
    const Var output = module.forward(tape, tape.input(five.view()));
    const auto seed = kernel_cases::inputs_of<float>({1}, 5, 2);
    tape.reverse(output, seed.view(), sink);
  }
  EXPECT_EQ(arena.capacity(), p.tape_of(5));
}

/// The arena of the passes of a block is never too small; that of a kept forward pass leaves no room, either.
void tapes_take_what_is_counted(const std::string& text, const Shape& input) {
  const models::Network<float> network(models::parse(text, input), {.seed = 1});
  const auto x = kernel_cases::inputs_of<float>(input, 70, 1);
  const ModuleProfile p = profile<float>(network, x.view().slice(0, 1));
  Plan plan;
  plan.forward_bytes = p.forward_bytes;
  plan.forward_fixed_bytes = p.forward_fixed_bytes;
  for (const std::size_t block : {1, 2, 3, 16, 31, 70}) {
    plan.tape_block = block;
    const TensorView<const float> examples = x.view().slice(0, block);
    Arena arena(p.tape_of(block));
    {
      const KeptPass<float> kept(network, examples, plan.kept_pass_bytes(), arena);
      const Arena::Use use = kept.arena.in_use();
      EXPECT_LE(kept.arena.capacity(), std::max(plan.kept_pass_bytes(), kAlignment))
          << block << " of " << text;
      EXPECT_LE(plan.kept_pass_bytes(), use.bytes + use.pieces * kAlignment) << block << " of " << text;
      EXPECT_LE(kept.tape.list_bytes(), p.forward_list_bytes);
    }
    KernelOptions options;
    options.reduce = Reduce::Output;
    ParameterSet<float> gradient = network.parameters().zeros();
    SummedGradientSink<float> sink(gradient);
    run_passes<float>(network, examples, options, {}, arena,
                      [&](std::size_t, const auto& reverse) { reverse(sink); });
    EXPECT_LE(arena.capacity(), std::max(p.tape_of(block), kAlignment)) << block << " of " << text;
  }
}

TEST(Cost, TapesTakeWhatIsCounted) {
  // Maxima of 32 bytes, which take a cache line for one example as for two.
  for (const std::size_t side : {4, 6, 9, 28}) {
    tapes_take_what_is_counted("conv(8,3) relu maxpool(4) flatten dense(10)", {side, side, 1});
    tapes_take_what_is_counted("conv(16,3) relu conv(32,3) relu maxpool(2) flatten dense(3)",
                               {side, side, 3});
  }
  tapes_take_what_is_counted("dense(1000) relu dense(7)", {5});
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    models::testing::RandomModelMaker maker(seed, {.channels = seed % 2 == 0 ? 40U : 6U});
    for (int i = 0; i < 15; ++i) {
      const models::testing::RandomModel model = maker.next();
      tapes_take_what_is_counted(model.text, model.input);
    }
  }
}

TEST(Cost, ARunTellsItsTimings) {
  const Counted module(kText, {8, 8, 3});
  const auto x = kernel_cases::inputs_of<float>({8, 8, 3}, 60, 1);
  KernelTimings timings;
  KernelOptions options;
  options.timings = &timings;
  std::size_t plans = 0;
  options.planned = [&](const Plan& plan) {
    ++plans;
    EXPECT_EQ(plan.request.rows, 60U);
  };
  kernel<float>(module, x, options, Workers(2));
  EXPECT_EQ(plans, 1U);
  EXPECT_GT(timings.passes, 0);
  EXPECT_GT(timings.contraction, 0);
  EXPECT_GT(timings.wall, 0);
  EXPECT_LE(timings.passes + timings.contraction, 2 * timings.wall * 1.01);
  const KernelTimings before = timings;
  diagonal<float>(module, x, options, Workers(2));
  EXPECT_EQ(plans, 2U);
  EXPECT_EQ(timings.contraction, 0);
  EXPECT_GT(timings.passes, 0);
  EXPECT_NE(timings.wall, before.wall);
}

}  // namespace
}  // namespace gradgram::ntk
