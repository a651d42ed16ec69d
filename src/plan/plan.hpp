#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/mesh.hpp"

namespace rankslice {

/// One parameter's part for one rank.
struct PlannedPart {
  std::uint32_t parameter = 0;
  Range part;  ///< In the units of `Parameter::part_count`; may be empty for experts (a rank without any).
};

/// What one rank reads and holds.
struct LoadPlan {
  std::vector<PlannedPart> parts;
  std::uint64_t bytes_read = 0;   ///< In the form of the storage.
  std::uint64_t bytes_owned = 0;  ///< In the native form.
};

using KeySelection = std::function<bool(std::string_view hf_key)>;

/// Experts by rule 9 over `ep`, all other tensors whole on every rank. Pure.
[[nodiscard]] LoadPlan make_load_plan(std::vector<Parameter> const& parameters, Form storage_form, Mesh const& mesh,
                                      MeshCoordinate const& coordinate, KeySelection const& keys = {});

/// Bytes that each rank of a mesh reads and holds, in time that grows with tensors + ranks. Pure.
struct RankBytes {
  std::uint64_t read = 0;
  std::uint64_t owned = 0;
  std::uint64_t experts = 0;  ///< Of the first stacked tensor: how many this rank owns.
};
[[nodiscard]] std::vector<RankBytes> plan_all_ranks(std::vector<Parameter> const& parameters, Form storage_form,
                                                    Mesh const& mesh);

/// Which parts each rank writes (or reads, when ranks share a whole checkpoint): every unit of every parameter exactly
/// once over the mesh. A rank writes experts that it holds, replicas share them; dense tensors are divided among all
/// ranks by bytes. Pure.
[[nodiscard]] std::vector<PlannedPart> make_save_plan(std::vector<Parameter> const& parameters, Mesh const& mesh,
                                                      MeshCoordinate const& coordinate);

/// Bytes of the parts of a plan in a form. Pure.
[[nodiscard]] std::uint64_t plan_bytes(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                                       Form form);

/// The extents that hold a part, in order. Adjacent ones are merged.
/// @throws PlanError when the pieces do not cover the part.
struct LocatedPart {
  Range part;
  Extent extent;
};
[[nodiscard]] std::vector<LocatedPart> locate(Storage const& storage, std::vector<Parameter> const& parameters,
                                              PlannedPart const& wanted);

}  // namespace rankslice
