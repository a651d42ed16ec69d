#include "support/divided_state.hpp"

#include <algorithm>
#include <utility>

#include "io/memory.hpp"
#include "verify/rank_tables.hpp"

namespace rankslice::test {

namespace {

std::uint64_t axis(Parameter const& parameter, std::size_t number) {
  return number < parameter.shape.size() ? parameter.shape[number] : 1;
}

LocalBox all_of(Parameter const& parameter) { return {{0, axis(parameter, 0)}, {0, axis(parameter, 1)}}; }

/// Along axis 0.
LocalBox chunk(Parameter const& parameter, int parts, int index) {
  auto box = all_of(parameter);
  if (!parameter.shape.empty()) box.first = torch_chunk(parameter.shape[0], parts, index);
  return box;
}

/// Everything along axis 0: FSDP over all ranks.
WayToDivide fsdp(int ranks) {
  return {"fsdp over " + std::to_string(ranks), ranks, make_mesh(ranks),
          [ranks](Parameter const& parameter, int rank) { return chunk(parameter, ranks, rank); }};
}

/// Experts as the mesh says, dense tensors along axis 0.
WayToDivide fsdp_beside(std::string const& name, Mesh const& mesh) {
  return {
      "fsdp beside " + name, mesh.ranks(), mesh, [mesh](Parameter const& parameter, int rank) {
        if (!parameter.stacked_experts) return chunk(parameter, mesh.ranks(), rank);
        auto const at = mesh.coordinate(rank);
        auto const part = [](std::uint64_t length, int parts, int index) {
          return balanced_part(length, static_cast<std::uint64_t>(parts), static_cast<std::uint64_t>(index));
        };
        return LocalBox{part(parameter.shape[0], mesh.ep, at.ep), part(parameter.shape[1], mesh.ep_shard, at.ep_shard)};
      }};
}

/// Two copies of everything, each in two parts: HSDP.
WayToDivide hsdp() {
  return {"hsdp 2 x 2", 4, make_mesh(4),
          [](Parameter const& parameter, int rank) { return chunk(parameter, 2, rank % 2); }};
}

/// Experts in boxes of unequal experts and rows, dense tensors whole.
WayToDivide boxes() {
  return {"boxes", 4, make_mesh(4), [](Parameter const& parameter, int rank) {
            auto box = all_of(parameter);
            if (!parameter.stacked_experts) return box;
            box.first = torch_chunk(parameter.shape[0], 2, rank / 2);
            auto const cut =
                parameter.shape[1] / 3 + static_cast<std::uint64_t>(rank / 2);  // another one for each half
            box.second = rank % 2 == 0 ? Range{0, cut} : Range{cut, parameter.shape[1]};
            return box;
          }};
}

WayToDivide replicated() {
  return {"replicated", 3, make_mesh(3), [](Parameter const& parameter, int) { return all_of(parameter); }};
}

/// Ranks without anything, before and after those that have all.
WayToDivide on_one_of_three() {
  return {"on one of three", 3, make_mesh(3), [](Parameter const& parameter, int rank) {
            auto box = all_of(parameter);
            if (rank != 1 && !parameter.shape.empty())
              box.first = rank == 0 ? Range{} : Range{box.first.end, box.first.end};
            return box;
          }};
}

/// Some dense tensors in parts, others whole, experts with two owners each.
WayToDivide mixed() {
  return {"mixed", 4, {.ep_replicate = 2, .ep_shard = 1, .ep = 2}, [](Parameter const& parameter, int rank) {
            if (parameter.stacked_experts) return chunk(parameter, 2, rank / 2);
            return parameter.shape.size() == 1 ? all_of(parameter) : chunk(parameter, 4, 3 - rank);
          }};
}

ShardedTensor part_of(ShardedTensor const& all, LocalBox const& box) {
  auto tensor = all;
  auto const& parameter = all.parameter;
  auto const rows = parameter.stacked_experts ? parameter.shape[1] : 1;
  auto const second = parameter.stacked_experts ? box.second : Range{0, 1};
  auto const row_bytes = all.data.bytes / std::max<std::uint64_t>(1, axis(parameter, 0) * rows);
  std::vector<std::byte> bytes;
  for (auto i = box.first.begin; i < box.first.end; ++i) {
    auto const* const first = all.data.data.get() + i * rows * row_bytes;
    bytes.insert(bytes.end(), first + second.begin * row_bytes, first + second.end * row_bytes);
  }
  auto const cut = [&](std::size_t number, Range range) {
    tensor.local_shape[number] = range.size();
    tensor.offsets[number] = range.begin;
  };
  if (!parameter.shape.empty()) cut(0, box.first);
  if (parameter.stacked_experts) cut(1, second);
  tensor.data = allocate_host(bytes.size());
  std::ranges::copy(bytes, tensor.data.data.get());
  return tensor;
}

}  // namespace

Range torch_chunk(std::uint64_t length, int parts, int index) {
  auto const count = static_cast<std::uint64_t>(parts);
  auto const size = (length + count - 1) / count;
  auto const at = [&](int number) { return std::min(length, static_cast<std::uint64_t>(number) * size); };
  return {at(index), at(index + 1)};
}

std::vector<WayToDivide> ways_to_divide() {
  return {fsdp(1),
          fsdp(2),
          fsdp(3),
          fsdp(4),
          fsdp_beside("ep 3", make_mesh(3)),
          fsdp_beside("ep 2, ep_shard 2", make_mesh(4, 2, 2)),
          fsdp_beside("two replicas", make_mesh(4, 2)),
          hsdp(),
          boxes(),
          replicated(),
          on_one_of_three(),
          mixed()};
}

StateDict divide(StateDict const& whole, WayToDivide const& way, int rank) {
  StateDict state{
      .tensors = {}, .mesh = way.mesh, .coordinate = way.mesh.coordinate(rank), .source = whole.source, .read = {}};
  for (auto const& [fqn, tensor] : whole.tensors) {
    state.tensors.emplace(fqn, part_of(tensor, way.box(tensor.parameter, rank)));
  }
  state.read = digest_held(state, {}, nullptr);
  state.read.without_codes = false;  // nothing is converted
  return state;
}

}  // namespace rankslice::test
