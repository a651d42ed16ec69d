#pragma once

#include "synth/model_shapes.hpp"
#include "synth/module.hpp"

namespace rankslice {

/// Append the tensors of a vision tower, those below `model.visual.` of a real one.
void add_vision_tower(Module const& visual, SynthModel const& model);

}  // namespace rankslice
