#include "export_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string_view>
#include <unordered_set>

#include "rankslice/error.hpp"

#include "checkpoint_parts.hpp"
#include "model/converted_config.hpp"
#include "model/converted_model.hpp"
#include "plan/segments.hpp"

namespace rankslice {

namespace {

Model model_of_target(Checkpoint const& source, ExportOptions const& options, bool& converted) {
  if (options.layout == ExportLayout::source) {
    if (source.format == CheckpointFormat::shards && source.hf.headers == HeaderOrigin::state) {
      throw UsageError(fmt::format(
          "{}: the source of these shards is gone, and with it its layout; name it with --source", source.path));
    }
    if (options.gdn_dtype == GdnDtype::preserve) return source.model;
    throw UsageError("an export in the layout of its source has the source's dtypes: gdn_dtype cannot be upstream");
  }
  auto const as_upstream = options.gdn_dtype == GdnDtype::upstream;
  auto model = make_converted_model(find_family(source.family, {}), source.model,
                                    as_upstream ? Fp32HeldDtype::f32 : Fp32HeldDtype::of_source);
  converted = model.has_value();
  return converted ? *std::move(model) : source.model;
}

/// What config.json says of dtypes is said of the new ones.
void edit_config(HfLayout& hf, DType dtype) {
  auto const config = std::ranges::find(hf.side_files, "config.json", &SideFile::name);
  if (config == hf.side_files.end()) return;
  hf.config = convert_config(hf.config, dtype);
  SideFile edited;
  edited.name = config->name;
  edited.size = hf.config.size();
  *config = std::move(edited);
}

HfTarget converted_files(Checkpoint const& source, Model const& model, std::vector<bool> const& taken,
                         std::uint64_t max_file_bytes) {
  auto files = make_fresh_target(source, model, taken, max_file_bytes);
  files.hf.headers = HeaderOrigin::converted;
  auto const dtype = converted_dtype(find_family(source.family, {}), source.model);
  if (dtype) edit_config(files.hf, *dtype);
  return files;
}

/// The fingerprint of what `from` has of the tensors of a model.
std::string fingerprint_of(Model const& model, Checkpoint const& from) {
  std::unordered_set<std::string_view> keys;
  for (auto const& tensor : model.tensors) keys.insert(tensor.key);
  std::vector<bool> taken;
  for (auto const& tensor : from.model.tensors) taken.push_back(keys.contains(tensor.key));
  return fingerprint(make_target(from, taken).hf);
}

}  // namespace

ExportTarget make_export_target(Checkpoint const& source, ExportOptions const& options) {
  ExportTarget target;
  target.model = model_of_target(source, options, target.converted);
  target.taken = taken_tensors(target.model, options.keys);
  target.files = target.converted ? converted_files(source, target.model, target.taken, options.max_file_bytes)
                                  : make_target(source, target.taken, options.max_file_bytes);
  return target;
}

bool has_copies(ExportTarget const& target) {
  return !target.converted && !std::ranges::all_of(target.model.parameters, &Parameter::invertible);
}

Checkpoint const& copied_from(Checkpoint const& source, ExportOptions const& options) {
  auto const& from = options.source ? *options.source : source;
  if (from.format != CheckpointFormat::huggingface) {
    throw UsageError(
        fmt::format("{}: has no weights in the layout of its source; name the Hugging Face checkpoint that "
                    "they were loaded from with --source",
                    from.path));
  }
  auto const found = fingerprint_of(source.model, from);
  if (found == source.fingerprint) return from;
  throw IoError(
      ExitCode::input_missing,
      fmt::format("{}: fingerprint {} is not that of the source of {}, {}: its weights are not the ones to copy",
                  from.path, found, source.path, source.fingerprint),
      from.path);
}

ExportSlices plan_export(ExportTarget const& target, Holdings const& holdings, int rank,
                         std::vector<PlannedSlice> const& units) {
  auto const& model = target.model;
  ExportSlices slices{.computed = make_save_plan(model, holdings, rank, units), .compared = {}, .copied = {}};
  if (!has_copies(target)) return slices;
  auto const is_copied = [&](PlannedSlice const& planned) { return !model.parameters[planned.parameter].invertible(); };
  std::ranges::copy_if(slices.computed, std::back_inserter(slices.compared), is_copied);
  std::erase_if(slices.computed, is_copied);
  Holdings const all_rows{.mesh = make_mesh(holdings.mesh.ranks())};
  std::ranges::copy_if(make_save_plan(model, all_rows, rank, units), std::back_inserter(slices.copied), is_copied);
  return slices;
}

std::vector<bool> tensors_to_read(ExportTarget const& target, Model const& model) {
  std::vector<std::vector<std::uint8_t>> taken;  // by parameter and expert
  for (auto const& parameter : model.parameters) {
    taken.emplace_back(parameter.stacked_experts ? parameter.part_count() : 1, std::uint8_t{0});
  }
  auto const experts_of = [&](HfTensor const& tensor) {
    return std::span(taken[tensor.parameter]).subspan(tensor.experts.begin, tensor.experts.size());
  };
  for (std::size_t i = 0; i < target.taken.size(); ++i) {
    if (target.taken[i]) std::ranges::fill(experts_of(target.model.tensors[i]), std::uint8_t{1});
  }
  std::vector<bool> read;
  for (auto const& tensor : model.tensors) read.push_back(std::ranges::count(experts_of(tensor), 1) != 0);
  return read;
}

}  // namespace rankslice
