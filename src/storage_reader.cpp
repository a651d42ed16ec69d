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
  auto const& pieces = storage_.pieces;
  auto piece = std::ranges::lower_bound(pieces, parameter, {}, &StoredPiece::parameter);
  for (; piece != pieces.end() && piece->parameter == parameter; ++piece) {
    if (piece->extent.file == extent.file && piece->extent.bytes.begin <= extent.bytes.begin &&
        extent.bytes.end <= piece->extent.bytes.end) {
      auto const skipped = piece->part.begin * parameters_[parameter].part_bytes(storage_.form);
      return {.form = storage_.form, .origin = piece->extent.bytes.begin - skipped};
    }
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

namespace {

/// The files of a target, opened when first written to; synced and closed together.
class TargetFiles {
 public:
  explicit TargetFiles(Storage const& target) : target_(target) {}
  FileWriter& file(std::uint32_t index) {
    auto const found = open_.find(index);
    if (found != open_.end()) return found->second;
    return open_.emplace(index, FileWriter::open(target_.files[index].path)).first->second;
  }
  void finish() {
    for (auto& [index, writer] : open_) {
      writer.sync();
      writer.close();
    }
    open_.clear();
  }

 private:
  Storage const& target_;
  std::map<std::uint32_t, FileWriter> open_;
};

StoredPiece const& only_piece(Storage const& target, std::uint32_t parameter) {
  return *std::ranges::lower_bound(target.pieces, parameter, {}, &StoredPiece::parameter);
}

}  // namespace

Digests write_parts(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                    NativeSource& source, Storage const& target, BlockDone const& done) {
  auto written = empty_digests(parameters);
  TargetFiles files(target);
  Transfer transfer(done);
  for (auto const& item : plan) {
    auto const& parameter = parameters[item.parameter];
    auto const& piece = only_piece(target, item.parameter);
    TensorPlace const place{.form = target.form,
                            .origin = piece.extent.bytes.begin - piece.part.begin * parameter.part_bytes(target.form)};
    ParameterDigest digest(parameter);
    DigestSink const sink{.digest = &digest, .sums = &written, .index = item.parameter};
    source.for_each_piece(item, [&](Range part, std::byte const* native) {
      transfer.write(parameter, part, native, files.file(piece.extent.file), place, sink);
    });
  }
  files.finish();
  return written;
}

Digests digest_parts(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                     Storage const& storage, BlockDone const& done) {
  auto sums = empty_digests(parameters);
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

void check_read_back(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                     Storage const& target, Digests const& written, BlockDone const& done) {
  auto const found = digest_parts(parameters, plan, target, done);
  for (auto const& item : plan) {
    if (std::ranges::equal(found.source.of(item.parameter), written.source.of(item.parameter)) &&
        std::ranges::equal(found.stored.of(item.parameter), written.stored.of(item.parameter))) {
      continue;
    }
    auto const& file = target.files[only_piece(target, item.parameter).extent.file];
    auto const& key = parameters[item.parameter].hf_key;
    throw VerifyError(fmt::format("{}: {} reads back differently from what was written: digest {:016x}, expected "
                                  "{:016x}",
                                  file.name, key, found.source.sum(item.parameter), written.source.sum(item.parameter)),
                      file.name, key);
  }
}

std::uint64_t plan_bytes(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan, Form form) {
  std::uint64_t bytes = 0;
  for (auto const& item : plan) bytes += item.part.size() * parameters[item.parameter].part_bytes(form);
  return bytes;
}

BlockDone watch(CallOptions const& call, std::string_view phase, std::uint64_t total_bytes, Communicator* world) {
  return [&call, phase, total_bytes, world, so_far = std::uint64_t{0}](std::uint64_t bytes) mutable {
    so_far += bytes;
    if (call.stop.stop_requested()) throw Interrupted();
    if (world != nullptr) world->progress();
    if (call.progress) call.progress({.phase = phase, .done = so_far, .total = total_bytes});
  };
}

Digests empty_digests(std::vector<Parameter> const& parameters) {
  Digests sums{.source = DigestTable(parameters), .stored = DigestTable(parameters)};
  return sums;
}

}  // namespace rankslice
