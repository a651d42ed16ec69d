#include "python/native/communicator.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "rankslice/callbacks.hpp"

#include "python/native/call.hpp"
#include "python/native/python_group.hpp"

namespace rankslice::python {

void bind_communicator(nb::module_& module) {
  nb::class_<Communicator>(module, "Communicator")
      .def_prop_ro("rank", &Communicator::rank)
      .def_prop_ro("size", &Communicator::size)
      .def_prop_ro("kind", [](Communicator const& world) { return std::string(world.kind()); })
      .def("host", &Communicator::host, nb::arg("rank"));
  module.def(
      "make_communicator",
      [](nb::object const& group) {
        auto functions = std::make_shared<PythonGroup>(group)->functions();
        return Call(nb::none()).run([&] { return World(make_communicator(std::move(functions))); });
      },
      nb::arg("group"), "A communicator over messages of Python's. Collective.");
  module.def(
      "make_solo_communicator", [] { return World(make_solo_communicator()); }, "One rank that is all there are.");
}

}  // namespace rankslice::python
