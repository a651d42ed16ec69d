#pragma once

#include "rankslice/device.hpp"

#include "device/digest_panel.hpp"

namespace rankslice {

/// A box in words of its element size, or of half of it. Of elements of 8 bytes their columns count twice, so where
/// positions are rows, the halves are two boxes: `half` 0 and 1.
template <typename Word>
WordBox<Word> word_box(DigestBox const& box, std::uint64_t half = 0) {
  auto const halves = box.element_bytes / sizeof(Word);
  auto const lines_are_columns = box.swapped;
  return {.words = reinterpret_cast<Word const*>(box.data) + half,
          .entries = box.entries,
          .lines = box.lines,
          .length = lines_are_columns ? box.length : box.length * halves,
          .entry_stride = box.entry_stride * halves,
          .line_stride = box.line_stride * halves,
          .position_stride = lines_are_columns ? halves : 1,
          .first_line = lines_are_columns ? box.first_line * halves + half : box.first_line,
          .line_step = lines_are_columns ? halves : 1,
          .first_position = lines_are_columns ? box.first_position : box.first_position * halves,
          .line_axis = lines_are_columns ? DigestAxis::column : DigestAxis::row,
          .position_axis = lines_are_columns ? DigestAxis::row : DigestAxis::column};
}

/// Call step(words) for the one or two boxes of words that a box is.
template <typename Step>
void for_each_word_box(DigestBox const& box, Step const& step) {
  if (box.element_bytes == 1) return step(word_box<std::uint8_t>(box));
  if (box.element_bytes == 2) return step(word_box<std::uint16_t>(box));
  step(word_box<std::uint32_t>(box));
  if (box.element_bytes == 8 && box.swapped) step(word_box<std::uint32_t>(box, 1));
}

}  // namespace rankslice
