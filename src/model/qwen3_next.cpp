#include "model/qwen3_next.hpp"

#include <array>

#include "model/qwen_rules.hpp"

namespace rankslice {

namespace {

constexpr std::array kStacked{
    qwen::kTextDecoder[0],
    qwen::kTextDecoder[1],
    qwen::mtp_gate_up(ExpertForm::split),
    qwen::mtp_down(ExpertForm::split),
};

constexpr std::array<std::string_view, 1> kModelTypes{"qwen3_next"};

constexpr Family kFamily{.name = "qwen3_next",
                         .model_types = kModelTypes,
                         .keys = {.refused = {},
                                  .exact = qwen::kMtpNames,
                                  .stacked = kStacked,
                                  .scale_suffix = "_scale_inv",
                                  .parts = qwen::kSharedExperts,
                                  .top_level = qwen::kMtpAndHead,
                                  .misplaced = qwen::kMtpAndHead,
                                  .fp32 = qwen::kFp32}};

}  // namespace

Family const& qwen3_next() { return kFamily; }

}  // namespace rankslice
