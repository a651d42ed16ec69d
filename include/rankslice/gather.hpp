#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "rankslice/to_hf.hpp"

namespace rankslice {

/// Who is handed what is gathered.
enum class Receivers : std::uint8_t {
  one_rank,
  first_ranks_of_hosts,  ///< One of each node: every byte crosses the network once per node.
  all_ranks,
};

/// The same on every rank.
struct GatherOptions {
  Receivers receivers = Receivers::one_rank;
  int rank = 0;  ///< Of `one_rank`: which.
  /// Which tensors, by the HF keys of the export, as `ExportOptions::keys`.
  KeySelection keys{};
  ExportLayout layout = ExportLayout::automatic;
  GdnDtype gdn_dtype = GdnDtype::preserve;
  CallOptions call{};
};

/// Some bytes of a tensor as an export would write it.
struct HfBlock {
  HfTensor const& tensor;           ///< Its key, dtype and global shape.
  Range bytes;                      ///< Which of its bytes.
  std::span<std::byte const> data;  ///< On the host; gone when the step has returned.
  bool last = false;                ///< The tensor ends with them.
};
using HfBlockStep = std::function<void(HfBlock const& block)>;

struct GatherReport {
  std::uint64_t tensors = 0;  ///< That this rank was handed.
  /// Tensor bytes that this rank gave to other ranks, a broadcast counted once, and that it got from them.
  std::uint64_t bytes_sent = 0;
  std::uint64_t bytes_received = 0;
};

/// Hand the global Hugging Face tensors to `use`, one after another, each in blocks from its first byte to its last,
/// on the ranks that receive; on the others `use` is not called. Tensors come in the order of the source; of split
/// experts those of one parameter together. Needs memory for three experts, or some MiB. The next blocks are on their
/// way while one is used. The other ranks wait for `use`: a call that takes longer than the deadline ends the job,
/// unless it calls `world.progress()` from time to time, which keeps them waiting. In the end, what was handed out is
/// proved to be what all ranks hold, by its digests: until then, and when this throws, it must not count. Collective,
/// with the same options on every rank.
/// @throws PlanError for a state that lacks tensors or is not what it says, ranks whose meshes, sources or options
/// differ, or a selection that takes none; VerifyError when the ranks together do not hold every tensor once, or copies
/// differ, or what was handed out is not what is held; UsageError for a rank that there is not, and for
/// `ExportLayout::source` of values that do not give the source's back; what `use` throws. The same on every rank, a
/// PlanError as UsageError.
GatherReport gather(StateDict const& state, Communicator& world, GatherOptions const& options, HfBlockStep const& use);

}  // namespace rankslice
