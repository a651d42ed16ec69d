#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rankslice/parameter.hpp"

namespace rankslice {

/// What config.json says of the experts. Zero: not said.
struct ModelConfig {
  std::string model_type;          ///< Of the outer config: `qwen3_5_moe`.
  std::uint64_t experts = 0;       ///< E
  std::uint64_t hidden = 0;        ///< H
  std::uint64_t intermediate = 0;  ///< I
  std::uint64_t layers = 0;
  std::uint64_t mtp_layers = 0;
  std::vector<std::uint64_t> dense_layers;  ///< Decoder layers without experts (`mlp_only_layers`).
  std::string quant_method;                 ///< `quantization_config.quant_method`; empty when there is none.
  bool partial = false;                     ///< Tensors may be missing: a selection of those that the config speaks of.
};

/// @throws FormatError for bytes that are no JSON object, or fields of the wrong type.
[[nodiscard]] ModelConfig parse_model_config(std::span<std::byte const> config_json);

/// Where an HF key or an FQN leads.
struct KeyMapping {
  std::string name;
  Layout layout = Layout::same;
  bool stacked_experts = false;
  bool operator==(KeyMapping const&) const = default;
};

/// The key and layout rules of one model family, a table that runs in both directions.
class Family {
 public:
  virtual ~Family() = default;
  [[nodiscard]] virtual std::string_view name() const = 0;
  /// Whether a config.json with this (outer) `model_type` is of this family.
  [[nodiscard]] virtual bool handles(std::string_view model_type) const = 0;
  /// HF key -> FQN. `prefix` is "model." or "" (rule 32). @throws FormatError for keys that this version refuses.
  [[nodiscard]] virtual KeyMapping from_hf(std::string_view hf_key, std::string_view prefix) const = 0;
  /// FQN -> HF key (rules 44-49).
  [[nodiscard]] virtual KeyMapping to_hf(std::string_view fqn) const = 0;
  /// Rule 32, from all HF keys.
  [[nodiscard]] virtual std::string_view prefix(std::span<CatalogTensor const> tensors) const = 0;
  /// The dtype in which the state dict holds a tensor (rules 53-57). @throws FormatError where bits would be lost.
  [[nodiscard]] virtual DType dtype_on_load(std::string_view hf_key, DType hf_dtype) const = 0;
  /// Refuse by name what this version cannot load; check E, H, I, completeness of the experts.
  /// @throws FormatError
  virtual void check(TensorCatalog const& catalog, Model const& model, ModelConfig const& config) const = 0;
};

/// By name, or for `auto` by config.json's model_type. @throws UsageError for an unknown name, FormatError for a
/// model type without a table (naming it and the families there are) or one that contradicts the name.
[[nodiscard]] Family const& find_family(std::string_view name, ModelConfig const& config);

/// All families, by name.
[[nodiscard]] std::span<Family const* const> families();

/// Both names, dtypes and shapes of every tensor of a catalog; checked.
/// @throws FormatError: collisions of names, unsupported layouts, shapes that do not fit config.json, missing experts.
[[nodiscard]] Model map_tensors(Family const& family, TensorCatalog const& catalog, ModelConfig const& config);

}  // namespace rankslice
