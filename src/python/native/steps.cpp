#include <nanobind/stl/shared_ptr.h>

#include "python/native/bindings.hpp"
#include "python/native/call.hpp"
#include "python/native/communicator.hpp"

namespace rankslice::python {

namespace {

void run_on_every_rank(World const& world, nb::object const& step) {
  Call call{nb::none()};
  auto const held = without_gil(step);
  call.run([&] { on_every_rank(*world, [&] { call.with_gil([&] { (*held)(); }); }); });
}

}  // namespace

void bind_steps(nb::module_& module) {
  module.def("on_every_rank", &run_on_every_rank, nb::arg("world"), nb::arg("step"),
             "A step that can fail on one rank alone: then all raise what the lowest failing rank did. Collective.");
  module.def(
      "still_alive", [](World const& world) { world->progress(); }, nb::arg("world"),
      "Within such a step: not stuck. Local.");
}

}  // namespace rankslice::python
