#pragma once

#include <memory>

#include "rankslice/communicator.hpp"

#include "python/native/bindings.hpp"

namespace rankslice::python {

/// The ranks of a call, as Python holds them: null where there is none, and the call is rank-local.
using World = std::shared_ptr<Communicator>;

}  // namespace rankslice::python
