#pragma once

#include <string>

#include "rankslice/to_hf.hpp"

#include "staged_writing.hpp"

namespace rankslice {

// `to_hf` with what it takes for granted of the stages of a large checkpoint.

ExportReport export_state(StateDict const& state, std::string const& out_dir, Communicator& world,
                          ExportOptions const& options, Recording const& recording);

ExportReport export_checkpoint(Checkpoint const& checkpoint, std::string const& out_dir, Communicator& world,
                               ExportOptions const& options, VerifyLevel verify, Recording const& recording);

}  // namespace rankslice
