#pragma once

#include <string>
#include <vector>

namespace rankslice::cli {

/// One bar: how long something took.
struct Bar {
  std::string name;
  double seconds = 0;
  bool ours = false;
};

struct BarGroup {
  std::string title;
  std::vector<Bar> bars;
};

/// A bar chart as an SVG document, to be read on light and on dark pages. Every bar says its seconds, and how many
/// times those of the first one of its group. `caption` stands below. Pure.
[[nodiscard]] std::string svg_chart(std::string const& title, std::vector<BarGroup> const& groups,
                                    std::vector<std::string> const& caption);

}  // namespace rankslice::cli
