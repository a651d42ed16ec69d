#include "synth/presets.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "core/literals.hpp"

namespace rankslice {

namespace {

constexpr std::array kPresets{
    // H, I and 2I all differ, so that a forgotten transpose shows in the shapes.
    Preset{.name = "tiny",
           .dims = {.hidden = 256,
                    .intermediate = 96,
                    .shared_intermediate = 96,
                    .experts = 8,
                    .experts_per_token = 2,
                    .layers = 4,
                    .vocab = 4096,
                    .heads = 4,
                    .kv_heads = 2,
                    .head_dim = 64,
                    .linear_key_heads = 2,
                    .linear_value_heads = 4,
                    .linear_head_dim = 64,
                    .vision = {.depth = 2, .hidden = 64, .intermediate = 172, .heads = 4, .positions = 16}},
           .file_limit = 4_MiB},
    // Qwen3.6-35B-A3B with fewer layers, experts and words.
    Preset{.name = "small",
           .dims = {.hidden = 2048,
                    .intermediate = 512,
                    .shared_intermediate = 512,
                    .experts = 48,
                    .experts_per_token = 8,
                    .layers = 4,
                    .vocab = 16384,
                    .heads = 16,
                    .kv_heads = 2,
                    .head_dim = 256,
                    .linear_key_heads = 16,
                    .linear_value_heads = 32,
                    .vision = {.depth = 4, .hidden = 256, .intermediate = 956, .heads = 4, .positions = 576}},
           .file_limit = 384_MiB},
};

}  // namespace

std::span<Preset const> presets() { return kPresets; }

Preset const& find_preset(std::string_view name) {
  auto const found = std::ranges::find(kPresets, name, &Preset::name);
  if (found != kPresets.end()) return *found;
  std::vector<std::string_view> names;
  for (auto const& preset : kPresets) names.push_back(preset.name);
  throw UsageError(fmt::format("unknown preset '{}': there are {}", name, fmt::join(names, ", ")));
}

}  // namespace rankslice
