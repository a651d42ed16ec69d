#include "copies.hpp"

#include <fmt/format.h>

#include "storage_reader.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

/// The pieces that cover the same parts as the one before them: copies, in a storage that is ordered by part.
std::vector<std::size_t> find_copies(std::vector<StoredPiece> const& pieces) {
  std::vector<std::size_t> copies;
  for (std::size_t i = 1; i < pieces.size(); ++i) {
    auto const same = pieces[i].parameter == pieces[i - 1].parameter && pieces[i].part == pieces[i - 1].part;
    if (same && !pieces[i].part.empty()) copies.push_back(i);
  }
  return copies;
}

/// One number for what a piece holds.
std::uint64_t digest_piece(Checkpoint const& checkpoint, StoredPiece const& piece, BlockDone const& done) {
  auto const& parameter = checkpoint.parameters[piece.parameter];
  auto const& storage = checkpoint.storage;
  auto const file = open_reader(storage.files[piece.extent.file].path);
  auto const origin = piece.extent.bytes.begin - piece.part.begin * parameter.part_bytes(storage.form);
  ParameterDigest digest(parameter);
  Digests sums({parameter});
  Transfer(done).digest(parameter, piece.part, *file, {.form = storage.form, .origin = origin},
                        {.digest = &digest, .sums = &sums, .index = 0});
  return parameter.converted() ? sums.stored.sum(0) : sums.source.sum(0);
}

}  // namespace

void require_equal_copies(Checkpoint const& checkpoint, Communicator& world, CallOptions const& call) {
  auto const& pieces = checkpoint.storage.pieces;
  auto const copies = find_copies(pieces);
  if (checkpoint.format != CheckpointFormat::shards || copies.empty()) return;
  std::vector<std::uint64_t> digests(pieces.size());  // of copies and what they are copies of
  for (auto const copy : copies) digests[copy] = digests[copy - 1] = 1;
  auto const done = watch({.stop = call.stop}, "verify", 0, &world);
  on_every_rank(world, [&] {
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      auto const mine = static_cast<int>(pieces[i].extent.file) % world.size() == world.rank();
      digests[i] = digests[i] != 0 && mine ? digest_piece(checkpoint, pieces[i], done) : 0;
    }
  });
  world.all_reduce(digests, Reduce::sum);
  on_every_rank(world, [&] {
    for (auto const copy : copies) {
      if (digests[copy] == digests[copy - 1]) continue;
      auto const file = [&](std::size_t i) { return checkpoint.storage.files[pieces[i].extent.file].path; };
      auto const& fqn = checkpoint.parameters[pieces[copy].parameter].fqn;
      throw VerifyError(fmt::format("{}: the copies in {} and {} differ: digest {:016x} and {:016x}", fqn,
                                    file(copy - 1), file(copy), digests[copy - 1], digests[copy]),
                        file(copy), fqn);
    }
  });
}

}  // namespace rankslice
