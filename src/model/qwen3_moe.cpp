#include "model/qwen3_moe.hpp"

#include <array>

#include "model/qwen_rules.hpp"

namespace rankslice {

namespace {

constexpr std::array<std::string_view, 1> kModelTypes{"qwen3_moe"};

constexpr Family kFamily{.name = "qwen3_moe",
                         .model_types = kModelTypes,
                         .keys = {.refused = {},
                                  .exact = {},
                                  .stacked = qwen::kTextDecoder,
                                  .scale_suffix = "_scale_inv",
                                  .parts = {},
                                  .top_level = qwen::kHead,
                                  .misplaced = qwen::kHead,
                                  .fp32 = {}}};

}  // namespace

Family const& qwen3_moe() { return kFamily; }

}  // namespace rankslice
