#include "verify/coverage.hpp"

#include <fmt/format.h>

#include "core/fingerprint.hpp"

namespace rankslice {

namespace {

/// What every rank must have alike, as one text.
std::string describe(StateDict const& state) {
  auto text = state.source->fingerprint;
  for (auto const selected : state.selected) text += selected ? '1' : '0';
  for (auto const& [fqn, tensor] : state.tensors) {
    text += fmt::format("\n{} {} {}", fqn, name(tensor.parameter.dtype), to_string(tensor.parameter.shape));
  }
  return text;
}

}  // namespace

bool check_alike(StateDict const& state, Communicator& world, std::vector<Mismatch>& mismatches) {
  auto const text = describe(state);
  auto const hash = xxh3_128(std::as_bytes(std::span(text)));
  std::vector<std::uint64_t> const mine{std::stoull(hash.substr(0, 16), nullptr, 16),
                                        std::stoull(hash.substr(16), nullptr, 16)};
  auto low = mine;
  auto high = mine;
  world.all_reduce(low, Reduce::min);
  world.all_reduce(high, Reduce::max);
  if (low == high) return true;
  auto of_rank_0 = mine;
  world.broadcast(std::as_writable_bytes(std::span(of_rank_0)), 0);
  if (of_rank_0 != mine) {
    mismatches.push_back({.tensor = {},
                          .expert = -1,
                          .rank = world.rank(),
                          .what = fmt::format("rank {}: its {} tensors have other names, dtypes or global shapes than "
                                              "those of rank 0, or come from another checkpoint",
                                              world.rank(), state.tensors.size())});
  }
  return false;
}

void check_coverage(StateDict const& state, MeshTables& mesh, bool is_first, std::vector<Mismatch>& mismatches) {
  auto const& parameters = state.source->parameters;
  DigestTable owners(parameters);
  for (auto const& [fqn, tensor] : state.tensors) {
    auto const entries = owners.of(tensor.index);
    auto const part = tensor.parameter.stacked_experts ? tensor.part() : Range{0, entries.size()};
    for (auto e = part.begin; e < part.end; ++e) ++entries[e];
  }
  mesh.reduce(owners, "held parts", mismatches);
  if (!is_first) return;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (!state.selected[i]) continue;
    auto const& parameter = parameters[i];
    auto const held_by = owners.of(i);
    for (std::size_t e = 0; e < held_by.size(); ++e) {
      if (held_by[e] == 1) continue;
      auto const what = parameter.stacked_experts ? fmt::format("expert {} of {}: held by {} ranks, expected 1", e,
                                                                parameter.hf_key, held_by[e])
                                                  : fmt::format("{}: missing", parameter.hf_key);
      mismatches.push_back({.tensor = parameter.hf_key,
                            .expert = parameter.stacked_experts ? static_cast<std::int64_t>(e) : -1,
                            .rank = -1,
                            .what = what});
      if (!parameter.stacked_experts) break;
    }
  }
}

}  // namespace rankslice
