#pragma once

#include <cstdint>

#include "core/digest_factors.hpp"

namespace rankslice {

/// What the threads of a block do to digest one panel of a box of words. Plain functions, which the host compiles and
/// tests as well.

constexpr std::uint32_t kPanelLanes = 32;     // threads beside each other on a line
constexpr std::uint32_t kPanelThreads = 256;  // of a block: 8 lines at a time
constexpr std::uint32_t kPanelPositions = 8;  // of each thread, whose factors stay in registers
constexpr std::uint64_t kPanelLength = kPanelLanes * kPanelPositions;
constexpr std::uint64_t kPanelLines = 256;

/// A `DigestBox` in words: position p of line l of entry e lies e·entry_stride + l·line_stride + p·position_stride
/// words behind `words`; line l is at first_line + l·line_step of its axis.
template <typename Word>
struct WordBox {
  Word const* words;
  std::uint64_t entries, lines, length;
  std::uint64_t entry_stride, line_stride, position_stride;
  std::uint64_t first_line, line_step, first_position;
  DigestAxis line_axis, position_axis;
};

template <typename Word>
constexpr std::uint64_t panels_across(WordBox<Word> const& box) {
  return (box.length + kPanelLength - 1) / kPanelLength;
}

template <typename Word>
constexpr std::uint64_t panels_per_entry(WordBox<Word> const& box) {
  return panels_across(box) * ((box.lines + kPanelLines - 1) / kPanelLines);
}

/// Σ F_r·F_c·(word + 1) over the words that one thread takes of a panel. The panels of one entry follow each other.
template <typename Word>
constexpr std::uint64_t weigh_panel(WordBox<Word> const& box, std::uint64_t panel, std::uint32_t thread) {
  auto const entry = panel / panels_per_entry(box);
  auto const of_entry = panel % panels_per_entry(box);
  auto const position = of_entry % panels_across(box) * kPanelLength + thread % kPanelLanes;
  auto const first_line = of_entry / panels_across(box) * kPanelLines;
  auto const end = first_line + kPanelLines < box.lines ? first_line + kPanelLines : box.lines;

  std::uint32_t factors[kPanelPositions]{};  // zero where the line ends before
  std::uint64_t of_ones = 0;                 // what the + 1 of all words weighs, the same on every line
  for (std::uint32_t i = 0; i < kPanelPositions; ++i) {
    auto const p = position + i * kPanelLanes;
    if (p < box.length) factors[i] = digest_factor(box.position_axis, box.first_position + p);
    of_ones += factors[i];
  }
  std::uint64_t sum = 0;
  auto const* const words = box.words + entry * box.entry_stride + position * box.position_stride;
  for (auto line = first_line + thread / kPanelLanes; line < end; line += kPanelThreads / kPanelLanes) {
    auto of_line = of_ones;
    for (std::uint32_t i = 0; i < kPanelPositions; ++i) {
      if (position + i * kPanelLanes < box.length) {
        of_line += std::uint64_t{factors[i]} * words[line * box.line_stride + i * kPanelLanes * box.position_stride];
      }
    }
    sum += of_line * digest_factor(box.line_axis, box.first_line + line * box.line_step);
  }
  return sum;
}

}  // namespace rankslice
