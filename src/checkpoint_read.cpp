#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>

#include "checkpoint_manifest.hpp"
#include "checkpoint_parts.hpp"
#include "core/checked.hpp"
#include "format/hf_folder.hpp"
#include "format/shards.hpp"
#include "fresh_source.hpp"
#include "io/file.hpp"
#include "model/family.hpp"

namespace rankslice {

namespace {

namespace fs = std::filesystem;

CheckpointParts read_hf(std::string const& folder, OpenOptions const& options) {
  CheckpointParts parts;
  parts.format = CheckpointFormat::huggingface;
  parts.text_only = options.text_only;
  parts.hf_folder = folder;
  parts.hf = read_hf_folder(folder, parts.warnings, options.threads);
  return parts;
}

/// Whether names were saved as those of the language model alone (rule 43), which they stay.
bool saved_text_only(std::string const& family, std::string const& path, OpenOptions const& options) {
  auto const is_it = is_text_only(family);
  if (options.text_only.value_or(is_it) == is_it) return is_it;
  auto const& asked = find_family(options.family == "auto" ? family : options.family, {}, options.text_only);
  if (is_text_only(asked.name) == is_it) return is_it;  // a family of text models
  throw UsageError(fmt::format("{}: was saved {}, and keeps its names: {} must be asked for when the source is loaded",
                               path, is_it ? "as a text model" : "as a whole model",
                               is_it ? "the whole model" : "--text-only"));
}

CheckpointParts read_store(std::string const& path, OpenOptions const& options) {
  if (options.store == nullptr) {
    throw UsageError(path + ": is a file; this program was built without rankslice::hdf5 and opens folders only");
  }
  if (!options.store->recognises(path)) {
    throw FormatError(path + ": is neither a folder of safetensors files nor a native store (HDF5)", path);
  }
  auto contents = options.store->read(path);
  CheckpointParts parts;
  parts.format = CheckpointFormat::store;
  parts.family = contents.family;
  parts.text_only = saved_text_only(contents.family, path, options);
  parts.hf = std::move(contents.hf);
  auto const identity = open_reader(path)->identity();
  parts.files.push_back({.name = fs::path(path).filename().string(),
                         .path = path,
                         .size = contents.file_size,
                         .modified_ns = identity.modified_ns});
  for (auto const& tensor : contents.tensors) {
    Extent const extent{.file = 0, .bytes = {tensor.offset, tensor.offset + byte_size(tensor.dtype, tensor.shape)}};
    parts.native.push_back(
        {tensor.fqn, tensor.dtype, tensor.shape, Shape(tensor.shape.size(), 0), tensor.shape, extent});
  }
  parts.source_digests = std::move(contents.source);
  parts.stored_digests = std::move(contents.stored);
  return parts;
}

/// A selection is known by what the metadata speaks of; a tensor that got lost must not look like one left out.
void require_announced(SafetensorsHeader const& header, ShardMetadata const& shard, std::string const& path) {
  std::set<std::string_view> found;
  for (auto const& tensor : header.tensors) found.insert(tensor.name);
  for (auto const& [fqn, place] : shard.tensors) {
    if (found.contains(fqn)) continue;
    throw FormatError(fmt::format("{}: {}: missing, though __metadata__ says where it belongs", path, fqn), path, fqn);
  }
}

/// One shard's tensors, appended to `parts`; what its metadata says is returned.
ShardMetadata read_shard(std::string const& folder, int rank, CheckpointParts& parts) {
  auto const name = shard_file_name(rank);
  auto const path = folder + "/" + name;
  auto const reader = open_reader(path);
  auto const identity = reader->identity();
  auto const size = identity.size;
  auto const header = parse_safetensors_header(read_safetensors_header(*reader, path), size, path);
  auto shard = parse_shard_metadata(header.metadata, path);
  if (shard.mesh.rank(shard.coordinate) != rank || shard.mesh.coordinate(rank) != shard.coordinate) {
    throw FormatError(
        fmt::format("{}: __metadata__ says that this is the shard of rank {}", path, shard.mesh.rank(shard.coordinate)),
        path);
  }
  auto const file = static_cast<std::uint32_t>(parts.files.size());
  require_announced(header, shard, path);
  parts.files.push_back({.name = name, .path = path, .size = size, .modified_ns = identity.modified_ns});
  for (auto const& tensor : header.tensors) {
    auto const place = shard.tensors.find(tensor.name);
    if (place == shard.tensors.end()) {
      throw FormatError(fmt::format("{}: {}: __metadata__ does not say where it belongs", path, tensor.name), path,
                        tensor.name);
    }
    parts.native.push_back({tensor.name,
                            tensor.dtype,
                            place->second.global_shape,
                            place->second.offsets,
                            tensor.shape,
                            {file, tensor.bytes},
                            place->second.hf_dtype});
  }
  return shard;
}

CheckpointParts read_store_or_hf(std::string const& path, OpenOptions const& options) {
  std::error_code unreadable;  // told by read_hf
  return fs::is_regular_file(path, unreadable) ? read_store(path, options) : read_hf(path, options);
}

/// The checkpoint that `--source` names.
CheckpointParts read_given_source(std::string const& path, std::string const& folder, OpenOptions const& options) {
  std::error_code unreadable;  // told by those who read it
  if (fs::exists(fs::path(path) / shard_file_name(0), unreadable)) {
    throw UsageError(
        fmt::format("{}: --source {} is a folder of shards itself, without headers or side files; name the "
                    "checkpoint that they were loaded from",
                    folder, path));
  }
  try {
    return read_store_or_hf(path, options);
  } catch (IoError const& error) {
    throw IoError(ExitCode::input_missing, fmt::format("{}: --source cannot be read: {}", folder, error.what()), path);
  }
}

/// The checkpoint that shards were loaded from; nothing when it is gone. A broken one is not: fresh headers instead of
/// its own would hide what happened to it.
std::optional<CheckpointParts> read_recorded_source(ShardMetadata const& shard, std::string const& folder,
                                                    OpenOptions const& options, std::vector<std::string>& warnings) {
  auto const& path = shard.source;
  constexpr auto kAdvice = "name a checkpoint with the same tensors with --source";
  std::optional<CheckpointParts> source;
  if (path.empty()) return source;
  std::error_code unreadable;  // told by those who read it
  if (fs::status(path, unreadable).type() == fs::file_type::not_found) {
    warnings.push_back(fmt::format("{}: the source of these shards, {}, is gone; headers and index will be fresh, {}",
                                   folder, path, kAdvice));
    return source;
  }
  try {
    source = read_store_or_hf(path, options);
  } catch (IoError const& error) {
    throw IoError(error.code,
                  fmt::format("{}: the source of these shards is there, but cannot be read: {}; {}", folder,
                              error.what(), kAdvice),
                  path);
  }
  if (auto const found = fingerprint(source->hf); found != shard.source_fingerprint) {
    throw IoError(ExitCode::input_missing,
                  fmt::format("{}: the source of these shards, {}, has changed: fingerprint {}, expected {}; name it, "
                              "or another checkpoint with the same tensors, with --source to use it all the same",
                              folder, path, found, shard.source_fingerprint),
                  path);
  }
  return source;
}

FreshOptions forms_of(ShardMetadata const& shard, std::string const& path) {
  auto const layout = parse_expert_layout(shard.expert_layout);
  auto const decoder = parse_expert_form(shard.decoder_experts);
  auto const mtp = parse_expert_form(shard.mtp_experts);
  if (!layout || !decoder || !mtp) {
    throw FormatError(
        fmt::format("{}: __metadata__: expert_layout '{}', decoder_experts '{}' or mtp_experts '{}' is not known here",
                    path, shard.expert_layout, shard.decoder_experts, shard.mtp_experts),
        path);
  }
  FreshOptions forms{.expert_layout = *layout, .decoder_experts = *decoder, .mtp_experts = *mtp};
  for (auto const& [fqn, place] : shard.tensors) {
    if (place.hf_dtype) forms.hf_dtypes.emplace(fqn, *place.hf_dtype);
  }
  return forms;
}

/// Where no source tells what is true, a shape could claim experts without end.
void require_held(CheckpointParts const& shards) {
  std::map<std::string_view, std::uint64_t> held;
  for (auto const& part : shards.native) held[part.fqn] += part.extent.bytes.size();
  for (auto const& part : shards.native) {
    auto const claimed = checked_byte_size(part.dtype, part.shape);
    if (claimed && *claimed <= held.at(part.fqn)) continue;
    auto const& path = shards.files[part.extent.file].path;
    throw FormatError(fmt::format("{}: {}: global_shape {} of {} is more than the {} bytes that all shards have of it",
                                  path, part.fqn, to_string(part.shape), name(part.dtype), held.at(part.fqn)),
                      path, part.fqn);
  }
}

/// What to write shards with: headers and side files of their source, or else fresh headers.
void add_source(CheckpointParts& shards, ShardMetadata const& first, std::string const& folder,
                OpenOptions const& options) {
  shards.family = options.family == "auto" ? first.family : options.family;
  shards.text_only = saved_text_only(first.family, folder, options);
  auto source = options.source.empty() ? read_recorded_source(first, folder, options, shards.warnings)
                                       : std::optional(read_given_source(options.source, folder, options));
  if (!source) {
    require_held(shards);
    auto forms = forms_of(first, folder + "/" + shard_file_name(0));
    if (options.expert_layout != ExpertLayout::automatic) forms.expert_layout = options.expert_layout;
    add_fresh_files(shards, forms);
    if (first.headers == HeaderOrigin::selection) shards.hf.headers = first.headers;
    shards.warnings.push_back(folder + ": config.json, tokenizer and other side files are missing from exports");
    return;
  }
  shards.source = options.source.empty() ? first.source : options.source;
  shards.hf = std::move(source->hf);
  shards.hf_folder = std::move(source->hf_folder);
  std::ranges::move(source->warnings, std::back_inserter(shards.warnings));
  if (first.headers != HeaderOrigin::selection) return;
  for (auto const& [fqn, place] : first.tensors) shards.selected.push_back(fqn);
}

CheckpointParts read_shards(std::string const& folder, OpenOptions const& options) {
  CheckpointParts shards;
  shards.format = CheckpointFormat::shards;
  auto const first = read_shard(folder, 0, shards);
  for (int rank = 1; rank < first.mesh.ranks(); ++rank) {
    auto const shard = read_shard(folder, rank, shards);
    if (shard.mesh != first.mesh || shard.source_fingerprint != first.source_fingerprint ||
        shard.fingerprint != first.fingerprint) {
      throw FormatError(fmt::format("{}/{}: belongs to another load than {}: other mesh or source", folder,
                                    shard_file_name(rank), shard_file_name(0)),
                        folder);
    }
  }
  add_source(shards, first, folder, options);
  return shards;
}

}  // namespace

CheckpointParts read_checkpoint_parts(std::string const& path, OpenOptions const& options) {
  std::error_code error;
  auto const status = fs::status(path, error);
  CheckpointParts parts;
  if (status.type() == fs::file_type::not_found) {
    throw IoError(ExitCode::input_missing, path + ": no such file or folder", path);
  }
  if (error) throw IoError(ExitCode::io, fmt::format("{}: {}", path, error.message()), path);
  if (!fs::is_directory(status)) {
    parts = read_store(path, options);
  } else if (fs::exists(fs::path(path) / shard_file_name(0), error)) {
    parts = read_shards(path, options);
  } else {
    parts = read_hf(path, options);
  }
  parts.path = path;
  if (options.family != "auto") parts.family = options.family;
  if (options.expert_layout != ExpertLayout::automatic) parts.expert_layout = options.expert_layout;
  parts.dtype = options.dtype;
  take_manifest(parts, options);
  return parts;
}

}  // namespace rankslice
