#pragma once

#include <string>

#include "rankslice/state_dict.hpp"
#include "rankslice/store.hpp"

namespace rankslice {

struct ExportReport {
  std::uint64_t bytes_read = 0;     ///< Tensor bytes that this rank read to export them; none of a state in memory.
  std::uint64_t bytes_written = 0;  ///< Tensor bytes that this rank wrote.
  std::uint64_t files = 0;
};

/// Reassemble the global Hugging Face checkpoint from the ranks' shards: the source's headers, index and side files,
/// and the state's tensors, every rank writing its own parts in place. Untouched values give the source's files byte
/// for byte. Needs every tensor of the source. Nothing stands under `out_dir` until all is written, synced and read
/// back. Collective.
/// @throws IoError, PlanError for a state that lacks tensors, VerifyError when what was written reads back differently.
ExportReport to_hf(StateDict const& state, std::string const& out_dir, Communicator& world,
                   SaveOptions const& options = {});

/// The same, streamed from an opened checkpoint or store through a bounded buffer; with `verify` its recorded digests
/// must be met. Collective.
ExportReport to_hf(Checkpoint const& checkpoint, std::string const& out_dir, Communicator& world,
                   SaveOptions const& options = {}, VerifyLevel verify = VerifyLevel::full);

/// Write `rank-00000.safetensors`, … into a folder: FQN -> local tensor in the native form, with the mesh coordinate,
/// global shapes and offsets in `__metadata__`. `open_checkpoint` takes the folder back. Needs every tensor of the
/// source. Collective. @throws as `to_hf`
void save_shards(StateDict const& state, std::string const& out_dir, Communicator& world,
                 SaveOptions const& options = {});

/// Rank-local: one file into an existing or new folder.
void save_shard(StateDict const& state, std::string const& out_dir, SaveOptions const& options = {});

}  // namespace rankslice
