#include "format/hdf5_seal.hpp"

#include "core/fingerprint.hpp"

namespace rankslice::hdf5 {

namespace {

/// Feeds fields to the checksum; text and lists behind their length, so that no two sequences of fields look alike.
class Fields {
 public:
  void add(std::uint64_t number) { checksum_.add(std::as_bytes(std::span(&number, 1))); }
  void add(std::span<std::byte const> bytes) {
    add(std::uint64_t{bytes.size()});
    checksum_.add(bytes);
  }
  void add(std::string_view text) { add(std::as_bytes(std::span(text))); }
  void add(std::vector<std::uint64_t> const& numbers) { add(std::as_bytes(std::span(numbers))); }
  [[nodiscard]] std::string digest() const { return checksum_.hex(); }

 private:
  Xxh3Stream checksum_;
};

void add(Fields& fields, std::vector<StoreContents::Tensor> const& tensors) {
  fields.add(std::uint64_t{tensors.size()});
  for (auto const& tensor : tensors) {
    fields.add(std::string_view(tensor.fqn));
    fields.add(name(tensor.dtype));
    fields.add(tensor.shape);
    fields.add(tensor.offset);
  }
}

void add(Fields& fields, std::vector<StoreContents::RecordedDigest> const& digests) {
  fields.add(std::uint64_t{digests.size()});
  for (auto const& digest : digests) {
    fields.add(std::string_view(digest.hf_key));
    fields.add(digest.values);
  }
}

void add(Fields& fields, HfLayout const& hf) {
  if (hf.headers != HeaderOrigin::source) fields.add(rankslice::name(hf.headers));
  fields.add(std::uint64_t{hf.files.size()});
  for (auto const& file : hf.files) {
    fields.add(std::string_view(file.name));
    fields.add(file.size);
    fields.add(std::span(file.header));
  }
  fields.add(std::string_view(hf.index_name));
  fields.add(std::span(hf.index));
  fields.add(std::uint64_t{hf.side_files.size()});
  for (auto const& side : hf.side_files) {
    fields.add(std::string_view(side.name));
    fields.add(side.size);
    fields.add(side.offset);
    fields.add(std::string_view(side.checksum));
  }
}

}  // namespace

std::string seal(StoreContents const& contents) {
  Fields fields;
  fields.add(std::string_view(contents.family));
  add(fields, contents.tensors);
  add(fields, contents.hf);
  add(fields, contents.source);
  add(fields, contents.stored);
  return fields.digest();
}

}  // namespace rankslice::hdf5
