#include "format/hdf5_store_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "rankslice/error.hpp"

#include "core/fingerprint.hpp"
#include "format/hdf5_names.hpp"
#include "format/hdf5_superblock.hpp"

namespace rankslice::hdf5 {

namespace {

/// No header, index, digest or config.json is larger; a file that says so would only exhaust the memory.
constexpr std::uint64_t kMaxBytesInMemory = std::uint64_t{256} << 20;

/// Contiguous storage has no filters.
void refuse_movable_storage(UniqueDataset const& dataset, Subject const& subject) {
  auto const properties = creation_properties(dataset, subject);
  if (H5Pget_layout(properties.get()) != H5D_CONTIGUOUS) {
    refuse(subject, "expected contiguous storage, found chunked, compact or virtual storage");
  }
  if (checked(H5Pget_external_count(properties.get()), "H5Pget_external_count", subject) != 0) {
    refuse(subject, "expected storage in this file, found an external file");
  }
}

/// The first byte of a dataset, all of whose bytes are in the file.
std::uint64_t place_of(UniqueDataset const& dataset, std::uint64_t bytes, std::uint64_t file_size,
                       Subject const& subject) {
  if (bytes == 0) return 0;
  auto const offset = offset_of(dataset);
  if (!offset || stored_bytes(dataset) != bytes) {
    refuse(subject, fmt::format("expected {} bytes of storage, found {}", bytes, offset ? stored_bytes(dataset) : 0));
  }
  if (*offset > file_size || bytes > file_size - *offset) {
    refuse(subject, fmt::format("{} bytes at byte {} end beyond the file of {} bytes", bytes, *offset, file_size));
  }
  return *offset;
}

}  // namespace

StoreFile::StoreFile(std::string const& path)
    : root_{path, "/", {}, Access::reading}, reader_(open_reader(path)), size_(reader_->identity().size) {
  check_superblock(*reader_, size_);
  file_ = open_file(root_);
  auto const version = read_text(file_.get(), kFormatAttribute, root_);
  if (version != kFormatVersion) {
    refuse(root_, fmt::format("expected {} '{}', found '{}'", kFormatAttribute, kFormatVersion, version));
  }
}

std::optional<std::string> StoreFile::seal() const {
  if (!has_attribute(file_.get(), kCompleteAttribute, root_)) return std::nullopt;
  return read_text(file_.get(), kCompleteAttribute, root_);
}

HeaderOrigin StoreFile::read_headers() const {
  if (!has_attribute(file_.get(), kHeadersAttribute, root_)) return HeaderOrigin::source;
  auto const text = read_text(file_.get(), kHeadersAttribute, root_);
  auto const origin = parse_header_origin(text);
  if (!origin) refuse(root_, fmt::format("attribute '{}': '{}' is not known here", kHeadersAttribute, text));
  return *origin;
}

StoreContents StoreFile::contents() {
  StoreContents contents;
  contents.family = read_text(file_.get(), kFamilyAttribute, root_);
  contents.hf.headers = read_headers();
  contents.file_size = size_;
  read_tensors(contents);
  contents.source = read_digests(kDigestSourceGroup);
  contents.stored = read_digests(kDigestStoredGroup);
  read_source(contents);
  refuse_overlaps();
  return contents;
}

StoreFile::Member StoreFile::open_member(char const* group, Link const& link) const {
  auto const object = fmt::format("{}/{}", group, link.name);
  auto const name = unescape(link.name);
  if (!name) refuse(root_.at(object), "is not the escaped form of any name");
  auto const subject = root_.at(object, std::string_view(group) == kStateDictGroup ? *name : "");
  if (!link.hard) refuse(subject, "expected a dataset, found a soft or external link");
  Member member{*name, open_dataset(file_.get(), subject), {}, 0, subject};
  refuse_movable_storage(member.dataset, subject);
  member.form = tensor_form(member.dataset, subject);
  member.offset = place_of(member.dataset, member.form.bytes, size_, subject);
  return member;
}

std::vector<StoreFile::Member> StoreFile::members(char const* group) {
  auto const subject = root_.at(group);
  std::vector<Member> found;
  for (auto const& link : links(open_group(file_.get(), subject), subject)) {
    found.push_back(open_member(group, link));
    auto const& member = found.back();
    if (member.form.bytes > 0) {
      places_.emplace_back(Range{member.offset, member.offset + member.form.bytes}, member.subject);
    }
  }
  std::ranges::sort(found, {}, &Member::name);
  return found;
}

std::vector<StoreFile::Member> StoreFile::byte_members(char const* group) {
  auto found = members(group);
  for (auto const& member : found) {
    if (member.form.dtype != DType::U8 || member.form.shape.size() != 1) {
      refuse(member.subject, fmt::format("expected U8 with one axis, found {} {}", name(member.form.dtype),
                                         to_string(member.form.shape)));
    }
  }
  return found;
}

void StoreFile::read_tensors(StoreContents& contents) {
  for (auto const& member : members(kStateDictGroup)) {
    contents.tensors.push_back({member.name, member.form.dtype, member.form.shape, member.offset});
  }
}

std::vector<StoreFile::Member> StoreFile::digest_members(char const* group) {
  auto found = members(group);
  for (auto const& member : found) {
    auto const& form = member.form;
    if (form.dtype != DType::U64 || form.shape.size() != 1 || form.bytes == 0) {
      refuse(member.subject,
             fmt::format("expected U64 [1 + entries], found {} {}", name(form.dtype), to_string(form.shape)));
    }
  }
  return found;
}

std::vector<StoreContents::RecordedDigest> StoreFile::read_digests(char const* group) {
  std::vector<StoreContents::RecordedDigest> digests;
  for (auto const& member : digest_members(group)) {
    auto const bytes = read_bytes(member);
    std::vector<std::uint64_t> values(member.form.shape[0]);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    digests.push_back({member.name, std::move(values)});
  }
  return digests;
}

void StoreFile::read_source(StoreContents& contents) {
  auto& hf = contents.hf;
  for (auto const& member : byte_members(kFilesGroup)) {
    auto const size = read_number(member.dataset.get(), kFileSizeAttribute, member.subject);
    hf.files.push_back({member.name, size, read_checked_bytes(member)});
  }
  for (auto const& member : byte_members(kIndexGroup)) {
    if (!hf.index_name.empty()) refuse(member.subject, "expected at most one index, found a second one");
    hf.index_name = member.name;
    hf.index = read_checked_bytes(member);
  }
  for (auto const& member : byte_members(kSideFilesGroup)) {
    auto const checksum = read_text(member.dataset.get(), kChecksumAttribute, member.subject);
    hf.side_files.push_back({member.name, member.form.bytes, root_.path, member.offset, checksum});
    if (member.name == "config.json") hf.config = read_checked_bytes(member);
  }
}

std::vector<std::byte> StoreFile::read_bytes(Member const& member) {
  auto const size = member.form.bytes;
  if (size > kMaxBytesInMemory) {
    refuse(member.subject, fmt::format("expected at most {} bytes, found {}", kMaxBytesInMemory, size));
  }
  std::vector<std::byte> bytes(size);
  reader_->read(bytes, member.offset);
  return bytes;
}

std::vector<std::byte> StoreFile::read_checked_bytes(Member const& member) {
  auto const expected = read_text(member.dataset.get(), kChecksumAttribute, member.subject);
  auto bytes = read_bytes(member);
  if (auto const found = xxh3_128(bytes); found != expected) {
    refuse(member.subject, fmt::format("{} bytes at byte {}: expected checksum {}, found {}", bytes.size(),
                                       member.offset, expected, found));
  }
  return bytes;
}

void StoreFile::refuse_overlaps() {
  std::ranges::sort(places_, {}, &std::pair<Range, Subject>::first);
  for (std::size_t i = 1; i < places_.size(); ++i) {
    auto const& [before, other] = places_[i - 1];
    auto const& [range, subject] = places_[i];
    if (range.begin < before.end) {
      refuse(subject,
             fmt::format("begins at byte {}, inside {}, which ends at byte {}", range.begin, other.object, before.end));
    }
  }
}

}  // namespace rankslice::hdf5
