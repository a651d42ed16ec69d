#include "io/block_plan.hpp"

#include <algorithm>
#include <utility>

namespace rankslice {

namespace {

/// Ranges that touch as one, ascending.
std::vector<Range> merge(std::vector<Range> ranges) {
  std::ranges::sort(ranges);
  std::vector<Range> runs;
  for (auto const& range : ranges) {
    if (runs.empty() || range.begin > runs.back().end) {
      runs.push_back(range);
    } else {
      runs.back().end = std::max(runs.back().end, range.end);
    }
  }
  return runs;
}

/// The blocks of all files, in the order of their places.
std::vector<PlannedBlock> cut(std::vector<Extent> const& runs, std::uint64_t most) {
  std::vector<PlannedBlock> blocks;
  for (auto const& [file, run] : runs) {
    for (auto begin = run.begin; begin < run.end; begin += most) {
      blocks.push_back({.file = file, .bytes = {begin, std::min(begin + most, run.end)}});
    }
  }
  return blocks;
}

/// What is read for extents that are sorted.
std::vector<Extent> join(std::vector<Extent> const& sorted, BlockLimits const& limits) {
  auto const unit = limits.alignment;
  std::vector<Extent> runs;
  for (auto const& [file, bytes] : sorted) {
    Range const aligned{bytes.begin / unit * unit, (bytes.end + unit - 1) / unit * unit};
    auto const joins =
        !runs.empty() && runs.back().file == file && aligned.begin <= runs.back().bytes.end + limits.most_gap;
    if (joins) {
      runs.back().bytes.end = std::max(runs.back().bytes.end, aligned.end);
    } else {
      runs.push_back({file, aligned});
    }
  }
  return runs;
}

std::uint64_t bytes_covered(std::vector<Extent> const& sorted) {
  std::uint64_t covered = 0;
  Extent last;
  for (auto const& extent : sorted) {
    auto const begin = extent.file == last.file ? std::max(extent.bytes.begin, last.bytes.end) : extent.bytes.begin;
    if (begin >= extent.bytes.end) continue;
    covered += extent.bytes.end - begin;
    last = extent;
  }
  return covered;
}

}  // namespace

std::vector<std::vector<Range>> runs_by_file(std::vector<Extent> const& extents, std::size_t files) {
  std::vector<std::vector<Range>> by_file(files);
  for (auto const& extent : extents) by_file[extent.file].push_back(extent.bytes);
  for (auto& ranges : by_file) ranges = merge(std::move(ranges));
  return by_file;
}

BlockPlan plan_blocks(std::vector<Extent> const& extents, BlockLimits const& limits) {
  auto sorted = extents;
  std::erase_if(sorted, [](Extent const& extent) { return extent.bytes.empty(); });
  std::ranges::sort(sorted);
  auto const runs = join(sorted, limits);
  auto placed = cut(runs, limits.bytes);

  BlockPlan plan{.blocks = {}, .wanted = bytes_covered(sorted), .read = 0};
  for (auto const& run : runs) plan.read += run.bytes.size();
  std::vector<std::size_t> order;  // of those that are asked for, which is not all: a gap can be a block
  for (auto const& [file, bytes] : extents) {
    auto const ends_before = [](PlannedBlock const& block, Extent const& place) {
      return std::pair(block.file, block.bytes.end) <= std::pair(place.file, place.bytes.begin);
    };
    auto block = std::lower_bound(placed.begin(), placed.end(), Extent{file, bytes}, ends_before);
    for (; block != placed.end() && block->file == file && block->bytes.begin < bytes.end; ++block) {
      if (bytes.empty()) break;
      if (block->requested == 0) order.push_back(static_cast<std::size_t>(block - placed.begin()));
      block->requested += intersection(block->bytes, bytes).size();
    }
  }
  for (auto const index : order) plan.blocks.push_back(placed[index]);
  return plan;
}

std::vector<Extent> within(std::vector<Extent> const& extents, std::vector<std::vector<Range>> const& parts) {
  std::vector<Extent> inside;
  for (auto const& [file, bytes] : extents) {
    auto const& of_file = parts[file];
    auto part = std::ranges::upper_bound(of_file, bytes.begin, {}, &Range::end);
    for (; part != of_file.end() && part->begin < bytes.end; ++part) {
      auto const shared = intersection(*part, bytes);
      if (!shared.empty()) inside.push_back({file, shared});
    }
  }
  return inside;
}

std::vector<Range> without(std::vector<Range> const& runs, std::vector<Range> const& parts) {
  std::vector<Range> left;
  auto part = parts.begin();
  for (auto run : runs) {
    while (part != parts.end() && part->end <= run.begin) ++part;
    for (auto cut = part; cut != parts.end() && cut->begin < run.end; ++cut) {
      if (run.begin < cut->begin) left.push_back({run.begin, cut->begin});
      run.begin = std::min(run.end, cut->end);
    }
    if (!run.empty()) left.push_back(run);
  }
  return left;
}

}  // namespace rankslice
