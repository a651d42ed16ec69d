#pragma once

#include <string>
#include <vector>

#include "format/hub_files.hpp"
#include "synth/model_shapes.hpp"

namespace rankslice {

/// The text of `model.safetensors.index.json` as the Hub has it, by name and with a newline at the end, or as
/// transformers writes it, which counts parameters too.
[[nodiscard]] std::string index_json(std::vector<HubFile> const& files, SynthLayout layout = SynthLayout::hub);

}  // namespace rankslice
