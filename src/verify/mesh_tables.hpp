#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/digest.hpp"
#include "rankslice/state_dict.hpp"
#include "rankslice/verify.hpp"

namespace rankslice {

/// What the ranks of a mesh make of tables of one number per expert of a stacked tensor and per dense tensor.
class MeshTables {
 public:
  /// Collective.
  MeshTables(StateDict const& state, Communicator& world);

  /// Sum the stacked tensors over each replica of the mesh. Collective.
  void sum(DigestTable& table);

  /// The same; then every replica must have the same numbers, and every
  /// rank the same of the dense tensors: what differs is added to `mismatches` by the rank that differs from rank 0.
  /// `what` names the numbers in messages. Collective.
  void reduce(DigestTable& table, std::string_view what, std::vector<Mismatch>& mismatches);

  /// One rank of each replica does.
  [[nodiscard]] bool speaks_for_replica() const { return replica().rank() == 0; }

 private:
  [[nodiscard]] Communicator& replica() const { return part_ ? *part_ : world_; }
  void compare_replicas(DigestTable const& table, std::string_view what, std::vector<Mismatch>& mismatches);

  Model const& model_;
  Communicator& world_;
  std::unique_ptr<Communicator> part_;  // of the world: this rank's replica; null where there is one only
};

/// The digests of what a state was loaded from, those of its codes among them: as all ranks together read them, or as
/// its source recorded them; nothing when they are not known. Collective.
[[nodiscard]] std::optional<Digests> known_codes(StateDict const& state, Communicator& world);

/// Digests of what stands in memory now, with coordinates from each tensor's own offsets and shape. `world` may be
/// null.
[[nodiscard]] Digests digest_held(StateDict const& state, CallOptions const& call, Communicator* world);

/// From the digests of what each rank holds those of what all ranks together hold, of every tensor all of it once in
/// each replica. Copies of a tensor on
/// several ranks must be equal, so that it does not matter who writes which part of it. Collective.
/// @throws VerifyError naming tensor, expert and rank.
[[nodiscard]] Digests in_all_ranks(StateDict const& state, Digests held, Communicator& world);

/// `digest_held` and `in_all_ranks`. Collective.
[[nodiscard]] Digests digest_all_held(StateDict const& state, CallOptions const& call, Communicator& world);

}  // namespace rankslice
