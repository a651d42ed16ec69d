#pragma once

#include <vector>

#include "rankslice/checkpoint.hpp"

namespace rankslice {

/// The files of a Hugging Face checkpoint that is yet to be written.
struct HfTarget {
  HfLayout hf;
  TensorCatalog catalog;
};

/// Which tensors of a model a selection takes, by number. Pure. @throws PlanError when it takes none.
[[nodiscard]] std::vector<bool> taken_tensors(Model const& model, KeySelection const& keys);

/// The source's own files when all tensors are taken, else fresh ones for those that are; all side files. Pure.
/// @throws FormatError where a side file has the name of a fresh one
[[nodiscard]] HfTarget make_target(Checkpoint const& source, std::vector<bool> const& taken,
                                   std::uint64_t max_file_bytes = kMaxFileBytes);

/// Fresh files for those tensors of `model` that are taken, whoever made the model of those of `source`; all side files
/// of the source. Pure. @throws FormatError as above
[[nodiscard]] HfTarget make_fresh_target(Checkpoint const& source, Model const& model, std::vector<bool> const& taken,
                                         std::uint64_t max_file_bytes);

/// Names become paths below an output folder: a store or index made by somebody else must not lead out of it.
/// `path` names the checkpoint in errors. Pure. @throws FormatError for such a name, and for two files of one name
void require_harmless_names(HfLayout const& layout, std::string const& path);

/// The catalog of a layout that nobody else has written, in which nothing can be odd. Pure.
[[nodiscard]] TensorCatalog make_fresh_catalog(HfLayout const& layout);

/// Where the tensors of a catalog, which may lack some of the model's, lie in its files, as pieces of the parameters
/// that they make up. Pure.
[[nodiscard]] std::vector<StoredPiece> hf_pieces(TensorCatalog const& catalog, Model const& model);

/// Where the tensors of a target go, below `folder`. Pure.
[[nodiscard]] Storage target_storage(HfTarget const& target, Model const& model, std::string const& folder);

}  // namespace rankslice
