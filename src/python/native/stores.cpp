#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "python/native/bindings.hpp"
#include "python/native/call.hpp"
#include "python/native/communicator.hpp"
#include "python/native/store_library.hpp"

namespace rankslice::python {

namespace {

SaveReport save(StoreLibrary const& library, StateDict const& state, std::string const& path, World const& world,
                bool overwrite, bool resume, nb::object const& progress, int threads) {
  Call call(progress);
  SaveOptions const options{.overwrite = overwrite, .resume = resume, .call = call.options(threads)};
  return call.run([&] { return library.save(state, path, *world, options); });
}

}  // namespace

void bind_stores(nb::module_& module) {
  nb::class_<StoreLibrary>(module, "StoreLibrary");
  nb::class_<SaveReport>(module, "SaveReport")
      .def_ro("bytes_written", &SaveReport::bytes_written)
      .def_ro("resumed", &SaveReport::resumed);
  module.def("save_store", &save, nb::arg("library"), nb::arg("state"), nb::arg("path"), nb::arg("world"),
             nb::arg("overwrite"), nb::arg("resume"), nb::arg("progress").none(), nb::arg("threads") = 0);
}

}  // namespace rankslice::python
