#pragma once

#include <string>
#include <vector>

#include "rankslice/tensor_catalog.hpp"

#include "model/model_config.hpp"

namespace rankslice {

/// No other quantisation than FP8 with scales for blocks of 128 × 128: neither config.json nor the names of tensors
/// speak of one, nor does hf_quant_config.json where weights look quantised. What of another one is carried without
/// being applied is added to `warnings`.
/// @throws FormatError that names the method
void refuse_foreign_quantisation(TensorCatalog const& catalog, ModelConfig const& config,
                                 std::vector<std::string>& warnings);

}  // namespace rankslice
