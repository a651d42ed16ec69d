#pragma once

#include <string>

#include "rankslice/store.hpp"

#include "staged_writing.hpp"

namespace rankslice {

/// `save_store` with what it takes for granted of the stages of a large checkpoint.
SaveReport save_recorded_store(StateDict const& state, std::string const& path, Communicator& world,
                               SaveOptions const& options, Recording const& recording);

}  // namespace rankslice
