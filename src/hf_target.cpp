#include "hf_target.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <unordered_map>

#include "rankslice/error.hpp"

#include "format/fresh_layout.hpp"
#include "format/hf_folder.hpp"
#include "format/hf_index.hpp"

namespace rankslice {

std::vector<bool> taken_tensors(Model const& model, KeySelection const& keys) {
  std::vector<bool> taken;
  for (auto const& tensor : model.tensors) taken.push_back(!keys || keys(tensor.key));
  for (std::size_t i = 0; i < taken.size(); ++i) {  // scales go with their weights, whatever their own keys
    if (model.tensors[i].scales) taken[*model.tensors[i].scales] = taken[i];
  }
  if (std::ranges::find(taken, true) != taken.end()) return taken;
  throw PlanError(fmt::format("the selection takes none of the {} tensors; {} is one of them", model.tensors.size(),
                              model.tensors.front().key));
}

TensorCatalog make_fresh_catalog(HfLayout const& layout) {
  std::vector<std::string> warnings;
  return make_catalog(layout, {}, warnings);
}

void require_harmless_names(HfLayout const& layout, std::string const& path) {
  std::set<std::string_view> names;
  auto const require = [&](std::string const& file, std::string_view fault) {
    if (fault.empty() && !names.insert(file).second) fault = "there are two files of this name";
    if (!fault.empty())
      throw FormatError(fmt::format("{}: the file name '{}' is refused: {}", path, file, fault), path);
  };
  auto const top_level_fault = [](std::string_view name) -> std::string_view {
    auto const forbidden = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '/'; };
    if (name.empty() || name == "." || name == "..") return "it is no file name";
    return std::ranges::any_of(name, forbidden) ? "it contains a slash or a control character" : "";
  };
  for (auto const& file : layout.files) require(file.name, fault_of_shard_name(file.name));
  for (auto const& side : layout.side_files) require(side.name, top_level_fault(side.name));
  if (!layout.index_name.empty()) require(layout.index_name, top_level_fault(layout.index_name));
}

HfTarget make_target(Checkpoint const& source, std::vector<bool> const& taken, std::uint64_t max_file_bytes) {
  if (std::ranges::find(taken, false) == taken.end()) return {.hf = source.hf, .catalog = source.catalog};
  auto target = make_fresh_target(source, source.model, taken, max_file_bytes);
  target.hf.headers = HeaderOrigin::selection;
  return target;
}

HfTarget make_fresh_target(Checkpoint const& source, Model const& model, std::vector<bool> const& taken,
                           std::uint64_t max_file_bytes) {
  std::vector<SafetensorsHeader::Tensor> tensors;
  for (std::size_t i = 0; i < taken.size(); ++i) {
    auto const& tensor = model.tensors[i];
    if (taken[i]) tensors.push_back({tensor.key, tensor.dtype, tensor.shape, {}});
  }
  HfTarget target{.hf = make_fresh_layout(std::move(tensors), max_file_bytes), .catalog = {}};
  target.hf.config = source.hf.config;
  target.hf.side_files = source.hf.side_files;
  target.hf.left_out = source.hf.left_out;
  require_harmless_names(target.hf, source.path);
  target.catalog = make_fresh_catalog(target.hf);
  return target;
}

std::vector<StoredPiece> hf_pieces(TensorCatalog const& catalog, Model const& model) {
  std::unordered_map<std::string_view, Extent> places;
  for (auto const& tensor : catalog.tensors) places.emplace(tensor.name, tensor.extent);
  auto const place_of = [&](std::uint32_t tensor) {
    auto const place = places.find(model.tensors[tensor].key);
    return place == places.end() ? std::nullopt : std::optional(place->second);
  };
  std::vector<StoredPiece> pieces;
  pieces.reserve(catalog.tensors.size());
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    for (auto const number : parameter.tensors) {
      auto const& tensor = model.tensors[number];
      auto const extent = place_of(number);
      if (!extent) continue;
      auto slice = parameter.whole();
      if (parameter.stacked_experts) slice.part = tensor.experts;
      pieces.push_back({.parameter = i, .tensor = number, .slice = slice, .extent = *extent});
      if (tensor.scales) pieces.back().scales = place_of(*tensor.scales);
    }
  }
  return pieces;
}

Storage target_storage(HfTarget const& target, Model const& model, std::string const& folder) {
  Storage storage{.form = Form::hf, .files = {}, .pieces = {}};
  for (auto const& file : target.catalog.files) {
    storage.files.push_back({.name = file.name, .path = folder + "/" + file.name, .size = file.size});
  }
  storage.pieces = hf_pieces(target.catalog, model);
  storage.partial = target.catalog.tensors.size() < model.tensors.size();
  return storage;
}

}  // namespace rankslice
