#include "synth/presets.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "rankslice/error.hpp"

#include "core/literals.hpp"

namespace rankslice {

namespace {

using enum SynthFamily;

// H, I and 2I all differ, so that a forgotten transpose shows in the shapes.
constexpr ModelDims kTinyDelta{.hidden = 256,
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
                               .vision = {.depth = 2, .hidden = 64, .intermediate = 172, .heads = 4, .positions = 16}};

constexpr ModelDims kTinyFull{
    .hidden = 256,
    .intermediate = 96,
    .experts = 8,
    .experts_per_token = 2,
    .layers = 4,
    .vocab = 4096,
    .heads = 8,
    .kv_heads = 2,
    .head_dim = 64,
    .vision = {
        .depth = 4, .hidden = 64, .intermediate = 172, .heads = 4, .positions = 16, .deepstack_blocks = {0, 1, 2}}};

constexpr ModelDims kMoe35b{.hidden = 2048,
                            .intermediate = 512,
                            .shared_intermediate = 512,
                            .experts = 256,
                            .experts_per_token = 8,
                            .layers = 40,
                            .vocab = 248320,
                            .heads = 16,
                            .kv_heads = 2,
                            .head_dim = 256,
                            .linear_key_heads = 16,
                            .linear_value_heads = 32,
                            .vision = {}};

constexpr ModelDims kMoe122b{.hidden = 3072,
                             .intermediate = 1024,
                             .shared_intermediate = 1024,
                             .experts = 256,
                             .experts_per_token = 8,
                             .layers = 48,
                             .vocab = 248320,
                             .heads = 32,
                             .kv_heads = 2,
                             .head_dim = 256,
                             .linear_key_heads = 16,
                             .linear_value_heads = 64,
                             .vision = {}};

constexpr ModelDims kMoe397b{.hidden = 4096,
                             .intermediate = 1024,
                             .shared_intermediate = 1024,
                             .experts = 512,
                             .experts_per_token = 10,
                             .layers = 60,
                             .vocab = 248320,
                             .heads = 32,
                             .kv_heads = 2,
                             .head_dim = 256,
                             .linear_key_heads = 16,
                             .linear_value_heads = 64,
                             .vision = {}};

constexpr ModelDims kMoe30b{.hidden = 2048,
                            .intermediate = 768,
                            .experts = 128,
                            .experts_per_token = 8,
                            .layers = 48,
                            .vocab = 151936,
                            .heads = 32,
                            .kv_heads = 4,
                            .head_dim = 128,
                            .vision = {}};

constexpr ModelDims kMoe235b{.hidden = 4096,
                             .intermediate = 1536,
                             .experts = 128,
                             .experts_per_token = 8,
                             .layers = 94,
                             .vocab = 151936,
                             .heads = 64,
                             .kv_heads = 4,
                             .head_dim = 128,
                             .vision = {}};

constexpr ModelDims kNext80b{.hidden = 2048,
                             .intermediate = 512,
                             .shared_intermediate = 512,
                             .experts = 512,
                             .experts_per_token = 10,
                             .layers = 48,
                             .vocab = 151936,
                             .heads = 16,
                             .kv_heads = 2,
                             .head_dim = 256,
                             .linear_key_heads = 16,
                             .linear_value_heads = 32,
                             .vision = {}};

/// A real model with fewer layers, experts and words, and a small vision tower.
constexpr ModelDims reduced(ModelDims dims, std::uint64_t layers, std::uint64_t experts, std::uint64_t vocab) {
  dims.layers = layers;
  dims.experts = experts;
  dims.vocab = vocab;
  dims.vision = {
      .depth = 4, .hidden = 256, .intermediate = 956, .heads = 4, .positions = 576, .deepstack_blocks = {0, 1, 2}};
  return dims;
}

constexpr std::string_view kStem35 = "model.safetensors";

constexpr std::array kPresets{
    Preset{.name = "tiny", .model = {.family = qwen3_5_moe, .dims = kTinyDelta}, .file_limit = 4_MiB},
    Preset{.name = "tiny", .model = {.family = qwen3_vl_moe, .dims = kTinyFull}, .file_limit = 4_MiB},
    Preset{.name = "tiny", .model = {.family = qwen3_moe, .dims = kTinyFull}, .file_limit = 4_MiB},
    Preset{.name = "tiny", .model = {.family = qwen3_next, .dims = kTinyDelta}, .file_limit = 4_MiB},
    Preset{.name = "small",
           .model = {.family = qwen3_5_moe, .dims = reduced(kMoe35b, 4, 48, 16384)},
           .file_limit = 384_MiB},
    Preset{.name = "small",
           .model = {.family = qwen3_vl_moe, .dims = reduced(kMoe30b, 4, 48, 16384)},
           .file_limit = 384_MiB},
    Preset{
        .name = "small", .model = {.family = qwen3_moe, .dims = reduced(kMoe30b, 4, 48, 16384)}, .file_limit = 384_MiB},
    Preset{.name = "small",
           .model = {.family = qwen3_next, .dims = reduced(kNext80b, 4, 48, 16384)},
           .file_limit = 384_MiB},
    Preset{.name = "medium",
           .model = {.family = qwen3_5_moe, .dims = reduced(kMoe35b, 16, 64, 32768)},
           .file_limit = 1_GiB},
    Preset{.name = "medium",
           .model = {.family = qwen3_vl_moe, .dims = reduced(kMoe30b, 12, 64, 32768)},
           .file_limit = 1_GiB},
    Preset{
        .name = "medium", .model = {.family = qwen3_moe, .dims = reduced(kMoe30b, 12, 64, 32768)}, .file_limit = 1_GiB},
    Preset{.name = "medium",
           .model = {.family = qwen3_next, .dims = reduced(kNext80b, 16, 64, 32768)},
           .file_limit = 1_GiB},
    Preset{.name = "qwen3-30b-a3b", .model = {.family = qwen3_moe, .dims = kMoe30b}, .file_limit = 4'000'000'000},
    Preset{.name = "qwen3-vl-30b-a3b", .model = {.family = qwen3_vl_moe, .dims = kMoe30b}},
    Preset{.name = "qwen3.5-35b-a3b",
           .model = {.family = qwen3_5_moe, .dims = kMoe35b, .mtp_experts = ExpertForm::split},
           .files = 14,
           .file_stem = kStem35},
    Preset{.name = "qwen3.6-35b-a3b", .model = {.family = qwen3_5_moe, .dims = kMoe35b}, .files = 26},
    Preset{
        .name = "qwen3-next-80b-a3b", .model = {.family = qwen3_next, .dims = kNext80b}, .file_limit = 4'000'000'000},
    Preset{.name = "qwen3.5-122b-a10b",
           .model = {.family = qwen3_5_moe, .dims = kMoe122b, .mtp_experts = ExpertForm::split},
           .files = 39,
           .file_stem = kStem35},
    Preset{.name = "qwen3-vl-235b-a22b", .model = {.family = qwen3_vl_moe, .dims = kMoe235b}},
    Preset{.name = "qwen3.5-397b-a17b",
           .model = {.family = qwen3_5_moe, .dims = kMoe397b, .mtp_experts = ExpertForm::split},
           .files = 94,
           .file_stem = kStem35},
};

void check_family(std::string_view family) {
  if (family == "auto" || std::ranges::find(architectures(), family, &Architecture::name) != architectures().end()) {
    return;
  }
  std::vector<std::string_view> names;
  std::ranges::transform(architectures(), std::back_inserter(names), &Architecture::name);
  throw UsageError(fmt::format("unknown family '{}': there are {}", family, fmt::join(names, ", ")));
}

/// All experts of a projection go to one file.
std::vector<HubFile> split_stacks_into_files(std::vector<SafetensorsHeader::Tensor> const& tensors,
                                             std::uint64_t limit) {
  std::map<std::string, std::vector<SafetensorsHeader::Tensor>> members;
  std::vector<SafetensorsHeader::Tensor> stacks;
  for (auto const& tensor : tensors) {
    auto const stack = stack_of(tensor);
    if (stacks.empty() || stacks.back().name != stack) stacks.push_back({stack, DType::U8, {0}, {}});
    stacks.back().shape.front() += byte_size(tensor.dtype, tensor.shape);
    members[stack].push_back(tensor);
  }
  auto files = split_into_files(std::move(stacks), limit);
  for (auto& file : files) {
    for (auto const& stack : std::exchange(file.tensors, {}))
      std::ranges::move(members[stack.name], std::back_inserter(file.tensors));
  }
  return files;
}

}  // namespace

std::span<Preset const> presets() { return kPresets; }

Preset const& find_preset(std::string_view family, std::string_view preset) {
  check_family(family);
  std::vector<Preset const*> named;
  std::vector<std::string_view> families;
  for (auto const& candidate : kPresets) {
    if (candidate.name != preset) continue;
    if (name(candidate.model.family) == family) return candidate;
    named.push_back(&candidate);
    families.push_back(name(candidate.model.family));
  }
  if (named.empty()) throw UsageError(fmt::format("unknown preset '{}': there are {}", preset, preset_names()));
  if (family == "auto") return *named.front();
  throw UsageError(fmt::format("preset {} is of family {}, not of {}", preset, fmt::join(families, " and "), family));
}

std::vector<HubFile> files_of(Preset const& preset, SynthModel const& model) {
  auto tensors = model_tensors(model);
  if (model.layout == SynthLayout::transformers) return split_stacks_into_files(tensors, preset.file_limit);
  if (preset.files == 0) return split_into_files(std::move(tensors), preset.file_limit, preset.file_stem);
  auto const whole = tensor_bytes(model_tensors(preset.model));
  return deal_into_files(std::move(tensors), (whole + preset.files - 1) / preset.files, preset.file_stem);
}

std::string preset_names() {
  std::vector<std::string_view> names;
  for (auto const& preset : kPresets) {
    if (std::ranges::find(names, preset.name) == names.end()) names.push_back(preset.name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace rankslice
