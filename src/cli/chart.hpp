#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace rankslice::cli {

/// What something took, each time that it was done.
struct BarRow {
  enum class Kind : std::uint8_t { ours, theirs, limit };
  std::string name;
  Kind kind = Kind::theirs;
  std::vector<std::optional<double>> seconds{};  ///< A bar for each of `BarChart::series`; none where it is not known.
  std::string note{};                            ///< Stands to the right of them.
};

struct BarChart {
  std::string title;
  std::vector<std::string> series;
  std::string notes;  ///< What the notes of the rows are.
  std::vector<BarRow> rows;
  std::vector<std::string> caption;
  std::string command;  ///< Stands below, as on a command line.
};

/// As an SVG document, to be read on light and on dark pages. Every bar says its seconds, and how many times those of
/// the first row they are. Long lines are broken; what is no UTF-8, or a control character, is replaced. Pure.
[[nodiscard]] std::string svg_chart(BarChart const& chart);

}  // namespace rankslice::cli
