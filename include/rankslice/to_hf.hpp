#pragma once

#include <string>

#include "rankslice/state_dict.hpp"
#include "rankslice/store.hpp"

namespace rankslice {

struct ExportOptions {
  bool overwrite = false;  ///< Replace what exists under the final name, in one step at the end.
  /// Which tensors are written, by HF key (`key_selection`); all when empty. Of split experts each key counts for
  /// itself (rule 25).
  KeySelection keys{};
  std::uint64_t max_file_bytes = kMaxFileBytes;  ///< Tensor bytes of a file, where files are fresh because of `keys`.
  CallOptions call{};
};

struct ExportReport {
  HeaderOrigin headers = HeaderOrigin::source;
  std::uint64_t bytes_read = 0;     ///< Tensor bytes that this rank read to export them; none of a state in memory.
  std::uint64_t bytes_written = 0;  ///< Tensor bytes that this rank wrote.
  std::uint64_t files = 0;
};

/// Reassemble the global Hugging Face checkpoint from the ranks' shards: the source's headers, index and side files,
/// and the state's tensors, every rank writing its own parts in place. Untouched values give the source's files byte
/// for byte; where tensors are left out, headers and index are fresh. Needs every tensor of the source. Nothing stands
/// under `out_dir` until all is written, synced and read back. Collective.
/// @throws IoError, PlanError for a state that lacks tensors or a selection that takes none, VerifyError when what was
/// written reads back differently.
ExportReport to_hf(StateDict const& state, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options = {});

/// The same, streamed from an opened checkpoint or store through a bounded buffer; with `verify` its recorded digests
/// must be met. Collective.
ExportReport to_hf(Checkpoint const& checkpoint, std::string const& out_dir, Communicator& world,
                   ExportOptions const& options = {}, VerifyLevel verify = VerifyLevel::full);

/// Write `rank-00000.safetensors`, … into a folder: FQN -> local tensor in the native form, with the mesh coordinate,
/// global shapes and offsets in `__metadata__`. `open_checkpoint` takes the folder back. Needs every tensor of the
/// source. Collective. @throws as `to_hf`
void save_shards(StateDict const& state, std::string const& out_dir, Communicator& world,
                 SaveOptions const& options = {});

/// Rank-local: one file into an existing or new folder.
void save_shard(StateDict const& state, std::string const& out_dir, SaveOptions const& options = {});

}  // namespace rankslice
