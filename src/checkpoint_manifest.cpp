#include "checkpoint_manifest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

#include "rankslice/manifest.hpp"

#include "core/fingerprint.hpp"
#include "format/hf_folder.hpp"
#include "io/file.hpp"

namespace rankslice {

namespace {

namespace fs = std::filesystem;

/// A manifest of other files, or of these before they were changed.
class NoMatch : public FormatError {
 public:
  using FormatError::FormatError;
};

/// What is not as the manifest has it.
struct Difference {
  std::string file;
  std::string what;
};

Manifest::File describe(HfFile const& file) {
  return {.name = file.name, .size = file.size, .header = xxh3_128(file.header)};
}

std::optional<Difference> difference(Manifest::File const& recorded, HfFile const& file) {
  auto const found = describe(file);
  if (recorded.size != found.size) {
    return Difference{file.name, fmt::format("expected {} bytes, found {}", recorded.size, found.size)};
  }
  if (recorded.header != found.header) {
    return Difference{file.name,
                      fmt::format("expected a header with XXH3-128 {}, found {}", recorded.header, found.header)};
  }
  return std::nullopt;
}

/// The first file that is not as the manifest has it.
std::optional<Difference> first_difference(Manifest const& manifest, HfLayout const& hf) {
  std::map<std::string_view, Manifest::File const*> recorded;
  for (auto const& file : manifest.files) recorded.emplace(file.name, &file);
  for (auto const& file : hf.files) {
    auto const found = recorded.find(file.name);
    if (found == recorded.end()) return Difference{file.name, "is not in the manifest"};
    if (auto const differs = difference(*found->second, file)) return differs;
    recorded.erase(found);
  }
  if (!recorded.empty()) {
    return Difference{std::string(recorded.begin()->first), "is in the manifest, but none of the checkpoint's files"};
  }
  auto const index = hf.index_name.empty() ? std::string() : xxh3_128(hf.index);
  if (manifest.index_name == hf.index_name && manifest.index == index) return std::nullopt;
  auto const index_text = [](std::string const& name, std::string const& hash) {
    return name.empty() ? std::string("no index") : fmt::format("{} with XXH3-128 {}", name, hash);
  };
  return Difference{hf.index_name.empty() ? manifest.index_name : hf.index_name,
                    fmt::format("expected {}, found {}", index_text(manifest.index_name, manifest.index),
                                index_text(hf.index_name, index))};
}

/// The tensors of matching headers are known: a manifest that has others contradicts itself.
void require_tensors(Manifest const& manifest, TensorCatalog const& catalog, std::string const& path) {
  std::map<std::string_view, CatalogTensor const*> by_key;
  for (auto const& tensor : catalog.tensors) by_key.emplace(tensor.name, &tensor);
  for (auto const& tensor : manifest.tensors) {
    auto const found = by_key.find(tensor.key);
    auto const fail = [&](std::string const& problem) {
      throw FormatError(fmt::format("{}: {}: {}", path, tensor.key, problem), path, tensor.key);
    };
    if (found == by_key.end()) fail("is no tensor of the files that the manifest lists");
    auto const& [name_of, dtype, shape, extent] = *found->second;
    if (tensor.dtype != dtype || tensor.shape != shape) {
      fail(fmt::format("expected {} {} as in {}, found {} {}", name(dtype), to_string(shape),
                       catalog.files[extent.file].name, name(tensor.dtype), to_string(tensor.shape)));
    }
    by_key.erase(found);
  }
  if (by_key.empty()) return;
  std::string const key(by_key.begin()->first);
  throw FormatError(fmt::format("{}: {}: no digest is recorded, though the manifest lists its file", path, key), path,
                    key);
}

Manifest read_manifest(std::string const& path) {
  auto const bytes = read_file(path, kMaxManifestBytes);
  return parse_manifest({reinterpret_cast<char const*>(bytes.data()), bytes.size()}, path);
}

/// The manifest at `path`, if it is one of the files of `parts`.
Manifest read_matching_manifest(std::string const& path, CheckpointParts const& parts) {
  auto manifest = read_manifest(path);
  if (auto const differs = first_difference(manifest, parts.hf)) {
    throw NoMatch(fmt::format("{}: does not match {}: {}: {}", path, parts.path, differs->file, differs->what),
                  differs->file);
  }
  std::vector<std::string> no_concern;  // told by who assembles the checkpoint
  require_tensors(manifest, make_catalog(parts.hf, parts.hf_folder, no_concern), path);
  return manifest;
}

/// The same of one that nobody asked for: nothing when it is not of these files, or for another version of rankslice.
std::optional<Manifest> read_default_manifest(std::string const& path, CheckpointParts& parts) {
  auto const is_not_used = [&](Error const& error) {
    parts.warnings.push_back(fmt::format("{}; it is not used, nothing is compared with it", error.what()));
  };
  try {
    return read_matching_manifest(path, parts);
  } catch (NoMatch const& error) {
    is_not_used(error);
  } catch (OtherManifestVersion const& error) {
    is_not_used(error);
  } catch (FormatError const& error) {
    if (error.file != path) throw;  // what is wrong with the checkpoint
    throw FormatError(fmt::format("{}; remove it, or let verify --write-manifest --overwrite replace it", error.what()),
                      error.file, error.tensor);
  }
  return std::nullopt;
}

}  // namespace

Manifest make_manifest(Checkpoint const& checkpoint, DigestTable const& digests) {
  Manifest manifest;
  manifest.created_by = fmt::format("rankslice {}", RANKSLICE_VERSION);
  auto const& hf = checkpoint.hf;
  std::ranges::transform(hf.files, std::back_inserter(manifest.files), describe);
  manifest.index_name = hf.index_name;
  if (!hf.index_name.empty()) manifest.index = xxh3_128(hf.index);
  auto const& tensors = checkpoint.model.tensors;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    auto const& tensor = tensors[i];
    Manifest::Tensor entry{
        .key = tensor.key, .dtype = tensor.dtype, .shape = tensor.shape, .digests = {digests.sum(i)}};
    if (tensor.shape.size() >= 3) {
      auto const entries = digests.of(i);
      entry.digests.insert(entry.digests.end(), entries.begin(), entries.end());
    }
    manifest.tensors.push_back(std::move(entry));
  }
  std::ranges::sort(manifest.tensors, {}, &Manifest::Tensor::key);
  return manifest;
}

void take_manifest(CheckpointParts& parts, OpenOptions const& options) {
  if (parts.format != CheckpointFormat::huggingface) {
    if (options.manifest.empty()) return;
    throw UsageError(fmt::format("--manifest {}: is for folders of safetensors files, and {} is none", options.manifest,
                                 parts.path));
  }
  if (options.without_manifest) return;
  auto const asked_for = !options.manifest.empty();
  auto const path = asked_for ? options.manifest : (fs::path(parts.path) / kManifestName).string();
  std::error_code unreadable;  // told by who reads it
  if (!asked_for && fs::symlink_status(path, unreadable).type() == fs::file_type::not_found) return;
  auto const manifest =
      asked_for ? std::optional(read_matching_manifest(path, parts)) : read_default_manifest(path, parts);
  if (!manifest) return;
  for (auto const& tensor : manifest->tensors) {
    parts.source_digests.push_back({.hf_key = tensor.key, .values = tensor.digests});
  }
}

}  // namespace rankslice
