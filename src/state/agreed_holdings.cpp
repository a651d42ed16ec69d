#include "state/agreed_holdings.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>

#include "core/digest_factors.hpp"
#include "plan/held.hpp"

namespace rankslice {

namespace {

/// A slice as numbers of one size that travel.
using Bounds = std::array<std::uint64_t, 4>;

Bounds bounds_of(Slice const& slice) { return {slice.part.begin, slice.part.end, slice.rows.begin, slice.rows.end}; }

Slice slice_of(Bounds const& bounds) { return {.part = {bounds[0], bounds[1]}, .rows = {bounds[2], bounds[3]}}; }

/// What this rank holds, by parameter.
std::vector<Slice> slices_here(StateDict const& state) {
  std::vector<Slice> slices(state.source->model.parameters.size());
  for (auto const& [fqn, tensor] : state.tensors) slices[tensor.index] = tensor.slice();
  return slices;
}

bool is_as_mesh_says(StateDict const& state, Parameter const& parameter, Slice const& held) {
  if (!divides(state.mesh, parameter)) return false;
  auto const given = held_slice(parameter, state.mesh, state.coordinate);
  return held == given || (held.empty() && given.empty());  // wherever nothing is said to lie
}

/// What a rank has to say of a parameter, summed over all ranks: how many hold something else than the mesh says, and
/// two numbers that only these slices on these ranks make.
struct Said {
  std::uint64_t others = 0;
  std::array<std::uint64_t, 2> number{};
};
static_assert(sizeof(Said) == 3 * sizeof(std::uint64_t));

std::vector<Said> say(StateDict const& state, std::vector<Slice> const& held, int rank) {
  std::vector<Said> said;
  for (std::size_t i = 0; i < held.size(); ++i) {
    auto const bounds = bounds_of(held[i]);
    auto& mine = said.emplace_back();
    if (!is_as_mesh_says(state, state.source->model.parameters[i], held[i])) mine.others = 1;
    auto weight = 2 * bounds.size() * static_cast<std::uint64_t>(rank);
    for (auto& number : mine.number) {
      for (auto const bound : bounds) number += expert_factor(weight++) * bound;
    }
  }
  return said;
}

/// Every rank's slices of some parameters: by parameter, by rank. Collective.
std::vector<std::vector<Slice>> slices_of_ranks(std::vector<Slice> const& held,
                                                std::vector<std::uint32_t> const& parameters, Communicator& world) {
  std::vector<Bounds> mine;
  for (auto const parameter : parameters) mine.push_back(bounds_of(held[parameter]));
  std::vector<std::vector<Slice>> slices(parameters.size());
  for (auto const& of_rank : all_gather(world, std::as_bytes(std::span(mine)))) {
    auto bounds = mine;
    std::memcpy(bounds.data(), of_rank.data(), of_rank.size());
    for (std::size_t i = 0; i < bounds.size(); ++i) slices[i].push_back(slice_of(bounds[i]));
  }
  return slices;
}

}  // namespace

Holdings agree_on_holdings(StateDict const& state, Communicator& world) {
  auto const held = slices_here(state);
  auto said = say(state, held, world.rank());
  Holdings holdings{.mesh = state.mesh};
  std::array any{std::ranges::any_of(said, [](Said const& of) { return of.others != 0; }) ? std::uint64_t{1} : 0};
  world.all_reduce(any, Reduce::max);
  if (any.front() == 0) return holdings;

  world.all_reduce({reinterpret_cast<std::uint64_t*>(said.data()), 3 * said.size()}, Reduce::sum);
  std::map<std::tuple<std::array<std::uint64_t, 2>, Slice>, std::size_t> alike;  // parameters that are divided alike
  std::vector<std::uint32_t> firsts;                                             // of these, one each
  for (std::uint32_t i = 0; i < held.size(); ++i) {
    if (said[i].others == 0) continue;
    auto const [found, is_first] =
        alike.try_emplace({said[i].number, state.source->model.parameters[i].whole()}, firsts.size());
    if (is_first) firsts.push_back(i);
    holdings.division_of.emplace(i, found->second);
  }
  for (auto& slices : slices_of_ranks(held, firsts, world)) holdings.divisions.emplace_back(std::move(slices));
  return holdings;
}

}  // namespace rankslice
