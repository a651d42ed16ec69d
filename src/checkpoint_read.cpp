#include <fmt/format.h>

#include <filesystem>
#include <set>

#include "checkpoint_parts.hpp"
#include "format/hf_folder.hpp"
#include "format/shards.hpp"
#include "io/file.hpp"

namespace rankslice {

namespace {

namespace fs = std::filesystem;

CheckpointParts read_hf(std::string const& folder) {
  CheckpointParts parts;
  parts.format = CheckpointFormat::huggingface;
  parts.hf_folder = folder;
  parts.hf = read_hf_folder(folder, parts.warnings);
  return parts;
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
                            {file, tensor.bytes}});
  }
  return shard;
}

/// The checkpoint that shards were loaded from, or the one that is to stand in for it.
CheckpointParts read_source(ShardMetadata const& shard, std::string const& folder, OpenOptions const& options) {
  auto const given = !options.source.empty();
  auto const& path = given ? options.source : shard.source;
  auto const advice = "; name a checkpoint with the same tensors with --source";
  CheckpointParts source;
  try {
    std::error_code unreadable;  // told by read_hf
    source = fs::is_regular_file(path, unreadable) ? read_store(path, options) : read_hf(path);
  } catch (IoError const& error) {
    throw IoError(
        ExitCode::input_missing,
        fmt::format("{}: the source of these shards cannot be read: {}{}", folder, error.what(), given ? "" : advice),
        path);
  }
  if (auto const found = fingerprint(source.hf); !given && found != shard.source_fingerprint) {
    throw IoError(ExitCode::input_missing,
                  fmt::format("{}: the source of these shards, {}, has changed: fingerprint {}, expected {}{}", folder,
                              path, found, shard.source_fingerprint, advice),
                  path);
  }
  source.source = path;
  return source;
}

CheckpointParts read_shards(std::string const& folder, OpenOptions const& options) {
  CheckpointParts shards;
  auto const first = read_shard(folder, 0, shards);
  auto const source = read_source(first, folder, options);
  shards.format = CheckpointFormat::shards;
  shards.family = first.family;
  shards.source = source.source;
  shards.hf = source.hf;
  shards.hf_folder = source.hf_folder;
  if (first.fingerprint != first.source_fingerprint) {
    for (auto const& [fqn, place] : first.tensors) shards.selected.push_back(fqn);
  }
  shards.warnings = source.warnings;
  for (int rank = 1; rank < first.mesh.ranks(); ++rank) {
    auto const shard = read_shard(folder, rank, shards);
    if (shard.mesh != first.mesh || shard.source_fingerprint != first.source_fingerprint ||
        shard.fingerprint != first.fingerprint) {
      throw FormatError(fmt::format("{}/{}: belongs to another load than {}: other mesh or source", folder,
                                    shard_file_name(rank), shard_file_name(0)),
                        folder);
    }
  }
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
    parts = read_hf(path);
  }
  parts.path = path;
  if (options.family != "auto") parts.family = options.family;
  return parts;
}

}  // namespace rankslice
