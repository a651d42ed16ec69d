#pragma once

#include <exception>
#include <string>

#include "rankslice/error.hpp"

#include "python/native/bindings.hpp"

namespace rankslice::python {

/// Throws an error as the exception of rankslice.errors that stands for it. Needs the GIL.
/// `cause`: an exception, its `__cause__`.
[[noreturn]] void raise(Error const& error, nb::object const& cause);

/// The same in C++, for an exception of rankslice.errors; null for any other. Needs the GIL.
[[nodiscard]] std::exception_ptr error_of(nb::python_error const& raised);

/// "KeyError: 'ours'". Needs the GIL.
[[nodiscard]] std::string described(nb::python_error const& raised);

}  // namespace rankslice::python
