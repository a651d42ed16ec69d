#include "copies.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "storage_reader.hpp"
#include "watch.hpp"

namespace rankslice {

namespace {

/// The pieces that hold the same slices as the one before them: copies, in a storage that is ordered by slice.
std::vector<std::size_t> find_copies(std::vector<StoredPiece> const& pieces) {
  std::vector<std::size_t> copies;
  for (std::size_t i = 1; i < pieces.size(); ++i) {
    auto const same = pieces[i].parameter == pieces[i - 1].parameter && pieces[i].slice == pieces[i - 1].slice;
    if (same && !pieces[i].slice.empty()) copies.push_back(i);
  }
  return copies;
}

/// One number for what a piece holds. `sums` is all zero, before and after.
std::uint64_t digest_piece(Checkpoint const& checkpoint, StoredPiece const& piece, Digests& sums,
                           BlockDone const& done) {
  auto const& model = checkpoint.model;
  auto const& parameter = model.parameters[piece.parameter];
  auto const& storage = checkpoint.storage;
  auto const file = open_reader(storage.files[piece.extent.file].path);
  ParameterDigest digest(model, parameter);
  Transfer(model, storage.form, done).digest(piece, piece.slice, *file, {.digest = &digest, .sums = &sums});
  std::uint64_t number = 0;
  for (std::size_t i = 0; i < parameter.tensors.size(); ++i) {  // split experts that changed places must show
    auto& table = parameter.converted() ? sums.stored : sums.source;
    number += expert_factor(i) * table.sum(parameter.tensors[i]);
    for (auto* const any : {&sums.source, &sums.stored}) std::ranges::fill(any->of(parameter.tensors[i]), 0);
  }
  return number;
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
    Digests sums(checkpoint.model);
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      auto const mine = static_cast<int>(pieces[i].extent.file) % world.size() == world.rank();
      digests[i] = digests[i] != 0 && mine ? digest_piece(checkpoint, pieces[i], sums, done) : 0;
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
