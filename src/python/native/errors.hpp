#pragma once

#include "rankslice/error.hpp"

#include "python/native/bindings.hpp"

namespace rankslice::python {

/// Throws an error as the exception of rankslice.errors that stands for it. Needs the GIL.
/// `cause`: an exception, its `__cause__`.
[[noreturn]] void raise(Error const& error, nb::object const& cause);

}  // namespace rankslice::python
