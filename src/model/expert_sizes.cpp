#include "model/expert_sizes.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <tuple>

#include "model/tensor_error.hpp"

namespace rankslice {

namespace {

/// What an axis of an expert tensor is as long as.
enum class Axis : std::uint8_t { experts, hidden, intermediate, twice_intermediate };

constexpr std::array kGateUp{Axis::experts, Axis::hidden, Axis::twice_intermediate};
constexpr std::array kGateUpSwapped{Axis::experts, Axis::twice_intermediate, Axis::hidden};
constexpr std::array kDown{Axis::experts, Axis::intermediate, Axis::hidden};
constexpr std::array kDownSwapped{Axis::experts, Axis::hidden, Axis::intermediate};
constexpr std::array kGateOrUpMatrix{Axis::intermediate, Axis::hidden};
constexpr std::array kDownMatrix{Axis::hidden, Axis::intermediate};

std::span<Axis const> axes_of(KeyMapping const& key, Layout layout) {
  auto const gate_up = key.stacked->projection == Projection::gate_up;
  if (key.split) return gate_up ? kGateOrUpMatrix : kDownMatrix;
  if (layout == Layout::same) return gate_up ? kGateUp : kDown;
  return gate_up ? kGateUpSwapped : kDownSwapped;
}

std::string_view symbol(Axis axis) {
  switch (axis) {
    case Axis::experts:
      return "E";
    case Axis::hidden:
      return "H";
    case Axis::intermediate:
      return "I";
    case Axis::twice_intermediate:
      return "2I";
  }
  return "";
}

std::uint64_t length_of(ExpertSizes const& sizes, Axis axis) {
  switch (axis) {
    case Axis::experts:
      return sizes.experts.value;
    case Axis::hidden:
      return sizes.hidden.value;
    case Axis::intermediate:
      return sizes.intermediate.value;
    case Axis::twice_intermediate:
      return 2 * sizes.intermediate.value;
  }
  return 0;
}

void learn(Length& length, std::uint64_t value, std::string const& source) {
  if (length.value == 0) length = {value, source};
}

void learn(ExpertSizes& sizes, std::span<Axis const> axes, CatalogTensor const& tensor) {
  for (std::size_t i = 0; i < axes.size(); ++i) {
    switch (axes[i]) {
      case Axis::experts:
        learn(sizes.experts, tensor.shape[i], tensor.name);
        break;
      case Axis::hidden:
        learn(sizes.hidden, tensor.shape[i], tensor.name);
        break;
      case Axis::intermediate:
        learn(sizes.intermediate, tensor.shape[i], tensor.name);
        break;
      case Axis::twice_intermediate:
        learn(sizes.intermediate, tensor.shape[i] / 2, tensor.name);
        break;
    }
  }
}

void check_axes(TensorCatalog const& catalog, CatalogTensor const& tensor, KeyMapping const& key) {
  std::size_t const axes = key.split ? 2 : 3;
  if (tensor.shape.size() == axes) return;
  throw tensor_error(
      catalog, tensor,
      fmt::format("{} {} axes, found the shape {}", key.split ? "an expert's matrix needs" : "stacked experts need",
                  axes, to_string(tensor.shape)));
}

/// Which layout a tensor has without a look at its shape.
std::optional<Layout> known_layout(KeyMapping const& key, ExpertLayout requested) {
  if (key.split || key.stacked->one_layout()) return key.stacked->hub;
  if (requested != ExpertLayout::automatic) return key.stacked->grouped_layout(requested);
  return std::nullopt;
}

bool complete(ExpertSizes const& sizes) {
  return sizes.experts.value != 0 && sizes.hidden.value != 0 && sizes.intermediate.value != 0;
}

/// The two tensors of a layer, whose shapes fit together in one layout only.
void learn_from_pair(ExpertSizes& sizes, MappedCatalog const& mapped, std::size_t gate_up, std::size_t down) {
  auto const& first = mapped.catalog.tensors[gate_up];
  auto const& second = mapped.catalog.tensors[down];
  for (auto const layout : {Layout::same, Layout::swapped}) {
    auto learnt = sizes;
    learn(learnt, axes_of(mapped.keys[gate_up], layout), first);
    if (first.shape != expected_shape(learnt, mapped.keys[gate_up], layout) ||
        second.shape != expected_shape(learnt, mapped.keys[down], layout)) {
      continue;
    }
    sizes = learnt;
    return;
  }
  throw tensor_error(
      mapped.catalog, first,
      fmt::format("expected [E, H, 2I] beside [E, I, H], or [E, 2I, H] beside [E, H, I]; found {} beside "
                  "{} of {}",
                  to_string(first.shape), to_string(second.shape), second.name));
}

void learn_from_pairs(ExpertSizes& sizes, MappedCatalog const& mapped) {
  std::map<std::tuple<Stack, std::string_view>, std::array<std::optional<std::size_t>, 2>> layers;
  for (std::size_t i = 0; i < mapped.keys.size(); ++i) {
    auto const& key = mapped.keys[i];
    if (key.stacked == nullptr || key.split || key.scales_of) continue;
    auto& pair = layers[{key.stacked->stack, key.layer}];
    pair[static_cast<std::size_t>(key.stacked->projection)] = i;
    if (pair[0] && pair[1]) return learn_from_pair(sizes, mapped, *pair[0], *pair[1]);
  }
}

void learn_highest_expert(Length& experts, MappedCatalog const& mapped) {
  for (std::size_t i = 0; i < mapped.keys.size(); ++i) {
    auto const& split = mapped.keys[i].split;
    if (split && split->expert >= experts.value) experts = {split->expert + 1, mapped.catalog.tensors[i].name};
  }
}

void warn_of_learnt(ExpertSizes const& sizes, ModelConfig const& config, std::vector<std::string>& warnings) {
  std::vector<std::string> learnt;
  auto const add = [&](char symbol, std::uint64_t said, Length const& length) {
    if (said == 0) learnt.push_back(fmt::format("{} is {} by {}", symbol, length.value, length.source));
  };
  add('E', config.experts, sizes.experts);
  add('H', config.hidden, sizes.hidden);
  add('I', config.intermediate, sizes.intermediate);
  if (learnt.empty()) return;
  warnings.push_back(fmt::format("{}: config.json does not say so", fmt::join(learnt, ", ")));
}

}  // namespace

ExpertSizes find_expert_sizes(MappedCatalog const& mapped, ModelConfig const& config, ExpertLayout requested,
                              std::vector<std::string>& warnings) {
  ExpertSizes sizes{.experts = {config.experts, "config.json's " + config.experts_field},
                    .hidden = {config.hidden, "config.json's hidden_size"},
                    .intermediate = {config.intermediate, "config.json's moe_intermediate_size"}};
  for (std::size_t i = 0; i < mapped.keys.size(); ++i) {
    auto const& key = mapped.keys[i];
    if (key.stacked == nullptr || key.scales_of) continue;
    auto const& tensor = mapped.catalog.tensors[i];
    check_axes(mapped.catalog, tensor, key);
    if (complete(sizes)) continue;
    if (!key.split) learn(sizes.experts, tensor.shape[0], tensor.name);
    if (auto const layout = known_layout(key, requested)) learn(sizes, axes_of(key, *layout), tensor);
  }
  if (sizes.hidden.value == 0 || sizes.intermediate.value == 0) learn_from_pairs(sizes, mapped);
  if (sizes.experts.value == 0) learn_highest_expert(sizes.experts, mapped);
  warn_of_learnt(sizes, config, warnings);
  return sizes;
}

Shape expected_shape(ExpertSizes const& sizes, KeyMapping const& key, Layout layout) {
  Shape expected;
  for (auto const axis : axes_of(key, layout)) expected.push_back(length_of(sizes, axis));
  return expected;
}

std::string shape_symbols(KeyMapping const& key, Layout layout) {
  std::vector<std::string_view> symbols;
  for (auto const axis : axes_of(key, layout)) symbols.push_back(symbol(axis));
  return fmt::format("[{}]", fmt::join(symbols, ", "));
}

std::string to_string(ExpertSizes const& sizes) {
  auto const said = [](char symbol, Length const& length) {
    if (length.value == 0) return fmt::format("{} is not known", symbol);
    return fmt::format("{} is {} by {}", symbol, length.value, length.source);
  };
  return fmt::format("{}, {}, {}", said('E', sizes.experts), said('H', sizes.hidden), said('I', sizes.intermediate));
}

}  // namespace rankslice
