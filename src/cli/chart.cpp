#include "cli/chart.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace rankslice::cli {

namespace {

constexpr auto kWidth = 760, kNameWidth = 190, kFiguresWidth = 120;
constexpr auto kLine = 22, kBar = 16, kMargin = 12;

constexpr auto kStyle = R"(<style>
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .title { font-size: 15px; font-weight: 600; }
  .caption { font: 11px ui-monospace, monospace; fill: #59636e; }
  .ours { fill: #1a7f64; } .other { fill: #9aa4ae; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .caption { fill: #9198a1; } .ours { fill: #3fb99a; } .other { fill: #6e7781; }
  }
</style>
)";

std::string escaped(std::string const& text) {
  std::string safe;
  for (auto const letter : text) {
    switch (letter) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      default:
        safe += letter;
    }
  }
  return safe;
}

/// The lines of a chart, one below the other.
class Drawing {
 public:
  explicit Drawing(double longest) : longest_(longest) {}

  void say(std::string const& text, std::string_view style) {
    text_ +=
        fmt::format("<text x=\"{}\" y=\"{}\" class=\"{}\">{}</text>\n", kMargin, next_line(), style, escaped(text));
  }
  void draw(Bar const& bar, double times) {
    auto const y = next_line();
    auto const room = kWidth - kNameWidth - kFiguresWidth - 2 * kMargin;
    auto const length = std::max(1.0, bar.seconds / longest_ * room);
    auto const x = kMargin + kNameWidth;
    text_ += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n", x - 8, y, escaped(bar.name));
    text_ += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{:.1f}\" height=\"{}\" rx=\"2\" class=\"{}\"/>\n", x,
                         y - kBar + 4, length, kBar, bar.ours ? "ours" : "other");
    text_ +=
        fmt::format("<text x=\"{:.1f}\" y=\"{}\">{:.2f} s · {:.1f} ×</text>\n", x + length + 8, y, bar.seconds, times);
  }
  [[nodiscard]] std::string document() const {
    auto const height = y_ + kMargin;
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" width=\"{}\" height=\"{}\" role=\"img\">\n{}{}"
        "</svg>\n",
        kWidth, height, kWidth, height, kStyle, text_);
  }

 private:
  int next_line() { return y_ += kLine; }

  double longest_;
  std::string text_;
  int y_ = 0;
};

}  // namespace

std::string svg_chart(std::string const& title, std::vector<BarGroup> const& groups,
                      std::vector<std::string> const& caption) {
  double longest = 0;
  for (auto const& group : groups) {
    for (auto const& bar : group.bars) longest = std::max(longest, bar.seconds);
  }
  Drawing drawing(longest);
  drawing.say(title, "title");
  for (auto const& group : groups) {
    drawing.say(group.title, "group");
    for (auto const& bar : group.bars) drawing.draw(bar, bar.seconds / group.bars.front().seconds);
  }
  for (auto const& line : caption) drawing.say(line, "caption");
  return drawing.document();
}

}  // namespace rankslice::cli
