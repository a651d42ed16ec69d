#include "hf_storage.hpp"

#include <string_view>
#include <unordered_map>

namespace rankslice {

std::vector<StoredPiece> hf_pieces(TensorCatalog const& catalog, Model const& model) {
  std::unordered_map<std::string_view, Extent> places;
  for (auto const& tensor : catalog.tensors) places.emplace(tensor.name, tensor.extent);
  std::vector<StoredPiece> pieces;
  pieces.reserve(catalog.tensors.size());
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    for (auto const tensor : parameter.tensors) {
      auto const place = places.find(model.tensors[tensor].key);
      if (place == places.end()) continue;
      auto slice = parameter.whole();
      if (parameter.stacked_experts) slice.part = model.tensors[tensor].experts;
      pieces.push_back({.parameter = i, .tensor = tensor, .slice = slice, .extent = place->second});
    }
  }
  return pieces;
}

}  // namespace rankslice
