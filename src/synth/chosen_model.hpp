#pragma once

#include "synth/model_shapes.hpp"
#include "synth/presets.hpp"
#include "synth/synth.hpp"

namespace rankslice {

/// The model of a preset as the options change it.
/// @throws UsageError for counts that make no model and for options that contradict each other or the family.
[[nodiscard]] SynthModel chosen_model(Preset const& preset, SynthOptions const& options);

}  // namespace rankslice
