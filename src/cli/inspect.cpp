#include <fmt/format.h>

#include <map>
#include <set>

#include "cli/commands.hpp"
#include "cli/listing.hpp"

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
  }
  return "";
}

struct Totals {
  std::uint64_t count = 0;
  std::uint64_t bytes = 0;
};

/// What a person asks first, in the order in which it is printed.
Json summarize(Checkpoint const& checkpoint) {
  std::map<std::string, Totals> dtypes;
  Totals all, stacked, converted;
  std::set<std::string> shapes;
  std::uint64_t experts = 0;
  for (auto const& tensor : checkpoint.model.tensors) {
    auto const& parameter = checkpoint.model.parameters[tensor.parameter];
    auto const bytes = byte_size(tensor.dtype, tensor.shape);
    for (auto* const totals :
         {&all, &dtypes[std::string(name(tensor.dtype))], parameter.stacked_experts ? &stacked : nullptr,
          parameter.converted() ? &converted : nullptr}) {
      if (totals == nullptr) continue;
      ++totals->count;
      totals->bytes += bytes;
    }
    if (!parameter.stacked_experts) continue;
    experts = parameter.part_count();
    auto const last = tensor.key.rfind('.') + 1;
    shapes.insert(fmt::format("{} {}", tensor.key.substr(last), to_string(tensor.shape)));
  }
  auto dtypes_json = Json::object();
  for (auto const& [dtype, totals] : dtypes) dtypes_json[dtype] = {{"tensors", totals.count}, {"bytes", totals.bytes}};
  return {{"schema", "rankslice.inspect/1"},
          {"path", checkpoint.path},
          {"format", format_name(checkpoint.format)},
          {"family", checkpoint.family},
          {"files", checkpoint.storage.files.size()},
          {"tensors", all.count},
          {"bytes", all.bytes},
          {"dtypes", dtypes_json},
          {"experts",
           {{"count", experts},
            {"layout", "grouped"},
            {"tensors", stacked.count},
            {"bytes", stacked.bytes},
            {"shapes", shapes}}},
          {"converted_on_load", converted.count},
          {"side_files", checkpoint.hf.side_files.size()},
          {"left_out", checkpoint.hf.left_out},
          {"fingerprint", checkpoint.fingerprint},
          {"problems", checkpoint.warnings}};
}

std::string joined(Json const& list, std::string const& separator) {
  std::string text;
  for (auto const& item : list) text += (text.empty() ? "" : separator) + item.get<std::string>();
  return text;
}

void print(Json const& summary) {
  auto const line = [](std::string_view label, std::string const& text) {
    print_data(fmt::format("{:<12}{}\n", label, text));
  };
  auto const number = [](Json const& value) { return value.get<std::uint64_t>(); };
  line("path", summary["path"]);
  line("format",
       fmt::format("{}, {}", summary["format"].get<std::string>(), counted(number(summary["files"]), "file")));
  line("family", summary["family"]);
  line("tensors", fmt::format("{}, {} ({} bytes)", number(summary["tensors"]), human_bytes(number(summary["bytes"])),
                              number(summary["bytes"])));
  for (auto const& [dtype, totals] : summary["dtypes"].items()) {
    line("  " + dtype, fmt::format("{}, {}", number(totals["tensors"]), human_bytes(number(totals["bytes"]))));
  }
  auto const& experts = summary["experts"];
  line("experts", fmt::format("{} in each of {} stacked tensors, {} ({:.1f} % of all bytes)", number(experts["count"]),
                              number(experts["tensors"]), human_bytes(number(experts["bytes"])),
                              100.0 * static_cast<double>(number(experts["bytes"])) /
                                  static_cast<double>(std::max<std::uint64_t>(1, number(summary["bytes"])))));
  line("  shapes", joined(experts["shapes"], ", "));
  if (auto const converted = number(summary["converted_on_load"]); converted > 0) {
    line("converted",
         fmt::format("{} to F32 on load, as training needs; exported as they were", counted(converted, "tensor")));
  }
  line("side files", std::to_string(number(summary["side_files"])));
  if (!summary["left_out"].empty()) line("left out", joined(summary["left_out"], ", "));
  line("problems", summary["problems"].empty() ? "none" : joined(summary["problems"], "\n            "));
}

}  // namespace

void inspect(Job& job) {
  auto const checkpoint = open_checkpoint(job.options.input, job.world, job.open_options());
  auto const summary = summarize(*checkpoint);
  job.listed = true;
  if (job.options.json) {
    print_data(summary.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  } else {
    print(summary);
  }
}

}  // namespace rankslice::cli
