#include "model/family.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <unordered_map>

#include "rankslice/error.hpp"

#include "model/qwen3_5_moe.hpp"
#include "model/tensor_error.hpp"

namespace rankslice {

namespace {

// Families whose names are reserved for later versions.
constexpr std::array<std::string_view, 3> kLater{"qwen3_vl_moe", "qwen3_moe", "qwen3_next"};

std::string known_names() {
  std::vector<std::string_view> names;
  for (auto const* family : families()) names.push_back(family->name());
  return fmt::format("{}", fmt::join(names, ", "));
}

Family const& family_of_model_type(std::string_view model_type) {
  if (model_type.empty()) {
    throw FormatError(
        fmt::format("no model_type (is there a config.json?): name the family with --family: {}", known_names()));
  }
  for (auto const* family : families()) {
    if (family->handles(model_type)) return *family;
  }
  throw FormatError(
      fmt::format("config.json: model_type {} is of no family that this version knows: {}", model_type, known_names()),
      "config.json");
}

Family const& family_of_name(std::string_view name) {
  for (auto const* family : families()) {
    if (family->name() == name) return *family;
  }
  if (std::ranges::find(kLater, name) != kLater.end()) {
    throw UsageError(fmt::format("family {} is not in this version; there is: {}", name, known_names()));
  }
  throw UsageError(fmt::format("unknown family {}; there is: auto, {}", name, known_names()));
}

Shape native_shape(Layout layout, Shape shape) {
  if (layout == Layout::swapped) std::swap(shape[1], shape[2]);
  return shape;
}

void check_stackable(TensorCatalog const& catalog, CatalogTensor const& tensor) {
  if (tensor.shape.size() != 3) {
    throw tensor_error(catalog, tensor,
                       fmt::format("stacked experts need 3 axes, found the shape {}", to_string(tensor.shape)));
  }
  if (bits(tensor.dtype) % 8 != 0) {
    throw tensor_error(catalog, tensor,
                       fmt::format("stacked experts need a dtype of whole bytes, found {}", name(tensor.dtype)));
  }
}

/// The parameter that a tensor is all of.
Parameter map_tensor(Family const& family, std::string_view prefix, TensorCatalog const& catalog,
                     CatalogTensor const& tensor) try {
  auto mapping = family.from_hf(tensor.name, prefix);
  if (mapping.stacked_experts) check_stackable(catalog, tensor);
  return {.fqn = std::move(mapping.name),
          .hf_dtype = tensor.dtype,
          .dtype = family.dtype_on_load(tensor.name, tensor.dtype),
          .shape = native_shape(mapping.layout, tensor.shape),
          .layout = mapping.layout,
          .stacked_experts = mapping.stacked_experts,
          .tensors = {}};
} catch (FormatError& error) {
  error.file = catalog.files[tensor.extent.file].name;  // which the rules of the family do not know
  throw;
}

void check_collisions(Model const& model) {
  std::unordered_map<std::string_view, std::string_view> key_of;
  for (auto const& parameter : model.parameters) {
    auto const& key = model.key_of(parameter);
    auto const [earlier, is_new] = key_of.emplace(parameter.fqn, key);
    if (is_new) continue;
    throw FormatError(fmt::format("{} and {} are two names of one parameter, {}", earlier->second, key, parameter.fqn),
                      {}, key);
  }
}

/// A table that does not lead back would send a tensor to a wrong name on export.
void check_way_back(Family const& family, Model const& model, std::string_view prefix) {
  for (auto const& parameter : model.parameters) {
    auto const& key = model.key_of(parameter);
    auto const back = family.to_hf(parameter.fqn);
    auto const again = family.from_hf(back.name, prefix);
    if (again.name == parameter.fqn && back.layout == parameter.layout) continue;
    throw FormatError(fmt::format("{}: becomes {}, which leads back to {}", key, parameter.fqn, back.name), {}, key);
  }
}

}  // namespace

std::span<Family const* const> families() {
  static std::array<Family const*, 1> const all{&qwen3_5_moe()};
  return all;
}

Family const& find_family(std::string_view name, ModelConfig const& config) {
  if (name == "auto") return family_of_model_type(config.model_type);
  auto const& family = family_of_name(name);
  if (!config.model_type.empty() && !family.handles(config.model_type)) {
    throw FormatError(
        fmt::format("config.json: model_type {} contradicts the family {} that was asked for", config.model_type, name),
        "config.json");
  }
  return family;
}

Model map_tensors(Family const& family, TensorCatalog const& catalog, ModelConfig const& config) {
  auto const prefix = family.prefix(catalog.tensors);
  Model model;
  for (std::uint32_t i = 0; i < catalog.tensors.size(); ++i) {
    auto const& tensor = catalog.tensors[i];
    auto& parameter = model.parameters.emplace_back(map_tensor(family, prefix, catalog, tensor));
    parameter.tensors = {i};
    auto const stacked = parameter.stacked_experts;
    model.tensors.push_back({.key = tensor.name,
                             .dtype = tensor.dtype,
                             .shape = tensor.shape,
                             .parameter = i,
                             .experts = {0, stacked ? parameter.part_count() : 1},
                             .columns = {0, parameter.columns()}});
  }
  check_collisions(model);
  family.check(catalog, model, config);
  check_way_back(family, model, prefix);
  return model;
}

}  // namespace rankslice
