#pragma once

#include <iosfwd>
#include <stop_token>

#include "cli/options.hpp"
#include "engine/error.hpp"

namespace gradgram::cli {

/// What a verb works with. Each function below is one verb: it throws on failure and prints its result to
/// `out`.
struct Context {
  const Options& options;
  std::ostream& out;
  std::ostream& err;
  std::stop_token stop;
};

/// The work was stopped after something was written; the text says what.
class StoppedAfter : public Cancelled {
 public:
  using Cancelled::Cancelled;
};

/// Calls run<T>() in the precision of --dtype: double for f64, float otherwise.
template <class Run>
void in_precision(const Options& options, const Run& run) {
  if (options.dtype == "f64") {
    run.template operator()<double>();
  } else {
    run.template operator()<float>();
  }
}

void run_doctor(const Context& context);
void run_init(const Context& context);
void run_kernel(const Context& context);
/// `kernel --infinite`.
void run_infinite_kernel(const Context& context);
/// `kernel --monte-carlo`.
void run_monte_carlo_kernel(const Context& context);
void run_predict(const Context& context);
/// `kernel --approximate`.
void run_approximate_kernel(const Context& context);
void run_spectrum(const Context& context);
/// `spectrum --matrix-free`.
void run_matrix_free_spectrum(const Context& context);
void run_learnability(const Context& context);

}  // namespace gradgram::cli
