#include <nanobind/stl/shared_ptr.h>

#include "rankslice/error.hpp"

#include "python/native/bindings.hpp"
#include "python/native/call.hpp"
#include "python/native/communicator.hpp"

namespace rankslice::python {

namespace {

/// An error of rankslice.errors on its way through C++: ranks agree on it as on one of C++'s own.
struct CarriedError : Error {
  explicit CarriedError(nb::object const& error)
      : Error(static_cast<ExitCode>(nb::cast<int>(error.attr("code"))), nb::cast<std::string>(nb::str(error)),
              text(error.attr("file")), text(error.attr("tensor"))) {}

 private:
  static std::string text(nb::object const& value) {
    return value.is_none() ? std::string() : nb::cast<std::string>(nb::str(value));
  }
};

void call_python(nb::object const& step) {
  try {
    step();
  } catch (nb::python_error const& error) {
    if (!error.matches(nb::module_::import_("rankslice.errors").attr("Error"))) throw;
    throw CarriedError(nb::borrow(error.value()));
  }
}

void run_on_every_rank(World const& world, nb::object const& step) {
  Call call{nb::none()};
  auto const held = without_gil(step);
  call.run([&] { on_every_rank(*world, [&] { call.with_gil([&] { call_python(*held); }); }); });
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
