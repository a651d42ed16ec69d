#include "plan/thread_shares.hpp"

#include <algorithm>

#include "rankslice/mesh.hpp"

namespace rankslice {

namespace {

constexpr std::uint64_t kPageElements = 4096;  // of any size are whole pages

/// A piece as a row of units that are never cut.
class Units {
 public:
  Units(Storage const& storage, Model const& model, PlannedPiece const& planned) : slice_(planned.located.slice) {
    auto const& piece = *planned.located.piece;
    auto const& parameter = model.parameters[piece.parameter];
    auto const columns = storage.form == Form::hf ? model.tensors[piece.tensor].columns.size() : parameter.columns();
    auto const read = parameter.read_for(slice_, storage.form);
    part_bytes_ = read.rows.size() * columns * parameter.unit_bytes(storage.form);
    if (!parameter.stacked_experts) parts_ = piece.scales ? slice_.part.end : kPageElements;
  }

  [[nodiscard]] std::uint64_t bytes() const { return slice_.part.size() * part_bytes_; }
  /// The nearest bound of units to so many bytes behind the begin of the piece.
  [[nodiscard]] std::uint64_t bound(std::uint64_t bytes) const {
    if (bytes >= this->bytes()) return slice_.part.end;
    auto const at = slice_.part.begin + (bytes + part_bytes_ / 2) / part_bytes_;
    return std::clamp((at + parts_ / 2) / parts_ * parts_, slice_.part.begin, slice_.part.end);
  }

 private:
  Slice slice_;
  std::uint64_t part_bytes_ = 0;  // of an expert or an element
  std::uint64_t parts_ = 1;       // in a unit
};

}  // namespace

std::vector<std::vector<PlannedPiece>> divide_among_threads(Storage const& storage, Model const& model,
                                                            std::vector<PlannedPiece> const& pieces,
                                                            std::size_t threads) {
  std::uint64_t total = 0;
  for (auto const& piece : pieces) total += Units(storage, model, piece).bytes();
  std::vector<std::vector<PlannedPiece>> shares(std::max<std::size_t>(1, threads));
  auto const end_of = [&](std::size_t share) { return balanced_part(total, shares.size(), share).end; };
  std::size_t share = 0;
  std::uint64_t begin = 0;  // of the piece, among the bytes of all
  for (auto const& piece : pieces) {
    Units const units(storage, model, piece);
    auto left = piece;
    auto const end = begin + units.bytes();
    for (; end_of(share) < end; ++share) {
      auto taken = left;
      taken.located.slice.part.end = units.bound(std::max(end_of(share), begin) - begin);
      left.located.slice.part.begin = taken.located.slice.part.end;
      if (!taken.located.slice.empty()) shares[share].push_back(taken);
    }
    if (!left.located.slice.empty()) shares[share].push_back(left);
    begin = end;
  }
  std::erase_if(shares, [](auto const& pieces_of_share) { return pieces_of_share.empty(); });
  if (shares.empty()) shares.emplace_back();
  return shares;
}

}  // namespace rankslice
