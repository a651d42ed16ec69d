#include "python/native/communicator.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "rankslice/callbacks.hpp"

#include "python/native/call.hpp"

namespace rankslice::python {

namespace {

/// Bytes that torch takes as a uint8 tensor over the same memory. It would warn about memory that must not be written.
nb::object view_of(std::byte const* data, std::size_t bytes) {
  auto* const memory = const_cast<char*>(reinterpret_cast<char const*>(data));
  return nb::steal(PyMemoryView_FromMemory(memory, static_cast<Py_ssize_t>(bytes), PyBUF_WRITE));
}

/// What Python raises becomes this rank's failure in the words of the exception; interrupts stay what they are.
template <typename Step>
auto guarded(Step const& step) {
  nb::gil_scoped_acquire const gil;
  try {
    return step();
  } catch (nb::python_error const& error) {
    if (error.matches(PyExc_KeyboardInterrupt)) throw Interrupted();
    throw std::runtime_error(error.what());
  }
}

WaitFunction wait_function(nb::object wait) {
  return [held = without_gil(std::move(wait))] { guarded([&] { (void)(*held)(); }); };
}

/// `group`: an object with rank, size, kind, start_send(bytes, to, tag) and start_receive(bytes, from, tag), which give
/// functions that wait.
Collectives collectives_of(nb::object const& group) {
  Collectives functions;
  functions.rank = nb::cast<int>(group.attr("rank"));
  functions.size = nb::cast<int>(group.attr("size"));
  functions.kind = nb::cast<std::string>(group.attr("kind"));
  auto const held = without_gil(group);
  functions.start_send = [held](std::span<std::byte const> bytes, int to, int tag) {
    return guarded(
        [&] { return wait_function(held->attr("start_send")(view_of(bytes.data(), bytes.size()), to, tag)); });
  };
  functions.start_receive = [held](std::span<std::byte> bytes, int from, int tag) {
    return guarded(
        [&] { return wait_function(held->attr("start_receive")(view_of(bytes.data(), bytes.size()), from, tag)); });
  };
  return functions;
}

}  // namespace

void bind_communicator(nb::module_& module) {
  nb::class_<Communicator>(module, "Communicator")
      .def_prop_ro("rank", &Communicator::rank)
      .def_prop_ro("size", &Communicator::size)
      .def_prop_ro("kind", [](Communicator const& world) { return std::string(world.kind()); })
      .def("host", &Communicator::host, nb::arg("rank"));
  module.def(
      "make_communicator",
      [](nb::object const& group) {
        auto functions = collectives_of(group);
        nb::gil_scoped_release const released;
        return World(make_communicator(std::move(functions)));
      },
      nb::arg("group"), "A communicator over messages of Python's. Collective.");
  module.def(
      "make_solo_communicator", [] { return World(make_solo_communicator()); }, "One rank that is all there are.");
}

}  // namespace rankslice::python
