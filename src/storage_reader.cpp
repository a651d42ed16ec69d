#include "storage_reader.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "io/direct_file.hpp"
#include "io/page_cache.hpp"
#include "io/positional.hpp"
#include "plan/read_plan.hpp"

namespace rankslice {

namespace {

std::vector<Extent> places_of(BlockPlan const& plan) {
  std::vector<Extent> places;
  for (auto const& block : plan.blocks) places.push_back({block.file, block.bytes});
  return places;
}

std::uint64_t total_size(std::vector<Range> const& ranges) {
  std::uint64_t size = 0;
  for (auto const& range : ranges) size += range.size();
  return size;
}

}  // namespace

StorageReader::StorageReader(Storage const& storage, Model const& model, ExpectedReads reads, OpenFile open)
    : storage_(storage), model_(model), open_file_(std::move(open)), open_(storage.files.size()) {
  if (!reads.extents.empty()) runs_ = runs_by_file(reads.extents, storage.files.size());
  if (open_file_) return;
  open_file_ = reads.extents.empty() ? open_reader : open_in_order;
  choice_ = choose_reads(storage.files, reads.extents, reads.how, reads.alone ? *reads.alone : reads.extents);
  tell_ = reads.how.tell;
  for (auto const& of_file : runs_) wanted_ += total_size(of_file);
  if (!choice_.ahead.empty()) read_ahead(reads.how.backend);
}

void StorageReader::read_ahead(ReadBackend asked) {
  auto plan = blocks_of(choice_);
  auto const in_blocks = runs_by_file(places_of(plan), runs_.size());
  for (std::size_t i = 0; i < runs_.size(); ++i) runs_[i] = without(runs_[i], in_blocks[i]);
  auto const goes_on_by_pread = [this](IoError const& error) {
    choice_.why += fmt::format("; one after the other: {}", error.what());
  };
  auto const make_engine = [&](unsigned depth, std::span<std::byte> memory) {
    try {
      if (choice_.uring && asked == ReadBackend::io_uring) return make_uring_engine(depth, memory);
      if (choice_.uring) return make_lasting_engine(make_uring_engine(depth, memory), goes_on_by_pread);
    } catch (IoError const& error) {  // one was to be had, but not by each thread: memory or files are limited
      if (asked == ReadBackend::io_uring) throw;
      if (choice_.by == ReadBackend::io_uring) choice_.by = ReadBackend::pread;
      goes_on_by_pread(error);
    }
    return make_pread_engine();
  };
  auto const open = [this](std::uint32_t index) { return open_for_blocks(index); };
  ahead_ = std::make_unique<ReadAhead>(std::move(plan), open, make_engine);
}

/// The same file as that of the reader, once more: reads past the page cache need a descriptor of their own.
UniqueFd StorageReader::open_for_blocks(std::uint32_t index) {
  auto const& path = storage_.files[index].path;
  auto const identity = file(index).identity();
  auto fd = choice_.by == ReadBackend::direct ? open_direct(path) : UniqueFd();
  if (!fd.valid()) fd = open_regular(path);  // the file system lets nobody past its cache
  if (identity_of(fd.get(), path) != identity) throw IoError(ExitCode::io, path + ": changed while it was read", path);
  return fd;
}

FileReader& StorageReader::file(std::uint32_t index) {
  auto& slot = open_[index];
  if (!slot.reader) {
    auto const& known = storage_.files[index];
    slot.reader = open_file_(known.path);
    slot.identity = slot.reader->identity();
    if (slot.identity.size != known.size) {
      throw FormatError(fmt::format("{}: expected {} bytes, as when its header was read, found {}", known.path,
                                    known.size, slot.identity.size),
                        known.path);
    }
    if (known.modified_ns != 0 && slot.identity.modified_ns != known.modified_ns) {
      throw IoError(ExitCode::io, known.path + ": changed since its header was read", known.path);
    }
    slot.reader = as_expected(std::move(slot.reader), index);
  }
  return *slot.reader;
}

/// A reader that knows what will be read of its file.
std::unique_ptr<FileReader> StorageReader::as_expected(std::unique_ptr<FileReader> file, std::uint32_t index) {
  if (runs_.empty()) return file;
  file = std::make_unique<WindowReader>(std::move(file), runs_[index], windows_);
  if (ahead_) file = std::make_unique<AheadReader>(std::move(file), index, *ahead_);
  if (choice_.to_drop.empty() || choice_.to_drop[index].empty()) return file;
  return std::make_unique<DroppingReader>(std::move(file), choice_.to_drop[index]);
}

PieceFiles StorageReader::files_of(StoredPiece const& piece) {
  return {.data = file(piece.extent.file), .scales = piece.scales ? &file(piece.scales->file) : nullptr};
}

void StorageReader::for_each_piece(PlannedSlice const& wanted, PieceStep const& step) {
  for (auto const& located : locate(storage_, model_, wanted)) {
    step(*located.piece, located.slice, files_of(*located.piece));
  }
}

void StorageReader::check_unchanged() const {
  for (auto const& slot : open_) {
    if (slot.reader && slot.reader->identity() != slot.identity) {
      throw IoError(ExitCode::io, slot.reader->path() + ": changed while it was read", slot.reader->path());
    }
  }
}

ReadPart StorageReader::part() const {
  ReadPart part{.by = choice_.by, .why = choice_.why, .wanted = wanted_, .read = wanted_, .by_pread = wanted_};
  if (ahead_) {
    auto const& plan = ahead_->plan();
    part.read += plan.read - plan.wanted;
    part.by_pread -= plan.wanted - std::min(plan.wanted, ahead_->left_out());
  }
  return part;
}

void StorageReader::finish() const {
  check_unchanged();
  if (tell_ && wanted_ > 0) tell_(part());
}

}  // namespace rankslice
