#pragma once

#include <string>

namespace rankslice::test {

/// A small checkpoint with random codes, experts one by one, whose scales stand in another file than most weights.
void write_fp8_checkpoint(std::string const& folder);

}  // namespace rankslice::test
