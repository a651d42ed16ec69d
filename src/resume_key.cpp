#include "resume_key.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "checkpoint_parts.hpp"
#include "core/fingerprint.hpp"
#include "core/literals.hpp"
#include "io/file.hpp"

namespace rankslice {

namespace {

constexpr std::string_view kExportFormat = "to-hf/1";
constexpr std::string_view kStoreFormat = "store/1";

constexpr std::uint64_t kSampleBytes = 64_KiB;

/// From the first to the last byte of tensors in each file of a storage.
std::vector<Range> tensor_bytes(Storage const& storage) {
  std::vector<Range> all(storage.files.size());
  auto const add = [&](Extent const& extent) {
    auto& range = all[extent.file];
    range = range.empty() ? extent.bytes
                          : Range{std::min(range.begin, extent.bytes.begin), std::max(range.end, extent.bytes.end)};
  };
  for (auto const& piece : storage.pieces) {
    add(piece.extent);
    if (piece.scales) add(*piece.scales);
  }
  return all;
}

/// Of the first and the last bytes of a range: times of change are no proof, some file systems know one for all files.
std::string sample(std::string const& path, Range const& range) {
  auto const reader = open_reader(path);
  std::vector<std::byte> bytes(std::min(range.size(), kSampleBytes));
  Xxh3Stream checksum;
  for (auto const at : {range.begin, range.end - bytes.size()}) {
    reader->read(bytes, at);
    checksum.add(bytes);
  }
  return checksum.hex();
}

/// What decides the bytes of an output, one after the other.
class KeyText {
 public:
  explicit KeyText(std::string_view format) { add(format); }

  void add(std::string_view text) { text_ += fmt::format("{} {}\n", text.size(), text); }

  /// Under which names, in which dtypes and layouts a checkpoint has its values.
  void add_model(Model const& model) {
    for (auto const& parameter : model.parameters) {
      add(fmt::format("{} {} {} {} {}", parameter.fqn, name(parameter.hf_dtype), name(parameter.dtype),
                      static_cast<int>(parameter.layout), to_string(parameter.shape)));
      for (auto const tensor : parameter.tensors) add(model.tensors[tensor].key);
    }
  }

  /// Everything of a Hugging Face checkpoint but its values.
  void add_files(HfLayout const& hf) {
    add(fingerprint(hf));
    add(xxh3_128(hf.config));
    for (auto const& side : hf.side_files) {
      add(fmt::format("{} {} {} {}", side.name, side.size, side.checksum, side.modified_ns));
    }
  }

  /// Values that stand in files: as far as can be told without reading them all.
  void add_storage(Storage const& storage) {
    add(fmt::format("form {}", static_cast<int>(storage.form)));
    auto const ranges = tensor_bytes(storage);
    for (std::size_t i = 0; i < storage.files.size(); ++i) {
      auto const& file = storage.files[i];
      add(fmt::format("{} {} {}", file.name, file.size, file.modified_ns));
      if (!ranges[i].empty()) add(sample(file.path, ranges[i]));
    }
  }

  void add_values(Digests const& digests) {
    for (auto const* const table : {&digests.source, &digests.stored}) add(xxh3_128(std::as_bytes(table->values())));
  }

  [[nodiscard]] std::string key() const { return xxh3_128(std::as_bytes(std::span(text_))).substr(0, 16); }

 private:
  std::string text_;
};

KeyText key_of_export(ExportTarget const& target, std::optional<Storage> const& originals) {
  KeyText text(kExportFormat);
  text.add_files(target.files.hf);
  text.add_model(target.model);
  if (originals) text.add_storage(*originals);
  return text;
}

}  // namespace

std::string resume_key(Checkpoint const& source, ExportTarget const& target, std::optional<Storage> const& originals) {
  auto text = key_of_export(target, originals);
  text.add(source.fingerprint);
  text.add_model(source.model);
  text.add_storage(source.storage);
  return text.key();
}

std::string resume_key(Digests const& held, ExportTarget const& target, std::optional<Storage> const& originals) {
  auto text = key_of_export(target, originals);
  text.add_values(held);
  return text.key();
}

std::string shared_key(Communicator& world, std::function<std::string()> const& key) {
  std::vector<std::byte> bytes;
  std::string shared;
  on_every_rank(world, [&] {
    if (world.rank() != 0) return;
    auto const text = key();
    bytes.resize(text.size());
    std::memcpy(bytes.data(), text.data(), text.size());
  });
  broadcast_vector(world, bytes, 0);
  on_every_rank(world, [&] { shared.assign(reinterpret_cast<char const*>(bytes.data()), bytes.size()); });
  return shared;
}

std::string resume_key(Digests const& held, Checkpoint const& source) {
  KeyText text(kStoreFormat);
  text.add(source.family);
  text.add_files(source.hf);
  text.add_model(source.model);
  text.add_values(held);
  return text.key();
}

}  // namespace rankslice
