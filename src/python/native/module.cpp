#include "python/native/bindings.hpp"

NB_MODULE(_native, module) {
  module.doc() = "What rankslice does in C++. Use the package: this has no stable interface.";
  nanobind::set_leak_warnings(false);  // what a program still has when it ends is no news to its user
  rankslice::python::bind_errors(module);
  rankslice::python::bind_stores(module);
  rankslice::python::bind_checkpoint(module);
  rankslice::python::bind_communicator(module);
  rankslice::python::bind_gather(module);
  rankslice::python::bind_reports(module);
  rankslice::python::bind_device(module);
  rankslice::python::bind_state(module);
  rankslice::python::bind_exports(module);
  rankslice::python::bind_verify(module);
  rankslice::python::bind_steps(module);
}
