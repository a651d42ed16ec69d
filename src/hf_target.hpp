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
[[nodiscard]] HfTarget make_target(Checkpoint const& source, std::vector<bool> const& taken,
                                   std::uint64_t max_file_bytes = kMaxFileBytes);

/// The catalog of a layout that nobody else has written, in which nothing can be odd. Pure.
[[nodiscard]] TensorCatalog make_fresh_catalog(HfLayout const& layout);

}  // namespace rankslice
