#include "rankslice/verify.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "python/native/arguments.hpp"
#include "python/native/bindings.hpp"
#include "python/native/call.hpp"
#include "python/native/communicator.hpp"

namespace rankslice::python {

namespace {

std::optional<std::int64_t> unless_negative(std::int64_t number) {
  return number < 0 ? std::nullopt : std::optional(number);
}

VerifyReport verify_state(StateDict const& state, World const& world, std::string const& level,
                          std::shared_ptr<Checkpoint const> const& against, int threads, nb::object const& progress) {
  Call call(progress);
  VerifyOptions options{
      .level = known(parse_verify_level(level), "level", level), .against = against.get(), .call = call.options()};
  options.call.threads = threads;
  return call.run([&] { return world ? verify(state, *world, options) : verify(state, options); });
}

void digest_source_of(StateDict& state, World const& world, int threads, nb::object const& progress) {
  Call call(progress);
  auto options = call.options();
  options.threads = threads;
  call.run([&] { world ? digest_source(state, *world, options) : digest_source(state, options); });
}

}  // namespace

void bind_verify(nb::module_& module) {
  nb::class_<Mismatch>(module, "Mismatch")
      .def_ro("tensor", &Mismatch::tensor)
      .def_prop_ro("expert", [](Mismatch const& mismatch) { return unless_negative(mismatch.expert); })
      .def_prop_ro("rank", [](Mismatch const& mismatch) { return unless_negative(mismatch.rank); })
      .def_ro("what", &Mismatch::what);
  nb::class_<Reread>(module, "Reread")
      .def_ro("another_rank", &Reread::another_rank)
      .def_ro("another_host", &Reread::another_host)
      .def_ro("past_page_cache", &Reread::past_page_cache)
      .def_ro("bytes", &Reread::bytes);
  nb::class_<VerifyReport>(module, "VerifyReport")
      .def_prop_ro("level", [](VerifyReport const& report) { return std::string(name(report.level)); })
      .def_ro("reference", &VerifyReport::reference)
      .def_ro("reread", &VerifyReport::reread)
      .def_ro("without_codes", &VerifyReport::without_codes)
      .def_ro("tensors", &VerifyReport::tensors)
      .def_ro("experts", &VerifyReport::experts)
      .def_ro("experts_in_part", &VerifyReport::experts_in_part)
      .def_ro("mismatches", &VerifyReport::mismatches)
      .def_ro("unlisted", &VerifyReport::unlisted)
      .def("throw_if_bad", &VerifyReport::throw_if_bad);
  module.def("verify", &verify_state, nb::arg("state"), nb::arg("world").none(), nb::arg("level"),
             nb::arg("against").none(), nb::arg("threads"), nb::arg("progress").none());
  module.def("digest_source", &digest_source_of, nb::arg("state"), nb::arg("world").none(), nb::arg("threads"),
             nb::arg("progress").none());
}

}  // namespace rankslice::python
