#include "verify/coverage.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/fingerprint.hpp"
#include "transform/tensor_digest.hpp"

namespace rankslice {

namespace {

/// What every rank must have alike, as one text.
std::string describe(StateDict const& state) {
  auto text = state.source->fingerprint;
  for (auto const& [fqn, tensor] : state.tensors) {
    text += fmt::format("\n{} {} {}", fqn, name(tensor.parameter.dtype), to_string(tensor.parameter.shape));
  }
  return text;
}

/// A number that only these rows make: the sum of one number for each.
std::uint64_t number_of(Range rows) {
  std::uint64_t number = 0;
  for (auto row = rows.begin; row < rows.end; ++row) number += expert_factor(row);
  return number;
}

/// What is wrong with the rows of an expert, of which `found` is the number and `whole` should be.
std::string describe(std::uint64_t found, std::uint64_t whole) {
  if (found == 0) return "held by no rank";
  constexpr std::uint64_t kMostCopies = 4096;
  for (std::uint64_t ranks = 2; ranks <= kMostCopies; ++ranks) {
    if (found == ranks * whole) return fmt::format("held by {} ranks, expected 1", ranks);
  }
  return "some of its rows are held by no rank or by several";
}

void append_uncovered(Model const& model, std::size_t index, DigestTable const& covered,
                      std::vector<Mismatch>& mismatches) {
  auto const& tensor = model.tensors[index];
  auto const& parameter = model.parameters[tensor.parameter];
  auto const numbers = covered.of(index);
  if (!parameter.stacked_experts) {
    if (std::ranges::any_of(numbers, [](std::uint64_t number) { return number != 1; })) {
      mismatches.push_back({.tensor = tensor.key, .expert = -1, .rank = -1, .what = tensor.key + ": missing"});
    }
    return;
  }
  auto const whole = number_of({0, parameter.row_count()});
  for (std::size_t e = 0; e < numbers.size(); ++e) {
    if (numbers[e] == whole) continue;
    auto const expert = tensor.experts.begin + e;
    mismatches.push_back({.tensor = tensor.key,
                          .expert = static_cast<std::int64_t>(expert),
                          .rank = -1,
                          .what = fmt::format("expert {} of {}: {}", expert, tensor.key, describe(numbers[e], whole))});
  }
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
  auto const& model = state.source->model;
  DigestTable covered(model.tensors);
  for (auto const& [fqn, tensor] : state.tensors) {
    auto const held = tensor.slice();
    auto const rows = number_of(held.rows);
    for (auto const index : tensor.parameter.tensors) {
      auto const numbers = covered.of(index);
      if (!tensor.parameter.stacked_experts) {
        std::ranges::fill(numbers, 1);
        continue;
      }
      auto const& experts = model.tensors[index].experts;
      auto const common = intersection(experts, held.part);
      for (auto e = common.begin; e < common.end; ++e) numbers[e - experts.begin] += rows;
    }
  }
  mesh.reduce(covered, "held parts", mismatches);
  if (!is_first) return;
  for (std::size_t i = 0; i < model.tensors.size(); ++i) append_uncovered(model, i, covered, mismatches);
}

}  // namespace rankslice
