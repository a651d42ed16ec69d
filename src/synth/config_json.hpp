#pragma once

#include <string>

#include "synth/model_shapes.hpp"

namespace rankslice {

/// `config.json` as the Hub has it for a model, or as transformers writes it: transformers builds the same tensors
/// from both.
[[nodiscard]] std::string config_json(SynthModel const& model);

}  // namespace rankslice
