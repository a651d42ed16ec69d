#pragma once

#include <span>
#include <string>
#include <string_view>

#include "model/key_table.hpp"
#include "model/model_config.hpp"

namespace rankslice {

/// The key and layout rules of one model family.
struct Family {
  std::string_view name;
  std::span<std::string_view const> model_types;  ///< Of a config.json, the outer one or a text model's.
  KeyTable keys;
};

/// By name, or for `auto` by config.json's model_type. @throws UsageError for an unknown name, FormatError for a
/// model type without a table (naming it and the families there are) or one that contradicts the name.
[[nodiscard]] Family const& find_family(std::string_view name, ModelConfig const& config);

/// All families, by name.
[[nodiscard]] std::span<Family const* const> families();
/// "qwen3_5_moe, qwen3_moe, …"
[[nodiscard]] std::string family_names();

}  // namespace rankslice
