#include "staged_writing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "rankslice/error.hpp"

#include "unit_sums.hpp"

namespace rankslice {

namespace {

using Tables = UnitWriter::Tables;

/// The sums of a segment in all tables, one after the other.
std::vector<std::uint64_t> sums_of(Segment const& segment, std::vector<Model const*> const& models,
                                   Tables const& tables) {
  std::vector<std::uint64_t> sums;
  for (std::size_t i = 0; i < models.size(); ++i) {
    auto const of_table = sums_of_units(*models[i], tables[i], segment.units);
    sums.insert(sums.end(), of_table.begin(), of_table.end());
  }
  return sums;
}

void add_sums_of(Segment const& segment, std::vector<Model const*> const& models, std::span<std::uint64_t const> sums,
                 Tables& tables) {
  for (std::size_t i = 0; i < models.size(); ++i) {
    auto const count = count_sums(*models[i], segment.units);
    add_sums(*models[i], sums.first(count), segment.units, tables[i]);
    sums = sums.subspan(count);
  }
}

}  // namespace

StagedWriting::StagedWriting(SharedOutput& output, std::vector<Segment> segments, UnitWriter& writer,
                             Communicator& world, std::optional<Recording> recording)
    : output_(output),
      segments_(std::move(segments)),
      writer_(writer),
      world_(world),
      recording_(recording),
      recorded_(writer.none()),
      sums_(recorded_) {}

void StagedWriting::find_recorded(std::vector<bool> const& files_made) {
  auto const models = writer_.models();
  std::set<std::string> unusable;
  for (auto const& [name, sums] : output_.recorded()) unusable.insert(name);
  taken_over_.clear();
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    auto const& segment = segments_[i];
    auto const record = output_.recorded().find(segment.name);
    auto const is_new = [&](std::uint32_t file) { return files_made[file]; };
    if (record == output_.recorded().end() || std::ranges::any_of(segment.files, is_new)) continue;
    std::size_t count = 0;
    for (auto const* const model : models) count += count_sums(*model, segment.units);
    if (record->second.size() != count) continue;
    taken_over_.push_back(i);
    unusable.erase(segment.name);
  }
  if (!unusable.empty()) output_.forget({unusable.begin(), unusable.end()});
  add_recorded();
}

void StagedWriting::take_over(CallOptions const& call) {
  if (taken_over_.empty()) return;
  auto found = writer_.read_back(units_taken_over());
  sum_over_ranks(found);
  forget(damaged(found), call);
  on_every_rank(world_, [&] {
    writer_.require_equal(recorded_, units_taken_over(), Whose::all_ranks);
    if (world_.rank() != 0 || !call.notice) return;
    auto const there = resumed().value();
    call.notice({.warning = false,
                 .text = fmt::format("going on in {}: {} of {} parts ({:.1f} GB) are there", output_.path(),
                                     there.segments, there.of, static_cast<double>(there.bytes) / 1e9)});
  });
}

void StagedWriting::write() {
  for (auto const& stage : divide_into_stages(segments_, to_write(), stage_bytes())) write_stage(stage);
}

/// So much that all who write have something to do, and so little that not much is lost with it.
std::uint64_t StagedWriting::stage_bytes() const {
  if (!recording_) return std::numeric_limits<std::uint64_t>::max();
  std::uint64_t all = 0;
  for (auto const& segment : segments_) all += segment.bytes;
  return std::min(recording_->stage_bytes * static_cast<std::uint64_t>(writer_.writers()), all / 100);
}

std::optional<Resumed> StagedWriting::resumed() const {
  if (!output_.taken_over()) return std::nullopt;
  Resumed resumed{.segments = taken_over_.size(), .of = segments_.size(), .bytes = 0};
  for (auto const number : taken_over_) resumed.bytes += segments_[number].bytes;
  return resumed;
}

std::vector<std::size_t> StagedWriting::to_write() const {
  std::vector<std::size_t> numbers;
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    if (!std::ranges::binary_search(taken_over_, i)) numbers.push_back(i);
  }
  return numbers;
}

void StagedWriting::add_recorded() {
  auto const models = writer_.models();
  recorded_ = writer_.none();
  for (auto const number : taken_over_) {
    auto const& segment = segments_[number];
    add_sums_of(segment, models, output_.recorded().at(segment.name), recorded_);
  }
  sums_ = recorded_;
}

/// Which segments are not as recorded; `found` are the tables of what is written.
std::vector<std::size_t> StagedWriting::damaged(Tables const& found) const {
  auto models = writer_.models();
  auto const first = models.size() - found.size();
  models.erase(models.begin(), models.begin() + static_cast<std::ptrdiff_t>(first));
  Tables const written(recorded_.begin() + static_cast<std::ptrdiff_t>(first), recorded_.end());
  std::vector<std::size_t> numbers;
  for (auto const number : taken_over_) {
    if (sums_of(segments_[number], models, found) != sums_of(segments_[number], models, written)) {
      numbers.push_back(number);
    }
  }
  return numbers;
}

/// What has changed since it was recorded.
void StagedWriting::forget(std::vector<std::size_t> const& lost, CallOptions const& call) {
  if (lost.empty()) return;
  std::vector<std::string> names;
  for (auto const number : lost) {
    names.push_back(segments_[number].name);
    std::erase(taken_over_, number);
  }
  output_.forget(names);
  add_recorded();
  on_every_rank(world_, [&] {
    if (world_.rank() != 0 || !call.notice) return;
    call.notice({.warning = true,
                 .text = fmt::format("{}: not what an earlier run wrote there, so it is written again: {}",
                                     output_.path(), fmt::join(names, ", "))});
  });
}

void StagedWriting::write_stage(std::vector<std::size_t> const& numbers) {
  auto const& units = stages_.emplace_back(units_of(segments_, numbers));
  auto tables = writer_.write(units);
  on_every_rank(world_, [&] { writer_.require_equal(tables, units, Whose::this_rank); });
  if (!recording_ && !writer_.compares_sums()) return;
  sum_over_ranks(tables);
  on_every_rank(world_, [&] { writer_.require_equal(tables, units, Whose::all_ranks); });
  for (std::size_t i = 0; i < sums_.size(); ++i) add_digests(tables[i], sums_[i]);
  if (recording_) record(numbers, tables);
}

void StagedWriting::record(std::vector<std::size_t> const& numbers, Tables const& tables) {
  auto const models = writer_.models();
  std::vector<SegmentRecord> records;
  for (auto const number : numbers) {
    records.push_back({segments_[number].name, sums_of(segments_[number], models, tables)});
  }
  output_.record(records);
}

void StagedWriting::sum_over_ranks(Tables& tables) {
  for (auto& digests : tables) {
    world_.all_reduce(digests.source.values(), Reduce::sum);
    world_.all_reduce(digests.stored.values(), Reduce::sum);
  }
}

}  // namespace rankslice
