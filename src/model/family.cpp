#include "model/family.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <vector>

#include "rankslice/error.hpp"

#include "model/qwen3_5_moe.hpp"
#include "model/qwen3_moe.hpp"
#include "model/qwen3_next.hpp"
#include "model/qwen3_vl_moe.hpp"

namespace rankslice {

namespace {

bool handles(Family const& family, std::string_view model_type) {
  return std::ranges::find(family.model_types, model_type) != family.model_types.end();
}

bool has_text_named(Family const& family, std::string_view name) {
  return family.text_only != nullptr && family.text_only->name == name;
}

Family const& family_of_model_type(std::string_view model_type) {
  if (model_type.empty()) {
    throw FormatError(
        fmt::format("no model_type (is there a config.json?): name the family with --family: {}", family_names()));
  }
  for (auto const* family : families()) {
    if (handles(*family, model_type)) return *family;
  }
  throw FormatError(
      fmt::format("config.json: model_type {} is of no family that this version knows: {}", model_type, family_names()),
      "config.json");
}

/// Also by the name of its language model.
Family const& family_of_name(std::string_view name) {
  for (auto const* family : families()) {
    if (family->name == name || has_text_named(*family, name)) return *family;
  }
  throw UsageError(fmt::format("unknown family {}; there is: auto, {}", name, family_names()));
}

}  // namespace

std::span<Family const* const> families() {
  static std::array<Family const*, 4> const all{&qwen3_5_moe(), &qwen3_moe(), &qwen3_next(), &qwen3_vl_moe()};
  return all;
}

std::string family_names() {
  std::vector<std::string_view> names;
  for (auto const* family : families()) names.push_back(family->name);
  return fmt::format("{}", fmt::join(names, ", "));
}

Family const& find_family(std::string_view name, ModelConfig const& config, std::optional<bool> text_only) {
  auto const& family = name == "auto" ? family_of_model_type(config.model_type) : family_of_name(name);
  if (!config.model_type.empty() && !handles(family, config.model_type)) {
    throw FormatError(
        fmt::format("config.json: model_type {} contradicts the family {} that was asked for", config.model_type, name),
        "config.json");
  }
  auto const* text = family.text_only;
  if (text == nullptr) return family;
  return text_only.value_or(name == text->name || handles(*text, config.model_type)) ? *text : family;
}

bool is_text_only(std::string_view name) {
  auto const is_it = [&](Family const* family) { return has_text_named(*family, name); };
  return std::ranges::any_of(families(), is_it);
}

}  // namespace rankslice
