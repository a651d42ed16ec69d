#include "model/block_scales.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "core/block_scales.hpp"
#include "model/key_pattern.hpp"
#include "model/quantised.hpp"
#include "model/tensor_error.hpp"

namespace rankslice {

namespace {

constexpr std::string_view kWeight = ".weight";

using Numbers = std::unordered_map<std::string_view, std::uint32_t>;

/// Rule 40 in upstream's words.
std::string missing_quantised(KeyMapping const& key) {
  auto const expert = std::to_string(key.split->expert);
  return fill_key(key.stacked->split[key.split->matrix].missing_quantised, {.layer = key.layer, .expert = expert});
}

std::uint32_t find_weight(KeyTable const& table, TensorCatalog const& catalog, Numbers const& numbers,
                          CatalogTensor const& scales) {
  auto const stem = std::string_view(scales.name).substr(0, scales.name.size() - table.scale_suffix.size());
  auto const longer = fmt::format("{}{}", stem, kWeight);
  for (auto const key : {stem, std::string_view(longer)}) {
    if (auto const found = numbers.find(key); found != numbers.end()) return found->second;
  }
  auto reason = fmt::format("are scales of {}, which is missing", stem);
  auto const key = from_hf(table, stem, {});
  if (key.split) reason = fmt::format("{}: {}", missing_quantised(key), reason);
  throw tensor_error(catalog, scales, reason);
}

void check_scales(MappedCatalog const& mapped, std::size_t i) {
  auto const& scales = mapped.catalog.tensors[i];
  auto const& weight = mapped.catalog.tensors[*mapped.keys[i].scales_of];
  if (weight.dtype != DType::F8_E4M3) {
    throw tensor_error(mapped.catalog, scales,
                       fmt::format("are scales of {}, expected as F8_E4M3, found {}", weight.name, name(weight.dtype)));
  }
  std::size_t const axes = mapped.keys[i].stacked != nullptr && !mapped.keys[i].split ? 3 : 2;
  if (weight.shape.size() != axes) {
    throw tensor_error(mapped.catalog, weight,
                       fmt::format("block scales need a matrix{}, found the shape {}",
                                   axes == 3 ? " for each expert" : "", to_string(weight.shape)));
  }
  if (auto const expected = scales_shape(weight.shape); scales.shape != expected) {
    throw tensor_error(mapped.catalog, scales,
                       fmt::format("FP8 scale shape {} does not match weight shape {} (expected {})",
                                   to_string(scales.shape), to_string(weight.shape), to_string(expected)));
  }
  if (scales.dtype != DType::BF16 && scales.dtype != DType::F16 && scales.dtype != DType::F32) {
    throw tensor_error(mapped.catalog, scales,
                       fmt::format("expected scales in BF16, F16 or F32, found {}", name(scales.dtype)));
  }
}

/// The same, and rule 60.
std::string missing_scales(KeyMapping const& key, CatalogTensor const& tensor) {
  if (key.split && key.stacked->stack == Stack::decoder) return missing_quantised(key);
  if (is_mtp(key.fqn) && key.stacked != nullptr) {
    return fmt::format("Missing FP8 scale for MTP expert weight {}", tensor.name);
  }
  return "Missing FP8 scale";
}

void check_weight(MappedCatalog const& mapped, std::size_t i, bool has_scales, KeyTable const& table) {
  auto const& key = mapped.keys[i];
  auto const& tensor = mapped.catalog.tensors[i];
  if (has_scales || !is_quantised(tensor.dtype)) return;
  if (tensor.dtype == DType::F8_E4M3) {
    throw tensor_error(
        mapped.catalog, tensor,
        fmt::format("{}: expected {}{} beside it", missing_scales(key, tensor), tensor.name, table.scale_suffix));
  }
  throw tensor_error(mapped.catalog, tensor,
                     fmt::format("has dtype {}: of quantised weights only F8_E4M3 with scales for blocks of 128 × 128 "
                                 "is supported",
                                 name(tensor.dtype)));
}

}  // namespace

std::vector<std::optional<std::uint32_t>> find_block_scales(KeyTable const& table, TensorCatalog const& catalog) {
  std::vector<std::optional<std::uint32_t>> weights(catalog.tensors.size());
  auto const are_scales = [&](CatalogTensor const& tensor) { return tensor.name.ends_with(table.scale_suffix); };
  if (std::ranges::none_of(catalog.tensors, are_scales)) return weights;
  Numbers numbers;
  for (std::uint32_t i = 0; i < catalog.tensors.size(); ++i) numbers.emplace(catalog.tensors[i].name, i);
  std::unordered_map<std::uint32_t, std::uint32_t> scales_of;
  for (std::uint32_t i = 0; i < weights.size(); ++i) {
    auto const& tensor = catalog.tensors[i];
    if (!are_scales(tensor)) continue;
    weights[i] = find_weight(table, catalog, numbers, tensor);
    auto const [earlier, is_new] = scales_of.emplace(*weights[i], i);
    if (is_new) continue;
    throw tensor_error(catalog, tensor,
                       fmt::format("are scales of {}, and so are {}", catalog.tensors[*weights[i]].name,
                                   catalog.tensors[earlier->second].name));
  }
  return weights;
}

void check_quantisation(KeyTable const& table, MappedCatalog const& mapped, ModelConfig const& config,
                        std::vector<std::string>& warnings) {
  std::vector<bool> has_scales(mapped.keys.size());
  for (std::size_t i = 0; i < mapped.keys.size(); ++i) {
    if (!mapped.keys[i].scales_of) continue;
    check_scales(mapped, i);
    has_scales[*mapped.keys[i].scales_of] = true;
  }
  for (std::size_t i = 0; i < mapped.keys.size(); ++i) {
    if (!mapped.keys[i].scales_of) check_weight(mapped, i, has_scales[i], table);
  }
  if (!config.quantisation.method.empty() && !config.partial &&
      std::ranges::find(has_scales, true) == has_scales.end()) {
    warnings.push_back("config.json: quantization_config speaks of fp8, but no weight is quantised");
  }
}

}  // namespace rankslice
