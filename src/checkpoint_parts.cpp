#include "checkpoint_parts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/fingerprint.hpp"
#include "format/hf_folder.hpp"
#include "format/hf_index.hpp"
#include "model/family.hpp"

namespace rankslice {

namespace {

void fail(std::string const& path, std::string const& tensor, std::string const& what) {
  throw FormatError(fmt::format("{}: {}: {}", path, tensor, what), path, tensor);
}

/// The tensors of the HF files themselves.
Storage hf_storage(TensorCatalog const& catalog, std::vector<Parameter> const& parameters) {
  Storage storage{.form = Form::hf, .files = catalog.files, .pieces = {}};
  for (std::uint32_t i = 0; i < parameters.size(); ++i) {
    storage.pieces.push_back({i, {0, parameters[i].part_count()}, catalog.tensors[i].extent});
  }
  return storage;
}

/// The part of a parameter that a stored native tensor holds, in the units of `Parameter::part_count`.
Range held_part(CheckpointParts::Native const& tensor, Parameter const& parameter, std::string const& path) {
  if (tensor.dtype != parameter.dtype || tensor.shape != parameter.shape) {
    fail(path, tensor.fqn,
         fmt::format("expected {} {}, found {} {}", name(parameter.dtype), to_string(parameter.shape),
                     name(tensor.dtype), to_string(tensor.shape)));
  }
  Range const axis{tensor.first, tensor.first + tensor.count};
  auto const whole = parameter.shape.empty() ? 1 : parameter.shape[0];
  if (axis.end < axis.begin || axis.end > whole) {
    fail(path, tensor.fqn, fmt::format("rows [{}, {}) of {}", axis.begin, axis.end, whole));
  }
  if (parameter.stacked_experts) return axis;
  if (axis.size() != whole) fail(path, tensor.fqn, "only part of a tensor that is not sharded");
  return {0, parameter.part_count()};
}

/// Shards of a rank that is missing, or is there twice under two names, must not look like a whole.
void require_tiling(CheckpointParts const& parts, std::vector<StoredPiece> const& pieces,
                    std::vector<Parameter> const& parameters) {
  auto piece = pieces.begin();
  for (std::uint32_t i = 0; i < parameters.size(); ++i) {
    std::uint64_t covered = 0;
    for (; piece != pieces.end() && piece->parameter == i; ++piece) {
      if (piece->part.begin > covered) break;
      covered = std::max(covered, piece->part.end);
    }
    if (covered < parameters[i].part_count()) {
      fail(parts.path, parameters[i].fqn,
           fmt::format("expected {} {}, found none from {} on", parameters[i].part_count(),
                       parameters[i].stacked_experts ? "experts" : "elements", covered));
    }
  }
}

/// Tensors in the native form: of a store, or of a folder of shards.
Storage native_storage(CheckpointParts const& parts, std::vector<Parameter> const& parameters) {
  std::map<std::string_view, std::uint32_t> by_fqn;
  for (std::uint32_t i = 0; i < parameters.size(); ++i) by_fqn.emplace(parameters[i].fqn, i);
  Storage storage{.form = Form::native, .files = parts.files, .pieces = {}};
  std::set<std::uint32_t> seen;
  for (auto const& tensor : parts.native) {
    auto const& path = parts.files[tensor.extent.file].path;
    auto const found = by_fqn.find(tensor.fqn);
    if (found == by_fqn.end()) fail(path, tensor.fqn, "is no tensor of the source checkpoint");
    auto const part = held_part(tensor, parameters[found->second], path);
    auto const expected = part.size() * parameters[found->second].part_bytes(Form::native);
    if (tensor.extent.bytes.size() != expected) {
      fail(path, tensor.fqn, fmt::format("expected {} bytes, found {}", expected, tensor.extent.bytes.size()));
    }
    storage.pieces.push_back({found->second, part, tensor.extent});
    seen.insert(found->second);
  }
  for (auto const& [fqn, index] : by_fqn) {
    if (!seen.contains(index)) fail(parts.path, std::string(fqn), "missing");
  }
  std::ranges::sort(storage.pieces, {}, [](StoredPiece const& piece) {
    return std::tuple(piece.parameter, piece.part.begin, piece.extent.file);
  });
  require_tiling(parts, storage.pieces, parameters);
  return storage;
}

void take_digests(std::vector<StoreContents::RecordedDigest> const& recorded, std::vector<Parameter> const& parameters,
                  std::string const& path, bool converted_only, DigestTable& table) {
  std::map<std::string_view, std::vector<std::uint64_t> const*> by_key;
  for (auto const& digest : recorded) by_key.emplace(digest.hf_key, &digest.values);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (converted_only && !parameters[i].converted()) continue;
    auto const found = by_key.find(parameters[i].hf_key);
    auto const entries = table.of(i);
    if (found == by_key.end()) fail(path, parameters[i].hf_key, "no digest is recorded");
    auto const& values = *found->second;
    auto const listed = parameters[i].hf_shape.size() >= 3;  // [sum, d(0), d(1), …], else [sum]
    if (values.size() != (listed ? entries.size() + 1 : 1)) {
      fail(path, parameters[i].hf_key, fmt::format("{} digest values recorded for {}", values.size(), entries.size()));
    }
    std::copy(values.begin() + (listed ? 1 : 0), values.end(), entries.begin());
    if (table.sum(i) != values.front()) fail(path, parameters[i].hf_key, "the recorded digests do not add up");
  }
}

/// A table that does not lead back would send a tensor to a wrong name on export.
void check_way_back(Family const& family, std::vector<Parameter> const& parameters, std::string_view prefix) {
  for (auto const& parameter : parameters) {
    auto const back = family.to_hf(parameter.fqn);
    auto const again = family.from_hf(back.name, prefix);
    if (again.name != parameter.fqn || back.layout != parameter.layout) {
      throw FormatError(
          fmt::format("{}: becomes {}, which leads back to {}", parameter.hf_key, parameter.fqn, back.name), {},
          parameter.hf_key);
    }
  }
}

/// Names become paths below an output folder: a store or index made by somebody else must not lead out of it.
void require_harmless_names(HfLayout const& layout, std::string const& path) {
  std::set<std::string_view> names;
  auto const require = [&](std::string const& file, std::string_view fault) {
    if (fault.empty() && !names.insert(file).second) fault = "there are two files of this name";
    if (!fault.empty())
      throw FormatError(fmt::format("{}: the file name '{}' is refused: {}", path, file, fault), path);
  };
  auto const top_level_fault = [](std::string_view name) -> std::string_view {
    auto const forbidden = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '/'; };
    if (name.empty() || name == "." || name == "..") return "it is no file name";
    return std::ranges::any_of(name, forbidden) ? "it contains a slash or a control character" : "";
  };
  for (auto const& file : layout.files) require(file.name, fault_of_shard_name(file.name));
  for (auto const& side : layout.side_files) require(side.name, top_level_fault(side.name));
  if (!layout.index_name.empty()) require(layout.index_name, top_level_fault(layout.index_name));
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
  auto const config = parts.hf.config.empty() ? ModelConfig{} : parse_model_config(parts.hf.config);
  auto const& family = find_family(parts.family, config);
  checkpoint.catalog = make_catalog(parts.hf, parts.hf_folder, parts.warnings);
  checkpoint.parameters = map_parameters(family, checkpoint.catalog, config);
  check_way_back(family, checkpoint.parameters, family.prefix(checkpoint.catalog.tensors));
  checkpoint.storage = parts.native.empty() ? hf_storage(checkpoint.catalog, checkpoint.parameters)
                                            : native_storage(parts, checkpoint.parameters);
  if (parts.format == CheckpointFormat::store) {
    auto& digests = checkpoint.digests.emplace();
    digests.source = DigestTable(checkpoint.parameters);
    digests.stored = DigestTable(checkpoint.parameters);
    take_digests(parts.source_digests, checkpoint.parameters, parts.path, false, digests.source);
    take_digests(parts.stored_digests, checkpoint.parameters, parts.path, true, digests.stored);
  }
  checkpoint.format = parts.format;
  checkpoint.family = family.name();
  checkpoint.fingerprint = fingerprint(parts.hf);
  checkpoint.source = parts.format == CheckpointFormat::shards ? std::move(parts.source) : parts.path;
  checkpoint.path = std::move(parts.path);
  checkpoint.hf = std::move(parts.hf);
  checkpoint.warnings = std::move(parts.warnings);
  return checkpoint;
}

}  // namespace rankslice
