#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "rankslice/state_dict.hpp"

namespace rankslice {

/// A tensor of the caller's: what this rank has of it.
struct LocalTensor {
  DType dtype = DType::BF16;
  Shape global_shape;  ///< Native.
  /// Contiguous and row-major. Not copied; memory that somebody else frees goes in with a deleter that does nothing.
  Buffer data;
  /// Where it lies in the global tensor, and how much of it it is: a box of stacked experts and their rows, or of a
  /// dense tensor some of axis 0. Parts of two ranks are the same, copies, or apart; all together are everything. Both
  /// empty: what the mesh gives, of stacked experts those of rule 9, and of each the rows of rule 14; all of any other.
  Shape offsets{};
  Shape local_shape{};
};

struct StateOptions {
  std::string family;                              ///< As of `--family`: `qwen3_5_moe`.
  ExpertLayout expert_layout = ExpertLayout::hub;  ///< How exports hold grouped experts (rule 61).
  /// How exports hold the experts of MTP (rule 28). Empty: as config.json's `mtp_expert_hf_layout` says, or else as
  /// the family's releases hold all experts: grouped, or in Qwen3-MoE and Qwen3-Next one by one.
  std::optional<ExpertForm> mtp_experts{};
  /// Carried along by exports: those of a checkpoint (`Checkpoint::hf`), or `side_files_in` a folder. The tensors must
  /// fit the config.json among them.
  std::vector<SideFile> side_files{};
  /// A part of the model, a pipeline stage for example: layers that config.json speaks of may be missing.
  bool partial = false;
  std::uint64_t max_file_bytes = kMaxFileBytes;  ///< Tensor bytes of a file of the Hugging Face checkpoint.
};

/// A state dict that was not loaded from a checkpoint: trained weights, or those of another program. `to_hf`,
/// `save_store` and `save_shards` take it like any other; headers and index are fresh, dtypes are exported as held.
/// Names that contain `_extra_state` are left out. All ranks give the same names, dtypes, global shapes and options:
/// the calls that take the state refuse what would make other headers or another index than rank 0's. Local.
/// @param tensors by FQN, native; files are filled in the order of the names
/// @throws PlanError for a part that lacks offsets or shape, does not lie inside or is divided along other axes, a
/// buffer of another size, a coordinate outside the mesh, or rows that `ep_shard` does not divide; FormatError for
/// names, shapes and dtypes that do not fit the family or config.json, names that are no UTF-8, and side files whose
/// names lead out of a folder or meet; UsageError for an unknown family; IoError for a config.json that cannot be read.
[[nodiscard]] StateDict make_state_dict(std::map<std::string, LocalTensor> const& tensors, Mesh const& mesh,
                                        MeshCoordinate const& coordinate, StateOptions const& options);

/// A state dict over the caller's memory whose tensors are those of an opened checkpoint, or some of them: a model that
/// was trained from it, or one that `fill` is to give its values. `verify` and `to_hf` need all of them: of some,
/// `source` is to be a selection of just these (`select_tensors`). Nothing is read. Local.
/// @throws PlanError for a name that `source` has not, a dtype or global shape that is not its, a part that lacks
/// offsets or shape, does not lie inside or is divided along other axes, a buffer of another size, or a coordinate
/// outside the mesh.
[[nodiscard]] StateDict make_state_dict(std::shared_ptr<Checkpoint const> const& source,
                                        std::map<std::string, LocalTensor> const& tensors, Mesh const& mesh,
                                        MeshCoordinate const& coordinate);

/// The files of a folder that go along with a checkpoint: config.json, tokenizer, … but no weights and no indexes.
/// Local. @throws IoError
[[nodiscard]] std::vector<SideFile> side_files_in(std::string const& folder);

}  // namespace rankslice
