#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rankslice/digest.hpp"

#include "plan/plan.hpp"

// Digests of some units of a model (`plan/segments.hpp`) among those of all. Pure. They throw PlanError for a tensor of
// several experts that has not one digest of each: theirs could not be told apart.
namespace rankslice {

/// The numbers that a model's digests have for some units, in an order that depends on nothing else.
[[nodiscard]] std::vector<std::uint64_t> sums_of_units(Model const& model, Digests const& digests,
                                                       std::vector<PlannedSlice> const& units);

/// How many these are.
[[nodiscard]] std::size_t count_sums(Model const& model, std::vector<PlannedSlice> const& units);

/// Add such numbers to digests, in the places that they are from.
void add_sums(Model const& model, std::span<std::uint64_t const> sums, std::vector<PlannedSlice> const& units,
              Digests& digests);

/// Digests of which only those of some units are left.
[[nodiscard]] Digests of_units(Model const& model, Digests const& digests, std::vector<PlannedSlice> const& units);

/// Digests of what both are of, which is nothing in common, and of what only `all` are of.
void add_digests(Digests const& more, Digests& digests);
[[nodiscard]] Digests without(Digests const& part, Digests all);

}  // namespace rankslice
