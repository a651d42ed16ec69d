#include "cli/chart.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "facts/words.hpp"

namespace rankslice::cli {

namespace {

constexpr auto kWidth = 840, kMargin = 24, kNameWidth = 172, kNoteWidth = 104, kFiguresWidth = 112;
constexpr auto kBarsAt = kMargin + kNameWidth, kBarsWidth = kWidth - kBarsAt - kFiguresWidth - kNoteWidth - kMargin;
constexpr auto kBar = 12, kBarStep = 16, kRowGap = 12, kLine = 17;
constexpr std::size_t kLettersOfText = 128, kLettersOfCommand = 112;  // in one line

constexpr auto kStyle = R"(<style>
  .page { fill: #ffffff; stroke: #d1d9e0; }
  text { font: 13px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328; }
  .title { font-size: 17px; font-weight: 600; }
  .name { text-anchor: end; } .ours.name { font-weight: 600; }
  .figure, .note, .caption, .legend { font-size: 11.5px; fill: #59636e; } .note { text-anchor: end; }
  .command { font: 11px ui-monospace, Menlo, 'DejaVu Sans Mono', monospace; fill: #59636e; }
  rect.ours.first { fill: #0b7a62; } rect.ours.second { fill: #7cc7b5; }
  rect.theirs.first { fill: #78818b; } rect.theirs.second { fill: #c3c9d0; }
  rect.limit.first { fill: #9a7b2f; } rect.limit.second { fill: #dcc78e; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d; }
    text { fill: #f0f6fc; } .figure, .note, .caption, .legend, .command { fill: #9198a1; }
    rect.ours.first { fill: #3cc9a5; } rect.ours.second { fill: #1d6b58; }
    rect.theirs.first { fill: #99a3ad; } rect.theirs.second { fill: #4b535c; }
    rect.limit.first { fill: #d9b75b; } rect.limit.second { fill: #6e5b26; }
  }
</style>
)";

/// As the text of an XML element.
std::string escaped(std::string const& text) {
  std::string safe;
  for (auto const letter : Json::parse(json_text(text)).get<std::string>()) {  // UTF-8 from here on
    auto const is_control = static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f;
    if (is_control) {
      safe += "\uFFFD";
    } else if (letter == '&') {
      safe += "&amp;";
    } else if (letter == '<') {
      safe += "&lt;";
    } else if (letter == '>') {
      safe += "&gt;";
    } else {
      safe += letter;
    }
  }
  return safe;
}

std::string_view name(BarRow::Kind kind) {
  switch (kind) {
    case BarRow::Kind::ours:
      return "ours";
    case BarRow::Kind::limit:
      return "limit";
    default:
      return "theirs";
  }
}

std::string_view place_of(std::size_t series) { return series == 0 ? "first" : "second"; }

/// At spaces, and where there are none, in the middle of a word, but not of a letter.
std::vector<std::string> wrapped(std::string text, std::size_t letters) {
  std::vector<std::string> lines;
  while (text.size() > letters) {
    auto end = text.rfind(' ', letters);
    auto const at_space = end != std::string::npos && end > letters / 2;
    if (!at_space) {
      end = letters;
      while (end > 1 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;
    }
    lines.push_back(text.substr(0, end));
    text.erase(0, end + (at_space ? 1 : 0));
  }
  lines.push_back(std::move(text));
  return lines;
}

/// The lines of a chart, one below the other.
class Drawing {
 public:
  explicit Drawing(BarChart const& chart) : chart_(chart) {
    for (auto const& row : chart.rows) {
      for (auto const& seconds : row.seconds) longest_ = std::max(longest_, seconds.value_or(0));
    }
    y_ = kMargin + 14;
    say(kMargin, "title", chart.title);
    y_ += 28;
    draw_legend();
    for (auto const& row : chart.rows) draw_row(row);
    y_ += kRowGap;
    for (auto const& text : chart.caption) say_lines("caption", wrapped(text, kLettersOfText));
    if (!chart.command.empty()) say_lines("command", wrapped("$ " + chart.command, kLettersOfCommand));
  }

  [[nodiscard]] std::string document() const {
    auto const height = y_ + kMargin - 6;
    auto const title = escaped(chart_.title);
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\" "
        "aria-labelledby=\"title\">\n<title id=\"title\">{2}</title>\n{3}"
        "<rect x=\"0.5\" y=\"0.5\" width=\"{4}\" height=\"{5}\" rx=\"8\" class=\"page\"/>\n{6}</svg>\n",
        kWidth, height, title, kStyle, kWidth - 1, height - 1, text_);
  }

 private:
  void say(double x, std::string_view style, std::string const& text) {
    text_ += fmt::format("<text x=\"{:.1f}\" y=\"{}\" class=\"{}\">{}</text>\n", x, y_, style, escaped(text));
  }
  void say_lines(std::string_view style, std::vector<std::string> const& lines) {
    for (auto const& line : lines) {
      y_ += kLine;
      say(kMargin, style, line);
    }
  }
  void draw_box(double x, double width, std::string_view kind, std::size_t series) {
    text_ += fmt::format("<rect x=\"{:.1f}\" y=\"{}\" width=\"{:.1f}\" height=\"{}\" rx=\"2\" class=\"{} {}\"/>\n", x,
                         y_ - kBar + 2, width, kBar, kind, place_of(series));
  }
  void draw_legend() {
    double x = kBarsAt;
    for (std::size_t i = 0; i < chart_.series.size(); ++i) {
      draw_box(x, kBar, "legend ours", i);
      say(x + kBar + 6, "legend", chart_.series[i]);
      x += kBar + 30 + 6.5 * static_cast<double>(chart_.series[i].size());
    }
    say(kWidth - kMargin, "note", chart_.notes);
    y_ += kRowGap;
  }
  void draw_row(BarRow const& row) {
    auto const bars = static_cast<int>(row.seconds.size());
    auto const kind = name(row.kind);
    y_ += kRowGap;
    auto const top = y_;
    y_ = top + (bars * kBarStep) / 2 + 2;
    say(kBarsAt - 10, fmt::format("{} name", kind), row.name);
    say(kWidth - kMargin, "note", row.note);
    y_ = top;
    for (std::size_t i = 0; i < row.seconds.size(); ++i) {
      y_ += kBarStep - 2;
      if (row.seconds[i]) draw_bar(*row.seconds[i], kind, i);
      y_ += 2;
    }
  }
  void draw_bar(double seconds, std::string_view kind, std::size_t series) {
    auto const length = longest_ > 0 ? std::max(1.0, seconds / longest_ * kBarsWidth) : 1.0;
    draw_box(kBarsAt, length, fmt::format("bar {}", kind), series);
    auto const& first = chart_.rows.front().seconds[series];
    auto const times = first && *first > 0 ? fmt::format(" · {:.1f} ×", seconds / *first) : "";
    say(kBarsAt + length + 8, "figure", fmt::format("{:.2f} s{}", seconds, times));
  }

  BarChart const& chart_;
  double longest_ = 0;
  std::string text_;
  int y_ = 0;
};

}  // namespace

std::string svg_chart(BarChart const& chart) { return Drawing(chart).document(); }

}  // namespace rankslice::cli
