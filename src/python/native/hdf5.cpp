#include <nanobind/nanobind.h>

#include "python/native/store_library.hpp"

NB_MODULE(_hdf5, module) {
  module.doc() = "Native stores, where libhdf5 is. Use the package: this has no stable interface.";
  auto const library = [] {
    return rankslice::python::StoreLibrary{.format = &rankslice::native_store(), .save = &rankslice::save_store};
  };
  // Of a class that rankslice._native has: the stub of this module cannot name it.
  module.def("library", library, nanobind::sig("def library() -> object"));
}
