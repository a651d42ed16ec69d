#include "model/key_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "rankslice/error.hpp"

#include "model/key_pattern.hpp"
#include "model/quantised.hpp"

namespace rankslice {

namespace {

constexpr std::string_view kModel = "model.";
constexpr std::string_view kMtp = "mtp.";

// Names are as long as somebody likes: not in place, which would move their end once for each part.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string replaced;
  for (auto at = text.find(from); at != std::string_view::npos; at = text.find(from)) {
    replaced.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
  }
  return replaced.append(text);
}

bool begins_with_any(std::string_view key, std::span<std::string_view const> segments) {
  return std::ranges::any_of(segments, [&](std::string_view segment) { return key.starts_with(segment); });
}

std::string_view without_model(std::string_view key) {
  return key.starts_with(kModel) ? key.substr(kModel.size()) : key;
}

// Rules 38, 43: `model.lm_head.` is read as `lm_head.`, `model.mtp.` as `mtp.`.
std::string_view without_needless_prefix(KeyTable const& table, std::string_view hf_key) {
  auto const rest = without_model(hf_key);
  return begins_with_any(rest, table.misplaced) ? rest : hf_key;
}

// Rule 43: `model.language_model.norm.weight` becomes `model.norm.weight`.
std::string without_dropped(KeyTable const& table, std::string_view hf_key) {
  auto const rest = without_model(hf_key);
  std::string kept(hf_key);
  if (rest.starts_with(table.dropped)) kept.erase(hf_key.size() - rest.size(), table.dropped.size());
  return kept;
}

bool has_prefix(KeyTable const& table, std::string_view hf_key) {
  return hf_key.starts_with(kModel) && !is_mtp(without_needless_prefix(table, hf_key));
}

void refuse(KeyTable const& table, std::string_view hf_key, std::string_view key) {
  for (auto const& rule : table.refused) {
    if (match_key(rule.hf, key)) throw FormatError(fmt::format("{}: {}", hf_key, rule.reason), {}, std::string(hf_key));
  }
}

// Rules 22, 38: what stands outside the prefix or has it stays, everything else gets it.
std::string place(KeyTable const& table, std::string key, std::string_view prefix) {
  if (begins_with_any(key, table.top_level) || key.starts_with(kModel)) return key;
  return key.insert(0, prefix);
}

bool tracked(Fp32Holder const& fp32, std::string_view key) {
  auto const ending = [&](std::string_view name) { return key.ends_with(name); };
  return std::ranges::any_of(fp32.names, ending) && key.find(fp32.module) != std::string_view::npos;
}

std::string route(Fp32Holder const& fp32, std::string key) {
  if (!tracked(fp32, key) || key.find(fmt::format(".{}", fp32.segment)) != std::string::npos) return key;
  return key.insert(key.rfind(fp32.module) + fp32.module.size(), fp32.segment);
}

std::string strip(Fp32Holder const& fp32, std::string key) {
  if (fp32.segment.empty()) return key;
  return replace_all(key, fmt::format("{}{}", fp32.module, fp32.segment), fp32.module);
}

std::uint32_t expert_id(std::string_view digits, std::string_view hf_key) {
  std::uint32_t id = 0;
  auto const parsed = std::from_chars(digits.data(), digits.data() + digits.size(), id);
  if (parsed.ec == std::errc{}) return id;
  throw FormatError(fmt::format("{}: {} is no expert's number", hf_key, digits), {}, std::string(hf_key));
}

}  // namespace

bool is_mtp(std::string_view fqn) { return fqn.starts_with(kMtp); }

bool is_extra_state(std::string_view fqn) { return fqn.find("_extra_state") != std::string_view::npos; }

bool is_left_out(KeyTable const& table, std::string_view hf_key) {
  return begins_with_any(without_model(hf_key), table.left_out);
}

std::optional<StackedKey> match_stacked(KeyTable const& table, std::string_view hf_key) {
  auto const key = without_needless_prefix(table, hf_key);
  auto const of_layer = [&](StackedRule const& rule, std::string_view layer) {
    auto const* const end = layer.data() + layer.size();
    return StackedKey{.rule = &rule, .up_to_layer = {hf_key.data(), end}, .layer = layer, .split = {}};
  };
  for (auto const& rule : table.stacked) {
    if (auto const places = match_key(rule.grouped, key)) return of_layer(rule, places->layer);
    for (std::size_t i = 0; i < rule.split.size(); ++i) {
      auto const places = match_key(rule.split[i].hf, key);
      if (!places) continue;
      auto found = of_layer(rule, places->layer);
      found.split = {expert_id(places->expert, hf_key), i};
      return found;
    }
  }
  return std::nullopt;
}

KeyMapping from_hf(KeyTable const& table, std::string_view hf_key, std::string_view prefix) {
  auto const source = without_needless_prefix(table, hf_key);
  refuse(table, hf_key, source);
  auto const exact = std::ranges::find(table.exact, source, &Rename::hf);
  if (exact != table.exact.end()) return {.fqn = std::string(exact->native)};
  if (auto const match = match_stacked(table, hf_key)) {
    return {.fqn = stacked_fqn(table, *match->rule, match->layer, prefix),
            .stacked = match->rule,
            .layer = match->layer,
            .split = match->split};
  }
  auto key = without_dropped(table, source);
  for (auto const& part : table.parts) key = replace_all(key, part.hf, part.native);
  return {.fqn = route(table.fp32, place(table, std::move(key), prefix))};
}

StackedRule const* find_renaming(KeyTable const& table, std::string_view fqn) {
  auto const renames = [&](StackedRule const& rule) { return fqn.find(after_layer(rule.native)) != fqn.npos; };
  auto const found = std::ranges::find_if(table.stacked, renames);
  return found == table.stacked.end() ? nullptr : &*found;
}

std::string to_hf(KeyTable const& table, std::string_view fqn) {
  if (auto const* const rule = find_renaming(table, fqn)) {
    return replace_all(fqn, after_layer(rule->native), after_layer(rule->grouped));
  }
  std::string key(fqn);
  for (auto const& part : table.parts) key = replace_all(key, part.native, part.hf);
  key = strip(table.fp32, std::move(key));
  auto const exact = std::ranges::find(table.exact, key, &Rename::native);
  return exact != table.exact.end() ? std::string(exact->hf) : key;
}

std::optional<StackedName> find_stacked(KeyTable const& table, std::string_view fqn) {
  for (auto const& rule : table.stacked) {
    // A prefix before what stands outside it is none.
    auto const key = begins_with_any(rule.native, table.top_level) ? fqn : without_model(fqn);
    if (auto const places = match_key(rule.native, key)) return StackedName{&rule, places->layer};
  }
  return std::nullopt;
}

std::string stacked_fqn(KeyTable const& table, StackedRule const& rule, std::string_view layer,
                        std::string_view prefix) {
  return place(table, fill_key(rule.native, {.layer = layer}), prefix);
}

std::string split_key(StackedRule const& rule, std::string_view fqn, ExpertMatrix const& matrix) {
  auto const of_layer = fqn.substr(0, fqn.size() - after_layer(rule.native).size());
  auto const expert = std::to_string(matrix.expert);
  return std::string(of_layer) + fill_key(after_layer(rule.split[matrix.matrix].hf), {.expert = expert});
}

std::string_view find_prefix(KeyTable const& table, std::span<CatalogTensor const> tensors) {
  auto const prefixed = [&](CatalogTensor const& tensor) { return has_prefix(table, tensor.name); };
  return std::ranges::any_of(tensors, prefixed) ? kModel : std::string_view{};
}

std::string_view find_prefix(KeyTable const& table, std::span<HfTensor const> tensors) {
  auto const prefixed = [&](HfTensor const& tensor) { return has_prefix(table, tensor.key); };
  return std::ranges::any_of(tensors, prefixed) ? kModel : std::string_view{};
}

bool is_fp32_held(KeyTable const& table, std::string_view hf_key) { return tracked(table.fp32, hf_key); }

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

}  // namespace rankslice
