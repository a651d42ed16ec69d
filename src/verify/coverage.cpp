#include "verify/coverage.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "comm/checked_bytes.hpp"
#include "core/fingerprint.hpp"
#include "core/mesh.hpp"
#include "state/consistency.hpp"
#include "state/local_tensor.hpp"

namespace rankslice {

namespace {

/// What every rank must have alike, as one text.
std::string describe(StateDict const& state) {
  auto text = fmt::format("{} {}", checkpoint_fingerprint(*state.source), to_string(state.mesh));
  for (auto const& [fqn, tensor] : state.tensors) text += '\n' + fqn;
  return text;
}

/// A part of an expert's rows, or of a dense tensor's elements, that is not held once.
struct Flaw {
  std::uint64_t expert = 0;
  Range range;
  std::vector<HeldPart const*> parts;  ///< That have it, cut differently; none: nobody has it.
};

/// How one part of a division lies along an axis.
struct Interval {
  Range range;
  HeldPart const* part = nullptr;
};

/// Of intervals that should tile a length.
void append_flaws(std::vector<Interval> intervals, std::uint64_t length, std::uint64_t expert,
                  std::vector<Flaw>& flaws) {
  std::ranges::sort(intervals, {}, [](Interval const& interval) { return interval.range; });
  Interval last;  // of those so far, the one that reaches furthest
  for (auto const& next : intervals) {
    if (next.range.begin > last.range.end) flaws.push_back({expert, {last.range.end, next.range.begin}, {}});
    if (next.range.begin < last.range.end) {
      flaws.push_back({expert, intersection(last.range, next.range), {last.part, next.part}});
    }
    if (next.range.end > last.range.end) last = next;
  }
  if (last.range.end < length) flaws.push_back({expert, {last.range.end, length}, {}});
}

std::vector<Flaw> find_flaws(Parameter const& parameter, Division const& division) {
  std::vector<Flaw> flaws;
  std::vector<Interval> intervals;
  if (!parameter.stacked_experts) {
    for (auto const& part : division.parts()) intervals.push_back({part.slice.part, &part});
    append_flaws(std::move(intervals), parameter.part_count(), 0, flaws);
    return flaws;
  }
  for (std::uint64_t expert = 0; expert < parameter.part_count(); ++expert) {
    intervals.clear();
    for (auto const& part : division.parts_around({expert, expert + 1})) {
      auto const& [first, end] = part.slice.part;
      if (first <= expert && expert < end) intervals.push_back({part.slice.rows, &part});
    }
    append_flaws(intervals, parameter.row_count(), expert, flaws);
  }
  return flaws;
}

std::string describe(Flaw const& flaw, Parameter const& parameter) {
  auto const length = parameter.stacked_experts ? parameter.row_count() : parameter.part_count();
  auto const all = flaw.range == Range{0, length};
  auto const which = all ? std::string()
                         : fmt::format("{} [{}, {}) of {} ", parameter.stacked_experts ? "rows" : "elements",
                                       flaw.range.begin, flaw.range.end, length);
  if (flaw.parts.empty()) return which + "held by no rank";
  auto const held = [&](HeldPart const* part) {
    auto const& elements = part->slice.part;
    auto const slice =
        parameter.stacked_experts ? to_string(part->slice) : fmt::format("[{}, {})", elements.begin, elements.end);
    return fmt::format("by rank {} in {}", part->holders.front(), slice);
  };
  return fmt::format("{}held {} and {}, which overlap without being the same", which, held(flaw.parts[0]),
                     held(flaw.parts[1]));
}

void append_mismatches(Model const& model, Parameter const& parameter, std::vector<Flaw> const& flaws,
                       std::vector<Mismatch>& mismatches) {
  for (auto const index : parameter.tensors) {
    auto const& key = model.tensors[index].key;
    auto const& experts = model.tensors[index].experts;
    for (auto const& flaw : flaws) {
      if (!parameter.stacked_experts) {
        mismatches.push_back({.tensor = key, .expert = -1, .rank = -1, .what = key + ": " + describe(flaw, parameter)});
      } else if (experts.begin <= flaw.expert && flaw.expert < experts.end) {
        mismatches.push_back({.tensor = key,
                              .expert = static_cast<std::int64_t>(flaw.expert),
                              .rank = -1,
                              .what = fmt::format("expert {} of {}: {}", flaw.expert, key, describe(flaw, parameter))});
      }
    }
  }
}

/// "rank 2 (replica 1): expert 3 of KEY: holds rows [0, 8) of 8, its mesh gives it none".
void append_misplaced(StateDict const& state, ShardedTensor const& tensor, Slice const& given,
                      std::vector<Mismatch>& mismatches) {
  auto const& model = state.source->model;
  auto const& parameter = tensor.parameter;
  auto const held = tensor.slice();
  auto const rank = state.mesh.rank(state.coordinate);
  auto const who = fmt::format("rank {} (replica {})", rank, state.coordinate.ep_replicate);
  for (auto const index : parameter.tensors) {
    auto const& key = model.tensors[index].key;
    auto const& experts = model.tensors[index].experts;
    if (!parameter.stacked_experts) {
      auto const what = fmt::format("{}: {}: holds elements [{}, {}) of {}, its mesh gives it all", who, key,
                                    held.part.begin, held.part.end, given.part.end);
      mismatches.push_back({.tensor = key, .expert = -1, .rank = rank, .what = what});
      continue;
    }
    for (auto expert = experts.begin; expert < experts.end; ++expert) {
      auto const rows_in = [&](Slice const& slice) {
        return slice.part.begin <= expert && expert < slice.part.end ? slice.rows : Range{};
      };
      auto const describe_rows = [&](Range const& rows) {
        return rows.empty() ? std::string("none")
                            : fmt::format("rows [{}, {}) of {}", rows.begin, rows.end, parameter.row_count());
      };
      auto const here = rows_in(held), should = rows_in(given);
      if (here == should || (here.empty() && should.empty())) continue;
      auto const what = fmt::format("{}: expert {} of {}: holds {}, its mesh gives it {}", who, expert, key,
                                    describe_rows(here), describe_rows(should));
      mismatches.push_back({.tensor = key, .expert = static_cast<std::int64_t>(expert), .rank = rank, .what = what});
    }
  }
}

void check_placements(StateDict const& state, std::vector<Mismatch>& mismatches) {
  for (auto const& [fqn, tensor] : state.tensors) {
    auto const given = slice_by_placements(tensor, state.mesh, state.coordinate);
    auto const held = tensor.slice();
    if (!given || held == *given || (held.empty() && given->empty())) continue;
    append_misplaced(state, tensor, *given, mismatches);
  }
}

}  // namespace

bool check_alike(StateDict const& state, Communicator& world, std::vector<Mismatch>& mismatches) {
  auto const text = describe(state);
  auto const mine = xxh3_128(std::as_bytes(std::span(text)));
  auto of_rank_0 = mine;
  world.broadcast(std::as_writable_bytes(std::span(of_rank_0)), 0);
  if (of_rank_0 != mine) {
    mismatches.push_back(
        {.tensor = {},
         .expert = -1,
         .rank = world.rank(),
         .what =
             fmt::format("rank {}: its {} tensors have other names, dtypes, layouts or global shapes "
                         "than those of rank 0, come from another checkpoint or storage, or one with other "
                         "references ({}), or are sharded over another mesh, {} ranks",
                         world.rank(), state.tensors.size(), describe_recorded(*state.source), to_string(state.mesh))});
  }
  return all_say(world, of_rank_0 == mine);
}

void check_coverage(StateDict const& state, Holdings const& holdings, std::vector<Mismatch>& mismatches) {
  check_placements(state, mismatches);
  if (state.mesh.rank(state.coordinate) != 0) return;
  std::map<std::pair<Division const*, bool>, std::vector<Flaw>> flaws;  // the same of all that are divided alike
  auto const& model = state.source->model;
  for (std::uint32_t i = 0; i < model.parameters.size(); ++i) {
    auto const& parameter = model.parameters[i];
    if (!parameter.stacked_experts && !state.tensors.contains(parameter.fqn)) {
      auto const& key = model.key_of(parameter);
      mismatches.push_back({.tensor = key, .expert = -1, .rank = -1, .what = key + ": missing"});
    } else if (auto const* const division = holdings.division(i)) {
      auto const [found, is_new] = flaws.try_emplace({division, parameter.stacked_experts});
      if (is_new) found->second = find_flaws(parameter, *division);
      append_mismatches(model, parameter, found->second, mismatches);
    }
  }
}

}  // namespace rankslice
