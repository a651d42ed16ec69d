#include "io/window_reader.hpp"

#include <algorithm>

namespace rankslice {

WindowReader::WindowReader(std::unique_ptr<FileReader> file, std::vector<Range> const& runs, ReadWindow& window)
    : file_(std::move(file)), window_(window) {
  for (auto const& run : runs) unread_.emplace_hint(unread_.end(), run.begin, run.end);
}

void WindowReader::read(std::span<std::byte> out, std::uint64_t offset) {
  auto const held = std::min<std::uint64_t>(held_from(offset), out.size());
  if (held == out.size()) return serve(out, offset);
  Range const missing{offset + held, offset + out.size()};
  auto const around = unread_around(missing);
  if (around == unread_.end()) return file_->read(out, offset);

  serve(out.first(held), offset);
  auto const rest = out.subspan(held);
  Range const ahead{around->first, std::min(around->second, around->first + window_.capacity_)};
  auto const is_small = out.size() < window_.capacity_ / 2;
  if (is_small && should_fill(ahead, missing)) {
    fill(ahead);
    mark_read(around, ahead);
    return serve(rest, missing.begin);
  }
  file_->read(rest, missing.begin);
  mark_read(around, missing);
}

/// How many bytes from `offset` on are in the window.
std::uint64_t WindowReader::held_from(std::uint64_t offset) const {
  auto const& range = window_.range_;
  return window_.owner_ == this && range.begin <= offset && offset < range.end ? range.end - offset : 0;
}

/// Copy bytes that are in the window.
void WindowReader::serve(std::span<std::byte> out, std::uint64_t offset) {
  if (out.empty()) return;
  std::ranges::copy(std::span(window_.bytes_).subspan(offset - window_.range_.begin, out.size()), out.begin());
  window_.unserved_ -= std::min<std::uint64_t>(window_.unserved_, out.size());
}

/// The range that holds all that is wanted and was not read; the end when there is none.
WindowReader::Unread::iterator WindowReader::unread_around(Range wanted) {
  auto const after = unread_.upper_bound(wanted.begin);
  if (after == unread_.begin()) return unread_.end();
  auto const around = std::prev(after);
  return wanted.end <= around->second ? around : unread_.end();
}

/// Only where the window loses nothing by it and gains more than what is wanted now.
bool WindowReader::should_fill(Range ahead, Range wanted) const {
  return window_.unserved_ == 0 && wanted.end <= ahead.end && wanted != ahead;
}

void WindowReader::fill(Range ahead) {
  window_.owner_ = nullptr;  // should the read fail
  window_.bytes_.resize(window_.capacity_);
  file_->read(std::span(window_.bytes_).first(ahead.size()), ahead.begin);
  window_.owner_ = this;
  window_.range_ = ahead;
  window_.unserved_ = ahead.size();
}

void WindowReader::leave_window() {
  if (window_.owner_ != this) return;
  window_.owner_ = nullptr;
  window_.unserved_ = 0;
}

void WindowReader::mark_read(Unread::iterator around, Range read) {
  Range const unread{around->first, around->second};
  auto const next = unread_.erase(around);
  if (read.end < unread.end) unread_.emplace_hint(next, read.end, unread.end);
  if (unread.begin < read.begin) unread_.emplace(unread.begin, read.begin);
}

}  // namespace rankslice
