#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "cli/options.hpp"
#include "cli/reduction.hpp"
#include "engine/bf16.hpp"
#include "engine/error.hpp"
#include "engine/npy.hpp"
#include "engine/random.hpp"
#include "models/model.hpp"
#include "tests/cli/program.hpp"
#include "tests/source_root.hpp"

namespace gradgram::cli {
namespace {

namespace fs = std::filesystem;

std::string read_text(const fs::path& path) {
  std::ifstream stream(path);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

/// Words of a line as a shell splits it; double quotes group.
std::vector<std::string> shell_words(const std::string& line) {
  std::vector<std::string> words;
  std::string word;
  bool quoted = false;
  for (const char c : line + " ") {
    if (c == '"') {
      quoted = !quoted;
    } else if (c == ' ' && !quoted) {
      if (!word.empty()) words.push_back(word);
      word.clear();
    } else {
      word += c;
    }
  }
  return words;
}

class Command : public InFolder {
 protected:
  /// Random numbers [n, ...] as .npy.
  std::string array(const std::string& name, Shape shape, std::uint64_t seed) const {
    Tensor<double> values(shape);
    Random random(seed);
    for (double& value : values.span()) value = random.normal();
    write_npy<double>(at(name), values.view());
    return at(name);
  }
  /// Names in the folder, sorted.
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder))
      found.push_back(entry.path().filename().string());
    std::sort(found.begin(), found.end());
    return found;
  }
};

constexpr const char* kVerbs[] = {"doctor", "init", "kernel", "spectrum", "learnability"};

TEST_F(Command, HelpEverywhereWithAnExampleThatParses) {
  EXPECT_EQ(run({"--help"}).code, kDone);
  for (const char* verb : kVerbs) {
    const Outcome help = run({verb, "--help"});
    EXPECT_EQ(help.code, kDone);
    EXPECT_EQ(help.err, "");
    const std::size_t example = help.out.find("Example:\n  gradgram ");
    ASSERT_NE(example, std::string::npos) << verb;
    std::string line = help.out.substr(example + std::string("Example:\n  ").size());
    line = line.substr(0, line.find('\n'));
    std::vector<std::string> words = shell_words(line);
    words.erase(words.begin());
    std::string name;
    Options options;
    EXPECT_NO_THROW(options = parse_options(words, name)) << line;
    EXPECT_EQ(options.name, verb);
  }
}

TEST_F(Command, TheDocumentIsWhatTheProgramSays) {
  const Outcome document = run({"--help-markdown"});
  EXPECT_EQ(document.code, kDone);
  EXPECT_EQ(read_text(source_root() / "docs" / "command-line.md"), document.out)
      << "run: gradgram --help-markdown > docs/command-line.md";
}

/// Commands in the code blocks of a page, continued lines joined, comments and variables in front left out.
std::vector<std::string> documented_commands(const fs::path& page) {
  std::vector<std::string> commands;
  std::ifstream stream(page);
  bool fenced = false;
  bool continued = false;
  for (std::string line; std::getline(stream, line);) {
    if (line.starts_with("```")) fenced = !fenced;
    if (!fenced && !line.starts_with("    ")) {
      continued = false;
      continue;
    }
    line = line.substr(0, line.find(" #"));
    line.erase(0, std::min(line.find_first_not_of(' '), line.size()));
    line.erase(line.find_last_not_of(' ') + 1);
    if (!continued) {
      if (line.starts_with("GRADGRAM_DATA=")) line.erase(0, line.find(' ') + 1);
      for (const char* program : {"gradgram ", "./build/cli/gradgram "}) {
        if (!line.starts_with(program)) continue;
        const std::string rest = line.substr(std::string(program).size());
        // `gradgram VERB: ...` is a message.
        if (rest.substr(0, rest.find(' ')).ends_with(':')) continue;
        commands.push_back(rest);
        continued = rest.ends_with('\\');
        break;
      }
    } else {
      commands.back() += ' ' + line;
      continued = line.ends_with('\\');
    }
    if (continued) commands.back().pop_back();
  }
  return commands;
}

/// That the options of a line parse, and that a network of several outputs is told how to reduce them.
void parse_documented(const std::string& line) {
  std::string verb;
  const Options options = parse_options(shell_words(line), verb);
  const bool reduces = options.verb == Verb::Kernel || options.verb == Verb::Spectrum;
  if (!reduces || options.model.empty() || options.infinite || options.get == "nngp") return;
  std::size_t classes = options.data.find("mnist") != std::string::npos || options.data == "cifar10" ? 10 : 0;
  if (!options.classes.empty()) {
    classes = static_cast<std::size_t>(1 + std::count(options.classes.begin(), options.classes.end(), ','));
  }
  const Shape shape = options.data == "cifar10" ? Shape{32, 32, 3} : Shape{28, 28, 1};
  models::ParseOptions parse;
  parse.outputs = options.outputs > 0 ? options.outputs : classes > 2 ? classes : 1;
  ntk::KernelOptions kernel;
  std::string note;
  choose_reduction(options, models::parse(options.model, shape, parse).outputs(), kernel, note);
}

TEST_F(Command, DocumentedCommandsAreAccepted) {
  std::vector<fs::path> pages = {source_root() / "README.md"};
  for (const auto& entry : fs::directory_iterator(source_root() / "docs")) {
    if (entry.path().extension() == ".md" && entry.path().filename() != "command-line.md") {
      pages.push_back(entry.path());
    }
  }
  std::size_t found = 0;
  for (const fs::path& page : pages) {
    for (const std::string& line : documented_commands(page)) {
      if (line.ends_with("...")) continue;
      ++found;
      EXPECT_NO_THROW(parse_documented(line)) << page << ": " << line;
    }
  }
  EXPECT_GE(found, 12);
  // Negative controls: an option that is not there, and ten classes without a reduction.
  EXPECT_THROW(parse_documented("kernel --model dense(1) --data mnist --out k.npy --nonsense"),
               ArgumentError);
  EXPECT_THROW(parse_documented("kernel --model cnn3:channels=8 --data mnist --out k.npy"), ArgumentError);
}

TEST_F(Command, Version) {
  EXPECT_EQ(run({"--version"}).out.rfind("gradgram ", 0), 0U);
}

TEST_F(Command, WrongUsageIsOneLineAndCodeTwo) {
  const std::string x = array("x.npy", Shape{5, 4}, 1);
  std::ofstream(at("broken.npy")) << "not an array";
  const std::vector<std::vector<std::string>> wrong = {
      {"kernel", "--model", "dense(1)", "--data", at("broken.npy"), "--out", at("k.npy")},
      {"spectrum", at("broken.npy")},
      {"spectrum", x},
      {},
      {"frobnicate"},
      {"kernel"},
      {"kernel", "--data", x, "--out", at("k.npy")},
      {"kernel", "--nonsense"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--dtype", "f16"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--memory", "lots"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--seed", "one"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--parameterization", "mup"},
      {"kernel", "--model", "dens(1)", "--data", x, "--out", at("k.npy")},
      {"kernel", "--model", "dense(2)", "--data", x, "--out", at("k.npy")},
      {"kernel", "--model", "dense(2)", "--data", x, "--out", at("k.npy"), "--reduce", "mean"},
      {"kernel", "--model", "dense(2)", "--data", x, "--out", at("k.npy"), "--reduce", "output:2"},
      {"kernel", "--model", "dense(2)", "--data", x, "--out", at("k.npy"), "--reduce", "true-class"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.txt")},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--diagonal", "--per-parameter"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--approximate", "15"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--approximate", "20000000"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--approximate", "99",
       "--diagonal"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--approximate", "99",
       "--infinite"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--approximate", "99", "--versus",
       x},
      {"kernel", "--model", "dense(2)", "--data", x, "--out", at("k.npy"), "--approximate", "99", "--reduce",
       "full"},
      {"kernel", "--model", "dense(2)", "--data", x, "--out", at("k.npy"), "--approximate", "99"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.txt"), "--approximate", "99"},
      {"spectrum"},
      {"spectrum", x, "--model", "dense(1)"},
      {"spectrum", "--matrix-free"},
      {"spectrum", "--matrix-free", "--model", "dense(1)"},
      {"spectrum", x, "--matrix-free", "--model", "dense(1)", "--data", x},
      {"spectrum", "--matrix-free", "--model", "dense(2)", "--data", x},
      {"spectrum", "--matrix-free", "--model", "dense(1)", "--data", x, "--estimate", "everything"},
      {"spectrum", "--matrix-free", "--model", "dense(1)", "--data", x, "--estimate", "top,"},
      {"spectrum", "--matrix-free", "--model", "dense(1)", "--data", x, "--products", "5"},
      {"spectrum", "--matrix-free", "--model", "dense(1)", "--data", x, "--probes", "1"},
      {"spectrum", "--matrix-free", "--model", "dense(1)", "--data", x, "--steps", "0"},
      {"spectrum", "--matrix-free", "--model", "dense(1)", "--data", x, "--top", "6"},
      {"spectrum", "--matrix-free", "--model", "dense(1)", "--data", x, "--out", at("spectrum.csv")},
      {"spectrum", "--matrix-free", "--model", "dense(2)", "--data", x, "--reduce", "true-class"},
      {"init", "--model", "dense(1)", "--out", at("w.npz")},
      {"init", "--model", "dense(1)", "--out", at("w.npz"), "--input", "3x"},
      {"learnability", "--model", "dense(1)", "--data", x, "--out", at("run")},
  };
  for (const auto& arguments : wrong) {
    const Outcome outcome = run(arguments);
    std::string line;
    for (const std::string& word : arguments) line += word + " ";
    EXPECT_EQ(outcome.code, kWrongUsage) << line << outcome.err;
    EXPECT_EQ(outcome.out, "") << line;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << line << outcome.err;
    EXPECT_EQ(outcome.err.rfind("gradgram", 0), 0U) << outcome.err;
  }
  EXPECT_EQ(names(), (std::vector<std::string>{"broken.npy", "x.npy"}));
  const Outcome choices = run({"kernel", "--model", "dense(2)", "--data", x, "--out", at("k.npy")});
  for (const char* choice : {"full", "trace-mean", "trace-sum", "output:K", "true-class"}) {
    EXPECT_NE(choices.err.find(choice), std::string::npos) << choices.err;
  }
}

TEST_F(Command, VariancesBeyondTheNumbersAreRefusedByEveryKind) {
  const std::vector<std::vector<std::string>> kinds = {{"kernel"},
                                                       {"kernel", "--infinite"},
                                                       {"kernel", "--infinite", "--dtype", "f64"},
                                                       {"kernel", "--monte-carlo", "2"},
                                                       {"predict", "--train", "8"},
                                                       {"predict", "--train", "8", "--infinite"}};
  for (std::vector<std::string> words : kinds) {
    for (const char* word :
         {"--data", "circle:n=12", "--model", "dense(4) relu dense(1)", "--quiet", "--out"}) {
      words.emplace_back(word);
    }
    words.push_back(at("o.npy"));
    for (const char* value : {"1e-310", "1e-40", "1e40", "1e308"}) {
      for (const char* option : {"--weight-variance", "--bias-variance"}) {
        std::vector<std::string> all = words;
        all.insert(all.end(), {option, value});
        const Outcome outcome = run(all);
        EXPECT_EQ(outcome.code, kWrongUsage) << words[0] << ' ' << words[1] << ' ' << option << ' ' << value;
        EXPECT_NE(outcome.err.find(std::string(option) + ": found "), std::string::npos) << outcome.err;
        EXPECT_TRUE(names().empty());
      }
    }
  }
}

TEST_F(Command, UnknownOptionsAreToldBeforeMissingOnes) {
  const auto error = [](const std::vector<std::string>& words) {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.code, kWrongUsage);
    return outcome.err;
  };
  for (const std::string verb : {"doctor", "init", "kernel", "predict", "spectrum", "learnability"}) {
    const std::string help = " (see gradgram " + verb + " --help)\n";
    const auto text = [&](const std::string& option, const std::string& guess) {
      return "gradgram " + verb + ": " + option + " is no option of this verb" + guess + help;
    };
    EXPECT_EQ(error({verb, "--thread", "1"}), text("--thread", "; did you mean --threads?"));
    EXPECT_EQ(error({verb, "--jsno"}), text("--jsno", "; did you mean --json?"));
    EXPECT_EQ(error({verb, "--frobnicate=3"}), text("--frobnicate", ""));
  }
  EXPECT_EQ(error({"kernel", "--outt", "x"}),
            "gradgram kernel: --outt is no option of this verb; did you mean --out? (see gradgram kernel "
            "--help)\n");
  EXPECT_EQ(error({"kernel", "--model", "dense(1)", "--data", "x.npy", "stray"}),
            "gradgram kernel: 'stray' is not expected (see gradgram kernel --help)\n");
  EXPECT_NE(error({"learnability", "--learning", "1"}).find("did you mean --learning-rate?"),
            std::string::npos);
  EXPECT_NE(error({"kernel"}).find("--model is required"), std::string::npos);
  EXPECT_EQ(error({"kernle", "--model", "dense(1)"}),
            "gradgram: 'kernle' is no verb; did you mean kernel? (see gradgram --help)\n");
  EXPECT_EQ(error({"train"}),
            "gradgram: 'train' is no verb; expected one of doctor, init, kernel, predict, spectrum, "
            "learnability (see gradgram --help)\n");
}

TEST_F(Command, OptionsBeforeTheVerbAreSentBehindIt) {
  const auto expect = [](const std::vector<std::string>& words, const std::string& told) {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.code, kWrongUsage) << told;
    EXPECT_EQ(outcome.err, "gradgram" + told + "--help)\n");
  };
  const std::string models =
      "`gradgram init`, `gradgram kernel`, `gradgram predict`, `gradgram spectrum`, `gradgram learnability`";
  for (const char* word : {"--model", "--model=x"}) {
    expect({word, "x"},
           ": --model must stand behind the verb: it is an option of " + models + " (see gradgram ");
  }
  for (const std::string word : {"--modle", "--mod", "--modell"}) {
    expect({word, "x"}, ": " + word + " is no option; did you mean --model of " + models +
                            "? It must stand behind the verb (see gradgram ");
  }
  expect({"--infinite"},
         ": --infinite must stand behind the verb: it is an option of `gradgram kernel`, `gradgram predict` "
         "(see gradgram ");
  expect({"--json", "doctor"},
         " doctor: --json must stand behind the verb: it is an option of `gradgram doctor` (see gradgram "
         "doctor ");
  expect({"--out", "k.npy", "kernel"},
         " kernel: --out must stand behind the verb: it is an option of `gradgram kernel` (see gradgram "
         "kernel ");
  expect({"--thread", "2", "kernel", "--model", "dense(1)"},
         " kernel: --thread is no option; did you mean --threads of `gradgram kernel`? It must stand behind "
         "the verb (see gradgram kernel ");
  expect({"--versio"}, ": --versio is no option; did you mean --version? (see gradgram ");
  expect({"--frobnicate"}, ": --frobnicate is no option, and the verb comes first (see gradgram ");
  expect({"-m", "x", "kernel"}, " kernel: -m is no option, and the verb comes first (see gradgram kernel ");
  expect({"kernle", "kernel"}, " kernel: 'kernle' is no verb; did you mean kernel? (see gradgram kernel ");
}

TEST_F(Command, OptionsOfOtherVerbsAreKnown) {
  const auto expect = [](const std::string& verb, const std::string& word, const std::string& told) {
    const Outcome outcome = run({verb, word, "1"});
    EXPECT_EQ(outcome.code, kWrongUsage);
    EXPECT_EQ(outcome.err, "gradgram " + verb + ": " + word + " is no option of this verb" + told +
                               " (see gradgram " + verb + " --help)\n");
  };
  expect("kernel", "--measure", " but of `gradgram doctor`");
  expect("doctor", "--out",
         " but of `gradgram init`, `gradgram kernel`, `gradgram predict`, `gradgram spectrum`, "
         "`gradgram learnability`");
  expect("spectrum", "--infinite", " but of `gradgram kernel`, `gradgram predict`");
  for (const char* word : {"--meqasure", "--maesure", "--mesure", "--meazure", "--Measure", "--meas"}) {
    expect("kernel", word, "; did you mean --measure of `gradgram doctor`?");
  }
  expect("init", "--epcohs", "; did you mean --epochs of `gradgram learnability`?");
  expect("doctor", "--lables", "; did you mean --labels of `gradgram kernel`, `gradgram spectrum`?");
  // The verb's own comes first, unless the word is right elsewhere.
  expect("spectrum", "--stesp", "; did you mean --steps?");
  expect("predict", "--rigde", "; did you mean --ridge?");
  expect("predict", "--limit", "; did you mean --train?");
  expect("predict", "--output", "; did you mean --out?");
  expect("learnability", "--lr", "; did you mean --learning-rate?");
  expect("kernel", "--lr", "; did you mean --learning-rate of `gradgram predict`, `gradgram learnability`?");
  // Half of a short word is no slip.
  expect("kernel", "--k", "");
  expect("kernel", "--xyz", "");
  expect("kernel", "--" + std::string(100000, 'x'), "");
}

TEST_F(Command, WhatFailsIsOneLineAndCodeOneAndLeavesNothing) {
  const std::string x = array("x.npy", Shape{5, 4}, 1);
  const std::vector<std::vector<std::string>> failing = {
      {"kernel", "--model", "dense(1)", "--data", at("missing.npy"), "--out", at("k.npy")},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("nowhere/k.npy")},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--weights", at("missing.npz")},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--memory", "100"},
      {"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--approximate", "99", "--memory",
       "100"},
      {"spectrum", "--matrix-free", "--model", "dense(1)", "--data", at("missing.npy")},
      {"spectrum", "--matrix-free", "--model", "dense(1)", "--data", x, "--memory", "100"},
      {"spectrum", "--matrix-free", "--model", "dense(1)", "--data", x, "--memory", "100KB"},
      {"spectrum", at("missing.npy")},
  };
  for (const auto& arguments : failing) {
    const Outcome outcome = run(arguments);
    std::string line;
    for (const std::string& word : arguments) line += word + " ";
    EXPECT_EQ(outcome.code, kFailed) << line << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << line << outcome.err;
    EXPECT_EQ(outcome.err.rfind("gradgram " + arguments[0] + ": ", 0), 0U) << outcome.err;
  }
  EXPECT_EQ(names(), std::vector<std::string>{"x.npy"});
}

TEST_F(Command, AResultDoesNotTakeThePlaceOfItsInput) {
  const std::string x = array("x.npy", Shape{6, 3}, 1);
  const std::string before = read_text(x);
  const std::vector<std::string> call = {"kernel", "--model", "dense(1)", "--data", x, "--quiet"};
  for (const std::string& out : {x, (folder / "." / "x.npy").string()}) {
    std::vector<std::string> words = call;
    words.insert(words.end(), {"--out", out});
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.code, kWrongUsage);
    EXPECT_NE(outcome.err.find("would overwrite --data"), std::string::npos) << outcome.err;
  }
  EXPECT_EQ(read_text(x), before);
  std::vector<std::string> elsewhere = call;
  elsewhere.insert(elsewhere.end(), {"--out", at("k.npy")});
  EXPECT_EQ(run(elsewhere).code, kDone);
}

TEST_F(Command, CountsAreNotNegative) {
  const std::string x = array("x.npy", Shape{6, 3}, 1);
  for (const char* option : {"--limit", "--threads", "--seed", "--monte-carlo"}) {
    const Outcome outcome =
        run({"kernel", "--model", "dense(1)", "--data", x, "--quiet", "--out", at("k.npy"), option, "-3"});
    EXPECT_EQ(outcome.code, kWrongUsage) << option;
    EXPECT_NE(outcome.err.find("'-3' must not be negative"), std::string::npos) << outcome.err;
  }
  EXPECT_EQ(names(), std::vector<std::string>{"x.npy"});
}

/// What would be ignored is refused, naming both options.
TEST_F(Command, NoOptionIsIgnored) {
  const std::string x = array("x.npy", Shape{5, 4}, 1);
  const std::vector<std::string> kernel = {"kernel", "--model", "dense(1)", "--data",
                                           x,        "--out",   at("k.npy")};
  const std::vector<std::string> predict = {"predict", "--model", "dense(1)", "--data",
                                            x,         "--out",   at("p.npy")};
  const std::vector<std::string> files = {"predict",   "--kernel", x,       "--cross",  x,
                                          "--targets", x,          "--out", at("p.npy")};
  const std::vector<std::string> free = {"spectrum", "--matrix-free", "--model", "dense(1)", "--data", x};
  const std::vector<std::string> file = {"spectrum", x};
  const std::vector<std::string> init = {"init",    "--model", "dense(1)", "--input",
                                         "3x32x32", "--out",   at("w.npz")};
  const std::vector<std::string> study = {"learnability", "--model", "dense(1)", "--data", x,
                                          "--out",        at("run")};
  struct Case {
    const std::vector<std::string>& base;
    std::vector<std::string> more;
    std::vector<std::string> named;  ///< beside the last option
  };
  std::vector<Case> cases = {
      {kernel, {"--infinite", "--parameterization", "standard"}, {"--infinite", "--parameterization"}},
      {kernel, {"--get", "nngp"}, {"--infinite", "--monte-carlo"}},
      {kernel, {"--labels", x, "--reduce", "trace-sum"}, {"--labels", "true-class"}},
      {kernel, {"--label-noise", "0.5"}, {"true-class"}},
      {kernel, {"--reduce", "true-class", "--labels", x, "--label-noise", "0.5"}, {"--labels"}},
      {kernel, {"--reduce", "true-class", "--versus-labels", x}, {"--versus"}},
      {kernel, {"--versus", x, "--versus-labels", x}, {"true-class"}},
      {kernel, {"--weights", x, "--weight-variance", "3"}, {"--weights", "standard"}},
      {kernel, {"--target", "price"}, {".csv"}},
      {kernel, {"--outputs", "3"}, {"--model", "dense(1)"}},
      {predict, {"--cross", x}, {"--kernel"}},
      {predict, {"--targets", x}, {"--kernel"}},
      {predict, {"--test-targets", x}, {"--kernel"}},
      {predict, {"--get", "ntk"}, {"--infinite"}},
      {predict, {"--variance"}, {"--infinite"}},
      {predict, {"--infinite", "--weights", x}, {"--infinite"}},
      {predict, {"--infinite", "--parameterization", "standard"}, {"--infinite"}},
      {free, {"--labels", x}, {"true-class"}},
      {free, {"--estimate", "moments", "--top", "2"}, {"--estimate"}},
      {free, {"--estimate", "top", "--products", "20"}, {"--estimate", "moments"}},
      {free, {"--estimate", "top", "--probes", "3"}, {"--estimate", "density"}},
      {free, {"--estimate", "top", "--steps", "3"}, {"--estimate", "density"}},
      {free, {"--force"}, {"--out"}},
      {study, {"--optimizer", "adam", "--momentum", "0.5"}, {"--optimizer"}},
  };
  for (const char* option : {"--explain", "--plan-only", "--way", "--rates", "--dtype"}) {
    for (const char* mode : {"--approximate", "--monte-carlo", "--infinite"}) {
      std::vector<std::string> more = {mode};
      if (std::string(mode) != "--infinite") more.emplace_back("20");
      more.emplace_back(option);
      if (std::string(option) == "--way") more.emplace_back("0.weight=outer");
      if (std::string(option) == "--rates") more.emplace_back("built-in");
      if (std::string(option) == "--dtype") more.emplace_back("bf16");
      cases.push_back({kernel, more, {mode}});
    }
  }
  cases.push_back({kernel, {"--diagonal", "--dtype", "bf16"}, {"--diagonal"}});
  for (const char* option :
       {"--versus", "--reduce", "--train", "--weights", "--model", "--data", "--dtype"}) {
    cases.push_back({files, {option, option == std::string("--dtype") ? "f64" : "1"}, {"--kernel"}});
  }
  for (const char* option : {"--estimate", "--products", "--probes", "--steps", "--reduce", "--limit",
                             "--standardize", "--outputs"}) {
    const std::string name = option;
    cases.push_back({file,
                     {option, name == "--estimate"      ? "top"
                              : name == "--standardize" ? "channel"
                                                        : "7"},
                     {"--matrix-free"}});
  }
  cases.push_back({file, {"--out", at("s"), "--force"}, {"--matrix-free"}});
  for (const char* option : {"--data", "--classes", "--limit"}) {
    cases.push_back({init, {option, "5"}, {"--input"}});
  }
  for (const Case& one : cases) {
    std::vector<std::string> words = one.base;
    words.insert(words.end(), one.more.begin(), one.more.end());
    const Outcome outcome = run(words);
    std::string line;
    for (const std::string& word : words) line += word + " ";
    EXPECT_EQ(outcome.code, kWrongUsage) << line << outcome.err;
    std::vector<std::string> named = one.named;
    named.push_back(*std::find_if(one.more.rbegin(), one.more.rend(),
                                  [](const std::string& word) { return word.starts_with("--"); }));
    for (const std::string& name : named) {
      EXPECT_NE(outcome.err.find(name), std::string::npos) << line << outcome.err;
    }
  }
  EXPECT_EQ(names(), std::vector<std::string>{"x.npy"});
  // What is true all the same may be said.
  std::vector<std::string> words = kernel;
  words.insert(words.end(), {"--infinite", "--parameterization", "ntk", "--no-preview", "--quiet"});
  EXPECT_EQ(run(words).code, kDone);
}

/// What a user gets wrong is told by the option, the file and what is there.
TEST_F(Command, FaultsAreNamed) {
  const std::string x = array("x.npy", Shape{5, 4}, 1);
  Tensor<double> large(Shape{5, 4});
  large.span()[13] = 1e200;
  write_npy<double>(at("large.npy"), large.view());
  Tensor<double> tiny(Shape{5, 4});
  tiny.span()[13] = 1e-300;
  write_npy<double>(at("tiny.npy"), tiny.view());
  Tensor<double> spoilt(Shape{5});
  spoilt(2) = std::nan("");
  write_npy<double>(at("nan.npy"), spoilt.view());
  write_npy<double>(at("half.npy"), Tensor<double>(Shape{5}, std::vector<double>(5, 0.5)));
  Tensor<double> k(Shape{5, 5});
  for (std::size_t i = 0; i < 5; ++i) k(i, i) = i == 4 ? -1 : 1;
  write_npy<double>(at("indefinite.npy"), k.view());
  for (std::size_t i = 0; i < 5; ++i) k(i, i) = 1;
  write_npy<double>(at("k.npy"), k.view());
  write_npy<double>(at("none.npy"), Tensor<double>(Shape{0, 5}).view());
  k(1, 3) = 0.5;
  write_npy<double>(at("skew.npy"), k.view());
  write_npy<double>(at("cross.npy"),
                    Tensor<double>(Shape{1, 5}, std::vector<double>{1, 2, std::nan(""), 4, 5}));
  write_npy<double>(at("c.npy"), Tensor<double>(Shape{1, 5}, std::vector<double>(5, 1)));
  const std::vector<std::string> kernel = {"kernel", "--model", "dense(2)", "--data",
                                           x,        "--out",   at("o.npy")};
  const auto predict = [&](const char* name, const char* cross) {
    return std::vector<std::string>{"predict",   "--kernel",     at(name), "--cross",   at(cross),
                                    "--targets", at("half.npy"), "--out",  at("p.npy"), "--quiet"};
  };
  const auto with = [](std::vector<std::string> words, const std::vector<std::string>& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  struct Case {
    std::vector<std::string> words;
    std::vector<std::string> named;
  };
  const Case cases[] = {
      {with(kernel, {"--limit", "1.5"}), {"--limit", "'1.5' is not a whole number"}},
      {with(kernel, {"--seed", "99999999999999999999"}), {"--seed", "beyond 2^64 - 1"}},
      {with(kernel, {"--monte-carlo", "1"}), {"--monte-carlo", "1 must be at least 2"}},
      {with(kernel, {"--weight-variance", "inf"}), {"--weight-variance", "'inf' is not a finite number"}},
      {with(kernel, {"--classes", ""}), {"--classes: its value is empty"}},
      {with(kernel, {"--data", x}), {"--data: must be given once, not 2 times"}},
      {with(kernel, {"--classes", "0"}), {"--classes", "x.npy has no classes"}},
      {with(kernel, {"--reduce", "true-class", "--labels", at("half.npy")}), {"--labels", "half.npy", "0.5"}},
      {{"kernel", "--model", "dense(1)", "--data", x, "--out", at(".npy")}, {"a name that ends in .npy"}},
      {{"kernel", "--model", "dense(1)", "--data", at("large.npy"), "--out", at("o.npy"), "--quiet"},
       {"example 3", "large.npy", "1e+200", "f32"}},
      {{"kernel", "--model", "dense(1)", "--data", at("tiny.npy"), "--out", at("o.npy"), "--quiet"},
       {"--dtype f32: ", "example 3", "tiny.npy", "1e-300", "too small", "f64 holds it"}},
      {{"init", "--model", "dense(1)", "--input", "3", "--out", at("w.txt")}, {"ends in .npz"}},
      {{"spectrum", at("k.npy"), "--labels", at("nan.npy")}, {"--labels", "nan.npy holds nan"}},
      {{"spectrum", at("k.npy"), "--top", "6"}, {"--top: 6 must be at most", "5"}},
      {{"spectrum", at("skew.npy")}, {"skew.npy: the kernel must be symmetric", "(1, 3) = 0.5"}},
      {predict("skew.npy", "c.npy"), {"must be symmetric", "(1, 3) = 0.5"}},
      {predict("k.npy", "none.npy"), {"--cross", "[0, 5]", "expected [m, 5] with m > 0"}},
      {predict("k.npy", "cross.npy"), {"--cross", "cross.npy holds nan in row 0, column 2"}},
      {predict("indefinite.npy", "c.npy"), {"not positive definite", "--ridge 5 would do"}},
      {with(predict("k.npy", "c.npy"), {"--steps", "3.5"}), {"--steps", "'3.5' is not a whole number"}},
      {{"predict", "--model", "dense(1)", "--data", "moons:n=20", "--train", "10", "--memory", "10", "--out",
        at("p.npy"), "--quiet"},
       {"budget (10 bytes)", "the least that would do"}},
  };
  for (const Case& one : cases) {
    const Outcome outcome = run(one.words);
    std::string line;
    for (const std::string& word : one.words) line += word + " ";
    EXPECT_NE(outcome.code, kDone) << line;
    for (const std::string& name : one.named) {
      EXPECT_NE(outcome.err.find(name), std::string::npos) << line << outcome.err;
    }
  }
}

TEST_F(Command, DoctorTellsTheMachine) {
  const Outcome outcome = run({"doctor", "--json", "--threads", "1"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_GT(json["rates"]["fma_f32_flop_per_second"].get<double>(), 1e8);
  EXPECT_GT(json["memory_bytes"].get<double>(), 1e8);
  EXPECT_FALSE(json["instruction_set"].get<std::string>().empty());
  EXPECT_EQ(json["blis_kernels"].get<std::string>().empty(), false);
  EXPECT_FALSE(json["data_sets"].empty());
}

TEST_F(Command, Bf16KernelsCarryTheirErrorOrAreRefused) {
  const std::string x = array("x.npy", Shape{9, 40}, 1);
  const std::vector<std::string> words = {"kernel",   "--model", "dense(30) relu dense(1)",
                                          "--data",   x,         "--reduce",
                                          "output:0", "--out",   at("k.npy"),
                                          "--dtype",  "bf16"};
  const Outcome outcome = run(words);
  if (bf16_kernels() == nullptr) {
    EXPECT_EQ(outcome.code, kFailed);
    EXPECT_NE(outcome.err.find("AVX512_BF16"), std::string::npos) << outcome.err;
    GTEST_SKIP() << "no bfloat16 products on this processor: refused, as it should be";
  }
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const auto json = nlohmann::json::parse(read_text(at("k.json")));
  EXPECT_EQ(json["dtype"], "bf16");
  EXPECT_EQ(json["measured_error"]["against"], "f32");
  EXPECT_EQ(json["measured_error"]["entries"], 81);
  EXPECT_GT(json["measured_error"]["worst"].get<double>(), 0);
  EXPECT_LT(json["measured_error"]["worst"].get<double>(), json["relative_entry_error"].get<double>());
  EXPECT_EQ(read_npy(at("k.npy")).type, NpyType::F4);
}

TEST_F(Command, NoDescriptionOfAnEarlierResultStandsBesideANewOne) {
  const std::string x = array("x.npy", Shape{6, 3}, 1);
  const auto kernel = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"kernel", "--model", "dense(2)", "--data", x, "--quiet", "--reduce",
                               "trace-sum", "--out", at("k.npy")});
    return run(more);
  };
  ASSERT_EQ(kernel({"--monte-carlo", "3", "--dtype", "f64"}).code, kDone);
  EXPECT_EQ(names(), (std::vector<std::string>{"k.error.npy", "k.json", "k.npy", "x.npy"}));
  ASSERT_EQ(kernel({"--per-parameter"}).code, kDone);
  EXPECT_EQ(names(), (std::vector<std::string>{"k.json", "k.npy", "k.per-parameter.npz", "x.npy"}));
  ASSERT_EQ(kernel({"--preview"}).code, kDone);
  EXPECT_EQ(names(), (std::vector<std::string>{"k.diagonal.npy", "k.json", "k.npy", "x.npy"}));
  ASSERT_EQ(kernel({"--preview", "--dtype", "f64"}).code, kDone);
  EXPECT_TRUE(fs::exists(at("k.diagonal.npy")));
  ASSERT_EQ(kernel({"--diagonal"}).code, kDone);
  EXPECT_EQ(names(), (std::vector<std::string>{"k.json", "k.npy", "x.npy"}));
  const std::string before = read_text(at("k.npy")) + read_text(at("k.json"));
  EXPECT_EQ(kernel({"--memory", "100"}).code, kFailed);
  EXPECT_EQ(before, read_text(at("k.npy")) + read_text(at("k.json"))) << "what fails leaves the old result";
  // One of the user's own that is called like those of the program.
  std::ofstream(at("k.variance.npy")) << "mine";
  EXPECT_EQ(kernel({}).code, kWrongUsage);
  EXPECT_EQ(read_text(at("k.variance.npy")), "mine");
}

TEST_F(Command, AJsonThatCannotBeWrittenIsToldBeforeTheWork) {
  const std::string x = array("x.npy", Shape{6, 3}, 1);
  fs::create_directories(at("k.json"));
  for (const auto& kind : std::vector<std::vector<std::string>>{
           {}, {"--diagonal"}, {"--infinite"}, {"--approximate", "16"}, {"--monte-carlo", "2"}}) {
    std::vector<std::string> words = {"kernel", "--model", "dense(1)", "--data",
                                      x,        "--quiet", "--out",    at("k.npy")};
    words.insert(words.end(), kind.begin(), kind.end());
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.code, kFailed);
    EXPECT_NE(outcome.err.find("k.json: is a folder"), std::string::npos) << outcome.err;
    EXPECT_EQ(names(), (std::vector<std::string>{"k.json", "x.npy"}));
  }
}

TEST_F(Command, NumbersThatF32CannotHoldAreRefused) {
  Tensor<double> values(Shape{5, 4});
  for (std::size_t i = 0; i < values.size(); ++i) values.data()[i] = (i % 3 == 0 ? -2e19 : 2.1e19);
  write_npy<double>(at("x.npy"), values.view());
  const auto kernel = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"kernel", "--model", "dense(4) relu dense(1)", "--data", at("x.npy"),
                               "--quiet", "--out", at("k.npy")});
    return run(more);
  };
  for (const auto& kind : std::vector<std::vector<std::string>>{
           {}, {"--preview"}, {"--diagonal"}, {"--approximate", "16"}, {"--per-parameter"}}) {
    const Outcome outcome = kernel(kind);
    EXPECT_EQ(outcome.code, kFailed) << (kind.empty() ? "" : kind[0]);
    EXPECT_EQ(names(), std::vector<std::string>{"x.npy"}) << (kind.empty() ? "" : kind[0]) << outcome.err;
    std::vector<std::string> wide = kind;
    wide.insert(wide.end(), {"--dtype", "f64"});
    EXPECT_EQ(kernel(wide).code, kDone);
    for (const std::string& name : names()) {
      if (name != "x.npy") fs::remove(at(name));
    }
  }
}

TEST_F(Command, TrueClassOfOutputsBeyondTheNumbersIsRefusedByEveryKind) {
  Tensor<double> values(Shape{5, 4});
  for (std::size_t i = 0; i < values.size(); ++i) values.data()[i] = (i % 3 == 0 ? -3e38 : 3.1e38);
  write_npy<double>(at("x.npy"), values.view());
  write_npy(at("y.npy"), std::vector<std::int32_t>{0, 1, 0, 1, 0});
  for (const char* kind : {"--no-preview", "--diagonal", "--per-parameter"}) {
    const Outcome outcome =
        run({"kernel", "--model", "dense(8) relu dense(2)", "--data", at("x.npy"), "--labels", at("y.npy"),
             "--reduce", "true-class", "--quiet", "--out", at("k.npy"), kind});
    EXPECT_EQ(outcome.code, kFailed) << kind;
    EXPECT_EQ(names(), (std::vector<std::string>{"x.npy", "y.npy"})) << kind;
  }
}

TEST_F(Command, WeightsAreCountedBeforeTheyAreDrawn) {
  const std::string x = array("x.npy", Shape{6, 3}, 1);
  const std::vector<std::vector<std::string>> verbs = {
      {"kernel", "--out", at("k.npy")},
      {"kernel", "--diagonal", "--out", at("k.npy")},
      {"kernel", "--approximate", "16", "--out", at("k.npy")},
      {"kernel", "--monte-carlo", "2", "--out", at("k.npy")},
      {"spectrum", "--matrix-free"}};
  for (std::vector<std::string> words : verbs) {
    // Terabytes: what draws them first does not come back.
    words.insert(words.end(), {"--data", x, "--model", "dense(1000000) dense(1000000) dense(1)", "--memory",
                               "50MB", "--quiet"});
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.code, kFailed);
    EXPECT_NE(outcome.err.find("the least that would do is more than 4000024000004 bytes"), std::string::npos)
        << outcome.err;
  }
}

/// f(x) = W x + b by hand: K_kl(x, x') = delta_kl (x . x' + 1). The contract call of other tools, word for
/// word.
TEST_F(Command, KernelContract) {
  const std::string x = array("x.npy", Shape{7, 5}, 1);
  const std::string model = "dense(3)";
  ASSERT_EQ(
      run({"init", "--model", model, "--input", "5", "--seed", "7", "--out", at("w.npz"), "--dtype", "f64"})
          .code,
      kDone);
  const Outcome outcome =
      run({"kernel", "--model", model, "--data", x, "--weights", at("w.npz"), "--dtype", "f64",
           "--parameterization", "standard", "--reduce", "full", "--out", at("k.npy")});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const NpyArray stored = read_npy(at("k.npy"));
  EXPECT_EQ(stored.type, NpyType::F8);
  EXPECT_EQ(stored.shape, (std::vector<std::size_t>{7, 7, 3, 3}));
  const Tensor<double> kernel = stored.to_tensor<double>();
  const Tensor<double> inputs = read_npy(x).to_tensor<double>();
  for (std::size_t i = 0; i < 7; ++i) {
    for (std::size_t j = 0; j < 7; ++j) {
      double expected = 1;
      for (std::size_t d = 0; d < 5; ++d) expected += inputs(i, d) * inputs(j, d);
      for (std::size_t k = 0; k < 3; ++k) {
        for (std::size_t l = 0; l < 3; ++l) {
          EXPECT_LE(std::abs(kernel(i, j, k, l) - (k == l ? expected : 0)), 1e-13 * 20);
        }
      }
    }
  }
  const auto json = nlohmann::json::parse(read_text(at("k.json")));
  EXPECT_EQ(json["reduction"], "full");
  EXPECT_EQ(json["dtype"], "f64");
  EXPECT_EQ(json["parameterization"], "standard");
  EXPECT_EQ(json["shape"], (std::vector<std::size_t>{7, 7, 3, 3}));
  EXPECT_EQ(json["weights"]["crc32"].get<std::string>().size(), 8U);
  EXPECT_EQ(json["data"]["standardize"], "none");
  for (const char* key : {"version", "command", "model", "input_shape", "threads", "memory_budget_bytes",
                          "instruction_set", "blis_kernels", "seconds", "relative_entry_error"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
}

/// Two linear layers by hand: the covariance is x . x' / 5, and each layer adds one such term to the tangent
/// kernel.
TEST_F(Command, KernelAtInfiniteWidth) {
  const std::string x = array("x.npy", Shape{7, 5}, 1);
  const std::string versus = array("v.npy", Shape{3, 5}, 2);
  const std::vector<std::string> base = {"kernel", "--infinite", "--model", "dense(8) dense(1)", "--data",
                                         x,        "--dtype",    "f64",     "--weight-variance", "1",
                                         "--out",  at("k.npy")};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return run(more);
  };
  const Tensor<double> left = read_npy(x).to_tensor<double>();
  const Tensor<double> right = read_npy(versus).to_tensor<double>();
  const auto expect = [&](const Tensor<double>& other, double factor) {
    const Tensor<double> kernel = read_npy(at("k.npy")).to_tensor<double>();
    ASSERT_EQ(kernel.shape(), (Shape{7, other.shape()[0]}));
    for (std::size_t i = 0; i < 7; ++i) {
      for (std::size_t j = 0; j < other.shape()[0]; ++j) {
        double expected = 0;
        for (std::size_t d = 0; d < 5; ++d) expected += factor * left(i, d) * other(j, d) / 5;
        EXPECT_LE(std::abs(kernel(i, j) - expected), 1e-14 * 20);
      }
    }
  };
  Outcome outcome = with({});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  expect(left, 2);
  outcome = with({"--get", "nngp", "--versus", versus});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  expect(right, 1);
  const auto json = nlohmann::json::parse(read_text(at("k.json")));
  EXPECT_EQ(json["infinite"], true);
  EXPECT_EQ(json["get"], "nngp");
  EXPECT_EQ(json["parameterization"], "ntk");
  EXPECT_EQ(json["relative_entry_error"], 1e-10);
  EXPECT_EQ(with({"--get", "both"}).code, kWrongUsage);
  // Networks in its place are offered where there is no limit, not where numbers are out of range.
  const auto refusal = [&](const std::string& model) {
    const Outcome refused =
        run({"kernel", "--infinite", "--model", model, "--data", x, "--out", at("refused.npy")});
    EXPECT_EQ(refused.code, kWrongUsage) << model;
    EXPECT_FALSE(fs::exists(at("refused.npy")));
    return refused.err;
  };
  EXPECT_NE(refusal("dense(4) softmax dense(1)").find("--monte-carlo S"), std::string::npos);
  EXPECT_EQ(refusal("dense(4,sigma_w=1e30) relu dense(1)"),
            "gradgram kernel: --infinite: layer 0 'dense(4,sigma_w=1e+30)': sigma_w: found 1e+30, expected "
            "1e-15 to 1e+15\n");
  EXPECT_EQ(with({"--diagonal"}).code, kWrongUsage);
  EXPECT_EQ(with({"--reduce", "full"}).code, kWrongUsage);
}

TEST_F(Command, KernelVersusDiagonalAndPerParameterAgreeWithTheWhole) {
  const std::string x = array("x.npy", Shape{6, 2, 5, 5}, 1);
  const std::string model = "conv(3,3) relu gap dense(2)";
  const std::vector<std::string> base = {"kernel",   "--model",    model,     "--data", x,
                                         "--reduce", "trace-mean", "--dtype", "f64",    "--quiet"};
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments = base;
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  };
  const Outcome whole = with({"--out", at("k.npy"), "--per-parameter", "--json"});
  ASSERT_EQ(whole.code, kDone) << whole.err;
  EXPECT_EQ(whole.err, "");
  EXPECT_EQ(nlohmann::json::parse(whole.out)["n"], 6);
  ASSERT_EQ(with({"--out", at("v.npy"), "--versus", x}).code, kDone);
  ASSERT_EQ(with({"--out", at("d.npy"), "--diagonal"}).code, kDone);
  const Tensor<double> kernel = read_npy(at("k.npy")).to_tensor<double>();
  const Tensor<double> versus = read_npy(at("v.npy")).to_tensor<double>();
  const Tensor<double> diagonal = read_npy(at("d.npy")).to_tensor<double>();
  ASSERT_EQ(kernel.shape(), (Shape{6, 6}));
  ASSERT_EQ(versus.shape(), (Shape{6, 6}));
  ASSERT_EQ(diagonal.shape(), Shape{6});
  const auto parts = read_npz(at("k.per-parameter.npz"));
  EXPECT_EQ(parts.size(), 4U);
  EXPECT_TRUE(parts.contains("0.weight"));
  Tensor<double> sum(Shape{6, 6});
  for (const auto& [name, part] : parts) {
    const Tensor<double> values = part.to_tensor<double>();
    for (std::size_t i = 0; i < 36; ++i) sum.span()[i] += values.span()[i];
  }
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_LE(std::abs(diagonal(i) - kernel(i, i)), 1e-12 * kernel(i, i));
    for (std::size_t j = 0; j < 6; ++j) {
      const double scale = std::sqrt(kernel(i, i) * kernel(j, j));
      EXPECT_EQ(kernel(i, j), kernel(j, i));
      EXPECT_LE(std::abs(versus(i, j) - kernel(i, j)), 1e-12 * scale);
      EXPECT_LE(std::abs(sum(i, j) - kernel(i, j)), 1e-12 * scale);
    }
  }
}

TEST_F(Command, OneOutputNeedsNoReductionAndSaysSo) {
  const std::string x = array("x.npy", Shape{6, 4}, 1);
  const Outcome outcome =
      run({"kernel", "--model", "dense(8) relu dense(1)", "--data", x, "--out", at("k.npy")});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_NE(outcome.out.find("one output"), std::string::npos) << outcome.out;
  EXPECT_EQ(read_npy(at("k.npy")).type, NpyType::F4);
}

TEST_F(Command, AStopEndsASpectrumOfManyProbes) {
  const std::string x = array("x.npy", Shape{5, 4}, 1);
  std::stop_source stop;
  const std::jthread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    stop.request_stop();
  });
  // Minutes of work on a kernel of five rows that is in memory.
  const Outcome outcome = run({"spectrum", "--matrix-free", "--model", "dense(8) relu dense(1)", "--data", x,
                               "--estimate", "density", "--probes", "10000000", "--memory", "4GiB"},
                              stop.get_token());
  EXPECT_EQ(outcome.code, kFailed);
  EXPECT_NE(outcome.err.find("stopped"), std::string::npos) << outcome.err;
}

TEST_F(Command, AStopEndsTheWorkAndWritesNothing) {
  const std::string x = array("x.npy", Shape{40, 6}, 1);
  std::stop_source stop;
  stop.request_stop();
  const Outcome outcome = run(
      {"kernel", "--model", "dense(8) relu dense(1)", "--data", x, "--out", at("k.npy")}, stop.get_token());
  EXPECT_EQ(outcome.code, kFailed);
  EXPECT_NE(outcome.err.find("stopped"), std::string::npos) << outcome.err;
  const Outcome study = run({"learnability", "--model", "dense(8) relu dense(1)", "--data", "moons:n=40",
                             "--out", at("run"), "--epochs", "2"},
                            stop.get_token());
  EXPECT_EQ(study.code, kFailed);
  EXPECT_EQ(names(), std::vector<std::string>{"x.npy"});
}

/// Runs the program and stops it once the journal holds so many records beyond the facts.
Outcome run_until_tiles(std::uintmax_t tiles, const std::vector<std::string>& words,
                        const fs::path& journal) {
  std::stop_source stop;
  std::jthread watcher([&](const std::stop_token& ended) {
    std::uintmax_t first = 0;
    while (!ended.stop_requested() && !stop.stop_requested()) {
      std::error_code error;
      const auto size = fs::file_size(journal, error);
      if (!error && size > 100 && first == 0) first = size;
      if (!error && first != 0 && size >= first + 16 * tiles) stop.request_stop();
    }
  });
  return run(words, stop.get_token());
}

TEST_F(Command, AStoppedKernelGoesOnWithTheSameCommand) {
  const std::string x = array("x.npy", Shape{1500, 40}, 1);
  const auto command = [&](const std::string& out, const std::string& seed) {
    return std::vector<std::string>{"kernel",  "--model", "dense(1024) relu dense(1024) relu dense(1)",
                                    "--data",  x,         "--out",
                                    at(out),   "--seed",  seed,
                                    "--quiet", "--json"};
  };
  const Outcome stopped = run_until_tiles(2, command("k.npy", "1"), at("k.npy.journal"));
  ASSERT_EQ(stopped.code, kFailed) << stopped.err;
  EXPECT_NE(stopped.err.find("goes on from there"), std::string::npos) << stopped.err;
  EXPECT_EQ(names(), (std::vector<std::string>{"k.npy.journal", "k.npy.partial", "x.npy"}));

  const Outcome other = run(command("k.npy", "2"));
  EXPECT_EQ(other.code, kWrongUsage);
  EXPECT_NE(other.err.find("weights (checksum) was "), std::string::npos) << other.err;

  // Stopped at once, it is still reading what is there.
  std::stop_source stop;
  stop.request_stop();
  const Outcome verifying = run(command("k.npy", "1"), stop.get_token());
  EXPECT_EQ(verifying.code, kFailed);
  EXPECT_NE(verifying.err.find("was verified, of which nothing is lost; the same command goes on from there"),
            std::string::npos)
      << verifying.err;

  const Outcome rest = run(command("k.npy", "1"));
  ASSERT_EQ(rest.code, kDone) << rest.err;
  const auto json = nlohmann::json::parse(rest.out);
  EXPECT_GE(json["tiles_of_earlier_runs"].get<int>(), 1);
  EXPECT_LT(json["tiles_of_earlier_runs"].get<int>(), json["tiles"].get<int>());
  ASSERT_EQ(run(command("whole.npy", "1")).code, kDone);
  EXPECT_TRUE(read_text(at("k.npy")) == read_text(at("whole.npy")));
}

TEST_F(Command, AnUnfinishedFileIsToldToOthers) {
  const std::string x = array("x.npy", Shape{6, 3}, 1);
  const std::vector<std::string> begin = {"kernel", "--model", "dense(1)", "--data",
                                          x,        "--quiet", "--out",    at("k.npy")};
  const auto with = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words = begin;
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  };
  for (const std::vector<std::string>& mode : std::vector<std::vector<std::string>>{
           {"--diagonal"}, {"--per-parameter"}, {"--monte-carlo", "2"}, {"--approximate", "16"}}) {
    std::ofstream(at("k.npy.partial")) << "unfinished";
    std::ofstream(at("k.npy.journal")) << "journal";
    const Outcome refused = with(mode);
    EXPECT_EQ(refused.code, kWrongUsage) << mode[0];
    EXPECT_NE(refused.err.find("k.npy.partial"), std::string::npos) << refused.err;
    EXPECT_NE(refused.err.find("--restart"), std::string::npos) << refused.err;
    EXPECT_EQ(read_text(at("k.npy.partial")), "unfinished");
    std::vector<std::string> again = mode;
    again.emplace_back("--restart");
    EXPECT_EQ(with(again).code, kDone) << mode[0];
    EXPECT_TRUE(fs::exists(at("k.npy")));
    EXPECT_FALSE(fs::exists(at("k.npy.partial"))) << mode[0];
    EXPECT_FALSE(fs::exists(at("k.npy.journal"))) << mode[0];
  }
}

TEST_F(Command, AnInfiniteKernelGoesOnWithTheSameCommand) {
  const std::string x = array("x.npy", Shape{60, 2, 9, 9}, 1);
  const auto command = [&](const std::string& out) {
    return std::vector<std::string>{
        "kernel", "--infinite", "--model", "conv(1,3) relu conv(1,3) relu gap dense(1)", "--data", x, "--out",
        at(out),  "--json",     "--quiet"};
  };
  ASSERT_EQ(run(command("whole.npy")).code, kDone);
  const Outcome stopped = run_until_tiles(1, command("k.npy"), at("k.npy.journal"));
  // Three tiles: the stop may come too late.
  if (stopped.code != kDone) {
    EXPECT_NE(stopped.err.find("goes on from there"), std::string::npos) << stopped.err;
    const Outcome rest = run(command("k.npy"));
    ASSERT_EQ(rest.code, kDone) << rest.err;
    EXPECT_GE(nlohmann::json::parse(rest.out)["tiles_of_earlier_runs"].get<int>(), 1);
  }
  EXPECT_TRUE(read_text(at("k.npy")) == read_text(at("whole.npy")));
}

TEST_F(Command, PackedKernelsAreReadLikeSquareOnes) {
  const std::string x = array("x.npy", Shape{30, 4}, 1);
  for (const bool infinite : {false, true}) {
    const auto kernel = [&](const std::string& out, std::vector<std::string> more) {
      std::vector<std::string> words = {
          "kernel", "--model", "dense(6) relu dense(1)", "--data", x, "--out", at(out), "--dtype", "f64"};
      words.insert(words.end(), more.begin(), more.end());
      if (infinite) words.push_back("--infinite");
      return run(words);
    };
    ASSERT_EQ(kernel("square.npy", {}).code, kDone);
    const Outcome packed = kernel("packed.npy", {"--packed"});
    ASSERT_EQ(packed.code, kDone) << packed.err;
    const NpyArray square_array = read_npy(at("square.npy"));
    const NpyArray packed_array = read_npy(at("packed.npy"));
    ASSERT_EQ(packed_array.shape, std::vector<std::size_t>{30 * 31 / 2});
    std::size_t entry = 0;
    for (std::size_t i = 0; i < 30; ++i) {
      for (std::size_t j = 0; j <= i; ++j) EXPECT_EQ(packed_array.at(entry++), square_array.at(i * 30 + j));
    }
    EXPECT_EQ(nlohmann::json::parse(read_text(at("packed.json")))["packed"], true);
    EXPECT_EQ(nlohmann::json::parse(read_text(at("square.json")))["packed"], false);
    const auto read = [&](const std::string& name) {
      const Outcome outcome = run({"spectrum", at(name), "--json"});
      EXPECT_EQ(outcome.code, kDone) << outcome.err;
      return nlohmann::json::parse(outcome.out);
    };
    const auto one = read("square.npy");
    const auto other = read("packed.npy");
    EXPECT_EQ(one["eigenvalues"], other["eigenvalues"]);
    EXPECT_EQ(one["relative_entry_error"], other["relative_entry_error"]);
    // Not a matrix with two sides: refused.
    EXPECT_EQ(kernel("r.npy", {"--packed", "--versus", x}).code, kWrongUsage);
    EXPECT_FALSE(fs::exists(at("r.npy")));
  }
  EXPECT_EQ(
      run({"kernel", "--model", "dense(1)", "--data", x, "--out", at("d.npy"), "--diagonal", "--packed"})
          .code,
      kWrongUsage);
  // A row of numbers might be a diagonal: without the file beside it is not guessed at.
  fs::remove(at("packed.json"));
  const Outcome alone = run({"spectrum", at("packed.npy")});
  EXPECT_EQ(alone.code, kWrongUsage);
  EXPECT_NE(alone.err.find("packed.json"), std::string::npos) << alone.err;
  array("wrong.npy", Shape{5}, 2);
  std::ofstream(at("wrong.json")) << R"({"packed": true})";
  EXPECT_EQ(run({"spectrum", at("wrong.npy")}).code, kWrongUsage);
}

TEST_F(Command, ThePreviewIsTheDiagonal) {
  const std::string x = array("x.npy", Shape{12, 4}, 1);
  const auto kernel = [&](std::vector<std::string> more) {
    std::vector<std::string> words = {
        "kernel",   "--model", "dense(6) relu dense(2)", "--data", x, "--out", at("k.npy"), "--dtype", "f64",
        "--reduce", "full"};
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  };
  // Short work: only when asked for.
  ASSERT_EQ(kernel({}).code, kDone);
  EXPECT_FALSE(fs::exists(at("k.diagonal.npy")));
  EXPECT_FALSE(nlohmann::json::parse(read_text(at("k.json"))).contains("preview"));
  const Outcome text = kernel({"--preview"});
  ASSERT_EQ(text.code, kDone) << text.err;
  EXPECT_LT(text.out.find("largest eigenvalue"), text.out.find("Kernel of"));
  const Outcome outcome = kernel({"--preview", "--json"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const auto preview = nlohmann::json::parse(outcome.out)["preview"];
  const Tensor<double> whole = read_npy(at("k.npy")).to_tensor<double>();
  const NpyArray diagonal = read_npy(at("k.diagonal.npy"));
  ASSERT_EQ(diagonal.shape, (std::vector<std::size_t>{12, 2, 2}));
  double trace = 0;
  double largest = 0;
  for (std::size_t i = 0; i < 12; ++i) {
    for (std::size_t k = 0; k < 2; ++k) {
      const double entry = whole.span()[((i * 12 + i) * 2 + k) * 2 + k];
      trace += entry;
      largest = std::max(largest, entry);
      EXPECT_LE(std::abs(diagonal.at((i * 2 + k) * 2 + k) - entry), 1e-12 * entry);
    }
  }
  EXPECT_LE(std::abs(preview["trace"].get<double>() - trace), 1e-12 * trace);
  EXPECT_LE(std::abs(preview["mean"].get<double>() - trace / 24), 1e-12 * trace);
  EXPECT_LE(std::abs(preview["largest"].get<double>() - largest), 1e-12 * largest);
  EXPECT_LE(preview["smallest"].get<double>(), preview["mean"].get<double>());
  EXPECT_EQ(preview["file"], "k.diagonal.npy");
  EXPECT_EQ(kernel({"--preview", "--versus", x}).code, kWrongUsage);
  EXPECT_EQ(kernel({"--preview", "--no-preview"}).code, kWrongUsage);
}

/// K = u u^T + 3 v v^T with orthonormal u, v: eigenvalues 3, 1, 0, 0.
TEST_F(Command, SpectrumOfAKnownMatrix) {
  const double u[4] = {0.5, 0.5, 0.5, 0.5};
  const double v[4] = {0.5, -0.5, 0.5, -0.5};
  Tensor<double> kernel(Shape{4, 4});
  for (std::size_t i = 0; i < 4; ++i) {
    for (std::size_t j = 0; j < 4; ++j) kernel(i, j) = u[i] * u[j] + 3 * v[i] * v[j];
  }
  write_npy<double>(at("k.npy"), kernel.view());
  const std::vector<std::int32_t> labels = {1, 0, 1, 0};
  write_npy(at("y.npy"), std::span<const std::int32_t>(labels));
  const Outcome outcome =
      run({"spectrum", at("k.npy"), "--labels", at("y.npy"), "--out", at("out"), "--json"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_LE(std::abs(json["lambda_max"].get<double>() - 3), 1e-12);
  EXPECT_LE(std::abs(json["trace"].get<double>() - 4), 1e-12);
  EXPECT_EQ(json["resolved"], 2);
  EXPECT_TRUE(json["condition"].is_null());
  EXPECT_LE(std::abs(json["label_energy"][0].get<double>() - 1), 1e-12);
  EXPECT_LE(std::abs(json["effective_rank"].get<double>() - 1.6), 1e-12);
  const std::string csv = read_text(at("out/spectrum.csv"));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 5);
  const Outcome text = run({"spectrum", at("k.npy"), "--labels", at("y.npy")});
  EXPECT_NE(text.out.find("not resolved"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("two classes, 0 as -1 and 1 as +1"), std::string::npos) << text.out;
  const Outcome top = run({"spectrum", at("k.npy"), "--top", "1", "--json"});
  ASSERT_EQ(top.code, kDone) << top.err;
  EXPECT_EQ(nlohmann::json::parse(top.out)["eigenvalues"].size(), 1U);
}

TEST_F(Command, SpectraOfWhatIsNoKernelAreToldAsSuch) {
  Tensor<double> k(Shape{3, 3});
  const auto told = [&] {
    write_npy<double>(at("k.npy"), k.view());
    const Outcome outcome = run({"spectrum", at("k.npy")});
    EXPECT_EQ(outcome.code, kDone) << outcome.err;
    EXPECT_EQ(outcome.out.find("nan"), std::string::npos) << outcome.out;
    return outcome.out;
  };
  EXPECT_NE(told().find("not resolved: 0 lies within the error bar 0"), std::string::npos);
  for (const double size : {1.0, -1.0}) {
    for (std::size_t i = 0; i < 3; ++i) k(i, i) = i == 2 ? -2 : size;
    const std::string text = told();
    EXPECT_NE(text.find("-2.00, negative beyond the error bar"), std::string::npos) << text;
    EXPECT_EQ(text.find("lies within"), std::string::npos) << text;
    EXPECT_EQ(text.find("at least"), std::string::npos) << text;
  }
}

TEST_F(Command, SpectrumTakesTheErrorFromTheFileBeside) {
  Tensor<double> kernel(Shape{3, 3});
  for (std::size_t i = 0; i < 3; ++i) kernel(i, i) = 1;
  write_npy<double>(at("k.npy"), kernel.view());
  std::ofstream(at("k.json")) << R"({"relative_entry_error": 0.01})";
  const auto json = nlohmann::json::parse(run({"spectrum", at("k.npy"), "--json"}).out);
  EXPECT_EQ(json["relative_entry_error"], 0.01);
  EXPECT_GE(json["error_bar"].get<double>(), 0.01);
  std::ofstream(at("k.json")) << R"({"relative_entry_error": 7})";
  EXPECT_EQ(run({"spectrum", at("k.npy")}).code, kWrongUsage);
  std::ofstream(at("k.json")) << "{";
  EXPECT_EQ(run({"spectrum", at("k.npy")}).code, kWrongUsage);
}

TEST_F(Command, SpectrumTellsTheStandardErrorOfAnEstimate) {
  const std::string x = array("x.npy", Shape{9, 4}, 1);
  ASSERT_EQ(run({"kernel", "--model", "dense(8) relu dense(1)", "--data", x, "--monte-carlo", "4", "--out",
                 at("k.npy"), "--quiet"})
                .code,
            kDone);
  const auto made = nlohmann::json::parse(read_text(at("k.json")));
  const double relative = made["standard_error"]["relative"].get<double>();
  ASSERT_GT(relative, 1e-3);
  EXPECT_EQ(made["relative_entry_error"], 2e-6);
  const Outcome outcome = run({"spectrum", at("k.npy"), "--json"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["standard_error"]["relative"], relative);
  EXPECT_EQ(json["estimate"], "a Monte Carlo estimate, the mean of 4 networks");
  const double moved = relative * json["frobenius"].get<double>();
  EXPECT_GE(json["error_bar"].get<double>(), moved);
  EXPECT_LE(json["error_bar"].get<double>(), 1.01 * moved);
  const Outcome text = run({"spectrum", at("k.npy")});
  EXPECT_NE(text.out.find("a Monte Carlo estimate"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("standard error"), std::string::npos) << text.out;
  std::ofstream(at("k.json")) << R"({"standard_error": {"relative": -1}})";
  EXPECT_EQ(run({"spectrum", at("k.npy")}).code, kWrongUsage);
}

TEST_F(Command, SpectrumKeepsToItsMemory) {
  const std::string x = array("x.npy", Shape{40, 4}, 1);
  ASSERT_EQ(run({"kernel", "--model", "dense(1)", "--data", x, "--out", at("k.npy"), "--quiet"}).code, kDone);
  // 6,400 bytes of f32 and 12,800 of f64, then LAPACK's copy.
  for (const char* memory : {"19KB", "21KB"}) {
    const Outcome outcome = run({"spectrum", at("k.npy"), "--memory", memory});
    EXPECT_EQ(outcome.code, kFailed);
    EXPECT_NE(outcome.err.find("budget"), std::string::npos) << outcome.err;
  }
  EXPECT_EQ(run({"spectrum", at("k.npy"), "--memory", "40KB"}).code, kDone);
}

TEST_F(Command, SpectrumWithoutTheMatrixAgreesWithThatOfTheMatrix) {
  const std::string x = array("x.npy", Shape{61, 5}, 3);
  const std::vector<std::string> network = {
      "--model", "dense(40) tanh dense(2)", "--data", x, "--dtype", "f64", "--reduce", "trace-mean",
      "--quiet"};
  const auto with = [&](std::vector<std::string> words, const std::vector<std::string>& more) {
    words.insert(words.end(), network.begin(), network.end());
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  };
  ASSERT_EQ(with({"kernel"}, {"--out", at("k.npy")}).code, kDone);
  const auto truth = nlohmann::json::parse(run({"spectrum", at("k.npy"), "--json"}).out);
  const Outcome outcome = with({"spectrum", "--matrix-free"}, {"--top", "4", "--json", "--out", at("free")});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["n"], 61);
  EXPECT_EQ(json["matrix_free"], true);
  EXPECT_EQ(json["reduction"], "trace-mean");
  ASSERT_EQ(json["eigenvalues"].size(), 4U);
  const double largest = truth["lambda_max"].get<double>();
  for (std::size_t i = 0; i < 4; ++i) {
    const auto value = json["eigenvalues"][i].get<double>();
    EXPECT_NEAR(value, truth["eigenvalues"][i].get<double>(), 1e-9 * largest) << i;
    EXPECT_FALSE(std::abs(value - truth["eigenvalues"][i + 1].get<double>()) <= 1e-9 * largest) << i;
  }
  for (const char* what : {"trace", "frobenius"}) {
    const double error = json[what]["standard_error"].get<double>();
    EXPECT_NEAR(json[what]["value"].get<double>(), truth[what].get<double>(),
                5 * error + 1e-9 * truth[what].get<double>())
        << what;
    EXPECT_LT(error, 0.05 * truth[what].get<double>()) << what;
  }
  for (const auto& share : json["density"]["shares"]) {
    double below = 0;
    for (const auto& value : truth["eigenvalues"]) {
      below += value.get<double>() <= share["up_to"].get<double>() ? 1.0 / 61 : 0.0;
    }
    EXPECT_NEAR(share["value"].get<double>(), below, 0.15) << share["up_to"];
  }
  // The defaults ask for more products than the kernel has rows: all there are, and no more.
  EXPECT_EQ(json["multiplied_out"], true);
  EXPECT_EQ(json["products"], 61);
  const Outcome few = with({"spectrum", "--matrix-free"},
                           {"--top", "4", "--products", "12", "--probes", "2", "--steps", "8", "--json"});
  ASSERT_EQ(few.code, kDone) << few.err;
  const auto fewer = nlohmann::json::parse(few.out);
  EXPECT_EQ(fewer["multiplied_out"], false);
  EXPECT_NE(fewer["products"], 61);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(fewer["eigenvalues"][i].get<double>(), truth["eigenvalues"][i].get<double>(), 1e-9 * largest);
  }
  EXPECT_NEAR(fewer["density"]["largest_ritz_value"].get<double>(), largest, 1e-3 * largest);
  // All products of what was asked, none of what was not.
  EXPECT_EQ(nlohmann::json::parse(
                with({"spectrum", "--matrix-free"}, {"--estimate", "moments", "--products", "12", "--json"})
                    .out)["products"],
            12);
  for (const char* file : {"summary.json", "spectrum.csv", "density.csv", "eigenvectors.npy"}) {
    EXPECT_TRUE(fs::exists(folder / "free" / file)) << file;
  }
  EXPECT_EQ(read_npy(at("free/eigenvectors.npy")).shape, (std::vector<std::size_t>{4, 61}));
  const Outcome text = with({"spectrum", "--matrix-free"}, {"--threads", "3"});
  ASSERT_EQ(text.code, kDone) << text.err;
  EXPECT_NE(text.out.find("without the matrix (61 x 61)"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("61 products K v: all there are"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("not resolved by products alone"), std::string::npos) << text.out;
}

TEST_F(Command, AZeroKernelHasASpectrumWithoutTheMatrixToo) {
  Tensor<double> zeros(Shape{30, 4});
  write_npy<double>(at("x.npy"), zeros.view());
  for (const char* what : {"top", "moments", "density", "top,moments,density"}) {
    // Inputs of zero and no biases: no gradients.
    const Outcome outcome =
        run({"spectrum", "--matrix-free", "--model", "dense(3) dense(1)", "--parameterization", "ntk",
             "--data", at("x.npy"), "--estimate", what, "--quiet", "--json"});
    ASSERT_EQ(outcome.code, kDone) << what << outcome.err;
    const auto json = nlohmann::json::parse(outcome.out);
    if (json.contains("lambda_max")) {
      EXPECT_EQ(json["lambda_max"], 0);
    }
    EXPECT_EQ(json.contains("lambda_max"), std::string(what).starts_with("top"));
  }
}

TEST_F(Command, AnApproximateKernelSaysSoEverywhere) {
  const std::string x = array("x.npy", Shape{17, 6}, 4);
  const std::vector<std::string> network = {"kernel", "--model", "dense(30) relu dense(1)",
                                            "--data", x,         "--quiet"};
  const auto with = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words = network;
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  };
  ASSERT_EQ(with({"--out", at("k.npy")}).code, kDone);
  const Outcome text = with({"--out", at("a.npy"), "--approximate", "20000"});
  ASSERT_EQ(text.code, kDone) << text.err;
  EXPECT_EQ(text.out.rfind("Approximate kernel of ", 0), 0U) << text.out;
  const auto json = nlohmann::json::parse(read_text(at("a.json")));
  EXPECT_EQ(json["approximate"]["dimension"], 20000);
  EXPECT_EQ(json["approximate"]["label"].get<std::string>().rfind("approximate: ", 0), 0U);
  EXPECT_NEAR(json["approximate"]["standard_distortion"].get<double>(), 0.01, 1e-12);
  EXPECT_NEAR(json["relative_entry_error"].get<double>(), 0.01, 1e-12);
  const Tensor<double> exact = read_npy(at("k.npy")).to_tensor<double>();
  const Tensor<double> estimate = read_npy(at("a.npy")).to_tensor<double>();
  ASSERT_EQ(estimate.shape(), exact.shape());
  double squares = 0;
  for (std::size_t i = 0; i < 17; ++i) {
    for (std::size_t j = 0; j < 17; ++j) {
      squares += std::pow(estimate(i, j) - exact(i, j), 2) / (exact(i, i) * exact(j, j));
      EXPECT_EQ(estimate(i, j), estimate(j, i));
    }
  }
  EXPECT_LE(std::sqrt(squares) / 17, 0.015);
  EXPECT_GE(std::sqrt(squares) / 17, 0.001);
  const Outcome spectrum = run({"spectrum", at("a.npy")});
  EXPECT_NE(spectrum.out.find("approximate: gradients projected"), std::string::npos) << spectrum.out;
  EXPECT_EQ(nlohmann::json::parse(run({"spectrum", at("a.npy"), "--json"}).out)["approximate"],
            json["approximate"]["label"]);
  EXPECT_FALSE(nlohmann::json::parse(run({"spectrum", at("k.npy"), "--json"}).out).contains("approximate"));
  // Another seed of the projection is another estimate; the weights are given so that the network stays.
  ASSERT_EQ(run({"init", "--model", "dense(30) relu dense(1)", "--input", "6", "--out", at("w.npz")}).code,
            kDone);
  ASSERT_EQ(
      with({"--weights", at("w.npz"), "--out", at("b.npy"), "--approximate", "20000", "--seed", "1"}).code,
      kDone);
  EXPECT_NE(read_text(at("a.npy")), read_text(at("b.npy")));
  ASSERT_EQ(
      with({"--weights", at("w.npz"), "--out", at("c.npy"), "--approximate", "20000", "--threads", "3"}).code,
      kDone);
  EXPECT_EQ(read_text(at("a.npy")), read_text(at("c.npy")));
}

TEST_F(Command, InitWritesWhatKernelReads) {
  const Outcome outcome =
      run({"init", "--model", "conv(4,3) relu flatten dense(2)", "--input", "1x5x6", "--out", at("w.npz")});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_NE(outcome.out.find("parameters"), std::string::npos);
  const auto weights = read_npz(at("w.npz"));
  EXPECT_EQ(weights.at("0.weight").shape, (std::vector<std::size_t>{4, 1, 3, 3}));
  EXPECT_EQ(weights.at("3.weight").shape, (std::vector<std::size_t>{2, 120}));
  const Outcome json =
      run({"init", "--model", "mlp:width=8,depth=2", "--data", "moons:n=20", "--out", at("m.npz"), "--json"});
  ASSERT_EQ(json.code, kDone) << json.err;
  EXPECT_EQ(nlohmann::json::parse(json.out)["outputs"], 1);
}

class Study : public Command {
 protected:
  std::vector<std::string> arguments(const std::vector<std::string>& more) const {
    std::vector<std::string> words = {"learnability",
                                      "--data",
                                      "fashion-mnist",
                                      "--classes",
                                      "sandal,boot",
                                      "--limit",
                                      "60",
                                      "--model",
                                      "conv(4,3) relu maxpool(4) flatten dense(1)",
                                      "--epochs",
                                      "3",
                                      "--batch",
                                      "16"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
};

TEST_F(Study, WritesTheWholeFolder) {
  const Outcome outcome = run(arguments({"--out", at("run"), "--score-epochs", "2", "--json"}));
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json, nlohmann::json::parse(read_text(at("run/summary.json"))));
  EXPECT_EQ(json["accuracy"].size(), 4U);
  EXPECT_EQ(json["data"]["class_names"].size(), 2U);
  for (const char* name :
       {"report.html", "scores.csv", "kernel.npy", "kernel.json", "spectrum.csv", "weights.npz",
        "weights-trained.npz", "figures/group-accuracy.dat", "figures/group-accuracy.gp"}) {
    EXPECT_TRUE(fs::exists(folder / "run" / name)) << name;
  }
  const std::string csv = read_text(at("run/scores.csv"));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 61);
  EXPECT_EQ(read_npy(at("run/kernel.npy")).shape, (std::vector<std::size_t>{60, 60}));
  const std::string page = read_text(at("run/report.html"));
  EXPECT_NE(page.find("<meta name=\"viewport\""), std::string::npos);
  EXPECT_NE(page.find("data:image/png;base64,"), std::string::npos);
  EXPECT_NE(page.find("gradgram learnability --data fashion-mnist"), std::string::npos);
  // Self-contained: nothing is loaded and nothing runs.
  for (const char* outside : {"<script", "http://", "https://", "<link", "@import", "src=\"figures"}) {
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  }
  for (const char* bad : {">nan", " nan", "\"nan"}) EXPECT_EQ(page.find(bad), std::string::npos);
  EXPECT_EQ(names(), std::vector<std::string>{"run"});

  // The kernel it wrote is the one that `gradgram kernel` computes from the weights it wrote.
  ASSERT_EQ(run({"kernel", "--data", "fashion-mnist", "--classes", "sandal,boot", "--limit", "60", "--model",
                 "conv(4,3) relu maxpool(4) flatten dense(1)", "--weights", at("run/weights.npz"), "--out",
                 at("k.npy")})
                .code,
            kDone);
  const Tensor<double> a = read_npy(at("run/kernel.npy")).to_tensor<double>();
  const Tensor<double> b = read_npy(at("k.npy")).to_tensor<double>();
  for (std::size_t i = 0; i < a.size(); ++i)
    EXPECT_LE(std::abs(a.span()[i] - b.span()[i]), 1e-5 * std::abs(b(0, 0)));
}

TEST_F(Study, ExamplesWhoseNormsAreEqualButForRounding) {
  const Outcome outcome = run({"learnability", "--data", "circle:n=40", "--model", "dense(8) relu dense(1)",
                               "--epochs", "2", "--out", at("run"), "--quiet"});
  EXPECT_EQ(outcome.code, kDone) << outcome.err;
}

TEST_F(Study, ReplacesItsOwnResultsAndNothingElse) {
  fs::create_directories(folder / "mine");
  std::ofstream(folder / "mine" / "notes.txt") << "keep me";
  const Outcome refused = run(arguments({"--out", at("mine")}));
  EXPECT_EQ(refused.code, kWrongUsage);
  EXPECT_NE(refused.err.find("--force"), std::string::npos);
  EXPECT_EQ(names(), std::vector<std::string>{"mine"});
  ASSERT_EQ(run(arguments({"--out", at("mine"), "--force", "--quiet"})).code, kDone);
  EXPECT_EQ(read_text(at("mine/notes.txt")), "keep me");
  EXPECT_TRUE(fs::exists(folder / "mine" / "report.html"));
  const Outcome again = run(arguments({"--out", at("mine"), "--quiet"}));
  EXPECT_EQ(again.code, kDone) << again.err;
  EXPECT_EQ(again.err, "");
  EXPECT_EQ(read_text(at("mine/notes.txt")), "keep me");
}

TEST_F(Study, SameBitsForAnyNumberOfThreads) {
  ASSERT_EQ(run(arguments({"--out", at("one"), "--threads", "1", "--quiet"})).code, kDone);
  ASSERT_EQ(run(arguments({"--out", at("three"), "--threads", "3", "--quiet"})).code, kDone);
  for (const char* name : {"scores.csv", "kernel.npy", "spectrum.csv"}) {
    EXPECT_TRUE(read_text(folder / "one" / name) == read_text(folder / "three" / name)) << name;
  }
}

TEST_F(Study, ExamplesThatAreNotImages) {
  const Outcome outcome =
      run({"learnability", "--data", "moons:n=50", "--model", "dense(16) relu dense(1)", "--epochs", "3",
           "--out", at("moons"), "--parameterization", "ntk", "--dtype", "f64"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  const std::string page = read_text(at("moons/report.html"));
  EXPECT_NE(page.find("examples"), std::string::npos);
  EXPECT_EQ(page.find("data:image"), std::string::npos);
  EXPECT_NE(outcome.err.find("training: "), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace gradgram::cli
