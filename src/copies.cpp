#include "copies.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "read_batches.hpp"
#include "storage_reader.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

/// The pieces that hold the same slices as the one before them: copies, in a storage that is ordered by slice. Only
/// shards have any: in the HF form a gate and an up matrix are the same slice of their parameter.
std::vector<std::size_t> find_copies(Checkpoint const& checkpoint) {
  std::vector<std::size_t> copies;
  if (checkpoint.format != CheckpointFormat::shards) return copies;
  auto const& pieces = checkpoint.storage.pieces;
  for (std::size_t i = 1; i < pieces.size(); ++i) {
    auto const same = pieces[i].parameter == pieces[i - 1].parameter && pieces[i].slice == pieces[i - 1].slice;
    if (same && !pieces[i].slice.empty()) copies.push_back(i);
  }
  return copies;
}

std::pair<std::uint32_t, std::uint64_t> place_of(Extent const& extent) { return {extent.file, extent.bytes.begin}; }

/// One number for what each of some pieces holds.
class PieceDigests {
 public:
  /// Of the pieces with these numbers, which are read in this order.
  PieceDigests(Checkpoint const& checkpoint, std::span<std::size_t const> numbers, ReadOptions const& how,
               BlockDone const& done)
      : model_(checkpoint.model),
        reader_(checkpoint.storage, checkpoint.model, {.extents = extents_of(checkpoint, numbers), .how = how}),
        transfer_(checkpoint.model, checkpoint.storage.form, done),
        sums_(checkpoint.model) {}

  [[nodiscard]] std::uint64_t of(StoredPiece const& piece) {
    auto const& parameter = model_.parameters[piece.parameter];
    if (&parameter != parameter_) digest_.emplace(model_, parameter);
    parameter_ = &parameter;
    transfer_.digest(piece, piece.slice, reader_.files_of(piece), {.digest = &*digest_, .sums = &sums_});
    std::uint64_t number = 0;
    for (std::size_t i = 0; i < parameter.tensors.size(); ++i) {  // split experts that changed places must show
      auto& table = parameter.converted() ? sums_.stored : sums_.source;
      number += expert_factor(i) * table.sum(parameter.tensors[i]);
      for (auto* const any : {&sums_.source, &sums_.stored}) std::ranges::fill(any->of(parameter.tensors[i]), 0);
    }
    return number;
  }

  /// @throws IoError for a file that was changed while it was read.
  void finish() const { reader_.finish(); }

 private:
  /// Of tensors in the native form: as they lie there.
  static std::vector<Extent> extents_of(Checkpoint const& checkpoint, std::span<std::size_t const> numbers) {
    std::vector<Extent> extents;
    for (auto const number : numbers) extents.push_back(checkpoint.storage.pieces[number].extent);
    return extents;
  }

  Model const& model_;
  StorageReader reader_;
  Transfer transfer_;
  Digests sums_;  // all zero between pieces
  Parameter const* parameter_ = nullptr;
  std::optional<ParameterDigest> digest_;  // of that parameter
};

}  // namespace

void require_equal_copies(Checkpoint const& checkpoint, Communicator& world, CallOptions const& call) {
  auto const& pieces = checkpoint.storage.pieces;
  auto const copies = find_copies(checkpoint);
  if (copies.empty()) return;
  std::vector<std::uint64_t> digests(pieces.size());  // of copies and what they are copies of
  for (auto const copy : copies) digests[copy] = digests[copy - 1] = 1;
  auto const done = watch({.stop = call.stop}, "verify", 0, &world);
  on_every_rank(world, [&] {
    std::vector<std::size_t> mine;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      auto const reads = static_cast<int>(pieces[i].extent.file) % world.size() == world.rank();
      if (digests[i] != 0 && reads) mine.push_back(i);
      digests[i] = 0;
    }
    std::ranges::sort(mine, {}, [&](std::size_t i) { return place_of(pieces[i].extent); });
    for (auto const batch : in_batches(mine, [&](std::size_t i) { return pieces[i].extent.bytes.size(); })) {
      auto const numbers = std::span(mine).subspan(batch.begin, batch.size());
      PieceDigests piece_digests(checkpoint, numbers, call.reading, done);
      for (auto const i : numbers) digests[i] = piece_digests.of(pieces[i]);
      piece_digests.finish();
    }
  });
  world.all_reduce(digests, Reduce::sum);
  on_every_rank(world, [&] {
    for (auto const copy : copies) {
      if (digests[copy] == digests[copy - 1]) continue;
      auto const file = [&](std::size_t i) { return checkpoint.storage.files[pieces[i].extent.file].path; };
      auto const& fqn = checkpoint.model.parameters[pieces[copy].parameter].fqn;
      throw VerifyError(fmt::format("{}: the copies in {} and {} differ: digest {:016x} and {:016x}", fqn,
                                    file(copy - 1), file(copy), digests[copy - 1], digests[copy]),
                        file(copy), fqn);
    }
  });
}

}  // namespace rankslice
