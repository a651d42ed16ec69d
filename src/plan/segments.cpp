#include "plan/segments.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace rankslice {

namespace {

/// Where a unit lies in a target.
struct Place {
  std::optional<Extent> first;  // its first byte, and the rest of the tensor there
  std::set<std::uint32_t> files;
};

/// A segment in the making.
struct Filling {
  std::vector<PlannedSlice> units;
  std::set<std::uint32_t> files;
};

/// The experts of a stacked parameter one by one, or all of a dense one.
std::vector<Range> unit_parts(Parameter const& parameter) {
  if (!parameter.stacked_experts) return {parameter.whole().part};
  std::vector<Range> experts;
  for (std::uint64_t expert = 0; expert < parameter.part_count(); ++expert) experts.push_back({expert, expert + 1});
  return experts;
}

/// By unit of a parameter.
std::vector<Place> places_of_units(Parameter const& parameter, std::span<StoredPiece const> pieces) {
  std::vector<Place> places(parameter.stacked_experts ? parameter.part_count() : 1);
  auto const add = [](Place& place, Extent const& extent) {
    place.first = std::min(place.first.value_or(extent), extent);
    place.files.insert(extent.file);
  };
  for (auto const& piece : pieces) {
    auto const experts = parameter.stacked_experts ? piece.slice.part : Range{0, 1};
    for (auto expert = experts.begin; expert < experts.end; ++expert) {
      auto extent = piece.extent;
      extent.bytes.begin += (expert - experts.begin) * (extent.bytes.size() / experts.size());
      add(places[expert], extent);
      if (piece.scales) places[expert].files.insert(piece.scales->file);
    }
  }
  return places;
}

void append(std::vector<PlannedSlice>& units, std::uint32_t parameter, Slice const& unit) {
  auto const continues = !units.empty() && units.back().parameter == parameter &&
                         units.back().slice.part.end == unit.part.begin && units.back().slice.rows == unit.rows;
  if (continues) {
    units.back().slice.part.end = unit.part.end;
  } else {
    units.push_back({parameter, unit});
  }
}

/// Of each file what begins in it.
std::vector<Segment> segments_of_files(Model const& model, Storage const& target) {
  std::map<std::uint32_t, Filling> fillings;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    auto const pieces = std::ranges::equal_range(target.pieces, i, {}, &StoredPiece::parameter);
    auto const places = places_of_units(parameter, {pieces.begin(), pieces.end()});
    auto const parts = unit_parts(parameter);
    for (std::size_t unit = 0; unit < parts.size(); ++unit) {
      if (!places[unit].first) continue;
      auto& filling = fillings[places[unit].first->file];
      append(filling.units, i, {.part = parts[unit], .rows = parameter.whole().rows});
      filling.files.insert(places[unit].files.begin(), places[unit].files.end());
    }
  }
  std::vector<Segment> segments;
  for (auto& [file, filling] : fillings) {
    segments.push_back({.name = target.files[file].name,
                        .units = std::move(filling.units),
                        .files = {filling.files.begin(), filling.files.end()}});
  }
  return segments;
}

/// Whole parameters, of which all ranks have their part: the experts of a rank are a contiguous block of each.
std::vector<Segment> segments_of_store(Model const& model, Storage const& target, std::uint64_t least_bytes) {
  auto pieces = target.pieces;
  std::ranges::sort(pieces, {}, &StoredPiece::extent);
  std::vector<Segment> segments;
  auto in_segment = least_bytes;
  for (auto const& piece : pieces) {
    if (in_segment >= least_bytes) {
      segments.push_back({.name = fmt::format("piece {}", segments.size()), .units = {}, .files = {piece.extent.file}});
      in_segment = 0;
    }
    segments.back().units.push_back({piece.parameter, model.parameters[piece.parameter].whole()});
    in_segment += piece.extent.bytes.size();
  }
  for (auto& segment : segments) std::ranges::sort(segment.units, {}, &PlannedSlice::parameter);
  return segments;
}

}  // namespace

std::vector<Segment> divide_into_segments(Model const& model, Storage const& target, std::uint64_t store_bytes) {
  auto segments =
      target.form == Form::native ? segments_of_store(model, target, store_bytes) : segments_of_files(model, target);
  for (auto& segment : segments) segment.bytes = stored_bytes(target, model, segment.units).wanted;
  return segments;
}

std::vector<PlannedSlice> units_of(std::vector<Segment> const& segments, std::vector<std::size_t> const& numbers) {
  std::vector<PlannedSlice> all;
  for (auto const number : numbers) {
    all.insert(all.end(), segments[number].units.begin(), segments[number].units.end());
  }
  std::ranges::sort(all, {}, [](PlannedSlice const& unit) { return std::pair(unit.parameter, unit.slice); });
  std::vector<PlannedSlice> joined;
  for (auto const& [parameter, unit] : all) append(joined, parameter, unit);
  return joined;
}

std::vector<PlannedSlice> cut_by_units(std::vector<PlannedSlice> const& plan, std::vector<PlannedSlice> const& units) {
  std::vector<PlannedSlice> cut;
  for (auto const& [parameter, slice] : plan) {
    for (auto const& unit : std::ranges::equal_range(units, parameter, {}, &PlannedSlice::parameter)) {
      auto const common = intersection(unit.slice, slice);
      if (!common.empty()) cut.push_back({parameter, common});
    }
  }
  return cut;
}

std::vector<std::vector<std::size_t>> divide_into_stages(std::vector<Segment> const& segments,
                                                         std::vector<std::size_t> const& to_do, std::uint64_t bytes) {
  std::vector<std::vector<std::size_t>> stages;
  std::uint64_t in_stage = 0;
  for (auto const number : to_do) {
    if (stages.empty() || in_stage + segments[number].bytes > bytes) {
      stages.emplace_back();
      in_stage = 0;
    }
    stages.back().push_back(number);
    in_stage += segments[number].bytes;
  }
  return stages;
}

}  // namespace rankslice
