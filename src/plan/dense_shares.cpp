#include "plan/dense_shares.hpp"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "plan/row_exchange_plan.hpp"
#include "plan/units_within.hpp"

namespace rankslice {

namespace {

std::uint64_t unit_bytes(Parameter const& parameter, Form form) {
  return parameter.scale_bytes_for(parameter.whole(), form) == 0 ? parameter.unit_bytes(form)
                                                                 : parameter.bytes(parameter.whole(), form);
}

std::uint64_t bytes_read(Parameter const& parameter, Slice const& slice, Form form) {
  return parameter.bytes(slice, form) + parameter.scale_bytes_for(slice, form);
}

/// Deals tensors to the ranks, one after the other.
class Dealer {
 public:
  Dealer(Form form, std::uint64_t total_bytes, DenseShares& shares)
      : form_(form), total_(total_bytes), shares_(shares) {}

  void deal(Parameter const& parameter, std::uint32_t index) {
    auto const all = parameter.bytes(parameter.whole(), form_);
    auto const unit = unit_bytes(parameter, form_);
    auto const elements = parameter.part_count() / std::max<std::uint64_t>(1, all / unit);  // of a unit
    for (;; ++rank_) {
      auto const bounds = balanced_part(total_, shares_.by_rank.size(), rank_);
      auto const units = units_within(bounds, begin_, all / unit, unit);
      Slice const slice{.part = {units.begin * elements, units.end * elements}};
      if (!slice.empty()) shares_.by_rank[rank_].push_back({index, slice});
      if (bounds.end >= begin_ + all) break;
    }
    begin_ += all;
  }

 private:
  Form form_;
  std::uint64_t total_;
  DenseShares& shares_;
  std::uint64_t begin_ = 0;
  std::size_t rank_ = 0;
};

/// A share as it is cut into pieces.
class Cutter {
 public:
  Cutter(Model const& model, std::uint64_t most) : model_(model), most_(most) {}

  void cut(PlannedSlice const& item) {
    auto const& parameter = model_.parameters[item.parameter];
    auto const unit = parameter.unit_bytes(Form::native);
    auto const bytes = parameter.bytes(item.slice, Form::native);
    if (bytes > most_ / kSmall) {
      auto const elements = std::max<std::uint64_t>(1, most_ / unit);
      for (auto at = item.slice.part.begin; at < item.slice.part.end; at += elements) {
        Slice const part{.part = {at, std::min(at + elements, item.slice.part.end)}};
        pieces.push_back({.slices = {{item.parameter, part}}, .bytes = part.size() * unit});
      }
      return;
    }
    if (small_.bytes + bytes > most_) flush();
    small_.slices.push_back(item);
    small_.bytes += bytes;
  }
  void flush() {
    if (!small_.slices.empty()) pieces.push_back(std::exchange(small_, {}));
  }

  std::vector<SharePiece> pieces;

 private:
  static constexpr std::uint64_t kSmall = 16;  // slices of less than this part of a piece travel together
  Model const& model_;
  std::uint64_t most_;
  SharePiece small_;
};

}  // namespace

DenseShares share_dense(Model const& model, Form storage_form, Holdings const& holdings, int ranks) {
  DenseShares shares{.shared = {}, .by_rank = std::vector<std::vector<PlannedSlice>>(static_cast<std::size_t>(ranks))};
  std::uint64_t total = 0;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    auto const shared = !parameter.stacked_experts && holdings.division(i) == nullptr;
    shares.shared.push_back(shared);
    if (shared) total += parameter.bytes(parameter.whole(), storage_form);
  }
  Dealer dealer(storage_form, total, shares);
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    if (shares.shared[i]) dealer.deal(model.parameters[i], i);
  }
  return shares;
}

std::vector<PlannedSlice> slices_read(DenseShares const& shares, std::vector<PlannedSlice> const& held, int rank) {
  auto read = shares.by_rank[static_cast<std::size_t>(rank)];
  std::ranges::copy_if(held, std::back_inserter(read),
                       [&](PlannedSlice const& item) { return !shares.shared[item.parameter]; });
  return read;
}

LoadPlan make_load_plan(Model const& model, Form storage_form, Mesh const& mesh, int rank, DenseReading dense) {
  auto held = make_load_plan(model, storage_form, mesh, mesh.coordinate(rank));
  if (dense != DenseReading::once) return held;
  auto const shares = share_dense(model, storage_form, {.mesh = mesh}, mesh.ranks());
  auto slices = slices_read(shares, held.slices, rank);
  std::erase_if(slices, [&](PlannedSlice const& item) {
    return exchanges_rows(model.parameters[item.parameter], storage_form, mesh);
  });
  auto plan = make_load_plan(model, storage_form, std::move(slices));
  auto const rows = row_traffic(model, storage_form, mesh)[static_cast<std::size_t>(rank)];
  plan.bytes_wanted += rows.read;
  plan.bytes_read += rows.read;
  plan.bytes_owned = held.bytes_owned;
  return plan;
}

std::vector<std::vector<SharePiece>> share_pieces(Model const& model, DenseShares const& shares,
                                                  std::uint64_t most_bytes) {
  std::vector<std::vector<SharePiece>> pieces;
  std::size_t most = 0;
  for (auto const& share : shares.by_rank) {
    Cutter cutter(model, most_bytes);
    for (auto const& item : share) cutter.cut(item);
    cutter.flush();
    most = std::max(most, cutter.pieces.size());
    pieces.push_back(std::move(cutter.pieces));
  }
  for (auto& of_rank : pieces) of_rank.resize(most);
  return pieces;
}

std::vector<DenseTraffic> dense_traffic(Model const& model, Form storage_form, Mesh const& mesh, DenseReading dense) {
  if (dense == DenseReading::once) {
    std::vector<int> ring(static_cast<std::size_t>(mesh.ranks()));
    std::iota(ring.begin(), ring.end(), 0);
    return dense_traffic(model, storage_form, share_dense(model, storage_form, {.mesh = mesh}, mesh.ranks()), ring);
  }
  DenseTraffic all;
  for (auto const& parameter : model.parameters) {
    if (!parameter.stacked_experts) all.read += bytes_read(parameter, parameter.whole(), storage_form);
  }
  return std::vector(static_cast<std::size_t>(mesh.ranks()), all);
}

std::vector<DenseTraffic> dense_traffic(Model const& model, Form storage_form, DenseShares const& shares,
                                        std::vector<int> const& ring) {
  std::vector<DenseTraffic> traffic;
  std::vector<std::uint64_t> native;
  std::uint64_t all = 0;
  for (auto const& share : shares.by_rank) {
    auto& bytes = traffic.emplace_back();
    for (auto const& [parameter, slice] : share) {
      bytes.read += bytes_read(model.parameters[parameter], slice, storage_form);
    }
    all += native.emplace_back(plan_bytes(model, share, Form::native));
  }
  for (std::size_t i = 0; i < ring.size(); ++i) {
    auto const rank = static_cast<std::size_t>(ring[i]);
    auto const next = static_cast<std::size_t>(ring[(i + 1) % ring.size()]);
    traffic[rank].sent = all - native[next];
    traffic[rank].received = all - native[rank];
  }
  return traffic;
}

}  // namespace rankslice
