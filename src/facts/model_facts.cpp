#include "facts/model_facts.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <optional>
#include <set>

#include "model/converted_model.hpp"
#include "model/exported_form.hpp"
#include "model/family.hpp"

namespace rankslice {

namespace {

KeyTable const& table_of(Checkpoint const& checkpoint) { return find_family(checkpoint.family, {}).keys; }

bool is_split(Model const& model, Parameter const& parameter) {
  return model.tensors[parameter.tensors.front()].shape.size() < parameter.shape.size();
}

/// Of decoder or MTP layers, which all have the same form.
std::string_view form_of(Model const& model, bool mtp) {
  auto const held = find_held_experts(model, mtp ? Stack::mtp : Stack::decoder);
  return held ? name(held->form) : "none";
}

Json expert_layout_of(Checkpoint const& checkpoint) {
  for (auto const& parameter : checkpoint.model.parameters) {
    if (!parameter.stacked_experts || is_split(checkpoint.model, parameter)) continue;
    auto const stacked = find_stacked(table_of(checkpoint), parameter.fqn);
    if (!stacked || stacked->rule->one_layout()) continue;
    return name(parameter.layout == stacked->rule->hub ? ExpertLayout::hub : ExpertLayout::transformers);
  }
  return nullptr;
}

constexpr std::array<std::string_view, 8> kGroups{"decoder experts", "shared experts",  "attention", "linear attention",
                                                  "MTP experts",     "the rest of MTP", "vision",    "others"};

/// The part of the model that a weight belongs to, of `kGroups`.
std::string_view group_of(Parameter const& parameter) {
  auto const has = [&](std::string_view part) { return parameter.fqn.find(part) != std::string::npos; };
  if (is_mtp(parameter.fqn)) return parameter.stacked_experts ? "MTP experts" : "the rest of MTP";
  if (parameter.stacked_experts) return "decoder experts";
  if (has(".shared_experts.")) return "shared experts";
  if (has(".self_attn.")) return "attention";
  if (has(".linear_attn.")) return "linear attention";
  return has("visual.") ? "vision" : "others";
}

std::string_view why_dequantised(Checkpoint const& checkpoint, DType dtype, bool asked) {
  if (checkpoint.format != CheckpointFormat::huggingface) return "stored";
  auto const& config = checkpoint.hf.config;
  auto const said = config.empty() ? std::nullopt : parse_model_config(config).dtype;
  if (asked || dtype != said.value_or(DType::BF16)) return "--dtype";
  return said ? "config.json" : "default";
}

std::string text(Json const& value) { return value.get<std::string>(); }

std::uint64_t number(Json const& value) { return value.get<std::uint64_t>(); }

std::string reason(std::string const& because) {
  if (because == "training") return "as training needs them";
  if (because == "stored") return "as they were stored";
  if (because == "config.json") return "the dtype in config.json";
  if (because == "default") return "because config.json says no dtype";
  return "by " + because;
}

std::string experts_line(Json const& forms) {
  auto const mtp = text(forms["mtp_experts"]);
  return fmt::format("decoder experts {}, {}", text(forms["decoder_experts"]),
                     mtp == "none" ? "no MTP experts" : "MTP experts " + mtp);
}

}  // namespace

Json summarize_layout(Checkpoint const& checkpoint) {
  return {{"decoder_experts", form_of(checkpoint.model, false)},
          {"mtp_experts", form_of(checkpoint.model, true)},
          {"expert_layout", expert_layout_of(checkpoint)}};
}

Json summarize_quantisation(Checkpoint const& checkpoint) {
  auto const& tensors = checkpoint.model.tensors;
  auto const& catalog = checkpoint.catalog.tensors;
  std::map<std::string_view, std::uint64_t> groups;
  std::set<std::string_view> scale_dtypes;
  std::uint64_t weights = 0, elsewhere = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].scales) continue;
    auto const scales = *tensors[i].scales;
    ++weights;
    ++groups[group_of(checkpoint.model.parameters[tensors[i].parameter])];
    scale_dtypes.insert(name(tensors[scales].dtype));
    if (catalog[i].extent.file != catalog[scales].extent.file) ++elsewhere;
  }
  if (weights == 0) return {{"method", "none"}};
  auto groups_json = Json::object();
  for (auto const group : kGroups) {
    if (groups[group] > 0) groups_json[std::string(group)] = groups[group];
  }
  return {{"method", "block-fp8"},         {"weights", weights},
          {"dtype", name(DType::F8_E4M3)}, {"groups", groups_json},
          {"block", {128, 128}},           {"scales", weights},
          {"scale_dtypes", scale_dtypes},  {"scales_in_other_files", elsewhere}};
}

Json summarize_conversions(Checkpoint const& checkpoint, bool asked) {
  auto const& table = table_of(checkpoint);
  auto const stored = checkpoint.format != CheckpointFormat::huggingface;
  std::map<std::vector<std::string_view>, std::uint64_t> counts;
  for (auto const& parameter : checkpoint.model.parameters) {
    auto const held = is_fp32_held(table, checkpoint.model.key_of(parameter)) && parameter.dtype == DType::F32;
    if (!held && !parameter.converted()) continue;
    auto const quantised = parameter.scale_bytes != 0;
    auto const because = held        ? "training"
                         : quantised ? why_dequantised(checkpoint, parameter.dtype, asked)
                         : stored    ? "stored"
                                     : "--dtype";
    counts[{held        ? "held_in_f32"
            : quantised ? "dequantised"
                        : "cast",
            name(parameter.hf_dtype), name(parameter.dtype), because}] += parameter.tensors.size();
  }
  auto list = Json::array();
  for (auto const& [what, count] : counts) {
    list.push_back({{"kind", what[0]}, {"from", what[1]}, {"to", what[2]}, {"tensors", count}, {"because", what[3]}});
  }
  return list;
}

Json summarize_export(Checkpoint const& checkpoint) {
  auto const& family = find_family(checkpoint.family, {});
  auto const converted = make_converted_model(family, checkpoint.model, Fp32HeldDtype::of_source);
  if (!converted) return {{"values", "read"}, {"headers", name(checkpoint.hf.headers)}};
  auto const dtype = converted_dtype(family, checkpoint.model);
  return {{"values", "held"},
          {"headers", name(HeaderOrigin::converted)},
          {"tensors", converted->tensors.size()},
          {"dtype", dtype ? Json(name(*dtype)) : Json(nullptr)},
          {"decoder_experts", form_of(*converted, false)},
          {"mtp_experts", form_of(*converted, true)}};
}

std::string layout_line(Json const& layout) {
  auto const& axes = layout["expert_layout"];
  if (axes.is_null()) return experts_line(layout);
  return fmt::format("{}, axes as {} has them", experts_line(layout), text(axes) == "hub" ? "the Hub" : text(axes));
}

std::vector<std::string> quantisation_lines(Json const& quantisation) {
  if (text(quantisation["method"]) == "none") return {"none"};
  std::vector<std::string> groups;
  for (auto const& [group, count] : quantisation["groups"].items()) {
    groups.push_back(fmt::format("{} of {}", number(count), group));
  }
  auto const elsewhere = number(quantisation["scales_in_other_files"]);
  return {fmt::format("block-FP8: {} in {} with {} of scales in {}, blocks of 128 × 128",
                      counted(number(quantisation["weights"]), "weight"), text(quantisation["dtype"]),
                      counted(number(quantisation["scales"]), "tensor"),
                      fmt::join(quantisation["scale_dtypes"].get<std::vector<std::string>>(), " and ")),
          fmt::format("weights: {}", fmt::join(groups, ", ")),
          elsewhere == 0 ? "scales: in the files of their weights"
                         : fmt::format("scales: {} in other files than their weights", elsewhere)};
}

std::vector<std::string> conversion_lines(Json const& conversions) {
  std::map<std::string, std::string> const verbs{
      {"held_in_f32", "held in"}, {"dequantised", "dequantised to"}, {"cast", "converted to"}};
  std::vector<std::string> lines;
  for (auto const& item : conversions) {
    lines.push_back(fmt::format("{} {} {}, {}", counted(number(item["tensors"]), text(item["from"]) + " tensor"),
                                verbs.at(text(item["kind"])), text(item["to"]), reason(text(item["because"]))));
  }
  return lines;
}

std::vector<std::string> export_lines(Json const& exported, Json const& conversions) {
  std::vector<std::string> lines;
  auto const has = [&](auto const& is_it) { return std::ranges::any_of(conversions, is_it); };
  if (text(exported["values"]) == "held") {
    auto const quantised = has([](Json const& item) { return text(item["kind"]) == "dequantised"; });
    lines.push_back(fmt::format("{} under fresh headers{}: {}; what was converted in {}",
                                counted(number(exported["tensors"]), "tensor"), quantised ? ", none quantised" : "",
                                experts_line(exported), text(exported["dtype"])));
    lines.emplace_back("--export-layout source: the source's own; what cannot be computed back is copied from it");
  } else if (text(exported["headers"]) != name(HeaderOrigin::source)) {
    lines.emplace_back("tensors as in the source, under fresh headers");
  } else {
    lines.emplace_back("the source's files; byte for byte, where no value is changed");
  }
  if (has([](Json const& item) { return text(item["kind"]) == "held_in_f32" && text(item["from"]) != "F32"; })) {
    lines.emplace_back("what is held in F32: in the source's dtypes; --gdn-dtype upstream: in F32, as NeMo Automodel");
  }
  return lines;
}

std::vector<std::string> value_lines(Json const& conversions) {
  auto changed = Json::array();
  std::ranges::copy_if(conversions, std::back_inserter(changed),
                       [](Json const& item) { return text(item["kind"]) != "held_in_f32"; });
  return conversion_lines(changed);
}

}  // namespace rankslice
