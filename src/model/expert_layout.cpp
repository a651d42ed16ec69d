#include "model/expert_layout.hpp"

#include <fmt/format.h>

#include "model/tensor_error.hpp"

namespace rankslice {

namespace {

bool fits(ExpertSizes const& sizes, KeyMapping const& key, Layout layout, CatalogTensor const& tensor) {
  return tensor.shape == expected_shape(sizes, key, layout) && element_count(tensor.shape) != 0;
}

std::string expectation(ExpertSizes const& sizes, KeyMapping const& key, Layout layout) {
  return fmt::format("{} = {}", to_string(expected_shape(sizes, key, layout)), shape_symbols(key, layout));
}

/// Of a shape that is no evidence (rule 61), or of which nothing is known that it could be compared with.
UsageError undecided(MappedCatalog const& mapped, std::size_t i, ExpertSizes const& sizes) {
  auto const& key = mapped.keys[i];
  auto const& tensor = mapped.catalog.tensors[i];
  auto const& file = mapped.catalog.files[tensor.extent.file].name;
  UsageError error(fmt::format(
      "{}: {}: the shape {} does not tell whether it is the Hub's {} or transformers' {}; {}: say which with "
      "--expert-layout hub|transformers",
      file, tensor.name, to_string(tensor.shape), shape_symbols(key, key.stacked->hub),
      shape_symbols(key, key.stacked->transformers), to_string(sizes)));
  error.file = file;
  error.tensor = tensor.name;
  return error;
}

/// The layout of one grouped tensor of a family with two.
ExpertLayout layout_by_shape(MappedCatalog const& mapped, std::size_t i, ExpertSizes const& sizes) {
  auto const& key = mapped.keys[i];
  auto const& tensor = mapped.catalog.tensors[i];
  if (sizes.hidden.value == 0 || sizes.intermediate.value == 0) throw undecided(mapped, i, sizes);
  auto const hub = fits(sizes, key, key.stacked->hub, tensor);
  auto const transformers = fits(sizes, key, key.stacked->transformers, tensor);
  if (hub && transformers) throw undecided(mapped, i, sizes);
  if (hub) return ExpertLayout::hub;
  if (transformers) return ExpertLayout::transformers;
  throw tensor_error(
      mapped.catalog, tensor,
      fmt::format("expected the shape {} (hub) or {} (transformers), found {}; {}",
                  expectation(sizes, key, key.stacked->hub), expectation(sizes, key, key.stacked->transformers),
                  to_string(tensor.shape), to_string(sizes)));
}

/// The layout that all grouped tensors of a family with two prove, each by its shape.
ExpertLayout detect_layout(MappedCatalog const& mapped, ExpertSizes const& sizes) {
  auto found = ExpertLayout::automatic;
  std::string_view first;
  for (std::size_t i = 0; i < mapped.keys.size(); ++i) {
    auto const& key = mapped.keys[i];
    if (key.stacked == nullptr || key.split || key.scales_of || key.stacked->one_layout()) continue;
    auto const& tensor = mapped.catalog.tensors[i];
    auto const layout = layout_by_shape(mapped, i, sizes);
    if (found == ExpertLayout::automatic) {
      found = layout;
      first = tensor.name;
    } else if (layout != found) {
      throw tensor_error(
          mapped.catalog, tensor,
          fmt::format("expected the {} layout, as {} has it, found the {} layout", name(found), first, name(layout)));
    }
  }
  return found;
}

void check_shape(MappedCatalog const& mapped, std::size_t i, ExpertSizes const& sizes, Layout layout,
                 std::string_view reason) {
  auto const& tensor = mapped.catalog.tensors[i];
  if (fits(sizes, mapped.keys[i], layout, tensor)) return;
  throw tensor_error(mapped.catalog, tensor,
                     fmt::format("expected the shape {}{}, found {}; {}", expectation(sizes, mapped.keys[i], layout),
                                 reason, to_string(tensor.shape), to_string(sizes)));
}

}  // namespace

std::vector<Layout> find_layouts(MappedCatalog const& mapped, ExpertSizes const& sizes, ExpertLayout requested) {
  auto const by_request = requested != ExpertLayout::automatic;
  auto const of_checkpoint = by_request ? requested : detect_layout(mapped, sizes);
  auto const reason = fmt::format(" by --expert-layout {}", name(requested));
  std::vector<Layout> layouts(mapped.keys.size(), Layout::same);
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    auto const& key = mapped.keys[i];
    if (key.stacked == nullptr) continue;
    layouts[i] = key.split ? Layout::swapped : key.stacked->grouped_layout(of_checkpoint);
    auto const requested_of_it = by_request && !key.split && !key.stacked->one_layout();
    if (!key.scales_of) check_shape(mapped, i, sizes, layouts[i], requested_of_it ? reason : "");
  }
  return layouts;
}

ExpertLayout find_expert_layout(Family const& family, TensorCatalog const& catalog,
                                std::map<std::string_view, Shape> const& native_shapes) {
  if (native_shapes.empty()) return ExpertLayout::automatic;
  auto const prefix = find_prefix(family.keys, catalog.tensors);
  for (auto const& tensor : catalog.tensors) {
    if (tensor.name.ends_with(family.keys.scale_suffix)) continue;
    auto const key = from_hf(family.keys, tensor.name, prefix);
    if (key.stacked == nullptr || key.split || key.stacked->one_layout()) continue;
    auto const native = native_shapes.find(key.fqn);
    if (native == native_shapes.end() || native->second.size() != 3 || native->second[1] == native->second[2]) continue;
    auto const layout = native->second == tensor.shape ? Layout::same : Layout::swapped;
    return key.stacked->hub == layout ? ExpertLayout::hub : ExpertLayout::transformers;
  }
  return ExpertLayout::automatic;
}

}  // namespace rankslice
