#include "facts/timeline.hpp"

#include <algorithm>
#include <utility>

namespace rankslice {

std::int64_t steady_ns() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Timeline::Phase::Phase(Timeline& timeline, std::string name) : timeline_(timeline) {
  auto const now = steady_ns();
  if (!timeline_.open_.empty()) timeline_.end_blocks(timeline_.open_.back());
  timeline_.open_.push_back(
      {.span = {.name = std::move(name), .kind = "phase", .begin_ns = now}, .blocks = {}, .mark_ns = now});
}

Timeline::Phase::~Phase() {
  if (open_) static_cast<void>(timeline_.end_phase(true));
}

std::int64_t Timeline::Phase::close() {
  open_ = false;
  return timeline_.end_phase(false);
}

std::int64_t Timeline::end_phase(bool failed) {
  end_blocks(open_.back());
  auto span = std::move(open_.back().span);
  open_.pop_back();
  progress_ = {};
  span.end_ns = steady_ns();
  span.failed = failed;
  if (failed && failed_.empty()) failed_ = span.name;
  if (!open_.empty()) open_.back().mark_ns = span.end_ns;
  spans_.push_back(std::move(span));
  return spans_.back().end_ns - spans_.back().begin_ns;
}

void Timeline::end_blocks(Open& phase) {
  if (phase.blocks.name.empty()) return;
  phase.mark_ns = phase.blocks.end_ns;
  phase.blocks.name += " blocks";
  spans_.push_back(std::exchange(phase.blocks, {}));
}

void Timeline::add_block(Progress const& progress) {
  progress_phase_ = progress.phase;
  progress_ = progress;
  progress_.phase = progress_phase_;
  if (open_.empty()) return;
  auto& phase = open_.back();
  auto& blocks = phase.blocks;
  if (blocks.name != progress.phase) {
    end_blocks(phase);
    blocks = {.name = std::string(progress.phase), .kind = "blocks", .begin_ns = phase.mark_ns};
    blocks.end_ns = blocks.begin_ns;
    phase.counted = 0;
  }
  auto const now = steady_ns();
  blocks.longest_ns = std::max(blocks.longest_ns, now - std::exchange(blocks.end_ns, now));
  if (progress.done < phase.counted) phase.counted = 0;  // it begins anew
  blocks.blocks += progress.done > phase.counted ? 1 : 0;
  blocks.bytes += progress.done - std::exchange(phase.counted, progress.done);
}

void Timeline::add_wait() {
  auto const& last = spans_.back();
  auto const now = steady_ns();
  spans_.push_back({.name = "wait after " + last.name, .kind = "wait", .begin_ns = last.end_ns, .end_ns = now});
  if (!open_.empty()) open_.back().mark_ns = now;
}

std::string const& Timeline::phase() const {
  static std::string const none;
  if (!failed_.empty()) return failed_;
  return open_.empty() ? none : open_.back().span.name;
}

}  // namespace rankslice
