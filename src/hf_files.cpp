#include "hf_files.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "core/fingerprint.hpp"
#include "core/literals.hpp"
#include "io/file.hpp"
#include "shared_output.hpp"

namespace rankslice {

namespace {

namespace fs = std::filesystem;

constexpr auto kBlockBytes = 4_MiB;

/// XXH3-128 of a range of a file, read block by block; `use` sees every block.
std::string checksum_of(std::string const& path, Range range, BlockDone const& done,
                        std::function<void(std::span<std::byte const>, std::uint64_t at)> const& use = {}) {
  auto const reader = open_reader(path);
  std::vector<std::byte> block(std::min<std::uint64_t>(kBlockBytes, range.size()));
  Xxh3Stream checksum;
  for (std::uint64_t at = 0; at < range.size(); at += kBlockBytes) {
    auto const part = std::span(block).first(std::min<std::uint64_t>(kBlockBytes, range.size() - at));
    reader->read(part, range.begin + at);
    checksum.add(part);
    if (use) use(part, at);
    done(part.size());
  }
  return checksum.hex();
}

/// The first `size` bytes of a file are what was written.
void require_read_back(std::string const& path, std::string const& name, std::uint64_t size,
                       std::string const& expected, BlockDone const& done) {
  auto const found = checksum_of(path, {0, size}, done);
  if (found == expected) return;
  throw VerifyError(
      fmt::format("{}: reads back differently from what was written: checksum {}, expected {}", name, found, expected),
      name);
}

/// Whether a file stands there at its full size and has its header.
bool is_there(std::string const& folder, HfFile const& file, BlockDone const& done) {
  auto const path = folder + "/" + file.name;
  std::error_code error;
  if (fs::symlink_status(path, error).type() != fs::file_type::regular || error) return false;
  if (fs::file_size(path, error) != file.size || error) return false;
  return checksum_of(path, {0, file.header.size()}, done) == xxh3_128(file.header);
}

void create_shard(std::string const& folder, HfFile const& file, BlockDone const& done) {
  make_parent_folders(folder, file.name);
  auto const path = folder + "/" + file.name;
  auto writer = FileWriter::create(path);
  writer.allocate(file.size);
  writer.write(file.header, 0);
  writer.sync();
  writer.close();
  require_read_back(path, file.name, file.header.size(), xxh3_128(file.header), done);
}

/// Folders stay.
void remove_all_but(std::set<fs::path> const& kept, std::string const& folder) {
  std::vector<fs::path> others;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (!entry->is_directory(error) && !kept.contains(entry->path())) others.push_back(entry->path());
  }
  for (auto other = others.begin(); !error && other != others.end(); ++other) fs::remove(*other, error);
  if (error) throw IoError(ExitCode::io, fmt::format("{}: cannot be cleared: {}", folder, error.message()), folder);
}

void write_whole(std::string const& folder, std::string const& name, std::vector<std::byte> const& bytes,
                 BlockDone const& done) {
  auto const path = folder + "/" + name;
  auto writer = FileWriter::create(path);
  writer.write(bytes, 0);
  writer.sync();
  writer.close();
  require_read_back(path, name, bytes.size(), xxh3_128(bytes), done);
}

void require_recorded(SideFile const& side, std::string const& checksum) {
  if (side.checksum.empty() || side.checksum == checksum) return;
  throw FormatError(fmt::format("{}: {}: checksum {}, expected {}", side.path, side.name, checksum, side.checksum),
                    side.path);
}

void copy_side_file(SideFile const& side, std::string const& folder, BlockDone const& done) {
  auto const path = folder + "/" + side.name;
  auto writer = FileWriter::create(path);
  auto const checksum =
      checksum_of(side.path, {side.offset, side.offset + side.size}, done,
                  [&](std::span<std::byte const> block, std::uint64_t at) { writer.write(block, at); });
  require_recorded(side, checksum);
  if (side.modified_ns != 0 && open_reader(side.path)->identity().modified_ns != side.modified_ns) {
    throw IoError(ExitCode::io, side.path + ": changed since the checkpoint was opened", side.path);
  }
  writer.sync();
  writer.close();
  require_read_back(path, side.name, side.size, checksum, done);
}

}  // namespace

std::vector<bool> create_hf_files(HfLayout const& layout, std::string const& folder, BlockDone const& done) {
  std::vector<bool> made;
  std::set<fs::path> kept;
  for (auto const& file : layout.files) {
    made.push_back(!is_there(folder, file, done));
    if (!made.back()) kept.insert(fs::path(folder) / file.name);
  }
  remove_all_but(kept, folder);
  for (std::size_t i = 0; i < made.size(); ++i) {
    if (made[i]) create_shard(folder, layout.files[i], done);
  }
  return made;
}

void add_other_files(HfLayout const& layout, std::string const& folder, BlockDone const& done) {
  for (auto const& side : layout.side_files) {
    side.path.empty() ? write_whole(folder, side.name, layout.config, done) : copy_side_file(side, folder, done);
  }
  if (!layout.index_name.empty()) write_whole(folder, layout.index_name, layout.index, done);
}

void check_side_files(HfLayout const& layout, BlockDone const& done) {
  for (auto const& side : layout.side_files) {
    if (side.checksum.empty()) continue;
    require_recorded(side, checksum_of(side.path, {side.offset, side.offset + side.size}, done));
  }
}

}  // namespace rankslice
