#include "model/map_tensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "rankslice/error.hpp"

#include "model/completeness.hpp"
#include "model/expert_layout.hpp"
#include "model/tensor_error.hpp"

namespace rankslice {

namespace {

constexpr std::string_view kModel = "model.";

std::vector<KeyMapping> map_keys(KeyTable const& table, TensorCatalog const& catalog) {
  auto const prefix = find_prefix(table, catalog.tensors);
  std::vector<KeyMapping> keys;
  keys.reserve(catalog.tensors.size());
  for (auto const& tensor : catalog.tensors) {
    try {
      keys.push_back(from_hf(table, tensor.name, prefix));
    } catch (FormatError& error) {
      error.file = catalog.files[tensor.extent.file].name;  // which the rules of the family do not know
      throw;
    }
  }
  return keys;
}

Shape native_shape(KeyMapping const& key, CatalogTensor const& tensor, Layout layout, ExpertSizes const& sizes) {
  auto const& shape = tensor.shape;
  if (key.split) return {sizes.experts.value, shape[1], shape[0] * key.stacked->split.size()};
  return layout == Layout::swapped ? Shape{shape[0], shape[2], shape[1]} : shape;
}

HfTensor hf_tensor(CatalogTensor const& tensor, KeyMapping const& key, Parameter const& parameter,
                   std::uint32_t index) {
  HfTensor made{.key = tensor.name, .dtype = tensor.dtype, .shape = tensor.shape, .parameter = index};
  if (key.split) {
    auto const width = tensor.shape[0];
    made.experts = {key.split->expert, key.split->expert + 1};
    made.columns = {key.split->matrix * width, (key.split->matrix + 1) * width};
  } else if (key.stacked != nullptr) {
    made.experts = {0, parameter.part_count()};
    made.columns = {0, parameter.columns()};
  }
  return made;
}

/// Rules 23, 39, 43: names that differ by nothing but `model.` are two spellings of one.
std::string_view without_model(std::string_view fqn) {
  while (fqn.starts_with(kModel)) fqn.remove_prefix(kModel.size());
  return fqn;
}

FormatError collision(MappedCatalog const& mapped, std::size_t earlier, std::size_t later) {
  auto const& tensors = mapped.catalog.tensors;
  auto const& key = mapped.keys[later];
  auto const expert = key.split ? fmt::format(", expert {}", key.split->expert) : std::string();
  return FormatError(fmt::format("{} and {} are two names of one parameter, {}{}", tensors[earlier].name,
                                 tensors[later].name, key.fqn, expert),
                     mapped.catalog.files[tensors[later].extent.file].name, tensors[later].name);
}

/// Joins tensors into parameters.
Model join(KeyTable const& table, MappedCatalog const& mapped, std::vector<Layout> const& layouts,
           ExpertSizes const& sizes) {
  Model model;
  std::unordered_map<std::string_view, std::uint32_t> by_name;
  for (std::uint32_t i = 0; i < mapped.keys.size(); ++i) {
    auto const& tensor = mapped.catalog.tensors[i];
    auto const& key = mapped.keys[i];
    auto const count = static_cast<std::uint32_t>(model.parameters.size());
    auto const [place, is_new] = by_name.emplace(without_model(key.fqn), count);
    if (is_new) {
      model.parameters.push_back({.fqn = key.fqn,
                                  .hf_dtype = tensor.dtype,
                                  .dtype = find_dtype_on_load(table, tensor.name, tensor.dtype),
                                  .shape = native_shape(key, tensor, layouts[i], sizes),
                                  .layout = layouts[i],
                                  .stacked_experts = key.stacked != nullptr,
                                  .tensors = {}});
    }
    auto& parameter = model.parameters[place->second];
    if (!is_new && (!key.split || parameter.fqn != key.fqn)) throw collision(mapped, parameter.tensors.front(), i);
    if (tensor.dtype != parameter.hf_dtype) {
      auto const& first = mapped.catalog.tensors[parameter.tensors.front()];
      throw tensor_error(
          mapped.catalog, tensor,
          fmt::format("expected {} as in {}, found {}", name(first.dtype), first.name, name(tensor.dtype)));
    }
    parameter.tensors.push_back(i);
    model.tensors.push_back(hf_tensor(tensor, key, parameter, place->second));
  }
  return model;
}

/// Brings the tensors of each split parameter into the order of its experts and columns.
void order_experts(MappedCatalog const& mapped, ExpertSizes const& sizes, Model& model) {
  for (auto& parameter : model.parameters) {
    auto& tensors = parameter.tensors;
    if (!mapped.keys[tensors.front()].split) continue;
    auto const place_of = [&](std::uint32_t tensor) { return *mapped.keys[tensor].split; };
    std::ranges::stable_sort(tensors, {}, place_of);
    auto const twice = std::ranges::adjacent_find(tensors, {}, place_of);
    if (twice != tensors.end()) throw collision(mapped, twice[0], twice[1]);
    check_experts(mapped, parameter, sizes);
  }
}

}  // namespace

void check_way_back(Family const& family, Model const& model) {
  auto const prefix = find_prefix(family.keys, model.tensors);
  for (auto const& parameter : model.parameters) {
    auto const key = to_hf(family.keys, parameter.fqn);
    auto const again = from_hf(family.keys, key, prefix);
    if (again.fqn == parameter.fqn && (again.stacked != nullptr) == parameter.stacked_experts) continue;
    auto const& source = model.key_of(parameter);
    throw FormatError(fmt::format("{}: becomes {}, which leads back to {}", source, parameter.fqn, key), {}, source);
  }
}

Model map_tensors(Family const& family, TensorCatalog const& catalog, ModelConfig const& config, ExpertLayout layout,
                  std::vector<std::string>& warnings) {
  MappedCatalog const mapped{.catalog = catalog, .keys = map_keys(family.keys, catalog)};
  check_unquantised(mapped, config);
  check_one_form(mapped);
  check_expert_layers(family.keys, mapped, config);
  auto const sizes = find_expert_sizes(mapped, config, layout, warnings);
  auto const layouts = find_layouts(mapped, sizes, layout);
  auto model = join(family.keys, mapped, layouts, sizes);
  order_experts(mapped, sizes, model);
  check_way_back(family, model);
  return model;
}

}  // namespace rankslice
