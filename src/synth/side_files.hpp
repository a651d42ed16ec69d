#pragma once

#include <vector>

#include "synth/model_shapes.hpp"
#include "synth/text_file.hpp"

namespace rankslice {

/// Everything that the repository of a model holds beside weights and index, with small but valid contents.
[[nodiscard]] std::vector<TextFile> side_files(SynthModel const& model);

}  // namespace rankslice
