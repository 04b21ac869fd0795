#include "cli/explain.hpp"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/rates.hpp"
#include "cli/text.hpp"
#include "engine/error.hpp"
#include "models/price.hpp"

namespace gradgram::cli {
namespace {

using nlohmann::ordered_json;

constexpr std::string_view kWeight = ".weight";

/// `3.weight` -> `3`.
std::string layer_of(std::string parameter) {
  if (parameter.ends_with(kWeight)) parameter.resize(parameter.size() - kWeight.size());
  return parameter;
}

struct Layer {
  std::string path, kind;
};
Layer layer_of(const ntk::Plan& plan, const ntk::PlannedUse& use,
               const std::vector<models::LayerPrice>& prices) {
  const std::string path = layer_of(plan.parameter_names[use.weight]);
  const auto found = std::find_if(prices.begin(), prices.end(),
                                  [&](const models::LayerPrice& price) { return price.name == path; });
  return {path, found == prices.end() ? "" : found->text};
}

std::string seconds(double value) {
  return significant(value, 3) + " s";
}

std::string giga(double flop) {
  return significant(flop * 1e-9, 3);
}

/// The uses in the order of the forward pass; a plan has them in that of the reverse pass.
template <class F>
void each_use(const Explanation& explanation, F f) {
  for (std::size_t u = explanation.plan.uses.size(); u-- > 0;) {
    f(explanation.plan.uses[u], explanation.cost.uses[u]);
  }
}

ordered_json way_json(const ntk::WayCost& way, bool diagonal) {
  return {{"way", diagonal ? "norm" : ntk::way_name(way.way)},
          {"contraction_flop", way.flop},
          {"bytes_per_example", diagonal ? 0 : way.bytes},
          {"forming_seconds", way.forming},
          {"contraction_seconds", way.contraction},
          {"seconds", way.seconds()}};
}

/// The parts of Plan::total_bytes().
std::vector<std::pair<std::string, std::size_t>> memory_parts(const ntk::Plan& plan) {
  const std::size_t workers = plan.request.workers;
  return {{"result", plan.result_bytes},
          {"inputs and weights", plan.fixed_bytes},
          {"factors", plan.factor_bytes(plan.resident) + plan.factor_bytes(plan.streamed)},
          {"kept between rounds", plan.kept_bytes()},
          {"tapes and tiles", workers * (plan.arena_bytes() + plan.staged_bytes())},
          {"BLAS", workers * ntk::kBlasBytes}};
}

/// The largest resident size of this process so far.
std::size_t peak_resident_bytes() {
  struct rusage usage {};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}

/// The other choice between spilling and repeating passes, with the same blocks.
ntk::Plan other_reuse(const ntk::Plan& plan) {
  ntk::Plan other = plan;
  other.spilled = plan.reuse() != ntk::Reuse::Spilled;
  return other;
}

/// Where the factors are that several blocks meet, and what the other choice would take.
std::string reuse_text(const Explanation& explanation) {
  const ntk::Plan& plan = explanation.plan;
  const ntk::PlanCost& cost = explanation.cost;
  const ntk::Plan other = other_reuse(plan);
  const double instead = ntk::plan_cost(other).finished;
  const ScratchSpace& scratch = plan.request.scratch;
  const char* const rates = explanation.scratch_measured ? "measured" : "built in";
  if (plan.reuse() == ntk::Reuse::Spilled) {
    return fmt::format(
        "spilled: {} in {}, written in {} and read in {}, by rates that are {}; computed again instead: {} "
        "in "
        "all",
        bytes_text(plan.spilled_bytes()), scratch.folder.string(), seconds(cost.writing),
        seconds(cost.reading), rates, seconds(instead));
  }
  std::string text =
      fmt::format("computed again; spilled instead: {} on disk, {} in all, by rates that are {}",
                  bytes_text(other.spilled_bytes()), seconds(instead), rates);
  if (plan.request.spill == ntk::Spill::Never) return text + "; --spill never";
  if (!scratch.problem.empty()) {
    return text + fmt::format("; {}: {}", scratch.folder.string(), scratch.problem);
  }
  if (scratch.in_memory && !plan.request.scratch_named) {
    return text + fmt::format("; {} keeps its files in memory", scratch.folder.string());
  }
  if (other.spilled_bytes() > scratch.usable_bytes()) {
    text += fmt::format("; {} has room for {}", scratch.folder.string(), bytes_text(scratch.usable_bytes()));
  }
  return text;
}

double ratio(double measured, double planned) {
  return planned > 0 ? measured / planned : 0;
}

}  // namespace

ChosenRates choose_rates(const Options& options, std::size_t threads) {
  if (options.rates == "built-in") return {{}, "built in", ""};
  const std::filesystem::path path = rates_path();
  const bool shown = !options.rates.empty() || options.explain || options.plan_only;
  std::optional<MeasuredRates> found = read_rates(path);
  if (!found && !shown) return {{}, "built in", ""};
  bool fresh = !found;
  if (!found) found = measure_rates_now(threads);
  const bool spills = options.spill != "never" && !options.diagonal;
  const std::filesystem::path scratch =
      options.scratch.empty() ? default_scratch_folder() : std::filesystem::path(options.scratch);
  if (spills && shown && found->scratch != scratch) {
    // A folder that cannot be used is refused, or left alone, by the plan.
    fresh = measure_scratch_now(scratch, *found).empty() || fresh;
  }
  ChosenRates chosen{found->rates, "measured " + found->when, "", found->scratch == scratch};
  if (!chosen.scratch) chosen.rates.scratch = ntk::KernelRates().scratch;
  const std::string problem = fresh ? store_rates(path, *found) : "";
  if (!problem.empty()) chosen.note = "the measured rates are not kept: " + problem;
  return chosen;
}

std::vector<std::pair<std::string, ntk::Way>> parse_ways(const std::vector<std::string>& texts,
                                                         const std::vector<std::string>& parameters) {
  std::vector<std::pair<std::string, ntk::Way>> ways;
  for (const std::string& text : texts) {
    const std::size_t equals = text.rfind('=');
    const std::string layer = text.substr(0, equals);
    const std::string name = equals == std::string::npos ? "" : text.substr(equals + 1);
    const auto* const way = std::find_if(ntk::kAllWays.begin(), ntk::kAllWays.end(),
                                         [&](ntk::Way one) { return ntk::way_name(one) == name; });
    if (way == ntk::kAllWays.end()) {
      std::string names;
      for (const ntk::Way one : ntk::kAllWays)
        names.append(names.empty() ? "" : ", ").append(ntk::way_name(one));
      throw ArgumentError(fmt::format("--way: '{}' must be LAYER=WAY, where WAY is one of {}", text, names));
    }
    std::vector<std::string> layers;
    std::string weight;
    for (const std::string& parameter : parameters) {
      if (!parameter.ends_with(kWeight)) continue;
      layers.push_back(layer_of(parameter));
      if (parameter == layer || layers.back() == layer) weight = parameter;
    }
    if (weight.empty()) {
      throw ArgumentError(
          fmt::format("--way: '{}' is no layer with weights; those are {}", layer, fmt::join(layers, ", ")));
    }
    if (std::any_of(ways.begin(), ways.end(), [&](const auto& given) { return given.first == weight; })) {
      throw ArgumentError(fmt::format("--way: layer '{}' is given twice", layer));
    }
    ways.emplace_back(weight, *way);
  }
  return ways;
}

std::string explain_text(const Explanation& explanation, const models::Model& model) {
  const ntk::Plan& plan = explanation.plan;
  const ntk::PlanCost& cost = explanation.cost;
  const std::vector<models::LayerPrice> prices = models::price(model);
  std::vector<std::vector<std::string>> rows = {
      {"layer", "", "L", "d_in", "d_out", "passes", "way", "GFLOP", "bytes held", "time", "instead"}};
  each_use(explanation, [&](const ntk::PlannedUse& use, const ntk::UseCost& price) {
    const Layer layer = layer_of(plan, use, prices);
    std::string others;
    for (const ntk::WayCost& other : price.others) {
      others += fmt::format("{}{} {} GFLOP, {}, {}", others.empty() ? "" : "; ", ntk::way_name(other.way),
                            giga(other.flop), bytes_text(other.bytes), seconds(other.seconds()));
    }
    rows.push_back({layer.path, layer.kind, grouped(use.positions), grouped(use.d_in), grouped(use.d_out),
                    seconds(price.forward + price.reverse),
                    explanation.diagonal ? "norm" : std::string(ntk::way_name(price.chosen.way)),
                    giga(price.chosen.flop), explanation.diagonal ? "0 B" : bytes_text(price.chosen.bytes),
                    seconds(price.chosen.seconds()), others});
  });
  std::string text =
      "Plan\n" + table(rows, {false, false, true, true, true, true, false, true, true, true, false});
  text +=
      "  passes: forward and reverse; bytes held: of one example; time: forming gradients and contracting "
      "them; all in\n  seconds of one thread\n";

  const std::size_t workers = plan.request.workers;
  std::string memory;
  for (const auto& [name, bytes] : memory_parts(plan)) {
    if (bytes != 0) memory += fmt::format("{}{} {}", memory.empty() ? "" : ", ", name, bytes_text(bytes));
  }
  std::vector<std::vector<std::string>> totals = {
      {"passes", fmt::format("{} GFLOP, {} of one thread with forming and new memory ({}); {} a tape",
                             giga(cost.pass_flop), seconds(cost.passes), seconds(cost.touching),
                             grouped(plan.tape_block))}};
  if (!explanation.diagonal) {
    totals.push_back(
        {"contraction", fmt::format("{} GFLOP, {} of one thread; {} tiles of {} examples", giga(cost.flop),
                                    seconds(cost.contraction), grouped(cost.tiles), grouped(plan.tile))});
    totals.push_back(
        {"blocks",
         cost.blocks == 1 && plan.streamed == 0
             ? fmt::format(
                   "the gradients of all {} examples are held{}", grouped(plan.resident),
                   plan.rounds() == 1
                       ? ""
                       : fmt::format(", {} of {} outputs at a time{}", plan.round_seeds, plan.request.seeds,
                                     plan.keeps_passes ? "" : "; forward passes are repeated"))
             : fmt::format("{} of {} examples, {} pass by; an example is passed {} times",
                           grouped(cost.blocks), grouped(plan.resident), grouped(plan.streamed),
                           significant(cost.passed, 3))});
    if (plan.reuse() != ntk::Reuse::Kept) totals.push_back({"factors", reuse_text(explanation)});
  }
  if (cost.storing > 0) {
    totals.push_back({"file", fmt::format("{} of one thread for its tiles, on a disk that keeps up",
                                          seconds(cost.storing))});
  }
  totals.push_back({"memory", fmt::format("{} of {}: {}", bytes_text(plan.total_bytes()),
                                          budget_text(plan.request.memory), memory)});
  totals.push_back({"time", fmt::format("{} on {} thread{}, by rates that are {}", seconds(cost.finished),
                                        workers, workers == 1 ? "" : "s", explanation.rates)});
  return text + table(totals, {false, false});
}

ordered_json explain_json(const Explanation& explanation, const models::Model& model) {
  const ntk::Plan& plan = explanation.plan;
  const ntk::PlanCost& cost = explanation.cost;
  const std::vector<models::LayerPrice> prices = models::price(model);
  ordered_json json;
  json["rates"] = explanation.rates;
  json["layers"] = ordered_json::array();
  each_use(explanation, [&](const ntk::PlannedUse& use, const ntk::UseCost& price) {
    const Layer layer = layer_of(plan, use, prices);
    ordered_json one = {{"layer", layer.path},
                        {"kind", layer.kind},
                        {"positions", use.positions},
                        {"d_in", use.d_in},
                        {"d_out", use.d_out},
                        {"pass_flop", price.pass_flop},
                        {"forward_seconds", price.forward},
                        {"reverse_seconds", price.reverse}};
    one.update(way_json(price.chosen, explanation.diagonal));
    one["alternatives"] = ordered_json::array();
    for (const ntk::WayCost& other : price.others) {
      one["alternatives"].push_back(way_json(other, explanation.diagonal));
    }
    json["layers"].push_back(std::move(one));
  });
  ordered_json memory;
  for (const auto& [name, bytes] : memory_parts(plan)) memory[name] = bytes;
  json["total"] = {{"pass_flop", cost.pass_flop},
                   {"passes_seconds", cost.passes},
                   {"forming_seconds", cost.forming},
                   {"new_memory_seconds", cost.touching},
                   {"contraction_flop", cost.flop},
                   {"contraction_seconds", cost.contraction},
                   {"passes_per_example", cost.passed},
                   {"examples_on_a_tape", plan.tape_block},
                   {"blocks", cost.blocks},
                   {"block_examples", plan.resident},
                   {"streamed_examples", plan.streamed},
                   {"factors", ntk::reuse_name(plan.reuse())},
                   {"spilled_bytes", plan.spilled_bytes()},
                   {"spill_writing_seconds", cost.writing},
                   {"spill_reading_seconds", cost.reading},
                   {"tiles", cost.tiles},
                   {"tile_examples", plan.tile},
                   {"memory_bytes", plan.total_bytes()},
                   {"memory_budget_bytes", plan.request.memory},
                   {"memory", memory},
                   {"threads", plan.request.workers},
                   {"storing_seconds", cost.storing},
                   {"seconds", cost.finished}};
  if (!explanation.diagonal && plan.reuse() != ntk::Reuse::Kept) {
    const ntk::Plan other = other_reuse(plan);
    json["total"]["scratch"] = {{"folder", plan.request.scratch.folder.string()},
                                {"usable_bytes", plan.request.scratch.usable_bytes()},
                                {"rates", explanation.scratch_measured ? "measured" : "built in"}};
    json["total"]["instead"] = {{"factors", ntk::reuse_name(other.reuse())},
                                {"spilled_bytes", other.spilled_bytes()},
                                {"seconds", ntk::plan_cost(other).finished}};
  }
  return json;
}

std::string measured_text(const Explanation& explanation, const ntk::KernelTimings& timings) {
  const ntk::PlanCost& cost = explanation.cost;
  const auto row = [](const char* name, double planned, double measured) {
    return std::vector<std::string>{name, seconds(planned), seconds(measured),
                                    significant(ratio(measured, planned), 3)};
  };
  std::vector<std::vector<std::string>> rows = {{"", "planned", "measured", "ratio"},
                                                row("passes and forming", cost.passes, timings.passes)};
  if (!explanation.diagonal) {
    rows.push_back(row(cost.storing > 0 ? "contraction, and tiles into the file" : "contraction",
                       cost.contraction + cost.storing, timings.contraction));
  }
  if (explanation.plan.reuse() == ntk::Reuse::Spilled) {
    rows.push_back(row("writing spilled factors", cost.writing, timings.writing));
    rows.push_back(row("reading them again", cost.reading, timings.reading));
  }
  rows.push_back(row("from the first pass to the end", cost.finished, timings.wall));
  const std::size_t planned = explanation.plan.total_bytes();
  const std::size_t peak = peak_resident_bytes();
  rows.push_back({"peak resident memory", bytes_text(planned), bytes_text(peak),
                  significant(ratio(static_cast<double>(peak), static_cast<double>(planned)), 3)});
  return "Planned and measured\n" + table(rows, {false, true, true, true});
}

ordered_json measured_json(const Explanation& explanation, const ntk::KernelTimings& timings) {
  return {{"passes_seconds", timings.passes},
          {"contraction_seconds", timings.contraction},
          {"spilled_bytes", timings.spilled_bytes},
          {"spill_writing_seconds", timings.writing},
          {"spill_reading_seconds", timings.reading},
          {"seconds", timings.wall},
          {"seconds_to_planned", ratio(timings.wall, explanation.cost.finished)},
          {"peak_resident_bytes", peak_resident_bytes()}};
}

Explainer::Explainer(const Context& context, const models::Model& model, std::size_t threads)
    : context_(context), model_(model), rates_(choose_rates(context.options, threads)) {
  if (!rates_.note.empty()) context.err << "gradgram kernel: " << rates_.note << std::endl;
}

void Explainer::watch(ntk::KernelOptions& options) {
  options.rates = &rates_.rates;
  options.timings = &timings_;
  const std::string& spill = context_.options.spill;
  options.spill = spill == "never"    ? ntk::Spill::Never
                  : spill == "always" ? ntk::Spill::Always
                                      : ntk::Spill::Auto;
  options.scratch = context_.options.scratch;
  options.notice = [this](const std::string& text) {
    spilling_ = text;
    context_.err << "gradgram kernel: " << text << std::endl;
  };
  options.planned = [this](const ntk::Plan& plan) { take(plan); };
}

void Explainer::take(const ntk::Plan& plan) {
  const bool diagonal = context_.options.diagonal;
  ntk::Plan told = plan;
  told.request.packed_file = context_.options.packed;
  explanation_ = Explanation{told, diagonal ? ntk::diagonal_cost(told) : ntk::plan_cost(told), rates_.source,
                             diagonal, rates_.scratch};
  if (!context_.options.json && (context_.options.explain || context_.options.plan_only)) {
    context_.out << explain_text(*explanation_, model_) << std::flush;
  }
}

void Explainer::describe(ordered_json& json) const {
  json["rates"] = rates_.source;
  if (!spilling_.empty()) json["spilling"] = spilling_;
  if (!explanation_) return;  // no examples, no plan
  if (!explanation_->diagonal) {
    for (const auto& [name, way] : explanation_->plan.ways())
      json["ways"][layer_of(name)] = ntk::way_name(way);
  }
  if (!context_.options.explain && !context_.options.plan_only) return;
  json["plan"] = explain_json(*explanation_, model_);
  if (!context_.options.plan_only) json["measured"] = measured_json(*explanation_, timings_);
}

void Explainer::finish() const {
  if (explanation_ && context_.options.explain && !context_.options.json) {
    context_.out << measured_text(*explanation_, timings_);
  }
}

}  // namespace gradgram::cli
