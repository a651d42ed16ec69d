#include "storage_reader.hpp"

#include <fmt/format.h>

#include <map>

#include "plan/read_plan.hpp"

namespace rankslice {

namespace {

/// The digests of the slices of which some pieces have been read and some have not.
class DigestsInProgress {
 public:
  DigestsInProgress(Model const& model, std::vector<PlannedSlice> const& plan, std::vector<PlannedPiece> const& pieces)
      : model_(model), plan_(plan), pieces_left_(plan.size()) {
    for (auto const& piece : pieces) ++pieces_left_[piece.item];
  }

  [[nodiscard]] ParameterDigest& of(std::size_t item) {
    return digests_.try_emplace(item, model_, model_.parameters[plan_[item].parameter]).first->second;
  }
  void piece_done(std::size_t item) {
    if (--pieces_left_[item] == 0) digests_.erase(item);
  }

 private:
  Model const& model_;
  std::vector<PlannedSlice> const& plan_;
  std::vector<std::size_t> pieces_left_;  // by slice
  std::map<std::size_t, ParameterDigest> digests_;
};

}  // namespace

StorageReader::StorageReader(Storage const& storage, Model const& model, ExpectedReads reads, OpenFile open)
    : storage_(storage), model_(model), open_file_(std::move(open)), open_(storage.files.size()) {
  if (!reads.extents.empty()) runs_ = runs_by_file(reads.extents, storage.files.size());
  if (!open_file_) open_file_ = open_reader;
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
    if (!runs_.empty()) slot.reader = std::make_unique<WindowReader>(std::move(slot.reader), runs_[index], windows_);
  }
  return *slot.reader;
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

void read_pieces(Storage const& storage, Model const& model, std::vector<PlannedSlice> const& plan,
                 ReadOptions const& how, Digests* sums, std::function<void(PieceRead const& read)> const& step,
                 OpenFile const& open) {
  auto const pieces = in_file_order(storage, model, plan);
  StorageReader reader(storage, model, {.extents = extents_read(storage, model, pieces), .how = how}, open);
  DigestsInProgress digests(model, plan, pieces);
  for (auto const& [item, located] : pieces) {
    step({.item = item,
          .piece = *located.piece,
          .slice = located.slice,
          .files = reader.files_of(*located.piece),
          .sink = {.digest = sums != nullptr ? &digests.of(item) : nullptr, .sums = sums}});
    digests.piece_done(item);
  }
  reader.check_unchanged();
}

Digests digest_slices(Model const& model, std::vector<PlannedSlice> const& plan, Storage const& storage,
                      BlockDone const& done, ReadOptions const& how, OpenFile const& open) {
  Digests sums(model);
  sums.without_codes = storage.form == Form::native;
  Transfer transfer(model, storage.form, done);
  read_pieces(
      storage, model, plan, how, &sums,
      [&](PieceRead const& read) { transfer.digest(read.piece, read.slice, read.files, read.sink); }, open);
  return sums;
}

}  // namespace rankslice
