#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.hpp"
#include "models/model.hpp"
#include "ntk/cost.hpp"
#include "ntk/kernel.hpp"

/// `kernel --explain`: the plan as a table, and what became of it.
namespace gradgram::cli {

/// The rates that a kernel's plan reckons with.
struct ChosenRates {
  ntk::KernelRates rates;
  std::string source;    ///< `built in`, `measured 2026-...`
  std::string note;      ///< why measured rates could not be kept; mostly empty
  bool scratch = false;  ///< whether those of the scratch folder are measured
};
/// As --rates says; by default those of the cache, measured now when none are there and --explain or
/// --plan-only wants to show seconds. Those of a scratch folder other than the one in the cache the same.
ChosenRates choose_rates(const Options& options, std::size_t threads);

/// --way LAYER=WAY for a model's weights. Throws ArgumentError listing the choices.
std::vector<std::pair<std::string, ntk::Way>> parse_ways(const std::vector<std::string>& texts,
                                                         const std::vector<std::string>& parameters);

/// A plan with its price, in words.
struct Explanation {
  ntk::Plan plan;
  ntk::PlanCost cost;
  std::string rates;  ///< ChosenRates::source
  bool diagonal = false;
  bool scratch_measured = false;  ///< ChosenRates::scratch
};
std::string explain_text(const Explanation& explanation, const models::Model& model);
nlohmann::ordered_json explain_json(const Explanation& explanation, const models::Model& model);

/// Planned against measured.
std::string measured_text(const Explanation& explanation, const ntk::KernelTimings& timings);
nlohmann::ordered_json measured_json(const Explanation& explanation, const ntk::KernelTimings& timings);

/// Sees what becomes of a kernel call and tells it as the options ask.
class Explainer {
 public:
  Explainer(const Context& context, const models::Model& model, std::size_t threads);
  Explainer(const Explainer&) = delete;
  Explainer& operator=(const Explainer&) = delete;

  /// Gives a call's options the rates and what --spill and --scratch say, and watches it; what it has to say
  /// of the disk goes to standard error and into the document. Refers to this object.
  void watch(ntk::KernelOptions& options);
  /// Takes a plan, and prints it under --explain and --plan-only.
  void take(const ntk::Plan& plan);
  /// Ways, rates, plan and measurements into the result's document.
  void describe(nlohmann::ordered_json& json) const;
  /// Prints what was measured, under --explain.
  void finish() const;

 private:
  const Context& context_;
  const models::Model& model_;
  ChosenRates rates_;
  ntk::KernelTimings timings_;
  std::string spilling_;  ///< what the disk refused
  std::optional<Explanation> explanation_;
};

}  // namespace gradgram::cli
