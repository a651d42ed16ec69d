#pragma once

#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "rankslice/options.hpp"

#include "core/threads.hpp"
#include "plan/plan.hpp"
#include "storage_reader.hpp"
#include "transform/transfer.hpp"

namespace rankslice {

/// How pieces are read.
struct PieceReading {
  ReadOptions how = ReadOptions();  // gcc 12 takes {} for uninitialised
  int threads = 1;
  BlockDone done{};
  /// By slice of the plan: other ranks of this host may read it, too. With `automatic`, such bytes come from the disk
  /// once, through the page cache, and stay there. Empty: none are.
  std::vector<bool> shared{};
  std::function<OpenFile()> make_open{};  ///< Makes what a thread opens its files by, instead of by `how`.
};

/// How a call reads back what it wrote: where the page cache still has most of it, and so through that.
[[nodiscard]] inline PieceReading reading_back(CallOptions const& call, BlockDone done) {
  return {.how = {.backend = ReadBackend::pread}, .threads = call.threads, .done = std::move(done)};
}

/// A piece as it is read for one of the slices of a plan.
struct PieceRead {
  std::size_t item = 0;  ///< Which of the slices.
  StoredPiece const& piece;
  Slice slice;  ///< What is read of it.
  PieceFiles files;
  DigestSink sink;
};

/// Calls a step for every piece of a thread, in the order of the files.
using ForEachPiece = std::function<void(std::function<void(PieceRead const& read)> const& step)>;

/// What each thread does, with pieces of its own.
using ReadShare = std::function<void(ForEachPiece const& for_each_piece, BlockDone const& done)>;

/// Read every piece that holds something of the slices of a plan, or parts of it, by several threads; ranges that touch
/// are read together. Digests go to `sums`, if given. Then the files are still what they were.
/// @throws IoError, FormatError; PlanError when the storage lacks something of a slice; what `read_share` throws
void read_pieces(Storage const& storage, Model const& model, std::vector<PlannedSlice> const& plan,
                 PieceReading const& reading, Digests* sums, ReadShare const& read_share);

/// Digest the slices of a plan as `storage` holds them. @throws as above
[[nodiscard]] Digests digest_slices(Model const& model, std::vector<PlannedSlice> const& plan, Storage const& storage,
                                    PieceReading const& reading);

}  // namespace rankslice
