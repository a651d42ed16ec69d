#pragma once

#include <optional>
#include <string>

#include "rankslice/state_dict.hpp"
#include "rankslice/store.hpp"
#include "rankslice/verify.hpp"

namespace rankslice {

/// In which form values that were converted go back.
enum class ExportLayout : std::uint8_t {
  automatic,  ///< Dequantised weights as grouped experts where their family knows these, in the dtype of the state.
  source,     ///< As the checkpoint had them: what cannot be computed back is copied from it, if it was not changed.
};

/// The dtype in which parameters go back that training keeps in F32 (rules 55, 57).
enum class GdnDtype : std::uint8_t {
  preserve,  ///< That of the source.
  upstream,  ///< F32
};

/// The same on every rank.
struct ExportOptions {
  bool overwrite = false;  ///< Replace what exists under the final name, in one step at the end.
  /// Which tensors are written, by the HF keys of the export (`key_selection`), which are not the source's where split
  /// experts become grouped ones; all when empty. Of split experts each key counts for itself (rule 25).
  KeySelection keys{};
  ExportLayout layout = ExportLayout::automatic;
  /// For `ExportLayout::source`: the Hugging Face checkpoint that has the values which cannot be computed back, when it
  /// is not the one that is exported or that the state was loaded from.
  std::shared_ptr<Checkpoint const> source{};
  GdnDtype gdn_dtype = GdnDtype::preserve;
  std::uint64_t max_file_bytes = kMaxFileBytes;  ///< Tensor bytes of a file, where files are fresh.
  /// Rank 0 writes everything, and the others, which need not see `out_dir`, send it what they hold or read: for when
  /// only one node can write. What is copied for `ExportLayout::source` rank 0 reads as well.
  bool gather = false;
  /// When the call is stopped or killed leave what is written, and go on with what an earlier call left that would have
  /// written the same bytes. Without it nothing stays of a call that throws.
  bool resume = false;
  CallOptions call{};
};

struct ExportReport {
  HeaderOrigin headers = HeaderOrigin::source;
  /// Tensor bytes that this rank read to export them. Of a state in memory only those of the originals, for
  /// `ExportLayout::source`: once to compare and once to copy them.
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_written = 0;  ///< Tensor bytes that this rank wrote.
  std::uint64_t files = 0;
  std::optional<Reread> reread{};  ///< Of `VerifyLevel::reread`.
  std::optional<Resumed> resumed{};
};

/// Reassemble the global Hugging Face checkpoint from the ranks' shards: the source's headers, index and side files,
/// and the state's tensors, every rank writing its own parts in place. Untouched values give the source's files byte
/// for byte; where tensors are left out, or values were converted, headers and index are fresh. Needs every tensor of
/// the source. Nothing stands under `out_dir` until all is written, synced and read back. Collective, with the same
/// options on every rank.
/// @throws PlanError for a state that lacks tensors or is not what it says, ranks whose meshes, sources or options
/// differ, a selection that takes none, or `GdnDtype::upstream` of a parameter that is not held in F32; VerifyError
/// when the ranks together do not hold every tensor once, or copies differ, or what was written reads back differently,
/// or, for `ExportLayout::source`, a value was changed that cannot be computed back, or its source has other codes or
/// scales than were loaded, as far as these were digested then, or are by a store; UsageError when that source is not
/// at hand, and for `GdnDtype::upstream` with it; IoError, also for a source with another fingerprint. The same on
/// every rank, a PlanError as UsageError.
ExportReport to_hf(StateDict const& state, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options = {});

/// The same, streamed from an opened checkpoint or store through a bounded buffer. What is written is compared with
/// what was read, whatever `verify` is; from `full` on the recorded digests must be met, and for `reread` another rank
/// must read the same. Collective, with the same options on every rank. @throws as above
ExportReport to_hf(Checkpoint const& checkpoint, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options = {}, VerifyLevel verify = VerifyLevel::full);

/// Write `rank-00000.safetensors`, … into a folder: FQN -> local tensor in the native form, with the mesh coordinate,
/// global shapes and offsets in `__metadata__`. `open_checkpoint` takes the folder back. Needs every tensor of the
/// source. Collective, with the same options on every rank. @throws as `to_hf`
void save_shards(StateDict const& state, std::string const& out_dir, Communicator& world,
                 SaveOptions const& options = {});

/// Rank-local: one file into an existing or new folder. @throws PlanError for a state that lacks tensors or is not what
/// it says, before anything is made; IoError, VerifyError
void save_shard(StateDict const& state, std::string const& out_dir, SaveOptions const& options = {});

}  // namespace rankslice
