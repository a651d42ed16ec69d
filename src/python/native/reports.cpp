#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "facts/inspection.hpp"
#include "facts/plan_facts.hpp"
#include "python/native/arguments.hpp"
#include "python/native/bindings.hpp"

namespace rankslice::python {

namespace {

/// JSON, and the same for people.
using Told = std::pair<nb::str, nb::str>;

/// Names in files may be no UTF-8.
nb::str to_python(std::string const& text) {
  return nb::steal<nb::str>(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}

template <typename MakeJson, typename MakeText>
Told tell(MakeJson const& make_json, MakeText const& make_text) {
  std::string json, text;
  {
    nb::gil_scoped_release const released;
    auto const value = make_json();
    json = json_text(value);
    text = make_text(value);
  }
  return {to_python(json), to_python(text)};
}

Told inspect(Checkpoint const& checkpoint, bool asked_for_dtype) {
  return tell([&] { return summarize_checkpoint(checkpoint, asked_for_dtype); }, inspection_text);
}

Told plan(Checkpoint const& source, Mesh const& mesh, std::optional<int> rank, std::string const& dense,
          bool asked_for_dtype) {
  constexpr auto kCommand = "plan";
  auto const reading = known(parse_dense_reading(dense), "dense", dense);
  if (rank) {
    return tell([&] { return plan_of_rank(source, mesh, reading, *rank, kCommand); },
                [&](Json const&) { return lines_of_rank(source, mesh, reading, *rank); });
  }
  return tell([&] { return plan_of_all_ranks(source, mesh, reading, asked_for_dtype, kCommand); },
              [&](Json const&) { return table_of_all_ranks(source, mesh, reading, asked_for_dtype); });
}

Told plan_keys(Checkpoint const& source, Mesh const& mesh, int rank, std::string const& include,
               std::string const& exclude) {
  return tell([&] { return plan_of_keys(source, mesh, rank, key_selection(include, exclude), "plan"); }, lines_of_keys);
}

}  // namespace

void bind_reports(nb::module_& module) {
  module.def("inspect", &inspect, nb::arg("checkpoint"), nb::arg("asked_for_dtype"));
  module.def("plan", &plan, nb::arg("source"), nb::arg("mesh"), nb::arg("rank").none(), nb::arg("dense"),
             nb::arg("asked_for_dtype"));
  module.def("plan_keys", &plan_keys, nb::arg("source"), nb::arg("mesh"), nb::arg("rank"), nb::arg("include"),
             nb::arg("exclude"));
}

}  // namespace rankslice::python
