#include "storage_reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace rankslice {

StorageReader::StorageReader(Storage const& storage, std::vector<Parameter> const& parameters)
    : storage_(storage), parameters_(parameters), open_(storage.files.size()) {}

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

// Coordinates follow from the offset that is really read and from where the headers say the tensor lies, never from the
// plan: a plan that went wrong must not agree with itself.
TensorPlace StorageReader::place_at(std::uint32_t parameter, Extent const& extent) const {
  auto next = extent.bytes.begin;  // what is before it is of this tensor, through neighbouring pieces
  std::uint64_t origin = 0;
  for (auto const& piece : std::ranges::equal_range(storage_.pieces, parameter, {}, &StoredPiece::parameter)) {
    auto const& bytes = piece.extent.bytes;
    if (piece.extent.file != extent.file || next < bytes.begin || bytes.end <= next) continue;
    auto const origin_here = bytes.begin - piece.part.begin * parameters_[parameter].part_bytes(storage_.form);
    if (next != extent.bytes.begin && origin_here != origin) break;
    origin = origin_here;
    next = std::min(bytes.end, extent.bytes.end);
    if (next == extent.bytes.end) return {.form = storage_.form, .origin = origin};
  }
  throw PlanError(fmt::format("{}: bytes [{}, {}) of {} are not of this tensor", parameters_[parameter].hf_key,
                              extent.bytes.begin, extent.bytes.end, storage_.files[extent.file].path),
                  parameters_[parameter].hf_key);
}

void StorageReader::for_each_stretch(PlannedPart const& wanted, Stretch const& step) {
  for (auto const& located : locate(storage_, parameters_, wanted)) {
    step(located.part, file(located.extent.file), place_at(wanted.parameter, located.extent));
  }
}

void StorageReader::check_unchanged() const {
  for (auto const& slot : open_) {
    if (slot.reader && slot.reader->identity() != slot.identity) {
      throw IoError(ExitCode::io, slot.reader->path() + ": changed while it was read", slot.reader->path());
    }
  }
}

Digests digest_parts(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                     Storage const& storage, BlockDone const& done) {
  Digests sums(parameters);
  StorageReader reader(storage, parameters);
  Transfer transfer(done);
  for (auto const& item : plan) {
    auto const& parameter = parameters[item.parameter];
    ParameterDigest digest(parameter);
    DigestSink const sink{.digest = &digest, .sums = &sums, .index = item.parameter};
    reader.for_each_stretch(item, [&](Range part, FileReader& file, TensorPlace place) {
      transfer.digest(parameter, part, file, place, sink);
    });
  }
  reader.check_unchanged();
  return sums;
}

}  // namespace rankslice
