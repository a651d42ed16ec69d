#pragma once

#include <array>
#include <optional>
#include <span>
#include <string_view>

#include "model/family.hpp"
#include "model/key_pattern.hpp"

namespace rankslice {

/// The layers that a stacked tensor belongs to; config.json counts each kind apart.
enum class Stack : std::uint8_t { decoder, mtp };

/// What an axis of a stacked tensor is as long as.
enum class StackedAxis : std::uint8_t { experts, hidden, intermediate, twice_intermediate };

/// A stacked tensor per layer. HF -> native by pattern; native -> HF wherever the tail of `native` occurs (rule 46).
struct StackedRule {
  Stack stack = Stack::decoder;
  std::string_view hf;      ///< Pattern with `{L}`.
  std::string_view native;  ///< Pattern with `{prefix}` and `{L}`.
  Layout layout = Layout::same;
  std::array<StackedAxis, 3> hf_axes;
};

/// Keys that are known and not supported.
struct RefusedRule {
  std::string_view hf;  ///< Pattern.
  std::string_view reason;
};

/// The same text under both its names: a whole key, or a part of one.
struct Rename {
  std::string_view hf;
  std::string_view native;
};

/// Parameters that training keeps in F32, apart from the others (rules 53-55).
struct Fp32Holder {
  std::string_view module;                  ///< `.linear_attn.`: what a key must contain …
  std::span<std::string_view const> names;  ///< … and how it must end.
  std::string_view segment;                 ///< `_fp32_params.`: follows the last `module` in the FQN.
};

/// The rules of one family as data. Read from top to bottom, the first that matches decides (rules 33-38).
struct KeyTable {
  std::span<RefusedRule const> refused;
  std::span<Rename const> exact;  ///< Whole keys.
  std::span<StackedRule const> stacked;
  std::string_view scale_suffix;  ///< Marks the scales of quantised weights, which are refused.
  std::span<Rename const> parts;  ///< Anywhere in a key.
  /// Leading segments that stand outside the prefix; `model.` before them is read and dropped, and never written.
  std::span<std::string_view const> top_level;
  Fp32Holder fp32;
};

/// `Family::from_hf`, `to_hf`, `prefix` and `dtype_on_load` by a table.
[[nodiscard]] KeyMapping map_from_hf(KeyTable const& table, std::string_view hf_key, std::string_view prefix);
[[nodiscard]] KeyMapping map_to_hf(KeyTable const& table, std::string_view fqn);
[[nodiscard]] std::string_view find_prefix(KeyTable const& table, std::span<CatalogTensor const> tensors);
[[nodiscard]] DType find_dtype_on_load(KeyTable const& table, std::string_view hf_key, DType hf_dtype);

/// The rule of a stacked tensor and the places of its key.
struct StackedMatch {
  StackedRule const* rule = nullptr;
  KeyPlaces places;
};
[[nodiscard]] std::optional<StackedMatch> find_stacked(KeyTable const& table, std::string_view hf_key);

}  // namespace rankslice
