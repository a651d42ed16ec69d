#include "format/hdf5_store_writer.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rankslice/error.hpp"

#include "core/fingerprint.hpp"
#include "core/literals.hpp"
#include "format/hdf5_calls.hpp"
#include "format/hdf5_names.hpp"
#include "format/hdf5_seal.hpp"
#include "format/hdf5_store_file.hpp"
#include "format/hdf5_types.hpp"
#include "io/file.hpp"

namespace rankslice {

namespace {

using namespace hdf5;

constexpr std::uint64_t kCopyBytes = 4_MiB;

Subject writing_to(std::string const& path) { return {path, "/", {}, Access::writing}; }

std::string member(char const* group, std::string const& name) { return fmt::format("{}/{}", group, escape(name)); }

/// On stable storage: HDF5 itself never syncs.
void close_synced(UniqueFile& file, Subject const& subject) {
  flush(file, subject);
  close(file, "H5Fclose", subject);
  auto writer = FileWriter::open(subject.path);
  writer.sync();
  writer.close();
}

void create_groups(UniqueFile const& file, Subject const& subject) {
  for (auto const* group : {kStateDictGroup, kDigestGroup, kDigestSourceGroup, kDigestStoredGroup, kSourceGroup,
                            kFilesGroup, kIndexGroup, kSideFilesGroup}) {
    auto created = create_group(file.get(), subject.at(group));
    close(created, "H5Gclose", subject.at(group));
  }
}

std::uint64_t create_parameter(UniqueFile const& file, StoreContents::Tensor const& tensor, Subject const& subject) {
  auto dataset = create_tensor(file.get(), tensor.dtype, tensor.shape, subject);
  auto const offset = offset_of(dataset).value_or(0);
  close(dataset, "H5Dclose", subject);
  return offset;
}

void write_digest(UniqueDataset& dataset, std::vector<std::uint64_t> const& values, Subject const& subject) {
  if (shape_of(dataset, subject) != Shape{values.size()}) {
    refuse(subject,
           fmt::format("expected {} digests, found axes {}", values.size(), to_string(shape_of(dataset, subject))));
  }
  write_entries(dataset, element_type(DType::U64, subject), 0, std::as_bytes(std::span(values)), subject);
  close(dataset, "H5Dclose", subject);
}

void create_digests(UniqueFile const& file, char const* group,
                    std::vector<StoreContents::RecordedDigest> const& digests, Subject const& root) {
  for (auto const& digest : digests) {
    auto const subject = root.at(member(group, digest.hf_key));
    auto dataset = create_tensor(file.get(), DType::U64, {digest.values.size()}, subject);
    write_digest(dataset, digest.values, subject);
  }
}

void rewrite_digests(UniqueFile const& file, char const* group,
                     std::vector<StoreContents::RecordedDigest> const& digests, Subject const& root) {
  for (auto const& digest : digests) {
    auto const subject = root.at(member(group, digest.hf_key));
    auto dataset = open_dataset(file.get(), subject);
    write_digest(dataset, digest.values, subject);
  }
}

/// Bytes that are in memory, with their checksum. The dataset, for further attributes.
UniqueDataset create_bytes(UniqueFile const& file, std::span<std::byte const> bytes, Subject const& subject) {
  auto dataset = create_tensor(file.get(), DType::U8, {bytes.size()}, subject);
  write_entries(dataset, element_type(DType::U8, subject), 0, bytes, subject);
  write_text(dataset.get(), kChecksumAttribute, xxh3_128(bytes), subject);
  return dataset;
}

void create_file_header(UniqueFile const& file, HfFile const& hf_file, Subject const& subject) {
  auto dataset = create_bytes(file, hf_file.header, subject);
  write_number(dataset.get(), kFileSizeAttribute, hf_file.size, subject);
  close(dataset, "H5Dclose", subject);
}

/// Copy a side file from where it lies. Its checksum.
std::string copy_bytes(SideFile const& side, UniqueDataset const& dataset, Subject const& subject) {
  auto const reader = open_reader(side.path);
  auto const type = element_type(DType::U8, subject);
  std::vector<std::byte> buffer(std::min(side.size, kCopyBytes));
  Xxh3Stream checksum;
  for (std::uint64_t done = 0; done < side.size; done += buffer.size()) {
    auto const piece = std::span(buffer).first(std::min(side.size - done, kCopyBytes));
    reader->read(piece, side.offset + done);
    checksum.add(piece);
    write_entries(dataset, type, done, piece, subject);
  }
  return checksum.hex();
}

void create_side_file(UniqueFile const& file, SideFile const& side, Subject const& subject) {
  auto dataset = create_tensor(file.get(), DType::U8, {side.size}, subject);
  auto const checksum = copy_bytes(side, dataset, subject);
  if (!side.checksum.empty() && side.checksum != checksum) {
    throw FormatError(fmt::format("{}: side file {} at byte {}: expected checksum {}, found {}", side.path, side.name,
                                  side.offset, side.checksum, checksum),
                      side.path);
  }
  write_text(dataset.get(), kChecksumAttribute, checksum, subject);
  close(dataset, "H5Dclose", subject);
}

void create_source(UniqueFile const& file, HfLayout const& hf, Subject const& root) {
  for (auto const& hf_file : hf.files) create_file_header(file, hf_file, root.at(member(kFilesGroup, hf_file.name)));
  if (!hf.index_name.empty()) {
    auto const subject = root.at(member(kIndexGroup, hf.index_name));
    auto dataset = create_bytes(file, hf.index, subject);
    close(dataset, "H5Dclose", subject);
  }
  for (auto const& side : hf.side_files) create_side_file(file, side, root.at(member(kSideFilesGroup, side.name)));
}

}  // namespace

StoreLayout create_store(std::string const& path, StoreContents const& contents) {
  QuietErrors const quiet;
  auto const root = writing_to(path);
  auto file = create_file(root);
  write_text(file.get(), kFormatAttribute, kFormatVersion, root);
  write_text(file.get(), kFamilyAttribute, contents.family, root);
  create_groups(file, root);
  StoreLayout layout;
  for (auto const& tensor : contents.tensors) {
    auto const subject = root.at(member(kStateDictGroup, tensor.fqn), tensor.fqn);
    layout.offsets.push_back(create_parameter(file, tensor, subject));
  }
  create_digests(file, kDigestSourceGroup, contents.source, root);
  create_digests(file, kDigestStoredGroup, contents.stored, root);
  create_source(file, contents.hf, root);
  close_synced(file, root);
  layout.file_size = open_reader(path)->identity().size;
  return layout;
}

void write_digests(std::string const& path, std::vector<StoreContents::RecordedDigest> const& source,
                   std::vector<StoreContents::RecordedDigest> const& stored) {
  QuietErrors const quiet;
  auto const root = writing_to(path);
  auto file = open_file(root);
  rewrite_digests(file, kDigestSourceGroup, source, root);
  rewrite_digests(file, kDigestStoredGroup, stored, root);
  close_synced(file, root);
}

void complete_store(std::string const& path) {
  auto const value = seal(StoreFile(path).contents());
  QuietErrors const quiet;
  auto const root = writing_to(path);
  auto file = open_file(root);
  write_text(file.get(), kCompleteAttribute, value, root);
  close_synced(file, root);
}

}  // namespace rankslice
