#pragma once

#include "model/key_table.hpp"

namespace rankslice {

/// No quantisation in config.json, and no weight (a stacked tensor, or a key ending in `.weight`) of a float type of
/// 8 bits or less. `model` is that of the catalog, here and below. @throws FormatError
void check_unquantised(TensorCatalog const& catalog, Model const& model, ModelConfig const& config);

/// Every stacked tensor has the E, H and I that config.json says; what it does not say is taken from the first stacked
/// tensor that shows it. @throws FormatError
void check_expert_shapes(KeyTable const& table, TensorCatalog const& catalog, ModelConfig const& config);

/// No layer lacks experts: there are stacked tensors at all, each has its partners in its layer, and every layer that
/// config.json announces (MTP layers: if any MTP tensor is there) has them. @throws FormatError
void check_expert_layers(KeyTable const& table, TensorCatalog const& catalog, Model const& model,
                         ModelConfig const& config);

}  // namespace rankslice
