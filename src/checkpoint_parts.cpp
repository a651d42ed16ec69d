#include "checkpoint_parts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/fingerprint.hpp"
#include "core/slice_at.hpp"
#include "format/hf_folder.hpp"
#include "hf_target.hpp"
#include "model/expert_layout.hpp"
#include "model/map_tensors.hpp"
#include "plan/plan.hpp"
#include "select.hpp"

namespace rankslice {

namespace {

[[noreturn]] void fail(std::string const& path, std::string const& tensor, std::string const& what) {
  throw FormatError(fmt::format("{}: {}: {}", path, tensor, what), path, tensor);
}

/// What a stored native tensor holds of a parameter.
Slice held_slice(CheckpointParts::Native const& tensor, Parameter const& parameter, std::string const& path) {
  auto const& global = parameter.shape;
  if (tensor.dtype != parameter.dtype || tensor.shape != global) {
    fail(path, tensor.fqn,
         fmt::format("expected {} {}, found {} {}", name(parameter.dtype), to_string(global), name(tensor.dtype),
                     to_string(tensor.shape)));
  }
  auto const slice = slice_at(parameter, tensor.offsets, tensor.local);
  if (!slice) {
    fail(path, tensor.fqn,
         fmt::format("{} at {} is no slice of {}", to_string(tensor.local), to_string(tensor.offsets),
                     to_string(global)));
  }
  return *slice;
}

/// Shards of a rank that is missing, or is there twice under two names, must not look like a whole. Of slices that
/// overlap, those that are the same are copies, which can be compared; of others some would be lost without a word.
void require_tiling(Storage const& storage, Model const& model, std::string const& path) {
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    try {
      (void)locate(storage, model, {.parameter = i, .slice = parameter.whole()});
    } catch (PlanError const& error) {
      fail(path, parameter.fqn, error.what());
    }
    std::uint64_t distinct = 0;
    Slice last;
    for (auto const& piece : std::ranges::equal_range(storage.pieces, i, {}, &StoredPiece::parameter)) {
      if (piece.slice != last) distinct += piece.slice.size();
      last = piece.slice;
    }
    if (distinct != parameter.whole().size()) fail(path, parameter.fqn, "slices in several files overlap");
  }
}

/// Tensors in the native form: of a store, or of a folder of shards.
Storage native_storage(CheckpointParts const& parts, Model const& model) {
  std::map<std::string_view, std::uint32_t> by_fqn;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) by_fqn.emplace(model.parameters[i].fqn, i);
  Storage storage{.form = Form::native, .files = parts.files, .pieces = {}};
  std::set<std::uint32_t> seen;
  for (auto const& tensor : parts.native) {
    auto const& path = parts.files[tensor.extent.file].path;
    auto const found = by_fqn.find(tensor.fqn);
    if (found == by_fqn.end()) fail(path, tensor.fqn, "is no tensor of the source checkpoint");
    auto const& parameter = model.parameters[found->second];
    auto const slice = held_slice(tensor, parameter, path);
    auto const expected = parameter.bytes(slice, Form::native);
    if (tensor.extent.bytes.size() != expected) {
      fail(path, tensor.fqn, fmt::format("expected {} bytes, found {}", expected, tensor.extent.bytes.size()));
    }
    storage.pieces.push_back({.parameter = found->second, .tensor = 0, .slice = slice, .extent = tensor.extent});
    seen.insert(found->second);
  }
  for (auto const& [fqn, index] : by_fqn) {
    if (!seen.contains(index)) fail(parts.path, std::string(fqn), "missing");
  }
  std::ranges::sort(storage.pieces, {}, [](StoredPiece const& piece) {
    return std::tuple(piece.parameter, piece.slice, piece.extent.file);
  });
  require_tiling(storage, model, parts.path);
  return storage;
}

/// How grouped experts lie: as asked for, or as those that are stored in the native form prove.
ExpertLayout find_layout(CheckpointParts const& parts, Family const& family, TensorCatalog const& catalog) {
  if (parts.expert_layout != ExpertLayout::automatic) return parts.expert_layout;
  std::map<std::string_view, Shape> native;
  for (auto const& tensor : parts.native) native.emplace(tensor.fqn, tensor.shape);
  return find_expert_layout(family, catalog, native);
}

Storage find_storage(CheckpointParts const& parts, Checkpoint const& checkpoint) {
  if (parts.format == CheckpointFormat::state) return {.form = Form::native, .files = {}, .pieces = {}};
  if (parts.format != CheckpointFormat::huggingface) return native_storage(parts, checkpoint.model);
  return {
      .form = Form::hf, .files = checkpoint.catalog.files, .pieces = hf_pieces(checkpoint.catalog, checkpoint.model)};
}

bool is_float(DType dtype) { return dtype == DType::BF16 || dtype == DType::F16 || dtype == DType::F32; }

/// Whether a parameter can have been converted to `dtype` when it was loaded.
bool can_become(Parameter const& parameter, DType dtype) {
  return is_float(dtype) && (is_float(parameter.hf_dtype) || parameter.scale_bytes != 0);
}

/// What loading can have made of all parameters that training does not keep in F32.
struct Conversion {
  std::optional<DType> dtype;   // nothing: each has its own
  bool only_quantised = false;  // all others have their own

  [[nodiscard]] DType of(Parameter const& parameter) const {
    return !dtype || (only_quantised && parameter.scale_bytes == 0) ? parameter.dtype : *dtype;
  }
};

struct HeldParameter {
  Parameter* parameter = nullptr;
  DType dtype = DType::BF16;
};

/// The one that fits most of what is held: whatever does not fit then is the exception, and is refused by its name.
/// Without a config.json nobody knows what a quantised weight was to become.
Conversion find_conversion(std::vector<HeldParameter> const& held, bool without_config) {
  std::vector<Conversion> conversions(1);
  for (auto const dtype : {DType::BF16, DType::F16, DType::F32}) {
    conversions.push_back({dtype});
    if (without_config) conversions.push_back({dtype, true});
  }
  return *std::ranges::max_element(conversions, {}, [&](Conversion const& conversion) {
    return std::ranges::count_if(held, [&](auto const& it) { return conversion.of(*it.parameter) == it.dtype; });
  });
}

/// What is stored in the native form has the dtype that it was loaded in, if it says that it was converted. And what a
/// state without a source held in the dtype of its file was not converted, whatever training needs.
void take_native_dtypes(Model& model, CheckpointParts const& parts, KeyTable const& table) {
  std::map<std::string_view, CheckpointParts::Native const*> by_fqn;
  for (auto const& tensor : parts.native) by_fqn.emplace(tensor.fqn, &tensor);
  std::set<std::string_view> converted;
  for (auto const& digest : parts.stored_digests) converted.insert(digest.hf_key);
  auto const fresh = parts.hf.headers != HeaderOrigin::source;
  std::vector<HeldParameter> held, says_so;
  for (auto& parameter : model.parameters) {
    auto const found = by_fqn.find(parameter.fqn);
    if (found == by_fqn.end()) continue;
    auto const& [fqn, native] = *found;
    auto const& key = model.key_of(parameter);
    auto const is_said = native->hf_dtype == parameter.hf_dtype || converted.contains(key);
    auto const as_in_file = native->dtype == parameter.hf_dtype;
    if (is_fp32_held(table, key)) {
      if (as_in_file && (fresh || is_said)) parameter.dtype = native->dtype;
    } else if (fresh && as_in_file) {
      parameter.dtype = native->dtype;
    } else if (can_become(parameter, native->dtype)) {
      held.push_back({&parameter, native->dtype});
      if (is_said) says_so.push_back(held.back());
    }
  }
  auto const conversion = find_conversion(held, parts.hf.config.empty());
  for (auto const& [parameter, dtype] : says_so) parameter->dtype = conversion.of(*parameter);
}

/// `--dtype` is for what is still to be converted.
void require_native_dtype(Model const& model, CheckpointParts const& parts, KeyTable const& table) {
  if (!parts.dtype) return;
  for (auto const& parameter : model.parameters) {
    auto const& key = model.key_of(parameter);
    if (!is_float(parameter.dtype) || parameter.dtype == *parts.dtype || is_fp32_held(table, key)) continue;
    throw UsageError(fmt::format("{}: --dtype {}: {} is stored as {}; only Hugging Face checkpoints are converted",
                                 parts.path, name(*parts.dtype), parameter.fqn, name(parameter.dtype)));
  }
}

using RecordedDigests = std::vector<StoreContents::RecordedDigest>;

std::map<std::string_view, std::vector<std::uint64_t> const*> by_key(RecordedDigests const& recorded) {
  std::map<std::string_view, std::vector<std::uint64_t> const*> values;
  for (auto const& digest : recorded) values.emplace(digest.hf_key, &digest.values);
  return values;
}

/// Take what is recorded of the tensors that are `wanted`, all of it.
void take_digests(RecordedDigests const& recorded, Model const& model, std::string const& path,
                  std::vector<bool> const& wanted, DigestTable& table) {
  auto const values_of = by_key(recorded);
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (!wanted[i]) continue;
    auto const& tensor = model.tensors[i];
    auto const found = values_of.find(tensor.key);
    if (found == values_of.end()) fail(path, tensor.key, "no digest is recorded");
    auto const entries = table.of(i);
    auto const& values = *found->second;
    auto const listed = tensor.shape.size() >= 3;  // [sum, d(0), d(1), …], else [sum]
    if (values.size() != (listed ? entries.size() + 1 : 1)) {
      fail(path, tensor.key, fmt::format("{} digest values recorded for {}", values.size(), entries.size()));
    }
    std::copy(values.begin() + (listed ? 1 : 0), values.end(), entries.begin());
    if (table.sum(i) != values.front()) fail(path, tensor.key, "the recorded digests do not add up");
  }
}

/// A store has digests of everything; of codes and their scales those of all or, when they were not known, of none.
Digests recorded_digests(CheckpointParts const& parts, Model const& model) {
  Digests digests(model);
  auto const known = by_key(parts.source_digests);
  auto const is_invertible = [&](HfTensor const& tensor) { return model.parameters[tensor.parameter].invertible(); };
  auto const is_code = [&](HfTensor const& tensor) { return !is_invertible(tensor); };
  auto const is_known = [&](HfTensor const& tensor) { return is_code(tensor) && known.contains(tensor.key); };
  digests.without_codes = std::ranges::any_of(model.tensors, is_code) && std::ranges::none_of(model.tensors, is_known);
  std::vector<bool> of_source, of_values;
  for (auto const& tensor : model.tensors) {
    of_source.push_back(is_invertible(tensor) || !digests.without_codes);
    of_values.push_back(model.parameters[tensor.parameter].converted() && !tensor.is_scales);
  }
  take_digests(parts.source_digests, model, parts.path, of_source, digests.source);
  take_digests(parts.stored_digests, model, parts.path, of_values, digests.stored);
  return digests;
}

/// A manifest has digests of every tensor as the files have it.
Digests manifest_digests(CheckpointParts const& parts, Model const& model) {
  Digests digests(model);
  digests.without_values = true;
  std::vector<bool> const all(model.tensors.size(), true);
  take_digests(parts.source_digests, model, parts.path, all, digests.source);
  return digests;
}

/// Which tensors make up the parameters that were selected, and belong to the part of the model that is asked for.
std::vector<bool> tensors_of(CheckpointParts const& parts, KeyTable const& table, Model const& model) {
  std::set<std::string_view> const fqns(parts.selected.begin(), parts.selected.end());
  std::vector<bool> taken;
  for (auto const& tensor : model.tensors) {
    auto const selected = fqns.empty() || fqns.contains(model.parameters[tensor.parameter].fqn);
    taken.push_back(selected && !is_left_out(table, tensor.key));
  }
  return taken;
}

}  // namespace

std::string fingerprint(HfLayout const& layout) {
  Xxh3Stream hash;
  auto const add = [&hash](std::string const& text) { hash.add(std::as_bytes(std::span(text))); };
  for (auto const& file : layout.files) {
    add(fmt::format("{}\n{}\n{}\n", file.name, file.size, file.header.size()));
    hash.add(file.header);
  }
  add(fmt::format("{}\n{}\n", layout.index_name, layout.index.size()));
  hash.add(layout.index);
  return hash.hex();
}

Checkpoint assemble(CheckpointParts parts) {
  require_harmless_names(parts.hf, parts.path);
  Checkpoint checkpoint;
  auto config = parts.hf.config.empty() ? ModelConfig{} : parse_model_config(parts.hf.config);
  config.partial = parts.hf.headers == HeaderOrigin::selection;
  config.modelopt_file = std::ranges::count(parts.hf.side_files, "hf_quant_config.json", &SideFile::name) != 0;
  auto const& family = find_family(parts.family, config, parts.text_only);
  checkpoint.catalog = make_catalog(parts.hf, parts.hf_folder, parts.warnings, parts.threads);
  if (checkpoint.catalog.tensors.empty()) {
    throw FormatError(fmt::format("{}: there are no tensors in it", parts.path), parts.path);
  }
  std::vector<std::string> of_fresh_tensors;  // which were never meant to fit anything but themselves
  auto& warnings = parts.hf.headers == HeaderOrigin::state ? of_fresh_tensors : parts.warnings;
  auto const layout = find_layout(parts, family, checkpoint.catalog);
  checkpoint.model =
      map_tensors(family, checkpoint.catalog, config, {.expert_layout = layout, .dtype = parts.dtype}, warnings);
  if (!parts.native.empty()) {
    take_native_dtypes(checkpoint.model, parts, family.keys);
    require_native_dtype(checkpoint.model, parts, family.keys);
  }
  checkpoint.hf = std::move(parts.hf);
  checkpoint.fingerprint = checkpoint.source_fingerprint = fingerprint(checkpoint.hf);
  // What is left out of files that are read stays in them; what was stored is what had been taken.
  auto const in_source = parts.format == CheckpointFormat::huggingface;
  if (in_source) checkpoint.storage = find_storage(parts, checkpoint);
  auto const taken = tensors_of(parts, family.keys, checkpoint.model);
  if (std::ranges::find(taken, false) != taken.end()) checkpoint = keep_tensors(checkpoint, taken);
  auto const& model = checkpoint.model;
  if (!in_source) checkpoint.storage = find_storage(parts, checkpoint);
  if (parts.format == CheckpointFormat::store) {
    checkpoint.digests = recorded_digests(parts, model);
    checkpoint.digests_from = "store";
  } else if (!parts.source_digests.empty()) {
    checkpoint.digests = manifest_digests(parts, model);
    checkpoint.digests_from = "manifest";
  }
  checkpoint.format = parts.format;
  checkpoint.family = family.name;
  auto const elsewhere = parts.format == CheckpointFormat::shards || parts.format == CheckpointFormat::state;
  checkpoint.source = elsewhere ? std::move(parts.source) : parts.path;
  checkpoint.path = std::move(parts.path);
  checkpoint.warnings = std::move(parts.warnings);
  return checkpoint;
}

}  // namespace rankslice
