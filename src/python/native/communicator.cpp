#include "python/native/communicator.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rankslice/callbacks.hpp"

#include "python/native/call.hpp"
#include "python/native/python_group.hpp"

namespace rankslice::python {

namespace {

using Numbers = std::vector<std::uint64_t>;
using Memory = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::device::cpu, nb::c_contig>;

std::span<std::byte> bytes_of(Memory const& memory) {
  return std::as_writable_bytes(std::span(memory.data(), memory.size()));
}

std::span<std::byte const> bytes_of(nb::bytes const& bytes) {
  return std::as_bytes(std::span(bytes.c_str(), bytes.size()));
}

std::vector<nb::bytes> to_python(std::vector<std::vector<std::byte>> const& everyone) {
  std::vector<nb::bytes> all;
  for (auto const& theirs : everyone) all.emplace_back(reinterpret_cast<char const*>(theirs.data()), theirs.size());
  return all;
}

template <typename Work>
auto together(Work const& work) {
  return Call(nb::none()).run(work);
}

Numbers sum(Communicator& world, Numbers values) {
  together([&] { world.all_reduce(values, Reduce::sum); });
  return values;
}

void bind_collectives(nb::class_<Communicator>& communicator) {
  communicator
      .def(
          "all_gather",
          [](Communicator& world, nb::bytes const& mine) {
            return to_python(together([&] { return all_gather(world, bytes_of(mine)); }));
          },
          nb::arg("mine"), "Everyone's bytes, by rank: for small things. Collective.")
      .def("sum", &sum, nb::arg("values"), "Of each number over the ranks, modulo 2^64. Collective.")
      .def(
          "broadcast",
          [](Communicator& world, Memory const& memory, int root) {
            together([&] { world.broadcast(bytes_of(memory), root); });
          },
          nb::arg("memory"), nb::arg("root"), "Bytes of `root` into the memory of all, in place. Collective.")
      .def(
          "gather",
          [](Communicator& world, nb::bytes const& mine, int root) {
            return to_python(together([&] { return world.gather(bytes_of(mine), root); }));
          },
          nb::arg("mine"), nb::arg("root"), "Everyone's bytes on `root`, by rank, and nothing elsewhere. Collective.")
      .def(
          "split", [](Communicator& world, int color) { return together([&] { return World(world.split(color)); }); },
          nb::arg("color"), "The ranks that give the same colour, which number theirs in the same order. Collective.");
}

}  // namespace

void bind_communicator(nb::module_& module) {
  nb::class_<Communicator> communicator(module, "Communicator");
  communicator.def_prop_ro("rank", &Communicator::rank)
      .def_prop_ro("size", &Communicator::size)
      .def_prop_ro("kind", [](Communicator const& world) { return std::string(world.kind()); })
      .def("host", &Communicator::host, nb::arg("rank"));
  bind_collectives(communicator);
  module.def(
      "make_communicator",
      [](nb::object const& group) {
        auto const messages = std::make_shared<PythonGroup>(group);
        auto functions = messages->functions();
        return Call(nb::none()).run([&] {
          World world = make_communicator(std::move(functions));
          messages->name_flag(*world);
          return world;
        });
      },
      nb::arg("group"), "A communicator over messages of Python's. Collective.");
  module.def(
      "make_solo_communicator", [] { return World(make_solo_communicator()); }, "One rank that is all there are.");
}

}  // namespace rankslice::python
