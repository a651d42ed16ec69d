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

Family const& family_of_name(std::string_view name) {
  for (auto const* family : families()) {
    if (family->name == name) return *family;
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

Family const& find_family(std::string_view name, ModelConfig const& config) {
  if (name == "auto") return family_of_model_type(config.model_type);
  auto const& family = family_of_name(name);
  if (!config.model_type.empty() && !handles(family, config.model_type)) {
    throw FormatError(
        fmt::format("config.json: model_type {} contradicts the family {} that was asked for", config.model_type, name),
        "config.json");
  }
  return family;
}

}  // namespace rankslice
