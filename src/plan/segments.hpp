#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/literals.hpp"
#include "plan/plan.hpp"

// An output is written unit by unit: an expert with all its rows, in however many tensors it lies, or a whole dense
// parameter. Units are never divided, so that the digests of each are known when it is written.
namespace rankslice {

/// The units of an output that are recorded together when they are written.
struct Segment {
  std::string name;
  std::vector<PlannedSlice> units;   ///< By parameter; neighbouring experts are one slice.
  std::vector<std::uint32_t> files;  ///< In which files of the target they have bytes, ascending.
  std::uint64_t bytes = 0;           ///< Of the units in the target.
};

/// The segments of a target in the order of its bytes: of files the units that begin in each; of a store consecutive
/// whole parameters of together at least so many bytes, but for the last, so that every rank has its part of each
/// stacked one. Every unit of which the target has something is in one of them. Pure, as are the others.
[[nodiscard]] std::vector<Segment> divide_into_segments(Model const& model, Storage const& target,
                                                        std::uint64_t store_bytes = 256_MiB);

/// The units of several segments, by parameter; neighbouring experts are one slice.
[[nodiscard]] std::vector<PlannedSlice> units_of(std::vector<Segment> const& segments,
                                                 std::vector<std::size_t> const& numbers);

/// What of a plan belongs to some units, in the order of the plan.
[[nodiscard]] std::vector<PlannedSlice> cut_by_units(std::vector<PlannedSlice> const& plan,
                                                     std::vector<PlannedSlice> const& units);

/// As the save plan of everything (`plan.hpp`), of some units only: those who hold the same of their dense parameters
/// share these by bytes, so that a few of them are work for all. @throws PlanError as that
[[nodiscard]] std::vector<PlannedSlice> make_save_plan(Model const& model, Holdings const& holdings, int rank,
                                                       std::vector<PlannedSlice> const& units);

/// What is written between two agreements: consecutive ones of the segments `to_do`, of together at most `bytes`, but
/// at least one.
[[nodiscard]] std::vector<std::vector<std::size_t>> divide_into_stages(std::vector<Segment> const& segments,
                                                                       std::vector<std::size_t> const& to_do,
                                                                       std::uint64_t bytes);

}  // namespace rankslice
