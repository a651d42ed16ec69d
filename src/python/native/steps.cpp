#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <span>
#include <string>

#include "agreed_threads.hpp"
#include "core/fingerprint.hpp"
#include "io/processors.hpp"
#include "python/native/bindings.hpp"
#include "python/native/call.hpp"
#include "python/native/communicator.hpp"
#include "state/consistency.hpp"

namespace rankslice::python {

namespace {

void run_on_every_rank(World const& world, nb::object const& step) {
  Call call{nb::none()};
  auto const held = without_gil(step);
  call.run([&] { on_every_rank(*world, [&] { call.with_gil([&] { (*held)(); }); }); });
}

void require_same_text(World const& world, std::string const& text, std::string const& problem) {
  Call call{nb::none()};
  call.run([&] { require_same(xxh3_128(std::as_bytes(std::span(text))), problem, *world); });
}

int decide_threads(World const& world, int threads, int processes_of_host) {
  if (!world) return threads > 0 ? threads : fair_threads(own_processors(), common_processors(), processes_of_host);
  Call call{nb::none()};
  return call.run([&] { return with_threads({.threads = threads}, *world).threads; });
}

}  // namespace

void bind_steps(nb::module_& module) {
  module.def("on_every_rank", &run_on_every_rank, nb::arg("world"), nb::arg("step"),
             "A step that can fail on one rank alone: then all raise what the lowest failing rank did. Collective.");
  module.def("require_same", &require_same_text, nb::arg("world"), nb::arg("text"), nb::arg("problem"),
             "What all ranks must have alike; else all raise what is wrong with the first that has not. Collective.");
  module.def("decide_threads", &decide_threads, nb::arg("world").none(), nb::arg("threads"),
             nb::arg("processes_of_host"), "As many as are asked for, or, for 0, a fair share. Collective.");
  module.def(
      "still_alive", [](World const& world) { world->progress(); }, nb::arg("world"),
      "Within such a step: not stuck. Local.");
}

}  // namespace rankslice::python
