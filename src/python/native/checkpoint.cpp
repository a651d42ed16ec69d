#include "rankslice/checkpoint.hpp"

#include <fmt/format.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <utility>

#include "rankslice/hf_keys.hpp"

#include "model/family.hpp"
#include "python/native/arguments.hpp"
#include "python/native/bindings.hpp"
#include "python/native/call.hpp"
#include "python/native/communicator.hpp"
#include "python/native/store_library.hpp"

namespace rankslice::python {

namespace {

/// Native stores, whose library Python loads when it meets the first one.
class LateStores final : public StoreFormat {
 public:
  /// `library_for`: of a path; None where the file is no store.
  LateStores(Call& call, nb::object const& library_for) : call_(&call), library_for_(without_gil(library_for)) {}

  [[nodiscard]] bool recognises(std::string const& path) const override {
    auto const* const format = format_for(path);
    return format != nullptr && format->recognises(path);
  }

  [[nodiscard]] StoreContents read(std::string const& path) const override { return format_for(path)->read(path); }

 private:
  [[nodiscard]] StoreFormat const* format_for(std::string const& path) const {
    StoreFormat const* format = nullptr;
    call_->with_gil([&] {
      auto const name = nb::steal(PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size())));
      auto const library = (*library_for_)(name);
      if (!library.is_none()) format = nb::cast<StoreLibrary const&>(library).format;
    });
    return format;
  }

  Call* call_;
  std::shared_ptr<nb::object> library_for_;
};

std::shared_ptr<Checkpoint const> open(std::string const& path, World const& world, OpenOptions options,
                                       nb::object const& stores) {
  Call call{nb::none()};
  LateStores const late(call, stores);
  if (!stores.is_none()) options.store = &late;
  return call.run([&] { return world ? open_checkpoint(path, *world, options) : open_checkpoint(path, options); });
}

/// FQN -> the name in transformers' modules, which hold all experts of a layer in one tensor, whatever the files do.
std::map<std::string, std::string> transformers_names(Checkpoint const& checkpoint) {
  HfForms const forms{.decoder_experts = ExpertKeys::grouped,
                      .mtp_experts = ExpertKeys::grouped,
                      .expert_layout = ExpertLayout::transformers};
  std::map<std::string, std::string> names;
  for (auto& tensor : load_destinations(checkpoint, {.forms = forms})) {
    names.emplace(std::move(tensor.fqn), std::move(tensor.key));
  }
  return names;
}

/// Of each name, native or of transformers' modules: the native one, and whether it is that of stacked experts.
std::vector<std::pair<std::string, bool>> native_names(std::string const& family,
                                                       std::vector<std::string> const& names) {
  auto const& table = find_family(family, {}).keys;
  std::vector<CatalogTensor> keys(names.size());
  for (std::size_t i = 0; i < names.size(); ++i) keys[i].name = names[i];
  auto const prefix = find_prefix(table, keys);
  std::vector<std::pair<std::string, bool>> native;
  for (auto const& key : names) {
    auto const fqn = find_stacked(table, key) ? key : from_hf(table, key, prefix).fqn;
    native.emplace_back(fqn, find_stacked(table, fqn).has_value());
  }
  return native;
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
      .def_prop_ro(
          "parameters",
          [](Checkpoint const& checkpoint) -> std::vector<Parameter> const& { return checkpoint.model.parameters; })
      .def("__repr__", [](Checkpoint const& checkpoint) {
        return fmt::format("<Checkpoint {}: {}, {} tensors>", checkpoint.path, checkpoint.family,
                           checkpoint.model.parameters.size());
      });
  module.def(
      "open_checkpoint",
      [](std::string const& path, World const& world, std::string const& family, std::string const& source,
         std::string const& expert_layout, std::optional<std::string> const& dtype, std::optional<bool> text_only,
         std::string const& manifest, bool without_manifest, nb::object const& stores, int threads) {
        OpenOptions options{.family = family,
                            .store = nullptr,
                            .source = source,
                            .expert_layout = known(parse_expert_layout(expert_layout), "expert_layout", expert_layout),
                            .dtype = {},
                            .text_only = text_only,
                            .manifest = manifest,
                            .without_manifest = without_manifest,
                            .threads = threads};
        if (dtype) options.dtype = known(parse_dtype(*dtype), "dtype", *dtype);
        return open(path, world, std::move(options), stores);
      },
      nb::arg("path"), nb::arg("world").none(), nb::arg("family"), nb::arg("source"), nb::arg("expert_layout"),
      nb::arg("dtype").none(), nb::arg("text_only").none(), nb::arg("manifest"), nb::arg("without_manifest"),
      nb::arg("stores") = nb::none(), nb::arg("threads") = 0);
  module.def("transformers_names", &transformers_names, nb::arg("checkpoint"));
  module.def("native_names", &native_names, nb::arg("family"), nb::arg("names"));
  module.def(
      "select",
      [](std::shared_ptr<Checkpoint const> const& checkpoint, std::string const& include, std::string const& exclude) {
        return select_tensors(checkpoint, key_selection(include, exclude));
      },
      nb::arg("checkpoint"), nb::arg("include"), nb::arg("exclude"));
}

}  // namespace rankslice::python
