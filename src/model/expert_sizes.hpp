#pragma once

#include <string>

#include "rankslice/tensor_catalog.hpp"

#include "model/key_table.hpp"
#include "model/model_config.hpp"

namespace rankslice {

/// The tensors of a checkpoint and where their keys lead.
struct MappedCatalog {
  TensorCatalog const& catalog;
  std::vector<KeyMapping> keys;  ///< As `catalog.tensors`.
};

/// A length and what says so, for messages.
struct Length {
  std::uint64_t value = 0;
  std::string source;
};

/// E, H and I.
struct ExpertSizes {
  Length experts, hidden, intermediate;
};

/// What config.json says; what it does not say is taken from the tensors, as far as they show it: H and I from the
/// first whose layout is known, or that proves its layout together with its partner in the layer; E from the first
/// grouped tensor, or else the highest expert. Says in `warnings` what was taken so.
/// @throws FormatError for tensors of the wrong number of axes, or partners that fit no layout
[[nodiscard]] ExpertSizes find_expert_sizes(MappedCatalog const& mapped, ModelConfig const& config,
                                            ExpertLayout requested, std::vector<std::string>& warnings);

/// The shape that an expert tensor should have, and how it is written: "[E, 2I, H]". `layout` is that of grouped ones.
[[nodiscard]] Shape expected_shape(ExpertSizes const& sizes, KeyMapping const& key, Layout layout);
[[nodiscard]] std::string shape_symbols(KeyMapping const& key, Layout layout);

/// "E is 4 by config.json's num_experts, H is …"
[[nodiscard]] std::string to_string(ExpertSizes const& sizes);

}  // namespace rankslice
