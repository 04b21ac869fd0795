#include "cli/wording.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "engine/bf16.hpp"
#include "engine/npy.hpp"
#include "engine/random.hpp"
#include "models/model.hpp"
#include "models/network.hpp"
#include "ntk/kernel_file.hpp"
#include "tests/cli/program.hpp"
#include "tests/source_root.hpp"

/// What reaches a user when something is wrong: options and files, never a name of the library.
namespace gradgram::cli {
namespace {

namespace fs = std::filesystem;

/// Words, string literals and single characters of C++ source, without comments; adjacent literals are one.
struct Token {
  enum class Kind { Word, Literal, Sign } kind = Kind::Sign;
  std::string text;
};

std::vector<Token> tokens_of(const std::string& source) {
  std::vector<Token> tokens;
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
  for (std::size_t i = 0; i < source.size();) {
    const char c = source[i];
    if (source.compare(i, 2, "//") == 0) {
      i = std::min(source.find('\n', i), source.size());
    } else if (source.compare(i, 2, "/*") == 0) {
      i = std::min(source.find("*/", i), source.size() - 2) + 2;
    } else if (c == '"' || c == '\'') {
      std::string text;
      for (++i; i < source.size() && source[i] != c; ++i) {
        if (source[i] == '\\') ++i;
        text += source[i];
      }
      ++i;
      if (c == '\'') continue;
      if (!tokens.empty() && tokens.back().kind == Token::Kind::Literal) {
        tokens.back().text += text;
      } else {
        tokens.push_back({Token::Kind::Literal, text});
      }
    } else if (is_word(c)) {
      const std::size_t begin = i;
      while (i < source.size() && is_word(source[i])) ++i;
      // A separator within a number is no quote.
      while (std::isdigit(static_cast<unsigned char>(c)) != 0 && i < source.size() &&
             (is_word(source[i]) || source[i] == '\'')) {
        ++i;
      }
      tokens.push_back({Token::Kind::Word, source.substr(begin, i - begin)});
    } else {
      if (std::isspace(static_cast<unsigned char>(c)) == 0)
        tokens.push_back({Token::Kind::Sign, std::string(1, c)});
      ++i;
    }
  }
  return tokens;
}

/// Calls `see(callee, before, token, after)` for every token, `callee` being the word in front of the
/// innermost open bracket.
template <class See>
void walk(const std::vector<Token>& tokens, const See& see) {
  std::vector<std::string> callees = {""};
  const Token none;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const Token& before = i == 0 ? none : tokens[i - 1];
    const Token& after = i + 1 == tokens.size() ? none : tokens[i + 1];
    if (tokens[i].text == "(" && tokens[i].kind == Token::Kind::Sign) {
      callees.push_back(before.kind == Token::Kind::Word ? before.text : "");
      // `MemoryAccount account("name"` is known by its type.
      if (i >= 2 && tokens[i - 2].text == "MemoryAccount") callees.back() = "MemoryAccount";
    } else if (tokens[i].text == ")" && tokens[i].kind == Token::Kind::Sign) {
      if (callees.size() > 1) callees.pop_back();
    } else {
      see(callees.back(), before, tokens[i], after);
    }
  }
}

/// A word of letters, digits, underscores and colons, and words of small letters behind it.
bool is_name(std::string_view text) {
  const std::size_t space = std::min(text.find(' '), text.size());
  return space != 0 && !text.ends_with(' ') && std::isalpha(static_cast<unsigned char>(text[0])) != 0 &&
         std::ranges::all_of(text.substr(0, space),
                             [](unsigned char c) { return std::isalnum(c) != 0 || c == '_' || c == ':'; }) &&
         std::ranges::all_of(text.substr(space),
                             [](unsigned char c) { return c == ' ' || std::islower(c) != 0; });
}

/// Every name that can stand in front of a message of the library, with a file it is in.
std::map<std::string, std::string> names_in_sources() {
  std::map<std::string, std::vector<Token>> sources;
  for (const char* layer : {"engine", "models", "datasets", "ntk"}) {
    for (const auto& entry : fs::recursive_directory_iterator(source_root() / layer)) {
      const std::string extension = entry.path().extension().string();
      if (extension != ".cpp" && extension != ".hpp") continue;
      std::ifstream stream(entry.path());
      std::stringstream text;
      text << stream.rdbuf();
      sources[entry.path().string()] = tokens_of(text.str());
    }
  }
  // Functions that are told the name of the call they throw for.
  std::set<std::string> takers = {"checked_add", "checked_multiply"};
  for (const auto& [path, tokens] : sources) {
    walk(tokens, [&](const std::string& callee, const Token& before, const Token& token, const Token& after) {
      const bool parameter = token.text == "call" || token.text == "op" || token.text == "where";
      const bool typed =
          before.text == "*" || before.text == "&" || before.text == "string" || before.text == "string_view";
      const bool ends = after.text == "," || after.text == ")";
      if (parameter && typed && ends && !callee.empty()) takers.insert(callee);
    });
  }
  EXPECT_TRUE(takers.contains("check_labels") && takers.contains("require_rank") &&
              takers.contains("MemoryAccount"));
  std::map<std::string, std::string> names;
  for (const auto& source : sources) {
    walk(source.second, [&](const std::string& callee, const Token&, const Token& token, const Token&) {
      if (token.kind != Token::Kind::Literal) return;
      const std::size_t colon = token.text.find(": ");
      const std::string front = token.text.substr(0, colon);
      if ((colon != std::string::npos || takers.contains(callee)) && is_name(front))
        names.emplace(front, source.first);
    });
  }
  return names;
}

/// Found beside the calls, in the same places: arguments, and sentences with a colon in them.
const std::set<std::string> kNoCalls = {
    // of sentences
    "All examples have the same norm", "Contradicted", "Not distinguishable",
    "Rank correlation of k_ii at initialization with the epoch learned", "Some example is all zeros",
    "Supported", "The classes are uneven", "The linearized prediction was left out", "approximate",
    "kernel and initial outputs must be finite", "one column is not enough", "the kernel or the coefficients",
    "the packed data is damaged", "the residual must be finite and the kernel not indefinite", "at the end",
    "bytes of parameters", "number of parameters",  // behind the name of a layer
    // arguments and dimensions
    "an index below the parameter count", "coefficients", "examples", "initial", "initial_versus",
    "input channels", "input height", "input width", "labels", "matrix", "parameter index",
    "pixels of a window", "residual", "values", "versus", "versus_labels", "what its number format can count",
    "x", "y",
    // of the environment, which is the user's
    "GRADGRAM_ISA"};

TEST(Wording, KnowsEveryCallThatTheLibraryNames) {
  const std::map<std::string, std::string> names = names_in_sources();
  const std::set<std::string_view> calls(library_calls().begin(), library_calls().end());
  EXPECT_EQ(calls.size(), library_calls().size()) << "a call is listed twice";
  for (const auto& [name, path] : names) {
    EXPECT_TRUE(calls.contains(name) || kNoCalls.contains(name))
        << path << ": messages begin with `" << name << ": `, which cli/wording.cpp does not know";
  }
  for (const std::string_view call : calls) {
    EXPECT_TRUE(names.contains(std::string(call))) << call << " is in no source";
  }
  // The scan sees what it is to see.
  for (const char* name : {"workers", "kernel_to_file", "largest_pairs", "cholesky", "synthetic", "npz",
                           "dense", "spearman_within", "kernel operator", "InfiniteKernel::block"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
}

class Door : public InFolder {
 protected:
  void SetUp() override {
    InFolder::SetUp();
    fs::create_directories(folder / "folder");
    std::ofstream(at("folder/notes.txt")) << "mine";
    random("x.npy", Shape{6, 4});
    random("images.npy", Shape{6, 1, 4, 4});
    random("one.npy", Shape{1, 4});
    random("y.npy", Shape{6});
    random("short.npy", Shape{5});
    random("wide.npy", Shape{5, 4});
    write("half.npy", Shape{6}, std::vector<double>(6, 0.5));
    write("large.npy", Shape{6, 4}, std::vector<double>(24, 1e30));
    write("larger.npy", Shape{6, 4}, std::vector<double>(24, 1e200));
    write("zero.npy", Shape{6, 4}, std::vector<double>(24, 0.0));
    write("nan.npy", Shape{6, 4}, std::vector<double>(24, std::nan("")));
    write_npy(at("labels.npy"), std::vector<std::int32_t>{0, 1, 0, 1, 0, 5});
    write_npy(at("same.npy"), std::vector<std::int32_t>{1, 1, 1, 1, 1, 1});
    std::vector<double> k(36, 0.0);
    for (std::size_t i = 0; i < 6; ++i) k[7 * i] = 1;
    const auto kernel = [&](const char* name, std::size_t entry, double value) {
      std::vector<double> changed = k;
      changed[entry] = value;
      write(name, Shape{6, 6}, changed);
    };
    kernel("k.npy", 0, 1);
    kernel("skew.npy", 9, 0.5);
    kernel("indefinite.npy", 35, -1);
    kernel("spoilt.npy", 14, std::nan(""));
    write("zeros.npy", Shape{6, 6}, std::vector<double>(36, 0.0));
    write_npy<float>(at("single.npy"), Tensor<float>(Shape{6, 6}).view());
    write("c.npy", Shape{2, 6}, std::vector<double>(12, 1));
    write("narrow.npy", Shape{2, 5}, std::vector<double>(10, 1));
    std::ofstream(at("broken.npy")) << "not an array";
    std::ofstream(at("broken.npz")) << "not an archive";
    std::ofstream(at("bad.csv")) << "a,b,y\n1,2\n";
    std::ofstream(at("few.csv")) << "a,b,y\n1,2,3\n4,5,6\n";
    std::ofstream classes(at("classes.csv"));
    classes << "a,b,y\n";
    for (int i = 0; i < 30; ++i) classes << std::sin(i) << ',' << std::cos(i) << ',' << "pqr"[i % 3] << '\n';
  }
  void write(const char* name, const Shape& shape, const std::vector<double>& values) const {
    write_npy<double>(at(name), Tensor<double>(shape, values).view());
  }
  void random(const char* name, const Shape& shape) const {
    Tensor<double> values(shape);
    Random numbers(shape.size());
    for (double& value : values.span()) value = numbers.normal();
    write_npy<double>(at(name), values.view());
  }

  /// `words` run as a command, @NAME standing for a file of the folder: one line on standard error that ends
  /// with this code, holds all of `named` and no name of the library.
  void expect(int code, const std::string& words, const std::vector<std::string>& named) const {
    std::vector<std::string> arguments;
    std::istringstream stream(words);
    std::string word;
    bool quoted = false;
    for (std::string part; stream >> part;) {
      word += (word.empty() ? "" : " ") + part;
      if (std::count(part.begin(), part.end(), '\'') % 2 == 1) quoted = !quoted;
      if (quoted) continue;
      std::erase(word, '\'');
      arguments.push_back(word.starts_with('@') ? at(word.substr(1)) : word);
      word.clear();
    }
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, code) << words << '\n' << outcome.err;
    ASSERT_FALSE(outcome.err.empty()) << words;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    const std::string front = "gradgram " + arguments.front() + ": ";
    ASSERT_TRUE(outcome.err.starts_with(front)) << outcome.err;
    for (const std::string& name : named) {
      EXPECT_NE(outcome.err.find(name), std::string::npos)
          << words << "\nlacks " << name << ": " << outcome.err;
    }
    EXPECT_EQ(library_words(outcome.err.substr(front.size())), "") << words << '\n' << outcome.err;
  }

  /// Names of the library in a message; empty when there are none.
  std::string library_words(std::string text) const {
    for (std::size_t at = text.find(folder.string()); at != std::string::npos;
         at = text.find(folder.string())) {
      text.erase(at, folder.string().size());
    }
    std::string found;
    for (const std::string_view call : library_calls()) {
      const std::string front = std::string(call) + ": ";
      for (std::size_t at = text.find(front); at != std::string::npos; at = text.find(front, at + 1)) {
        if (at == 0 || (at >= 2 && text.compare(at - 2, 2, ": ") == 0)) found += front;
      }
    }
    std::string word;
    for (const char c : text + " ") {
      if (std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_') {
        word += c;
        continue;
      }
      const bool small =
          std::ranges::all_of(word, [](unsigned char d) { return std::islower(d) != 0 || d == '_'; });
      if (small && word.find('_') != std::string::npos && word != "k_ii" && word != "k_jj")
        found += word + " ";
      word.clear();
    }
    if (text.find("::") != std::string::npos) found += "::";
    return found;
  }
};

TEST_F(Door, TheCheckFindsNamesOfTheLibrary) {
  EXPECT_EQ(library_words("--threads: 5000 must be at most 1024"), "");
  EXPECT_EQ(library_words("--data: x.npy: byte 0: broken"), "");
  EXPECT_NE(library_words("workers: threads (5000) must be at most 1024"), "");
  EXPECT_NE(library_words("--data: npy: x.npy: byte 0: broken"), "");
  EXPECT_NE(library_words("--data: label_noise must be small"), "");
}

TEST_F(Door, KernelErrorsNameOptionsAndFiles) {
  const std::string kernel = "kernel --quiet --out @o.npy --data ";
  const auto of_x = [&](int code, const std::string& more, const std::vector<std::string>& named) {
    expect(code, kernel + "@x.npy " + more, named);
  };
  const auto of_data = [&](int code, const std::string& data, const std::vector<std::string>& named) {
    expect(code, kernel + data + " --model dense(1)", named);
  };
  of_x(2, "--model dense(1) --threads 5000", {"--threads: 5000 must be at most"});
  of_x(2, "--model dens(1)", {"--model: ", "'dens'", "did you mean 'dense'"});
  of_x(2, "--model 'conv(3,3) gap dense(1)'", {"--model: layer 0 'conv(3,3)'", "[4]"});
  of_x(2, "--model ' '", {"--model"});
  of_x(2, "--model dense(2)", {"--reduce: ", "2 outputs"});
  for (const char* output : {"output:-1", "output:7", "output:", "output:0,1"}) {
    of_x(2, std::string("--model dense(2) --reduce ") + output, {"--reduce: ", output, "K from 0 to 1"});
  }
  of_x(2, "--model dense(2) --reduce true-class --labels @labels.npy",
       {"--labels: ", "labels[5] (5)", "[0, 2)"});
  of_x(2, "--model dense(2) --reduce true-class --labels @half.npy", {"--labels: ", "half.npy", "0.5"});
  of_x(2, "--model dense(2) --reduce true-class --labels @short.npy", {"--labels: ", "short.npy"});
  of_x(1, "--model dense(2) --reduce true-class --labels @missing.npy", {"--labels: ", "missing.npy"});
  of_x(2, "--model dense(1) --reduce true-class --labels @labels.npy", {"--reduce: true-class", "not 1"});
  of_x(2, "--model dense(1) --way 1=outer", {"--way: '1'"});
  of_x(2, "--model dense(1) --way 0=sideways", {"--way: '0=sideways'"});
  of_x(2, "--model 'conv(3,3) gap dense(1)' --way 0=outer --data @images.npy",
       {"--data: must be given once"});
  expect(2, kernel + "@images.npy --model 'conv(3,3) gap dense(1)' --way 0=outer", {"--way: ", "0.weight"});
  of_x(2, "--model dense(1) --spill always --scratch @missing", {"--scratch: ", "missing"});
  of_x(2, "--model dense(1) --weights @x.npy", {"--weights: ", "x.npy"});
  of_x(2, "--model dense(1) --weights @broken.npz", {"--weights: ", "broken.npz"});
  of_x(1, "--model dense(1) --weights @missing.npz", {"--weights: ", "missing.npz"});
  of_x(2, "--model dense(1) --versus @images.npy", {"--versus: ", "[4, 4, 1]", "[4]"});
  of_x(1, "--model dense(1) --versus @missing.npy", {"--versus: ", "missing.npy"});
  of_x(2, "--model dense(1) --versus moonz", {"--versus: ", "'moonz'"});
  of_x(2, "--model dense(1) --weight-variance 1e300", {"--weight-variance: ", "1e+300"});
  of_x(2, "--model dense(1) --bias-variance 1e300", {"--bias-variance: ", "1e+300"});
  of_x(2, "--model dense(1) --label-noise 2", {"--label-noise: 2"});
  of_x(2, "--model dense(1) --classes 0", {"--classes: ", "x.npy"});
  for (const char* kind :
       {"", "--diagonal", "--infinite", "--approximate 16", "--monte-carlo 2", "--per-parameter"}) {
    of_x(1, std::string("--model dense(1) --memory 1 ") + kind,
         {"--memory: the memory budget (1 bytes)", "the least that would do is"});
    expect(1, kernel + "@large.npy --model dense(1) " + kind, {"--dtype f32: ", "; --dtype f64 holds"});
  }
  expect(1, kernel + "@larger.npy --model dense(1) --dtype f64",
         {"--dtype f64: entry (0, 0)", "--unit-norm"});
  of_x(1, "--model 'dense(1000000) dense(1000000) dense(1)' --memory 1MB", {"--memory: ", "1000000 bytes"});
  of_x(2, "--model dense(2) --monte-carlo 2 --reduce true-class", {"--reduce: true-class"});
  expect(2, kernel + "@images.npy --model 'maxpool(2) gap dense(1)' --infinite",
         {"--infinite: ", "maxpool(2)"});
  of_data(1, "@missing.npy", {"--data: ", "missing.npy"});
  of_data(2, "moonz", {"--data: 'moonz'"});
  of_data(2, "circle:n=0", {"--data: 'circle:n=0'"});
  of_data(2, "@broken.npy", {"--data: ", "broken.npy: byte 0"});
  of_data(2, "@broken.npz", {"--data: ", "broken.npz: byte 0"});
  of_data(2, "@bad.csv", {"--data: ", "bad.csv: line 2"});
  of_data(2, "@nan.npy", {"--data: ", "nan.npy", "nan"});
  of_data(1, "@larger.npy", {"--dtype f32", "larger.npy", "1e+200"});
  of_data(1, "@folder", {"--data: ", "folder"});
  of_data(2, "@x.npy --test", {"--data: ", "x.npy", "no test part"});
  of_data(2, "@few.csv --target z", {"--data: ", "few.csv", "'z'"});
  of_data(2, "@zero.npy --unit-norm", {"--unit-norm: example 0"});
  of_data(2, "@x.npy --standardize channel --versus @x.npy", {"--versus: ", "--standardize"});
  of_data(2, "@classes.csv --classes p,s", {"--classes: 's'", "p, q, r"});
  of_data(2, "@classes.csv --classes p,p", {"--classes: 'p'", "twice"});
  expect(2, kernel + "@classes.csv --model dense(2) --reduce true-class", {"--data: labels", "[0, 2)"});
  for (const char* out : {"@nowhere/o.npy", "@folder/notes.txt/o.npy"}) {
    expect(1, "kernel --model dense(1) --data @x.npy --out " + std::string(out), {"--out: "});
  }
  expect(2, "kernel --model dense(1) --data @x.npy --out @o.txt", {"--out: ", "o.txt", ".npy"});
  expect(2, "kernel --model dense(1) --data @x.npy --out @x.npy", {"--out: ", "--data"});
  fs::create_directory(at("d.npy"));
  expect(1, "kernel --model dense(1) --data @x.npy --out @d.npy", {"--out: ", "is a folder"});
  if (bf16_kernels() == nullptr) of_x(2, "--model dense(1) --dtype bf16", {"--dtype: bf16", "AVX512_BF16"});
}

TEST_F(Door, AnUnfinishedKernelIsToldByOptions) {
  random("many.npy", Shape{300, 4});
  random("others.npy", Shape{301, 4});
  const std::string model = "dense(8) relu dense(1)";
  {
    const models::Network<float> network(models::parse(model, Shape{4}), models::NetworkOptions());
    const Tensor<float> x = read_npy(at("many.npy")).to_tensor<float>();
    ntk::KernelOptions options;
    options.reduce = ntk::Reduce::TraceMean;
    options.progress = [](std::size_t done, std::size_t) {
      if (done >= 3) throw std::runtime_error("enough");
    };
    ntk::KernelDestination destination;
    destination.path = at("o.npy");
    destination.provenance = {{"model", model},
                              {"parameterization", "standard (weight variance 2, bias variance 0), seed 0"}};
    EXPECT_THROW(ntk::kernel_to_file<float>(network, x.view(), options, destination, Workers(1)),
                 std::runtime_error);
  }
  ASSERT_TRUE(fs::exists(at("o.npy.partial")));
  const std::string kernel = "kernel --quiet --no-preview --threads 1 --out @o.npy --model '" + model + "' ";
  expect(2, kernel + "--data @others.npy",
         {"--out: ", "o.npy.partial", "--data (checksum) was", "--restart"});
  expect(2, kernel + "--data @many.npy --diagonal", {"--out: ", "o.npy.partial", "--restart"});
  // The least budget of a kernel begun anew has smaller tiles.
  const std::string least = run({"kernel", "--quiet", "--threads", "1", "--out", at("n.npy"), "--model",
                                 model, "--data", at("many.npy"), "--memory", "1"})
                                .err;
  const std::string before = "the least that would do is ";
  ASSERT_NE(least.find(before), std::string::npos) << least;
  const std::string bytes = std::to_string(std::stoull(least.substr(least.find(before) + before.size())));
  expect(1, kernel + "--data @many.npy --memory " + bytes,
         {"--memory: the memory budget (" + bytes + " bytes)", "tiles of", "o.npy.partial", "--restart"});
  // And so it goes on.
  const auto command = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"kernel", "--quiet", "--no-preview", "--threads", "1", "--out", at("o.npy"),
                               "--model", model, "--data", at("many.npy")});
    return run(more);
  };
  ASSERT_EQ(command({"--memory", bytes, "--restart"}).code, kDone);
  EXPECT_FALSE(fs::exists(at("o.npy.partial")));
}

TEST_F(Door, PredictErrorsNameOptionsAndFiles) {
  const auto files = [&](int code, const std::string& kernel, const std::string& more,
                         const std::vector<std::string>& named) {
    expect(code, "predict --quiet --out @p.npy --kernel @" + kernel + " " + more, named);
  };
  const std::string rest = "--cross @c.npy --targets @y.npy ";
  // What does not fit exits with 2, whichever file it is in.
  files(2, "k.npy", "--targets @y.npy --cross @narrow.npy", {"--cross: ", "narrow.npy", "[2, 5]", "6"});
  files(2, "k.npy", "--cross @c.npy --targets @short.npy", {"--targets: ", "short.npy", "[5]", "[6]"});
  files(2, "k.npy", rest + "--test-targets @short.npy", {"--test-targets: ", "short.npy", "[5]", "[2]"});
  files(2, "x.npy", rest, {"--kernel: ", "x.npy", "[6, 4]"});
  expect(2, "predict --quiet --out @p.npy --model dense(1) --data moons:n=20 --train 10 --versus @x.npy",
         {"--versus: ", "[4]", "[2]"});
  files(1, "missing.npy", rest, {"--kernel: ", "missing.npy"});
  files(1, "k.npy", "--targets @y.npy --cross @missing.npy", {"--cross: ", "missing.npy"});
  files(1, "k.npy", "--cross @c.npy --targets @missing.npy", {"--targets: ", "missing.npy"});
  files(2, "broken.npy", rest, {"--kernel: ", "broken.npy"});
  files(2, "k.npy", "--cross @broken.npy --targets @y.npy", {"--cross: ", "broken.npy"});
  files(2, "k.npy", "--cross @c.npy --targets @broken.npy", {"--targets: ", "broken.npy"});
  files(2, "k.npy", "--cross @c.npy --targets @same.npy", {"--targets: ", "same.npy"});
  files(2, "single.npy", rest, {"--cross: ", "--kernel"});
  files(2, "labels.npy", rest, {"--kernel: ", "labels.npy"});
  for (const std::string& time : {std::string(), std::string("--time 3 --learning-rate 1")}) {
    files(2, "skew.npy", rest + time, {"--kernel ", "skew.npy", "symmetric", "kernel(1, 3) = 0.5"});
    files(1, "spoilt.npy", rest + time, {"--kernel ", "spoilt.npy", "kernel(2, 2) = nan"});
    files(1, "indefinite.npy", rest + time, {"--kernel ", "indefinite.npy", "--ridge ", "would do"});
  }
  files(1, "zeros.npy", rest, {"--kernel ", "zeros.npy", "not positive definite", "--ridge 1 would do"});
  files(1, "k.npy", rest + "--memory 1", {"--memory: ", "(1 bytes)"});
  // All eigenvalues are 1; of the mean over six examples the largest stable rate is 6 times 2 / 2.
  files(1, "k.npy", rest + "--steps 300 --learning-rate 100",
        {"--learning-rate: 100 is above the largest stable rate, 6,", "33.3333 and 2"});
  files(2, "k.npy", rest + "--time 3 --learning-rate 0", {"--learning-rate: 0 must be above zero"});
  files(2, "k.npy", rest + "--time 3", {"--time: needs --learning-rate"});
  files(2, "k.npy", rest + "--steps 3", {"--steps: needs --learning-rate"});
  files(2, "k.npy", rest + "--steps 3,4 --learning-rate 1", {"--steps: '3,4'"});
  files(2, "k.npy", rest + "--steps 9999999999999999 --learning-rate 1", {"--steps: 9999999999999999 must"});
  files(2, "k.npy", rest + "--steps 18446744073709551615 --learning-rate 1",
        {"--steps: 18446744073709551615 must be at most 1000000000000000"});
  for (const char* time : {"nan", "-1", "1e309", "+inf", "1x"}) {
    files(2, "k.npy", rest + "--time " + time, {std::string("--time: '") + time + "'"});
  }
  // Finite outputs whose squares are not.
  files(1, "k.npy", rest + "--steps 200 --learning-rate 100",
        {"--learning-rate: ", "200 steps", "mean squared error is inf"});
  files(2, "k.npy", rest + "--learning-rate 1", {"--learning-rate: needs --steps"});
  files(2, "k.npy", rest + "--ridge -1", {"--ridge: -1"});
  files(2, "k.npy", rest + "--steps 3 --learning-rate 1 --momentum 1", {"--momentum: 1"});
  const std::string model = "predict --quiet --out @p.npy --model dense(1) --data ";
  expect(2, model + "@few.csv", {"--train: ", "--versus"});
  expect(2, model + "@classes.csv --train 5 --test 5", {"--model: 1 outputs"});
  expect(2, model + "@classes.csv --train 5 --test 5 --outputs 2", {"--outputs: 2", "3 classes"});
  expect(1, model + "moons:n=20 --train 10 --memory 10", {"--memory: "});
  expect(1, model + "moons:n=20 --train 10 --infinite --memory 10", {"--memory: "});
  expect(2, model + "moons:n=20 --train 10 --reduce trace-sum", {"--reduce: trace-sum"});
  expect(1, model + "moons:n=20 --train 10 --versus @missing.csv", {"--versus: ", "missing.csv"});
  expect(2, model + "moons:n=20 --train 10 --out @p.npy", {"--out: must be given once"});
}

TEST_F(Door, SpectrumErrorsNameOptionsAndFiles) {
  const std::string k = "spectrum @k.npy ";
  expect(2, k + "--labels @short.npy", {"--labels: ", "short.npy", "5", "6"});
  expect(2, k + "--labels @broken.npy", {"--labels: ", "broken.npy"});
  expect(1, k + "--labels @missing.npy", {"--labels: ", "missing.npy"});
  expect(1, k + "--labels @same.npy", {"--labels: "});
  expect(2, k + "--top 99", {"--top: 99", "6"});
  expect(1, k + "--memory 1", {"--memory: ", "(1 bytes)"});
  expect(1, k + "--out @nowhere/deep/s.csv", {"--out: "});
  expect(1, "spectrum @zeros.npy --labels @labels.npy", {"zeros.npy: the kernel is zero"});
  expect(2, "spectrum @x.npy", {"x.npy: ", "[6, 4]"});
  expect(2, "spectrum @skew.npy", {"skew.npy: the kernel must be symmetric", "kernel(1, 3) = 0.5"});
  expect(1, "spectrum @spoilt.npy", {"spoilt.npy: kernel(2, 2) = nan"});
  expect(1, "spectrum @missing.npy", {"missing.npy: "});
  expect(2, "spectrum @broken.npy", {"broken.npy: byte 0"});
  const std::string free = "spectrum --matrix-free --model dense(1) --quiet --data ";
  expect(1, free + "@x.npy --memory 1", {"--memory: "});
  expect(2, free + "@x.npy --top 99", {"--top: 99", "6"});
  expect(2, free + "@x.npy --estimate all", {"--estimate: 'all'"});
  expect(1, free + "@large.npy", {"--dtype f32: ", "--dtype f64"});
  expect(2, free + "@x.npy --steps 9999999999 --probes 9999999999", {"--probes and --steps: "});
  expect(2, free + "@x.npy --probes 18446744073709551615", {"--probes and --steps: 18446744073709551615"});
  expect(2, free + "@x.npy --products 18446744073709551615", {"--products: 18446744073709551615"});
  expect(1, free + "@x.npy --probes 9007199254740993", {"--memory: ", "fewer --probes"});
  expect(2, free + "@x.npy --out @broken.npy", {"--out: ", "broken.npy"});
  expect(2, free + "@x.npy --out @folder", {"--out: ", "folder", "--force"});
  expect(2, free + "@x.npy --out @s.csv", {"--out: ", "s.csv"});
  expect(2, free + "moonz", {"--data: 'moonz'"});
  expect(2, "spectrum --matrix-free --model dense(2) --data @x.npy --reduce true-class --labels @labels.npy",
         {"--labels: labels[5] (5)"});
}

TEST_F(Door, TheOtherVerbsErrorsNameOptionsAndFiles) {
  const std::string study = "learnability --quiet --model dense(1) --out @run --data ";
  expect(2, study + "@x.npy", {"--data: ", "x.npy", "labels"});
  expect(2, study + "moons:n=5", {"--data: ", "10", "5"});
  for (const char* rest : {"1e30 --epochs 2", "1e20 --optimizer sgd", "1e300 --dtype f64 --epochs 2"}) {
    expect(1, study + "moons:n=50 --learning-rate " + rest,
           {"--learning-rate: it is too large: 1e+", "stable up to"});
  }
  expect(1,
         "learnability --quiet --out @run --data moons:n=50 --loss cross-entropy --model 'dense(8) relu "
         "dense(2)' "
         "--learning-rate 1e30",
         {"--learning-rate: it is too large: 1e+30, where descent"});
  for (const char* penalty : {"--l2 1e300", "--l2 1e10", "--l1 1e30"}) {
    expect(1, study + "moons:n=50 --epochs 9 " + penalty,
           {"--l1, --l2: they are too large for the learning rate 0.003: l1 "});
  }
  expect(2, study + "moons:n=50 --learning-rate 0", {"--learning-rate: 0"});
  expect(2, study + "moons:n=50 --loss cross-entropy --outputs 1", {"--loss: "});
  expect(2, study + "@classes.csv --outputs 1", {"--outputs: ", "3"});
  expect(2, study + "@classes.csv --outputs 3", {"--outputs: 3", "dense(1)"});
  expect(2, study + "moons:n=50 --epochs 0", {"--epochs: 0"});
  expect(2, study + "moons:n=50 --score-epochs 90", {"--score-epochs: 90", "--epochs"});
  expect(1, study + "moons:n=50 --memory 1", {"--memory: "});
  const std::string init = "init --model dense(3) --quiet --out ";
  expect(2, init + "@w.npz --input 3x", {"--input: '3x'"});
  expect(2, init + "@w.npz", {"--input"});
  expect(2, init + "@w.txt --input 3", {"--out: ", "w.txt"});
  expect(1, init + "@nowhere/w.npz --input 3", {"--out: ", "nowhere"});
  expect(1, init + "@w.npz --input 3 --memory 1", {"--memory: "});
  expect(2, init + "@w.npz --input 99999999999x9999999x99999", {"--input: "});
  expect(2,
         "init --model 'dense(2000000000) dense(2000000000) dense(2000000000)' --out @w.npz --input 3 "
         "--dtype f64 --memory 1TiB",
         {"--model"});
  expect(2, "doctor --threads 5000", {"--threads: 5000"});
  // Nothing of all this is left.
  EXPECT_FALSE(fs::exists(at("run")));
  EXPECT_FALSE(fs::exists(at("w.npz")));
}

}  // namespace
}  // namespace gradgram::cli
