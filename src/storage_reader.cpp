#include "storage_reader.hpp"

#include <fmt/format.h>

namespace rankslice {

StorageReader::StorageReader(Storage const& storage, Model const& model)
    : storage_(storage), model_(model), open_(storage.files.size()) {}

FileReader& StorageReader::file(std::uint32_t index) {
  auto& slot = open_[index];
  if (!slot.reader) {
    auto const& known = storage_.files[index];
    slot.reader = open_reader(known.path);
    slot.identity = slot.reader->identity();
    if (slot.identity.size != known.size) {
      throw FormatError(fmt::format("{}: expected {} bytes, as when its header was read, found {}", known.path,
                                    known.size, slot.identity.size),
                        known.path);
    }
    if (known.modified_ns != 0 && slot.identity.modified_ns != known.modified_ns) {
      throw IoError(ExitCode::io, known.path + ": changed since its header was read", known.path);
    }
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

Digests digest_slices(Model const& model, std::vector<PlannedSlice> const& plan, Storage const& storage,
                      BlockDone const& done) {
  Digests sums(model);
  sums.without_codes = storage.form == Form::native;
  StorageReader reader(storage, model);
  Transfer transfer(model, storage.form, done);
  for (auto const& item : plan) {
    ParameterDigest digest(model, model.parameters[item.parameter]);
    reader.for_each_piece(item, [&](StoredPiece const& piece, Slice const& slice, PieceFiles const& files) {
      transfer.digest(piece, slice, files, {.digest = &digest, .sums = &sums});
    });
  }
  reader.check_unchanged();
  return sums;
}

}  // namespace rankslice
