#include "part_writer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "io/file.hpp"
#include "storage_reader.hpp"

namespace rankslice {

namespace {

/// The file that is being written: opened when first needed, synced and closed before the next one is. Plans are in
/// the order of the files.
class TargetFile {
 public:
  explicit TargetFile(Storage const& target) : target_(target) {}
  FileWriter& at(std::uint32_t index) {
    if (!writer_ || index != index_) {
      finish();
      writer_.emplace(FileWriter::open(target_.files[index].path));
      index_ = index;
    }
    return *writer_;
  }
  void finish() {
    if (!writer_) return;
    writer_->sync();
    writer_->close();
    writer_.reset();
  }

 private:
  Storage const& target_;
  std::uint32_t index_ = 0;
  std::optional<FileWriter> writer_;
};

StoredPiece const& only_piece(Storage const& target, std::uint32_t parameter) {
  return *std::ranges::lower_bound(target.pieces, parameter, {}, &StoredPiece::parameter);
}

}  // namespace

Digests write_parts(std::vector<Parameter> const& parameters, std::vector<PlannedPart> const& plan,
                    NativeSource& source, Storage const& target, BlockDone const& done) {
  Digests written(parameters);
  TargetFile file(target);
  Transfer transfer(done);
  for (auto const& item : plan) {
    auto const& parameter = parameters[item.parameter];
    auto const& piece = only_piece(target, item.parameter);
    TensorPlace const place{.form = target.form,
                            .origin = piece.extent.bytes.begin - piece.part.begin * parameter.part_bytes(target.form)};
    ParameterDigest digest(parameter);
    DigestSink const sink{.digest = &digest, .sums = &written, .index = item.parameter};
    source.for_each_piece(item, [&](Range part, std::byte const* native) {
      transfer.write(parameter, part, native, file.at(piece.extent.file), place, sink);
    });
  }
  file.finish();
  return written;
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

}  // namespace rankslice
