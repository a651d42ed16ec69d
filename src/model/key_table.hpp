#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rankslice/parameter.hpp"

namespace rankslice {

/// The layers that experts belong to; config.json counts each kind apart.
enum class Stack : std::uint8_t { decoder, mtp };

/// The two stacked parameters of a layer, natively [E, H, 2I] and [E, I, H] (rule 1).
enum class Projection : std::uint8_t { gate_up, down };

/// A matrix of one expert in a tensor of its own.
struct SplitRule {
  std::string_view hf;       ///< Pattern with `{L}` and `{X}`.
  std::string_view missing;  ///< What is said when it is missing; `{L}` and `{X}` are filled in.
  /// The same of quantised weights: when it or its block scales are missing.
  std::string_view missing_quantised;
};

/// A stacked parameter of a layer and the two ways in which checkpoints hold it.
struct StackedRule {
  Stack stack = Stack::decoder;
  Projection projection = Projection::gate_up;
  std::string_view native;   ///< Pattern with `{L}`, without the prefix.
  std::string_view grouped;  ///< Pattern with `{L}`: all experts in one tensor.
  Layout hub = Layout::same;
  Layout transformers = Layout::same;  ///< Of the grouped tensor, when transformers has written it.
  /// An expert's matrices, transposed, in the order of the native columns. Empty: this family has none.
  std::span<SplitRule const> split;
  ExpertForm without_source = ExpertForm::grouped;  ///< In exports that no source describes.

  [[nodiscard]] Layout grouped_layout(ExpertLayout of) const { return of == ExpertLayout::hub ? hub : transformers; }
  [[nodiscard]] bool one_layout() const { return hub == transformers; }
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
  std::string_view scale_suffix;  ///< Marks the block scales of quantised weights (rule 58).
  std::span<Rename const> parts;  ///< Anywhere in a key.
  /// Leading segments that stand outside the prefix …
  std::span<std::string_view const> top_level;
  /// … and those of them that are read behind a `model.` too, which is dropped and never written.
  std::span<std::string_view const> misplaced;
  Fp32Holder fp32;
  /// A segment that keys may have in front, behind `model.`, and no FQN has (rule 43) …
  std::string_view dropped{};
  /// … and those of the tensors that are left out.
  std::span<std::string_view const> left_out{};
};

/// Which matrix of which expert a tensor is.
struct ExpertMatrix {
  std::uint64_t expert = 0;  ///< X
  std::uint64_t matrix = 0;  ///< In `StackedRule::split`.
  auto operator<=>(ExpertMatrix const&) const = default;
};

/// Where an HF key leads.
struct KeyMapping {
  std::string fqn;
  StackedRule const* stacked = nullptr;  ///< Null for a dense tensor.
  std::string_view layer{};              ///< L of a stacked one: points into the key.
  std::optional<ExpertMatrix> split{};   ///< Of a grouped or dense tensor nothing.
  /// Of block scales: their weight, by its number in the catalog; everything else here is that of the weight.
  std::optional<std::uint32_t> scales_of{};
};

/// An HF key of stacked experts; its parts point into it.
struct StackedKey {
  StackedRule const* rule = nullptr;
  std::string_view up_to_layer;  ///< With the layer's number.
  std::string_view layer;
  std::optional<ExpertMatrix> split;  ///< As `KeyMapping::split`.
};
/// Nothing for other keys. @throws FormatError for an expert whose number is none
[[nodiscard]] std::optional<StackedKey> match_stacked(KeyTable const& table, std::string_view hf_key);

/// HF key -> FQN. `prefix` is "model." or "" (`find_prefix`). @throws FormatError for keys that this version refuses.
[[nodiscard]] KeyMapping from_hf(KeyTable const& table, std::string_view hf_key, std::string_view prefix);

/// Whether a tensor belongs to another part of the model than the table's (rule 43).
[[nodiscard]] bool is_left_out(KeyTable const& table, std::string_view hf_key);

/// Rule 46: what renames a name that has that of stacked experts anywhere in it; null for others.
[[nodiscard]] StackedRule const* find_renaming(KeyTable const& table, std::string_view fqn);

/// FQN -> HF key, of stacked parameters that of the grouped tensor (rules 24, 46-49).
[[nodiscard]] std::string to_hf(KeyTable const& table, std::string_view fqn);

/// Whether a parameter is of the multi-token prediction, beside the decoder.
[[nodiscard]] bool is_mtp(std::string_view fqn);

/// Whether a name is of state of modules that is no parameter, which no export has (rule 25).
[[nodiscard]] bool is_extra_state(std::string_view fqn);

/// The rule of a stacked parameter and its layer, which points into the FQN.
struct StackedName {
  StackedRule const* rule = nullptr;
  std::string_view layer;
};
[[nodiscard]] std::optional<StackedName> find_stacked(KeyTable const& table, std::string_view fqn);
[[nodiscard]] std::string stacked_fqn(KeyTable const& table, StackedRule const& rule, std::string_view layer,
                                      std::string_view prefix);
/// The HF key of one expert's matrix of a stacked parameter (rule 45).
[[nodiscard]] std::string split_key(StackedRule const& rule, std::string_view fqn, ExpertMatrix const& matrix);

/// Rules 19, 32: the prefix of the model's keys, from all of them.
[[nodiscard]] std::string_view find_prefix(KeyTable const& table, std::span<CatalogTensor const> tensors);
[[nodiscard]] std::string_view find_prefix(KeyTable const& table, std::span<HfTensor const> tensors);

/// Whether training keeps a tensor in F32, apart from the others (rule 53).
[[nodiscard]] bool is_fp32_held(KeyTable const& table, std::string_view hf_key);

/// The dtype in which training needs a tensor (rules 53-57). @throws FormatError where bits would be lost.
[[nodiscard]] DType find_dtype_on_load(KeyTable const& table, std::string_view hf_key, DType hf_dtype);

}  // namespace rankslice
