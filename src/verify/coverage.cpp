#include "verify/coverage.hpp"

#include <fmt/format.h>

#include "comm/checked_bytes.hpp"
#include "core/fingerprint.hpp"
#include "core/mesh.hpp"
#include "state/consistency.hpp"
#include "transform/tensor_digest.hpp"

namespace rankslice {

namespace {

/// What every rank must have alike, as one text.
std::string describe(StateDict const& state) {
  auto text = fmt::format("{} {}", checkpoint_fingerprint(*state.source), to_string(state.mesh));
  for (auto const& [fqn, tensor] : state.tensors) text += '\n' + fqn;
  return text;
}

/// Rows of one expert: how many, and a number that only these rows make, the sum of one for each.
struct Rows {
  std::uint64_t count = 0, number = 0;
  bool operator==(Rows const&) const = default;
};

Rows count(Range rows) {
  Rows counted{.count = rows.size()};
  for (auto row = rows.begin; row < rows.end; ++row) counted.number += expert_factor(row);
  return counted;
}

/// What the ranks of a replica together hold of each expert.
struct Held {
  DigestTable counts, numbers;
};

Held held_here(StateDict const& state) {
  auto const& model = state.source->model;
  Held held{.counts = DigestTable(model.tensors), .numbers = DigestTable(model.tensors)};
  for (auto const& [fqn, tensor] : state.tensors) {
    if (!tensor.parameter.stacked_experts) continue;
    auto const slice = tensor.slice();
    auto const rows = count(slice.rows);
    for (auto const index : tensor.parameter.tensors) {
      auto const& experts = model.tensors[index].experts;
      auto const common = intersection(experts, slice.part);
      for (auto expert = common.begin; expert < common.end; ++expert) {
        held.counts.of(index)[expert - experts.begin] = rows.count;
        held.numbers.of(index)[expert - experts.begin] = rows.number;
      }
    }
  }
  return held;
}

std::string describe(Rows const& held, Rows const& whole) {
  if (held.count == 0) return "held by no rank";
  auto const ranks = held.count / whole.count;
  if (held == Rows{ranks * whole.count, ranks * whole.number})
    return fmt::format("held by {} ranks, expected 1", ranks);
  return fmt::format("some of its {} rows are held by several ranks or by none: {} in all", whole.count, held.count);
}

void append_uncovered(Model const& model, Parameter const& parameter, Held const& held, std::string const& where,
                      std::vector<Mismatch>& mismatches) {
  auto const whole = count({0, parameter.row_count()});
  for (auto const index : parameter.tensors) {
    auto const& tensor = model.tensors[index];
    for (auto expert = tensor.experts.begin; expert < tensor.experts.end; ++expert) {
      auto const entry = expert - tensor.experts.begin;
      Rows const found{.count = held.counts.of(index)[entry], .number = held.numbers.of(index)[entry]};
      if (found == whole) continue;
      mismatches.push_back(
          {.tensor = tensor.key,
           .expert = static_cast<std::int64_t>(expert),
           .rank = -1,
           .what = fmt::format("expert {} of {}: {}{}", expert, tensor.key, describe(found, whole), where)});
    }
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

void check_coverage(StateDict const& state, MeshTables& mesh, std::vector<Mismatch>& mismatches) {
  auto const& model = state.source->model;
  auto held = held_here(state);
  mesh.sum(held.counts);
  mesh.sum(held.numbers);
  auto const where =
      state.mesh.ep_replicate > 1 ? fmt::format(", in replica {}", state.coordinate.ep_replicate) : std::string();
  for (auto const& parameter : model.parameters) {
    if (parameter.stacked_experts) {
      if (mesh.speaks_for_replica()) append_uncovered(model, parameter, held, where, mismatches);
    } else if (state.mesh.rank(state.coordinate) == 0 && !state.tensors.contains(parameter.fqn)) {
      auto const& key = model.key_of(parameter);
      mismatches.push_back({.tensor = key, .expert = -1, .rank = -1, .what = key + ": missing"});
    }
  }
}

}  // namespace rankslice
