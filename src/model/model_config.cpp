#include "model/model_config.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cctype>

#include "rankslice/error.hpp"

#include "core/json_object.hpp"
#include "model/torch_dtype.hpp"

namespace rankslice {

namespace {

using Json = nlohmann::json;

constexpr char const* kFile = "config.json";

[[noreturn]] void fail_type(std::string_view field, std::string_view expected, Json const& found) {
  throw FormatError(fmt::format("{}: {}: expected {}, found {}", kFile, field, expected, found.type_name()), kFile);
}

// A field that is absent or null says nothing.
Json const* find_field(Json const& object, char const* field) {
  auto const found = object.find(field);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

Json const* find_object(Json const& object, char const* field) {
  auto const* found = find_field(object, field);
  if (found != nullptr && !found->is_object()) fail_type(field, "an object", *found);
  return found;
}

std::uint64_t count_of(Json const& value, char const* field) {
  if (!value.is_number_unsigned()) fail_type(field, "a whole number that is not negative", value);
  return value.get<std::uint64_t>();
}

/// Of what a model may have none of.
std::uint64_t find_optional_count(Json const& object, char const* field) {
  auto const* found = find_field(object, field);
  return found == nullptr ? 0 : count_of(*found, field);
}

std::uint64_t find_count(Json const& object, char const* field) {
  auto const* found = find_field(object, field);
  if (found == nullptr) return 0;
  auto const count = count_of(*found, field);
  if (count == 0) throw FormatError(fmt::format("{}: {}: expected at least 1, found 0", kFile, field), kFile);
  return count;
}

std::string find_text(Json const& object, char const* field) {
  auto const* found = find_field(object, field);
  if (found == nullptr) return {};
  if (!found->is_string()) fail_type(field, "a string", *found);
  return found->get<std::string>();
}

/// Of what counts only where it is a string (rule 28).
std::string text_if_any(Json const& object, char const* field) {
  auto const* found = find_field(object, field);
  return found != nullptr && found->is_string() ? found->get<std::string>() : std::string{};
}

std::vector<std::uint64_t> find_counts(Json const& object, char const* field) {
  auto const* found = find_field(object, field);
  if (found == nullptr) return {};
  if (!found->is_array()) fail_type(field, "an array", *found);
  std::vector<std::uint64_t> counts;
  for (auto const& value : *found) counts.push_back(count_of(value, field));
  return counts;
}

// The Hub says num_experts, some configs written by transformers num_local_experts.
void find_experts(Json const& text, ModelConfig& config) {
  auto const experts = find_count(text, "num_experts");
  auto const local = find_count(text, "num_local_experts");
  if (experts != 0 && local != 0 && experts != local) {
    throw FormatError(fmt::format("{}: num_experts = {} contradicts num_local_experts = {}", kFile, experts, local),
                      kFile);
  }
  config.experts = experts != 0 ? experts : local;
  if (experts == 0 && local != 0) config.experts_field = "num_local_experts";
}

Quantisation find_quantisation(Json const& outer, Json const& text) {
  for (auto const* field : {"compression_config", "quantization_config"}) {
    auto const* found = find_object(outer, field);
    if (found == nullptr) found = find_object(text, field);
    if (found == nullptr) continue;
    return {.field = field,
            .method = find_text(*found, "quant_method"),
            .format = text_if_any(*found, "fmt"),
            .block = find_counts(*found, "weight_block_size"),
            .activations = text_if_any(*found, "activation_scheme")};
  }
  return {};
}

std::optional<DType> training_dtype(std::string_view said) {
  if (said == "bfloat16") return DType::BF16;
  if (said == "float16") return DType::F16;
  if (said == "float32") return DType::F32;
  return std::nullopt;
}

/// The text model's own first; other dtypes than those of training say nothing, and leave a doubt.
void find_dtype(Json const& outer, Json const& text, ModelConfig& config) {
  std::vector<std::string> said;
  auto doubtful = false;
  auto places = std::vector{&text};
  if (&text != &outer) places.push_back(&outer);
  for (auto const* of : places) {
    for (auto const* field : {"dtype", "torch_dtype"}) {
      auto const* found = find_field(*of, field);
      if (found == nullptr) continue;
      auto const dtype = training_dtype(text_if_any(*of, field));
      if (!config.dtype) config.dtype = dtype;
      doubtful = doubtful || !dtype || dtype != config.dtype;
      said.push_back(fmt::format("{}{} {}", of == &outer ? "" : "text_config.", field,
                                 found->is_string() ? found->dump() : found->type_name()));
    }
  }
  if (doubtful) config.dtype_doubt = fmt::format("{}", fmt::join(said, ", "));
}

}  // namespace

ModelConfig parse_model_config(std::span<std::byte const> config_json) {
  std::string_view const json(reinterpret_cast<char const*>(config_json.data()), config_json.size());
  auto const outer = parse_json_object(json, kFile, kFile);

  auto const* nested = find_object(outer, "text_config");
  auto const& text = nested != nullptr ? *nested : outer;
  ModelConfig config;
  config.model_type = find_text(outer, "model_type");
  find_experts(text, config);
  config.hidden = find_count(text, "hidden_size");
  config.intermediate = find_count(text, "moe_intermediate_size");
  config.layers = find_count(text, "num_hidden_layers");
  config.mtp_layers = find_optional_count(text, "mtp_num_hidden_layers");
  config.dense_layers = find_counts(text, "mlp_only_layers");
  config.sparse_step = std::max<std::uint64_t>(1, find_count(text, "decoder_sparse_step"));
  config.quantisation = find_quantisation(outer, text);
  find_dtype(outer, text, config);
  config.mtp_expert_layout = text_if_any(text, "mtp_expert_hf_layout");
  return config;
}

std::optional<ExpertForm> mtp_form(ModelConfig const& config) {
  auto form = config.mtp_expert_layout;
  if (form.empty()) return std::nullopt;
  std::ranges::transform(form, form.begin(),
                         [](unsigned char c) { return c == '_' ? '-' : static_cast<char>(std::tolower(c)); });
  if (form == "split" || form == "per-expert" || form == "per-expert-safetensors") return ExpertForm::split;
  if (form == "grouped" || form == "group") return ExpertForm::grouped;
  throw FormatError(
      fmt::format("{}: Unsupported MTP expert HF layout: '{}'; there is split, per-expert, per-expert-safetensors, "
                  "grouped, group",
                  kFile, config.mtp_expert_layout),
      kFile);
}

}  // namespace rankslice
