#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "rankslice/error.hpp"

#include "core/each_in_threads.hpp"
#include "core/literals.hpp"
#include "format/hf_folder.hpp"
#include "format/hf_index.hpp"
#include "format/name_table.hpp"
#include "format/quote.hpp"
#include "format/safetensors.hpp"

namespace rankslice {

namespace {

[[noreturn]] void refuse_tensor(std::string const& file, std::string const& tensor, std::string const& problem) {
  throw FormatError(fmt::format("{}: tensor {}: {}", file, in_quotes(tensor), problem), file, tensor);
}

NameTable table_of(TensorCatalog const& catalog) {
  std::vector<std::string_view> names;
  names.reserve(catalog.tensors.size());
  for (auto const& tensor : catalog.tensors) names.push_back(tensor.name);
  return NameTable(std::move(names));
}

/// What a file is called in messages: its path, where it has one.
std::string below(std::string const& folder, std::string const& name) {
  return folder.empty() ? name : folder + "/" + name;
}

/// What torch.distributed.checkpoint writes of each rank, until it consolidates them.
bool has_parts_of_tensors(HfFile const& file) {
  return parse_safetensors_header(file.header, file.size, file.name).metadata.contains("DCP_SHARDING_INFO");
}

/// A thread is worth starting for a MiB of JSON.
std::vector<SafetensorsHeader> parse_headers(HfLayout const& layout, std::string const& folder, std::size_t threads) {
  auto const& files = layout.files;
  std::uint64_t bytes = 0;
  for (auto const& file : files) bytes += file.header.size();
  std::vector<SafetensorsHeader> headers(files.size());
  each_in_threads(files.size(), std::min<std::size_t>(threads, bytes / 1_MiB), [&](std::size_t i) {
    headers[i] = parse_safetensors_header(files[i].header, files[i].size, below(folder, files[i].name));
  });
  return headers;
}

void append_file(TensorCatalog& catalog, HfFile const& file, std::string const& folder, SafetensorsHeader header) {
  auto const number = static_cast<std::uint32_t>(catalog.files.size());
  auto const place = folder.empty() ? std::string() : below(folder, file.name);
  catalog.files.push_back({file.name, place, file.size, file.modified_ns});
  for (auto& tensor : header.tensors)
    catalog.tensors.push_back({std::move(tensor.name), tensor.dtype, std::move(tensor.shape), {number, tensor.bytes}});
}

/// Each tensor is in the shard that the index names, and the index names each tensor.
void check_index(TensorCatalog const& catalog, NameTable const& names, HfIndex const& index,
                 std::string const& index_path) {
  auto const file_of = [&](CatalogTensor const& tensor) { return catalog.files[tensor.extent.file].name; };
  std::vector<bool> is_indexed(catalog.tensors.size());
  for (auto const& entry : index.entries) {
    auto const& shard = index.shards[entry.shard];
    auto const found = names.find(entry.tensor);
    if (!found) refuse_tensor(index_path, entry.tensor, fmt::format("expected in {}, found in no shard", shard));
    auto const holder = file_of(catalog.tensors[*found]);
    if (holder != shard)
      refuse_tensor(index_path, entry.tensor, fmt::format("expected in {}, found in {}", shard, holder));
    is_indexed[*found] = true;
  }
  auto const left_over = std::ranges::find(is_indexed, false);
  if (left_over == is_indexed.end()) return;
  auto const& tensor = catalog.tensors[static_cast<std::size_t>(left_over - is_indexed.begin())];
  refuse_tensor(index_path, tensor.name, fmt::format("found in {}, but the index does not name it", file_of(tensor)));
}

void warn_of_total_size(TensorCatalog const& catalog, HfIndex const& index, std::string const& index_path,
                        std::vector<std::string>& warnings) {
  std::uint64_t bytes = 0;
  for (auto const& tensor : catalog.tensors) bytes += tensor.extent.bytes.size();
  if (index.total_size && *index.total_size != bytes)
    warnings.push_back(fmt::format("{}: metadata.total_size is {}, but the tensors have {} bytes", index_path,
                                   *index.total_size, bytes));
}

}  // namespace

TensorCatalog make_catalog(HfLayout const& layout, std::string const& folder, std::vector<std::string>& warnings,
                           std::size_t threads) {
  TensorCatalog catalog;
  auto headers = parse_headers(layout, folder, threads);
  for (std::size_t i = 0; i < headers.size(); ++i) {
    append_file(catalog, layout.files[i], folder, std::move(headers[i]));
  }
  auto const names = table_of(catalog);
  if (auto const duplicate = names.duplicate()) {
    auto const &first = catalog.tensors[duplicate->first], &second = catalog.tensors[duplicate->second];
    auto const place_of = [&](CatalogTensor const& tensor) {
      return below(folder, catalog.files[tensor.extent.file].name);
    };
    auto const advice = has_parts_of_tensors(layout.files[second.extent.file])
                            ? ": torch.distributed.checkpoint wrote parts of tensors, which it has to consolidate"
                            : "";
    refuse_tensor(place_of(second), second.name, fmt::format("is in {} as well{}", place_of(first), advice));
  }
  if (layout.index_name.empty()) return catalog;

  auto const index_path = below(folder, layout.index_name);
  auto const index = parse_hf_index(layout.index, index_path);
  check_index(catalog, names, index, index_path);
  warn_of_total_size(catalog, index, index_path, warnings);
  return catalog;
}

}  // namespace rankslice
