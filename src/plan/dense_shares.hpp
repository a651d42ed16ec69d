#pragma once

#include <cstdint>
#include <vector>

#include "rankslice/load.hpp"

#include "core/holdings.hpp"
#include "core/literals.hpp"
#include "plan/plan.hpp"

namespace rankslice {

/// How ranks divide the reading of the dense tensors that all of them hold whole.
struct DenseShares {
  std::vector<bool> shared;                        ///< Which parameters.
  std::vector<std::vector<PlannedSlice>> by_rank;  ///< Without empty ones; by parameter.
};

/// By their bytes in the storage, laid end to end: every rank the same number, but for the units at its bounds. A unit
/// is an element, or a whole tensor with block scales, which are all read with any part of it. Pure, as are the others.
[[nodiscard]] DenseShares share_dense(Model const& model, Form storage_form, Holdings const& holdings, int ranks);

/// What a rank reads itself of the slices that it holds: of what is shared its share.
[[nodiscard]] std::vector<PlannedSlice> slices_read(DenseShares const& shares, std::vector<PlannedSlice> const& held,
                                                    int rank);

/// What a rank of a mesh reads itself, and holds, when dense tensors are read so; `automatic` as `each_rank`, as a plan
/// knows of no hosts. Among the bytes, but not the slices, is what it reads for an exchange of rows. @throws PlanError
/// as `make_load_plan`.
[[nodiscard]] LoadPlan make_load_plan(Model const& model, Form storage_form, Mesh const& mesh, int rank,
                                      DenseReading dense);

/// Bytes that travel at once: a part of one slice, or several small slices together.
struct SharePiece {
  std::vector<PlannedSlice> slices;
  std::uint64_t bytes = 0;  ///< In the native form.
};

/// The share of each rank in pieces of up to so many bytes: of all ranks as many, the last of which may be empty.
[[nodiscard]] std::vector<std::vector<SharePiece>> share_pieces(Model const& model, DenseShares const& shares,
                                                                std::uint64_t most_bytes = 4_MiB);

/// Bytes of dense tensors that a rank takes from files, and hands on in the ring.
struct DenseTraffic {
  std::uint64_t read = 0;  ///< In the form of the storage, with block scales.
  std::uint64_t sent = 0, received = 0;
};

/// By rank of a mesh, in the order of ranks. @throws PlanError as above
[[nodiscard]] std::vector<DenseTraffic> dense_traffic(Model const& model, Form storage_form, Mesh const& mesh,
                                                      DenseReading dense);

/// By rank, where each hands on to the next in `ring`, a list of all ranks, all shares but that one's own.
[[nodiscard]] std::vector<DenseTraffic> dense_traffic(Model const& model, Form storage_form, DenseShares const& shares,
                                                      std::vector<int> const& ring);

}  // namespace rankslice
