#pragma once

#include "model/expert_sizes.hpp"

namespace rankslice {

/// Which tensors of a catalog are block scales, and whose: for each tensor the number of its weight, or nothing. The
/// scales of a weight KEY are KEY_scale_inv; of KEY.weight also KEY_scale_inv (rule 23).
/// @throws FormatError for scales without a weight, or two of one weight
[[nodiscard]] std::vector<std::optional<std::uint32_t>> find_block_scales(KeyTable const& table,
                                                                          TensorCatalog const& catalog);

/// Quantised weights are F8_E4M3 matrices, or experts stacked of such, with scales of the right shape for blocks of 128
/// × 128 (rules 58, 60). What is odd is added to `warnings`.
/// @throws FormatError
void check_quantisation(KeyTable const& table, MappedCatalog const& mapped, ModelConfig const& config,
                        std::vector<std::string>& warnings);

}  // namespace rankslice
