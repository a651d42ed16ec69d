#include "hf_storage.hpp"

namespace rankslice {

std::vector<StoredPiece> hf_pieces(TensorCatalog const& catalog, Model const& model) {
  std::vector<StoredPiece> pieces;
  pieces.reserve(model.tensors.size());
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    for (auto const tensor : parameter.tensors) {
      auto slice = parameter.whole();
      if (parameter.stacked_experts) slice.part = model.tensors[tensor].experts;
      pieces.push_back({.parameter = i, .tensor = tensor, .slice = slice, .extent = catalog.tensors[tensor].extent});
    }
  }
  return pieces;
}

}  // namespace rankslice
