#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <iterator>
#include <numeric>

#include "cli/inputs.hpp"
#include "cli/png.hpp"
#include "cli/study.hpp"
#include "cli/text.hpp"

namespace gradgram::cli {
namespace {

constexpr const char* kStyle = R"(
:root{color-scheme:light dark;--bg:#fbfaf7;--card:#fff;--ink:#1d1e21;--muted:#63666d;--line:#e4e2dc;--blue:#0072b2;
--vermillion:#d55e00;--green:#008f68;--purple:#a8478f;--grey:#8b8f96;--tint:#f1efe9}
@media(prefers-color-scheme:dark){:root{--bg:#141619;--card:#1b1e22;--ink:#eceae6;--muted:#a3a7ae;--line:#30343a;--blue:#5ab4ea;
--vermillion:#ff8c42;--green:#2fc99d;--purple:#dd8fc8;--grey:#80858d;--tint:#22262b}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:17px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
"DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1120px;margin:0 auto;padding:28px 20px 64px}
.over{margin:0 0 6px;color:var(--muted);font-size:14px}
h1{font-size:clamp(25px,4.4vw,40px);line-height:1.15;letter-spacing:-.015em;margin:0 0 14px;text-wrap:balance;font-weight:680}
h2{font-size:23px;line-height:1.25;letter-spacing:-.01em;margin:52px 0 6px;font-weight:660}
h3{font-size:16px;margin:0 0 8px;font-weight:640}
p{margin:0 0 12px;max-width:68ch}
.sub{color:var(--muted)}
.first{display:grid;gap:22px;grid-template-columns:minmax(0,1fr)}
.first figure figcaption b{font-size:17px}
.answer{font-size:19px;line-height:1.45;border-left:4px solid var(--accent);padding:2px 0 2px 16px;margin:0}
.answer b{display:block;font-size:14px;color:var(--accent);font-weight:640;margin-bottom:2px}
.says{padding-left:18px;margin:0;max-width:68ch}
.says li{margin:0 0 7px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 14px 8px;min-width:0}
figcaption{font-size:14.5px;line-height:1.45;color:var(--muted);margin-bottom:8px}
figcaption b{display:block;color:var(--ink);font-size:16px;font-weight:640}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12.5px;fill:var(--muted);font-family:inherit}
svg .label text{fill:var(--ink)}
svg .grid path{stroke:var(--line);fill:none}
svg .axis path{stroke:var(--muted);fill:none;stroke-width:.8}
svg .mark path{stroke:var(--muted);stroke-dasharray:4 4;fill:none}
svg .curve{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
svg .dashes{stroke-dasharray:6 5;stroke-width:1.8}
svg .points path{fill:none;stroke-width:3.2;stroke-linecap:round;stroke-opacity:.5}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;margin:0 0 8px;padding:0;font-size:14px}
.legend i{display:inline-block;margin-right:6px;vertical-align:middle}
.legend .rule,.legend .dash{width:18px;border-top:3px solid;border-radius:2px}
.legend .dash{border-top-style:dashed}
.legend .dot{width:9px;height:9px;border-radius:50%;background:currentColor}
.two{display:grid;gap:18px;grid-template-columns:minmax(0,1fr);margin-top:16px}
.sheet{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px}
.sheet p{font-size:14.5px;color:var(--muted);margin:0 0 10px;line-height:1.4}
.tiles{display:grid;grid-template-columns:repeat(8,minmax(0,1fr));gap:5px}
.tiles img{display:block;width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;border-radius:3px 3px 0 0;
border-bottom:4px solid var(--line)}
.tiles .c0{border-color:var(--green)}
.tiles .c1{border-color:var(--purple)}
.key{font-size:14px;color:var(--muted);margin:14px 0 0}
.key i{display:inline-block;width:18px;height:5px;border-radius:2px;margin:0 6px 0 12px;vertical-align:middle}
table{border-collapse:collapse;width:100%;font-size:15px;line-height:1.4}
th,td{text-align:left;vertical-align:top;padding:10px 12px 10px 0;border-bottom:1px solid var(--line)}
th{font-size:13.5px;font-weight:600;color:var(--muted)}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
td small{display:block;color:var(--muted);font-size:13.5px}
.rho{position:relative;width:140px;height:14px;margin-top:5px;background:var(--tint);border-radius:3px}
.rho i{position:absolute;top:0;bottom:0;background:var(--accent);border-radius:2px}
.rho u{position:absolute;top:-2px;bottom:-2px;left:50%;width:1px;background:var(--muted)}
dl{display:grid;grid-template-columns:minmax(0,1fr);gap:0 18px;margin:14px 0;font-size:15px}
dt{color:var(--muted)}
dd{margin:0 0 8px;overflow-wrap:anywhere}
pre{background:var(--tint);border-radius:8px;padding:12px 14px;font:14px/1.5 ui-monospace,"SF Mono",Menlo,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere;margin:8px 0 0}
code{font:.92em ui-monospace,"SF Mono",Menlo,"DejaVu Sans Mono",monospace}
.notes li{margin:0 0 8px;max-width:72ch}
@media(min-width:860px){.first{grid-template-columns:minmax(0,1fr) minmax(0,1.05fr);grid-template-rows:auto 1fr;align-items:start}
.first figure{grid-column:2;grid-row:1/span 2}.first .says{grid-column:1}
.two{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}dl{grid-template-columns:190px minmax(0,1fr)}dd{margin:0 0 6px}}
@media(max-width:700px){.wide thead{display:none}.wide tr{display:block;border-bottom:1px solid var(--line);padding:10px 0}
.wide td{display:block;border:0;padding:2px 0}.wide td[data-of]::before{content:attr(data-of) " ";color:var(--muted)}
svg text{font-size:14.5px}body{font-size:16px}main{padding:20px 15px 48px}.tiles{grid-template-columns:repeat(6,minmax(0,1fr))}h2{margin-top:40px}}
@media print{body{background:#fff}figure,.sheet{break-inside:avoid}}
)";

const char* accent(ntk::Finding finding) {
  switch (finding) {
    case ntk::Finding::Supported:
      return "var(--green)";
    case ntk::Finding::Contradicted:
      return "var(--vermillion)";
    case ntk::Finding::NotDistinguishable:
      return "var(--grey)";
  }
  return "var(--grey)";
}

std::string headline(const ntk::Verdict& verdict) {
  const double size = std::abs(verdict.correlation);
  const char* strength = size >= 0.6 ? ", strongly" : size >= 0.3 ? "" : ", but weakly";
  switch (verdict.finding) {
    case ntk::Finding::Supported:
      return fmt::format("In this run: yes{}", strength);
    case ntk::Finding::Contradicted:
      return fmt::format("In this run: no, the opposite{}", strength);
    case ntk::Finding::NotDistinguishable:
      return "In this run: not clearly";
  }
  return "";
}

/// Makes 8-bit pixels of an example: [0, 1] as it is, other ranges stretched from the smallest to the largest
/// number of the whole set.
class Pictures {
 public:
  explicit Pictures(const datasets::Dataset& data) : data_(data) {
    const auto values = data.inputs.span();
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    low_ = *low;
    scale_ = *high > *low ? *high - *low : 1;
    if (*low >= 0 && *high <= 1 && *high > 0.5) {
      low_ = 0;
      scale_ = 1;
    }
  }
  /// As a data: URI.
  std::string uri(std::size_t example) const {
    const Shape shape = data_.example_shape();
    const std::size_t channels = shape[2] == 3 ? 3 : 1;
    const auto numbers = data_.inputs.view().slice(example);
    std::vector<std::uint8_t> pixels(shape[0] * shape[1] * channels);
    for (std::size_t p = 0; p < shape[0] * shape[1]; ++p) {
      for (std::size_t c = 0; c < channels; ++c) {
        const double value = (numbers.data()[p * shape[2] + c] - low_) / scale_;
        pixels[p * channels + c] = static_cast<std::uint8_t>(std::lround(255 * std::clamp(value, 0.0, 1.0)));
      }
    }
    return "data:image/png;base64," + base64(encode_png(pixels, shape[1], shape[0], channels));
  }

 private:
  const datasets::Dataset& data_;
  double low_;
  double scale_;
};

/// The verdict's sentence without the word that the badge above it already says.
std::string answer_text(const std::string& answer) {
  const std::size_t colon = answer.find(": ");
  std::string text = typeset(colon == std::string::npos ? answer : answer.substr(colon + 2));
  if (!text.empty()) text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

/// ASCII notation set for the page, and escaped.
std::string prose(const std::string& text) {
  return escape_html(typeset(text));
}

constexpr std::size_t kTiles = 24;

std::string epoch_text(const StudyRun& run, std::size_t example) {
  const std::size_t epoch = run.study.epoch_learned[example];
  if (epoch > run.study.epochs) return "never learned for good";
  return epoch == 0 ? "right from the start" : fmt::format("learned after epoch {}", epoch);
}

std::string sheet(const StudyRun& run, const Pictures& pictures, const std::string& title,
                  const std::string& text, const std::vector<std::size_t>& examples) {
  std::string html = fmt::format("<div class=\"sheet\"><h3>{}</h3><p>{}</p><div class=\"tiles\">\n",
                                 escape_html(title), escape_html(text));
  for (const std::size_t i : examples) {
    const auto label = static_cast<std::size_t>(run.data.labels[i]);
    const std::string what =
        escape_html(fmt::format("{}, {}, k(x,x) = {}", run.data.class_names.at(label), epoch_text(run, i),
                                significant(run.study.scores.at(0).values[i])));
    html += fmt::format("<img{} alt=\"{}\" title=\"{}\" src=\"{}\">\n",
                        run.data.classes() == 2 ? fmt::format(" class=\"c{}\"", label) : "", what, what,
                        pictures.uri(i));
  }
  return html + "</div></div>\n";
}

/// Up to kTiles of `order[0, ties)`, evenly spread when there are more: none of them comes before another.
std::vector<std::size_t> spread(const std::vector<std::size_t>& order, std::size_t ties) {
  std::vector<std::size_t> chosen;
  if (ties <= kTiles) {
    chosen.assign(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(std::min(kTiles, order.size())));
  } else {
    for (std::size_t i = 0; i < kTiles; ++i) chosen.push_back(order[i * ties / kTiles]);
  }
  return chosen;
}

std::string image_sheets(const StudyRun& run) {
  const ntk::Learnability& study = run.study;
  const Pictures pictures(run.pictures);
  std::vector<double> right(study.n, 0);
  for (std::size_t e = 0; e <= study.epochs; ++e) {
    for (std::size_t i = 0; i < study.n; ++i) right[i] += study.correct(e, i);
  }
  std::vector<std::size_t> order(study.n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  // Learned early and right often first.
  const auto key = [&](std::size_t i) { return std::pair(study.epoch_learned[i], -right[i]); };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return key(a) < key(b); });
  const auto ties = [&](const std::vector<std::size_t>& sorted) {
    return static_cast<std::size_t>(std::count_if(
        sorted.begin(), sorted.end(), [&](std::size_t i) { return key(i) == key(sorted.front()); }));
  };
  // Being right before any training is chance; learning starts after that, where enough did learn.
  std::vector<std::size_t> learned;
  std::copy_if(order.begin(), order.end(), std::back_inserter(learned),
               [&](std::size_t i) { return study.epoch_learned[i] > 0; });
  if (learned.size() < kTiles || study.epoch_learned[learned.front()] > study.epochs) learned = order;
  const std::size_t first_ties = ties(learned);
  std::vector<std::size_t> reversed(order.rbegin(), order.rend());
  const std::size_t last_ties = ties(reversed);
  const std::vector<double>& score = study.scores.at(0).values;
  std::vector<std::size_t> by_score(order);
  std::stable_sort(by_score.begin(), by_score.end(),
                   [&](std::size_t a, std::size_t b) { return score[a] > score[b]; });
  const std::vector<std::size_t> by_score_reversed(by_score.rbegin(), by_score.rend());

  std::string html = "<div class=\"two\">\n";
  const auto among = [&](std::size_t count) {
    return count > kTiles ? fmt::format("{} of the {} that tie", kTiles, grouped(count))
                          : std::string("in order");
  };
  html += sheet(run, pictures, "Learned first",
                fmt::format("What training did: {} and stayed right ({}).", epoch_text(run, learned.front()),
                            among(first_ties)),
                spread(learned, first_ties));
  html +=
      sheet(run, pictures, "Learned last",
            fmt::format("What training did: {} ({}).", epoch_text(run, reversed.front()), among(last_ties)),
            spread(reversed, last_ties));
  html +=
      sheet(run, pictures, "Largest k(x,x)",
            "What the kernel says before training: the claim calls these the easiest.", spread(by_score, 1));
  html += sheet(run, pictures, "Smallest k(x,x)",
                "What the kernel says before training: the claim calls these the hardest.",
                spread(by_score_reversed, 1));
  html += "</div>\n";
  if (run.data.classes() == 2) {
    html += fmt::format(
        "<p class=\"key\">If the claim held, each column would look alike from top to bottom.<br>Class:<i "
        "style=\"background:var(--green)\"></i>{}<i style=\"background:var(--purple)\"></i>{}</p>\n",
        escape_html(run.data.class_names[0]), escape_html(run.data.class_names[1]));
  } else {
    html += "<p class=\"key\">If the claim held, each column would look alike from top to bottom.</p>\n";
  }
  return html;
}

std::string correlation_table(const StudyRun& run) {
  std::string html =
      "<table class=\"wide\"><thead><tr><th>Score</th><th>Rank correlation with the epoch learned</th><th>In "
      "words</th>"
      "<th>Size of input removed</th><th>Within a class</th><th>Wrong at the start</th><th>With "
      "‖x‖²</th></tr></thead><tbody>\n";
  for (std::size_t i = 0; i < run.study.scores.size(); ++i) {
    const ntk::Score& score = run.study.scores[i];
    const ntk::Correlation& c = run.study.correlations[i];
    const double rho = std::clamp(c.with_epoch_learned, -1.0, 1.0);
    html += fmt::format(
        "<tr><td><b>{}</b><small>{}</small></td><td class=\"n\">{} ± {:.2f}<div class=\"rho\"><u></u><i "
        "style=\"left:{:.1f}%;width:{:.1f}%\"></i></div></td><td>{}</td><td class=\"n\" data-of=\"Size of "
        "input "
        "removed:\">{}</td><td class=\"n\" data-of=\"Within a class:\">{}</td><td class=\"n\" "
        "data-of=\"Wrong at "
        "the start:\">{}</td><td class=\"n\" data-of=\"With "
        "‖x‖²:\">{}</td></tr>\n",
        prose(score.name), prose(score.meaning), correlation(c.with_epoch_learned, true),
        c.with_epoch_learned_error, 50 + 50 * std::min(rho, 0.0), 50 * std::abs(rho),
        correlation_words(c.with_epoch_learned, c.with_epoch_learned_error),
        correlation(c.with_epoch_learned_given_norm, true),
        correlation(c.with_epoch_learned_within_class, true),
        correlation(c.with_epoch_learned_if_wrong_at_start, true), correlation(c.with_squared_norm, true));
  }
  return html + "</tbody></table>\n";
}

std::string made_by(const StudyRun& run) {
  const Options& options = run.options;
  const ntk::Learnability& study = run.study;
  std::string html = "<dl>\n";
  const auto row = [&](const char* name, const std::string& value) {
    html += fmt::format("<dt>{}</dt><dd>{}</dd>\n", name, escape_html(value));
  };
  row("Model", fmt::format("{}: {} parameters, {} output{}", run.model, grouped(run.parameters), run.outputs,
                           run.outputs == 1 ? "" : "s"));
  row("Parameterization", parameterization_text(options));
  row("Data", fmt::format("{}: {} {} of {}, classes {}", run.data.source, grouped(study.n), run.noun(),
                          extents(run.data.example_shape(), " × "), fmt::join(run.data.class_names, ", ")));
  row("Preparation", preparation_text(options));
  row("Training", fmt::format("{}, learning rate {:g} ({}){}, {} epochs in batches of {}, {}{}",
                              options.optimizer, run.learning_rate, options.schedule,
                              options.optimizer == "momentum" || options.optimizer == "nesterov"
                                  ? fmt::format(", momentum {:g}", options.momentum)
                                  : "",
                              study.epochs, options.batch == 0 ? "all" : std::to_string(options.batch),
                              options.loss == "mse" ? "mean squared error" : "cross-entropy",
                              options.l1 > 0 || options.l2 > 0
                                  ? fmt::format(", penalties l1 {:g} and l2 {:g}", options.l1, options.l2)
                                  : ""));
  row("Kernel", fmt::format("trace-mean over the outputs, {}; an entry is good to {} √(k(x,x) k(x',x'))",
                            options.dtype, significant(study.entry_error, 1)));
  row("Spectrum",
      fmt::format("largest eigenvalue {} ({} of the trace), {} of {} eigenvalues above the error bar {}, "
                  "effective rank {}, "
                  "alignment with the labels {} (centred {})",
                  significant(study.spectrum.values.front()),
                  percent(study.spectrum.values.front() / study.spectrum.trace),
                  grouped(study.spectrum.resolved()), grouped(study.n),
                  significant(study.spectrum.error_bar, 2), significant(study.spectrum.effective_rank()),
                  significant(study.alignment, 2), significant(study.centred_alignment, 2)));
  row("Machine", fmt::format("{}, {}", machine_text(run.threads), seconds_text(run.seconds)));
  row("Program", fmt::format("gradgram {}", version()));
  return html + "</dl>\n";
}

}  // namespace

std::string study_report(const StudyRun& run, const StudyFigures& figures) {
  const ntk::Learnability& study = run.study;
  const ntk::Verdict& verdict = study.verdict;
  const std::string noun = run.noun();
  std::string body;
  body += fmt::format("<p class=\"over\">{} {} of {} · {}</p>\n", grouped(study.n), noun,
                      escape_html(fmt::format("{}", fmt::join(run.data.class_names, ", "))),
                      escape_html(run.options.data));
  body += "<div class=\"first\"><div>\n";
  body += fmt::format(
      "<h1>Which {} does the network learn first, and does its kernel know beforehand?</h1>\n", noun);
  body +=
      fmt::format("<div class=\"answer\"><b>{}</b>{}</div></div>\n{}<ul class=\"says\">\n", headline(verdict),
                  escape_html(answer_text(verdict.answer)), html(figures.group_accuracy));
  for (const std::string& sentence : {verdict.groups_sentence, verdict.correlation_sentence,
                                      verdict.norm_sentence, verdict.best_sentence}) {
    if (!sentence.empty()) body += "<li>" + prose(sentence) + "</li>\n";
  }
  body += "</ul></div>\n";
  if (run.images()) {
    body += image_sheets(run);
  } else {
    body +=
        "<p class=\"key\">The examples are not images, so there are no pictures of the easiest and "
        "hardest.</p>\n";
  }

  body += fmt::format(
      "<h2>How training went</h2>\n<p class=\"sub\">After {} epochs {} of the {} are classified rightly; {} "
      "were right "
      "from the start and {} were never learned for good.</p>\n<div class=\"two\">",
      study.epochs, percent(study.accuracy.back()), noun, percent(study.share_right_from_start),
      percent(study.share_never_learned));
  body += html(figures.group_loss) + html(figures.accuracy) + "</div>\n";

  body += fmt::format(
      "<h2>Score against what happened</h2>\n<p class=\"sub\">An example counts as learned at the first "
      "epoch from which it "
      "is classified rightly to the end. Dots are spread a little up and down so that they do not hide one "
      "another.</p>\n<div class=\"two\">{}{}{}</div>\n",
      html(figures.score), figures.best_score.name.empty() ? "" : html(figures.best_score),
      html(figures.norm));

  body +=
      "<h2>Every score, in numbers and words</h2>\n<p class=\"sub\">Spearman’s rank correlation of each "
      "score with the "
      "epoch learned: −1 means that large values are always learned earlier, +1 that they are always learned "
      "later, 0 that "
      "the score says nothing. ± is one standard error over the examples of this run; another draw of the "
      "initial weights "
      "may differ by more. The last columns take out the size of the input, look inside each class alone, "
      "look at those alone that the untrained "
      "network gets wrong, and tell how much the score is just the size of the input.</p>\n";
  body += correlation_table(run);

  body += fmt::format("<h2>The kernel behind it</h2>\n<div class=\"two\">{}{}</div>\n",
                      html(figures.eigenvalues), html(figures.labels));

  if (!study.notes.empty() || !run.figures_note.empty()) {
    body += "<h2>What to keep in mind</h2>\n<ul class=\"notes\">\n";
    for (const std::string& note : study.notes) body += "<li>" + prose(note) + "</li>\n";
    if (!run.figures_note.empty()) body += "<li>" + escape_html(run.figures_note) + "</li>\n";
    body += "</ul>\n";
  }
  body += "<h2>What made this page</h2>\n" + made_by(run);
  body += fmt::format(
      "<h2>Do it again</h2>\n<p class=\"sub\">The same command gives the same numbers, bit for bit, on this "
      "kind of machine "
      "and with any number of threads.</p>\n<pre>{}</pre>\n",
      escape_html(command_line(run.options)));
  body +=
      "<p class=\"key\">Beside this page: <code>summary.json</code> (all of the above), "
      "<code>scores.csv</code> (one line "
      "per example), <code>kernel.npy</code>, <code>spectrum.csv</code>, <code>weights.npz</code> and "
      "<code>weights-trained.npz</code>, and <code>figures/</code> as SVG and PDF with their data and "
      "gnuplot "
      "scripts.</p>\n";
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\">\n<meta name=\"generator\" content=\"gradgram "
      "{}\">\n<title>Learned "
      "first: {}</title>\n<style>{}</style>\n</head>\n<body "
      "style=\"--accent:{}\">\n<main>\n{}</main>\n</body>\n</html>\n",
      version(), escape_html(fmt::format("{}", fmt::join(run.data.class_names, ", "))), kStyle,
      accent(verdict.finding), body);
}

}  // namespace gradgram::cli
