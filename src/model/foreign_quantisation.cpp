#include "model/foreign_quantisation.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <unordered_set>

#include "rankslice/error.hpp"

#include "core/block_scales.hpp"
#include "model/quantised.hpp"
#include "model/tensor_error.hpp"

namespace rankslice {

namespace {

constexpr std::string_view kScale = "_scale";
constexpr std::string_view kWeightScale = ".weight_scale";
constexpr std::string_view kZeroPoint = "_zero_point";
constexpr char const* kModelopt = "hf_quant_config.json";

/// Tensors by which other ways to quantise are known; config.json may not name them.
struct ForeignTensor {
  std::string_view ending;
  std::string_view method;
};
constexpr std::array kForeign{
    ForeignTensor{".qweight", "GPTQ or AWQ"},
    ForeignTensor{".qzeros", "GPTQ or AWQ"},
    ForeignTensor{".weight_packed", "compressed-tensors"},
    ForeignTensor{".weight_zero_point", "compressed-tensors"},
    ForeignTensor{".weight_scale_2", "NVFP4"},
    ForeignTensor{".weight_global_scale", "NVFP4"},
    ForeignTensor{"_proj_blocks", "MXFP4"},
    ForeignTensor{".weight.absmax", "bitsandbytes"},
    ForeignTensor{".SCB", "bitsandbytes"},
};

void check_config(Quantisation const& quantisation) {
  if (quantisation.field.empty()) return;
  auto const fail = [&](std::string const& found) {
    throw FormatError(fmt::format("config.json: {}: {} is not supported; there is only fp8 (e4m3) with scales for "
                                  "blocks of 128 × 128",
                                  quantisation.field, found),
                      "config.json");
  };
  auto const& [field, method, format, block, activations] = quantisation;
  if (method.empty()) fail("quantisation without a quant_method");
  if (method != "fp8" || field != "quantization_config") fail(fmt::format("quant_method {}", method));
  if (!format.empty() && format != "e4m3") fail(fmt::format("fmt {}", format));
  if (block != std::vector<std::uint64_t>{kScaleBlock, kScaleBlock}) {
    fail(block.empty() ? std::string("fp8 without weight_block_size")
                       : fmt::format("weight_block_size [{}]", fmt::join(block, ", ")));
  }
}

/// The more telling endings first: NVFP4 has a `.weight_scale` too.
void refuse_tensors(TensorCatalog const& catalog) {
  for (auto const& [ending, method] : kForeign) {
    for (auto const& tensor : catalog.tensors) {
      if (!tensor.name.ends_with(ending)) continue;
      throw tensor_error(catalog, tensor, fmt::format("is of {} quantisation, which is not supported", method));
    }
  }
}

/// Scales of activations and of the cache are no tensor's own; those of a weight have its name in front.
bool is_weight_scale(std::string_view name, std::unordered_set<std::string_view> const& names) {
  if (name.ends_with(kWeightScale)) return true;
  name.remove_suffix(kScale.size());
  return names.contains(name) || names.contains(fmt::format("{}.weight", name));
}

void look_at_scales(TensorCatalog const& catalog, std::vector<std::string>& warnings) {
  auto const ends_as_one = [](CatalogTensor const& tensor) {
    return tensor.name.ends_with(kScale) || tensor.name.ends_with(kZeroPoint);
  };
  if (std::ranges::none_of(catalog.tensors, ends_as_one)) return;
  std::unordered_set<std::string_view> names;
  for (auto const& tensor : catalog.tensors) names.insert(tensor.name);
  std::vector<std::string_view> carried;
  for (auto const& tensor : catalog.tensors) {
    auto const is_scale = tensor.name.ends_with(kScale);
    if (is_scale && is_weight_scale(tensor.name, names)) {
      throw tensor_error(catalog, tensor,
                         "is a weight's scale per tensor, channel or group, as compressed-tensors and modelopt write "
                         "it, which is not supported; there is only FP8 with scales for blocks of 128 × 128 "
                         "(…_scale_inv)");
    }
    if (is_scale || tensor.name.ends_with(kZeroPoint)) carried.push_back(tensor.name);
  }
  if (carried.empty()) return;
  warnings.push_back(
      fmt::format("carried as they are and never applied: {} of quantised activations or a quantised cache ({}{})",
                  carried.size() == 1 ? "1 scale" : fmt::format("{} scales", carried.size()), carried.front(),
                  carried.size() == 1 ? "" : ", …"));
}

/// modelopt's own file, beside which config.json may say nothing.
void look_at_modelopt(TensorCatalog const& catalog, std::vector<std::string>& warnings) {
  auto const looks_quantised = [](CatalogTensor const& tensor) {
    return is_quantised(tensor.dtype) || tensor.dtype == DType::U8 || tensor.dtype == DType::I8;
  };
  auto const found = std::ranges::find_if(catalog.tensors, looks_quantised);
  if (found == catalog.tensors.end()) {
    warnings.push_back(fmt::format("{} speaks of modelopt quantisation, but no weight is quantised", kModelopt));
    return;
  }
  throw FormatError(fmt::format("{}: modelopt quantisation is not supported: {} in {} is {}", kModelopt, found->name,
                                catalog.files[found->extent.file].name, name(found->dtype)),
                    kModelopt, found->name);
}

}  // namespace

void refuse_foreign_quantisation(TensorCatalog const& catalog, ModelConfig const& config,
                                 std::vector<std::string>& warnings) {
  check_config(config.quantisation);
  refuse_tensors(catalog);
  if (config.modelopt_file) look_at_modelopt(catalog, warnings);
  look_at_scales(catalog, warnings);
  if (config.quantisation.activations == "static") {
    warnings.emplace_back(
        "config.json: quantization_config: activation_scheme static: scales of activations are never applied");
  }
}

}  // namespace rankslice
