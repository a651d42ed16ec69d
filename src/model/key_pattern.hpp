#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace rankslice {

/// What the places of a pattern stand for.
struct KeyPlaces {
  std::string_view layer{};   ///< `{L}`: decimal digits, as the key writes them.
  std::string_view expert{};  ///< `{X}`: decimal digits.
  bool operator==(KeyPlaces const&) const = default;
};

/// Match a whole key against a pattern like `[model.]layers.{L}.mlp.experts.{X}.up_proj.weight`: text in `[…]` may be
/// absent, `{L}` and `{X}` take as many digits as there are. The places point into the key.
[[nodiscard]] std::optional<KeyPlaces> match_key(std::string_view pattern, std::string_view key);

/// The key that a pattern without `[…]` describes.
[[nodiscard]] std::string fill_key(std::string_view pattern, KeyPlaces const& places);

/// A pattern as far as `{L}`, and with it: `[model.]layers.{L}`.
[[nodiscard]] std::string_view up_to_layer(std::string_view pattern);

/// The rest of a pattern behind `{L}`: `.mlp.experts.down_proj`.
[[nodiscard]] std::string_view after_layer(std::string_view pattern);

}  // namespace rankslice
