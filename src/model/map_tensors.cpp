#include "model/map_tensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>

#include "rankslice/error.hpp"

#include "model/block_scales.hpp"
#include "model/completeness.hpp"
#include "model/expert_layout.hpp"
#include "model/foreign_quantisation.hpp"
#include "model/tensor_error.hpp"

namespace rankslice {

namespace {

constexpr std::string_view kModel = "model.";

KeyMapping map_key(KeyTable const& table, TensorCatalog const& catalog, CatalogTensor const& tensor,
                   std::string_view prefix) {
  try {
    return from_hf(table, tensor.name, prefix);
  } catch (FormatError& error) {
    error.file = catalog.files[tensor.extent.file].name;  // which the rules of the family do not know
    throw;
  }
}

/// Block scales go where their weights go.
std::vector<KeyMapping> map_keys(KeyTable const& table, TensorCatalog const& catalog) {
  auto const prefix = find_prefix(table, catalog.tensors);
  auto const scales_of = find_block_scales(table, catalog);
  std::vector<KeyMapping> keys;
  keys.reserve(catalog.tensors.size());
  for (std::size_t i = 0; i < catalog.tensors.size(); ++i) {
    keys.push_back(map_key(table, catalog, catalog.tensors[scales_of[i].value_or(i)], prefix));
    keys.back().scales_of = scales_of[i];
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

/// The dtype in which the state dict holds a tensor (rules 55, 58).
DType find_dtype(KeyTable const& table, CatalogTensor const& tensor, bool quantised, ModelConfig const& config,
                 std::optional<DType> requested) {
  auto const required = find_dtype_on_load(table, tensor.name, tensor.dtype);
  if (required != tensor.dtype) return required;
  if (quantised) return requested ? *requested : config.dtype.value_or(DType::BF16);
  auto const casts = tensor.dtype == DType::BF16 || tensor.dtype == DType::F16 || tensor.dtype == DType::F32;
  return requested && casts && !is_fp32_held(table, tensor.name) ? *requested : tensor.dtype;
}

/// Joins tensors into parameters.
class Joiner {
 public:
  Joiner(KeyTable const& table, MappedCatalog const& mapped, std::vector<Layout> const& layouts,
         ExpertSizes const& sizes)
      : table_(table), mapped_(mapped), layouts_(layouts), sizes_(sizes), has_scales_(mapped.keys.size()) {
    model_.tensors.resize(mapped.keys.size());
    for (auto const& key : mapped.keys) {
      if (key.scales_of) has_scales_[*key.scales_of] = true;
    }
  }

  void add(std::uint32_t i, ModelConfig const& config, std::optional<DType> dtype) {
    auto const& tensor = mapped_.catalog.tensors[i];
    auto const& key = mapped_.keys[i];
    auto const count = static_cast<std::uint32_t>(model_.parameters.size());
    auto const [place, is_new] = by_name_.emplace(without_model(key.fqn), count);
    if (is_new) {
      model_.parameters.push_back({.fqn = key.fqn,
                                   .hf_dtype = tensor.dtype,
                                   .dtype = find_dtype(table_, tensor, has_scales_[i], config, dtype),
                                   .shape = native_shape(key, tensor, layouts_[i], sizes_),
                                   .layout = layouts_[i],
                                   .stacked_experts = key.stacked != nullptr,
                                   .tensors = {}});
    }
    auto& parameter = model_.parameters[place->second];
    if (!is_new && (!key.split || parameter.fqn != key.fqn)) throw collision(mapped_, parameter.tensors.front(), i);
    parameter.tensors.push_back(i);
    model_.tensors[i] = hf_tensor(tensor, key, parameter, place->second);
  }

  /// Once their weight is there.
  void add_scales(std::uint32_t i) {
    auto const& tensor = mapped_.catalog.tensors[i];
    auto& weight = model_.tensors[*mapped_.keys[i].scales_of];
    auto& parameter = model_.parameters[weight.parameter];
    weight.scales = i;
    parameter.scale_bytes += byte_size(tensor.dtype, tensor.shape);
    model_.tensors[i] = {.key = tensor.name,
                         .dtype = tensor.dtype,
                         .shape = tensor.shape,
                         .parameter = weight.parameter,
                         .experts = weight.experts,
                         .columns = weight.columns,
                         .is_scales = true};
  }

  [[nodiscard]] Model take() { return std::move(model_); }

 private:
  KeyTable const& table_;
  MappedCatalog const& mapped_;
  std::vector<Layout> const& layouts_;
  ExpertSizes const& sizes_;
  std::vector<bool> has_scales_;
  Model model_;
  std::unordered_map<std::string_view, std::uint32_t> by_name_;
};

/// The tensors of a parameter have one dtype: that of most of them, or else of the first.
void require_one_dtype(MappedCatalog const& mapped, std::vector<std::uint32_t> const& tensors) {
  auto const dtype_of = [&](std::uint32_t tensor) { return mapped.catalog.tensors[tensor].dtype; };
  std::map<DType, std::size_t> counts;
  for (auto const tensor : tensors) ++counts[dtype_of(tensor)];
  if (counts.size() == 1) return;
  auto const count_of = [&](std::uint32_t tensor) { return counts[dtype_of(tensor)]; };
  auto const usual = *std::ranges::max_element(tensors, {}, count_of);
  auto const other =
      *std::ranges::find_if(tensors, [&](std::uint32_t tensor) { return dtype_of(tensor) != dtype_of(usual); });
  throw tensor_error(mapped.catalog, mapped.catalog.tensors[other],
                     fmt::format("expected {} as in {}, found {}", name(dtype_of(usual)),
                                 mapped.catalog.tensors[usual].name, name(dtype_of(other))));
}

void require_one_dtype(MappedCatalog const& mapped, Model const& model) {
  for (auto const& parameter : model.parameters) {
    require_one_dtype(mapped, parameter.tensors);
    std::vector<std::uint32_t> scales;
    for (auto const tensor : parameter.tensors) {
      if (auto const& of_tensor = model.tensors[tensor].scales) scales.push_back(*of_tensor);
    }
    if (!scales.empty()) require_one_dtype(mapped, scales);
  }
}

/// Brings the tensors of each split parameter into the order of its experts and columns.
void order_experts(MappedCatalog const& mapped, Model& model) {
  for (auto& parameter : model.parameters) {
    auto& tensors = parameter.tensors;
    if (!mapped.keys[tensors.front()].split) continue;
    auto const place_of = [&](std::uint32_t tensor) { return *mapped.keys[tensor].split; };
    std::ranges::stable_sort(tensors, {}, place_of);
    auto const twice = std::ranges::adjacent_find(tensors, {}, place_of);
    if (twice != tensors.end()) throw collision(mapped, twice[0], twice[1]);
  }
}

void check_all_experts(MappedCatalog const& mapped, ExpertSizes const& sizes, ModelConfig const& config,
                       Model const& model) {
  check_expert_count(mapped, model, config);
  for (auto const& parameter : model.parameters) {
    if (mapped.keys[parameter.tensors.front()].split) check_experts(mapped, parameter, sizes);
  }
}

/// config.json decides what quantised weights become when nobody else does.
void warn_of_dtype(MappedCatalog const& mapped, ModelConfig const& config, std::optional<DType> requested,
                   std::vector<std::string>& warnings) {
  auto const is_scales = [](KeyMapping const& key) { return key.scales_of.has_value(); };
  if (config.dtype_doubt.empty() || requested || std::ranges::none_of(mapped.keys, is_scales)) return;
  warnings.push_back(fmt::format("config.json: found {}: quantised weights become {}", config.dtype_doubt,
                                 name(config.dtype.value_or(DType::BF16))));
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

Model map_tensors(Family const& family, TensorCatalog const& catalog, ModelConfig const& config,
                  MapOptions const& options, std::vector<std::string>& warnings) {
  refuse_foreign_quantisation(catalog, config, warnings);
  MappedCatalog const mapped{.catalog = catalog, .keys = map_keys(family.keys, catalog)};
  check_quantisation(family.keys, mapped, config, warnings);
  check_one_form(mapped);
  check_expert_layers(family.keys, mapped, config);
  auto const sizes = find_expert_sizes(mapped, config, options.expert_layout, warnings);
  auto const layouts = find_layouts(mapped, sizes, options.expert_layout);
  Joiner joiner(family.keys, mapped, layouts, sizes);
  auto const count = static_cast<std::uint32_t>(mapped.keys.size());
  for (std::uint32_t i = 0; i < count; ++i) {
    if (!mapped.keys[i].scales_of) joiner.add(i, config, options.dtype);
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    if (mapped.keys[i].scales_of) joiner.add_scales(i);
  }
  auto model = joiner.take();
  require_one_dtype(mapped, model);
  order_experts(mapped, model);
  check_all_experts(mapped, sizes, config, model);
  warn_of_dtype(mapped, config, options.dtype, warnings);
  check_way_back(family, model);
  return model;
}

}  // namespace rankslice
