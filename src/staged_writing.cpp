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

/// The sums of a segment in some tables, one after the other.
std::vector<std::uint64_t> sums_of(Segment const& segment, std::span<Model const* const> models,
                                   std::span<Digests const> tables) {
  std::vector<std::uint64_t> sums;
  for (std::size_t i = 0; i < models.size(); ++i) {
    auto const of_table = sums_of_units(*models[i], tables[i], segment.units);
    sums.insert(sums.end(), of_table.begin(), of_table.end());
  }
  return sums;
}

std::size_t count_sums_of(Segment const& segment, std::span<Model const* const> models) {
  std::size_t count = 0;
  for (auto const* const model : models) count += count_sums(*model, segment.units);
  return count;
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
    : output_(output), segments_(std::move(segments)), writer_(writer), world_(world), recording_(recording) {}

void StagedWriting::run(std::vector<bool> const& files_made, CallOptions const& call) {
  find_recorded(files_made);
  on_every_rank(world_, [&] { writer_.expect(units_taken_over(), units_of(segments_, to_write())); });
  take_over(call);
  write();
}

/// Those whose files are all still there, and whose records are of as many sums as theirs.
void StagedWriting::find_recorded(std::vector<bool> const& files_made) {
  std::set<std::string> unusable;
  std::vector<std::string> names;
  on_every_rank(world_, [&] {
    auto const models = writer_.models();
    auto const is_new = [&](std::uint32_t file) { return files_made[file]; };
    for (auto const& [name, sums] : output_.recorded()) unusable.insert(name);
    for (std::size_t i = 0; i < segments_.size(); ++i) {
      auto const& segment = segments_[i];
      auto const record = output_.recorded().find(segment.name);
      if (record == output_.recorded().end() || std::ranges::any_of(segment.files, is_new)) continue;
      if (record->second.size() != count_sums_of(segment, models)) continue;
      taken_over_.push_back(i);
      unusable.erase(segment.name);
    }
    names.assign(unusable.begin(), unusable.end());
    add_recorded();
  });
  if (!names.empty()) output_.forget(names);
}

void StagedWriting::take_over(CallOptions const& call) {
  if (taken_over_.empty()) return;
  std::vector<PlannedSlice> units;
  on_every_rank(world_, [&] { units = units_taken_over(); });
  auto found = writer_.read_back(units);
  sum_over_ranks(found);
  std::vector<std::size_t> lost;
  on_every_rank(world_, [&] { lost = damaged(found); });
  forget(lost, call);
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
  std::vector<std::vector<std::size_t>> stages;
  on_every_rank(world_, [&] {
    stages = divide_into_stages(segments_, to_write(), stage_bytes());
    for (auto const& stage : stages) stages_.push_back(units_of(segments_, stage));
  });
  for (std::size_t i = 0; i < stages.size(); ++i) write_stage(stages[i], stages_[i]);
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
  auto const all = writer_.models();
  auto const models = std::span(all).subspan(writer_.first_written());
  auto const written = std::span(recorded_).subspan(writer_.first_written());
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
  on_every_rank(world_, [&] {
    for (auto const number : lost) {
      names.push_back(segments_[number].name);
      std::erase(taken_over_, number);
    }
    add_recorded();
    if (world_.rank() != 0 || !call.notice) return;
    call.notice({.warning = true,
                 .text = fmt::format("{}: not what an earlier run wrote there, so it is written again: {}",
                                     output_.path(), fmt::join(names, ", "))});
  });
  output_.forget(names);
}

void StagedWriting::write_stage(std::vector<std::size_t> const& numbers, std::vector<PlannedSlice> const& units) {
  auto tables = writer_.write(units);
  on_every_rank(world_, [&] { writer_.require_equal(tables, units, Whose::this_rank); });
  if (!recording_ && !writer_.compares_sums()) return;
  sum_over_ranks(tables);
  std::vector<SegmentRecord> records;
  on_every_rank(world_, [&] {
    writer_.require_equal(tables, units, Whose::all_ranks);
    for (std::size_t i = 0; i < sums_.size(); ++i) add_digests(tables[i], sums_[i]);
    if (recording_) records = records_of(numbers, tables);
  });
  if (recording_) output_.record(records);
}

std::vector<SegmentRecord> StagedWriting::records_of(std::vector<std::size_t> const& numbers,
                                                     Tables const& tables) const {
  auto const models = writer_.models();
  std::vector<SegmentRecord> records;
  for (auto const number : numbers) {
    records.push_back({segments_[number].name, sums_of(segments_[number], models, tables)});
  }
  return records;
}

void StagedWriting::sum_over_ranks(Tables& tables) {
  for (auto& digests : tables) {
    world_.all_reduce(digests.source.values(), Reduce::sum);
    world_.all_reduce(digests.stored.values(), Reduce::sum);
  }
}

}  // namespace rankslice
