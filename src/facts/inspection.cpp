#include "facts/inspection.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "checkpoint_parts.hpp"
#include "facts/model_facts.hpp"
#include "facts/oddities.hpp"
#include "format/hf_folder.hpp"
#include "model/family.hpp"
#include "plan/plan.hpp"

namespace rankslice {

namespace {

std::string_view format_name(CheckpointFormat format) {
  switch (format) {
    case CheckpointFormat::huggingface:
      return "huggingface";
    case CheckpointFormat::store:
      return "store";
    case CheckpointFormat::shards:
      return "shards";
    case CheckpointFormat::state:
      return "state";
  }
  return "";
}

struct Totals {
  std::uint64_t count = 0;
  std::uint64_t bytes = 0;

  template <typename Tensor>
  void add(Tensor const& tensor) {
    ++count;
    bytes += byte_size(tensor.dtype, tensor.shape);
  }
};

/// "[8, 192, 256]" of a grouped tensor; of split experts the shapes of one expert's tensors: "gate_proj [96, 256], …".
std::string stored_as(Model const& model, Parameter const& parameter) {
  std::string text;
  for (auto const index : parameter.tensors) {
    auto const& tensor = model.tensors[index];
    if (tensor.experts.begin != 0) break;
    auto key = std::string_view(tensor.key);
    if (key.ends_with(".weight")) key.remove_suffix(std::string_view(".weight").size());
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", key.substr(key.rfind('.') + 1), to_string(tensor.shape));
  }
  return text;
}

/// "model.language_model" of `model.language_model.layers.3.…`; of names that begin with it, "layers".
std::string layers_of(std::string const& fqn) {
  auto const layers = fqn.find("layers.");
  return layers == 0 ? "layers" : fqn.substr(0, layers - 1);
}

/// The stacked tensors, in the groups that the HF checkpoint stores alike: decoder and MTP layers, grouped or split.
Json summarize_experts(Checkpoint const& checkpoint) {
  auto const& model = checkpoint.model;
  std::map<std::vector<std::string>, Totals> groups;
  for (auto const& parameter : model.parameters) {
    if (!parameter.stacked_experts) continue;
    auto const split = model.tensors[parameter.tensors.front()].shape.size() < parameter.shape.size();
    auto const transposed = checkpoint.storage.form == Form::hf && parameter.layout == Layout::swapped;
    auto& totals =
        groups[{layers_of(parameter.fqn), parameter.fqn.substr(parameter.fqn.rfind('.') + 1),
                split ? "split" : "grouped", std::string(name(parameter.hf_dtype)), stored_as(model, parameter),
                to_string(parameter.shape), transposed ? "transposed" : "as it is"}];
    ++totals.count;
    totals.bytes += parameter.bytes(parameter.whole(), Form::hf);
  }
  auto list = Json::array();
  for (auto const& [group, totals] : groups) {
    list.push_back({{"layers_of", group[0]},
                    {"parameter", group[1]},
                    {"layout", group[2]},
                    {"dtype", group[3]},
                    {"stored", group[4]},
                    {"shape", group[5]},
                    {"on_load", group[6]},
                    {"layers", totals.count},
                    {"bytes", totals.bytes}});
  }
  return list;
}

/// What `load` would do with some expert-parallel widths: the powers of two up to E.
Json summarize_load(Checkpoint const& checkpoint, std::uint64_t experts) {
  auto list = Json::array();
  for (std::uint64_t ep = 1; ep <= experts; ep *= 2) {
    Mesh const mesh{.ep_replicate = 1, .ep_shard = 1, .ep = static_cast<int>(ep)};
    auto const first = plan_all_ranks(checkpoint.model, checkpoint.storage.form, mesh).front();
    list.push_back({{"ep", ep}, {"experts", first.experts}, {"bytes_read", first.read}, {"bytes_owned", first.owned}});
  }
  return list;
}

/// What config.json says; null where it says nothing.
Json summarize_config(HfLayout const& hf) {
  if (hf.config.empty()) return nullptr;
  auto const config = parse_model_config(hf.config);
  auto const said = [](std::uint64_t value) { return value == 0 ? Json(nullptr) : Json(value); };
  return {{"model_type", config.model_type},
          {"experts", said(config.experts)},
          {"hidden", said(config.hidden)},
          {"intermediate", said(config.intermediate)},
          {"layers", said(config.layers)},
          {"mtp_layers", said(config.mtp_layers)},
          {"dtype", config.dtype ? Json(name(*config.dtype)) : Json(nullptr)},
          {"quantization", config.quantisation.method.empty() ? Json(nullptr) : Json(config.quantisation.method)}};
}

/// Tensors of any kind, all and by dtype.
template <typename Tensors>
Json summarize_tensors(Tensors const& tensors) {
  std::map<std::string, Totals> dtypes;
  Totals all;
  for (auto const& tensor : tensors) {
    all.add(tensor);
    dtypes[std::string(name(tensor.dtype))].add(tensor);
  }
  auto dtypes_json = Json::object();
  for (auto const& [dtype, totals] : dtypes) dtypes_json[dtype] = {{"tensors", totals.count}, {"bytes", totals.bytes}};
  return {{"tensors", all.count}, {"bytes", all.bytes}, {"dtypes", dtypes_json}};
}

/// Null for a family that there is no table of.
Json family_of(CheckpointParts const& parts) {
  auto const config = parts.hf.config.empty() ? ModelConfig{} : parse_model_config(parts.hf.config);
  try {
    return find_family(parts.family, config, parts.text_only).name;
  } catch (Error const&) {
    return nullptr;
  }
}

std::uint64_t number(Json const& value) { return value.get<std::uint64_t>(); }

std::string text(Json const& value) { return value.get<std::string>(); }

std::string joined(Json const& list, std::string const& separator) {
  return fmt::format("{}", fmt::join(list.get<std::vector<std::string>>(), separator));
}

void add_line(std::string& out, std::string_view label, std::string const& content) {
  out += fmt::format("{:<12}{}\n", label, content);
}

void add_experts(std::string& out, Json const& experts, std::uint64_t all_bytes) {
  add_line(out, "experts",
           fmt::format("{} a layer, {} in {} ({:.1f} % of all bytes)", number(experts["count"]),
                       human_bytes(number(experts["bytes"])), counted(number(experts["tensors"]), "tensor"),
                       100.0 * static_cast<double>(number(experts["bytes"])) /
                           static_cast<double>(std::max<std::uint64_t>(1, all_bytes))));
  for (auto const& group : experts["groups"]) {
    add_line(out, "",
             fmt::format("{}, {}, {} {}: {}", text(group["layers_of"]), counted(number(group["layers"]), "layer"),
                         text(group["layout"]), text(group["dtype"]), text(group["stored"])));
    add_line(
        out, "",
        fmt::format("  loaded as {} {}, {}", text(group["parameter"]), text(group["shape"]), text(group["on_load"])));
  }
}

void add_lines(std::string& out, std::string_view label, std::vector<std::string> const& lines) {
  for (auto const& line : lines) {
    add_line(out, label, line);
    label = "";
  }
}

void add_config(std::string& out, Json const& config) {
  if (config.is_null()) return add_line(out, "config", "none");
  auto line = text(config["model_type"]).empty() ? "no model_type" : text(config["model_type"]);
  auto const add = [&](char const* field, char const* what) {
    auto const& value = config[field];
    line += value.is_null() ? fmt::format(", {} not said", what) : fmt::format(", {} {}", what, value.dump());
  };
  add("layers", "layers");
  add("experts", "experts");
  add("hidden", "hidden size");
  add("intermediate", "expert width");
  line += config["dtype"].is_null() ? ", dtype not said" : ", " + text(config["dtype"]);
  if (!config["quantization"].is_null()) line += ", quantization " + text(config["quantization"]);
  add_line(out, "config", line);
}

/// What is known of anything that has headers.
void add_contents(std::string& out, Json const& summary) {
  add_line(out, "path", text(summary["path"]));
  add_line(out, "format", fmt::format("{}, {}", text(summary["format"]), counted(number(summary["files"]), "file")));
  add_line(out, "family", summary["family"].is_null() ? "not known" : text(summary["family"]));
  add_config(out, summary["config"]);
  add_line(out, "tensors",
           fmt::format("{}, {} ({} bytes)", number(summary["tensors"]), human_bytes(number(summary["bytes"])),
                       number(summary["bytes"])));
  for (auto const& [dtype, totals] : summary["dtypes"].items()) {
    add_line(out, "  " + dtype, fmt::format("{}, {}", number(totals["tensors"]), human_bytes(number(totals["bytes"]))));
  }
}

void add_load(std::string& out, Json const& widths) {
  std::vector<std::string> lines;
  for (auto const& width : widths) {
    lines.push_back(fmt::format("--ep {:<4} {:>4} on a rank, which reads {} and holds {}", number(width["ep"]),
                                counted(number(width["experts"]), "expert"), human_bytes(number(width["bytes_read"])),
                                human_bytes(number(width["bytes_owned"]))));
  }
  add_lines(out, "load", lines);
}

}  // namespace

Json summarize_checkpoint(Checkpoint const& checkpoint, bool asked_for_dtype) {
  Totals stacked, converted;
  std::uint64_t experts = 0;
  for (auto const& tensor : checkpoint.model.tensors) {
    auto const& parameter = checkpoint.model.parameters[tensor.parameter];
    if (parameter.converted() && !tensor.is_scales) converted.add(tensor);
    if (!parameter.stacked_experts) continue;
    stacked.add(tensor);
    experts = parameter.part_count();
  }
  Json summary{{"schema", "rankslice.inspect/1"},
               {"path", checkpoint.path},
               {"format", format_name(checkpoint.format)},
               {"family", checkpoint.family},
               {"config", summarize_config(checkpoint.hf)},
               {"prefix", find_prefix(find_family(checkpoint.family, {}).keys, checkpoint.model.tensors)},
               {"files", checkpoint.storage.files.size()}};
  summary.update(summarize_tensors(checkpoint.model.tensors));
  summary.update({{"layout", summarize_layout(checkpoint)},
                  {"quantisation", summarize_quantisation(checkpoint)},
                  {"experts",
                   {{"count", experts},
                    {"tensors", stacked.count},
                    {"bytes", stacked.bytes},
                    {"groups", summarize_experts(checkpoint)}}},
                  {"converted_on_load", converted.count},
                  {"conversions", summarize_conversions(checkpoint, asked_for_dtype)},
                  {"export", summarize_export(checkpoint)},
                  {"load", summarize_load(checkpoint, experts)},
                  {"side_files", checkpoint.hf.side_files.size()},
                  {"left_out", checkpoint.hf.left_out},
                  {"fingerprint", checkpoint.fingerprint},
                  {"digests", checkpoint.digests ? Json(checkpoint.digests_from) : Json(nullptr)},
                  {"problems", oddities(checkpoint)}});
  return summary;
}

std::optional<Json> summarize_unmapped(std::string const& path, OpenOptions options, Error const& error) {
  try {
    options.without_manifest = true;  // which may be all that is wrong
    auto parts = read_checkpoint_parts(path, options);
    auto const catalog = make_catalog(parts.hf, parts.hf_folder, parts.warnings);
    Json summary{{"schema", "rankslice.inspect/1"},
                 {"path", parts.path},
                 {"format", format_name(parts.format)},
                 {"family", family_of(parts)},
                 {"config", summarize_config(parts.hf)},
                 {"files", parts.format == CheckpointFormat::huggingface ? parts.hf.files.size() : parts.files.size()}};
    summary.update(summarize_tensors(catalog.tensors));
    summary.update({{"problems", parts.warnings}, {"error", describe_error(error)}});
    return summary;
  } catch (Error const&) {
    return std::nullopt;  // what went wrong first says more
  }
}

std::string inspection_text(Json const& summary) {
  std::string out;
  add_contents(out, summary);
  if (!summary.contains("error")) {
    add_line(out, "prefix", text(summary["prefix"]).empty() ? "none" : text(summary["prefix"]));
    add_line(out, "layout", layout_line(summary["layout"]));
    add_lines(out, "quantised", quantisation_lines(summary["quantisation"]));
    add_experts(out, summary["experts"], number(summary["bytes"]));
    auto const& conversions = summary["conversions"];
    add_lines(out, "in memory",
              conversions.empty() ? std::vector<std::string>{"every tensor in its own dtype"}
                                  : conversion_lines(conversions));
    add_lines(out, "export", export_lines(summary["export"], conversions));
    add_load(out, summary["load"]);
    add_line(out, "side files", std::to_string(number(summary["side_files"])));
    if (!summary["left_out"].empty()) add_line(out, "left out", joined(summary["left_out"], ", "));
    add_line(out, "digests", summary["digests"].is_null() ? "none recorded" : "of the " + text(summary["digests"]));
  }
  if (!summary["problems"].empty()) {
    add_lines(out, "odd", summary["problems"]);
  } else {
    add_line(out, "odd", summary.contains("error") ? "see the error" : "nothing");
  }
  return out;
}

}  // namespace rankslice
