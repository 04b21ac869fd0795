#include "cli/cli.hpp"

#include <algorithm>
#include <exception>
#include <new>
#include <ostream>
#include <string_view>

#include "cli/commands.hpp"
#include "cli/inputs.hpp"
#include "cli/wording.hpp"
#include "engine/error.hpp"
#include "ntk/kernel_file.hpp"

namespace gradgram::cli {
namespace {

void run(const Context& context) {
  switch (context.options.verb) {
    case Verb::Help:
      context.out << context.options.text;
      return;
    case Verb::Version:
      context.out << "gradgram " << version() << '\n';
      return;
    case Verb::Doctor:
      run_doctor(context);
      return;
    case Verb::Init:
      run_init(context);
      return;
    case Verb::Kernel:
      run_kernel(context);
      return;
    case Verb::Predict:
      run_predict(context);
      return;
    case Verb::Spectrum:
      run_spectrum(context);
      return;
    case Verb::Learnability:
      run_learnability(context);
      return;
  }
}

}  // namespace

int cli_main(std::span<const std::string> arguments, std::ostream& out, std::ostream& err,
             std::stop_token stop) {
  std::string verb;
  Options options;
  const auto fail = [&](int code, std::string_view message) {
    std::string text = in_options(message, options);
    std::replace(text.begin(), text.end(), '\n', ' ');
    err << "gradgram" << (verb.empty() ? "" : " ") << verb << ": " << text << std::endl;
    return code;
  };
  try {
    options = parse_options(arguments, verb);
    run({options, out, err, stop});
    out.flush();
    if (!out) return fail(kFailed, "standard output could not be written");
    return kDone;
  } catch (const ArgumentError& error) {
    return fail(kWrongUsage, error.what());
  } catch (const ShapeError& error) {
    return fail(kWrongUsage, error.what());
  } catch (const FormatError& error) {
    return fail(kWrongUsage, error.what());
  } catch (const ntk::StoppedResumable& error) {
    return fail(kFailed, std::string(error.what()) + " (--restart begins anew)");
  } catch (const StoppedAfter& error) {
    return fail(kFailed, error.what());
  } catch (const Cancelled&) {
    return fail(kFailed, "stopped; nothing was written");
  } catch (const std::bad_alloc&) {
    return fail(kFailed, "memory ran out; try a smaller --memory or fewer examples");
  } catch (const std::exception& error) {
    return fail(kFailed, error.what());
  }
}

}  // namespace gradgram::cli
