#include "resume_key.hpp"

#include <fmt/format.h>

#include <string_view>

#include "checkpoint_parts.hpp"
#include "core/fingerprint.hpp"

namespace rankslice {

namespace {

constexpr std::string_view kExportFormat = "to-hf/1";
constexpr std::string_view kStoreFormat = "store/1";

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

  /// Values that stand in files: nobody else has written to them.
  void add_storage(Storage const& storage) {
    add(fmt::format("form {}", static_cast<int>(storage.form)));
    for (auto const& file : storage.files) add(fmt::format("{} {} {}", file.name, file.size, file.modified_ns));
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

std::string resume_key(Digests const& held, Checkpoint const& source) {
  KeyText text(kStoreFormat);
  text.add(source.family);
  text.add_files(source.hf);
  text.add_model(source.model);
  text.add_values(held);
  return text.key();
}

}  // namespace rankslice
