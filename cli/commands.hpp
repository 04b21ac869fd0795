#pragma once

#include <iosfwd>
#include <stop_token>

#include "cli/options.hpp"

namespace gradgram::cli {

/// What a verb works with. Each function below is one verb: it throws on failure and prints its result to
/// `out`.
struct Context {
  const Options& options;
  std::ostream& out;
  std::ostream& err;
  std::stop_token stop;
};

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
