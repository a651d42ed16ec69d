#include "parallel_reading.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <thread>

#include "plan/read_plan.hpp"
#include "plan/thread_shares.hpp"
#include "transform/digests_of_threads.hpp"

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

/// What one thread will ask for.
ExpectedReads expected_reads(Storage const& storage, Model const& model, std::vector<PlannedPiece> const& pieces,
                             PieceReading const& reading) {
  ExpectedReads reads{.extents = extents_read(storage, model, pieces), .how = reading.how};
  if (reading.shared.empty()) return reads;
  auto alone = pieces;
  std::erase_if(alone, [&](PlannedPiece const& piece) { return reading.shared[piece.item]; });
  reads.alone = extents_read(storage, model, alone);
  return reads;
}

/// What a share was read by.
struct ReadShareBy {
  std::thread::id thread;  // one may do several shares
  ReadPart part;
};

void tell(ReadOptions const& how, std::vector<ReadShareBy> shares) {
  if (!how.tell) return;
  std::set<std::thread::id> threads;
  for (auto const& share : shares) threads.insert(share.thread);
  for (auto& [thread, part] : shares) {
    part.threads = static_cast<int>(threads.size());
    if (part.wanted > 0) how.tell(part);
  }
}

}  // namespace

void read_pieces(Storage const& storage, Model const& model, std::vector<PlannedSlice> const& plan,
                 PieceReading const& reading, Digests* sums, ReadShare const& read_share) {
  auto const threads = static_cast<std::size_t>(std::max(1, reading.threads));
  auto const shares = divide_among_threads(storage, model, in_file_order(storage, model, plan), threads);
  DigestsOfThreads digests_of(model, sums, shares.size());
  std::vector<ReadShareBy> read_by(shares.size());
  in_threads(static_cast<int>(shares.size()), reading.done, [&](int thread, BlockDone const& done) {
    auto const& pieces = shares[static_cast<std::size_t>(thread)];
    auto* const of_thread = digests_of.of(static_cast<std::size_t>(thread));
    StorageReader reader(storage, model, expected_reads(storage, model, pieces, reading),
                         reading.make_open ? reading.make_open() : OpenFile());
    DigestsInProgress digests(model, plan, pieces);
    auto const for_each_piece = [&](std::function<void(PieceRead const&)> const& step) {
      for (auto const& [item, located] : pieces) {
        step({.item = item,
              .piece = *located.piece,
              .slice = located.slice,
              .files = reader.files_of(*located.piece),
              .sink = {.digest = of_thread != nullptr ? &digests.of(item) : nullptr, .sums = of_thread}});
        digests.piece_done(item);
      }
      reader.check_unchanged();
    };
    read_share(for_each_piece, done);
    read_by[static_cast<std::size_t>(thread)] = {std::this_thread::get_id(), reader.part()};
  });
  digests_of.sum();
  tell(reading.how, std::move(read_by));
}

Digests digest_slices(Model const& model, std::vector<PlannedSlice> const& plan, Storage const& storage,
                      PieceReading const& reading) {
  Digests sums(model);
  sums.without_codes = storage.form == Form::native;
  read_pieces(storage, model, plan, reading, &sums, [&](ForEachPiece const& for_each_piece, BlockDone const& done) {
    Transfer transfer(model, storage.form, done);
    for_each_piece([&](PieceRead const& read) { transfer.digest(read.piece, read.slice, read.files, read.sink); });
  });
  return sums;
}

}  // namespace rankslice
