#include "synth/chosen_model.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/error.hpp"

namespace rankslice {

namespace {

std::uint64_t checked_count(std::string_view what, std::uint64_t count, std::uint64_t most) {
  if (count >= 1 && count <= most) return count;
  throw UsageError(fmt::format("{} {}: expected 1 to {}", count, what, most));
}

void check_quantization(SynthModel const& model) {
  if (model.quantization == SynthQuantization::none || model.layout == SynthLayout::hub) return;
  throw UsageError("quantization fp8: is of releases on the Hub, not of what transformers writes");
}

void check_text_only(SynthModel const& model) {
  if (!model.text_only) return;
  auto const& kind = architecture(model.family);
  if (kind.with_vision.empty()) {
    throw UsageError(fmt::format("text only: models of family {} are, in every layout", kind.name));
  }
  if (kind.causal_lm.empty()) {
    throw UsageError(fmt::format("text only: transformers has no such model for family {}", kind.name));
  }
}

void check_decoder_experts(SynthModel const& model) {
  if (!model.decoder_experts) return;
  auto const& kind = architecture(model.family);
  if (*model.decoder_experts == ExpertForm::split) {
    if (model.family != SynthFamily::qwen3_vl_moe) return;
    throw UsageError(fmt::format("decoder experts split: models of family {} have them grouped", kind.name));
  }
  if (!kind.grouped_experts) {
    throw UsageError(fmt::format("decoder experts grouped: models of family {} have them split", kind.name));
  }
  if (model.family != SynthFamily::qwen3_vl_moe && model.quantization == SynthQuantization::fp8) {
    throw UsageError(
        fmt::format("decoder experts grouped: with quantization fp8, those of family {} are split", kind.name));
  }
}

void check_mtp_experts(SynthModel const& model) {
  if (!model.mtp_experts) return;
  auto const& kind = architecture(model.family);
  if (!has_mtp(model)) {
    throw UsageError(model.layout == SynthLayout::transformers
                         ? "MTP experts: transformers writes no MTP block"
                         : fmt::format("MTP experts: models of family {} have no MTP block", kind.name));
  }
  if (*model.mtp_experts == ExpertForm::grouped && !kind.grouped_experts) {
    throw UsageError(fmt::format("MTP experts grouped: models of family {} have them split", kind.name));
  }
}

}  // namespace

SynthModel chosen_model(Preset const& preset, SynthOptions const& options) {
  auto model = preset.model;
  auto& dims = model.dims;
  if (options.layers) dims.layers = checked_count("layers", *options.layers, 1024);
  if (options.experts) dims.experts = checked_count("experts", *options.experts, 65536);
  dims.experts_per_token = std::min(dims.experts_per_token, dims.experts);
  model.layout = options.layout;
  model.quantization = options.quantization;
  model.text_only = options.text_only;
  model.decoder_experts = options.decoder_experts;
  check_quantization(model);
  check_text_only(model);
  check_decoder_experts(model);
  if (options.mtp_experts) {
    model.mtp_experts = options.mtp_experts;
    check_mtp_experts(model);
  }
  return model;
}

}  // namespace rankslice
