#include "model/key_table.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/error.hpp"

#include "model/quantised.hpp"

namespace rankslice {

namespace {

constexpr std::string_view kModel = "model.";
constexpr std::string_view kMtp = "mtp.";

std::string replace_all(std::string text, std::string_view from, std::string_view to) {
  for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

bool is_top_level(KeyTable const& table, std::string_view key) {
  return std::ranges::any_of(table.top_level, [&](std::string_view segment) { return key.starts_with(segment); });
}

// Rules 38, 43: `model.lm_head.` is read as `lm_head.`, `model.mtp.` as `mtp.`.
std::string_view without_needless_prefix(KeyTable const& table, std::string_view hf_key) {
  if (!hf_key.starts_with(kModel)) return hf_key;
  auto const rest = hf_key.substr(kModel.size());
  return is_top_level(table, rest) ? rest : hf_key;
}

void refuse(KeyTable const& table, std::string_view hf_key, std::string_view key) {
  for (auto const& rule : table.refused) {
    if (match_key(rule.hf, key)) throw FormatError(fmt::format("{}: {}", hf_key, rule.reason), {}, std::string(hf_key));
  }
  if (key.ends_with(table.scale_suffix)) {
    throw FormatError(fmt::format("{}: quantised checkpoints (fp8) are not supported in this version", hf_key), {},
                      std::string(hf_key));
  }
}

// Rule 38: what stands outside the prefix or has it stays, everything else gets it.
std::string place(KeyTable const& table, std::string key, std::string_view prefix) {
  if (is_top_level(table, key) || key.starts_with(kModel)) return key;
  return fmt::format("{}{}", prefix, key);
}

bool tracked(Fp32Holder const& fp32, std::string_view key) {
  auto const ending = [&](std::string_view name) { return key.ends_with(name); };
  return key.find(fp32.module) != std::string_view::npos && std::ranges::any_of(fp32.names, ending);
}

std::string route(Fp32Holder const& fp32, std::string key) {
  if (!tracked(fp32, key) || key.find(fmt::format(".{}", fp32.segment)) != std::string::npos) return key;
  return key.insert(key.rfind(fp32.module) + fp32.module.size(), fp32.segment);
}

std::string strip(Fp32Holder const& fp32, std::string const& key) {
  return replace_all(key, fmt::format("{}{}", fp32.module, fp32.segment), fp32.module);
}

}  // namespace

KeyMapping map_from_hf(KeyTable const& table, std::string_view hf_key, std::string_view prefix) {
  auto const source = without_needless_prefix(table, hf_key);
  refuse(table, hf_key, source);
  auto const exact = std::ranges::find(table.exact, source, &Rename::hf);
  if (exact != table.exact.end()) return {.name = std::string(exact->native)};
  if (auto const match = find_stacked(table, hf_key)) {
    auto const fqn = fill_key(match->rule->native, {.prefix = prefix, .layer = match->places.layer, .expert = {}});
    return {.name = fqn, .layout = match->rule->layout, .stacked_experts = true};
  }
  std::string key(source);
  for (auto const& part : table.parts) key = replace_all(std::move(key), part.hf, part.native);
  return {.name = route(table.fp32, place(table, std::move(key), prefix))};
}

KeyMapping map_to_hf(KeyTable const& table, std::string_view fqn) {
  for (auto const& rule : table.stacked) {
    auto const native = tail_of(rule.native);
    if (fqn.find(native) == std::string_view::npos) continue;
    auto hf_key = replace_all(std::string(fqn), native, tail_of(rule.hf));
    return {.name = std::move(hf_key), .layout = rule.layout, .stacked_experts = true};
  }
  std::string key(fqn);
  for (auto const& part : table.parts) key = replace_all(std::move(key), part.native, part.hf);
  key = strip(table.fp32, key);
  auto const exact = std::ranges::find(table.exact, key, &Rename::native);
  return {.name = exact != table.exact.end() ? std::string(exact->hf) : key};
}

std::string_view find_prefix(KeyTable const& table, std::span<CatalogTensor const> tensors) {
  auto const has_prefix = [&](CatalogTensor const& tensor) {
    return tensor.name.starts_with(kModel) && !without_needless_prefix(table, tensor.name).starts_with(kMtp);
  };
  return std::ranges::any_of(tensors, has_prefix) ? kModel : std::string_view{};
}

DType find_dtype_on_load(KeyTable const& table, std::string_view hf_key, DType hf_dtype) {
  if (!tracked(table.fp32, hf_key)) return hf_dtype;
  if (hf_dtype == DType::F64 || is_quantised(hf_dtype)) {
    throw FormatError(fmt::format("{}: training keeps this parameter in F32; expected F32, BF16 or F16, found {}",
                                  hf_key, name(hf_dtype)),
                      {}, std::string(hf_key));
  }
  auto const widens = hf_dtype == DType::BF16 || hf_dtype == DType::F16;
  return widens ? DType::F32 : hf_dtype;
}

std::optional<StackedMatch> find_stacked(KeyTable const& table, std::string_view hf_key) {
  auto const key = without_needless_prefix(table, hf_key);
  for (auto const& rule : table.stacked) {
    if (auto const places = match_key(rule.hf, key)) return StackedMatch{&rule, *places};
  }
  return std::nullopt;
}

}  // namespace rankslice
