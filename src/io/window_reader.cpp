#include "io/window_reader.hpp"

#include <algorithm>

namespace rankslice {

WindowReader::WindowReader(std::unique_ptr<FileReader> file, std::vector<Range> const& runs, ReadWindows& windows)
    : file_(std::move(file)), windows_(windows) {
  for (auto const& run : runs) unread_.emplace_hint(unread_.end(), run.begin, run.end);
}

WindowReader::~WindowReader() {
  for (auto& window : windows_.windows_) {
    if (window.owner != this) continue;
    window.owner = nullptr;
    window.unserved = 0;
  }
}

void WindowReader::read(std::span<std::byte> out, std::uint64_t offset) {
  auto const is_small = out.size() < windows_.capacity_ / 2;
  while (!out.empty()) {
    if (auto* const window = window_with(offset)) {
      auto const served = serve(*window, out, offset);
      out = out.subspan(served);
      offset += served;
      continue;
    }
    Range const missing{offset, offset + out.size()};
    auto const around = unread_around(missing);
    if (around == unread_.end()) return file_->read(out, offset);
    Range const ahead{around->first, std::min(around->second, around->first + windows_.capacity_)};
    auto const gains = is_small && missing.end <= ahead.end && missing != ahead;
    auto* const window = gains ? free_window() : nullptr;
    if (window == nullptr) {
      file_->read(out, offset);
      return mark_read(around, missing);
    }
    fill(*window, ahead);
    mark_read(around, ahead);
  }
}

/// The one that has this byte of the file.
WindowReader::Window* WindowReader::window_with(std::uint64_t offset) {
  auto const has = [&](Window const& window) {
    return window.owner == this && window.range.begin <= offset && offset < window.range.end;
  };
  auto const found = std::ranges::find_if(windows_.windows_, has);
  return found != windows_.windows_.end() ? &*found : nullptr;
}

/// One whose bytes have all been asked for: what a window holds is not thrown away, to be read a second time.
WindowReader::Window* WindowReader::free_window() {
  auto const found = std::ranges::find(windows_.windows_, std::uint64_t{0}, &Window::unserved);
  return found != windows_.windows_.end() ? &*found : nullptr;
}

/// Copy what a window has from `offset` on. Returns how many bytes.
std::size_t WindowReader::serve(Window& window, std::span<std::byte> out, std::uint64_t offset) {
  auto const held = std::min<std::uint64_t>(out.size(), window.range.end - offset);
  auto const bytes = std::span(window.bytes).subspan(offset - window.range.begin, held);
  std::ranges::copy(bytes, out.begin());
  window.unserved -= std::min(window.unserved, held);
  return held;
}

void WindowReader::fill(Window& window, Range ahead) {
  window.owner = nullptr;  // should the read fail
  window.bytes.resize(windows_.capacity_);
  file_->read(std::span(window.bytes).first(ahead.size()), ahead.begin);
  window.owner = this;
  window.range = ahead;
  window.unserved = ahead.size();
}

/// The range that holds all that is wanted and was not read; the end when there is none.
WindowReader::Unread::iterator WindowReader::unread_around(Range wanted) {
  auto const after = unread_.upper_bound(wanted.begin);
  if (after == unread_.begin()) return unread_.end();
  auto const around = std::prev(after);
  return wanted.end <= around->second ? around : unread_.end();
}

void WindowReader::mark_read(Unread::iterator around, Range read) {
  Range const unread{around->first, around->second};
  auto const next = unread_.erase(around);
  if (read.end < unread.end) unread_.emplace_hint(next, read.end, unread.end);
  if (unread.begin < read.begin) unread_.emplace(unread.begin, read.begin);
}

}  // namespace rankslice
