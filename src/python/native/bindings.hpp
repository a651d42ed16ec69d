#pragma once

#include <nanobind/nanobind.h>

/// The parts of rankslice._native. Functions here are thin: everything that knows of torch is Python. Errors leave as
/// rankslice.errors; long calls release the GIL (`Call`).
namespace rankslice::python {

namespace nb = nanobind;

void bind_errors(nb::module_& module);
void bind_checkpoint(nb::module_& module);
void bind_communicator(nb::module_& module);
void bind_gather(nb::module_& module);
void bind_reports(nb::module_& module);
void bind_device(nb::module_& module);
void bind_state(nb::module_& module);
void bind_exports(nb::module_& module);
void bind_verify(nb::module_& module);
void bind_stores(nb::module_& module);
void bind_steps(nb::module_& module);

}  // namespace rankslice::python
