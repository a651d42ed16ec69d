#pragma once

#include <optional>
#include <string>
#include <vector>

#include "rankslice/options.hpp"
#include "rankslice/state_dict.hpp"

namespace rankslice {

/// The same on every rank.
struct VerifyOptions {
  VerifyLevel level = VerifyLevel::full;
  /// Compared with, beside the digests that the source recorded itself: the digests that a store recorded, or, of all
  /// else, those of its bytes, which are read once by all ranks together and must be as its own manifest has them, if
  /// there is one. Where the two hold a tensor in different dtypes, what they were loaded from is compared; where one
  /// of them does not know that either, that is a mismatch. Levels below `full` compare nothing, and refuse it.
  Checkpoint const* against = nullptr;
  CallOptions call{};
};

/// One thing that is not as it should be.
struct Mismatch {
  std::string tensor;  ///< HF key.
  std::int64_t expert = -1;
  int rank = -1;     ///< Who found it; -1 when it is known of the sum over all ranks only.
  std::string what;  ///< "layer 3, expert 17, rank 2: read …, held …"
};

/// Who read the bytes again, of all ranks the least that one can say.
struct Reread {
  bool another_rank = false;  ///< … than read them first.
  bool another_host = false;
  bool past_page_cache = false;  ///< From the file system itself, where that is known. Asked for on the same host.
  std::uint64_t bytes = 0;       ///< By all ranks together.
};

struct VerifyReport {
  VerifyLevel level = VerifyLevel::off;
  /// The strongest that was compared with, though all that there are were: "against", of other files; "store" or
  /// "manifest", what was recorded before; "reread", the same bytes once more; "none".
  std::string reference = "none";
  std::optional<Reread> reread{};  ///< Of `VerifyLevel::reread`.
  /// Of `against`: of tensors whose values do not give back what they were computed from, quantised weights before all,
  /// only the values were compared, as one of the two has no digests of their codes and scales.
  bool without_codes = false;
  std::uint64_t tensors = 0;
  std::uint64_t experts = 0;  ///< Expert blocks: the sum of E over the stacked tensors; rank-local, those held.
  /// Rank-local: those of them of which this rank has only some rows. No recorded digest is theirs to compare with.
  std::uint64_t experts_in_part = 0;
  /// When ranks share what they found, of each rank at most the first 1000, and 10000 in all.
  std::vector<Mismatch> mismatches;
  std::uint64_t unlisted = 0;  ///< How many more there were.
  Digests read;                ///< Of a checkpoint: what all ranks together read of it.

  [[nodiscard]] bool ok() const { return mismatches.empty(); }
  /// @throws VerifyError naming the first mismatches.
  void throw_if_bad() const;
};

/// Digest what `load` would have digested while reading: the bytes of a state's source of which its tensors are made,
/// each once, into `state.read`. For states that `make_state_dict` made or that were loaded without digests, before
/// they are verified. Memory of the tensors is not touched; needs a bounded buffer. A rank that has digests keeps them
/// and reads nothing. Collective.
/// @throws PlanError for a state that is not what it says, as UsageError on every rank; UsageError for one that belongs
/// to no checkpoint; IoError, FormatError
void digest_source(StateDict& state, Communicator& world, CallOptions const& call = {});

/// Rank-local: the same without any communication. @throws as above
void digest_source(StateDict& state, CallOptions const& call = {});

/// Prove that the ranks together hold exactly the checkpoint: same mesh, source, keys, shapes and dtypes everywhere,
/// slices, or equal copies of them, that tile every tensor, and digests of the held tensors equal to those of the bytes
/// that were read and to the reference. The report is the same on all ranks. Collective, with the same options on each.
/// @throws PlanError for a state that is not what it says, as UsageError on every rank; IoError
[[nodiscard]] VerifyReport verify(StateDict const& state, Communicator& world, VerifyOptions const& options = {});

/// Rank-local: what one rank can prove alone, that its held tensors are what it read and, as far as they go, what the
/// source recorded. Levels below `full` prove nothing here, and `options.against` is not used. Not collective.
/// @throws PlanError for a state that is not what it says.
[[nodiscard]] VerifyReport verify(StateDict const& state, VerifyOptions const& options = {});

/// Read every byte of a checkpoint once, the ranks sharing the work, and compare its digests with those that it
/// recorded and with a reference. Bounded memory. Collective.
[[nodiscard]] VerifyReport verify(Checkpoint const& checkpoint, Communicator& world, VerifyOptions const& options = {});

/// The digests of a whole checkpoint, each byte read once, the ranks sharing the work. Collective.
[[nodiscard]] Digests digest(Checkpoint const& checkpoint, Communicator& world, CallOptions const& call = {});

}  // namespace rankslice
