#include "format/fresh_layout.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <iterator>
#include <utility>

#include "format/hf_index.hpp"
#include "format/hub_files.hpp"

namespace rankslice {

namespace {

/// A JSON string as Python's json writes it, all ASCII.
std::string json_string(std::string const& text) { return nlohmann::json(text).dump(-1, ' ', true); }

/// `json.dump(index, file, indent=2)`: members in the order of the files, no newline at the end.
std::string index_json(std::vector<HubFile> const& files) {
  std::uint64_t total_size = 0;
  std::string weight_map;
  for (auto const& file : files) {
    total_size += tensor_bytes(file.tensors);
    for (auto const& tensor : file.tensors) {
      fmt::format_to(std::back_inserter(weight_map), "{}\n    {}: {}", weight_map.empty() ? "" : ",",
                     json_string(tensor.name), json_string(file.name));
    }
  }
  return fmt::format("{{\n  \"metadata\": {{\n    \"total_size\": {}\n  }},\n  \"weight_map\": {{{}\n  }}\n}}",
                     total_size, weight_map);
}

}  // namespace

HfLayout make_fresh_layout(std::vector<SafetensorsHeader::Tensor> tensors, std::uint64_t max_file_bytes) {
  auto const files = split_into_files(std::move(tensors), max_file_bytes);
  HfLayout layout;
  for (auto const& file : files) {
    auto header = make_safetensors_header(file.tensors, {{"format", "pt"}});
    auto const size = header.size() + tensor_bytes(file.tensors);
    layout.files.push_back({.name = file.name, .size = size, .header = std::move(header), .modified_ns = 0});
  }
  if (files.size() == 1) return layout;
  layout.index_name = kIndexName;
  auto const index = index_json(files);
  auto const bytes = std::as_bytes(std::span(index));
  layout.index.assign(bytes.begin(), bytes.end());
  return layout;
}

}  // namespace rankslice
