#include "model/completeness.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "rankslice/error.hpp"

#include "model/key_pattern.hpp"
#include "model/tensor_error.hpp"

namespace rankslice {

namespace {

// More experts than these are not listed in a message.
constexpr std::size_t kListed = 8;

FormatError missing_matrix(StackedRule const& rule, std::string_view fqn, std::string_view layer,
                           ExpertMatrix const& matrix, bool quantised, std::string const& reason) {
  auto const key = split_key(rule, fqn, matrix);
  auto const expert = std::to_string(matrix.expert);
  auto const& of_matrix = rule.split[matrix.matrix];
  auto const text =
      fill_key(quantised ? of_matrix.missing_quantised : of_matrix.missing, {.layer = layer, .expert = expert});
  return FormatError(fmt::format("{}: {}: {}", key, text, reason), {}, key);
}

/// Knows which stacked parameters there are, and says what is wrong when one is not.
class ExpertLayers {
 public:
  ExpertLayers(KeyTable const& table, MappedCatalog const& mapped)
      : table_(table), prefix_(find_prefix(table, mapped.catalog.tensors)) {
    for (auto const& key : mapped.keys) {
      if (key.stacked != nullptr) fqns_.insert(key.fqn);
      if (key.split) split_.insert(key.stacked->stack);
      if (key.split && key.scales_of) quantised_.insert(key.stacked->stack);
    }
  }

  void demand(Stack stack, std::string_view layer, std::string const& reason) const {
    for (auto const& rule : table_.stacked) {
      if (rule.stack != stack) continue;
      auto const fqn = stacked_fqn(table_, rule, layer, prefix_);
      if (fqns_.contains(fqn)) continue;
      if (split_.contains(stack)) throw missing_matrix(rule, fqn, layer, {}, quantised_.contains(stack), reason);
      auto const missing = to_hf(table_, fqn);
      throw FormatError(fmt::format("{}: missing from the checkpoint: {}", missing, reason), {}, missing);
    }
  }

 private:
  KeyTable const& table_;
  std::string_view prefix_;
  std::unordered_set<std::string_view> fqns_;
  std::unordered_set<Stack> split_, quantised_;
};

void demand_announced_layers(ExpertLayers const& layers, MappedCatalog const& mapped, ModelConfig const& config) {
  std::unordered_set<std::uint64_t> const dense(config.dense_layers.begin(), config.dense_layers.end());
  auto const announced = fmt::format("config.json has num_hidden_layers = {}", config.layers);
  // No longer than there are layers to be found, or listed as dense: the first that is neither is an error.
  for (std::uint64_t sparse = 1; sparse <= config.layers / config.sparse_step; ++sparse) {
    auto const layer = sparse * config.sparse_step - 1;
    if (!dense.contains(layer)) layers.demand(Stack::decoder, std::to_string(layer), announced);
  }
  if (std::ranges::none_of(mapped.keys, is_mtp, &KeyMapping::fqn)) return;
  auto const mtp_announced = fmt::format("config.json has mtp_num_hidden_layers = {}", config.mtp_layers);
  for (std::uint64_t layer = 0; layer < config.mtp_layers; ++layer) {
    layers.demand(Stack::mtp, std::to_string(layer), mtp_announced);
  }
}

/// `up_proj`, of a pattern like `….experts.{X}.up_proj.weight`.
std::string_view matrix_name(SplitRule const& rule) {
  constexpr std::string_view kExpert = "{X}.";
  auto const name = rule.hf.substr(rule.hf.find(kExpert) + kExpert.size());
  return name.substr(0, name.find('.'));
}

/// What a split parameter lacks.
struct Missing {
  ExpertMatrix first;
  /// The same matrices and the experts that lack them; as many experts as are listed.
  std::vector<std::pair<std::vector<std::string_view>, std::vector<std::uint64_t>>> experts;
  bool more = false;
};

/// Of E experts not all of whose matrices are there.
Missing find_missing(MappedCatalog const& mapped, Parameter const& parameter, std::uint64_t experts) {
  auto const& rules = mapped.keys[parameter.tensors.front()].stacked->split;
  Missing missing;
  auto next = parameter.tensors.begin();
  std::size_t listed = 0;
  for (std::uint64_t expert = 0; expert < experts; ++expert) {
    std::vector<std::string_view> lacks;
    for (std::uint64_t matrix = 0; matrix < rules.size(); ++matrix) {
      ExpertMatrix const wanted{expert, matrix};
      auto const is_there = next != parameter.tensors.end() && mapped.keys[*next].split == wanted;
      if (is_there) ++next;
      if (!is_there && listed == 0 && lacks.empty()) missing.first = wanted;
      if (!is_there) lacks.push_back(matrix_name(rules[matrix]));
    }
    if (lacks.empty()) continue;
    missing.more = listed++ == kListed;
    if (missing.more) break;
    auto const alike = std::ranges::find(missing.experts, lacks, [](auto const& entry) { return entry.first; });
    if (alike == missing.experts.end()) {
      missing.experts.push_back({lacks, {expert}});
    } else {
      alike->second.push_back(expert);
    }
  }
  return missing;
}

/// "up_proj of expert 2; gate_proj and up_proj of experts 3, 4"
std::string to_string(Missing const& missing) {
  std::vector<std::string> parts;
  for (auto const& [matrices, experts] : missing.experts) {
    parts.push_back(fmt::format("{} of expert{} {}", fmt::join(matrices, " and "), experts.size() == 1 ? "" : "s",
                                fmt::join(experts, ", ")));
  }
  return fmt::format("{}{}", fmt::join(parts, "; "), missing.more ? ", …" : "");
}

/// How many experts a stacked parameter holds, if they are whole and the first ones.
std::optional<std::uint64_t> whole_experts(MappedCatalog const& mapped, Parameter const& parameter) {
  auto const& last = mapped.keys[parameter.tensors.back()];
  if (!last.split) return parameter.shape.front();
  auto const matrices = last.stacked->split.size();
  auto const experts = parameter.tensors.size() / matrices;
  auto const whole = parameter.tensors.size() % matrices == 0 && last.split->expert + 1 == experts;
  return whole ? std::optional(experts) : std::nullopt;
}

/// The key that a pattern describes in layer 0, for people.
std::string example(std::string_view pattern) {
  auto key = fill_key(pattern, {.layer = "0", .expert = "0"});
  std::erase_if(key, [](char c) { return c == '[' || c == ']'; });
  return key;
}

/// What experts are called, for people.
FormatError no_experts(StackedRule const& rule) {
  auto const grouped = example(rule.grouped);
  auto const split = rule.split.empty() ? "" : fmt::format(", or one by one ({})", example(rule.split.front().hf));
  return FormatError(
      fmt::format("no experts in the checkpoint: expected those of a layer together ({}){}", grouped, split));
}

}  // namespace

void check_one_form(MappedCatalog const& mapped) {
  struct Examples {
    std::string_view what;
    CatalogTensor const* split = nullptr;
    CatalogTensor const* grouped = nullptr;
  };
  std::array<Examples, 2> stacks{Examples{"decoder"}, Examples{"MTP"}};
  for (std::size_t i = 0; i < mapped.keys.size(); ++i) {
    auto const& key = mapped.keys[i];
    if (key.stacked == nullptr || key.scales_of) continue;
    auto& examples = stacks[static_cast<std::size_t>(key.stacked->stack)];
    auto& example = key.split ? examples.split : examples.grouped;
    if (example == nullptr) example = &mapped.catalog.tensors[i];
  }
  for (auto const& [what, split, grouped] : stacks) {
    if (split == nullptr || grouped == nullptr) continue;
    throw tensor_error(mapped.catalog, *grouped,
                       fmt::format("Checkpoint contains both split and grouped {} expert keys; cannot infer one layout "
                                   "(examples: '{}', '{}')",
                                   what, split->name, grouped->name));
  }
}

void check_expert_layers(KeyTable const& table, MappedCatalog const& mapped, ModelConfig const& config) {
  if (config.partial) return;
  auto const is_stacked = [](KeyMapping const& key) { return key.stacked != nullptr; };
  if (std::ranges::none_of(mapped.keys, is_stacked)) {
    throw no_experts(table.stacked.front());
  }
  ExpertLayers const layers(table, mapped);
  KeyMapping const* last = nullptr;
  for (std::size_t i = 0; i < mapped.keys.size(); ++i) {
    auto const& key = mapped.keys[i];
    if (!is_stacked(key)) continue;
    auto const is_known = last != nullptr && last->stacked->stack == key.stacked->stack && last->layer == key.layer;
    last = &key;  // a layer's experts mostly stand together
    if (!is_known) layers.demand(key.stacked->stack, key.layer, mapped.catalog.tensors[i].name + " is there");
  }
  demand_announced_layers(layers, mapped, config);
}

void check_experts(MappedCatalog const& mapped, Parameter const& parameter, ExpertSizes const& sizes) {
  auto const& first = mapped.keys[parameter.tensors.front()];
  auto const matrices = first.stacked->split.size();
  auto const& [experts, source] = sizes.experts;
  auto const last = parameter.tensors.back();
  if (auto const highest = mapped.keys[last].split->expert; highest >= experts) {
    throw tensor_error(mapped.catalog, mapped.catalog.tensors[last],
                       fmt::format("expected experts below E = {} ({}), found {}", experts, source, highest));
  }
  auto const complete = parameter.tensors.size() / matrices;  // divided: E may be any number
  if (parameter.tensors.size() % matrices == 0 && complete == experts) return;
  auto const missing = find_missing(mapped, parameter, experts);
  throw missing_matrix(*first.stacked, parameter.fqn, first.layer, missing.first, parameter.scale_bytes != 0,
                       fmt::format("expected {} for each of {} experts ({}), found {} in all; missing: {}",
                                   matrices == 1 ? "a tensor" : "2 tensors", experts, source, parameter.tensors.size(),
                                   to_string(missing)));
}

void check_expert_count(MappedCatalog const& mapped, Model const& model, ModelConfig const& config) {
  if (config.experts == 0 || config.partial) return;
  std::optional<std::uint64_t> found;
  std::string_view last;
  for (auto const& parameter : model.parameters) {
    if (!parameter.stacked_experts) continue;
    auto const experts = whole_experts(mapped, parameter);
    if (!experts || experts != found.value_or(*experts)) return;
    found = experts;
    last = model.tensors[parameter.tensors.back()].key;
  }
  if (!found || *found == config.experts) return;
  throw FormatError(fmt::format("config.json: {} = {}, but every layer of the files has whole experts for E = {}, up "
                                "to {}",
                                config.experts_field, config.experts, *found, last),
                    "config.json", std::string(last));
}

}  // namespace rankslice
