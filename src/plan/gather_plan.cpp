#include "plan/gather_plan.hpp"

#include <algorithm>
#include <numeric>

#include "plan/held.hpp"

namespace rankslice {

namespace {

constexpr auto kDenseBlockBytes = 4_MiB;

/// Who sends blocks.
class Owners {
 public:
  explicit Owners(GatherOwners const& owners) : owners_(owners) {}

  [[nodiscard]] std::vector<GatherPart> of(Model const& model, GatherBlock const& block) {
    if (auto const* const division = owners_.holdings.division(block.parameter))
      return of_parts(*division, block.slice);
    auto const& parameter = model.parameters[block.parameter];
    return parameter.stacked_experts ? of_expert(parameter, block.slice.part.begin) : of_dense(block.slice);
  }

 private:
  /// Who holds parts of a block.
  [[nodiscard]] std::vector<GatherPart> of_parts(Division const& division, Slice const& block) {
    std::vector<GatherPart> parts;
    for (auto const& [held, holders] : division.parts_around(block.part)) {
      auto const common = intersection(held, block);
      if (!common.empty()) parts.push_back({one_of(holders), common});
    }
    ++turn_;
    return parts;
  }

  /// The mesh's, of one expert.
  [[nodiscard]] std::vector<GatherPart> of_expert(Parameter const& parameter, std::uint64_t expert) const {
    auto const& mesh = owners_.holdings.mesh;
    auto const experts = parameter.part_count();
    MeshCoordinate at;
    at.ep = static_cast<int>(part_with(expert, experts, static_cast<std::uint64_t>(mesh.ep)));
    std::vector<GatherPart> parts;
    for (at.ep_shard = 0; at.ep_shard < mesh.ep_shard; ++at.ep_shard) {
      at.ep_replicate = replica(at, expert);
      auto const rows = held_slice(parameter, mesh, at).rows;
      if (!rows.empty()) parts.push_back({mesh.rank(at), {.part = {expert, expert + 1}, .rows = rows}});
    }
    return parts;
  }

  [[nodiscard]] std::vector<GatherPart> of_dense(Slice const& slice) {
    if (owners_.dense_everywhere) return {};
    auto const rank = next_rank_;
    next_rank_ = (rank + 1) % owners_.holdings.mesh.ranks();
    return {{rank, slice}};
  }

  /// The receiver, if it holds this itself; else they take turns.
  [[nodiscard]] int one_of(std::vector<int> const& holders) const {
    if (owners_.receiver && std::ranges::binary_search(holders, *owners_.receiver)) return *owners_.receiver;
    return holders[turn_ % holders.size()];
  }
  [[nodiscard]] int replica(MeshCoordinate const& at, std::uint64_t expert) const {
    auto const& mesh = owners_.holdings.mesh;
    if (owners_.receiver) {
      auto const receiver = mesh.coordinate(*owners_.receiver);
      if (receiver.ep == at.ep && receiver.ep_shard == at.ep_shard) return receiver.ep_replicate;
    }
    return static_cast<int>(expert % static_cast<std::uint64_t>(mesh.ep_replicate));
  }

  GatherOwners const& owners_;
  int next_rank_ = 0;
  std::size_t turn_ = 0;
};

std::vector<Range> divide_into_batches(Model const& model, std::vector<GatherBlock> const& blocks,
                                       std::uint64_t batch_bytes) {
  std::vector<Range> batches;
  std::uint64_t bytes = 0;
  for (std::uint64_t i = 0; i < blocks.size(); ++i) {
    auto const of_block = model.parameters[blocks[i].parameter].bytes(blocks[i].slice, Form::native);
    if (batches.empty() || bytes + of_block > batch_bytes) {
      batches.push_back({i, i});
      bytes = 0;
    }
    bytes += of_block;
    batches.back().end = i + 1;
  }
  return batches;
}

}  // namespace

GatherPlan plan_gather(Model const& model, std::vector<PlannedSlice> const& wanted, GatherOwners const& owners,
                       std::uint64_t batch_bytes) {
  Owners senders(owners);
  GatherPlan plan;
  for (auto const& [index, slice] : wanted) {
    auto const& parameter = model.parameters[index];
    auto const step = parameter.stacked_experts ? 1 : kDenseBlockBytes / parameter.unit_bytes(Form::native);
    if (slice.empty()) plan.blocks.push_back({.parameter = index, .slice = slice, .parts = {}});
    for (auto begin = slice.part.begin; begin < slice.part.end; begin += step) {
      GatherBlock block{.parameter = index, .slice = slice, .parts = {}};
      block.slice.part = {begin, std::min(begin + step, slice.part.end)};
      block.parts = senders.of(model, block);
      plan.blocks.push_back(std::move(block));
    }
  }
  plan.batches = divide_into_batches(model, plan.blocks, batch_bytes);
  return plan;
}

GatherPlan cut_by_units(Model const& model, GatherPlan const& plan, std::vector<PlannedSlice> const& units,
                        std::uint64_t batch_bytes) {
  GatherPlan cut;
  for (auto const& block : plan.blocks) {
    auto const has = [&](PlannedSlice const& unit) { return intersection(unit.slice, block.slice) == block.slice; };
    if (std::ranges::any_of(std::ranges::equal_range(units, block.parameter, {}, &PlannedSlice::parameter), has)) {
      cut.blocks.push_back(block);
    }
  }
  cut.batches = divide_into_batches(model, cut.blocks, batch_bytes);
  return cut;
}

std::vector<PlannedSlice> slices_of(GatherPlan const& plan, Range batch) {
  std::vector<PlannedSlice> slices;
  for (auto i = batch.begin; i < batch.end; ++i) {
    auto const& [parameter, slice, parts] = plan.blocks[i];
    auto const continues =
        !slices.empty() && slices.back().parameter == parameter && slices.back().slice.part.end == slice.part.begin;
    if (continues) {
      slices.back().slice.part.end = slice.part.end;
    } else {
      slices.push_back({parameter, slice});
    }
  }
  return slices;
}

std::vector<PlannedSlice> slices_sent_by(GatherPlan const& plan, int rank) {
  std::vector<PlannedSlice> slices;
  for (auto const& block : plan.blocks) {
    for (auto const& part : block.parts) {
      if (part.owner == rank) slices.push_back({block.parameter, part.slice});
    }
  }
  return slices;
}

GatherRoute route_to(int receiver, int ranks) {
  return {.roots = std::vector<int>(static_cast<std::size_t>(ranks), receiver), .receivers = {receiver}};
}

GatherRoute route_to_all(int ranks) {
  std::vector<int> all(static_cast<std::size_t>(ranks));
  std::iota(all.begin(), all.end(), 0);
  return {.roots = all, .receivers = all};
}

GatherRoute route_to_hosts(std::vector<int> const& first_ranks) {
  auto receivers = first_ranks;
  std::ranges::sort(receivers);
  auto const rest = std::ranges::unique(receivers);
  receivers.erase(rest.begin(), rest.end());
  return {.roots = first_ranks, .receivers = std::move(receivers)};
}

std::vector<GatherTraffic> gather_traffic(Model const& model, GatherPlan const& plan, GatherRoute const& route) {
  std::vector<GatherTraffic> traffic(route.roots.size());
  auto const at = [](int rank) { return static_cast<std::size_t>(rank); };
  std::vector<std::uint64_t> rooted(traffic.size());  // what each root broadcasts
  std::uint64_t total = 0;
  for (auto const& block : plan.blocks) {
    for (auto const& [owner, slice] : block.parts) {
      auto const bytes = model.parameters[block.parameter].bytes(slice, Form::native);
      auto const root = route.roots[at(owner)];
      if (root != owner) {
        traffic[at(owner)].sent += bytes;
        traffic[at(root)].received += bytes;
      }
      rooted[at(root)] += bytes;
      total += bytes;
    }
  }
  if (route.receivers.size() == 1) return traffic;
  for (auto const rank : route.receivers) {
    traffic[at(rank)].sent += rooted[at(rank)];
    traffic[at(rank)].received += total - rooted[at(rank)];
  }
  return traffic;
}

}  // namespace rankslice
