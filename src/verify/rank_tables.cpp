#include "verify/rank_tables.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "comm/checked_bytes.hpp"
#include "core/digest_factors.hpp"
#include "core/fingerprint.hpp"
#include "verify/compare.hpp"
#include "verify/coverage.hpp"
#include "verify/shared_mismatches.hpp"

namespace rankslice {

namespace {

constexpr std::size_t kAskedHolders = 8;  // for all of their tables: who has many errors need not see each expert named

/// Those of the tensors that are made of a parameter, and of their scales.
template <typename Step>
void for_each_entries_of(Model const& model, std::uint32_t parameter, DigestTable& table, Step const& step) {
  for (auto const tensor : model.parameters[parameter].tensors) {
    step(table.of(tensor));
    if (auto const& scales = model.tensors[tensor].scales) step(table.of(*scales));
  }
}

/// One number that tells tables apart by what they have of a parameter.
std::uint64_t number_of(Model const& model, std::uint32_t parameter, DigestTable& table) {
  std::uint64_t number = 0, entry = 0;
  for_each_entries_of(model, parameter, table, [&](std::span<std::uint64_t const> values) {
    for (auto const value : values) number += expert_factor(entry++) * value;
  });
  return number;
}

/// Over some ranks, what a table has of the parameters that `takes` names, the same on all of them. Collective.
template <typename Takes>
void sum_over(Communicator& ranks, Model const& model, DigestTable& table, Takes const& takes) {
  std::vector<std::uint64_t> numbers;
  auto const for_each_taken = [&](auto const& step) {
    for (std::size_t i = 0; i < model.tensors.size(); ++i) {
      if (takes(model.tensors[i].parameter)) step(table.of(i));
    }
  };
  for_each_taken([&](std::span<std::uint64_t> values) { numbers.insert(numbers.end(), values.begin(), values.end()); });
  if (numbers.empty()) return;
  ranks.all_reduce(numbers, Reduce::sum);
  auto next = numbers.begin();
  for_each_taken([&](std::span<std::uint64_t> values) {
    std::copy_n(next, values.size(), values.begin());
    next += static_cast<std::ptrdiff_t>(values.size());
  });
}

}  // namespace

RankTables::RankTables(StateDict const& state, Holdings const& holdings, Communicator& world)
    : model_(state.source->model), holdings_(holdings), world_(world) {
  // One replica is the whole world: a communicator of its own may cost much to start.
  if (holdings.mesh.ep_replicate > 1) replica_ = world.split(state.coordinate.ep_replicate);
}

void RankTables::sum(DigestTable& table) {
  for (auto const& [parameter, division] : holdings_.division_of) {
    if (first_holder(parameter) == world_.rank()) continue;
    for_each_entries_of(model_, parameter, table, [](auto const& entries) { std::ranges::fill(entries, 0); });
  }
  auto const divided = [&](std::uint32_t parameter) { return holdings_.division(parameter) != nullptr; };
  sum_over(world_, model_, table, divided);
  sum_over(replica_ ? *replica_ : world_, model_, table, [&](std::uint32_t parameter) {
    return model_.parameters[parameter].stacked_experts && !divided(parameter);
  });
}

void RankTables::reduce(DigestTable& table, std::string_view what, std::vector<Mismatch>& mismatches) {
  compare_holders(table, what, mismatches);
  sum(table);
  compare_replicas(table, what, mismatches);
}

/// Of the slice of a divided parameter that this rank holds; -1 when it holds nothing.
int RankTables::first_holder(std::uint32_t parameter) const {
  auto const& division = *holdings_.division(parameter);
  auto const part = division.part_of(world_.rank());
  return part < division.parts().size() ? division.parts()[part].holders.front() : -1;
}

void RankTables::compare_holders(DigestTable const& table, std::string_view what, std::vector<Mismatch>& mismatches) {
  auto held = table;
  // Call step(parameter, holders) for every slice that has copies, in the same order on all ranks.
  auto const for_each_copied = [&](auto const& step) {
    for (auto const& [parameter, number] : holdings_.division_of) {
      for (auto const& part : holdings_.divisions[number].parts()) {
        if (part.holders.size() > 1) step(parameter, part.holders);
      }
    }
  };
  std::vector<std::uint64_t> mine;  // of what this rank holds first
  auto any = false;
  for_each_copied([&](std::uint32_t parameter, std::vector<int> const& holders) {
    any = true;
    if (holders.front() == world_.rank()) mine.push_back(number_of(model_, parameter, held));
  });
  if (!any) return;
  auto const of_ranks = all_gather(world_, std::as_bytes(std::span(mine)));
  std::vector<std::size_t> next(of_ranks.size());  // where the next number of each rank is
  std::vector<std::uint32_t> differing;
  for_each_copied([&](std::uint32_t parameter, std::vector<int> const& holders) {
    auto const first = static_cast<std::size_t>(holders.front());
    std::uint64_t expected = 0;
    std::memcpy(&expected, of_ranks[first].data() + sizeof(expected) * next[first]++, sizeof(expected));
    auto const here = std::ranges::binary_search(holders, world_.rank());
    if (here && number_of(model_, parameter, held) != expected) differing.push_back(parameter);
  });
  if (!all_say(world_, differing.empty())) name_differences(held, differing, what, mismatches);
}

/// In what this rank has of some parameters, to who holds it first. Collective.
void RankTables::name_differences(DigestTable const& table, std::vector<std::uint32_t> const& differing,
                                  std::string_view what, std::vector<Mismatch>& mismatches) {
  std::vector<int> firsts;
  for (auto const parameter : differing) firsts.push_back(first_holder(parameter));
  std::set<int> asked;  // by any rank
  for (auto const& bytes : all_gather(world_, std::as_bytes(std::span(firsts)))) {
    std::vector<int> of_rank(bytes.size() / sizeof(int));
    std::memcpy(of_rank.data(), bytes.data(), of_rank.size() * sizeof(int));
    asked.insert(of_rank.begin(), of_rank.end());
  }
  while (asked.size() > kAskedHolders) asked.erase(std::prev(asked.end()));
  for (auto const parameter : differing) {
    if (asked.contains(first_holder(parameter))) continue;
    auto const& key = model_.key_of(model_.parameters[parameter]);
    mismatches.push_back({.tensor = key,
                          .expert = -1,
                          .rank = world_.rank(),
                          .what = fmt::format("rank {}: {}: {} here is not as on rank {}", world_.rank(), key, what,
                                              first_holder(parameter))});
  }
  auto const mine = fmt::format("{} here", what);
  for (auto const first : asked) {
    auto of_first = table;
    world_.broadcast(std::as_writable_bytes(of_first.values()), first);
    auto expected = table;
    for (std::size_t i = 0; i < model_.tensors.size(); ++i) {
      auto const parameter = model_.tensors[i].parameter;
      if (!std::ranges::binary_search(differing, parameter) || first_holder(parameter) != first) continue;
      std::ranges::copy(of_first.of(i), expected.of(i).begin());
    }
    auto const theirs = fmt::format("rank {}'s", first);
    auto const found = differences(model_, NamedTable{theirs, expected}, {mine, table}, world_.rank());
    mismatches.insert(mismatches.end(), found.begin(), found.end());
  }
}

void RankTables::compare_replicas(DigestTable const& table, std::string_view what, std::vector<Mismatch>& mismatches) {
  auto const hash = xxh3_128(std::as_bytes(table.values()));
  auto hash_of_rank_0 = hash;
  world_.broadcast(std::as_writable_bytes(std::span(hash_of_rank_0)), 0);
  if (all_say(world_, hash == hash_of_rank_0)) return;
  auto of_rank_0 = table;
  world_.broadcast(std::as_writable_bytes(of_rank_0.values()), 0);
  auto const mine = fmt::format("{} here", what);
  auto const found = differences(model_, NamedTable{"rank 0's", of_rank_0}, {mine, table}, world_.rank());
  mismatches.insert(mismatches.end(), found.begin(), found.end());
}

std::optional<Digests> known_codes(StateDict const& state, Holdings const& holdings, Communicator& world) {
  if (all_say(world, state.read.source.tensors() > 0 && !state.read.without_codes)) {
    auto read = state.read;
    RankTables tables(state, holdings, world);
    tables.sum(read.source);
    tables.sum(read.stored);
    return read;
  }
  auto const& recorded = state.source->digests;
  return recorded && !recorded->without_codes ? recorded : std::nullopt;
}

Digests digest_all_held(StateDict const& state, Holdings const& holdings, CallOptions const& call,
                        Communicator& world) {
  Digests held;
  on_every_rank(world, [&] { held = digest_held(state, call, &world); });
  return in_all_ranks(state, holdings, std::move(held), world);
}

Digests in_all_ranks(StateDict const& state, Holdings const& holdings, Digests held, Communicator& world) {
  VerifyReport report;
  RankTables tables(state, holdings, world);
  check_coverage(state, holdings, report.mismatches);
  tables.reduce(held.source, "held", report.mismatches);
  tables.reduce(held.stored, "held", report.mismatches);
  share_mismatches(report, world);
  on_every_rank(world, [&] { report.throw_if_bad(); });
  return held;
}

}  // namespace rankslice
