#pragma once

#include <iosfwd>
#include <span>
#include <stop_token>
#include <string>

namespace gradgram::cli {

inline constexpr int kDone = 0;
/// The command is right but could not be carried out: IoError, BudgetError, NumericError, Cancelled, and what
/// nobody foresaw.
inline constexpr int kFailed = 1;
/// The command line is wrong, or what it names does not fit it: ArgumentError, ShapeError, FormatError.
inline constexpr int kWrongUsage = 2;

/// The program as a function: `arguments` without the program's name. Results go to `out`, progress and
/// errors (one line, `gradgram <verb>: ...`) to `err`. Returns the exit code; throws nothing. A request on
/// `stop` ends long work cleanly with kFailed. Progress is drawn as a bar when `err` is std::cerr on a
/// terminal.
int cli_main(std::span<const std::string> arguments, std::ostream& out, std::ostream& err,
             std::stop_token stop = {});

}  // namespace gradgram::cli
