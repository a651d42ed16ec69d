#pragma once

#include <optional>
#include <string>
#include <vector>

#include "rankslice/checkpoint.hpp"
#include "rankslice/store.hpp"

namespace rankslice {

/// What one rank reads of a checkpoint and the others are told: raw bytes and places, nothing derived.
struct CheckpointParts {
  /// A native tensor, or a part of one, in a file of `files`.
  struct Native {
    std::string fqn;
    DType dtype = DType::BF16;
    Shape shape;    ///< Global, native.
    Shape offsets;  ///< Of the part that is here, per axis, …
    Shape local;    ///< … and its shape.
    Extent extent;
    std::optional<DType> hf_dtype{};  ///< That it was converted from, if it says so.
  };

  CheckpointFormat format = CheckpointFormat::huggingface;
  std::string path;
  std::string source;  ///< Of shards: the checkpoint that gave `hf`.
  std::string family = "auto";
  ExpertLayout expert_layout = ExpertLayout::automatic;  ///< Of grouped experts in `hf`.
  std::optional<bool> text_only{};                       ///< As in `OpenOptions`; of stored tensors as they were saved.
  std::optional<DType> dtype{};                          ///< As in `OpenOptions`.
  HfLayout hf;
  std::string hf_folder;              ///< Where the files of `hf` are, if anywhere.
  std::vector<std::string> selected;  ///< FQNs of a selection of what `hf` has; empty: all.
  std::vector<CatalogFile> files;     ///< Of `native`.
  std::vector<Native> native;         ///< Of a Hugging Face folder empty: its files hold the tensors.
  std::vector<StoreContents::RecordedDigest> source_digests;  ///< Recorded by a store, or by a manifest.
  std::vector<StoreContents::RecordedDigest> stored_digests;
  std::vector<std::string> warnings;
  std::size_t threads = 1;  ///< That parse headers; everybody's own.
};

/// Local. @throws IoError, FormatError
[[nodiscard]] CheckpointParts read_checkpoint_parts(std::string const& path, OpenOptions const& options);

/// Names, shapes and places of every parameter, checked against each other. Pure but for the families' tables.
/// @throws FormatError, UsageError
[[nodiscard]] Checkpoint assemble(CheckpointParts parts);

/// For sending to other ranks. Pure.
[[nodiscard]] std::vector<std::byte> pack(CheckpointParts const& parts);
[[nodiscard]] CheckpointParts unpack(std::vector<std::byte> const& bytes);

/// Of names, sizes, headers and index of the HF files. Pure.
[[nodiscard]] std::string fingerprint(HfLayout const& layout);

}  // namespace rankslice
