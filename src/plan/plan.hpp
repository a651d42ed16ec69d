#pragma once

#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/mesh.hpp"

#include "core/holdings.hpp"

namespace rankslice {

/// One parameter's slice for one rank.
struct PlannedSlice {
  std::uint32_t parameter = 0;
  Slice slice;  ///< Of experts it may be empty (a rank without any).
};

/// What one rank reads and holds.
struct LoadPlan {
  std::vector<PlannedSlice> slices;
  std::uint64_t bytes_wanted = 0;  ///< In the form of the storage.
  std::uint64_t bytes_read = 0;    ///< The same with what lies between (`Parameter::read_for`).
  std::uint64_t bytes_owned = 0;   ///< In the native form.
};

/// Experts by rule 9 over `ep`, their rows by rule 14 over `ep_shard`, all other tensors whole on every rank. Pure.
/// @throws PlanError when `ep_shard` does not divide the rows (rule 15).
[[nodiscard]] LoadPlan make_load_plan(Model const& model, Form storage_form, Mesh const& mesh,
                                      MeshCoordinate const& coordinate);

/// What a rank reads and holds that has these slices, whatever a mesh says. Pure.
[[nodiscard]] LoadPlan make_load_plan(Model const& model, Form storage_form, std::vector<PlannedSlice> slices);

/// Bytes that each rank of a mesh reads and holds, in time that grows with tensors + ranks. Pure.
/// @throws PlanError as above.
struct RankBytes {
  std::uint64_t wanted = 0;
  std::uint64_t read = 0;
  std::uint64_t owned = 0;
  std::uint64_t experts = 0;  ///< Of the first stacked tensor: how many this rank owns.
};
[[nodiscard]] std::vector<RankBytes> plan_all_ranks(Model const& model, Form storage_form, Mesh const& mesh);

/// Which slices each rank writes (or reads, when ranks share a whole checkpoint): every element of every parameter
/// exactly once over all ranks. A rank writes what it holds; those who hold the same experts share these, and those who
/// hold the same of dense tensors divide that among themselves by bytes. Pure.
/// @throws PlanError when `ep_shard` does not divide the rows (rule 15).
[[nodiscard]] std::vector<PlannedSlice> make_save_plan(Model const& model, Holdings const& holdings, int rank);

/// What one rank holds of every parameter of a model. Pure. @throws PlanError as above.
[[nodiscard]] std::vector<PlannedSlice> held_slices(Model const& model, Holdings const& holdings, int rank);

/// Bytes of the slices of a plan in a form. Pure.
[[nodiscard]] std::uint64_t plan_bytes(Model const& model, std::vector<PlannedSlice> const& plan, Form form);

/// The pieces that hold a slice, and what of it each holds, in the order of the pieces; of copies only the first.
/// @throws PlanError when the pieces do not cover the slice, unless the storage is partial.
struct LocatedSlice {
  StoredPiece const* piece = nullptr;
  Slice slice;
};
[[nodiscard]] std::vector<LocatedSlice> locate(Storage const& storage, Model const& model, PlannedSlice const& wanted);

/// Bytes of the slices of a plan in a storage that may be partial: those that it has, and the same with what lies
/// between and is read with them (`Parameter::read_for`). Pure. @throws PlanError as `locate`.
struct StoredBytes {
  std::uint64_t wanted = 0;
  std::uint64_t read = 0;
};
[[nodiscard]] StoredBytes stored_bytes(Storage const& storage, Model const& model,
                                       std::vector<PlannedSlice> const& plan);

/// The bytes of the piece's file that are read for a located slice (`Parameter::read_for`), in order; without block
/// scales. Pure.
[[nodiscard]] std::vector<Range> read_ranges(Model const& model, Form storage_form, LocatedSlice const& located);

}  // namespace rankslice
