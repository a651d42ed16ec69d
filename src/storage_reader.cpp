#include "storage_reader.hpp"

#include <fmt/format.h>

#include "plan/read_plan.hpp"

namespace rankslice {

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

}  // namespace rankslice
