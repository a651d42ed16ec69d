#pragma once

#include <optional>
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
  /// The language model alone, of a family that is more than that (rule 43). Its model types are those that have only
  /// that anyway.
  Family const* text_only = nullptr;
};

/// By name, or for `auto` by config.json's model_type. @throws UsageError for an unknown name, FormatError for a
/// model type without a table (naming it and the families there are) or one that contradicts the name. `text_only` asks
/// for the language model alone, or against it; empty: by the name, or else by the model type.
[[nodiscard]] Family const& find_family(std::string_view name, ModelConfig const& config,
                                        std::optional<bool> text_only = {});

/// Whether a name is that of the language model of a family that is more than that.
[[nodiscard]] bool is_text_only(std::string_view name);

/// All families, by name.
[[nodiscard]] std::span<Family const* const> families();
/// "qwen3_5_moe, qwen3_moe, …"
[[nodiscard]] std::string family_names();

}  // namespace rankslice
