#include "rankslice/checkpoint.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>

#include "python/native/bindings.hpp"
#include "python/native/call.hpp"
#include "python/native/communicator.hpp"

namespace rankslice::python {

namespace {

std::shared_ptr<Checkpoint const> open(std::string const& path, World const& world, OpenOptions const& options) {
  return Call(nb::none()).run([&] {
    return world ? open_checkpoint(path, *world, options) : open_checkpoint(path, options);
  });
}

template <typename Value>
Value known(std::optional<Value> const& value, std::string const& option, std::string const& given) {
  if (!value) throw UsageError(option + ": there is no " + given);
  return *value;
}

}  // namespace

void bind_checkpoint(nb::module_& module) {
  nb::class_<Parameter>(module, "Parameter")
      .def_ro("fqn", &Parameter::fqn)
      .def_prop_ro("dtype", [](Parameter const& parameter) { return std::string(name(parameter.dtype)); })
      .def_prop_ro("hf_dtype", [](Parameter const& parameter) { return std::string(name(parameter.hf_dtype)); })
      .def_ro("shape", &Parameter::shape)
      .def_ro("stacked_experts", &Parameter::stacked_experts)
      .def_prop_ro("converted", &Parameter::converted);
  nb::class_<Checkpoint>(module, "Checkpoint")
      .def_ro("path", &Checkpoint::path)
      .def_ro("source", &Checkpoint::source)
      .def_ro("family", &Checkpoint::family)
      .def_ro("fingerprint", &Checkpoint::fingerprint)
      .def_ro("digests_from", &Checkpoint::digests_from)
      .def_ro("warnings", &Checkpoint::warnings)
      .def_prop_ro("parameters", [](Checkpoint const& checkpoint) { return checkpoint.model.parameters; });
  module.def(
      "open_checkpoint",
      [](std::string const& path, World const& world, std::string const& family, std::string const& source,
         std::string const& expert_layout, std::optional<std::string> const& dtype, std::optional<bool> text_only,
         std::string const& manifest, bool without_manifest) {
        OpenOptions options{.family = family,
                            .store = nullptr,
                            .source = source,
                            .expert_layout = known(parse_expert_layout(expert_layout), "expert_layout", expert_layout),
                            .dtype = {},
                            .text_only = text_only,
                            .manifest = manifest,
                            .without_manifest = without_manifest};
        if (dtype) options.dtype = known(parse_dtype(*dtype), "dtype", *dtype);
        return open(path, world, options);
      },
      nb::arg("path"), nb::arg("world").none(), nb::arg("family"), nb::arg("source"), nb::arg("expert_layout"),
      nb::arg("dtype").none(), nb::arg("text_only").none(), nb::arg("manifest"), nb::arg("without_manifest"));
  module.def(
      "select",
      [](std::shared_ptr<Checkpoint const> const& checkpoint, std::string const& include, std::string const& exclude) {
        return select_tensors(checkpoint, key_selection(include, exclude));
      },
      nb::arg("checkpoint"), nb::arg("include"), nb::arg("exclude"));
}

}  // namespace rankslice::python
