#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "cli/options.hpp"
#include "engine/error.hpp"

/// What the library says, in the words of the program. Whoever calls the library knows its calls and
/// arguments
/// (`workers: threads (5000) must be at most 4096`), whoever gives a command knows options and files
/// (`--threads: 5000 must be at most 4096`).
namespace gradgram::cli {

/// A message of the library without its call, behind the option or file that it is about. One of the
/// program's own, which begins with no call, comes back as it is.
std::string in_options(std::string_view message, const Options& options);

/// The same, behind `subject` (an option, or what the command line calls a file) when the message itself
/// tells of no option.
std::string about_subject(std::string_view subject, std::string_view message, const Options& options);

/// Every name of a call that a message of the library can begin with: what must not reach a user. A test
/// holds the list against the sources.
std::span<const std::string_view> library_calls();

/// Runs `work`, which reads what `subject` names, and tells so in the errors that it throws.
template <class Work>
auto about(std::string_view subject, const Options& options, const Work& work) {
  const auto told = [&](const Error& error) { return about_subject(subject, error.what(), options); };
  try {
    return work();
  } catch (const ArgumentError& error) {
    throw ArgumentError(told(error));
  } catch (const ShapeError& error) {
    throw ShapeError(told(error));
  } catch (const FormatError& error) {
    throw FormatError(told(error));
  } catch (const IoError& error) {
    throw IoError(told(error));
  } catch (const NumericError& error) {
    throw NumericError(told(error));
  }
}

}  // namespace gradgram::cli
