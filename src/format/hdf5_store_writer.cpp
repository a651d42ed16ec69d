#include "format/hdf5_store_writer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "rankslice/error.hpp"

#include "core/fingerprint.hpp"
#include "core/literals.hpp"
#include "format/hdf5_calls.hpp"
#include "format/hdf5_memory_file.hpp"
#include "format/hdf5_names.hpp"
#include "format/hdf5_seal.hpp"
#include "format/hdf5_store_file.hpp"
#include "format/hdf5_types.hpp"
#include "io/file.hpp"

namespace rankslice {

namespace {

using namespace hdf5;

constexpr std::uint64_t kCopyBytes = 4_MiB;

/// Read a side file in bounded pieces, each with its place in the file. The checksum of what was read.
template <typename Sink>
std::string read_pieces(SideFile const& side, Sink&& sink) {
  auto const reader = open_reader(side.path);
  std::vector<std::byte> buffer(std::min(side.size, kCopyBytes));
  Xxh3Stream checksum;
  for (std::uint64_t done = 0; done < side.size; done += buffer.size()) {
    auto const piece = std::span(buffer).first(std::min(side.size - done, kCopyBytes));
    reader->read(piece, side.offset + done);
    checksum.add(piece);
    sink(piece, done);
  }
  return checksum.hex();
}

void check_checksum(SideFile const& side, std::string const& found) {
  if (side.checksum.empty() || side.checksum == found) return;
  throw FormatError(fmt::format("{}: side file {} at byte {}: expected checksum {}, found {}", side.path, side.name,
                                side.offset, side.checksum, found),
                    side.path);
}

/// A store in the making: in memory, but for the bytes of side files, which are copied last.
class NewStore {
 public:
  explicit NewStore(std::string const& path)
      : root_{path, "/", {}, Access::writing},
        disk_(FileWriter::create(path)),
        memory_bytes_(FileWriter::open(memory_.path())),
        file_(create_file(memory_.descriptor(), root_)) {
    write_text(file_.get(), kFormatAttribute, kFormatVersion, root_);
    for (auto const* group : {kStateDictGroup, kDigestGroup, kDigestSourceGroup, kDigestStoredGroup, kSourceGroup,
                              kFilesGroup, kIndexGroup, kSideFilesGroup}) {
      auto const created = create_group(file_.get(), root_.at(group));
    }
  }

  void add_family(std::string const& family) { write_text(file_.get(), kFamilyAttribute, family, root_); }
  /// The offset of its first byte.
  [[nodiscard]] std::uint64_t add_tensor(StoreContents::Tensor const& tensor);
  void add_digests(char const* group, std::vector<StoreContents::RecordedDigest> const& digests);
  void add_source(HfLayout const& hf);
  /// The size of the file, which is on stable storage.
  [[nodiscard]] std::uint64_t finish();

 private:
  [[nodiscard]] Subject member(char const* group, std::string const& name) const {
    return root_.at(fmt::format("{}/{}", group, escape(name)), group == kStateDictGroup ? name : "");
  }
  /// A dataset of bytes that are in memory, with their checksum.
  UniqueDataset add_bytes(std::span<std::byte const> bytes, Subject const& subject);
  void add_side_file(SideFile side);

  QuietErrors quiet_;
  Subject root_;
  FileWriter disk_;
  MemoryFile memory_;
  FileWriter memory_bytes_;
  UniqueFile file_;
  std::vector<std::pair<std::uint64_t, SideFile>> to_copy_;  ///< Behind the offsets where they belong.
};

std::uint64_t NewStore::add_tensor(StoreContents::Tensor const& tensor) {
  auto const subject = member(kStateDictGroup, tensor.fqn);
  return offset_of(create_tensor(file_.get(), tensor.dtype, tensor.shape, subject)).value_or(0);
}

void NewStore::add_digests(char const* group, std::vector<StoreContents::RecordedDigest> const& digests) {
  for (auto const& digest : digests) {
    auto const subject = member(group, digest.hf_key);
    auto const dataset = create_tensor(file_.get(), DType::U64, {digest.values.size()}, subject);
    memory_bytes_.write(std::as_bytes(std::span(digest.values)), offset_of(dataset).value_or(0));
  }
}

UniqueDataset NewStore::add_bytes(std::span<std::byte const> bytes, Subject const& subject) {
  auto dataset = create_tensor(file_.get(), DType::U8, {bytes.size()}, subject);
  memory_bytes_.write(bytes, offset_of(dataset).value_or(0));
  write_text(dataset.get(), kChecksumAttribute, xxh3_128(bytes), subject);
  return dataset;
}

void NewStore::add_side_file(SideFile side) {
  auto const subject = member(kSideFilesGroup, side.name);
  auto const dataset = create_tensor(file_.get(), DType::U8, {side.size}, subject);
  auto const checksum = read_pieces(side, [](auto, auto) {});
  check_checksum(side, checksum);
  write_text(dataset.get(), kChecksumAttribute, checksum, subject);
  side.checksum = checksum;
  to_copy_.emplace_back(offset_of(dataset).value_or(0), std::move(side));
}

void NewStore::add_source(HfLayout const& hf) {
  if (hf.headers != HeaderOrigin::source) {
    write_text(file_.get(), kHeadersAttribute, std::string(rankslice::name(hf.headers)), root_);
  }
  for (auto const& file : hf.files) {
    auto const subject = member(kFilesGroup, file.name);
    auto const dataset = add_bytes(file.header, subject);
    write_number(dataset.get(), kFileSizeAttribute, file.size, subject);
  }
  if (!hf.index_name.empty()) add_bytes(hf.index, member(kIndexGroup, hf.index_name));
  for (auto const& side : hf.side_files) add_side_file(side);
}

std::uint64_t NewStore::finish() {
  close(file_, "H5Fclose", root_);
  auto const size = memory_.size();
  disk_.allocate(size);
  memory_.copy_to(disk_);
  for (auto const& [offset, side] : to_copy_) {
    auto const begin = offset;
    check_checksum(side, read_pieces(side, [&](auto piece, auto at) { disk_.write(piece, begin + at); }));
  }
  disk_.sync();
  disk_.close();
  return size;
}

auto in_order(std::vector<StoreContents::Tensor> tensors) {
  std::ranges::sort(tensors, {}, &StoreContents::Tensor::fqn);
  return tensors;
}

/// But for what `create_store` decides: offsets and sizes.
bool are_same(StoreContents const& a, StoreContents const& b) {
  auto const same_tensor = [](StoreContents::Tensor const& x, StoreContents::Tensor const& y) {
    return x.fqn == y.fqn && x.dtype == y.dtype && x.shape == y.shape;
  };
  auto const same_file = [](HfFile const& x, HfFile const& y) {
    return x.name == y.name && x.size == y.size && x.header == y.header;
  };
  auto const same_side_file = [](SideFile const& x, SideFile const& y) { return x.name == y.name && x.size == y.size; };
  return a.family == b.family && std::ranges::equal(in_order(a.tensors), in_order(b.tensors), same_tensor) &&
         a.source == b.source && a.stored == b.stored && a.hf.headers == b.hf.headers &&
         std::ranges::equal(a.hf.files, b.hf.files, same_file) && a.hf.index_name == b.hf.index_name &&
         a.hf.index == b.hf.index && a.hf.config == b.hf.config &&
         std::ranges::equal(a.hf.side_files, b.hf.side_files, same_side_file);
}

/// Those that were copied are whole, and those that they were copied from still the same.
void check_side_files(HfLayout const& copied, HfLayout const& from) {
  for (std::size_t i = 0; i < copied.side_files.size(); ++i) {
    auto expected = from.side_files[i];
    expected.checksum = copied.side_files[i].checksum;
    for (auto const& side : {copied.side_files[i], expected})
      check_checksum(side, read_pieces(side, [](auto, auto) {}));
  }
}

/// HDF5 never does.
void sync_store(std::string const& path) {
  auto disk = FileWriter::open(path);
  disk.sync();
  disk.close();
}

}  // namespace

StoreLayout create_store(std::string const& path, StoreContents const& contents) {
  NewStore store(path);
  StoreLayout layout;
  store.add_family(contents.family);
  for (auto const& tensor : contents.tensors) layout.offsets.push_back(store.add_tensor(tensor));
  store.add_digests(kDigestSourceGroup, contents.source);
  store.add_digests(kDigestStoredGroup, contents.stored);
  store.add_source(contents.hf);
  layout.file_size = store.finish();
  return layout;
}

std::optional<StoreLayout> find_store(std::string const& path, StoreContents const& contents) {
  try {
    StoreFile store(path);
    auto const found = store.contents();
    auto const marked = store.seal();
    if (!are_same(found, contents) || (marked && *marked != seal(found))) return std::nullopt;
    check_side_files(found.hf, contents.hf);
    std::map<std::string, std::uint64_t> offsets;
    for (auto const& tensor : found.tensors) offsets.emplace(tensor.fqn, tensor.offset);
    StoreLayout layout{.offsets = {}, .file_size = found.file_size};
    for (auto const& tensor : contents.tensors) layout.offsets.push_back(offsets.at(tensor.fqn));
    return layout;
  } catch (FormatError const&) {
    return std::nullopt;
  }
}

void complete_store(std::string const& path) {
  auto const value = seal(StoreFile(path).contents());
  if (StoreFile(path).seal() == value) return sync_store(path);  // whoever sealed it may have died before it did so
  QuietErrors const quiet;
  Subject const root{path, "/", {}, Access::writing};
  auto file = open_file(root);
  try {
    write_text(file.get(), kCompleteAttribute, value, root);
    flush(file, root);
  } catch (...) {
    redirect(file, MemoryFile().descriptor(), root);  // a file that HDF5 can close
    throw;
  }
  close(file, "H5Fclose", root);
  sync_store(path);
}

}  // namespace rankslice
