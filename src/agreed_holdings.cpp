#include "agreed_holdings.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "rankslice/error.hpp"

#include "comm/checked_bytes.hpp"
#include "plan/held.hpp"

namespace rankslice {

namespace {

/// What a rank holds, by parameter.
struct Held {
  std::vector<std::uint32_t> numbers;  ///< Of the slice, among those below.
  std::vector<Slice> slices;           ///< Each once.

  [[nodiscard]] Slice const& of(std::size_t parameter) const { return slices[numbers[parameter]]; }
};

Held held_here(StateDict const& state) {
  std::vector<Slice> slices(state.source->model.parameters.size());
  for (auto const& [fqn, tensor] : state.tensors) slices[tensor.index] = tensor.slice();
  Held held;
  std::map<Slice, std::uint32_t> number_of;
  for (auto const& slice : slices) {
    auto const [found, is_new] = number_of.try_emplace(slice, static_cast<std::uint32_t>(held.slices.size()));
    if (is_new) held.slices.push_back(slice);
    held.numbers.push_back(found->second);
  }
  return held;
}

static_assert(std::is_trivially_copyable_v<Slice>);

std::vector<std::byte> pack(Held const& held) {
  auto const numbers = std::as_bytes(std::span(held.numbers));
  auto const slices = std::as_bytes(std::span(held.slices));
  std::vector<std::byte> bytes(numbers.begin(), numbers.end());
  bytes.insert(bytes.end(), slices.begin(), slices.end());
  return bytes;
}

/// @throws VerifyError for what no rank with as many parameters packs
Held unpack(std::vector<std::byte> const& bytes, std::size_t parameters, int rank) {
  Held held{.numbers = std::vector<std::uint32_t>(parameters), .slices = {}};
  auto const bytes_of_numbers = parameters * sizeof(std::uint32_t);
  if (bytes.size() < bytes_of_numbers || (bytes.size() - bytes_of_numbers) % sizeof(Slice) != 0) {
    throw VerifyError(fmt::format("rank {} says in {} bytes what it holds, which are not those of {} parameters", rank,
                                  bytes.size(), parameters));
  }
  held.slices.resize((bytes.size() - bytes_of_numbers) / sizeof(Slice));
  std::memcpy(held.numbers.data(), bytes.data(), bytes_of_numbers);
  std::memcpy(held.slices.data(), bytes.data() + bytes_of_numbers, held.slices.size() * sizeof(Slice));
  for (auto const number : held.numbers) {
    if (number < held.slices.size()) continue;
    throw VerifyError(
        fmt::format("rank {} says that it holds slice {} of {} that it names", rank, number, held.slices.size()));
  }
  return held;
}

bool is_as_mesh_says(Parameter const& parameter, Mesh const& mesh, int rank, Slice const& held) {
  if (!divides(mesh, parameter)) return false;
  auto const given = held_slice(parameter, mesh, mesh.coordinate(rank));
  return held == given || (held.empty() && given.empty());  // wherever nothing is said to lie
}

}  // namespace

Holdings agree_on_holdings(StateDict const& state, Communicator& world) {
  auto const& parameters = state.source->model.parameters;
  auto const held = held_here(state);
  auto const as_mesh = [&](std::size_t parameter, int rank, Held const& of_rank) {
    return is_as_mesh_says(parameters[parameter], state.mesh, rank, of_rank.of(parameter));
  };
  Holdings holdings{.mesh = state.mesh};
  auto all_as_mesh = true;
  for (std::size_t i = 0; i < parameters.size(); ++i) all_as_mesh = all_as_mesh && as_mesh(i, world.rank(), held);
  if (all_say(world, all_as_mesh)) return holdings;

  std::vector<Held> ranks;
  for (auto const& bytes : all_gather(world, pack(held))) {
    ranks.push_back(unpack(bytes, parameters.size(), static_cast<int>(ranks.size())));
  }
  std::map<std::pair<std::vector<std::uint32_t>, Slice>, std::size_t> alike;  // parameters that are divided alike
  for (std::uint32_t i = 0; i < parameters.size(); ++i) {
    std::vector<std::uint32_t> numbers;
    std::vector<Slice> slices;
    auto others = false;
    for (auto const& of_rank : ranks) {
      others = others || !as_mesh(i, static_cast<int>(numbers.size()), of_rank);
      numbers.push_back(of_rank.numbers[i]);
      slices.push_back(of_rank.of(i));
    }
    if (!others) continue;
    auto const [found, is_new] =
        alike.try_emplace({std::move(numbers), parameters[i].whole()}, holdings.divisions.size());
    if (is_new) holdings.divisions.emplace_back(std::move(slices));
    holdings.division_of.emplace(i, found->second);
  }
  return holdings;
}

}  // namespace rankslice
