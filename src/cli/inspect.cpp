#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "cli/commands.hpp"
#include "cli/listing.hpp"
#include "model/family.hpp"
#include "plan/plan.hpp"

namespace rankslice::cli {

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

  void add(HfTensor const& tensor) {
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
    auto const split = parameter.tensors.size() > 1;
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

/// What is no error, and still not as one would expect it.
std::vector<std::string> oddities(Checkpoint const& checkpoint) {
  auto odd = checkpoint.warnings;
  auto const& hf = checkpoint.hf;
  if (hf.config.empty()) odd.emplace_back("no config.json: sizes are taken from the tensors alone");
  if (hf.index_name.empty() && hf.files.size() > 1) {
    odd.push_back(fmt::format("no index: nothing but their names says that the {} files are all", hf.files.size()));
  }
  auto const unaligned =
      std::ranges::count_if(hf.files, [](HfFile const& file) { return file.header.size() % 8 != 0; });
  if (unaligned > 0) {
    odd.push_back(fmt::format("in {} of {} the tensor data begin at an address that is no multiple of 8", unaligned,
                              counted(hf.files.size(), "file")));
  }
  auto const empty = std::ranges::count_if(checkpoint.model.tensors,
                                           [](HfTensor const& tensor) { return element_count(tensor.shape) == 0; });
  if (empty > 0) odd.push_back(counted(static_cast<std::uint64_t>(empty), "tensor") + " without any element");
  return odd;
}

/// What a person asks first, in the order in which it is printed.
Json summarize(Checkpoint const& checkpoint) {
  std::map<std::string, Totals> dtypes;
  Totals all, stacked, converted;
  std::uint64_t experts = 0;
  for (auto const& tensor : checkpoint.model.tensors) {
    auto const& parameter = checkpoint.model.parameters[tensor.parameter];
    all.add(tensor);
    dtypes[std::string(name(tensor.dtype))].add(tensor);
    if (parameter.converted()) converted.add(tensor);
    if (!parameter.stacked_experts) continue;
    stacked.add(tensor);
    experts = parameter.part_count();
  }
  auto dtypes_json = Json::object();
  for (auto const& [dtype, totals] : dtypes) dtypes_json[dtype] = {{"tensors", totals.count}, {"bytes", totals.bytes}};
  return {{"schema", "rankslice.inspect/1"},
          {"path", checkpoint.path},
          {"format", format_name(checkpoint.format)},
          {"family", checkpoint.family},
          {"prefix", find_prefix(find_family(checkpoint.family, {}).keys, checkpoint.model.tensors)},
          {"files", checkpoint.storage.files.size()},
          {"tensors", all.count},
          {"bytes", all.bytes},
          {"dtypes", dtypes_json},
          {"experts",
           {{"count", experts},
            {"tensors", stacked.count},
            {"bytes", stacked.bytes},
            {"groups", summarize_experts(checkpoint)}}},
          {"converted_on_load", converted.count},
          {"load", summarize_load(checkpoint, experts)},
          {"side_files", checkpoint.hf.side_files.size()},
          {"left_out", checkpoint.hf.left_out},
          {"fingerprint", checkpoint.fingerprint},
          {"problems", oddities(checkpoint)}};
}

std::uint64_t number(Json const& value) { return value.get<std::uint64_t>(); }

std::string text(Json const& value) { return value.get<std::string>(); }

std::string joined(Json const& list, std::string const& separator) {
  return fmt::format("{}", fmt::join(list.get<std::vector<std::string>>(), separator));
}

void print_line(std::string_view label, std::string const& content) {
  print_data(fmt::format("{:<12}{}\n", label, content));
}

void print_experts(Json const& experts, std::uint64_t all_bytes) {
  print_line("experts",
             fmt::format("{} a layer, {} in {} ({:.1f} % of all bytes)", number(experts["count"]),
                         human_bytes(number(experts["bytes"])), counted(number(experts["tensors"]), "tensor"),
                         100.0 * static_cast<double>(number(experts["bytes"])) /
                             static_cast<double>(std::max<std::uint64_t>(1, all_bytes))));
  for (auto const& group : experts["groups"]) {
    print_line("", fmt::format("{}, {}, {} {}: {}", text(group["layers_of"]), counted(number(group["layers"]), "layer"),
                               text(group["layout"]), text(group["dtype"]), text(group["stored"])));
    print_line("", fmt::format("  loaded as {} {}, {}", text(group["parameter"]), text(group["shape"]),
                               text(group["on_load"])));
  }
}

void print(Json const& summary) {
  print_line("path", text(summary["path"]));
  print_line("format", fmt::format("{}, {}", text(summary["format"]), counted(number(summary["files"]), "file")));
  print_line("family", text(summary["family"]));
  print_line("prefix", text(summary["prefix"]).empty() ? "none" : text(summary["prefix"]));
  print_line("tensors", fmt::format("{}, {} ({} bytes)", number(summary["tensors"]),
                                    human_bytes(number(summary["bytes"])), number(summary["bytes"])));
  for (auto const& [dtype, totals] : summary["dtypes"].items()) {
    print_line("  " + dtype, fmt::format("{}, {}", number(totals["tensors"]), human_bytes(number(totals["bytes"]))));
  }
  print_experts(summary["experts"], number(summary["bytes"]));
  if (auto const converted = number(summary["converted_on_load"]); converted > 0) {
    print_line("converted", fmt::format("{} to F32 on load, as training needs; exported as they were",
                                        counted(converted, "tensor")));
  }
  std::string_view label = "load";
  for (auto const& width : summary["load"]) {
    print_line(label, fmt::format("--ep {:<4} {:>4} on a rank, which reads {} and holds {}", number(width["ep"]),
                                  counted(number(width["experts"]), "expert"), human_bytes(number(width["bytes_read"])),
                                  human_bytes(number(width["bytes_owned"]))));
    label = "";
  }
  print_line("side files", std::to_string(number(summary["side_files"])));
  if (!summary["left_out"].empty()) print_line("left out", joined(summary["left_out"], ", "));
  print_line("odd", summary["problems"].empty() ? "nothing" : joined(summary["problems"], "\n            "));
}

}  // namespace

void inspect(Job& job) {
  auto const checkpoint = select_tensors(open_checkpoint(job.options.input, job.world, job.open_options()), job.keys());
  auto const summary = summarize(*checkpoint);
  job.listed = true;
  if (job.options.json) {
    print_data(summary.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  } else {
    print(summary);
  }
}

}  // namespace rankslice::cli
