#include "synth/hub_index.hpp"

#include <nlohmann/json.hpp>

#include <utility>

namespace rankslice {

std::string index_json(std::vector<HubFile> const& files, SynthLayout layout) {
  std::uint64_t total_size = 0, parameters = 0;
  auto weight_map = nlohmann::json::object();
  for (auto const& file : files) {
    total_size += tensor_bytes(file.tensors);
    for (auto const& tensor : file.tensors) {
      parameters += element_count(tensor.shape);
      weight_map[tensor.name] = file.name;
    }
  }
  nlohmann::json index{{"metadata", {{"total_size", total_size}}}, {"weight_map", std::move(weight_map)}};
  if (layout == SynthLayout::transformers) index["metadata"]["total_parameters"] = parameters;
  return index.dump(2) + "\n";
}

}  // namespace rankslice
