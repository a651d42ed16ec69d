#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "rankslice/mesh.hpp"
#include "rankslice/parameter.hpp"

#include "core/holdings.hpp"

namespace rankslice {

/// Rule 15: whether `ep_shard` divides the rows of a stacked parameter. Pure, as are the others.
[[nodiscard]] bool divides(Mesh const& mesh, Parameter const& parameter);

/// What a rank is given of a parameter by a mesh: of a stacked one experts by rule 9 over `ep`, and of each rows by
/// rule 14 over `ep_shard`; all of a dense one.
/// @throws PlanError for a coordinate outside the mesh, or when `ep_shard` does not divide the rows (rule 15).
[[nodiscard]] Slice held_slice(Parameter const& parameter, Mesh const& mesh, MeshCoordinate const& coordinate);

/// What a rank holds of a parameter, and its place among those who hold the same.
struct HeldShare {
  Slice slice;
  std::uint64_t place = 0;
  std::uint64_t holders = 1;
  std::span<int const> ranks{};  ///< The holders; empty where the mesh says who they are.
};

/// @throws PlanError as above.
[[nodiscard]] HeldShare held_share(Model const& model, std::uint32_t parameter, Holdings const& holdings, int rank);

/// The rank that holds an expert whole, the first of several; none where it is divided.
[[nodiscard]] std::optional<int> holder_of_expert(Parameter const& parameter, std::uint32_t index,
                                                  Holdings const& holdings, std::uint64_t expert);

}  // namespace rankslice
