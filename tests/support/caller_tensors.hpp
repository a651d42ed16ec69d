#pragma once

#include <map>
#include <string>

#include "rankslice/make_state_dict.hpp"

namespace rankslice::test {

/// What a trainer may have made of a state dict: its BF16 and F32 tensors as F32 with each value doubled, everything
/// else as it was, in memory of its own.
[[nodiscard]] std::map<std::string, LocalTensor> doubled_as_f32(StateDict const& state);

}  // namespace rankslice::test
