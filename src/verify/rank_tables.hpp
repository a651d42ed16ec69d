#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "rankslice/communicator.hpp"
#include "rankslice/digest.hpp"
#include "rankslice/state_dict.hpp"
#include "rankslice/verify.hpp"

#include "core/holdings.hpp"

namespace rankslice {

/// What the ranks together make of tables of numbers of what each of them holds, one for each expert of a stacked
/// tensor and for each dense one. Numbers of the parts of a tensor add up, and those of copies are the same.
class RankTables {
 public:
  /// All of them outlive the result. Collective.
  RankTables(StateDict const& state, Holdings const& holdings, Communicator& world);

  /// Of every tensor all of it once in each replica. Collective.
  void sum(DigestTable& table);

  /// The same, of copies that are equal: what differs is added to `mismatches` by the rank that differs from the first
  /// that holds the slice, and of replicas from rank 0. `what` names the numbers in messages; experts are named of what
  /// differs from some first holders, and only the tensor of what differs from others. Collective.
  void reduce(DigestTable& table, std::string_view what, std::vector<Mismatch>& mismatches);

 private:
  [[nodiscard]] int first_holder(std::uint32_t parameter) const;
  void compare_holders(DigestTable const& table, std::string_view what, std::vector<Mismatch>& mismatches);
  void name_differences(DigestTable const& table, std::vector<std::uint32_t> const& differing, std::string_view what,
                        std::vector<Mismatch>& mismatches);
  void compare_replicas(DigestTable const& table, std::string_view what, std::vector<Mismatch>& mismatches);

  Model const& model_;
  Holdings const& holdings_;
  Communicator& world_;
  std::unique_ptr<Communicator> replica_;  // of the world, where it is not all of it
};

/// The digests of what a state was loaded from, those of its codes among them: as all ranks together read them, or as
/// its source recorded them; nothing when they are not known. Collective.
[[nodiscard]] std::optional<Digests> known_codes(StateDict const& state, Holdings const& holdings, Communicator& world);

/// Digests of what stands in memory now, with coordinates from each tensor's own offsets and shape. `world` may be
/// null.
[[nodiscard]] Digests digest_held(StateDict const& state, CallOptions const& call, Communicator* world);

/// From the digests of what each rank holds those of what all ranks together hold, of every tensor all of it once in
/// each replica. Copies of a tensor on several ranks must be equal, so that it does not matter who writes which part of
/// it. Collective.
/// @throws VerifyError naming tensor, expert and rank.
[[nodiscard]] Digests in_all_ranks(StateDict const& state, Holdings const& holdings, Digests held, Communicator& world);

/// `digest_held` and `in_all_ranks`. Collective.
[[nodiscard]] Digests digest_all_held(StateDict const& state, Holdings const& holdings, CallOptions const& call,
                                      Communicator& world);

}  // namespace rankslice
