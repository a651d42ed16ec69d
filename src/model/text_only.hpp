#pragma once

#include <array>
#include <cstddef>

#include "model/key_table.hpp"

namespace rankslice {

/// What the names of a multimodal model's language model have in front, behind `model.`.
inline constexpr std::string_view kLanguageModel = "language_model.";

/// What is left out with the other parts of the model (rule 43).
inline constexpr std::array<std::string_view, 1> kVision{"visual."};

/// The same rules for the language model alone: names without `language_model.`.
template <std::size_t n>
[[nodiscard]] constexpr std::array<StackedRule, n> without_language_model(std::array<StackedRule, n> rules) {
  for (auto& rule : rules) {
    if (rule.native.starts_with(kLanguageModel)) rule.native.remove_prefix(kLanguageModel.size());
  }
  return rules;
}

/// Likewise. `stacked` has passed `without_language_model`.
[[nodiscard]] constexpr KeyTable text_only_keys(KeyTable keys, std::span<StackedRule const> stacked) {
  keys.stacked = stacked;
  keys.dropped = kLanguageModel;
  keys.left_out = kVision;
  return keys;
}

}  // namespace rankslice
