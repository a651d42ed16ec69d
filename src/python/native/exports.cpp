#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "rankslice/to_hf.hpp"

#include "python/native/arguments.hpp"
#include "python/native/bindings.hpp"
#include "python/native/call.hpp"
#include "python/native/communicator.hpp"

namespace rankslice::python {

namespace {

ExportReport export_state(StateDict const& state, std::string const& out_dir, World const& world, bool overwrite,
                          std::string const& include, std::string const& exclude, std::string const& layout,
                          std::shared_ptr<Checkpoint const> const& originals, std::string const& gdn_dtype,
                          std::uint64_t max_file_bytes, bool gather, bool resume, nb::object const& progress,
                          int threads) {
  Call call(progress);
  ExportOptions const options{.overwrite = overwrite,
                              .keys = key_selection(include, exclude),
                              .layout = known(parse_export_layout(layout), "export_layout", layout),
                              .source = originals,
                              .gdn_dtype = known(parse_gdn_dtype(gdn_dtype), "gdn_dtype", gdn_dtype),
                              .max_file_bytes = max_file_bytes,
                              .gather = gather,
                              .resume = resume,
                              .call = call.options(threads)};
  return call.run([&] { return to_hf(state, out_dir, *world, options); });
}

void save(StateDict const& state, std::string const& out_dir, World const& world, bool overwrite,
          nb::object const& progress, int threads) {
  Call call(progress);
  SaveOptions const options{.overwrite = overwrite, .call = call.options(threads)};
  call.run([&] { world ? save_shards(state, out_dir, *world, options) : save_shard(state, out_dir, options); });
}

}  // namespace

void bind_exports(nb::module_& module) {
  nb::class_<Resumed>(module, "Resumed")
      .def_ro("segments", &Resumed::segments)
      .def_ro("of", &Resumed::of)
      .def_ro("bytes", &Resumed::bytes);
  nb::class_<ExportReport>(module, "ExportReport")
      .def_prop_ro("headers", [](ExportReport const& report) { return std::string(name(report.headers)); })
      .def_ro("bytes_read", &ExportReport::bytes_read)
      .def_ro("bytes_written", &ExportReport::bytes_written)
      .def_ro("files", &ExportReport::files)
      .def_ro("resumed", &ExportReport::resumed);
  module.def("to_hf", &export_state, nb::arg("state"), nb::arg("out_dir"), nb::arg("world"), nb::arg("overwrite"),
             nb::arg("include"), nb::arg("exclude"), nb::arg("export_layout"), nb::arg("originals").none(),
             nb::arg("gdn_dtype"), nb::arg("max_file_bytes"), nb::arg("gather"), nb::arg("resume"),
             nb::arg("progress").none(), nb::arg("threads") = 0);
  module.def("save_shards", &save, nb::arg("state"), nb::arg("out_dir"), nb::arg("world").none(), nb::arg("overwrite"),
             nb::arg("progress").none(), nb::arg("threads") = 0);
}

}  // namespace rankslice::python
