#pragma once

#include "model/expert_sizes.hpp"

namespace rankslice {

/// The experts of the decoder, and those of the MTP, are all grouped or all split (rules 26, 27). @throws FormatError
void check_one_form(MappedCatalog const& mapped);

/// No layer lacks experts: there are some at all, each tensor has its partner in its layer, and every layer that
/// config.json announces (MTP layers: if any MTP tensor is there) has them (rule 42). @throws FormatError
void check_expert_layers(KeyTable const& table, MappedCatalog const& mapped, ModelConfig const& config);

/// The tensors of a split parameter are one for each matrix of each of the E experts (rules 40-42). They are in order.
/// @throws FormatError
void check_experts(MappedCatalog const& mapped, Parameter const& parameter, ExpertSizes const& sizes);

/// Where every layer has the same experts, they are as many as config.json says. They are in order. @throws FormatError
void check_expert_count(MappedCatalog const& mapped, Model const& model, ModelConfig const& config);

}  // namespace rankslice
